"""Means of per-token quantities over micro-batches and ranks, with one reduction a step."""

import torch
from accelerate import Accelerator

# Field of the fused divergence -> name in the logs.
METRICS = {
    "forward_kl": "kd/forward_kl",
    "reverse_kl": "kd/reverse_kl",
    "student_entropy": "entropy",
    "student_nll": "kd/student_nll",
    "teacher_nll": "kd/teacher_nll",
}


class DistillationMetrics:
    """Accumulates weighted sums of `METRICS` on the device and divides once, by the weights of all ranks."""

    def __init__(self) -> None:
        self._totals: torch.Tensor | None = None

    def is_empty(self) -> bool:
        """Tell whether nothing was added since the last reduction."""
        return self._totals is None

    def add(self, sums: torch.Tensor, weight: torch.Tensor, tokens: int) -> None:
        """Add one micro-batch.

        Args:
            sums (`torch.Tensor` of shape `[len(METRICS)]`):
                Weighted sums over the micro-batch's tokens.
            weight (`torch.Tensor`, 0-dim):
                Sum of the weights.
            tokens (`int`):
                Tokens read, padding excluded.
        """
        counts = torch.stack([weight.double(), torch.as_tensor(tokens, dtype=torch.float64, device=sums.device)])
        addition = torch.cat([sums.double(), counts])
        self._totals = addition if self._totals is None else self._totals + addition

    def reduce(self, accelerator: Accelerator) -> tuple[dict[str, float], int]:
        """Return the means over micro-batches and ranks, and the tokens read by all ranks; then start anew."""
        if self._totals is None:
            raise RuntimeError("no micro-batch was added since the last reduction.")
        *sums, weight, tokens = accelerator.reduce(self._totals, "sum").tolist()
        self._totals = None
        return {name: total / max(weight, 1e-30) for name, total in zip(METRICS, sums, strict=True)}, int(tokens)
