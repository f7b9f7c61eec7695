"""Training from a teacher cache equals that with the teacher in memory, whichever processes write and read it."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from tests import tiny

from .launch import Outcome, run
from .test_invariance import assert_same

pytestmark = pytest.mark.distributed

Train = Callable[..., Outcome]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train once for each distinct set of arguments; with `cached`, first write a cache and train from it."""
    folder = tmp_path_factory.mktemp("cache_invariance")
    student, teacher = tiny.save_pair(folder)

    @cache
    def once(backend: str, batch: int, accumulation: int = 1, cached: bool = True, **settings: Any) -> Outcome:
        name = "-".join(map(str, [backend, batch, accumulation, cached, *settings.values()])).replace("/", "_")
        return run(
            folder / name[-100:],
            backend,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            student=student,
            teacher_model_name_or_path=teacher,
            write_cache=str(folder / name[-100:] / "cache") if cached else None,
            **{"num_train_epochs": 2, "save_steps": 4, "gradient_checkpointing": False, **settings},
        )

    return once


@pytest.mark.parametrize(
    ("backend", "batch", "accumulation"),
    [
        ("zero3", 1, 2),
        *(
            pytest.param(*split, marks=pytest.mark.slow)
            for split in [("single", 1, 4), ("ddp", 2, 1), ("ddp", 1, 2), ("zero2", 2, 1), ("zero3", 2, 1)]
        ),
    ],
)
def test_training_from_a_cache_equals_that_with_the_teacher_in_memory(
    train: Train, backend: str, batch: int, accumulation: int
) -> None:
    found, expected = train(backend, batch, accumulation), train("single", 4, cached=False)
    assert found.record["world_size"] == (1 if backend == "single" else 2)
    assert found.record["sharded"] == (backend == "zero3")
    assert len(expected.series("loss")) == 6
    assert_same(found, expected)
    shards = sorted(path.name for path in (found.checkpoints.parent / "cache").glob("shard-*"))
    assert len(shards) > 2 and shards[-1].startswith(f"shard-{len(shards) - 1:05d}-of-{len(shards):05d}")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["single", "ddp", "zero3"])
def test_resumed_run_equals_the_uninterrupted_run(train: Train, backend: str) -> None:
    batch = 4 if backend == "single" else 2
    unbroken = train(backend, batch)
    checkpoint = str(unbroken.checkpoints / "checkpoint-4")
    assert_same(train(backend, batch, resume=checkpoint, save_strategy="no"), unbroken, last=2)
