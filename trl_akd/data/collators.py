"""Collate rows of token ids to padded or padding-free batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..losses.reduction import IGNORE_INDEX

__all__ = [
    "DataCollatorForDistillation",
    "RowLengths",
    "pad",
    "round_up",
    "sample_ids_from_position_ids",
    "split_samples",
    "used_width",
]


@dataclass
class DataCollatorForDistillation:
    """Pad tokenized rows on the right, and their prompts on the left for generation.

    The attention mask follows from the lengths, not from the ids, so the pad token may equal EOS. The keys are those
    of TRL's GKD collator.

    Args:
        pad_token_id (`int`):
            Id with which `input_ids` and `prompts` are padded.
        with_prompts (`bool`, *optional*, defaults to `False`):
            Whether to return `prompts` and `prompt_attention_mask` for on-policy generation: the `prompt_ids` of each
            row or, without these, the tokens before its first target.
        pad_to_multiple_of (`int`, *optional*):
            Pad `input_ids`, `attention_mask` and `labels` to a multiple of this.

    Raises:
        ValueError: If a row is packed, or has no prompt or target and `with_prompts` is on.

    Example:

    ```python
    >>> collate = DataCollatorForDistillation(pad_token_id=0, with_prompts=True)
    >>> rows = [{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}, {"input_ids": [8, 9], "labels": [-100, 9]}]
    >>> {key: value.tolist() for key, value in collate(rows).items()}  # doctest: +NORMALIZE_WHITESPACE
    {'input_ids': [[5, 6, 7], [8, 9, 0]],
     'attention_mask': [[1, 1, 1], [1, 1, 0]],
     'labels': [[-100, -100, 7], [-100, 9, -100]],
     'prompts': [[5, 6], [0, 8]],
     'prompt_attention_mask': [[1, 1], [0, 1]]}

    ```
    """

    pad_token_id: int
    with_prompts: bool = False
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return int64 tensors of shape [B, T] (`prompts`: [B, longest prompt])."""
        if "seq_lengths" in rows[0]:
            raise ValueError(
                "The rows are packed, and with padding their samples would attend to each other; use TRL's "
                "padding-free collator."
            )
        input_ids = [row["input_ids"] for row in rows]
        width = round_up(max(map(len, input_ids)), self.pad_to_multiple_of or 1)
        batch = {
            "input_ids": pad(input_ids, self.pad_token_id, width),
            "attention_mask": pad([[1] * len(ids) for ids in input_ids], 0, width),
            "labels": pad([row["labels"] for row in rows], IGNORE_INDEX, width),
        }
        return batch | self._prompts(rows) if self.with_prompts else batch

    def _prompts(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        prompts = [row.get("prompt_ids") or row["input_ids"][: _prompt_length(row["labels"])] for row in rows]
        width = max(map(len, prompts))
        return {
            "prompts": pad(prompts, self.pad_token_id, width, left=True),
            "prompt_attention_mask": pad([[1] * len(prompt) for prompt in prompts], 0, width, left=True),
        }


@dataclass
class RowLengths:
    """Add the number of tokens of each row, `row_lengths` [B], to the batches of a padding-free collator.

    Args:
        collator (`Callable`):
            Padding-free collator.
    """

    collator: Callable[[list[Any]], dict[str, Tensor]]

    def __call__(self, rows: list[Any]) -> dict[str, Tensor]:
        """Return the collator's batch and the lengths."""
        return {**self.collator(rows), "row_lengths": torch.tensor([len(row["input_ids"]) for row in rows])}


def sample_ids_from_position_ids(position_ids: Tensor) -> Tensor:
    """Return the number of the sample of each token of a padding-free batch.

    Args:
        position_ids (`Tensor`):
            Shape `[B, T]`, int64, 0 at the first token of each sample.

    Returns:
        `Tensor`: Shape `[B, T]`, int64, 0 for the tokens of the first sample, 1 for those of the second, and so on.

    Example:

    ```python
    >>> sample_ids_from_position_ids(torch.tensor([[0, 1, 2, 0, 1, 0]])).tolist()
    [[0, 0, 0, 1, 1, 2]]

    ```
    """
    return (position_ids == 0).flatten().cumsum(0).view_as(position_ids) - 1


def split_samples(inputs: Mapping[str, Any]) -> Iterator[tuple[int, Tensor]]:
    """Yield the row of each sample in a batch, and the columns of its tokens, on the CPU.

    Args:
        inputs (`Mapping`):
            `input_ids` `[B, T]`, and `attention_mask` of a padded batch or `position_ids` of a packed one.

    Example:

    ```python
    >>> packed = {"input_ids": torch.tensor([[5, 6, 7]]), "position_ids": torch.tensor([[0, 1, 0]])}
    >>> [(row, columns.tolist()) for row, columns in split_samples(packed)]
    [(0, [0, 1]), (0, [2])]

    ```
    """
    input_ids, mask, positions = (inputs.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    assert input_ids is not None
    is_token = torch.ones_like(input_ids, device="cpu") if mask is None else mask.cpu()
    starts = torch.zeros_like(is_token) if positions is None else positions.cpu() == 0
    for row, row_tokens in enumerate(is_token):
        columns = row_tokens.nonzero().squeeze(1)
        cuts = [cut for cut in starts[row, columns].nonzero().squeeze(1).tolist() if cut > 0]
        yield from ((row, part) for part in torch.tensor_split(columns, cuts) if len(part))


def used_width(mask: Tensor) -> Tensor:
    """Return the number of columns of a mask `[B, T]` up to the last one that is used in any row; 0-dim int64.

    Example:

    ```python
    >>> used_width(torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0]]))
    tensor(3)

    ```
    """
    return (mask.any(dim=0) * torch.arange(1, mask.shape[1] + 1, device=mask.device)).max()


def _prompt_length(labels: Sequence[int]) -> int:
    length = next((position for position, label in enumerate(labels) if label != IGNORE_INDEX), 0)
    if length == 0:
        raise ValueError(
            "A row has no prompt before its first target, or no target, so no completion can be generated for it; "
            "prepare the rows with tokenize_dataset."
        )
    return length


def round_up(length: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple


def pad(rows: Sequence[Sequence[int]], value: int, width: int, *, left: bool = False) -> Tensor:
    """Pad rows to `width` with `value`, on the right or on the left; int64 [B, width]."""
    padded = []
    for row in rows:
        filler = [value] * (width - len(row))
        padded.append([*filler, *row] if left else [*row, *filler])
    return torch.tensor(padded, dtype=torch.int64)
