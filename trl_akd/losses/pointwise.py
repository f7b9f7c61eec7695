"""Element-wise part of the fused losses: statistics per token and a gradient from blocks of logits."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .divergences import Rule, Softened, forward_kl, reverse_kl
from .reduction import IGNORE_INDEX
from .signals import NO_TOKEN, SampledSignal, SparseSignal
from .tail_sampling import estimate_tail, sample_tail


class Objective(NamedTuple):
    """Loss of one token, `rule(student_logits / T, teacher_logits / T, **knobs) + ce_weight * NLL`."""

    rule: Rule
    knobs: Mapping[str, Any]
    temperature: float
    ce_weight: float

    def __call__(self, token: "TokenStatistics") -> Tensor:
        """Return the loss of each token."""
        return token.divergence + self.ce_weight * token.student_nll


class TokenStatistics(NamedTuple):
    """Statistics of shape `[n]`, in nats. The NLLs are at temperature 1, and 0 where there is no label."""

    divergence: Tensor
    forward_kl: Tensor
    reverse_kl: Tensor
    student_entropy: Tensor
    student_nll: Tensor
    teacher_nll: Tensor


class LabelStatistics(NamedTuple):
    """Statistics of shape `[n]`, in nats, at temperature 1. The NLL is 0 where there is no label."""

    student_entropy: Tensor
    student_nll: Tensor


def likelihood_and_gradient_(
    logits: Tensor, labels: Tensor, log_probabilities: Tensor, with_gradient: bool = True
) -> LabelStatistics:
    """Compute each token's likelihood, and overwrite the logits with the gradient of its NLL, `q - onehot(label)`.

    Args:
        logits (`Tensor`): shape `[n, V]`. Overwritten with the gradient, or with `q`.
        labels (`Tensor`): shape `[n]`, int64, -100 for none.
        log_probabilities (`Tensor`): shape `[n, V]`, overwritten.
        with_gradient (`bool`): whether the gradient is needed.

    Returns:
        [`LabelStatistics`].
    """
    nll = _soften_(logits, labels, 1.0, log_probabilities)
    entropy = -_expectation(logits, log_probabilities, log_probabilities)
    if with_gradient:
        known = (labels != IGNORE_INDEX).to(logits.dtype).unsqueeze(-1)
        logits.mul_(known).scatter_add_(-1, _index(labels), -known)
    return LabelStatistics(entropy, nll)


def divergence_and_gradient_(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    objective: Objective,
    scratch: Tensor,
    with_gradient: bool = True,
) -> TokenStatistics:
    """Compute each token's statistics, and overwrite the teacher's logits with the objective's gradient.

    A rule with a hand-written gradient needs no large tensors beyond those given, except that a cross-entropy at a
    temperature other than 1 needs one more, and that `akl` sorts the distributions of the few tokens whose head is
    long, some at a time. A rule without a hand-written gradient is differentiated by autograd.

    Args:
        student_logits (`Tensor`): shape `[n, V]`, not yet divided by the temperature. Overwritten with `q`.
        teacher_logits (`Tensor`): shape `[n, V]`. Overwritten with the gradient, or with `p`.
        labels (`Tensor`): shape `[n]`, int64, -100 for none.
        objective (`Objective`): loss to differentiate.
        scratch (`Tensor`): shape `[2, n, V]`, overwritten.
        with_gradient (`bool`): whether the gradient is needed.

    Returns:
        [`TokenStatistics`].
    """
    rule, knobs, temperature, _ = objective
    log_ratio, spare = scratch
    likelihood = _likelihood(student_logits, objective, with_gradient)
    if rule.fused is None:
        student, teacher = student_logits, teacher_logits
        if temperature != 1.0:
            student, teacher = student / temperature, teacher / temperature
        divergence, gradient = _differentiate(objective, student, teacher, with_gradient)

    q, p = student_logits, teacher_logits
    student_nll = _soften_(q, labels, temperature, log_probabilities=log_ratio)
    student_entropy = -_expectation(q, log_ratio, spare)
    teacher_nll = _soften_(p, labels, temperature, log_probabilities=spare)
    log_ratio.sub_(spare)
    reverse = _expectation(q, log_ratio, spare)
    forward = -_expectation(p, log_ratio, spare)

    if rule.fused is not None:
        divergence = rule.fused(Softened(q, p, log_ratio, forward, reverse, spare), with_gradient, **knobs)
    elif gradient is not None:
        p.copy_(gradient)
    if with_gradient:
        _add_likelihood_(p.div_(temperature) if temperature != 1.0 else p, likelihood, labels, objective)
    return TokenStatistics(divergence, forward, reverse, student_entropy, student_nll, teacher_nll)


def sparse_divergence_and_gradient_(
    logits: Tensor,
    teacher: SparseSignal | SampledSignal,
    labels: Tensor,
    objective: Objective,
    scratch: Tensor,
    with_gradient: bool = True,
) -> TokenStatistics:
    """Compute each token's statistics from a sparse signal, and overwrite the logits with the objective's gradient.

    The divergences are between the probabilities of K tokens and of all others together. With `Q_j` the student's
    probability of outcome j and `s_j` the derivative of the rule with respect to `log Q_j`, which autograd gives for
    K + 1 numbers, the gradient for a token v of outcome j is `q_v s_j / Q_j - q_v sum(s)`. A sampled signal adds the
    terms of the sampled tokens, see `tail_sampling.py`.

    Args:
        logits (`Tensor`): shape `[n, V]`, not divided by the temperature. Overwritten with the gradient, or with `q`.
        teacher (`SparseSignal` or `SampledSignal`): signal of `n` tokens, at the objective's temperature.
        labels (`Tensor`): shape `[n]`, int64, -100 for none.
        objective (`Objective`): loss to differentiate.
        scratch (`Tensor`): shape `[2, n, V]`, overwritten.
        with_gradient (`bool`): whether the gradient is needed.

    Returns:
        [`TokenStatistics`]. The teacher's NLL is at the objective's temperature; from a sparse signal, for a label in
        the tail, it is the NLL of the tail, a lower bound.
    """
    sampled = teacher if isinstance(teacher, SampledSignal) else None
    teacher = teacher.top if isinstance(teacher, SampledSignal) else teacher
    q, (log_q, spare) = logits, scratch
    likelihood = _likelihood(logits, objective, with_gradient)
    student_nll = _soften_(q, labels, objective.temperature, log_probabilities=log_q)
    student_entropy = -_expectation(q, log_q, spare)
    # A missing token is an outcome without probability. Its index is that of the first token, and so is its gradient.
    missing = teacher.ids == NO_TOKEN
    ids = torch.where(missing, teacher.ids[..., :1], teacher.ids)
    top = log_q.gather(-1, ids)
    tail = log_q.scatter_(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    student_outcomes = torch.cat([top.masked_fill(missing, -torch.inf), tail], dim=-1)
    teacher_outcomes = torch.cat([teacher.log_probs, teacher.tail_log_prob.unsqueeze(-1)], dim=-1).to(log_q.dtype)
    divergence, slopes = _differentiate(objective, student_outcomes, teacher_outcomes, with_gradient)
    forward, reverse = forward_kl(student_outcomes, teacher_outcomes), reverse_kl(student_outcomes, teacher_outcomes)
    is_label = torch.cat([teacher.ids == labels.unsqueeze(-1), torch.ones_like(tail, dtype=torch.bool)], dim=-1)
    outcome = is_label.byte().argmax(dim=-1, keepdim=True)  # the first one: the label, or the tail
    teacher_nll = -teacher_outcomes.gather(-1, outcome).squeeze(-1).masked_fill(labels == IGNORE_INDEX, 0.0)
    sampled_ids = ids[:, :0]
    if sampled is not None:
        sampled_ids, tail_weights = sample_tail(q, ids, sampled.offsets, sampled.samples, spare)
        log_p = sampled.log_probs(torch.cat([sampled_ids, _index(labels)], dim=-1))
        teacher_nll = -log_p[:, -1].masked_fill(labels == IGNORE_INDEX, 0.0)
        assert objective.rule.reverse_share is not None
        share = objective.rule.reverse_share(**objective.knobs)
        estimate = estimate_tail(
            log_q.gather(-1, sampled_ids), log_p[:, :-1], tail, teacher_outcomes[:, -1:], tail_weights, share
        )
        divergence = divergence + (1 - share) * estimate.forward_kl + share * estimate.reverse_kl
        forward, reverse = forward + estimate.forward_kl, reverse + estimate.reverse_kl
        if slopes is not None:
            slopes = torch.cat([slopes[:, :-1], slopes[:, -1:] + estimate.tail_slope, estimate.slopes], dim=-1)
    if slopes is not None:
        total, tail_mass = slopes.sum(dim=-1, keepdim=True), tail.exp()
        top_slopes, tail_slope, sampled_slopes = torch.tensor_split(slopes, [ids.shape[-1], ids.shape[-1] + 1], dim=-1)
        factor = torch.where(tail_mass > 0, tail_slope / tail_mass, 0.0) - total
        of_top = top_slopes - top.exp() * total
        gradient = torch.mul(q, factor, out=spare)
        gradient.scatter_(-1, ids, torch.where(missing, of_top[..., :1], of_top))
        gradient.scatter_add_(-1, sampled_ids, sampled_slopes)
        gradient.div_(objective.temperature)
        q.copy_(_add_likelihood_(gradient, likelihood, labels, objective))
    return TokenStatistics(divergence, forward, reverse, student_entropy, student_nll, teacher_nll)


def _differentiate(
    objective: Objective, student: Tensor, teacher: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the rule's values `[n]`, and their derivatives with respect to the student's softened logits."""
    if not with_gradient:
        return objective.rule(student, teacher, **objective.knobs), None
    with torch.enable_grad():
        student = student.detach().requires_grad_()
        values = objective.rule(student, teacher, **objective.knobs)
        [gradient] = torch.autograd.grad(values.sum(), student)
    return values.detach(), gradient


