"""Token weights. A loss is `sum(weights * per_token_loss)`; all divisions are in this module.

An optimizer step has one global batch, which may be split into micro-batches, ranks and packed rows:

    items = all ranks' and micro-batches' count_items(labels), summed
    weights = scale(token_weights(labels), items, world_size)
    loss = (weights * per_token_loss).sum()

There are two normalizations:

- `"sequence"`: the mean over a sample's target tokens, then the mean over samples. Eq. (9) of Adaptive Knowledge
  Distillation for code generation (jos.org.cn 7462) divides by the length of the *input*, and Algorithm 1 by no
  length; a mean over target tokens gives divergences of the scale that the paper's regularizer of beta assumes.
- `"token"`: the mean over all target tokens.
"""

from typing import Literal

import torch
from torch import Tensor

Normalization = Literal["sequence", "token"]

IGNORE_INDEX = -100


def token_weights(
    labels: Tensor,
    *,
    normalization: Normalization,
    sample_ids: Tensor | None = None,
    task_weights: Tensor | None = None,
) -> Tensor:
    """Return the weight of each target token, before the division by the global number of items.

    Args:
        labels (`Tensor`): shape `[B, T]`, already shifted, -100 where there is no target.
        normalization (`str`): `"sequence"`, 1 / (target tokens of the sample), or `"token"`, 1.
        sample_ids (`Tensor`, *optional*): shape `[B, T]`, integers that distinguish samples packed in one row. By
            default each row is one sample.
        task_weights (`Tensor`, *optional*): shape `[B, T]`, multiplies the weights, but does not change the number of
            items, so that doubling it doubles the loss.

    Returns:
        Shape `[B, T]`, float32, 0 where there is no target.

    Raises:
        ValueError: the normalization is unknown, or a tensor's shape is not that of `labels`.

    Example:
        >>> labels = torch.tensor([[-100, 5, 6, 7, 8], [-100, -100, -100, 9, 9]])
        >>> token_weights(labels, normalization="sequence")
        tensor([[0.0000, 0.2500, 0.2500, 0.2500, 0.2500],
                [0.0000, 0.0000, 0.0000, 0.5000, 0.5000]])
    """
    _check(labels, normalization, sample_ids=sample_ids, task_weights=task_weights)
    weights = (labels != IGNORE_INDEX).float()
    if normalization == "sequence":
        sample, length = _sample_lengths(labels, sample_ids)
        weights /= length[sample].clamp(min=1)
    return weights if task_weights is None else weights * task_weights.float()


def count_items(labels: Tensor, *, normalization: Normalization, sample_ids: Tensor | None = None) -> Tensor:
    """Count the items that the loss is averaged over: samples with at least one target token, or target tokens.

    Args:
        labels (`Tensor`): shape `[B, T]`, already shifted, -100 where there is no target.
        normalization (`str`): `"sequence"` or `"token"`, as given to [`token_weights`].
        sample_ids (`Tensor`, *optional*): shape `[B, T]`, as given to [`token_weights`].

    Returns:
        Shape `[]`, int64, on the labels' device, to be summed over micro-batches and ranks.

    Raises:
        ValueError: the normalization is unknown, or the shape of `sample_ids` is not that of `labels`.

    Example:
        >>> count_items(torch.tensor([[-100, 5, 6], [-100, -100, -100]]), normalization="sequence")
        tensor(1)
    """
    _check(labels, normalization, sample_ids=sample_ids)
    if normalization == "token":
        return (labels != IGNORE_INDEX).sum()
    _, length = _sample_lengths(labels, sample_ids)
    return (length > 0).sum()


def count_items_by_task(labels: Tensor, task_ids: Tensor, *, tasks: int, normalization: Normalization) -> Tensor:
    """Count the items of each task, so that each task's loss has its own divisor.

    Args:
        labels (`Tensor`): shape `[B, T]`, -100 where there is no target.
        task_ids (`Tensor`): shape `[B]`, int64 below `tasks`.
        tasks (`int`): number of tasks.
        normalization (`str`): `"sequence"` or `"token"`, as given to [`token_weights`].

    Returns:
        Shape `[tasks]`, int64, to be summed over micro-batches and ranks and given to [`scale`] with the task ids.

    Example:
        >>> labels = torch.tensor([[-100, 5, 6], [-100, 7, -100], [-100, 8, 9]])
        >>> count_items_by_task(labels, torch.tensor([0, 0, 1]), tasks=2, normalization="token")
        tensor([3, 2])
    """
    _check(labels, normalization)
    targets = (labels != IGNORE_INDEX).sum(dim=1)
    items = targets if normalization == "token" else (targets > 0).long()
    return torch.zeros(tasks, dtype=torch.int64, device=labels.device).index_add_(0, task_ids, items)


def scale(weights: Tensor, items: Tensor | float, world_size: int, task_ids: Tensor | None = None) -> Tensor:
    """Divide token weights by the global number of items, or by that of their task.

    DDP and DeepSpeed average the gradients over the ranks, where a sum is needed, hence the factor `world_size`.

    Args:
        weights (`Tensor`): from [`token_weights`].
        items (`Tensor` or `float`): [`count_items`], summed over all micro-batches of the step and all ranks. 0 counts
            as 1, since without targets there is no loss to divide.
        world_size (`int`): number of ranks whose gradients are averaged; 1 if `items` was not summed over ranks.
        task_ids (`Tensor`, *optional*): shape `[B]`; required if `items` is from [`count_items_by_task`].

    Returns:
        Shape of `weights`.

    Example:
        >>> scale(torch.tensor([[0.5, 0.5]]), items=4, world_size=2)
        tensor([[0.2500, 0.2500]])
    """
    items = torch.as_tensor(items, device=weights.device).clamp(min=1)
    if task_ids is not None:
        items = items[task_ids].unsqueeze(1)
    return weights * (world_size / items)


def _sample_lengths(labels: Tensor, sample_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return each position's sample [B, T] and each sample's number of target tokens [samples].

    The number of samples is an upper bound that depends on shapes alone, so that no value is read by the host.
    """
    rows = torch.arange(len(labels), device=labels.device).unsqueeze(1)
    if sample_ids is None:
        sample, samples_per_row = rows.expand_as(labels), 1
    else:
        ordered, order = sample_ids.sort(dim=1)
        rank = torch.nn.functional.pad(ordered.diff(dim=1) != 0, (1, 0)).cumsum(dim=1)
        samples_per_row = labels.shape[1]
        sample = rows * samples_per_row + torch.empty_like(order).scatter_(1, order, rank)
    length = torch.zeros(len(labels) * samples_per_row, dtype=torch.int64, device=labels.device)
    return sample, length.index_add_(0, sample.flatten(), (labels != IGNORE_INDEX).long().flatten())


def _check(labels: Tensor, normalization: str, **others: Tensor | None) -> None:
    if normalization not in ("sequence", "token"):
        raise ValueError(f"normalization is {normalization!r}; choose 'sequence' or 'token'.")
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != labels.shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; labels has {list(labels.shape)}.")
