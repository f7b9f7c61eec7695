"""CodePLAN's weights, draws and plan head do not depend on the split of the work or on interruptions."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.codeplan import world

from .launch import Outcome, launch, run

pytestmark = pytest.mark.distributed

Train = Callable[..., Outcome]
TASK_LOSSES = ("codeplan/code_loss", "codeplan/plan_loss")
COMPARED = ("loss", "grad_norm", *TASK_LOSSES, "entropy", "num_tokens", "eval_loss", "eval_codeplan/plan_loss")


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train once for each distinct set of arguments: 11 problems, a global batch of 4, two epochs."""
    folder = tmp_path_factory.mktemp("codeplan")
    student, teacher = tiny.save_pair(folder, student="llama_tied")
    world.t5().save_pretrained(folder / "t5")
    world.roberta_tokenizer().save_pretrained(folder / "t5")

    @cache
    def once(backend: str = "single", batch: int = 4, accumulation: int = 1, **settings: Any) -> Outcome:
        name = "-".join(map(str, [backend, batch, accumulation, *settings.values()])).replace("/", "_")
        settings = {
            "method": "codeplan",
            "student": student,
            "max_length": 256,
            "num_train_epochs": 2,
            "save_steps": 4,
            "plan_weight": 0.3,
            "gradient_checkpointing": False,
            **settings,
        }
        if settings.pop("encoder_decoder", False):
            settings["student"] = str(folder / "t5")
        if "akd" in settings.values():
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
        reference = whole[-last:] if last and not key.startswith("eval") else whole
        assert found.series(key) == pytest.approx(reference, rel=2e-4, abs=1e-6), key
    assert found.record["plans"] == expected.record["plans"]
    # DeepSpeed hands over copies, so that tied tensors are saved once more.
    assert expected.parameters.keys() <= found.parameters.keys()
    for name, parameter in expected.parameters.items():
        torch.testing.assert_close(found.parameters[name], parameter, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("backend", "batch", "accumulation"),
    [("single", 1, 4), ("ddp", 1, 2), ("zero2", 1, 2), ("zero3", 1, 2)],
)
def test_split_does_not_matter(train: Train, backend: str, batch: int, accumulation: int) -> None:
    found, expected = train(backend, batch, accumulation), train()
    assert found.record["world_size"] == (1 if backend == "single" else 2)
    assert found.record["sharded"] == (backend == "zero3")
    code, plan = (expected.series(key) for key in TASK_LOSSES)
    mixed = [0.7 * one + 0.3 * other for one, other in zip(code, plan, strict=True)]
    assert expected.series("loss") == pytest.approx(mixed, rel=2e-4), "logged losses are rounded"
    assert "plan_head.weight" in expected.parameters
    assert not torch.equal(expected.parameters["plan_head.weight"], expected.parameters["model.embed_tokens.weight"])
    assert_same(found, expected)


@pytest.mark.parametrize("backend", ["ddp", pytest.param("zero3", marks=pytest.mark.slow)])
def test_alternation_does_not_depend_on_the_split(train: Train, backend: str) -> None:
    """Two micro-batches per step, one of each task, on one process or two, have the losses of both tasks."""
    found, expected = train(backend, 1, 2, schedule="alternate"), train("single", 2, 2, schedule="alternate")
    code, plan = (expected.series(key) for key in TASK_LOSSES)
    assert expected.series("loss") == pytest.approx(
        [0.7 * one + 0.3 * other for one, other in zip(code, plan, strict=True)], rel=2e-4
    )
    assert_same(found, expected)


@pytest.mark.parametrize(
    "backend", ["zero3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp", "zero2"))]
)
def test_resumed_run_equals_the_uninterrupted_run(train: Train, backend: str) -> None:
    unbroken = train(backend, 1, 2)
    checkpoint = unbroken.checkpoints / "checkpoint-4"  # one step into the second epoch
    assert (checkpoint / "plan_head.safetensors").is_file()
    resumed = train(backend, 1, 2, resume=str(checkpoint), save_strategy="no")
    assert len(resumed.series("loss")) == 2
    assert_same(resumed, unbroken, last=2)


def test_sharded_weights_load_without_deepspeed(train: Train) -> None:
    from transformers import AutoModelForCausalLM

    from trl_akd.codeplan.plan_head import load_plan_head, plan_head_of

    outcome = train("zero3", 1, 2)
    folder: Path = outcome.checkpoints / "checkpoint-6"
    model = AutoModelForCausalLM.from_pretrained(folder)
    load_plan_head(model, str(folder))
    torch.testing.assert_close(plan_head_of(model).weight.data, outcome.parameters["plan_head.weight"])


@pytest.mark.slow
def test_model_saved_in_shards_has_a_plan_head_file(train: Train) -> None:
    """Without gathering on save there is no model.safetensors, but a plan head, and the run can be resumed."""
    whole, shards = train("zero3", 1, 2), train("zero3", 1, 2, gather=False)
    assert shards.parameters.keys() == {"plan_head.weight"}
    torch.testing.assert_close(shards.parameters["plan_head.weight"], whole.parameters["plan_head.weight"])
    checkpoint = shards.checkpoints / "checkpoint-4"
    assert (checkpoint / "plan_head.safetensors").is_file()
    resumed = train("zero3", 1, 2, gather=False, resume=str(checkpoint), save_strategy="no")
    assert resumed.series("loss") == pytest.approx(whole.series("loss")[-2:], rel=2e-4)
    assert resumed.record["plans"] == whole.record["plans"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "zero2", "zero3"])
@pytest.mark.parametrize(
    "settings",
    [
        {"encoder_decoder": True},
        {"encoder_decoder": True, "gradient_checkpointing": True},
        {"gradient_checkpointing": True},
        {"plan_head": "shared"},
        {"lora": True},
        {"normalization": "token"},
        {"guided_weight": 0.5},
        {"code_objective": "akd"},
        {"code_objective": "akd", "plan_objective": "akd"},
        {"plan_objective": "akd", "plan_head": "shared"},
    ],
    ids=lambda settings: "-".join(f"{key}={value}" for key, value in settings.items()),
)
def test_split_does_not_matter_for(train: Train, backend: str, settings: dict[str, Any]) -> None:
    assert_same(train(backend, 1, 2, **settings), train(**settings))


@pytest.mark.parametrize(
    "backend", ["ddp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zero2", "zero3"))]
)
def test_split_does_not_matter_with_the_mixin(tmp_path: Path, backend: str) -> None:
    """With the mixin, `transformers.Trainer` has the same losses and plan head for any split of a batch of four."""

    def train(backend: str, batch: int, accumulation: int) -> tuple[dict[str, Any], torch.Tensor]:
        folder = tmp_path / f"{backend}-{accumulation}"
        tiny.model("llama_tied").save_pretrained(folder / "student")
        settings = {
            "per_device_train_batch_size": batch,
            "per_device_eval_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        launch(folder, backend, "tests.codeplan.mixin_worker", str(folder))
        [head] = load_file(folder / "head.safetensors").values()
        return json.loads((folder / "losses.json").read_text()), head

    expected, head = train("single", 4, 1)
    found, same = train(backend, 1, 2)
    assert (expected["world_size"], found["world_size"]) == (1, 2)
    assert found["losses"] == pytest.approx(expected["losses"], rel=2e-4)
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=2e-4)
    torch.testing.assert_close(same, head, rtol=1e-4, atol=2e-6)
