"""Creation of a teacher cache: the teacher processes each distinct row once, and writes shards of its signals.

The rows of a shard depend on the data alone. Each process writes whole shards, and a creation that is started again,
with any number of processes, writes those that are missing.
"""

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from hashlib import blake2b
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data.collators import pad
from ..data.vocabulary import vocabulary_digest
from ..distributed import gathered, raise_on_all, run_on_main_and_broadcast
from ..generation.loading import weights_fingerprint
from ..heads import evaluating, final_hidden_states, lm_head
from ..ledger import acquire_lock
from ..losses.fused_linear import fused_divergence
from ..losses.lm_head import LMHead
from ..losses.signals import DenseSignal, SparseSignal, TeacherSignal
from ..progress import Progress
from ..teachers import CachedTeacher, NoTeacher, SelfTeacher
from ..teachers.cache_encoding import Encoding, HiddenEncoding, SparseEncoding
from ..teachers.cache_files import (
    MANIFEST,
    CachedRow,
    CacheDtype,
    CacheKind,
    Manifest,
    is_whole,
    read_head,
    read_manifest,
    row_key,
    write_head,
    write_manifest,
    write_shard,
)
from ..teachers.served import is_usage_file
from ..teachers.sparse_codec import SparseCodec
from .distinct_rows import DistinctRows

if TYPE_CHECKING:
    from .akd_trainer import AKDTrainer

__all__ = ["check_folder", "create_cache"]

DEFAULT_TOP_K = 128  # of sparse signals
_LOCK = f"{MANIFEST}.lock"
_MEASURED_SAMPLES = 64  # of the tail of each position
_SAMPLED_ROWS = 32
_SAMPLED_TOKENS = 2048


