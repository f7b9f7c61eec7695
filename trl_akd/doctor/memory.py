"""Memory of a run per GPU, by phase of a training step and by part.

Sizes of weights, gradients, optimizer states and buffers of the loss follow from the code that allocates them;
activations are traced (`tracing.py`). Under ZeRO, the sizes of DeepSpeed's buckets are its defaults.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

import torch

from .settings import ModelSettings, Parallelism, RunSettings
from .tracing import ModelTrace, StudentTrace, trace_student, trace_teacher

__all__ = ["Phase", "estimate_memory", "kv_cache", "optimizer_states", "student_trace", "teacher_trace"]

STUDENT, TEACHER, GRADIENTS, OPTIMIZER = "student", "teacher", "gradients", "optimizer states"
ACTIVATIONS, LOSS, CACHE, COMMUNICATION = "activations", "loss buffers", "KV cache", "communication buffers"
PARTS = (STUDENT, TEACHER, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOSS, CACHE, COMMUNICATION)

# DeepSpeed's defaults, in elements.
_BUCKET = 500_000_000
_PREFETCHED = 50_000_000
_MAX_LIVE = 1_000_000_000
_SUB_GROUP = 1_000_000_000

_STATES: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("sgd", "adafactor"), 0),
        **dict.fromkeys(("adagrad", "rmsprop", "lion_32bit", "paged_lion_32bit"), 1),
        **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_apex_fused"), 2),
        **dict.fromkeys(("adamw_anyprecision", "paged_adamw_32bit", "stable_adamw"), 2),
    }
)
_STATES_8BIT: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "ademamix_8bit"), 2),
        **dict.fromkeys(("lion_8bit", "paged_lion_8bit", "rmsprop_bnb_8bit"), 1),
    }
)
_CACHED = torch.bfloat16
_WHOLE_BELOW = 4096
"""Elements below which bitsandbytes keeps states in float32."""


@dataclass(frozen=True)
class Phase:
    """Memory of one phase of a training step.

    Args:
        name (`str`):
            Name of the phase.
        parts (`Mapping[str, int]`):
            Bytes of each part that is in memory.
    """

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Sum of all parts in bytes."""
        return sum(self.parts.values())


def student_trace(settings: RunSettings) -> StudentTrace:
    """Return the trace of a micro-batch of the student.

    Raises:
        ValueError: If the model cannot be traced.
    """
    return _student_trace(_traced(settings))


def teacher_trace(settings: RunSettings) -> ModelTrace | None:
    """Return the trace of the teacher's forward pass, or `None` without a teacher.

    Raises:
        ValueError: If the model cannot be traced.
    """
    model = settings.student if settings.own_teacher else settings.teacher
    if model is None:
        return None
    return _teacher_trace(model, replace(_traced(settings), chunk_size=None, checkpointing=False, accumulation=1))


_student_trace = lru_cache(maxsize=64)(trace_student)
_teacher_trace = lru_cache(maxsize=64)(trace_teacher)


def _traced(settings: RunSettings) -> RunSettings:
    """Return the settings with default values of those that no trace depends on."""
    return replace(
        settings,
        accumulation=min(settings.accumulation, 2),
        parallelism=Parallelism(kind="zero") if settings.parallelism.kind == "zero" else Parallelism(),
        optimizer="",
        teacher_on_cpu=False,
        cached_head=None,
        own_teacher=False,
        on_policy=0.0,
        generated_by_teacher=False,
        new_tokens=0,
    )


