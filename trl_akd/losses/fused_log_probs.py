"""Fused computation of any loss of the labels' log-probabilities, a chunk of tokens at a time.

A loss of whole sequences is not a sum over tokens, so its gradient is unknown until all tokens have been projected.
But each token enters it through one number, its log-probability. Two passes are therefore made: the first computes the
log-probabilities; the second is a cross-entropy weighted by the derivative of the loss with respect to each of them,
which has the gradient of the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .fused_linear import fused_linear_cross_entropy
from .lm_head import LMHead
from .reduction import IGNORE_INDEX


@dataclass(frozen=True)
class LossOfLogProbs:
    """Result of [`fused_linear_log_probs`].

    Attributes:
        loss (`Tensor`): shape `[]`, value of the function, differentiable in hidden states and head.
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
    """Compute a loss of the labels' log-probabilities without storing the full logits.

    Needs one more matrix product per chunk than [`fused_linear_cross_entropy`], as a checkpointed projection would.
    The gradient is computed in the forward pass, as engines that shard the weight require. Tokens for which the
    derivative of the loss is 0 are projected only once.

    Args:
        hidden (`Tensor`): shape `[..., H]`, final hidden states.
        head (`LMHead`): LM head of the model. Under DeepSpeed ZeRO-3 the caller gathers it.
        labels (`Tensor`): shape `[...]`, int64, -100 for none.
        loss (`Callable`): function of the log-probabilities `[...]` that returns a differentiable scalar.
        chunk_size (`int`, *optional*): tokens projected at a time.

    Returns:
        [`LossOfLogProbs`].

    Raises:
        ValueError: an argument is out of its range, or the shapes of two tensors do not match.

    Example:

    ```python
    >>> one, head = torch.ones(1, 1), LMHead(torch.tensor([[3.0], [1.0]]).log())
    >>> fused_linear_log_probs(one, head, labels=torch.tensor([0]), loss=lambda found: found.exp().sum()).loss
    tensor(0.7500)

    ```
    """
    found = nll_weights(hidden, head, labels=labels, loss=loss, chunk_size=chunk_size)
    value = found.value
    if torch.is_grad_enabled():
        weighted = fused_linear_cross_entropy(
            hidden, head, token_weights=found.weights, labels=labels, chunk_size=chunk_size
        ).loss
        value = value + (weighted - weighted.detach())
    return LossOfLogProbs(value, found.log_probs)


@dataclass(frozen=True)
class NLLWeights:
    """Result of [`nll_weights`], without gradients.

    Attributes:
        value (`Tensor`): shape `[]`, value of the function.
        weights (`Tensor`): shape `[...]`, negative derivative with respect to each log-probability, 0 where there is
            no label. The weighted sum of the labels' NLLs has the same gradient as the function.
        log_probs (`Tensor`): shape `[...]`, in nats, 0 where there is no label.
    """

    value: Tensor
    weights: Tensor
    log_probs: Tensor


def nll_weights(
    hidden: Tensor,
    head: LMHead,
    *,
    labels: Tensor,
    loss: Callable[[Tensor], Tensor],
    chunk_size: int | None = None,
) -> NLLWeights:
    """Compute a loss of the labels' log-probabilities, and the weights of a cross-entropy with the same gradient.

    This is the first pass of [`fused_linear_log_probs`]. Where the same tokens have another loss, its pass may be the
    second one as well, with these weights added to its own.

    Args:
        hidden (`Tensor`), head (`LMHead`), labels (`Tensor`), loss (`Callable`), chunk_size (`int`, *optional*):
            as in [`fused_linear_log_probs`].

    Returns:
        [`NLLWeights`].
    """
    with torch.no_grad():
        nll = fused_linear_cross_entropy(
            hidden, head, token_weights=(labels != IGNORE_INDEX).float(), labels=labels, chunk_size=chunk_size
        ).nll
    with torch.enable_grad():
        log_probs = (-nll).requires_grad_()
        value = loss(log_probs)
        [slope] = torch.autograd.grad(value, log_probs)
    weights = -slope.masked_fill(labels == IGNORE_INDEX, 0.0)  # so that only tokens with labels are projected again
    return NLLWeights(value.detach(), weights, log_probs.detach())
