"""Knobs of divergences: checks of their values, and schedules of those that change during training."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, Protocol

__all__ = ["Interpolation", "KnobSchedule", "as_real", "as_share"]


def as_share(name: str, value: Any) -> float:
    """Return a number in [0, 1] as a float, or raise a ValueError."""
    number = _as_float(value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name} is {value!r}; give a number in [0, 1].")
    return number


def as_real(name: str, value: Any) -> float:
    """Return a finite number as a float, or raise a ValueError."""
    number = _as_float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value!r}; give a finite number.")
    return number


def _as_float(value: Any) -> float:
    """Return a number, a NumPy number or a one-element tensor as a float; NaN for anything else."""
    try:
        number = value.item() if hasattr(value, "item") else value
        return float(number) if isinstance(number, Real) and not isinstance(number, bool) else math.nan
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


class KnobSchedule(Protocol):
    """Schedule of a divergence's knob that changes during training.

    The trainer calls `update` once per optimizer step with the same numbers on all ranks, so that the knob has the
    same value on all of them, and saves the state in checkpoints.

    Attributes:
        knob (`str`): name of the rule's argument; logged as `kd/<knob>`.
    """

    knob: str

    @property
    def value(self) -> float:
        """Value of the knob for the next training batch."""

    @property
    def evaluation_value(self) -> float:
        """Value of the knob in evaluations, which is constant."""

    def update(self, means: Mapping[str, float], progress: float) -> float:
        """Update the knob after an optimizer step, and return its new value.

        Args:
            means (`Mapping[str, float]`):
                Means over the step's micro-batches and ranks, in nats: `divergence`, `forward_kl`, `reverse_kl`,
                `student_entropy`, `student_nll` and `teacher_nll`.
            progress (`float`):
                Fraction of the training steps that are finished, in (0, 1].
        """

    def reset(self) -> float:
        """Begin the next epoch, and return the value."""

    def begin_training(self) -> float:
        """Begin a new training run, and return the value."""

    def state_dict(self) -> Any:
        """Return the state for `load_state_dict`, loadable with `torch.load(weights_only=True)`."""

    def load_state_dict(self, state: Any) -> None:
        """Load a state returned by `state_dict`."""


class Interpolation:
    r"""Schedule of the share `t` of the teacher in TAID's intermediate distribution.

    [TAID](https://huggingface.co/papers/2501.16937): `t` grows linearly from `t_start` to `t_end` over all training
    steps, and faster while the loss falls. With \(\delta\) the relative decrease of the loss since the previous step,
    limited to [-1, 1], \(m \leftarrow \mu m + (1-\mu)\,\delta\) and

    \[ t \leftarrow \min\big(t_\mathrm{end},\ \max(\mathrm{line},\ t + \eta\,\sigma(m)\,(1-t))\big) \]

    The loss is the mean divergence of an optimizer step over all micro-batches and ranks. The authors do not limit
    \(\delta\), but with `t_start=0` the first loss is rounding error, and the next one is orders of magnitude larger.

    Args:
        t_start (`float`, *optional*, defaults to `0.4`):
            Value at the first step, in [0, 1].
        t_end (`float`, *optional*, defaults to `1.0`):
            Final value, above 0 and in [`t_start`, 1]; also the value in evaluations.
        step_size (`float`, *optional*, defaults to `5e-4`):
            Size η of the steps that exceed linear growth, in [0, 1]. With 0, `t` is linear in time. If `t_start`
            equals `t_end`, `t` is constant, and only 0 or the default is accepted.
        momentum (`float`, *optional*, defaults to `0.99`):
            Weight μ of the running mean, in [0, 1). Only the default is accepted where it has no effect: with
            `step_size=0`, and if `t_start` equals `t_end`.

    Raises:
        ValueError: If an argument is out of its range, or has no effect with the others.

    Example:

    ```python
    >>> schedule = Interpolation(t_start=0.5, step_size=0.1)
    >>> schedule.update({"divergence": 2.0}, progress=0.1), schedule.update({"divergence": 1.0}, progress=0.2)
    (0.55, 0.6)

    ```
    """

    knob = "t"

    def __init__(
        self, t_start: float = 0.4, t_end: float = 1.0, step_size: float = 5e-4, momentum: float = 0.99
    ) -> None:
        self.t_start, self.t_end = as_share("t_start", t_start), as_share("t_end", t_end)
        self.step_size, self.momentum = as_share("step_size", step_size), as_share("momentum", momentum)
        if self.t_end < self.t_start:
            raise ValueError(
                f"t_end is {t_end}, below t_start, {t_start}; t never decreases, so give at least t_start."
            )
        if self.t_end == 0.0:
            raise ValueError("t_end is 0, with which the loss is 0 throughout; give a value above 0.")
        without_effect = {"step_size": (0.0, 5e-4), "momentum": (0.99,)}
        for name, accepted in without_effect.items():
            if self.t_start == self.t_end and (value := getattr(self, name)) not in accepted:
                raise ValueError(
                    f"{name} is {value}, which has no effect with t_start equal to t_end, {t_end}; leave it out, or "
                    "give a lower t_start."
                )
        if self.step_size == 0.0 and self.momentum != 0.99:
            raise ValueError(
                f"momentum is {momentum}, which has no effect with step_size 0; leave it out, or give a step_size "
                "above 0."
            )
        if self.momentum == 1.0:
            raise ValueError("momentum is 1.0, with which the running mean never changes; give less than 1.")
        self._value, self._trend = self.t_start, 0.0
        self._loss: float | None = None

    @property
    def value(self) -> float:
        """Share of the teacher, in [0, 1]."""
        return self._value

    @property
    def evaluation_value(self) -> float:
        """Final value, `t_end`."""
        return self.t_end

    def update(self, means: Mapping[str, float], progress: float) -> float:
        """Update `t` from the mean `divergence` of an optimizer step, and return it."""
        loss = means["divergence"]
        if self._loss is not None and self._loss > 0.0:
            fall = max(-1.0, min(1 - loss / self._loss, 1.0))
            self._trend = self.momentum * self._trend + (1 - self.momentum) * fall
        self._loss = loss
        line = self.t_start + (self.t_end - self.t_start) * progress
        ahead = self._value + self.step_size * (1 - self._value) / (1 + math.exp(-self._trend))
        self._value = min(self.t_end, max(line, ahead))
        return self._value

    def reset(self) -> float:
        """Return `t` unchanged, since it does not depend on the epoch."""
        return self._value

    def begin_training(self) -> float:
        """Reset `t` to `t_start`, discard past losses, and return `t`."""
        self._value, self._trend, self._loss = self.t_start, 0.0, None
        return self._value

    def state_dict(self) -> dict[str, float | None]:
        """Return the state for `load_state_dict`."""
        return {"value": self._value, "trend": self._trend, "loss": self._loss}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state returned by `state_dict`."""
        self._value, self._trend, self._loss = state["value"], state["trend"], state["loss"]
