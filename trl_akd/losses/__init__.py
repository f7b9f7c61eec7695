"""What is minimised: divergences a token, contrasts a pair, and their fused, chunked forms. Imports torch alone."""

from .contrastive import dpo, dpo_norm, infonce, simpo, unlikelihood
from .divergences import forward_kl, reverse_kl, shared_vocabulary
from .fused_linear import (
    FusedCrossEntropy,
    FusedDivergence,
    fused_linear_cross_entropy,
    fused_linear_divergence,
)
from .fused_log_probs import LossOfLogProbs, fused_linear_log_probs
from .reduction import count_items, count_items_by_task, scale, token_weights

__all__ = [
    "FusedCrossEntropy",
    "FusedDivergence",
    "LossOfLogProbs",
    "count_items",
    "count_items_by_task",
    "dpo",
    "dpo_norm",
    "forward_kl",
    "fused_linear_cross_entropy",
    "fused_linear_divergence",
    "fused_linear_log_probs",
    "infonce",
    "reverse_kl",
    "scale",
    "shared_vocabulary",
    "simpo",
    "token_weights",
    "unlikelihood",
]
