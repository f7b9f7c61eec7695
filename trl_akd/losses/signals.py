"""Teacher signals: the three forms of a teacher's output that the fused divergence takes.

- [`DenseSignal`], final hidden states and an LM head, gives every divergence exactly.
- [`SparseSignal`], the most probable tokens and the total probability of all others, gives a divergence between
  distributions in which those others are one outcome. By the data processing inequality, it is a lower bound of
  forward KL, reverse KL and every other f-divergence. The retained probabilities are never renormalized.
- [`SampledSignal`], both together, gives unbiased estimates of forward and reverse KL: the probabilities of a few of
  the other tokens are computed from the hidden states.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from .lm_head import LMHead

NO_TOKEN = -1
"""Entry of `SparseSignal.ids` where there are fewer than K tokens."""


@dataclass(frozen=True)
class DenseSignal:
    """Final hidden states of the teacher, and the LM head that turns them into logits.

    Args:
        hidden (`torch.Tensor` of shape `[..., H]`):
            One hidden state per token.
        head (`LMHead`):
            LM head of the teacher, with full tensors, over at least the vocabulary that both models share.
    """

    hidden: Tensor
    head: LMHead

    def __getitem__(self, index: Any) -> Self:
        """Return the signal of a subset of the tokens."""
        return replace(self, hidden=self.hidden[index])

    def flatten(self) -> Self:
        """Return the signal with a single dimension of tokens."""
        return replace(self, hidden=self.hidden.flatten(0, -2))


@dataclass(frozen=True)
class SparseSignal:
    """Log-probabilities of a few tokens, and the total of all others.

    Args:
        ids (`torch.Tensor` of shape `[..., K]`):
            Distinct token ids, int64, all of them in the vocabulary that both models share; -1 in place of the last
            ids where there are fewer than K.
        log_probs (`torch.Tensor` of shape `[..., K]`):
            The teacher's log-probabilities of these tokens, in nats, not renormalized; -inf where there is no token.
        tail_log_prob (`torch.Tensor` of shape `[...]`):
            Logarithm of the total probability of all other tokens; -inf if it is 0. Compute it from the full
            distribution: if it is small, one minus the sum of the retained probabilities is mostly rounding error.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the distribution; the loss must use the same.

    Example:

    ```python
    >>> signal = SparseSignal.from_logits(torch.tensor([[5.0, 2.0, 2.0, 1.0]]).log(), k=1)
    >>> signal.ids, signal.log_probs.exp(), signal.tail_log_prob.exp()
    (tensor([[0]]), tensor([[0.5000]]), tensor([0.5000]))

    ```
    """

    ids: Tensor
    log_probs: Tensor
    tail_log_prob: Tensor
    temperature: float = 1.0

    @classmethod
    def from_logits(cls, logits: Tensor, k: int, temperature: float = 1.0) -> Self:
        """Keep the `k` most probable tokens of logits `[..., V]` (all of them where `k` exceeds V)."""
        log_probs = torch.log_softmax(
            logits.detach().to(torch.promote_types(logits.dtype, torch.float32)) / temperature, -1
        )
        top, ids = log_probs.topk(min(k, log_probs.shape[-1]), dim=-1)
        return cls(ids, top, log_probs.scatter(-1, ids, -torch.inf).logsumexp(-1), temperature)

    def __getitem__(self, index: Any) -> Self:
        """Return the signal of a subset of the tokens."""
        return replace(
            self, ids=self.ids[index], log_probs=self.log_probs[index], tail_log_prob=self.tail_log_prob[index]
        )

    def flatten(self) -> Self:
        """Return the signal with a single dimension of tokens."""
        return replace(
            self,
            ids=self.ids.flatten(0, -2),
            log_probs=self.log_probs.flatten(0, -2),
            tail_log_prob=self.tail_log_prob.flatten(),
        )


@dataclass(frozen=True)
class SampledSignal:
    """The most probable tokens, and hidden states from which the probabilities of a few other tokens are computed.

    The other tokens, the tail, are sampled, mostly from the student's distribution. The divergence and its gradient
    are unbiased estimates of those of a [`DenseSignal`], and exact if `samples` is at least the size of the tail.

    Args:
        top (`SparseSignal`):
            The most probable tokens of the shared vocabulary, and the total of all others.
        hidden (`torch.Tensor` of shape `[..., H]`):
            One hidden state per token.
        head (`LMHead`):
            LM head of the teacher, with full tensors, over at least the vocabulary that both models share.
        log_normalizer (`torch.Tensor` of shape `[...]`):
            `logsumexp` of the teacher's logits of the shared vocabulary, divided by the temperature of `top`.
        offsets (`torch.Tensor` of shape `[...]`):
            Independent random numbers, uniform in [0, 1), that determine the samples of each token.
        samples (`int`):
            Maximum number of tokens of the tail per position whose probabilities are computed.
    """

    top: SparseSignal
    hidden: Tensor
    head: LMHead
    log_normalizer: Tensor
    offsets: Tensor
    samples: int

    def __getitem__(self, index: Any) -> Self:
        """Return the signal of a subset of the tokens."""
        return replace(
            self,
            top=self.top[index],
            hidden=self.hidden[index],
            log_normalizer=self.log_normalizer[index],
            offsets=self.offsets[index],
        )

    def flatten(self) -> Self:
        """Return the signal with a single dimension of tokens."""
        return replace(
            self,
            top=self.top.flatten(),
            hidden=self.hidden.flatten(0, -2),
            log_normalizer=self.log_normalizer.flatten(),
            offsets=self.offsets.flatten(),
        )

    def log_probs(self, ids: Tensor) -> Tensor:
        """Return the log-probabilities `[N, n]` of tokens `[N, n]`, computed from hidden states `[N, H]`."""
        logits = self.head.logits_of(self.hidden, ids, self.log_normalizer.dtype)
        return logits.div_(self.top.temperature).sub_(self.log_normalizer.unsqueeze(-1))


TeacherSignal = DenseSignal | SparseSignal | SampledSignal
