"""Any loss of the labels' log-probabilities, a chunk of tokens at a time.

A loss on whole sequences is not a sum over tokens, so its gradient is unknown until all of them were seen. Each token
still enters through one number, its log-probability. So the tokens are visited twice: first to compute these numbers,
and then, with the slope of the loss in each as its weight, as a weighted cross-entropy, whose gradient is the loss's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .fused_linear import fused_linear_cross_entropy
from .reduction import IGNORE_INDEX


@dataclass(frozen=True)
class LossOfLogProbs:
    """What [`fused_linear_log_probs`] returns.

    Attributes:
        loss (`Tensor`): shape `[]`, what the function returned, differentiable in hidden states, weight and bias.
        log_probs (`Tensor`): shape `[N]`, in nats, detached, 0 where there is no label.
    """

    loss: Tensor
    log_probs: Tensor


def fused_linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    *,
    labels: Tensor,
    loss: Callable[[Tensor], Tensor],
    bias: Tensor | None = None,
    chunk_size: int | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> LossOfLogProbs:
    """Compute a loss of the labels' log-probabilities without ever holding all logits.

    Costs one matrix product a chunk more than [`fused_linear_cross_entropy`], as a checkpointed projection would. The
    gradient is computed here, not in the backward pass, which suits engines that shard the weight. Tokens in which the
    loss has no slope are visited once.

    Args:
        hidden (`Tensor`): shape `[N, H]`, what the LM head is applied to.
        weight (`Tensor`): shape `[V, H]`. Under DeepSpeed ZeRO-3 the caller gathers it.
        labels (`Tensor`): shape `[N]`, int64, -100 for none.
        loss (`Callable`): from the log-probabilities `[N]` to a differentiable scalar.
        bias (`Tensor`, *optional*): shape `[V]`.
        chunk_size (`int`, *optional*): tokens projected at a time.
        logit_scale (`float`, *optional*, defaults to `1.0`): multiplies `hidden @ weight.T + bias`.
        softcap (`float`, *optional*): `softcap * tanh(logits / softcap)`, after the scale.

    Returns:
        [`LossOfLogProbs`].

    Raises:
        ValueError: an argument out of its range, or tensors whose shapes do not fit together.

    Example:

    ```python
    >>> one, weight = torch.ones(1, 1), torch.tensor([[3.0], [1.0]]).log()
    >>> fused_linear_log_probs(one, weight, labels=torch.tensor([0]), loss=lambda found: found.exp().sum()).loss
    tensor(0.7500)

    ```
    """

    def cross_entropy(token_weights: Tensor) -> tuple[Tensor, Tensor]:
        result = fused_linear_cross_entropy(
            hidden,
            weight,
            token_weights=token_weights,
            labels=labels,
            bias=bias,
            chunk_size=chunk_size,
            logit_scale=logit_scale,
            softcap=softcap,
        )
        return result.loss, result.nll

    with torch.no_grad():
        _, nll = cross_entropy((labels != IGNORE_INDEX).float())
    with torch.enable_grad():
        log_probs = (-nll).requires_grad_()
        value = loss(log_probs)
        [slope] = torch.autograd.grad(value, log_probs)
    value = value.detach()
    if torch.is_grad_enabled():
        pushed, _ = cross_entropy(-slope)
        value = value + (pushed - pushed.detach())
    return LossOfLogProbs(value, log_probs.detach())
