"""Teacher caches as datasets on the Hub: their files, and a card that says what they hold."""

from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import yaml
from huggingface_hub import DatasetCard, DatasetCardData

from ..hub.datasets import size_category
from ..hub.markdown import code, code_block, escape, markdown_table
from ..hub.model_card import hub_name
from ..hub.private import public_path, public_settings
from .cache_files import AGAIN, HEAD, MANIFEST, SHARDS, Manifest, manifest_text
from .cached import CachedTeacher

__all__ = ["cache_files", "describe_cache", "is_cache_file"]

_DIVERGENCES = {"forward_kl": "forward KL", "reverse_kl": "reverse KL"}
_FIELDS = ("dataset_name", "dataset_revision", "prompt_template", "max_length", "max_target_length", "guided_weight")
"""Fields of a recipe that determine its rows."""

_LICENSES = (
    "The signals are outputs of the teacher: its license and terms of use apply to them and to models trained from "
    "them, and so do those of the data. The texts are not stored, but can largely be reconstructed from the signals, "
    "so a cache of private data must be private as well."
)


def cache_files(folder: Path, repository: str) -> dict[str, Path | bytes]:
    """Return the files of a complete cache for its repository: shards, LM head, card, and the manifest last.

    The manifest names the last part of local paths. The digests by which data and files are compared stay the same.

    Raises:
        ValueError: If the folder is not a complete teacher cache.
    """
    manifest = CachedTeacher(folder).manifest
    if manifest.measured is None:
        raise ValueError(f"{str(folder)!r} is a teacher cache that is not complete; {AGAIN}.")
    public = _published(manifest)
    paths = [*sorted(folder.glob(SHARDS)), *([folder / HEAD] if manifest.kind == "hidden" else [])]
    return {
        **{path.name: path for path in paths},
        "README.md": str(_card(public, folder, repository)).encode(),
        MANIFEST: manifest_text(public).encode(),
    }


def is_cache_file(name: str) -> bool:
    """Return whether a file of this name, in a repository, is one of a teacher cache's."""
    return name in (HEAD, MANIFEST) or PurePath(name).match(SHARDS)


def describe_cache(manifest: Manifest, folder: Path) -> dict[str, str]:
    """Return what a cache holds, its size and its measured error, as texts by name."""
    if manifest.kind == "hidden":
        signals = f"hidden states, {manifest.dtype}, {manifest.hidden_size:,} elements"
        if manifest.top_k is not None:
            signals += f", and {manifest.top_k} most probable tokens at temperature {manifest.temperature:g}"
    else:
        signals = f"{manifest.top_k} most probable tokens and the tail, at temperature {manifest.temperature:g}"
    size = sum(path.stat().st_size for path in folder.glob(SHARDS))
    unit, divisor = ("GB", 1e9) if size >= 1e9 else ("MB", 1e6)
    files = f"{manifest.shards} shard{'' if manifest.shards == 1 else 's'}"
    facts = {
        "teacher": manifest.teacher + (f" at {manifest.teacher_revision}" if manifest.teacher_revision else ""),
        "signals": signals,
        "data": ", ".join(f"{name} {value}" for name, value in manifest.data.items() if value is not None),
        "rows": f"{manifest.rows:,} distinct rows with {manifest.tokens:,} targets",
        "size": f"{size / divisor:,.2f} {unit} in {files}, {size / manifest.tokens:,.1f} bytes per target",
    }
    if measured := manifest.measured:
        for name, title in _DIVERGENCES.items():
            facts[title] = (
                f"{measured[name]['teacher']:.5f} nats from the teacher, {measured[name]['cache']:.5f} from the "
                f"cache; error of the gradient {measured[name]['gradient_error']:.2%}"
            )
        if sampled := measured.get("sampled"):
            errors = " and ".join(
                f"{sampled[name]['gradient_error']:.2%} ({title})" for name, title in _DIVERGENCES.items()
            )
            facts["sampled"] = f"error of the gradient with teacher_tail_samples {sampled['tail_samples']}: {errors}"
        facts["measured"] = f"with the student of the recipe, on {measured['tokens']:,} targets"
    return facts