def create_cache(
    trainer: "AKDTrainer",
    folder: str | Path,
    *,
    kind: CacheKind = "hidden",
    dtype: CacheDtype = "auto",
    top_k: int | None = None,
    shard_mb: float = 256,
    data: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write the signals of a trainer's teacher for all rows of its datasets, or those that are missing.

    All processes of the trainer must call this. They must share the file system of the folder.

    Args:
        trainer (`AKDTrainer`):
            Trainer with the teacher, the student and the data. It is not trained.
        folder (`str` or `Path`):
            Folder of the cache, new or of an interrupted creation.
        kind (`str`, *optional*, defaults to `"hidden"`):
            `"hidden"` or `"sparse"`.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Dtype of hidden states: `"auto"` (that of the teacher), `"bfloat16"`, `"float16"`, `"float32"` or
            `"int8"`.
        top_k (`int`, *optional*):
            Number of most probable tokens per signal, by default 128 for sparse signals and none for hidden states.
        shard_mb (`float`, *optional*, defaults to `256`):
            Maximum size of a shard in MB.
        data (`Mapping`, *optional*):
            Facts about the data for the manifest, such as `dataset_name`.

    Returns:
        `Manifest`: The description of the complete cache.

    Raises:
        ValueError: If there is no teacher that can be cached, a setting is wrong, or the folder has another cache.
        OSError: If a file cannot be written, or another run is writing the cache; finished shards are kept.
    """
    _check_teacher(trainer)
    folder, accelerator = Path(folder).expanduser(), trainer.accelerator
    datasets = trainer.prepared_datasets().values()
    rows = raise_on_all(lambda: DistinctRows(chain.from_iterable(map(trainer.teacher_rows, datasets))))
    batch_size = trainer.args.per_device_eval_batch_size
    with _signal(trainer, rows[:batch_size]) as signal:
        encoding = _encoding(trainer, kind, dtype, top_k, signal)
        encoding.encode(signal)  # may refuse it, before anything is written
    shards = _plan(rows.num_targets, encoding.bytes_per_token, int(shard_mb * 1_000_000))
    manifest = _manifest(trainer, kind, encoding, rows, len(shards), data or {})
    with ExitStack() as lock:
        missing = run_on_main_and_broadcast(accelerator, lambda: _begin(folder, manifest, encoding, lock))
        if missing is None:
            return read_manifest(folder)
        _write_head(trainer, folder, encoding, rows[:1])
        _write_shards(trainer, folder, manifest, encoding, rows, shards, missing, batch_size)
        accelerator.wait_for_everyone()
        return _finish(trainer, folder, manifest, rows)


def check_folder(folder: Path) -> None:
    """Raise a ValueError if a folder has other files than those of a teacher cache."""
    others = folder.iterdir() if folder.is_dir() and not (folder / MANIFEST).exists() else ()
    if not all(path.name == _LOCK or is_usage_file(path) for path in others):
        raise ValueError(f"`output_dir` is {str(folder)!r}, which has other files; give a new folder.")


def _check_teacher(trainer: "AKDTrainer") -> None:
    if isinstance(trainer.teacher, NoTeacher | SelfTeacher):
        raise ValueError(
            "there is no teacher to cache; set `teacher_model_name_or_path`. (The student without its adapter is a "
            "teacher that needs no memory of its own.)"
        )
    if isinstance(trainer.teacher, CachedTeacher):
        raise ValueError("`teacher_cache` is set, but a cache is created from a teacher; leave it out.")
    if trainer.model.config.is_encoder_decoder:
        raise ValueError("`model` is an encoder-decoder, for which there are no teacher caches; give a causal model.")


def _plan(num_targets: Iterable[int], bytes_per_token: int, limit: int) -> list[range]:
    """Divide rows, given their numbers of targets, into shards of at most `limit` bytes, or of one row."""
    starts: list[int] = []
    end, size = 0, limit
    for end, targets in enumerate(num_targets, 1):
        own = int(targets) * bytes_per_token
        if not starts or size + own > limit:
            starts.append(end - 1)
            size = 0
        size += own
    return [range(*bounds) for bounds in pairwise([*starts, end])]


def _encoding(
    trainer: "AKDTrainer", kind: CacheKind, dtype: str, top_k: int | None, signal: TeacherSignal
) -> Encoding:
    size, temperature = trainer.vocabulary_size, trainer.args.kd_temperature
    if kind == "sparse" and top_k is None:
        top_k = DEFAULT_TOP_K
    if top_k is not None and not 1 <= top_k <= size:
        raise ValueError(
            f"`cache_top_k` is {top_k}, but student and teacher share {size} tokens; give between 1 and {size}."
        )
    if kind == "sparse":
        assert top_k is not None
        return SparseEncoding(SparseCodec(size, top_k), temperature)
    if not isinstance(signal, DenseSignal):
        raise ValueError(
            "`cache_kind` is 'hidden', but the teacher returns sparse signals, without hidden states; choose 'sparse'."
        )
    stored = signal.hidden.dtype if dtype == "auto" else getattr(torch, dtype)
    return HiddenEncoding(
        stored,
        signal.hidden.shape[-1],
        top_k=top_k,
        vocabulary_size=size,
        temperature=1.0 if top_k is None else temperature,
    )


def _manifest(
    trainer: "AKDTrainer",
    kind: CacheKind,
    encoding: Encoding,
    rows: DistinctRows,
    shards: int,
    data: Mapping[str, Any],
) -> Manifest:
    digest = blake2b(digest_size=16)
    for row in rows:
        digest.update(row_key(row.tokens) + np.packbits(row.is_target).tobytes())
    args, source = trainer.args, trainer.provenance
    teacher = args.teacher_path or source.teacher or type(trainer.teacher).__name__
    weights = weights_fingerprint(teacher)
    hidden = encoding if isinstance(encoding, HiddenEncoding) else None
    return Manifest(
        kind=kind,
        dtype="packed" if hidden is None else str(hidden.dtype).removeprefix("torch."),
        top_k=encoding.top_k,
        temperature=encoding.temperature,
        vocabulary_size=trainer.vocabulary_size,
        hidden_size=None if hidden is None else hidden.hidden_size,
        teacher=teacher,
        teacher_revision=args.teacher_source["revision"] if weights is None else None,
        teacher_weights=weights,
        tokenizer=vocabulary_digest(trainer._tokenizer, trainer.vocabulary_size),
        rows=len(rows),
        tokens=int(rows.num_targets.sum()),
        rows_digest=digest.hexdigest(),
        shards=shards,
        data={
            **data,
            "teacher_commit": source.teacher_revision if weights is None else None,
            **trainer.row_settings(),
        },
    )


def _begin(folder: Path, manifest: Manifest, encoding: Encoding, lock: ExitStack) -> list[int] | None:
    """Write the manifest, and return the numbers of the missing shards, or `None` if the cache is complete.

    Until `lock` is closed, no other run can write the cache.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock.enter_context(acquire_lock(folder / MANIFEST, "`output_dir`"))
    missing = list(range(manifest.shards))
    if (folder / MANIFEST).exists():
        begun = read_manifest(folder)
        if (differences := begun.differences(manifest)) and any(folder.glob("shard-*")):
            raise ValueError(
                f"{folder} has a teacher cache with {'; '.join(differences)}; give another `output_dir`, or the same "
                "settings and data to continue."
            )
        missing = [number for number in missing if not is_whole(folder, manifest, number)]
        if not missing and begun.measured is not None and _has_head(folder, manifest):
            return None
    _check_space(folder, manifest, encoding, len(missing) / manifest.shards)
    write_manifest(folder, manifest)
    return missing


def _has_head(folder: Path, manifest: Manifest) -> bool:
    """Return whether the folder has the LM head that signals of this kind need."""
    if manifest.kind == "sparse":
        return True
    try:
        read_head(folder)
    except ValueError:
        return False
    return True


def _check_space(folder: Path, manifest: Manifest, encoding: Encoding, share: float) -> None:
    needed, free = manifest.tokens * encoding.bytes_per_token * share, shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"the teacher cache needs {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free; free some "
            "space, choose another `output_dir`, or a smaller cache by `cache_dtype: int8` or `cache_kind: sparse`."
        )


