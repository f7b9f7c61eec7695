r"""Unbiased estimates of forward and reverse KL from the teacher's most probable tokens and a sample of the others.

With one outcome for the tail, that is for all tokens but the most probable ones, a divergence is a lower bound. For
forward and reverse KL the difference is a sum over the tail, whose terms are never negative. With the total
probabilities of the tail, \(P\) and \(Q\), with \(d_v = \log(p_v / q_v) - \log(P / Q)\), and with weights of mean 1:

\[ \mathrm{KL}(p \| q) = \text{bound} + \sum_v w_v \left(p_v d_v - p_v + q_v P / Q\right) \qquad
   \mathrm{KL}(q \| p) = \text{bound} + \sum_v w_v \left(p_v Q / P - q_v - q_v d_v\right) \]

A token of the tail is sampled with a probability \(\pi_v\), and \(w_v\) is \(1 / \pi_v\) if it was sampled, otherwise
0 ([Horvitz-Thompson](https://en.wikipedia.org/wiki/Horvitz%E2%80%93Thompson_estimator)). The gradient is that of the
estimate at constant weights; it is linear in them, and therefore unbiased as well. Only the teacher's probabilities of
sampled tokens are needed.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TailEstimate", "TailSample", "estimate_tail", "sample_tail"]

_UNIFORM_SHARE = 0.1  # of the samples, so that tokens which the student finds impossible are sampled, too


class TailSample(NamedTuple):
    """Sampled tokens of the tails of `n` positions.

    Attributes:
        ids (`Tensor`): shape `[n, samples]`, int64; arbitrary where the weight is 0.
        weights (`Tensor`): shape `[n, samples]`, 1 / probability of being sampled, or 0 where there is no token.
    """

    ids: Tensor
    weights: Tensor


def sample_tail(q: Tensor, top: Tensor, offsets: Tensor, samples: int, scratch: Tensor) -> TailSample:
    """Sample tokens of the tail by systematic sampling, with probabilities that grow with the student's.

    A token is sampled with the probability `min(1, samples * r_v)`, where `r` is a mix of the student's distribution
    over the tail (90 %) and the uniform one.

    Args:
        q (`Tensor`): shape `[n, V]`, the student's probabilities.
        top (`Tensor`): shape `[n, K]`, int64, the tokens that are not in the tail; ids may be repeated.
        offsets (`Tensor`): shape `[n]`, uniform in [0, 1).
        samples (`int`): maximum number of tokens per position.
        scratch (`Tensor`): shape `[n, V]`, overwritten.

    Returns:
        [`TailSample`]. If `samples` is at least V, the whole tail, with weights of 1.
    """
    inclusion = scratch.copy_(q).scatter_(-1, top, 0.0)
    if samples >= q.shape[-1]:
        inclusion.fill_(1.0)
    else:
        total = inclusion.sum(dim=-1, keepdim=True).clamp_(min=torch.finfo(q.dtype).tiny)
        inclusion.mul_((1 - _UNIFORM_SHARE) * samples / total).add_(_UNIFORM_SHARE * samples / q.shape[-1])
    # The inclusion probabilities are the steps of the sums as they were rounded, so rounding causes no bias.
    sums = inclusion.clamp_(max=1.0).scatter_(-1, top, 0.0).cumsum_(dim=-1)
    points = offsets.to(q.dtype).unsqueeze(-1) + torch.arange(samples, device=q.device, dtype=q.dtype)
    ids = torch.searchsorted(sums, points, right=True).clamp_(max=q.shape[-1] - 1)
    steps = sums.gather(-1, ids) - sums.gather(-1, (ids - 1).clamp_(min=0)).masked_fill_(ids == 0, 0.0)
    # On a GPU, parallel sums of many small numbers may decrease by a rounding error.
    return TailSample(ids, torch.where((points < sums[:, -1:]) & (steps > 0), 1 / steps, 0.0))


class TailEstimate(NamedTuple):
    """Estimates, in nats, of what the bounds of both KLs lack, and derivatives of their mix.

    Attributes:
        forward_kl, reverse_kl (`Tensor`): shape `[n]`, of KL(p || q) and KL(q || p).
        slopes (`Tensor`): shape `[n, samples]`, with respect to the student's log-probabilities of sampled tokens.
        tail_slope (`Tensor`): shape `[n, 1]`, with respect to the logarithm of the total probability of the tail.
    """

    forward_kl: Tensor
    reverse_kl: Tensor
    slopes: Tensor
    tail_slope: Tensor


def estimate_tail(
    log_q: Tensor, log_p: Tensor, tail_log_q: Tensor, tail_log_p: Tensor, weights: Tensor, reverse_share: float
) -> TailEstimate:
    """Return the estimates for sampled tokens.

    Args:
        log_q, log_p (`Tensor`): shape `[n, samples]`, log-probabilities of the sampled tokens.
        tail_log_q, tail_log_p (`Tensor`): shape `[n, 1]`, logarithms of the total probabilities of the tail.
        weights (`Tensor`): shape `[n, samples]`, see [`TailSample`].
        reverse_share (`float`): share of reverse KL in the mix.
    """
    # Without a tail there is nothing to estimate. Entries of weight 0 may be infinite.
    exists = tail_log_q.isfinite() & tail_log_p.isfinite()
    tail_log_q, tail_log_p = (torch.where(exists, each, 0.0) for each in (tail_log_q, tail_log_p))
    sampled = exists & (weights > 0)
    log_q, log_p = torch.where(sampled, log_q, tail_log_q), torch.where(sampled, log_p, tail_log_p)
    with torch.enable_grad():
        log_q, tail_log_q = log_q.requires_grad_(), tail_log_q.requires_grad_()
        log_ratio = tail_log_p - tail_log_q
        difference, p, q = log_p - log_q - log_ratio, log_p.exp(), log_q.exp()
        forward = p * difference - p + (log_q + log_ratio).exp()
        reverse = (log_p - log_ratio).exp() - q - q * difference
        totals = [(torch.where(sampled, weights, 0.0) * each).sum(dim=-1) for each in (forward, reverse)]
        mix = (1 - reverse_share) * totals[0] + reverse_share * totals[1]
        slopes, tail_slope = torch.autograd.grad(mix.sum(), (log_q, tail_log_q))
    return TailEstimate(totals[0].detach(), totals[1].detach(), slopes, tail_slope)
