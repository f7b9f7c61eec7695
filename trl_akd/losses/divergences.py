"""Divergences between a teacher and a student, one number a token: the readable truth behind the fused path.

Notation, here and everywhere: `p` is the teacher's distribution, `q` the student's, both over the vocabulary and both
softened by the temperature `T`. Everything is in nats.
"""

import torch
from torch import Tensor


def shared_vocabulary(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Cut both models' logits to the vocabulary prefix they share.

    Models of one family often pad their LM heads to different sizes (Qwen2.5-Coder: 151,936 and 152,064). The rows
    beyond the shorter head name no token the other model knows. Equal sizes prove nothing: the caller must have shown
    that the two tokenizers give the same token to every id of the prefix.

    Args:
        student_logits (`Tensor`): shape `[..., Vs]`.
        teacher_logits (`Tensor`): shape `[..., Vt]`.

    Returns:
        Both tensors, as views of shape `[..., min(Vs, Vt)]`.

    Example:
        >>> student, teacher = shared_vocabulary(torch.zeros(2, 5), torch.zeros(2, 8))
        >>> student.shape, teacher.shape
        (torch.Size([2, 5]), torch.Size([2, 5]))
    """
    size = min(student_logits.shape[-1], teacher_logits.shape[-1])
    return student_logits[..., :size], teacher_logits[..., :size]


def forward_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute KL(teacher || student) of each token, the divergence that covers the teacher's modes.

    Eq. (3) of Adaptive Knowledge Distillation for code generation (jos.org.cn 7462), `sum_v p log(p / q)`. The paper
    prints a leading minus, which would push the student away, and leaves out the sum over the vocabulary; neither is
    followed. `p -> 0` contributes 0, Eq. (5).

    Args:
        student_logits (`Tensor`): shape `[..., Vs]`, any floating dtype, not yet divided by the temperature.
        teacher_logits (`Tensor`): shape `[..., Vt]`; where `Vt != Vs`, the [`shared_vocabulary`] counts alone.
        temperature (`float`, *optional*, defaults to `1.0`): divides both models' logits. No factor `T ** 2`.

    Returns:
        Shape `[...]`, nats, float32 (float64 if either input is float64).

    Example:
        >>> forward_kl(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 1.0]).log())  # .75 ln 1.5 + .25 ln .5
        tensor(0.1308)
    """
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    return _relative_entropy(log_p, log_q)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute KL(student || teacher) of each token, the divergence that seeks the teacher's main mode.

    Eq. (4) of Adaptive Knowledge Distillation for code generation (jos.org.cn 7462), `sum_v q log(q / p)`, with the
    departures named in [`forward_kl`].

    Args:
        student_logits (`Tensor`): shape `[..., Vs]`, any floating dtype, not yet divided by the temperature.
        teacher_logits (`Tensor`): shape `[..., Vt]`; where `Vt != Vs`, the [`shared_vocabulary`] counts alone.
        temperature (`float`, *optional*, defaults to `1.0`): divides both models' logits. No factor `T ** 2`.

    Returns:
        Shape `[...]`, nats, float32 (float64 if either input is float64).

    Example:
        >>> reverse_kl(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 1.0]).log())  # .5 ln(2/3) + .5 ln 2
        tensor(0.1438)
    """
    log_q, log_p = _log_probabilities(student_logits, teacher_logits, temperature)
    return _relative_entropy(log_q, log_p)


def _log_probabilities(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    student_logits, teacher_logits = shared_vocabulary(student_logits, teacher_logits)
    dtype = torch.promote_types(torch.promote_types(student_logits.dtype, teacher_logits.dtype), torch.float32)
    return (
        torch.log_softmax(student_logits.to(dtype) / temperature, dim=-1),
        torch.log_softmax(teacher_logits.to(dtype) / temperature, dim=-1),
    )


def _relative_entropy(log_a: Tensor, log_b: Tensor) -> Tensor:
    a = log_a.exp()
    # The gap is masked, not the product: 0 * (-inf - -inf) would be NaN, and so would its gradient.
    gap = torch.where(a > 0, log_a - log_b, 0.0)
    return (a * gap).sum(dim=-1)