@contextmanager
def _signal(trainer: "AKDTrainer", rows: Sequence[CachedRow]) -> Iterator[TeacherSignal]:
    """Yield the teacher's signal for the targets of rows, one after another."""
    inputs, index = _batch(trainer, rows)
    with trainer.teacher.forward(inputs) or nullcontext():
        signal = trainer.teacher.signal(trainer.model)
        assert signal is not None
        selected = signal[index]
        values = selected.log_probs.exp() if isinstance(selected, SparseSignal) else selected.hidden
        if not torch.isfinite(values).all():
            raise ValueError(
                f"the teacher's output is not finite (`teacher_model_name_or_path` "
                f"{trainer.args.teacher_model_name_or_path!r}); load it in another precision with "
                "`teacher_model_init_kwargs: {dtype: float32}`, or check its weights."
            )
        yield selected


def _batch(trainer: "AKDTrainer", rows: Sequence[CachedRow]) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """Return the padded inputs of rows, and the rows and columns of their targets."""
    device, width = trainer.accelerator.device, max(len(row.tokens) for row in rows)
    inputs = {
        "input_ids": pad([row.tokens.tolist() for row in rows], trainer._tokenizer.pad_token_id, width),
        "attention_mask": pad([[1] * len(row.tokens) for row in rows], 0, width),
    }
    is_target = pad([row.is_target.tolist() for row in rows], 0, width).to(device)
    batch_rows, columns = is_target.nonzero(as_tuple=True)
    return {name: tensor.to(device) for name, tensor in inputs.items()}, (batch_rows, columns)


def _write_head(trainer: "AKDTrainer", folder: Path, encoding: Encoding, rows: Sequence[CachedRow]) -> None:
    """Write the teacher's LM head, of the shared vocabulary, if signals are hidden states."""
    if isinstance(encoding, SparseEncoding):
        return
    size = trainer.vocabulary_size
    with _signal(trainer, rows) as signal:
        assert isinstance(signal, DenseSignal)
        head = signal.head
        if trainer.accelerator.is_main_process:
            bias = None if head.bias is None else head.bias[:size]
            write_head(folder, replace(head, weight=head.weight[:size], bias=bias))


def _write_shards(
    trainer: "AKDTrainer",
    folder: Path,
    manifest: Manifest,
    encoding: Encoding,
    rows: Sequence[CachedRow],
    shards: Sequence[range],
    missing: Sequence[int],
    batch_size: int,
) -> None:
    """Write the missing shards, in each round one per process.

    A sharded teacher needs all processes in every forward pass, so those with fewer batches repeat one.
    """
    accelerator = trainer.accelerator
    rounds = [
        missing[start : start + accelerator.num_processes]
        for start in range(0, len(missing), accelerator.num_processes)
    ]
    total = sum(len(shards[numbers[0]]) for numbers in rounds)
    shown = accelerator.is_main_process and not trainer.args.disable_tqdm
    progress = Progress(total, "Caching signals of the teacher (rows of this process)", "row", shown=shown)
    for numbers in rounds:
        number = numbers[accelerator.process_index] if accelerator.process_index < len(numbers) else None
        shard = [] if number is None else rows[shards[number].start : shards[number].stop]
        own = _batches(shard, batch_size)
        parts: list[dict[str, Tensor]] = []
        for step in range(max(math.ceil(len(shards[other]) / batch_size) for other in numbers)):
            batch = own[step] if step < len(own) else [rows[shards[numbers[0]][-1]]]
            with _signal(trainer, batch) as signal, accelerator.autocast():
                if step < len(own):
                    parts.append(encoding.encode(signal))
                    progress.update(len(batch))
        if number is not None:
            stored = {name: torch.cat([part[name] for part in parts]) for name in encoding.names}
            write_shard(folder, manifest, number, shard, stored)
    progress.close()


