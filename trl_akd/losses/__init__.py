"""Losses: divergences per token, contrastive losses per pair, and their fused, chunked forms. Imports only torch."""

from . import divergences
from .contrastive import dpo, dpo_norm, infonce, simpo, unlikelihood
from .divergences import forward_kl, reverse_kl, shared_vocabulary
from .fused_linear import (
    FusedCrossEntropy,
    FusedDivergence,
    fused_divergence,
    fused_linear_cross_entropy,
    fused_linear_divergence,
)
from .fused_log_probs import LossOfLogProbs, fused_linear_log_probs
from .knobs import Interpolation, KnobSchedule
from .lm_head import LMHead
from .policy_gradient import PolicyGradient
from .reduction import count_items, count_items_by_task, scale, token_weights
from .signals import DenseSignal, SampledSignal, SparseSignal, TeacherSignal

__all__ = [
    "DenseSignal",
    "FusedCrossEntropy",
    "FusedDivergence",
    "Interpolation",
    "KnobSchedule",
    "LMHead",
    "LossOfLogProbs",
    "PolicyGradient",
    "SampledSignal",
    "SparseSignal",
    "TeacherSignal",
    "count_items",
    "count_items_by_task",
    "divergences",
    "dpo",
    "dpo_norm",
    "forward_kl",
    "fused_divergence",
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
