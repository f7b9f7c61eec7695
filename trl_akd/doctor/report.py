"""Report of the estimates, as text and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .cache import CacheSize
from .duration import Duration
from .hardware import GIB, Gpu
from .memory import PARTS, Phase
from .preflight import Preflight
from .remedies import Remedy
from .settings import ModelSettings, RunSettings
from .tracing import ModelTrace

__all__ = ["Report", "usable_memory"]

_RESERVED = 1.0
"""GiB of the CUDA context and the workspaces of its libraries."""
_FRAGMENTED = 0.05
"""Fraction of the memory that the allocator cannot use."""


def usable_memory(gpu: Gpu) -> int:
    """Return the bytes of a GPU that tensors can use."""
    return int(((1.0 - _FRAGMENTED) * gpu.memory_gib - _RESERVED) * GIB)


@dataclass(frozen=True)
class Report:
    """Estimates of a run.

    Args:
        settings (`RunSettings`):
            The run.
        gpu (`Gpu`):
            The GPU.
        phases (`Sequence[Phase]`):
            Memory by phase.
        duration (`Duration`):
            Duration of a step.
        utilization (`float`):
            Fraction of the GPU's throughput that it assumes.
        student (`ModelTrace`):
            Size of the student.
        teacher (`ModelTrace`, *optional*):
            Size of the teacher.
        steps (`int`, *optional*):
            Number of optimizer steps, if known.
        remedies (`Sequence[Remedy]`, *optional*):
            Changes with which the run fits.
        cache (`Sequence[CacheSize]`, *optional*):
            Sizes of a cache of the teacher.
        notes (`Sequence[str]`, *optional*):
            Limits of the estimates.
        preflight (`Preflight`, *optional*):
            Checks of tokenizers and data.
    """

    settings: RunSettings
    gpu: Gpu
    phases: Sequence[Phase]
    duration: Duration
    utilization: float
    student: ModelTrace
    teacher: ModelTrace | None = None
    steps: int | None = None
    remedies: Sequence[Remedy] = ()
    cache: Sequence[CacheSize] = ()
    notes: Sequence[str] = field(default_factory=list)
    preflight: Preflight | None = None

    @property
    def usable(self) -> int:
        """Bytes per GPU that tensors can use."""
        return usable_memory(self.gpu)

    @property
    def peak(self) -> Phase:
        """The phase that needs most memory."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def first_failure(self) -> Phase | None:
        """The first phase that does not fit."""
        return next((phase for phase in self.phases if phase.total > self.usable), None)

    @property
    def seconds(self) -> float | None:
        """Seconds of all steps, if their number is known."""
        return None if self.steps is None else self.steps * self.duration.step

    def as_json(self) -> dict[str, Any]:
        """Return the estimates in bytes and seconds."""
        failure = self.first_failure
        return {
            "student": _model(self.settings.student, self.student),
            "teacher": None
            if self.teacher is None
            else _model(self.settings.teacher or self.settings.student, self.teacher),
            "gpu": {"name": self.gpu.name, "gpus": self.settings.parallelism.gpus, "usable_bytes": self.usable},
            "parallelism": self.settings.parallelism.name,
            "memory_bytes": {phase.name: {**phase.parts, "total": phase.total} for phase in self.phases},
            "peak": {"phase": self.peak.name, "bytes": self.peak.total},
            "fits": failure is None,
            "first_failure": None if failure is None else failure.name,
            "remedies": [vars(remedy) for remedy in self.remedies],
            "seconds_per_step": {**self.duration.parts, "total": self.duration.step},
            "flops_per_step": dict(self.duration.flops),
            "utilization": self.utilization,
            "tokens_per_second": self.duration.tokens_per_second,
            "steps": self.steps,
            "seconds": self.seconds,
            "cache": [vars(size) for size in self.cache],
            "notes": list(self.notes),
            "preflight": None if self.preflight is None else self.preflight.as_json(),
        }

    def __str__(self) -> str:
        """Return the estimates as text."""
        sections = [self._models(), self._memory(), self._verdict(), self._time()]
        if self.cache:
            sections.append("\n".join(["Cache of the teacher's signal", *(f"  {size}" for size in self.cache)]))
        if self.notes:
            sections.append("\n".join(["Notes", *(f"  {note}" for note in self.notes)]))
        if self.preflight is not None:
            sections.append(str(self.preflight))
        return "\n\n".join(sections)

    def _models(self) -> str:
        lines = [f"Student   {_describe(self.settings.student, self.student)}"]
        if self.settings.teacher is not None and self.teacher is not None:
            lines.append(f"Teacher   {_describe(self.settings.teacher, self.teacher)}")
        elif self.settings.own_teacher:
            lines.append("Teacher   the student without its adapter")
        run = self.settings
        rows = f"{run.rows} x {run.length} tokens" if run.padded else f"{run.length} tokens without padding"
        lines.append(
            f"Batch     {rows} per micro-batch and GPU, accumulation {run.accumulation}, {run.rows_per_step} rows per "
            f"step; gradient checkpointing {'on' if run.checkpointing else 'off'}; {run.optimizer}"
        )
        return "\n".join(lines)

    def _memory(self) -> str:
        run, names = self.settings, [phase.name for phase in self.phases]
        parts = [part for part in PARTS if any(part in phase.parts for phase in self.phases)]
        unit, size = ("GiB", GIB) if self.peak.total >= GIB else ("MiB", 2**20)

        def cell(count: int | None) -> str:
            return "-" if not count else f"{count / size:.2f}"

        rows = [[part, *(cell(phase.parts.get(part)) for phase in self.phases)] for part in parts]
        rows.append(["total", *(cell(phase.total) for phase in self.phases)])
        title = f"Memory per GPU in {unit}: {run.parallelism.gpus} x {self.gpu.name}, {run.parallelism.name}"
        return f"{title}\n{_table(['', *names], rows)}"

    def _verdict(self) -> str:
        usable, failure = f"{self.usable / GIB:.1f} GiB", self.first_failure
        of = f"{usable} of {self.gpu.memory_gib:.1f} GiB can hold tensors"
        if failure is None:
            return f"Fits: the peak of {_size(self.peak.total)} is in the {self.peak.name} phase; {of}."
        part = max(failure.parts, key=lambda part: failure.parts[part])
        lines = [
            f"Does not fit: {failure.name} is the first phase that runs out of memory, with {_size(failure.total)}, "
            f"of which {_size(failure.parts[part])} are {part}; {of}."
        ]
        if self.remedies:
            lines.append("Change, in this order:")
            lines += [
                f"  {number}. {remedy.change}: {_size(remedy.peak)}{', fits' if remedy.fits else ''}"
                for number, remedy in enumerate(self.remedies, 1)
            ]
        if not (self.remedies and self.remedies[-1].fits):
            lines.append("No change that is known here makes it fit; choose a larger GPU, or smaller models.")
        return "\n".join(lines)

    def _time(self) -> str:
        duration = self.duration
        rows = [
            [part, _seconds(seconds), f"{seconds / duration.step:.0%}", _tera(duration.flops.get(part))]
            for part, seconds in duration.parts.items()
        ]
        rows.append(["total", _seconds(duration.step), "100%", _tera(sum(duration.flops.values()))])
        lines = [
            f"Time per step, at {self.utilization:.0%} of the device's throughput",
            _table(["", "time", "share", "TFLOP per GPU"], rows),
            f"{duration.tokens_per_second:,.0f} tokens per second",
        ]
        if self.steps is not None:
            lines.append(f"{self.steps:,} steps: {_span(self.seconds or 0.0)}")
        return "\n".join(lines)