def _batches(rows: Sequence[CachedRow], size: int) -> list[Sequence[CachedRow]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _finish(trainer: "AKDTrainer", folder: Path, manifest: Manifest, rows: Sequence[CachedRow]) -> Manifest:
    """Measure the error of the cache, and write the complete manifest."""
    sample = [rows[number] for number in np.unique(np.linspace(0, len(rows) - 1, _SAMPLED_ROWS).astype(int))]
    measured = _measure(trainer, CachedTeacher(folder), sample)
    if manifest.kind == "hidden" and manifest.top_k is not None:
        sampled = CachedTeacher(folder, tail_samples=_MEASURED_SAMPLES)
        sampled.step = 0
        measured["sampled"] = {"tail_samples": _MEASURED_SAMPLES, **_measure(trainer, sampled, sample)}
    complete = replace(manifest, measured=measured)
    if trainer.accelerator.is_main_process:
        write_manifest(folder, complete)
    trainer.accelerator.wait_for_everyone()
    return complete


def _measure(trainer: "AKDTrainer", cache: CachedTeacher, rows: Sequence[CachedRow]) -> dict[str, Any]:
    """Compare divergences of the student from the teacher and from the cache, and their gradients, on a sample.

    Returns:
        `dict`: `tokens`, and for `forward_kl` and `reverse_kl` their means in nats from the `teacher` and from the
        `cache`, and the relative `gradient_error` in the student's hidden states.
    """
    sums = {name: np.zeros(4) for name in ("forward_kl", "reverse_kl")}
    tokens = 0
    for batch in _batches(rows, trainer.args.per_device_eval_batch_size):
        inputs, index = _batch(trainer, batch)
        cache.forward(inputs)
        cached = cache.signal(trainer.model)[index]
        tokens += len(index[0])
        with _signal(trainer, batch) as exact, _student(trainer, inputs) as (hidden, head):
            for name in sums:
                sums[name] += _compared(trainer, name, hidden[index], head, exact, cached)
        if tokens >= _SAMPLED_TOKENS:
            break
    return {
        "tokens": tokens,
        **{
            name: {
                "teacher": teacher / tokens,
                "cache": found / tokens,
                "gradient_error": float(np.sqrt(difference / max(norm, np.finfo(float).tiny))),
            }
            for name, (teacher, found, difference, norm) in sums.items()
        },
    }


@contextmanager
def _student(trainer: "AKDTrainer", inputs: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, LMHead]]:
    """Yield the student's final hidden states and its LM head, without a training engine."""
    student = trainer.model
    with torch.no_grad(), gathered(student.parameters()), evaluating(student), trainer.accelerator.autocast():
        if trainer.is_deepspeed_enabled:
            student.to(trainer.args.device)
        hidden, head = final_hidden_states(student, inputs), lm_head(student).whole()
        yield (
            hidden,
            replace(head, weight=head.weight.detach(), bias=None if head.bias is None else head.bias.detach()),
        )


def _compared(
    trainer: "AKDTrainer",
    divergence: str,
    hidden: Tensor,
    head: LMHead,
    exact: TeacherSignal,
    cached: TeacherSignal,
) -> list[float]:
    """Return sums over tokens: the divergence from both signals, and squares of the gradients' difference and norm."""
    values, gradients = [], []
    for signal in (exact, cached):
        leaf = hidden.detach().requires_grad_()
        with torch.enable_grad():
            loss = fused_divergence(
                leaf,
                head,
                signal,
                token_weights=torch.ones(len(hidden), device=hidden.device),
                divergence=divergence,
                temperature=trainer.args.kd_temperature,
                vocab_size=trainer.vocabulary_size,
            ).loss
            loss.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        values.append(float(loss))
        gradients.append(leaf.grad.double())
    difference = gradients[0] - gradients[1]
    return [*values, float((difference**2).sum()), float((gradients[0] ** 2).sum())]
