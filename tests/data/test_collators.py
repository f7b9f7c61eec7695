"""Padding by lengths instead of ids, and padding-free batches."""

import copy
from typing import Any

import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trl_akd.data.collators import DataCollatorForDistillation, sample_ids_from_position_ids

PAD = 9  # also the EOS of the rows below
ROWS = [
    {"input_ids": [1, 2, 3, PAD], "labels": [-100, -100, 3, PAD]},
    {"input_ids": [4, 5, 6, 7, 8, PAD], "labels": [-100, 5, 6, 7, 8, PAD]},
    {"input_ids": [PAD, PAD, 1], "labels": [-100, -100, 1]},
]


@pytest.mark.parametrize("multiple", [None, 1, 4, 8])
def test_batch_contains_the_rows(multiple: int | None) -> None:
    batch = DataCollatorForDistillation(PAD, with_prompts=True, pad_to_multiple_of=multiple)(ROWS)
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    width = batch["input_ids"].shape[1]
    assert width >= 6
    assert width % (multiple or 6) == 0
    assert width < 6 + (multiple or 1)
    for index, row in enumerate(ROWS):
        length = len(row["input_ids"])
        seen = batch["attention_mask"][index].bool()
        assert seen.tolist() == [True] * length + [False] * (width - length)
        assert batch["input_ids"][index][seen].tolist() == row["input_ids"]
        assert batch["input_ids"][index][~seen].tolist() == [PAD] * (width - length)
        assert batch["labels"][index].tolist() == row["labels"] + [-100] * (width - length)


def test_prompts_are_padded_on_the_left() -> None:
    batch = DataCollatorForDistillation(PAD, with_prompts=True)(ROWS)
    assert batch["prompts"].tolist() == [[1, 2], [PAD, 4], [PAD, PAD]]
    assert batch["prompt_attention_mask"].tolist() == [[1, 1], [0, 1], [1, 1]]


def test_without_prompts_and_untouched_rows() -> None:
    rows = copy.deepcopy(ROWS)
    assert list(DataCollatorForDistillation(PAD)(rows)) == ["input_ids", "attention_mask", "labels"]
    assert rows == ROWS


@pytest.mark.parametrize("labels", [[1, 2], [-100, -100]])
def test_rows_without_a_prompt(labels: list[int]) -> None:
    rows = [{"input_ids": [1, 2], "labels": labels}]
    assert DataCollatorForDistillation(PAD)(rows)["labels"].tolist() == [labels]
    with pytest.raises(ValueError, match="no completion can be generated for it"):
        DataCollatorForDistillation(PAD, with_prompts=True)(rows)


def test_packed_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="packed, and with padding"):
        DataCollatorForDistillation(PAD)([ROWS[0] | {"seq_lengths": [1, 3]}])


def test_sample_ids_of_a_packed_batch() -> None:
    packed: list[dict[str, Any]] = [
        {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, 3, -100, 5], "seq_lengths": [3, 2]},
        {"input_ids": [6, 7], "labels": [-100, 7], "seq_lengths": [2]},
    ]
    batch = DataCollatorForLanguageModeling(pad_token_id=PAD, padding_free=True)(packed)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, 5, -100, 7]]
    assert sample_ids_from_position_ids(batch["position_ids"]).tolist() == [[0, 0, 0, 1, 1, 2, 2]]


def test_sample_ids_continue_over_rows() -> None:
    position_ids = torch.tensor([[0, 1, 0, 1, 2], [0, 0, 1, 2, 3]])
    assert sample_ids_from_position_ids(position_ids).tolist() == [[0, 0, 1, 1, 1], [2, 3, 3, 3, 3]]
