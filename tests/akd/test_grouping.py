"""Rows of similar length share a micro-batch of an optimizer step, which changes no number."""

import pytest
import torch
from datasets import Dataset

from tests import tiny
from trl_akd import AKDTrainer
from trl_akd.akd.batches import grouped_by_length
from trl_akd.data.collators import DataCollatorForDistillation

PAD = 256


def collated(lengths, multiple=None):
    """Return micro-batches of rows whose tokens are their lengths."""
    collate = DataCollatorForDistillation(PAD, pad_to_multiple_of=multiple)
    return [collate([{"input_ids": [n] * n, "labels": [-100] + [n] * (n - 1)} for n in each]) for each in lengths]


def rows_of(batches):
    """Return the tokens and labels of all rows, without padding."""
    found = []
    for batch in batches:
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            length = int(mask.sum())
            assert mask[:length].all() and (ids[length:] == PAD).all() and (labels[length:] == -100).all()
            found.append((ids[:length].tolist(), labels[:length].tolist()))
    return sorted(found)


@pytest.mark.parametrize(
    "lengths", [[[3, 9], [8, 2]], [[5, 5], [5, 5]], [[1, 7, 2], [6], [9, 4]], [[2], [9]], [[4, 3]]]
)
@pytest.mark.parametrize("multiple", [None, 8])
def test_rows_are_kept_and_padded_less(lengths, multiple):
    before = collated(lengths, multiple)
    after = grouped_by_length(before, PAD, multiple or 1)
    assert rows_of(after) == rows_of(before)
    assert [len(batch["labels"]) for batch in after] == [len(each) for each in lengths]
    widths = [batch["labels"].shape[1] for batch in after]
    assert widths == sorted(widths, reverse=True)
    assert all(width % (multiple or 1) == 0 for width in widths)
    padded = [sum(batch["input_ids"].numel() for batch in batches) for batches in (before, after)]
    assert padded[1] <= padded[0] or len(set(map(len, lengths))) > 1


@pytest.mark.parametrize(
    "settings",
    [{}, {"normalization": "token", "ce_weight": 0.5}, {"lmbda": 0.5, "max_new_tokens": 5, "pad_to_multiple_of": 8}],
    ids=str,
)
def test_grouping_changes_no_number(trainer, monkeypatch, settings):
    found = []
    for groups in (True, False):
        monkeypatch.setattr(AKDTrainer, "_may_regroup", groups)
        made = trainer(
            train_dataset=tiny.rows(16),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            optim="sgd",
            **settings,
        )
        sizes = []
        collect = made.compute_loss

        def compute_loss(model, inputs, *args, collect=collect, sizes=sizes, **kwargs):
            sizes.append(inputs["input_ids"].numel())
            return collect(model, inputs, *args, **kwargs)

        monkeypatch.setattr(made, "compute_loss", compute_loss)
        made.train()
        logs = [
            {key: log[key] for key in ("loss", "kd/divergence", "num_tokens")} for log in made.state.log_history[:2]
        ]
        found.append((sum(sizes), logs, torch.cat([weight.flatten() for weight in made.model.parameters()])))
    (grouped, logs, weights), (ungrouped, expected_logs, expected) = found
    assert grouped < ungrouped
    for log, expected_log in zip(logs, expected_logs, strict=True):
        assert log == pytest.approx(expected_log, rel=1e-5)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)


class WithNumbers(DataCollatorForDistillation):
    """Collator of a user that adds a column."""

    def __call__(self, rows):
        return {**super().__call__(rows), "numbers": torch.arange(len(rows))}


def test_rows_of_a_custom_collator_and_experts_stay_in_their_batch(trainer):
    def collate(rows):
        return DataCollatorForDistillation(PAD)(rows)

    ids = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}] * 8
    made = trainer(data_collator=collate, train_dataset=Dataset.from_list(ids))
    assert not made._may_regroup
    made = trainer(data_collator=WithNumbers(PAD), train_dataset=Dataset.from_list(ids))
    batches, _ = made.get_batch_samples(iter([made.data_collator(ids[:2])] * 2), 2, torch.device("cpu"))
    assert all("numbers" in batch for batch in batches)
    made = trainer()
    assert made._may_regroup
    made.aux_loss_enabled = True
    assert not made._may_regroup
    assert not trainer(per_device_train_batch_size=1)._may_regroup


def test_widths_are_multiples_of_the_collators(trainer):
    collate = DataCollatorForDistillation(PAD, pad_to_multiple_of=8)
    rows = [{"input_ids": [5] * length, "labels": [-100] + [5] * (length - 1)} for length in (3, 10, 4, 11)]
    made = trainer(data_collator=collate, train_dataset=Dataset.from_list(rows))
    batches, _ = made.get_batch_samples(iter([collate(rows[:2]), collate(rows[2:])]), 2, torch.device("cpu"))
    assert [batch["labels"].shape[1] for batch in batches] == [16, 8]
