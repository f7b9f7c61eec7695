"""What is minimised: per-token divergences and their fused, chunked form. Imports torch alone."""

from .divergences import forward_kl, reverse_kl, shared_vocabulary
from .fused_linear import FusedDivergence, fused_linear_divergence
from .reduction import count_items, scale, token_weights

__all__ = [
    "FusedDivergence",
    "count_items",
    "forward_kl",
    "fused_linear_divergence",
    "reverse_kl",
    "scale",
    "shared_vocabulary",
    "token_weights",
]
