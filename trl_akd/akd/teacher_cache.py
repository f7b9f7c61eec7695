"""Checks of a teacher cache against a run, before training."""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..data.vocabulary import vocabulary_digest
from ..distributed import raise_on_all
from ..generation.loading import weights_fingerprint
from ..losses.reduction import IGNORE_INDEX
from ..teachers import CachedTeacher
from ..teachers.cache_files import CachedRow, Manifest
from .akd_config import AKDConfig

__all__ = ["check_cache", "open_cache", "require_dataset", "row_settings", "unpacked_rows"]


def open_cache(teacher_model: Any, args: AKDConfig) -> CachedTeacher:
    """Return the teacher of `args.teacher_cache`.

    Raises:
        ValueError: If a teacher is given as well, or the cache is not complete, of another teacher, or of another
            temperature.
        HubError: If the cache is on the Hub and cannot be downloaded.
    """
    if teacher_model is not None:
        raise ValueError("`teacher_model` is given and `teacher_cache` is set; leave one of them out.")
    teacher = raise_on_all(
        lambda: CachedTeacher(
            str(args.teacher_cache),
            args.teacher_cache_revision,
            tail_samples=args.teacher_tail_samples,
            seed=args.seed,
        )
    )
    manifest = teacher.manifest
    if not is_teacher(manifest, args):
        raise ValueError(
            f"`teacher_cache` {args.teacher_cache!r} has signals of {_described(manifest)}, but "
            f"`teacher_model_name_or_path` is {args.teacher_path!r} at revision "
            f"{args.teacher_source['revision']!r}, or its files have changed since; create the cache again, or name "
            "the same teacher."
        )
    if manifest.kind == "sparse" and manifest.temperature != args.kd_temperature:
        raise ValueError(
            f"`kd_temperature` is {args.kd_temperature}, but `teacher_cache` {args.teacher_cache!r} has sparse "
            f"signals at temperature {manifest.temperature}; set the same, or create the cache again."
        )
    if args.teacher_tail_samples is not None and manifest.temperature != args.kd_temperature:
        raise ValueError(
            f"`kd_temperature` is {args.kd_temperature}, but `teacher_cache` {args.teacher_cache!r} has the most "
            f"probable tokens at temperature {manifest.temperature}; set the same, create the cache again, or leave "
            "`teacher_tail_samples` out."
        )
    return teacher


def check_cache(
    teacher: CachedTeacher,
    rows: Mapping[str, Iterable[CachedRow]],
    tokenizer: PreTrainedTokenizerBase,
    student_size: int,
    settings: Mapping[str, Any],
) -> None:
    """Check that a cache has a signal for every target of a run.

    Args:
        teacher (`CachedTeacher`):
            The cache.
        rows (`Mapping[str, Iterable[CachedRow]]`):
            Rows of each dataset.
        tokenizer (`PreTrainedTokenizerBase`):
            The student's tokenizer.
        student_size (`int`):
            Number of rows of the student's LM head.
        settings (`Mapping`):
            Result of [`row_settings`], which explains differences.

    Raises:
        ValueError: If the tokenizer differs, or a row or target is missing.
    """
    manifest, where = teacher.manifest, f"`teacher_cache` {str(teacher.folder)!r}"
    if manifest.tokenizer != vocabulary_digest(tokenizer, manifest.vocabulary_size):
        raise ValueError(
            f"{where} was created with another tokenizer than the student's, so its ids stand for other tokens; "
            "create the cache again with this student."
        )
    has_ids = manifest.kind == "sparse" or teacher.tail_samples is not None
    if has_ids and manifest.vocabulary_size > student_size:
        raise ValueError(
            f"{where} has ids below {manifest.vocabulary_size}, but the student's LM head has {student_size} rows; "
            "create the cache again with this student."
        )
    for name, dataset in rows.items():
        number, missing, without_targets = teacher.uncached(dataset)
        if missing or without_targets:
            of_rows = f"{missing:,} of {number:,} rows"
            of_targets = f"some targets of {without_targets:,} of {number:,} rows"
            raise ValueError(
                f"{where} has no signal for {of_rows if missing else of_targets} of the {name} dataset; "
                f"{_explained(manifest.data, settings)}."
            )


def row_settings(args: AKDConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the settings that determine the rows of a dataset."""
    template = getattr(tokenizer, "chat_template", None)
    return {
        "max_length": args.max_length,
        "prompt_template": args.prompt_template,
        "eos_token": tokenizer.eos_token,
        "chat_template": template and f"digest {blake2b(str(template).encode(), digest_size=4).hexdigest()}",
    }


def require_dataset(rows: Any, name: str) -> Dataset:
    """Return a dataset, or raise a ValueError for a stream, whose rows cannot be read in advance."""
    if isinstance(rows, Dataset):
        return rows
    raise ValueError(
        f"the {name} dataset is a stream, and the rows of a teacher cache must be known before training; set "
        "streaming=False and give a `datasets.Dataset`."
    )


def unpacked_rows(dataset: Dataset) -> Iterator[CachedRow]:
    """Yield the rows of a tokenized dataset, packed or not."""
    if "input_ids" not in dataset.column_names:
        return  # rows of a custom collator, which are known in training only
    names = [name for name in ("input_ids", "labels", "seq_lengths") if name in dataset.column_names]
    for batch in dataset.select_columns(names).with_format("arrow").iter(batch_size=1000):
        columns = {name: pc.list_flatten(batch[name]).to_numpy() for name in names}
        tokens = columns["input_ids"].astype(np.int32)
        lengths = columns.get("seq_lengths", pc.list_value_length(batch["input_ids"]).to_numpy())
        ends = np.cumsum(lengths)
        is_target = np.append(columns.get("labels", tokens)[1:] != IGNORE_INDEX, False)
        is_target[ends - 1] = False
        for start, stop in zip(ends - lengths, ends, strict=True):
            yield CachedRow(tokens[start:stop], is_target[start:stop])


def is_teacher(manifest: Manifest, args: AKDConfig) -> bool:
    """Return whether the configuration names the teacher of a cache, or none."""
    name = args.teacher_path
    if name is None:
        return True
    weights = weights_fingerprint(name)
    if weights is not None:
        return weights == manifest.teacher_weights
    given = (args.teacher_model_name_or_path, args.teacher_model_revision)  # what version 0.1.0 recorded
    return (manifest.teacher, manifest.teacher_revision) in ((name, args.teacher_source["revision"]), given)


def _described(manifest: Manifest) -> str:
    revision = f" at revision {manifest.teacher_revision!r}" if manifest.teacher_revision else ""
    return f"{manifest.teacher!r}{revision}"


def _explained(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return how the settings of a run differ from those of its cache."""
    differences = [
        f"{name} was {then.get(name)!r} and is {value!r}" for name, value in now.items() if then.get(name) != value
    ]
    if differences:
        return f"when it was created, {', '.join(differences)}; set the same, or create the cache again"
    source = f" (then {then['dataset_name']!r})" if then.get("dataset_name") else ""
    return f"its settings were the same, so the data differs{source}; create the cache again from this data"
