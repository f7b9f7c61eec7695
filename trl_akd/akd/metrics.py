"""Means of per-token quantities over micro-batches and ranks, with one reduction per step, and the loss from them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator

from ..distributed import HostCopy, widest_float
from .akd_config import AKDConfig

# Field of the fused divergence -> name in the logs.
METRICS = {
    "divergence": "kd/divergence",
    "forward_kl": "kd/forward_kl",
    "reverse_kl": "kd/reverse_kl",
    "student_entropy": "entropy",
    "student_nll": "kd/student_nll",
    "teacher_nll": "kd/teacher_nll",
}


class Means(NamedTuple):
    """Means by name, and the sum of their weights."""

    by_name: dict[str, float]
    weight: float


class DistillationMetrics:
    """Weighted sums of per-token quantities by task, kept on the device and reduced over ranks when they are read.

    The reduction can begin before its result is needed, so that the host does not wait for the device.

    Args:
        names (`Sequence[str]`, *optional*):
            Names of the quantities. Defaults to `METRICS`.
    """

    def __init__(self, names: Sequence[str] = tuple(METRICS)) -> None:
        self.names = names
        self._totals: torch.Tensor | None = None
        self._transfer: HostCopy | None = None

    def is_empty(self) -> bool:
        """Return whether nothing was added since the last reduction."""
        return self._totals is None and self._transfer is None

    def add(self, sums: torch.Tensor, weights: torch.Tensor, tokens: torch.Tensor | int, loss: torch.Tensor) -> None:
        """Add one micro-batch.

        Args:
            sums (`torch.Tensor` of shape `[tasks, len(names)]`):
                Weighted sums over the micro-batch's tokens.
            weights (`torch.Tensor` of shape `[tasks]`):
                Sums of the weights.
            tokens (`torch.Tensor` of shape `[]`, or `int`):
                Tokens read, padding excluded.
            loss (`torch.Tensor` of shape `[]`):
                Loss, for [`check_finite`].
        """
        precision = widest_float(weights.device)
        columns = [sums, weights, _column(weights, tokens), _column(weights, ~loss.detach().isfinite())]
        addition = torch.cat([column.to(precision).view(len(weights), -1) for column in columns], dim=1)
        self._totals = addition if self._totals is None else self._totals + addition

    def start_reduction(self, accelerator: Accelerator) -> None:
        """Begin the sum over micro-batches and ranks, and its copy to the host, without waiting for either."""
        if self._totals is not None:
            self._transfer = HostCopy(accelerator.reduce(self._totals, "sum"))
            self._totals = None

    def check_finite(self, accelerator: Accelerator, step: int, args: AKDConfig) -> None:
        """Raise an error, on all ranks, if the loss of a micro-batch on any rank is not finite.

        Raises:
            FloatingPointError: If it is not; the totals are discarded.
        """
        totals = self._read(accelerator)
        if any(row[-1] for row in totals):
            self._transfer = None
            raise not_finite(torch.tensor([row[: len(self.names)] for row in totals]), step, args)

    def reduce(self, accelerator: Accelerator) -> tuple[list[Means], int]:
        """Return each task's means over micro-batches and ranks, and the tokens read by all; then reset."""
        totals = self._read(accelerator)
        self._transfer = None
        means = [
            Means({name: total / max(weight, 1e-30) for name, total in zip(self.names, sums, strict=True)}, weight)
            for *sums, weight, _, _ in totals
        ]
        return means, int(totals[0][-2])

    def _read(self, accelerator: Accelerator) -> list[list[float]]:
        self.start_reduction(accelerator)
        if self._transfer is None:
            raise RuntimeError("no micro-batch was added since the last reduction.")
        totals: list[list[float]] = self._transfer.values
        return totals


def _column(weights: torch.Tensor, number: torch.Tensor | int) -> torch.Tensor:
    return torch.zeros_like(weights, dtype=torch.int64) + number


def loss_from_means(means: dict[str, float], beta: float, args: AKDConfig) -> float:
    """Return the objective's value from the means of `METRICS`; `beta` counts only if the divergence uses it."""
    divergence = means["divergence"]
    if args.uses_beta:
        divergence = (1 - beta) * means["forward_kl"] + beta * means["reverse_kl"]
    return divergence + args.ce_weight * means["student_nll"]


def not_finite(sums: torch.Tensor, step: int, args: AKDConfig) -> FloatingPointError:
    """Return the error that names the model or the divergence that is not finite."""
    is_finite = {name: bool(column.isfinite().all()) for name, column in zip(METRICS, sums.T, strict=False)}
    if not is_finite["teacher_nll"] and args.teacher_cache is not None:
        return FloatingPointError(
            f"the batch at step {step} has rows or targets without a signal in `teacher_cache` "
            f"{args.teacher_cache!r}; create the cache from the data of this run. This step updated nothing."
        )
    if not is_finite["teacher_nll"]:
        return FloatingPointError(
            f"the teacher's logits are not finite at step {step} (`teacher_model_name_or_path` "
            f"{args.teacher_model_name_or_path!r}); load it in another precision with "
            "`teacher_model_init_kwargs: {dtype: float32}`, or check its weights. This step updated nothing."
        )
    if is_finite["student_nll"] and is_finite["student_entropy"] and not is_finite["divergence"]:
        return FloatingPointError(
            f"the divergence {args.divergence!r} with divergence_kwargs={args.divergence_settings} is not finite at "
            f"step {step}, although the student's logits are; change its settings, choose another `divergence`, or "
            "check the teacher for probabilities of 0. This step updated nothing."
        )
    return FloatingPointError(
        f"the student's logits are not finite at step {step}; lower `learning_rate` (now "
        f"{args.learning_rate}) or `max_grad_norm`, or train in another precision. This step updated nothing."
    )