def estimate_memory(settings: RunSettings) -> list[Phase]:
    """Return the phases of a run in their order, each with its memory per GPU in bytes.

    Raises:
        ValueError: If a model cannot be traced.
    """
    trace, teacher = student_trace(settings), teacher_trace(settings)
    fixed = _Fixed(settings, trace.model, teacher)
    loaded = {STUDENT: fixed.student, TEACHER: fixed.teacher, COMMUNICATION: fixed.buckets}
    accumulated = fixed.gradients if settings.accumulation > 1 else 0
    running = {**loaded, OPTIMIZER: fixed.optimizer, GRADIENTS: accumulated}
    hidden = 0 if teacher is None else teacher.hidden
    if settings.cached_head is not None:
        hidden = settings.tokens * settings.cached_head[1] * _CACHED.itemsize
    phases = [Phase("loading", {STUDENT: fixed.student, TEACHER: fixed.teacher})]
    if settings.on_policy > 0.0:
        phases.append(Phase("generation", {**loaded, OPTIMIZER: fixed.optimizer, **_generation(settings, fixed)}))
    if teacher is not None and not settings.teacher_on_cpu and not settings.own_teacher:
        phases.append(
            Phase(
                "teacher's forward",
                {**running, ACTIVATIONS: teacher.forward, COMMUNICATION: fixed.buckets + fixed.gathered_teacher},
            )
        )
    gathering = fixed.buckets + fixed.gathered_student
    own = teacher.forward if teacher is not None and settings.own_teacher else 0
    phases += [
        Phase(
            "student's forward",
            {**running, ACTIVATIONS: max(hidden + trace.forward, own), COMMUNICATION: gathering},
        ),
        Phase(
            "loss",
            {
                **running,
                ACTIVATIONS: hidden + trace.saved,
                LOSS: trace.loss,
                COMMUNICATION: gathering + fixed.gathered_heads,
            },
        ),
        Phase("backward", {**running, **_backward(settings, trace, fixed), COMMUNICATION: gathering}),
        Phase(
            "optimizer step",
            {**loaded, OPTIMIZER: fixed.optimizer + fixed.optimizer_temporary, GRADIENTS: fixed.gradients},
        ),
    ]
    return [
        Phase(phase.name, {part: phase.parts[part] for part in PARTS if phase.parts.get(part)}) for phase in phases
    ]


def _backward(settings: RunSettings, trace: StudentTrace, fixed: "_Fixed") -> dict[str, int]:
    """Return activations and gradients at the peak of the backward pass."""
    if fixed.gradients_stay_local and settings.accumulation == 1:
        return {ACTIVATIONS: trace.backward.activations, GRADIENTS: trace.backward.gradients}
    return {ACTIVATIONS: trace.backward_alone, GRADIENTS: fixed.gradients}


def _generation(settings: RunSettings, fixed: "_Fixed") -> dict[str, int]:
    author = settings.teacher if settings.generated_by_teacher and settings.teacher else settings.student
    vocabulary = author.text_config.vocab_size
    gathered = fixed.gathered_teacher if settings.generated_by_teacher else fixed.gathered_student
    return {
        CACHE: kv_cache(author, settings.rows, settings.length, settings.autocast or author.dtype),
        ACTIVATIONS: 3 * settings.rows * vocabulary * 4,  # logits, their float32 copy and probabilities
        COMMUNICATION: fixed.buckets + gathered,
    }


def kv_cache(model: ModelSettings, rows: int, length: int, dtype: torch.dtype) -> int:
    """Return the bytes of keys and values of `rows` rows of `length` tokens."""
    config = model.text_config
    heads = config.num_attention_heads
    keys = 1 if getattr(config, "multi_query", False) else getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * rows * length * keys * size * dtype.itemsize)