def _likelihood(student_logits: Tensor, objective: Objective, with_gradient: bool) -> Tensor:
    """Return the probabilities that the gradient of the cross-entropy needs, at temperature 1.

    Where `_soften_` will compute them in place, return the logits that it overwrites.
    """
    if with_gradient and objective.ce_weight != 0.0 and objective.temperature != 1.0:
        return torch.softmax(student_logits, dim=-1)
    return student_logits


def _add_likelihood_(gradient: Tensor, likelihood: Tensor, labels: Tensor, objective: Objective) -> Tensor:
    """Add the gradient of the cross-entropy."""
    if objective.ce_weight != 0.0:
        weight = objective.ce_weight * (labels != IGNORE_INDEX).to(gradient.dtype).unsqueeze(-1)
        gradient.addcmul_(likelihood, weight).scatter_add_(-1, _index(labels), -weight)
    return gradient


def _soften_(logits: Tensor, labels: Tensor, temperature: float, log_probabilities: Tensor) -> Tensor:
    """Overwrite the logits with their probabilities at `temperature`; return the labels' NLL at temperature 1."""
    torch.log_softmax(logits, dim=-1, out=log_probabilities)
    nll = -log_probabilities.gather(-1, _index(labels)).squeeze(-1)
    if temperature != 1.0:
        torch.log_softmax(logits.div_(temperature), dim=-1, out=log_probabilities)
    torch.exp(log_probabilities, out=logits)
    return nll.masked_fill_(labels == IGNORE_INDEX, 0.0)


def _expectation(probabilities: Tensor, values: Tensor, scratch: Tensor) -> Tensor:
    return torch.mul(probabilities, values, out=scratch).sum(dim=-1)


def _index(labels: Tensor) -> Tensor:
    return labels.clamp(min=0).unsqueeze(-1)
