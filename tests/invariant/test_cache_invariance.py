"""Training from a teacher cache does not depend on the split of the work, nor on the processes that write the cache.

From hidden states, it equals training with the teacher in memory; from sparse signals, and with samples of the tail,
that of one process from equal signals.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

from .launch import Outcome, run
from .test_invariance import SPLITS, assert_same

pytestmark = pytest.mark.distributed

Train = Callable[..., Outcome]

CACHES: dict[str, dict[str, Any]] = {  # in several shards each
    "hidden": {"kind": "hidden", "shard_mb": 0.01},
    "sparse": {"kind": "sparse", "top_k": 16, "shard_mb": 0.002},
    "sampled": {"kind": "hidden", "top_k": 16, "shard_mb": 0.01, "tail_samples": 2},
}


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train once for each distinct set of arguments; with a `kind`, first write a cache and train from it."""
    folder = tmp_path_factory.mktemp("cache_invariance")
    student, teacher = tiny.save_pair(folder)

    @cache
    def once(
        kind: str | None, backend: str = "single", batch: int = 4, accumulation: int = 1, **settings: Any
    ) -> Outcome:
        name = "-".join(map(str, [kind, backend, batch, accumulation, *settings.values()])).replace("/", "_")
        if kind is not None:
            settings["write_cache"] = {"folder": str(folder / name[-100:] / "cache"), **CACHES[kind]}
        return run(
            folder / name[-100:],
            backend,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=4,  # on which rounding in the teacher depends
            gradient_accumulation_steps=accumulation,
            student=student,
            teacher_model_name_or_path=teacher,
            **{"num_train_epochs": 2, "save_steps": 4, "gradient_checkpointing": False, **settings},
        )

    return once


def signals(outcome: Outcome) -> dict[str, bytes]:
    """Return the files of the cache that a run has written, but for the manifest, which has measured errors."""
    folder: Path = outcome.checkpoints.parent / "cache"
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize(
    ("kind", "split"),
    [
        ("hidden", "ZeRO-3, 2 accumulated"),
        *(
            pytest.param("hidden", split, marks=pytest.mark.slow)
            for split in SPLITS
            if split != "ZeRO-3, 2 accumulated"
        ),
        *(pytest.param(kind, split, marks=pytest.mark.slow) for kind in ("sparse", "sampled") for split in SPLITS),
    ],
)
def test_split_does_not_matter_for_a_cache(train: Train, kind: str, split: str) -> None:
    backend, batch, accumulation = SPLITS[split]
    found, expected = train(kind, backend, batch, accumulation), train(None if kind == "hidden" else kind)
    assert found.record["world_size"] == (1 if backend == "single" else 2)
    assert found.record["sharded"] == (backend == "zero3")
    assert len(expected.series("loss")) == 6
    assert_same(found, expected)
    shards = sorted(name for name in signals(found) if name.startswith("shard-"))
    assert len(shards) > 2 and shards[-1].startswith(f"shard-{len(shards) - 1:05d}-of-{len(shards):05d}")
    if kind != "hidden":
        assert signals(found) == signals(expected)
        assert expected.series("loss") != pytest.approx(train(None).series("loss"), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["single", "ddp", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("kind", CACHES)
def test_resumed_run_equals_the_uninterrupted_run(train: Train, kind: str, backend: str) -> None:
    batch = 4 if backend == "single" else 2
    unbroken = train(kind, backend, batch)
    checkpoint = str(unbroken.checkpoints / "checkpoint-4")
    resumed = train(kind, backend, batch, resume=checkpoint, save_strategy="no")
    assert len(resumed.series("loss")) == 2
    assert_same(resumed, unbroken, last=2)