class _Fixed:
    """Parts that do not depend on the batch, per GPU in bytes."""

    def __init__(self, settings: RunSettings, student: ModelTrace, teacher: ModelTrace | None) -> None:
        parallelism = settings.parallelism
        gpus, stage = parallelism.gpus, parallelism.stage
        half = settings.autocast.itemsize if settings.has_float32_masters and settings.autocast else None
        trained = sum(math.prod(shape) * (half or dtype.itemsize) for shape, dtype in student.trainable_shapes)
        weights = student.parameters * half if half else student.weights
        itemsize = half or settings.student.dtype.itemsize
        masters = 4 * student.trainable if parallelism.kind == "zero" and stage > 0 else 0
        states = optimizer_states(settings.optimizer, student.trainable_shapes, float32=parallelism.kind == "zero")
        own_teacher = settings.own_teacher or teacher is None or settings.teacher_on_cpu
        shards = gpus if parallelism.shards_models else 1
        on_cpu = parallelism.offload_parameters
        self.student = 0 if on_cpu else weights // shards
        self.teacher = 0 if own_teacher or on_cpu or teacher is None else teacher.weights // shards
        if settings.teacher_on_cpu and teacher is not None and settings.teacher is not None:
            self.teacher = math.prod(teacher.head) * settings.teacher.dtype.itemsize  # copied to the student's device
        elif settings.cached_head is not None:
            self.teacher = math.prod(settings.cached_head) * _CACHED.itemsize
        self.gradients_stay_local = parallelism.kind in ("none", "ddp") or stage <= 1
        self.gradients = trained // (1 if self.gradients_stay_local else gpus)
        partitions = gpus if stage > 0 or parallelism.kind == "fsdp" else 1
        self.optimizer = (masters + states) // partitions
        self.optimizer_temporary = _temporary(settings.optimizer, student.trainable_shapes) // partitions
        if parallelism.kind == "zero" and stage > 0:  # a float32 copy of the gradients of a partition
            part = student.trainable // gpus
            self.optimizer_temporary = 4 * (min(part, _SUB_GROUP) if stage == 3 else part)
        if parallelism.offload_optimizer:
            self.optimizer = self.optimizer_temporary = 0
            self.gradients = self.gradients if self.gradients_stay_local else 0
        self.buckets = 0
        if parallelism.kind == "ddp":
            self.buckets = trained
        elif parallelism.kind == "zero" and stage > 0:
            self.buckets = _BUCKET * itemsize
        self.gathered_student = self._gathered(settings, student, itemsize)
        self.gathered_teacher = self.gathered_heads = 0
        if parallelism.shards_models and teacher is not None and settings.teacher is not None:
            self.gathered_teacher = self._gathered(settings, teacher, settings.teacher.dtype.itemsize)
            self.gathered_heads = math.prod(teacher.head) * settings.teacher.dtype.itemsize

    @staticmethod
    def _gathered(settings: RunSettings, model: ModelTrace, itemsize: int) -> int:
        """Return the bytes of the parameters that a GPU gathers from the others at a time."""
        if settings.parallelism.stage == 3:
            return min(model.parameters, _MAX_LIVE + _PREFETCHED) * itemsize
        return 2 * model.largest_layer * itemsize if settings.parallelism.kind == "fsdp" else 0


def optimizer_states(
    name: str, shapes: Iterable[tuple[tuple[int, ...], torch.dtype]], *, float32: bool = False
) -> int:
    """Return the bytes of the states of an optimizer on the GPU.

    Args:
        name (`str`):
            Name of the optimizer, as in [`transformers.TrainingArguments`]. One that is not known counts as AdamW.
        shapes (`Iterable`):
            Shape and dtype of each trained parameter.
        float32 (`bool`, *optional*, defaults to `False`):
            Whether it updates float32 copies of the parameters.

    Example:

    ```python
    >>> optimizer_states("adamw_torch_fused", [((16, 8), torch.float32)])
    1024
    >>> optimizer_states("adafactor", [((16, 8), torch.float32)])
    96

    ```
    """
    total = 0
    for shape, dtype in shapes:
        elements = math.prod(shape)
        itemsize = 4 if float32 else dtype.itemsize
        if name == "adafactor":
            total += 4 * (math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1] if len(shape) > 1 else elements)
        elif name in _STATES_8BIT:
            each = 4 * elements if elements < _WHOLE_BELOW else elements + 4 * math.ceil(elements / 256)
            total += 0 if name.startswith("paged") else _STATES_8BIT[name] * each
        else:
            total += 0 if name.startswith("paged") else _STATES.get(name, 2) * elements * itemsize
    return total


def _temporary(name: str, shapes: Iterable[tuple[tuple[int, ...], torch.dtype]]) -> int:
    """Return the bytes of temporary tensors of an optimizer's step."""
    if name != "adamw_torch":  # the default of torch on a GPU, for all parameters at once
        return 0
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)
