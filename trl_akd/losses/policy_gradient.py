r"""Policy gradient of MiniLLM, which minimizes the reverse KL of whole completions.

[MiniLLM](https://huggingface.co/papers/2306.08543): the gradient of \(\mathrm{KL}(q\|p)\) between the distributions of
completions y of length T, sampled from the student, consists of a single-step and a long-term part,

\[ \mathbb E_{y\sim q}\Big[\sum_t \nabla\,\mathrm{KL}\big(q(\cdot|y_{<t})\|p(\cdot|y_{<t})\big)
   - \sum_t R_{t+1}\nabla\log q(y_t|y_{<t})\Big],\qquad R_t=\sum_{s=t}^T r_s,\quad
   r_s=\log\frac{p(y_s|y_{<s})}{q(y_s|y_{<s})}. \]

The first is the gradient of reverse KL at each token, exact over the vocabulary. The second is that of a weighted
cross-entropy of the sampled tokens; [`PolicyGradient`] computes the weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .knobs import as_real, as_share
from .reduction import IGNORE_INDEX

__all__ = ["PolicyGradient"]

_CLIP = 0.2


@dataclass(frozen=True)
class PolicyGradient:
    r"""Settings of MiniLLM's gradient.

    Departures from the paper, explained in docs/methods/akd.md: the single-step part has no importance weights, which
    have an expectation of 1 there; and a return is divided by its number of rewards, \(T-t\), not \(T-t-1\).

    Args:
        teacher_mix (`float`, *optional*, defaults to `0.2`):
            Share \(\alpha\) of the teacher in the distribution \(\alpha p+(1-\alpha)q\) that text is sampled from, in
            [0, 1).
        single_step (`bool`, *optional*, defaults to `True`):
            Whether the reward of a token enters the gradient exactly, as reverse KL. If not, the return
            of each token includes its own reward.
        length_normalization (`bool`, *optional*, defaults to `True`):
            Whether a return is divided by its number of rewards.
        clip (`float`, *optional*, defaults to `0.2`):
            Clip range of the importance weights in the long-term part, in (0, 1), as in PPO: a token does not count
            where its weight is above 1 + clip and its return positive, or below 1 - clip and its return negative.
            `None` for none. Not allowed with `teacher_mix=0`, where all weights are 1.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    >>> student_nll, teacher_nll = torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([[1.0, 3.0, 3.0]])
    >>> PolicyGradient(teacher_mix=0).nll_weights(student_nll, teacher_nll, torch.tensor([[5, 6, 7]]))
    tensor([[-1.5000, -1.0000,  0.0000]])

    ```
    """

    teacher_mix: float = 0.2
    single_step: bool = True
    length_normalization: bool = True
    clip: float | None = _CLIP

    def __post_init__(self) -> None:
        if as_share("teacher_mix", self.teacher_mix) == 1.0:
            raise ValueError("teacher_mix is 1.0, with which no text comes from the student; give less than 1.")
        for name in ("single_step", "length_normalization"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; give True or False.")
        if self.clip is not None and not 0.0 < as_real("clip", self.clip) < 1.0:
            raise ValueError(f"clip is {self.clip}; give a number between 0 and 1, or None.")
        if self.teacher_mix == 0.0 and self.clip != _CLIP:
            raise ValueError(
                f"clip is {self.clip}, which has no effect with teacher_mix 0, where all importance weights are 1; "
                "leave it out, or give a teacher_mix above 0."
            )

    def nll_weights(self, student_nll: Tensor, teacher_nll: Tensor, labels: Tensor) -> Tensor:
        r"""Return the weights of the tokens' NLLs whose gradient is the long-term part, \(w_tR_{t+1}\).

        With `single_step=False`, they are \(w_tR_t\), whose gradient is the whole.

        Args:
            student_nll (`Tensor`): shape `[B, T]`, -log q of the labels in nats, detached.
            teacher_nll (`Tensor`): shape `[B, T]`, -log p of the labels in nats.
            labels (`Tensor`): shape `[B, T]`, int64, sampled tokens, one completion per row; -100 for none.

        Returns:
            Shape `[B, T]`, 0 where there is no label.
        """
        is_target = labels != IGNORE_INDEX
        rewards = (student_nll - teacher_nll).masked_fill(~is_target, 0.0)
        returns, lengths = _sum_from_here(rewards), _sum_from_here(is_target.to(rewards.dtype))
        if self.single_step:
            returns, lengths = returns - rewards, lengths - 1
        if self.length_normalization:
            returns = returns / lengths.clamp(min=1)
        return (self._importance_weights(rewards, returns) * returns).masked_fill(~is_target, 0.0)

    def _importance_weights(self, rewards: Tensor, returns: Tensor) -> Tensor:
        r"""Return the ratio of q to the distribution of the text, \(1/(1-\alpha+\alpha e^r)\), 0 where clipped."""
        if self.teacher_mix == 0.0:
            return torch.ones_like(rewards)
        weights = 1 / (1 - self.teacher_mix + self.teacher_mix * rewards.exp())
        if self.clip is None:
            return weights
        is_clipped = torch.where(returns > 0, weights > 1 + self.clip, weights < 1 - self.clip)
        return weights.masked_fill(is_clipped, 0.0)


def mix_log_probs(student_logits: Tensor, teacher_logits: Tensor, teacher_mix: float) -> Tensor:
    """Return the logarithm of a mixture of both models' distributions.

    Args:
        student_logits (`Tensor`): shape `[..., Vs]`; -inf for tokens that must not be sampled.
        teacher_logits (`Tensor`): shape `[..., Vt]`, of the leading tokens that both models share.
        teacher_mix (`float`): share of the teacher, in [0, 1].

    Returns:
        Shape `[..., Vs]`, -inf where neither model has any probability.

    Example:

    ```python
    >>> student, teacher = torch.tensor([1.0, 1.0, 2.0]).log(), torch.tensor([9.0, 1.0]).log()
    >>> mix_log_probs(student, teacher, teacher_mix=0.5).exp()
    tensor([0.5750, 0.1750, 0.2500])

    ```
    """
    q = torch.softmax(student_logits, dim=-1)
    p = torch.softmax(teacher_logits.to(q), dim=-1)
    p = torch.nn.functional.pad(p, (0, q.shape[-1] - p.shape[-1]))
    return torch.lerp(q, p, teacher_mix).log()


def _sum_from_here(values: Tensor) -> Tensor:
    return values.flip(-1).cumsum(-1).flip(-1)
