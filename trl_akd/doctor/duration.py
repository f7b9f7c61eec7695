"""Duration of a training step per GPU, from floating-point operations, bytes and the rates of a GPU.

Matrix products run at a fraction of the GPU's peak (`utilization`); operations on single elements, the optimizer and
generation are limited by the bandwidth of the memory. Parts run one after another; communication is not overlapped.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..losses import divergences
from ..losses.fused_linear import buffer_shapes
from ..losses.kernels import count_passes
from ..losses.pointwise import Objective, divergence_and_gradient_, likelihood_and_gradient_
from .hardware import Gpu
from .memory import kv_cache, optimizer_states, student_trace, teacher_trace
from .settings import RunSettings
from .tracing import SIGNALS, ModelTrace, StudentTrace

__all__ = ["OF_BANDWIDTH", "Duration", "estimate_duration", "loss_flops", "loss_traffic"]

OF_BANDWIDTH = 0.8
"""Fraction of the memory's bandwidth that simple kernels reach."""


@dataclass(frozen=True)
class Duration:
    """Seconds of an optimizer step by part.

    Args:
        parts (`Mapping[str, float]`):
            Seconds of each part.
        flops (`Mapping[str, int]`):
            Floating-point operations per GPU of each part that has matrix products.
        tokens (`int`):
            Tokens per optimizer step on all GPUs.
    """

    parts: Mapping[str, float]
    flops: Mapping[str, int]
    tokens: int

    @property
    def step(self) -> float:
        """Seconds of an optimizer step."""
        return sum(self.parts.values())

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second on all GPUs."""
        return self.tokens / self.step


def estimate_duration(
    settings: RunSettings,
    gpu: Gpu,
    *,
    utilization: float = 0.4,
    tf32: bool = False,
    filled: float = 1.0,
    targets: float = 1.0,
) -> Duration:
    """Return the duration of an optimizer step.

    Args:
        settings (`RunSettings`):
            Settings of the run.
        gpu (`Gpu`):
            The GPU.
        utilization (`float`, *optional*, defaults to `0.4`):
            Fraction of the GPU's peak throughput that matrix products reach.
        tf32 (`bool`, *optional*, defaults to `False`):
            Whether float32 products run in TF32, at half of the throughput of half precision.
        filled (`float`, *optional*, defaults to `1.0`):
            Mean length of the rows as a fraction of `settings.length`.
        targets (`float`, *optional*, defaults to `1.0`):
            Mean number of target tokens per row as a fraction of `settings.target_length`.

    Raises:
        ValueError: If a model cannot be traced.
    """
    student, teacher = student_trace(settings), teacher_trace(settings)
    is_half = settings.autocast is not None or settings.student.dtype.itemsize == 2
    rate = 1e12 * utilization * (gpu.tflops if is_half else gpu.tflops / 2 if tf32 else gpu.tflops_float32)
    teacher_is_half = settings.autocast is not None or (
        settings.teacher is not None and settings.teacher.dtype.itemsize == 2
    )
    teacher_rate = 1e12 * utilization * (gpu.tflops if teacher_is_half else gpu.tflops_float32)
    bandwidth = 1e9 * OF_BANDWIDTH * gpu.bandwidth
    flops = {
        "student's forward": round(filled * student.forward_flops),
        "student's backward": round(filled * student.backward_flops),
        "teacher's forward": 0 if teacher is None else round(filled * teacher.forward_flops),
        "loss": round(targets * loss_flops(settings, student, teacher)),
    }
    per_micro_batch = {
        part: count / (teacher_rate if part.startswith("teacher") else rate) for part, count in flops.items()
    }
    per_micro_batch["loss"] += targets * loss_traffic(settings, student.model.head[0]) / bandwidth
    parts = {part: settings.accumulation * seconds for part, seconds in per_micro_batch.items()}
    if settings.teacher_on_cpu:
        del parts["teacher's forward"]
    parts["generation"] = (
        settings.accumulation * settings.on_policy * _generation(settings, student, teacher, rate, bandwidth)
    )
    parts["optimizer"] = _optimizer_traffic(settings, student.model) / bandwidth
    parts["communication"] = _communication(settings, student.model, teacher) / (1e9 * gpu.link_bandwidth)
    return Duration(
        {part: seconds for part, seconds in parts.items() if seconds > 0.0},
        {part: settings.accumulation * count for part, count in flops.items() if count},
        round(filled * settings.rows_per_step * _tokens_per_row(settings)),
    )


def _tokens_per_row(settings: RunSettings) -> int:
    is_encoder_decoder = settings.student.config.is_encoder_decoder
    return settings.length + (settings.target_length if is_encoder_decoder else 0)


def loss_flops(settings: RunSettings, student: StudentTrace, teacher: ModelTrace | None) -> int:
    """Return the floating-point operations of the output layers of a micro-batch, forward and backward.

    A trained output layer has three products: logits, gradient of the hidden states, and gradient of the weight, which
    a frozen one does not need. The teacher has one. IterKD computes logits twice.
    """
    vocabulary, size = student.model.head
    is_trained = any(shape == (vocabulary, size) for shape, _ in student.model.trainable_shapes)
    products = 0
    for output in settings.outputs:
        products += vocabulary * size * (output.projections + (2 if is_trained else 1))
        head = settings.cached_head if teacher is None else teacher.head
        if output.signal == "dense" and head is not None:
            products += min(vocabulary, head[0]) * head[1]
    return 2 * settings.tokens * products


def loss_traffic(settings: RunSettings, vocabulary: int) -> int:
    """Return the bytes that the operations on single logits of a micro-batch read and write."""
    passes, like = 0.0, torch.empty(0, device="cpu" if settings.on_cpu else "meta")
    for output in settings.outputs:
        rule = divergences.get(settings.divergence) if output.signal else None
        on_kernels = buffer_shapes(1, vocabulary, like, signal=SIGNALS[output.signal], rule=rule).on_kernels
        passes += count_passes(rule, dict(settings.knobs)) if on_kernels else _passes(rule, settings.knobs)
    return int(passes * settings.tokens * vocabulary * 4)


@cache
def _passes(rule: divergences.Rule | None, knobs: tuple[tuple[str, Any], ...]) -> float:
    """Return how many tensors of the size of the logits the element-wise part reads and writes without kernels."""
    rows, words = 4, 512
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, rows, words, generator=generator)
    labels, scratch = torch.zeros(rows, dtype=torch.int64), torch.empty(2, rows, words)
    traffic = _Traffic()  # type: ignore[no-untyped-call]
    with traffic:
        if rule is None:
            likelihood_and_gradient_(student, labels, scratch[0])
        else:
            objective = Objective(rule, dict(knobs), 1.0, 0.0)
            divergence_and_gradient_(student, teacher, labels, objective, scratch)
    return float(traffic.total / (rows * words * 4))


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sum the bytes of the inputs and results of all operations that are not views."""

    total: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor)]
            self.total += sum(tensor.numel() * tensor.itemsize for tensor in tensors)
        return result