def _model(settings: ModelSettings, trace: ModelTrace) -> dict[str, Any]:
    return {
        "name": settings.name,
        "architecture": settings.config.model_type,
        "parameters": trace.parameters,
        "trainable": trace.trainable,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "bytes": trace.weights,
    }


def _describe(settings: ModelSettings, trace: ModelTrace) -> str:
    trained = f", {_count(trace.trainable)} of them trained" if settings.adapter is not None else ""
    bits = f", {settings.quantization.bits} bits" if settings.quantization is not None else ""
    dtype = str(settings.dtype).removeprefix("torch.")
    parameters = f"{_count(trace.parameters)} parameters{trained}"
    return f"{settings.name}: {parameters}, {settings.config.model_type}, {dtype}{bits}"


def _count(count: int) -> str:
    if count < 1e6:
        return f"{count:,}"
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / 2**20:.2f} MiB"


def _tera(count: int | None) -> str:
    return "-" if not count else f"{count / 1e12:,.3g}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1.0 else f"{1000 * seconds:.1f} ms"


def _span(seconds: float) -> str:
    """Return a duration in the largest units that fit.

    Example:

    ```python
    >>> _span(9000.0), _span(90.0)
    ('2.5 hours', '1.5 minutes')

    ```
    """
    for unit, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return "\n".join(
        "  "
        + "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in [header, *rows]
    )
