r"""The learnable mixing coefficient of adaptive knowledge distillation (AKD, Eq. 13-17 and Algorithm 1).

Departures from the paper, each explained in `docs/methods/akd.md`:

- Equation 16, the printed gradient of the regularizer, cancels to zero; the exact derivative of Eq. 13 is used.
- Algorithm 1 writes the regularizer differently from Eq. 13 and thereby rewards the extremes that the text wants to
  avoid; it is available as `regularizer="alg1"`.
- The draw of β from the initial values depends on the seed and the epoch alone, so that all ranks, and a resumed run,
  agree without communication.
"""

import math
import numbers
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict, get_args

import torch

BetaStrategy = Literal["akd", "m1", "m2", "fixed", "random_epoch", "linear"]
BetaRegularizer = Literal["eq13", "alg1", "eq16"]


class AdaptiveBetaState(TypedDict):
    """Complete state of [`AdaptiveBeta`]."""

    settings: dict[str, Any]
    epoch: int
    value: torch.Tensor
    optimizer: dict[str, Any]


def _eq13(distance: torch.Tensor, eps: float) -> torch.Tensor:
    return -torch.log(eps + 2 * distance) - torch.log(eps + 1 - 2 * distance)


def _alg1(distance: torch.Tensor, eps: float) -> torch.Tensor:
    return -2 * torch.log(eps + 2 * distance)


def _eq16(distance: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.zeros_like(distance)


REGULARIZERS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "eq13": _eq13,
    "alg1": _alg1,
    "eq16": _eq16,
}
_LEARNED = {"akd": -1.0, "m1": 1.0, "m2": -1.0}  # strategy -> sign of the distillation loss that β descends
_REDRAWN = {"akd", "random_epoch"}


