"""What the student thought of all answers when a cycle began: computed once, then read by number."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor

from ..akd.batches import Batch
from .pairs import number_of_answers

__all__ = ["REFERENCE_FILE", "compute_reference", "load_reference", "save_reference"]

REFERENCE_FILE = "iterkd_reference.pt"


def compute_reference(
    pairs: Dataset,
    collate: Callable[[list[Any]], Batch],
    log_probs: Callable[[Batch], Tensor],
    accelerator: Accelerator,
    *,
    batch_size: int,
) -> Tensor:
    """Compute the log-probability of every answer, shared out over the ranks.

    All ranks compute the same number of batches, as a forward pass under ZeRO-3 is collective; where they do not
    divide, the first ones are computed again and not used.

    Args:
        pairs (`Dataset`):
            Rows from [`trl_akd.iterkd.pairs.prepare_pairs`].
        collate (`Callable`):
            From rows to a batch with `answer_ids` `[B]`.
        log_probs (`Callable`):
            From a batch on the device to log-probabilities `[B]`.
        accelerator (`Accelerator`):
            The run's accelerator.
        batch_size (`int`):
            Pairs of a batch.

    Returns:
        `torch.Tensor` of shape `[answers]`, float32, on the device of every rank.
    """
    total = torch.zeros(number_of_answers(pairs), device=accelerator.device)
    batches = _longest_first(pairs, batch_size)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    for first in range(0, len(batches), ranks):
        turn = first + rank
        batch = collate([pairs[index] for index in batches[turn % len(batches)]])
        batch = {key: tensor.to(accelerator.device) for key, tensor in batch.items()}
        found = log_probs(batch)
        if turn < len(batches):
            total[batch["answer_ids"]] = found.to(total.dtype)
    reduced: Tensor = accelerator.reduce(total, "sum")
    return reduced


def save_reference(reference: Tensor, checkpoint: str | Path) -> None:
    """Write the log-probabilities into a checkpoint folder."""
    torch.save(reference.cpu(), Path(checkpoint) / REFERENCE_FILE)


def load_reference(checkpoint: str | Path, answers: int) -> Tensor:
    """Read the log-probabilities of a cycle that was interrupted.

    Raises:
        ValueError: If there are none, or they are those of other pairs.
    """
    path = Path(checkpoint) / REFERENCE_FILE
    if not path.is_file():
        raise ValueError(
            f"`resume_from_checkpoint` is {str(checkpoint)!r}, which has no {REFERENCE_FILE}: its contrastive loss "
            "had no reference; resume with the old `contrastive_loss`, or start the cycle anew."
        )
    reference: Tensor = torch.load(path, map_location="cpu", weights_only=True)
    if len(reference) != answers:
        raise ValueError(
            f"`resume_from_checkpoint` is {str(checkpoint)!r}, whose pairs had {len(reference)} answers, but these "
            f"have {answers}; resume with the old pairs, or start the cycle anew."
        )
    return reference


def _longest_first(pairs: Dataset, batch_size: int) -> list[Sequence[int]]:
    """Return the numbers of the pairs of each batch, so that running out of memory shows at once."""
    lengths = [
        len(prompt) + max(map(len, [completion, *rejected]))
        for prompt, completion, rejected in zip(pairs["prompt"], pairs["completion"], pairs["rejected"], strict=True)
    ]
    order = sorted(range(len(pairs)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
