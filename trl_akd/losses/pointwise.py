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
    """Loss of tokens, `rule(student_logits / T, teacher_logits / T, **knobs) + ce_weight * NLL`."""

    rule: Rule
    knobs: Mapping[str, Any]
    temperature: float
    ce_weight: float | Tensor  # one per token: shape [n]

    @property
    def has_ce(self) -> bool:
        """Whether the loss contains the NLL."""
        return isinstance(self.ce_weight, Tensor) or self.ce_weight != 0.0

    def of(self, tokens: Tensor | slice) -> "Objective":
        """Return the loss of a subset of the tokens."""
        return self._replace(ce_weight=self.ce_weight[tokens]) if isinstance(self.ce_weight, Tensor) else self

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
    logits: Tensor, labels: Tensor, scratch: Tensor, with_gradient: bool = True
) -> LabelStatistics:
    """Compute each token's likelihood, and overwrite the logits with the gradient of its NLL, `q - onehot(label)`.

    Args:
        logits (`Tensor`): shape `[n, V]`. Overwritten with the gradient, or with arbitrary values.
        labels (`Tensor`): shape `[n]`, int64, -100 for none.
        scratch (`Tensor`): shape `[n, V]`, overwritten.
        with_gradient (`bool`): whether the gradient is needed.

    Returns:
        [`LabelStatistics`].
    """
    label_logits = _center_(logits, labels)
    q = torch.softmax(logits, dim=-1, out=scratch)
    log_normalizer = _log_normalizer(q)
    entropy = log_normalizer - logits.mul_(q).sum(dim=-1)
    if with_gradient:
        known = (labels != IGNORE_INDEX).to(logits.dtype).unsqueeze(-1)
        torch.mul(q, known, out=logits).scatter_add_(-1, _index(labels), -known)
    return LabelStatistics(entropy, _nll(label_logits, log_normalizer, labels))


