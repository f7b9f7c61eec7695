"""IterKD's loss, reference and cycles do not depend on the split of the work, interruptions and restarts."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny

from .launch import Outcome, run

pytestmark = pytest.mark.distributed

Train = Callable[..., Outcome]
OWN = ("iterkd/supervised_loss", "iterkd/contrastive_loss", "iterkd/margin", "iterkd/accuracy")
COMPARED = ("loss", "grad_norm", *OWN, "entropy", "num_tokens", "eval_loss")


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train once for each distinct set of arguments: pairs of up to three faults, a global batch of 4, two epochs."""
    folder = tmp_path_factory.mktemp("iterkd")
    student, teacher = tiny.save_pair(folder)

    @cache
    def once(
        backend: str = "single", batch: int = 4, accumulation: int = 1, cycles: tuple[int, ...] = (), **settings: Any
    ) -> Outcome:
        name = "-".join(map(str, [backend, batch, accumulation, *cycles, *settings.values()])).replace("/", "_")
        settings = {
            "method": "iterkd",
            "student": student,
            "num_train_epochs": 2,
            "save_steps": 4,
            "gradient_checkpointing": False,
            "contrastive_weight": 1.0,
            "cycles": list(cycles) or None,
            **settings,
        }
        if settings.get("objective") == "akd":
            settings["teacher_model_name_or_path"] = teacher
        return run(
            folder / name[-100:],
            backend,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            **settings,
        )

    return once


def assert_same(found: Outcome, expected: Outcome, last: int | None = None) -> None:
    for key in COMPARED:
        whole = expected.series(key)
        reference = whole[-last:] if last else whole
        assert found.series(key) == pytest.approx(reference, rel=2e-4, abs=2e-6), key
    assert found.parameters.keys() == expected.parameters.keys()
    for name, parameter in expected.parameters.items():
        torch.testing.assert_close(found.parameters[name], parameter, rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize(
    ("backend", "batch", "accumulation"),
    [("single", 1, 4), ("ddp", 1, 2), pytest.param("zero2", 1, 2, marks=pytest.mark.slow), ("zero3", 1, 2)],
)
def test_split_does_not_matter(train: Train, backend: str, batch: int, accumulation: int) -> None:
    found, expected = train(backend, batch, accumulation, objective="akd"), train(objective="akd")
    assert found.record["world_size"] == (1 if backend == "single" else 2)
    assert found.record["sharded"] == (backend == "zero3")
    supervised, contrastive = (expected.series(key) for key in OWN[:2])
    assert expected.series("loss") == pytest.approx(
        [one + other for one, other in zip(supervised, contrastive, strict=True)], rel=2e-4
    )
    assert_same(found, expected)


@pytest.mark.parametrize(
    "backend", ["zero3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp", "zero2"))]
)
def test_cycles_of_one_trainer_are_independent(train: Train, backend: str) -> None:
    """The second cycle equals that of a new trainer, which loads what the first one saved."""
    settings: dict[str, Any] = {"optim_args": "momentum=0.9", "lr_scheduler_type": "linear", "save_strategy": "no"}
    both = train(backend, 1, 2, cycles=(0, 1), **settings)
    saved = both.checkpoints.parent / "student-0"
    second = train(backend, 1, 2, cycles=(1,), load=str(saved), **settings)
    number = len(second.series("loss"))
    assert number == 6
    assert_same(second, both, last=number)
    before, between, after = both.record["written"]
    assert before != between != after
    assert second.record["written"] == [between, after], "generation before there is an engine"
    assert_same(train("single", cycles=(0, 1), **settings), both)


@pytest.mark.parametrize(
    "backend", ["ddp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zero2", "zero3"))]
)
def test_resumed_cycle_equals_the_uninterrupted_one(train: Train, backend: str) -> None:
    """Its reference is the student at the start of the cycle, not at the interruption."""
    unbroken = train(backend, 1, 2, cycles=(1,))
    checkpoint = unbroken.checkpoints.parent / "cycle-1" / "checkpoint-4"
    assert (checkpoint / "iterkd_reference.pt").is_file()
    resumed = train(backend, 1, 2, cycles=(1,), resume=str(checkpoint), save_strategy="no")
    assert len(resumed.series("loss")) == 2
    assert_same(resumed, unbroken, last=2)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["zero2", "zero3"])
def test_engines_of_earlier_cycles_are_released(train: Train, backend: str) -> None:
    """The number of live tensors after five cycles equals that after three."""
    three, five = (train(backend, 2, 1, cycles=tuple(range(cycles)), save_strategy="no") for cycles in (3, 5))
    assert five.record["tensors"] <= three.record["tensors"] + 2


def test_sharded_students_load_without_deepspeed(train: Train) -> None:
    from transformers import AutoModelForCausalLM

    outcome = train("zero3", 1, 2, cycles=(1,))
    folder: Path = outcome.checkpoints.parent / "student-1"
    for name, parameter in AutoModelForCausalLM.from_pretrained(folder).named_parameters():
        torch.testing.assert_close(parameter.data, outcome.parameters[name])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "zero2", "zero3"])
@pytest.mark.parametrize(
    "settings",
    [
        {"contrastive_loss": "dpo"},
        {"contrastive_loss": "simpo", "normalization": "token"},
        {"contrastive_loss": "unlikelihood"},
        {"contrastive_loss": "infonce", "objective": "akd"},
        {"gradient_checkpointing": True},
        {"lora": True},
    ],
    ids=lambda settings: "-".join(f"{key}={value}" for key, value in settings.items()),
)
def test_split_does_not_matter_for(train: Train, backend: str, settings: dict[str, Any]) -> None:
    assert_same(train(backend, 1, 2, **settings), train(**settings))
