r"""Contrastive losses of correct and faulty answers, from the log-probabilities of whole sequences.

For a prompt x with a correct answer \(y^+\) and faulty answers \(y^-_1, …, y^-_K\), all losses but one compare
*rewards*, functions of the answer's log-probability \(\log\pi(y|x)\), its length \(|y|\) in tokens and its
log-probability \(\log\pi_\mathrm{ref}(y|x)\) under a frozen reference model:

| loss | reward r(y) | loss per pair |
|---|---|---|
| [`dpo`] | β (log π - log π_ref) | mean over k of -log sigmoid(r⁺ - r⁻ₖ) |
| [`dpo_norm`] | β (log π - log π_ref) / \|y\| | the same |
| [`simpo`] | β log π / \|y\| | mean over k of -log sigmoid(r⁺ - r⁻ₖ - margin) |
| [`infonce`] | β (log π - log π_ref) / \|y\| | -log softmax of r⁺ among r⁺, r⁻₁, …, r⁻ₖ |
| [`unlikelihood`] | (unused) | mean over k, then over tokens, of -log(1 - p) |

β has the inverse unit of the quantity it multiplies. Sums differ by tens of nats and means over tokens by about one,
so DPO's 0.1 for sums corresponds to SimPO's 2 for means: with 0.1, the sigmoid of [`dpo_norm`] would saturate only
when the answers differ by ten nats per token.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = [
    "Comparison",
    "ContrastiveLoss",
    "Sequences",
    "dpo",
    "dpo_norm",
    "infonce",
    "log1mexp",
    "mean_over_faults",
    "simpo",
    "unlikelihood",
]

ContrastiveLoss = Literal["dpo", "dpo_norm", "simpo", "unlikelihood", "infonce"]

# Above this log-probability, one minus the probability is lost in rounding to float32.
_ALMOST_SURE = -1e-5


class Sequences(NamedTuple):
    """Sums of the log-probabilities of answers' tokens, in nats, and numbers of tokens.

    Attributes:
        log_probs (`Tensor`): shape `[P]` for correct answers, `[P, K]` for faulty ones.
        lengths (`Tensor`): the same shape, at least 1.
        reference (`Tensor`, *optional*): the same shape, the sums under the reference.
    """

    log_probs: Tensor
    lengths: Tensor
    reference: Tensor | None = None

    def log_ratios(self) -> Tensor:
        """Return the log-ratios log π - log π_ref."""
        if self.reference is None:
            raise ValueError("`reference` is missing; this loss compares with a reference, or choose 'simpo'.")
        return self.log_probs - self.reference


class Comparison(NamedTuple):
    """Losses and statistics of pairs, of shape `[P]`; all 0 for a pair without faults.

    Attributes:
        loss (`Tensor`): in nats, differentiable.
        margin (`Tensor`): the correct answer's reward minus the mean reward of the faulty answers.
        accuracy (`Tensor`): 1 where the correct answer's reward exceeds every faulty answer's, else 0.
    """

    loss: Tensor
    margin: Tensor
    accuracy: Tensor

    @classmethod
    def of(cls, loss: Tensor, correct: Tensor, faulty: Tensor, mask: Tensor | None) -> "Comparison":
        """Return a loss `[P]` with the statistics of rewards `[P]` and `[P, K]`, without gradients."""
        gaps = (correct.unsqueeze(1) - faulty).detach()
        mask = torch.ones_like(gaps, dtype=torch.bool) if mask is None else mask
        wins = ((gaps > 0) | ~mask).all(dim=1) & mask.any(dim=1)
        return cls(loss, mean_over_faults(gaps, mask), wins.to(gaps.dtype))


def dpo(correct: Sequences, faulty: Sequences, *, mask: Tensor | None = None, beta: float = 0.1) -> Comparison:
    r"""Compute Direct Preference Optimization, \(-\log\sigma(\beta(\Delta^+ - \Delta^-))\) with log-ratios Δ.

    Eq. (7) of [Direct Preference Optimization](https://huggingface.co/papers/2305.18290). With several faults, the
    mean over them.

    Args:
        correct (`Sequences`): shape `[P]`, with a reference.
        faulty (`Sequences`): shape `[P, K]`, with a reference.
        mask (`Tensor`, *optional*): shape `[P, K]`, bool, false where a pair has fewer faults; values there are
            ignored, but must be finite.
        beta (`float`, *optional*, defaults to `0.1`): per nat; the scale of the rewards.

    Returns:
        [`Comparison`].

    Example:

    ```python
    >>> same = Sequences(torch.tensor([-3.0]), torch.tensor([2]), torch.tensor([-3.0]))
    >>> dpo(same, Sequences(*(tensor.unsqueeze(1) for tensor in same))).loss  # log 2
    tensor([0.6931])

    ```
    """
    return _pairwise(beta * correct.log_ratios(), beta * faulty.log_ratios(), mask)


def dpo_norm(correct: Sequences, faulty: Sequences, *, mask: Tensor | None = None, beta: float = 2.0) -> Comparison:
    """Compute [`dpo`] with means over tokens instead of sums, so that length does not matter.

    Released faulty answers of IterKD are 45 % shorter than correct ones, so a sum would reward short answers. Length
    normalization as in Eq. (4) of [SimPO](https://huggingface.co/papers/2405.14734), with DPO's reference kept.

    Args:
        correct (`Sequences`): shape `[P]`, with a reference.
        faulty (`Sequences`): shape `[P, K]`, with a reference.
        mask (`Tensor`, *optional*): shape `[P, K]`, as in [`dpo`].
        beta (`float`, *optional*, defaults to `2.0`): per nat and token.

    Returns:
        [`Comparison`].
    """
    return _pairwise(beta * _mean_log_ratios(correct), beta * _mean_log_ratios(faulty), mask)


def simpo(
    correct: Sequences, faulty: Sequences, *, mask: Tensor | None = None, beta: float = 2.0, margin: float = 1.0
) -> Comparison:
    r"""Compute \(-\log\sigma(r^+ - r^- - \mathrm{margin})\) with rewards \(r = \beta\log\pi(y|x)/|y|\): no reference.

    Eq. (6) of [SimPO](https://huggingface.co/papers/2405.14734), whose gamma is the margin; half of beta, as
    recommended there. With several faults, the mean over them.

    Args:
        correct (`Sequences`): shape `[P]`.
        faulty (`Sequences`): shape `[P, K]`.
        mask (`Tensor`, *optional*): shape `[P, K]`, as in [`dpo`].
        beta (`float`, *optional*, defaults to `2.0`): per nat and token.
        margin (`float`, *optional*, defaults to `1.0`): target difference of the rewards.

    Returns:
        [`Comparison`].
    """
    correct_reward, faulty_reward = (beta * answers.log_probs / answers.lengths for answers in (correct, faulty))
    return _pairwise(correct_reward, faulty_reward, mask, margin)


def infonce(correct: Sequences, faulty: Sequences, *, mask: Tensor | None = None, beta: float = 2.0) -> Comparison:
    r"""Compute \(-\log(e^{r^+} / (e^{r^+} + \sum_k e^{r^-_k}))\): identify the correct answer among all.

    Eq. (4) of [Contrastive Predictive Coding](https://huggingface.co/papers/1807.03748), with the rewards of
    [`dpo_norm`] as scores; equal to [`dpo_norm`] where there is one fault.

    Args:
        correct (`Sequences`): shape `[P]`, with a reference.
        faulty (`Sequences`): shape `[P, K]`, with a reference.
        mask (`Tensor`, *optional*): shape `[P, K]`, as in [`dpo`].
        beta (`float`, *optional*, defaults to `2.0`): per nat and token; the inverse temperature of the softmax.

    Returns:
        [`Comparison`].
    """
    correct_reward, faulty_reward = beta * _mean_log_ratios(correct), beta * _mean_log_ratios(faulty)
    negatives = faulty_reward if mask is None else faulty_reward.masked_fill(~mask, -math.inf)
    scores = torch.cat([correct_reward.unsqueeze(1), negatives], dim=1)
    return Comparison.of(scores.logsumexp(dim=1) - correct_reward, correct_reward, faulty_reward, mask)


def unlikelihood(token_log_probs: Tensor, mask: Tensor) -> Tensor:
    r"""Compute the mean over an answer's tokens of \(-\log(1 - p(y_t))\), which needs no correct answer.

    Eq. (2) of [Neural Text Generation with Unlikelihood Training](https://huggingface.co/papers/1908.04319), with all
    tokens of a faulty answer as negative candidates. Departure: where p is within 1e-5 of 1, the authors' code has no
    gradient; here the slope stays at its value at that point.

    Args:
        token_log_probs (`Tensor`): shape `[..., T]`, in nats, at most 0.
        mask (`Tensor`): shape `[..., T]`, bool, true at the answer's tokens.

    Returns:
        Shape `[...]`, in nats; 0 for an answer without tokens.

    Example:

    ```python
    >>> unlikelihood(torch.tensor([[0.5, 0.9]]).log(), torch.tensor([[True, False]]))  # log 2
    tensor([0.6931])

    ```
    """
    clamped = token_log_probs.clamp(max=_ALMOST_SURE)
    with_slope = token_log_probs + (clamped - token_log_probs).detach()
    terms = -log1mexp(with_slope.masked_fill(~mask, -1.0)).masked_fill(~mask, 0.0)
    return terms.sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)


def log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x < 0, accurate at both ends.

    Mächler, [Accurately computing log(1 - exp(-|a|))](https://cran.r-project.org/web/packages/Rmpfr/vignettes/log1mexp-note.pdf).

    Example:

    ```python
    >>> log1mexp(torch.tensor([-1e-4, -20.0]))
    tensor([-9.2104e+00, -2.0612e-09])

    ```
    """
    near = x > -math.log(2.0)
    # `where` passes gradients through both branches, so both must have finite slopes everywhere.
    close, far = torch.where(near, x, -1.0), torch.where(near, -1.0, x)
    return torch.where(near, torch.log(-torch.expm1(close)), torch.log1p(-torch.exp(far)))


def mean_over_faults(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average `[P, K]` over each pair's faults; 0 for a pair without any."""
    if mask is None:
        mask = torch.ones_like(values, dtype=torch.bool)
    return values.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _pairwise(correct: Tensor, faulty: Tensor, mask: Tensor | None, margin: float = 0.0) -> Comparison:
    losses = -logsigmoid(correct.unsqueeze(1) - faulty - margin)
    return Comparison.of(mean_over_faults(losses, mask), correct, faulty, mask)


def _mean_log_ratios(answers: Sequences) -> Tensor:
    return answers.log_ratios() / answers.lengths