def divergence_and_gradient_(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    objective: Objective,
    scratch: Tensor,
    with_gradient: bool = True,
) -> TokenStatistics:
    """Compute each token's statistics, and overwrite the student's logits with the objective's gradient.

    A rule with a hand-written gradient needs no large tensors beyond those given, except that a cross-entropy at a
    temperature other than 1 needs one more, and that `akl` sorts the distributions of the few tokens whose head is
    long, some at a time. A rule without a hand-written gradient is differentiated by autograd.

    Args:
        student_logits (`Tensor`): shape `[n, V]`, not yet divided by the temperature. Overwritten with the gradient,
            or with arbitrary values.
        teacher_logits (`Tensor`): shape `[n, V]`. Overwritten with arbitrary values.
        labels (`Tensor`): shape `[n]`, int64, -100 for none.
        objective (`Objective`): loss to differentiate.
        scratch (`Tensor`): shape `[2, n, V]`, overwritten.
        with_gradient (`bool`): whether the gradient is needed.

    Returns:
        [`TokenStatistics`].
    """
    rule, knobs, temperature, _ = objective
    likelihood = _likelihood(student_logits, objective, with_gradient)
    if rule.fused is None:
        student, teacher = student_logits, teacher_logits
        if temperature != 1.0:
            student, teacher = student / temperature, teacher / temperature
        divergence, gradient = _differentiate(objective, student, teacher, with_gradient)

    q, log_ratio = scratch
    student_label, teacher_label = (_center_(logits, labels) for logits in (student_logits, teacher_logits))
    if temperature != 1.0:
        student_nll, teacher_nll = (
            _nll(label_logits, _log_normalizer(torch.softmax(logits, dim=-1, out=q)), labels)
            for label_logits, logits in ((student_label, student_logits), (teacher_label, teacher_logits))
        )
        student_logits.div_(temperature)
        teacher_logits.div_(temperature)
    torch.sub(student_logits, teacher_logits, out=log_ratio)
    torch.softmax(student_logits, dim=-1, out=q)
    student_normalizer = _log_normalizer(q)
    student_entropy = student_normalizer - student_logits.mul_(q).sum(dim=-1)
    p, spare = torch.softmax(teacher_logits, dim=-1, out=student_logits), teacher_logits
    teacher_normalizer = _log_normalizer(p)
    if temperature == 1.0:
        student_nll = _nll(student_label, student_normalizer, labels)
        teacher_nll = _nll(teacher_label, teacher_normalizer, labels)
    log_ratio.add_((teacher_normalizer - student_normalizer).unsqueeze(-1))
    reverse = _expectation(q, log_ratio, spare)
    forward = -_expectation(p, log_ratio, spare)

    if rule.fused is not None:
        divergence = rule.fused(Softened(q, p, log_ratio, forward, reverse, spare), with_gradient, **knobs)
    elif gradient is not None:
        p.copy_(gradient)
    if with_gradient:
        gradient = p.div_(temperature) if temperature != 1.0 else p
        _add_likelihood_(gradient, q if likelihood is None else likelihood, labels, objective)
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
        logits (`Tensor`): shape `[n, V]`, not divided by the temperature. Overwritten with the gradient, or with
            arbitrary values.
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
    q, spare = scratch
    likelihood = _likelihood(logits, objective, with_gradient)
    label_logits = _center_(logits, labels)
    if objective.temperature != 1.0:
        student_nll = _nll(label_logits, _log_normalizer(torch.softmax(logits, dim=-1, out=q)), labels)
        logits.div_(objective.temperature)
    log_normalizer = _log_normalizer(torch.softmax(logits, dim=-1, out=q))
    if objective.temperature == 1.0:
        student_nll = _nll(label_logits, log_normalizer, labels)
    student_entropy = log_normalizer - _expectation(q, logits, spare)
    log_q = logits.sub_(log_normalizer.unsqueeze(-1))
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
        gradient = torch.mul(q, factor, out=logits)
        gradient.scatter_(-1, ids, torch.where(missing, of_top[..., :1], of_top))
        gradient.scatter_add_(-1, sampled_ids, sampled_slopes)
        gradient.div_(objective.temperature)
        _add_likelihood_(gradient, q if likelihood is None else likelihood, labels, objective)
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


def _likelihood(student_logits: Tensor, objective: Objective, with_gradient: bool) -> Tensor | None:
    """Return the probabilities at temperature 1 where only the gradient of the cross-entropy needs them."""
    if with_gradient and objective.has_ce and objective.temperature != 1.0:
        return torch.softmax(student_logits, dim=-1)
    return None


def _add_likelihood_(gradient: Tensor, likelihood: Tensor, labels: Tensor, objective: Objective) -> Tensor:
    """Add the gradient of the cross-entropy, and overwrite the probabilities."""
    if objective.has_ce:
        weight = (objective.ce_weight * (labels != IGNORE_INDEX).to(gradient.dtype)).unsqueeze(-1)
        gradient.add_(likelihood.mul_(weight)).scatter_add_(-1, _index(labels), -weight)
    return gradient


def _center_(logits: Tensor, labels: Tensor) -> Tensor:
    """Subtract each token's maximum from its logits, and return the logits of the labels."""
    logits.sub_(logits.amax(dim=-1, keepdim=True))
    return logits.gather(-1, _index(labels)).squeeze(-1)


def _log_normalizer(probabilities: Tensor) -> Tensor:
    """Return `log(sum(exp(logits)))` of centered logits from their probabilities: the largest is `1 / sum`."""
    return -probabilities.amax(dim=-1).log()


def _nll(label_logits: Tensor, log_normalizer: Tensor, labels: Tensor) -> Tensor:
    return (log_normalizer - label_logits).masked_fill_(labels == IGNORE_INDEX, 0.0)


def _expectation(probabilities: Tensor, values: Tensor, scratch: Tensor) -> Tensor:
    return torch.mul(probabilities, values, out=scratch).sum(dim=-1)


def _index(labels: Tensor) -> Tensor:
    return labels.clamp(min=0).unsqueeze(-1)
