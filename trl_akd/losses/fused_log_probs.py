"""Any loss of the labels' log-probabilities, a chunk of tokens at a time.

A loss on whole sequences is not a sum over tokens, so its gradient is unknown until all tokens have been projected.
Each token enters it through one number, its log-probability. Two passes are therefore made: the first computes the
log-probabilities; the second is a cross-entropy weighted by the slope of the loss in each of them, which has the
gradient of the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .fused_linear import FusedCrossEntropy, fused_linear_cross_entropy
from .lm_head import LMHead
from .reduction import IGNORE_INDEX


@dataclass(frozen=True)
class LossOfLogProbs:
    """Result of [`fused_linear_log_probs`].

    Attributes:
        loss (`Tensor`): shape `[]`, what the function returned, differentiable in hidden states and head.
        log_probs (`Tensor`): shape `[...]`, in nats, detached, 0 where there is no label.
    """

    loss: Tensor
    log_probs: Tensor


def fused_linear_log_probs(
    hidden: Tensor,
    head: LMHead,
    *,
    labels: Tensor,
    loss: Callable[[Tensor], Tensor],
    chunk_size: int | None = None,
) -> LossOfLogProbs:
    """Compute a loss of the labels' log-probabilities without ever holding all logits.

    Costs one matrix product per chunk more than [`fused_linear_cross_entropy`], as a checkpointed projection would.
    The gradient is computed here, not in the backward pass, which suits engines that shard the weight. Tokens in which
    the loss has no slope are visited once.

    Args:
        hidden (`Tensor`): shape `[..., H]`, final hidden states.
        head (`LMHead`): the model's. Under DeepSpeed ZeRO-3 the caller gathers it.
        labels (`Tensor`): shape `[...]`, int64, -100 for none.
        loss (`Callable`): from the log-probabilities `[...]` to a differentiable scalar.
        chunk_size (`int`, *optional*): tokens projected at a time.

    Returns:
        [`LossOfLogProbs`].

    Raises:
        ValueError: an argument out of its range, or tensors whose shapes do not fit together.

    Example:

    ```python
    >>> one, head = torch.ones(1, 1), LMHead(torch.tensor([[3.0], [1.0]]).log())
    >>> fused_linear_log_probs(one, head, labels=torch.tensor([0]), loss=lambda found: found.exp().sum()).loss
    tensor(0.7500)

    ```
    """

    def cross_entropy(token_weights: Tensor) -> FusedCrossEntropy:
        return fused_linear_cross_entropy(
            hidden, head, token_weights=token_weights, labels=labels, chunk_size=chunk_size
        )

    with torch.no_grad():
        nll = cross_entropy((labels != IGNORE_INDEX).float()).nll
    with torch.enable_grad():
        log_probs = (-nll).requires_grad_()
        value = loss(log_probs)
        [slope] = torch.autograd.grad(value, log_probs)
    value = value.detach()
    if torch.is_grad_enabled():
        pushed = cross_entropy(-slope).loss
        value = value + (pushed - pushed.detach())
    return LossOfLogProbs(value, log_probs.detach())