def _optimizer_traffic(settings: RunSettings, student: ModelTrace) -> int:
    """Return the bytes that a step of the optimizer reads and writes on one GPU."""
    states = optimizer_states(settings.optimizer, student.trainable_shapes)
    weights = sum(math.prod(shape) * dtype.itemsize for shape, dtype in student.trainable_shapes)
    sharded = settings.parallelism.stage > 0 or settings.parallelism.kind == "fsdp"
    return (2 * states + 3 * weights) // (settings.parallelism.gpus if sharded else 1)


def _communication(settings: RunSettings, student: ModelTrace, teacher: ModelTrace | None) -> float:
    """Return the bytes that a GPU sends in an optimizer step, with ring algorithms."""
    parallelism = settings.parallelism
    share = (parallelism.gpus - 1) / parallelism.gpus
    itemsize = (settings.autocast or torch.float32).itemsize if parallelism.kind in ("zero", "fsdp") else 4
    gradients, weights = student.trainable * itemsize, student.parameters * itemsize
    steps = settings.accumulation
    if parallelism.shards_models:
        frozen = 0 if teacher is None or settings.own_teacher else teacher.weights
        return share * steps * (2 * weights + gradients + frozen)
    if parallelism.stage == 2:
        return share * (steps * gradients + student.trainable * itemsize)
    return share * 2 * gradients


def _generation(
    settings: RunSettings, student: StudentTrace, teacher: ModelTrace | None, rate: float, bandwidth: float
) -> float:
    """Return the seconds in which a micro-batch is generated: one pass over weights and cache per token."""
    author, model = settings.student, student.model
    if settings.generated_by_teacher and settings.teacher is not None and teacher is not None:
        author, model = settings.teacher, teacher
    cache = kv_cache(author, settings.rows, settings.length, settings.autocast or author.dtype)
    per_token = (model.weights + cache / 2) / bandwidth
    return settings.new_tokens * max(per_token, 2 * settings.rows * model.parameters / rate)
