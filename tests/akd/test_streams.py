"""Streams and datasets of which few rows or none can be used: counts, warnings and errors."""

import logging

import pytest
from datasets import Dataset, IterableDataset

from tests import tiny
from trl_akd.data.collators import DataCollatorForDistillation

LONG = {"prompt": "x" * 100, "completion": "y"}
EMPTY = {"prompt": "x", "completion": ""}
NO_ROWS = tiny.rows(4).to_iterable_dataset().filter(lambda row: False)


def stream(rows, shards=1):
    return Dataset.from_list([dict(row) for row in rows]).to_iterable_dataset(num_shards=shards)


def warnings_of(caplog, level=logging.WARNING):
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == level and record.getMessage().startswith("Stream of")
    ]


@pytest.mark.parametrize("own_collator", [False, True])
@pytest.mark.parametrize(
    ("datasets", "complaint"),
    [
        ({"train_dataset": NO_ROWS}, "the train dataset is a stream without rows"),
        ({"train_dataset": IterableDataset.from_generator(lambda: iter(()))}, "the train dataset is a stream without"),
        ({"eval_dataset": tiny.rows(2).select([])}, "the eval dataset is empty"),
    ],
)
def test_no_rows(trainer, datasets, complaint, own_collator):
    given = {"data_collator": DataCollatorForDistillation(0)} if own_collator else {}
    with pytest.raises(ValueError, match=complaint):
        trainer(**datasets, **given)


@pytest.mark.parametrize("row", [LONG, EMPTY])
@pytest.mark.parametrize(
    "settings", [{}, {"dataloader_num_workers": 1}, {"shuffle_dataset": True}, {"eval_dataset": tiny.rows(2)}]
)
def test_a_training_without_a_batch(trainer, row, settings):
    made = trainer(train_dataset=stream([row] * 3), **settings)
    with pytest.raises(
        ValueError, match=r"no batch, so nothing can be learned \(Kept 0 of 3 rows .*`max_length` \(64\)"
    ):
        made.train()


def test_a_dataset_smaller_than_a_batch(trainer):
    made = trainer(train_dataset=tiny.rows(3), dataloader_drop_last=True)
    with pytest.raises(ValueError, match=r"no batch.*`dataloader_drop_last` is on"):
        made.train()


@pytest.mark.parametrize("row", [LONG, EMPTY])
@pytest.mark.parametrize("named", [False, True])
def test_an_evaluation_without_a_row(trainer, row, named):
    rows = stream([row] * 3)
    made = trainer(
        eval_dataset={"own": rows} if named else rows,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
    )
    complaint = f"the {'eval_own' if named else 'eval'} dataset has no row with a target \\(Kept 0 of 3 rows"
    for evaluate in (made.evaluate, made.train):
        with pytest.raises(ValueError, match=complaint if evaluate == made.evaluate else "no row with a target"):
            evaluate()


@pytest.mark.parametrize("settings", [{}, {"shuffle_dataset": True}, {"gradient_accumulation_steps": 2}])
@pytest.mark.parametrize(("workers", "shards"), [(0, 1), (1, 1), (2, 2), (2, 1)])
def test_dropped_rows_are_counted_once(trainer, caplog, workers, shards, settings):
    rows = [*tiny.rows(9), LONG, EMPTY, EMPTY, LONG, LONG]
    made = trainer(
        train_dataset=stream(rows, shards),
        eval_dataset=stream(rows),
        dataloader_num_workers=workers,
        max_steps=8,
        eval_strategy="steps",
        eval_steps=4,
        **settings,
    )
    made.train()
    counts = "Kept 9 of 14 rows (0 of them truncated); dropped 3 with too long a prompt and 2 without a completion."
    assert sorted(warnings_of(caplog)) == [f"Stream of the {name} dataset: {counts}" for name in ("eval", "train")]


def test_rows_are_counted_after_resuming(trainer, caplog, tmp_path):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}
    rows = [*tiny.rows(9), LONG, EMPTY]
    trainer(train_dataset=stream(rows), **settings, output_dir=str(tmp_path)).train()
    [whole] = warnings_of(caplog)
    caplog.clear()
    trainer(train_dataset=stream(rows), **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert warnings_of(caplog) == [whole]


def test_a_stream_without_dropped_rows_is_no_reason_to_warn(trainer, caplog):
    caplog.set_level(logging.INFO)
    trainer(train_dataset=stream(tiny.rows(8)), max_steps=3).train()
    assert not warnings_of(caplog)
    assert [text.partition(": ")[2][:15] for text in warnings_of(caplog, logging.INFO)] == ["Kept 8 of 8 row"]


def test_a_stream_that_ends_early_is_no_error(trainer):
    """As in `Trainer`, training ends with a stream that cannot be read a second time."""
    rows = iter([dict(row) for row in tiny.rows(12)])
    made = trainer(train_dataset=IterableDataset.from_generator(lambda: rows), max_steps=9)
    assert 0 < made.train().global_step < 9
