"""AKD's objective on hidden states that are at hand, and whom to blame where it is not finite."""

import torch

from ..heads import LMHead
from ..losses.fused_linear import (
    FusedCrossEntropy,
    FusedDivergence,
    fused_linear_cross_entropy,
    fused_linear_divergence,
)
from .akd_config import AKDConfig
from .metrics import METRICS


def adaptive_divergence(
    head: LMHead,
    hidden: torch.Tensor,
    knowledge: tuple[torch.Tensor, LMHead],
    labels: torch.Tensor,
    token_weights: torch.Tensor,
    beta: float,
    vocabulary_size: int,
    args: AKDConfig,
) -> FusedDivergence:
    """Compute the divergence between a teacher and the student, weighted token by token.

    Args:
        head (`LMHead`):
            The student's, whole.
        hidden (`torch.Tensor` of shape `[B, T, Hs]`):
            The student's final hidden states, as many as there are labels.
        knowledge (`tuple[torch.Tensor, LMHead]`):
            The teacher's hidden states, at least as many, and head.
        labels (`torch.Tensor` of shape `[B, T]`):
            Tokens of the data, -100 for none.
        token_weights (`torch.Tensor` of shape `[B, T]`):
            Weights, with all divisions made.
        beta (`float`):
            Share of reverse KL.
        vocabulary_size (`int`):
            Number of leading ids that both models share.
        args (`AKDConfig`):
            Temperature, cross-entropy and chunk size.
    """
    teacher_hidden, teacher_head = knowledge
    return fused_linear_divergence(
        hidden.flatten(0, 1),
        head.weight,
        teacher_hidden[:, : labels.shape[1]].flatten(0, 1),
        teacher_head.weight,
        token_weights=token_weights.flatten(),
        beta=beta,
        temperature=args.kd_temperature,
        student_bias=head.bias,
        teacher_bias=teacher_head.bias,
        chunk_size=args.loss_chunk_size,
        labels=labels.flatten(),
        ce_weight=args.ce_weight,
        student_logit_scale=head.logit_scale,
        teacher_logit_scale=teacher_head.logit_scale,
        student_softcap=head.softcap,
        teacher_softcap=teacher_head.softcap,
        vocab_size=vocabulary_size,
    )


def cross_entropy(
    head: LMHead,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    token_weights: torch.Tensor,
    chunk_size: int | None,
) -> FusedCrossEntropy:
    """Compute the cross-entropy of labels `[B, T]` from hidden states `[B, T, H]`, weighted token by token."""
    return fused_linear_cross_entropy(
        hidden.flatten(0, 1),
        head.weight,
        token_weights=token_weights.flatten(),
        labels=labels.flatten(),
        bias=head.bias,
        chunk_size=chunk_size,
        logit_scale=head.logit_scale,
        softcap=head.softcap,
    )


def mixed_loss(means: dict[str, float], beta: float, args: AKDConfig) -> float:
    """Return the objective's value from the means of `METRICS`."""
    divergence = (1 - beta) * means["forward_kl"] + beta * means["reverse_kl"]
    return divergence + args.ce_weight * means["student_nll"]


def not_finite(sums: torch.Tensor, step: int, args: AKDConfig) -> FloatingPointError:
    """Return the error that names the model whose logits are not finite.

    Args:
        sums (`torch.Tensor` of shape `[tasks, len(METRICS)]`):
            Sums of `METRICS`.
        step (`int`):
            Number of the optimiser step.
        args (`AKDConfig`):
            Settings to name.
    """
    if not torch.isfinite(sums[:, list(METRICS).index("teacher_nll")]).all():
        return FloatingPointError(
            f"the teacher's logits are not finite at step {step} (`teacher_model_name_or_path` "
            f"{args.teacher_model_name_or_path!r}); load it in another precision with "
            "`teacher_model_init_kwargs: {dtype: float32}`, or check its weights. This step updated nothing."
        )
    return FloatingPointError(
        f"the student's logits are not finite at step {step}; lower `learning_rate` (now "
        f"{args.learning_rate}) or `max_grad_norm`, or train in another precision. This step updated nothing."
    )
