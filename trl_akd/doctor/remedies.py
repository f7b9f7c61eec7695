"""Changes of a run that reduce its memory, in the order in which to try them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig

from .memory import estimate_memory, student_trace
from .settings import Parallelism, Quantization, RunSettings

__all__ = ["Remedy", "find_remedies"]


@dataclass(frozen=True)
class Remedy:
    """A change, and the peak memory with it and all changes before it.

    Args:
        change (`str`):
            Fields and flags to set.
        peak (`int`):
            Peak memory per GPU in bytes.
        fits (`bool`):
            Whether the run then fits.
    """

    change: str
    peak: int
    fits: bool


def find_remedies(settings: RunSettings, usable: int) -> list[Remedy]:
    """Return changes, each in addition to those before it, until the run fits into `usable` bytes per GPU.

    The first ones keep the gradients as they are. A change that does not reduce the peak is left out.
    """
    found: list[Remedy] = []
    peak = _peak(settings)
    for text, change in _changes(settings):
        if peak <= usable:
            break
        changed = change(settings)
        if changed is None:
            continue
        try:
            reduced = _peak(changed)
        except ValueError:  # such as an adapter for an architecture without default target modules
            continue
        if reduced < peak:
            settings, peak = changed, reduced
            found.append(Remedy(text, peak, peak <= usable))
    return found


def _peak(settings: RunSettings) -> int:
    return max(phase.total for phase in estimate_memory(settings))


def _changes(settings: RunSettings) -> Iterator[tuple[str, Callable[[RunSettings], RunSettings | None]]]:
    rows, gpus = settings.rows, settings.parallelism.gpus
    yield "gradient_checkpointing: true", _checkpoint
    if settings.padded and rows > 1:
        accumulation = settings.accumulation * rows
        yield (
            f"micro-batches of one row: per_device_train_batch_size: 1, gradient_accumulation_steps: {accumulation}",
            lambda run: replace(run, rows=1, accumulation=accumulation),
        )
    yield "loss_chunk_size: 128", lambda run: replace(run, chunk_size=128)
    if gpus > 1:
        yield f"--accelerate_config zero3 --num_gpus {gpus}", _sharding(gpus)
    yield "a cache of the teacher: `trl-akd cache`, then teacher_cache: FOLDER", _cache_teacher
    yield "a teacher in 4 bits: load_in_4bit in teacher_model_init_kwargs.quantization_config", _quantize_teacher
    yield "LoRA: use_peft: true, dtype: bfloat16", _adapt
    for several in (2, 4, 8):
        if several > gpus:
            yield f"--accelerate_config zero3 --num_gpus {several}", _sharding(several)
    yield "teacher_device: cpu (slow)", _move_teacher


def _checkpoint(run: RunSettings) -> RunSettings | None:
    return None if run.checkpointing else replace(run, checkpointing=True)


def _sharding(gpus: int) -> Callable[[RunSettings], RunSettings | None]:
    def shard(run: RunSettings) -> RunSettings | None:
        if run.parallelism.stage == 3 and run.parallelism.gpus == gpus:
            return None
        quantized = run.teacher is not None and run.teacher.quantization is not None
        if quantized or run.teacher_on_cpu:  # which ZeRO-3 does not shard
            return None
        accumulation = max(1, run.accumulation * run.parallelism.gpus // gpus)
        return replace(run, accumulation=accumulation, parallelism=Parallelism(gpus, "zero", 3))

    return shard


def _cache_teacher(run: RunSettings) -> RunSettings | None:
    if run.teacher is None or run.on_policy > 0.0:
        return None
    text = run.teacher.text_config
    return replace(run, teacher=None, teacher_on_cpu=False, cached_head=(text.vocab_size, text.hidden_size))


def _quantize_teacher(run: RunSettings) -> RunSettings | None:
    if (
        run.teacher is None
        or run.teacher.quantization is not None
        or run.teacher_on_cpu
        or run.parallelism.shards_models
    ):
        return None
    return replace(run, teacher=replace(run.teacher, quantization=Quantization(4)))


def _adapt(run: RunSettings) -> RunSettings | None:
    if run.student.adapter is not None or run.teacher is None:
        return None

    adapted = replace(run.student, adapter=LoraConfig(r=16, task_type="CAUSAL_LM"), dtype=torch.bfloat16)
    changed = replace(run, student=adapted)
    student_trace(changed)
    return changed


def _move_teacher(run: RunSettings) -> RunSettings | None:
    if run.teacher is None or run.teacher_on_cpu or run.parallelism.shards_models:
        return None
    return replace(run, teacher_on_cpu=True)