class AdaptiveBeta:
    r"""Learnable mixing coefficient of forward and reverse KL.

    AKD minimizes \((1-\beta)\,\mathrm{KL} + \beta\,\mathrm{RKL}\) over the student while β ascends the same quantity
    minus a regularizer (Eq. 14):

    \[ \min_\beta\; -\big[(1-\beta)\,\mathrm{KL} + \beta\,\mathrm{RKL}\big] + \mathrm{Reg}(\beta) \]

    With `regularizer="eq13"`, \(\mathrm{Reg} = \lambda[-\log(\epsilon+u)-\log(\epsilon+1-u)]\), \(u=2|\beta-0.5|\):
    maxima at 0, 0.5 and 1, minima at 0.25 and 0.75. β therefore stays in the half in which the epoch began.

    Args:
        strategy (`str`, *optional*, defaults to `"akd"`):
            `"akd"` (the paper's M3): ascent, with a new draw and a new optimizer in each epoch. `"m2"`: ascent, one
            draw. `"m1"`: descent, one draw. `"fixed"`: always the first initial value. `"random_epoch"`: a new draw in
            each epoch, and no updates. `"linear"`: from the first to the second of two values, linearly over all
            training steps.
        initial_values (`Sequence[float]`, *optional*, defaults to `(0.1, 0.6)`):
            Values in [0, 1] to draw from, each with the same probability; with `"linear"`, the first and the last one.
        learning_rate (`float`, *optional*, defaults to `0.01`):
            Learning rate of the AdamW optimizer of β, without weight decay and without a scheduler.
        regularization (`float`, *optional*, defaults to `0.5`):
            Strength λ of the regularizer, in nats.
        eps (`float`, *optional*, defaults to `1e-4`):
            Offset inside the logarithms of the regularizer.
        regularizer (`str`, *optional*, defaults to `"eq13"`):
            `"eq13"`, `"alg1"` (as Algorithm 1 prints it) or `"eq16"` (its printed gradient, which does
            not regularize).
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    >>> from trl_akd import AdaptiveBeta
    >>> beta = AdaptiveBeta(seed=0)
    >>> beta.value in (0.1, 0.6)
    True
    >>> for _ in range(200):
    ...     _ = beta.step(forward_kl=1.0, reverse_kl=1.0)
    >>> round(min(abs(beta.value - 0.25), abs(beta.value - 0.75)), 3)
    0.0

    ```
    """

    knob = "beta"

    def __init__(
        self,
        strategy: BetaStrategy = "akd",
        initial_values: Sequence[float] = (0.1, 0.6),
        learning_rate: float = 0.01,
        regularization: float = 0.5,
        eps: float = 1e-4,
        regularizer: BetaRegularizer = "eq13",
        seed: int = 0,
    ) -> None:
        _check_choice("strategy", strategy, get_args(BetaStrategy))
        _check_choice("regularizer", regularizer, tuple(REGULARIZERS))
        if not isinstance(initial_values, Iterable) or isinstance(initial_values, str):
            raise ValueError(
                f"`initial_values` is {initial_values!r}; give a list of starting values for beta, such as [0.1, 0.6]."
            )
        initial_values = tuple(initial_values)
        if not initial_values:
            raise ValueError(
                "`initial_values` is empty; give at least one starting value for beta, such as [0.1, 0.6]."
            )
        for initial_value in initial_values:
            if not _is_number(initial_value) or not 0.0 <= initial_value <= 1.0:
                raise ValueError(
                    f"`initial_values` contains {initial_value!r}; beta mixes two divergences and must lie in [0, 1]."
                )
        if strategy == "linear" and len(initial_values) != 2:
            raise ValueError(
                f"`initial_values` has {len(initial_values)} values; give two with the strategy 'linear', the first "
                "and the last value of beta, such as [0.1, 0.9]."
            )
        _check_positive("learning_rate", learning_rate)
        _check_positive("eps", eps)
        if not (_is_number(regularization) and regularization >= 0.0 and math.isfinite(regularization)):
            raise ValueError(f"`regularization` is {regularization!r}; it must be a finite number of at least 0.")
        self.strategy = strategy
        self.initial_values = tuple(float(value) for value in initial_values)
        self.learning_rate, self.regularization, self.eps = float(learning_rate), float(regularization), float(eps)
        self.regularizer = regularizer
        self.seed = seed
        self.epoch = 0
        self._start()

    @property
    def value(self) -> float:
        """β as a Python float in [0, 1]."""
        return self._beta.item()

    @property
    def evaluation_value(self) -> float:
        """Share of reverse KL in evaluations: β where it is fixed, otherwise one half."""
        return self.value if self.strategy == "fixed" else 0.5

    def update(self, means: Mapping[str, float], progress: float) -> float:
        """Update β after an optimizer step from its means, as a [`trl_akd.losses.KnobSchedule`].

        Raises:
            ValueError: If a divergence is not finite; β is left unchanged.
        """
        if self.strategy != "linear":
            return self.step(means["forward_kl"], means["reverse_kl"])
        _finite(means["forward_kl"], means["reverse_kl"])
        first, last = self.initial_values
        with torch.no_grad():
            self._beta.fill_(first + (last - first) * progress)
        return self.value

    def step(self, forward_kl: float | torch.Tensor, reverse_kl: float | torch.Tensor) -> float:
        """Update β once from the two mean divergences of an optimizer step (Eq. 14, 17).

        Args:
            forward_kl (`float` or 0-dim `torch.Tensor`):
                Mean KL(teacher‖student) over all micro-batches and ranks, in nats.
            reverse_kl (`float` or 0-dim `torch.Tensor`):
                Mean KL(student‖teacher), likewise.

        Returns:
            `float`: The new value; the old one with strategies that do not learn.

        Raises:
            ValueError: If a divergence is not finite; β is left unchanged.
        """
        forward_kl, reverse_kl = _finite(forward_kl, reverse_kl)
        if self.strategy in _LEARNED:
            self._optimizer.zero_grad()
            mixed = (1 - self._beta) * forward_kl + self._beta * reverse_kl
            (_LEARNED[self.strategy] * mixed + self._penalty()).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            with torch.no_grad():
                self._beta.clamp_(0.0, 1.0)
        return self.value

    def reset(self) -> float:
        """Begin the next epoch: strategies `"akd"` and `"random_epoch"` draw a new value and reset the optimizer.

        Returns:
            `float`: β for the new epoch.
        """
        self.epoch += 1
        if self.strategy in _REDRAWN:
            self._start()
        return self.value

    def begin_training(self) -> float:
        """Return to the first epoch, with its value and a new optimizer, and return the value."""
        self.epoch = 0
        self._start()
        return self.value

    def state_dict(self) -> AdaptiveBetaState:
        """Return the state for `load_state_dict`, loadable with `torch.load(weights_only=True)`."""
        return {
            "settings": self._settings(),
            "epoch": self.epoch,
            "value": self._beta.detach().clone(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: AdaptiveBetaState) -> None:
        """Load a state returned by `state_dict`.

        Raises:
            ValueError: If the state was written with other settings.
        """
        for name, value in self._settings().items():
            written = state["settings"][name]
            if written != value:
                raise ValueError(
                    f"the checkpoint was written with {name}={written!r}, but this run has {name}={value!r}; resume "
                    f"with the old {name}, or start a new run."
                )
        self.epoch = state["epoch"]
        self._start()
        with torch.no_grad():
            self._beta.copy_(state["value"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _settings(self) -> dict[str, Any]:
        return {
            "beta_strategy": self.strategy,
            "beta_initial_values": list(self.initial_values),
            "beta_learning_rate": self.learning_rate,
            "beta_regularization": self.regularization,
            "beta_regularizer": self.regularizer,
            "beta_eps": self.eps,
            "seed": self.seed,
        }

    def _start(self) -> None:
        self._beta = torch.tensor(self._draw(), dtype=torch.float64, requires_grad=True)
        self._optimizer = torch.optim.AdamW([self._beta], lr=self.learning_rate, weight_decay=0.0)

    def _draw(self) -> float:
        if self.strategy in ("fixed", "linear"):
            return self.initial_values[0]
        return random.Random(f"{self.seed}:{self.epoch}").choice(self.initial_values)

    def _penalty(self) -> torch.Tensor:
        offset = self._beta - 0.5
        # At exactly 0.5 the absolute value has no derivative; the one from below is used.
        distance = torch.where(offset == 0, -offset, offset.abs())
        return self.regularization * REGULARIZERS[self.regularizer](distance, self.eps)


def _finite(forward_kl: float | torch.Tensor, reverse_kl: float | torch.Tensor) -> tuple[float, float]:
    """Return the two mean divergences as floats, or raise a ValueError if one is not finite."""
    forward, reverse = (float(torch.as_tensor(mean).detach().item()) for mean in (forward_kl, reverse_kl))
    if not (math.isfinite(forward) and math.isfinite(reverse)):
        raise ValueError(
            f"beta cannot be updated from forward_kl={forward} and reverse_kl={reverse}; check the logits of teacher "
            "and student for NaN or infinity."
        )
    return forward, reverse


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}; choose one of {', '.join(map(repr, choices))}.")


def _check_positive(name: str, value: float) -> None:
    if not (_is_number(value) and value > 0.0 and math.isfinite(value)):
        raise ValueError(f"`{name}` is {value!r}; it must be a finite number above 0.")
