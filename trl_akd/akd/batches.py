"""Targets of a collated batch: the tokens that the student must predict, and their weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..data.collators import round_up, sample_ids_from_position_ids
from ..heads import BACKBONE_INPUTS
from ..losses.reduction import IGNORE_INDEX, Normalization, count_items, scale, token_weights

Batch = dict[str, Any]


@dataclass(frozen=True)
class Targets:
    """Inputs, labels and weights of one batch.

    Args:
        inputs (`dict`):
            Inputs of the backbone.
        labels (`torch.Tensor` of shape `[B, T]`):
            Token to predict from each of the first `T` hidden states; -100 for none.
        weights (`torch.Tensor` of shape `[B, T]`):
            Weights of the labels before the division by the number of items.
        items (`torch.Tensor` of shape `[tasks]`):
            Number of items of each task in this batch, by which its loss is divided.
        task_ids (`torch.Tensor` of shape `[B]`):
            Task of each row; 0 where there is only one.
        is_data (`torch.Tensor` of shape `[B]`, *optional*):
            Whether each row has a given text, not one sampled from the student. Defaults to all rows.
    """

    inputs: Batch
    labels: Tensor
    weights: Tensor
    items: Tensor
    task_ids: Tensor
    is_data: Tensor | None = field(default=None, kw_only=True)

    @property
    def teacher_inputs(self) -> Batch:
        """Inputs of the teacher."""
        return self.inputs

    def scaled_weights(self, items: Tensor, ranks: int) -> Tensor:
        """Return the weights divided by the global number of items, for `ranks` whose gradients are averaged."""
        return scale(self.weights, items, ranks, self.task_ids)

    def weight_by_task(self) -> Tensor:
        """Return the sum of the weights of each task: shape `[tasks]`."""
        return torch.zeros_like(self.items, dtype=self.weights.dtype).index_add(0, self.task_ids, self.weights.sum(1))


def causal_targets(batch: Batch, normalization: Normalization) -> Targets:
    """Return the targets of a causal language model: the next token at each position."""
    sample_ids = None
    if "position_ids" in batch:
        sample_ids = sample_ids_from_position_ids(batch["position_ids"])[:, 1:]
    labels = batch["labels"][:, 1:]
    return Targets(
        backbone_inputs(batch),
        labels,
        token_weights(labels, normalization=normalization, sample_ids=sample_ids),
        count_items(labels, normalization=normalization, sample_ids=sample_ids).unsqueeze(0),
        torch.zeros(len(labels), dtype=torch.int64, device=labels.device),
        is_data=batch.get("is_data"),
    )


def without_repeats(batch: Batch, row_numbers: Tensor, own: int) -> Batch:
    """Return a batch in which only the first `own` rows of the dataset count.

    The other rows remain in the batch, because all processes must run the same forward pass, but lose their labels.

    Args:
        batch (`dict`):
            A collated batch.
        row_numbers (`torch.Tensor` of shape `[B, 1]` or `[1, T]`):
            Index, among the rows that were collated, of the row that each row or token comes from.
        own (`int`):
            Number of rows that count.
    """
    repeated = row_numbers >= own
    mask = batch.get("attention_mask")
    tokens = (~repeated).expand_as(batch["input_ids"]) if mask is None else mask * ~repeated
    return {
        **batch,
        "labels": batch["labels"].masked_fill(repeated, IGNORE_INDEX),
        "num_tokens": tokens.sum(),
    }


def grouped_by_length(batches: Sequence[Batch], pad_token_id: int, multiple: int = 1) -> list[Batch]:
    """Return the rows of padded micro-batches in micro-batches of the same sizes, the longest rows first.

    The loss of an optimizer step does not depend on how its rows are divided, but rows of similar length need less
    padding. With the longest rows first, a lack of memory shows at once.

    Args:
        batches (`Sequence[dict]`):
            Micro-batches with `input_ids`, `attention_mask` and `labels` `[B, T]`, padded on the right, and optionally
            `is_data` `[B]`, which is true where it is missing.
        pad_token_id (`int`):
            Token that `input_ids` are padded with.
        multiple (`int`, *optional*, defaults to `1`):
            Number of which the new widths are multiples.

    Example:

    ```python
    >>> masks = torch.tensor([[[1, 1, 1], [1, 0, 0]], [[1, 0, 0], [1, 1, 0]]])
    >>> batches = [{"input_ids": mask * 7, "attention_mask": mask, "labels": mask * 7} for mask in masks]
    >>> [batch["input_ids"].tolist() for batch in grouped_by_length(batches, pad_token_id=0)]
    [[[7, 7, 7], [7, 7, 0]], [[7], [7]]]

    ```
    """
    sizes = [len(batch["labels"]) for batch in batches]
    lengths, order = torch.cat([batch["attention_mask"].sum(dim=1) for batch in batches]).sort(
        descending=True, stable=True
    )
    longest = torch.stack([rows[0] for rows in torch.split(lengths, sizes)]).tolist()
    width = max(batch["labels"].shape[1] for batch in batches)
    fillers = {"input_ids": pad_token_id, "attention_mask": 0, "labels": IGNORE_INDEX}
    columns = {
        name: torch.cat([pad(batch[name], (0, width - batch[name].shape[1]), value=filler) for batch in batches])
        for name, filler in fillers.items()
    }
    grouped: list[Batch] = [
        {name: column[rows, : round_up(length, multiple)] for name, column in columns.items()}
        for rows, length in zip(torch.split(order, sizes), longest, strict=True)
    ]
    if any("is_data" in batch for batch in batches):
        default = [torch.ones_like(batch["labels"][:, 0], dtype=torch.bool) for batch in batches]
        is_data = torch.cat([batch.get("is_data", ones) for batch, ones in zip(batches, default, strict=True)])
        for batch, rows in zip(grouped, torch.split(order, sizes), strict=True):
            batch["is_data"] = is_data[rows]
    return grouped


def row_numbers(batch: Batch, rows: int) -> Tensor:
    """Return the index, among `rows` collated rows, of each row `[B, 1]`, or of each token `[1, T]` without padding.

    Where a row gives several examples, these are ordered by task, then by row.
    """
    labels = batch["labels"]
    if "row_lengths" not in batch:
        return (torch.arange(len(labels), device=labels.device) % rows).unsqueeze(1)
    lengths = batch["row_lengths"]
    numbers = torch.repeat_interleave(torch.arange(rows, device=labels.device), lengths)
    return pad(numbers, (0, labels.shape[1] - len(numbers)), value=rows).unsqueeze(0)


def backbone_inputs(batch: Batch) -> Batch:
    """Return the inputs of the backbone in a batch."""
    return {key: batch[key] for key in BACKBONE_INPUTS if key in batch}


def number_of_tokens(batch: Batch) -> Tensor | int:
    """Count the tokens of a batch, without padding and without rows that are in other batches as well."""
    if "num_tokens" in batch:
        return batch["num_tokens"]  # type: ignore[no-any-return]
    return batch["attention_mask"].sum() if "attention_mask" in batch else int(batch["input_ids"].numel())