def _published(manifest: Manifest) -> Manifest:
    """Return a manifest with the last part of local paths, and with the identity that the shards repeat."""
    teacher = PurePath(manifest.teacher).name if manifest.teacher_weights else public_path(manifest.teacher)
    identity = manifest.identity if teacher != manifest.teacher else manifest.published
    return replace(manifest, teacher=teacher, data=public_settings(manifest.data), published=identity)


def _card(manifest: Manifest, folder: Path, repository: str) -> DatasetCard:
    is_sparse, method = manifest.kind == "sparse", manifest.data.get("method") or "akd"
    teacher = manifest.teacher if manifest.teacher_weights is None else None
    dataset = hub_name(manifest.data.get("dataset_name"))
    dataset = dataset if dataset is not None and "/" in dataset else None
    data = DatasetCardData(
        pretty_name=f"Teacher cache: {manifest.teacher}",
        annotations_creators=["machine-generated"],
        source_datasets=None if dataset is None else [dataset],
        task_categories=["text-generation"],
        size_categories=size_category(manifest.rows),
        tags=["distillation", "teacher-cache", "trl_akd"],
        viewer=False,  # of tables, which the files are not
    )
    facts = {
        "Teacher": manifest.teacher if hub_name(teacher) is None else f"{manifest.teacher} (on the Hub)",
        "Teacher's revision": manifest.teacher_revision or manifest.data.get("teacher_commit"),
        "Digest of the teacher's files": manifest.teacher_weights,
        "Digest of the tokenizer": manifest.tokenizer,
        "Shared vocabulary": f"{manifest.vocabulary_size:,} tokens",
        **{name.capitalize(): text for name, text in describe_cache(manifest, folder).items() if name in _CONTENT},
        **{name: value for name, value in manifest.data.items() if name != "teacher_commit"},
    }
    kind = (
        f"the log-probabilities of the {manifest.top_k} most probable tokens and the total probability of all others"
        if is_sparse
        else "the final hidden states, and once the LM head"
    )
    exactness = (
        "Divergences from it are lower bounds: all other tokens are one outcome."
        if is_sparse
        else "Every divergence is computed as from the teacher itself, as exactly as the stored dtype allows."
    )
    sections = [
        f"# Teacher cache: {escape(manifest.teacher)}",
        f"Signals of a teacher for every target token of a dataset, with which "
        f"[trl_akd](https://github.com/trl-akd/trl_akd) trains students without the teacher: {kind}. {exactness}",
        markdown_table(["", ""], [[escape(name), code(value)] for name, value in facts.items() if value is not None]),
        _measured(manifest),
        f"## Train from it\n\nIn a recipe of {code(f'trl-akd {method}')}, in place of the teacher:\n\n"
        f"{code_block(_recipe(manifest, repository, dataset), 'yaml')}\n\n"
        "Data, tokenizer and template must be those of the cache: rows are found by their tokens, and a row without a "
        "signal is an error before training. `teacher_cache_revision` selects a commit of this repository. To print "
        f"what the cache holds:\n\n{code_block(f'trl-akd cache inspect {repository}', 'bash')}",
        f"## Licenses and privacy\n\n{_LICENSES}",
    ]
    return DatasetCard(f"---\n{data}\n---\n\n" + "\n\n".join(sections) + "\n")


_CONTENT = ("signals", "rows", "size")


def _measured(manifest: Manifest) -> str:
    assert manifest.measured is not None
    rows = [
        [title, f"{found['teacher']:.5f}", f"{found['cache']:.5f}", f"{found['gradient_error']:.2%}"]
        for name, title in _DIVERGENCES.items()
        if (found := manifest.measured.get(name))
    ]
    table = markdown_table(["", "from the teacher", "from the cache", "error of the gradient"], rows)
    return (
        f"## Measured error\n\nMeans in nats of the student that the cache was created for, on "
        f"{manifest.measured['tokens']:,} targets, and the relative error of the gradient.\n\n{table}"
    )


def _recipe(manifest: Manifest, repository: str, dataset: str | None) -> str:
    """Return the fields of a recipe that trains from a cache on the Hub."""
    known = {name: manifest.data.get(name) for name in _FIELDS}
    if dataset is None:
        known["dataset_name"] = known["dataset_revision"] = None
    fields: dict[str, Any] = {"teacher_cache": repository}
    fields |= {name: value for name, value in known.items() if value is not None}
    if manifest.kind == "sparse":
        fields["kd_temperature"] = manifest.temperature
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
