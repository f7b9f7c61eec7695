"""Targets of a collated batch: the tokens that the student must predict, and their weights."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.collators import sample_ids_from_position_ids
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
    """

    inputs: Batch
    labels: Tensor
    weights: Tensor
    items: Tensor
    task_ids: Tensor

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


def row_numbers(batch: Batch, rows: int) -> Tensor:
    """Return the index, among `rows` collated rows, of each row `[B, 1]`, or of each token `[1, T]` without padding.

    Where a row gives several examples, these are ordered by task, then by row.
    """
    labels = batch["labels"]
    if "row_lengths" not in batch:
        return (torch.arange(len(labels), device=labels.device) % rows).unsqueeze(1)
    lengths = batch["row_lengths"]
    numbers = torch.repeat_interleave(torch.arange(rows, device=labels.device), lengths)
    return torch.nn.functional.pad(numbers, (0, labels.shape[1] - len(numbers)), value=rows).unsqueeze(0)


def backbone_inputs(batch: Batch) -> Batch:
    """Return the inputs of the backbone in a batch."""
    return {key: batch[key] for key in BACKBONE_INPUTS if key in batch}


def number_of_tokens(batch: Batch) -> Tensor | int:
    """Count the tokens of a batch, without padding and without rows that are in other batches as well."""
    if "num_tokens" in batch:
        return batch["num_tokens"]  # type: ignore[no-any-return]
    return batch["attention_mask"].sum() if "attention_mask" in batch else int(batch["input_ids"].numel())
