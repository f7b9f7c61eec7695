"""What the trainer reads from a collated batch."""

from typing import Any

import torch

from ..data.collators import sample_ids_from_position_ids
from ..heads import BACKBONE_INPUTS

Batch = dict[str, Any]


def targets(batch: Batch) -> tuple[Batch, torch.Tensor, torch.Tensor | None]:
    """Split a batch into what the backbone reads, the labels of the next token, and the samples they belong to."""
    backbone_inputs = {key: batch[key] for key in BACKBONE_INPUTS if key in batch}
    sample_ids = None
    if "position_ids" in batch:
        sample_ids = sample_ids_from_position_ids(batch["position_ids"])[:, 1:]
    return backbone_inputs, batch["labels"][:, 1:], sample_ids


def number_of_tokens(batch: Batch) -> int:
    """Count the tokens of a batch, padding excluded."""
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
