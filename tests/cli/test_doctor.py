"""`trl-akd doctor`: the report, JSON, and errors before anything is traced."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from trl_akd.cli import main
from trl_akd.cli.recipes import RECIPES


@pytest.fixture
def recipe(settings: dict[str, Any], tmp_path: Path):
    def write(**values: Any) -> str:
        merged = {key: value for key, value in {**settings, "max_length": 64, **values}.items() if value is not None}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(merged))
        return str(path)

    return write


QUICK = ("--preflight", "false")


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["doctor", *argv]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_report_has_all_parts(recipe: Any, capsys: pytest.CaptureFixture[str]):
    out = run(
        capsys, "--config", recipe(use_cpu=None), "--gpu", "t4", "--num_rows", "100", "--max_steps", "-1", *QUICK
    )
    for text in (
        "Student ",
        "Teacher ",
        "optimizer states",
        "loss buffers",
        "Fits: the peak of",
        "student's backward",
    ):
        assert text in out
    assert "1 x t4, one process" in out and "of 15.0 GiB can hold tensors" in out
    assert "tokens per second" in out and "hidden states in bfloat16" in out
    assert "Every row has 64 tokens" in out


def test_json_has_bytes_and_seconds(recipe: Any, capsys: pytest.CaptureFixture[str]):
    zero = ["--accelerate_config", "zero3", "--num_gpus", "2"]
    found = json.loads(run(capsys, "--config", recipe(use_cpu=None), "--gpu", "t4", *zero, "--json", "true", *QUICK))
    assert found["fits"] is True and found["first_failure"] is None
    assert found["parallelism"] == "ZeRO-3" and found["gpu"]["gpus"] == 2
    assert found["steps"] == 2 and found["seconds"] == pytest.approx(2 * found["seconds_per_step"]["total"])
    assert found["peak"]["bytes"] == max(phase["total"] for phase in found["memory_bytes"].values())


def test_a_run_that_does_not_fit_names_the_phase_and_the_changes(recipe: Any, capsys: pytest.CaptureFixture[str]):
    tight = ["--gpu", "t4", "--gpu_memory_gb", "1.054"]
    out = run(capsys, "--config", recipe(use_cpu=None, per_device_train_batch_size=64), *tight, *QUICK)
    assert "is the first phase that runs out of memory" in out and "Change, in this order:" in out
    assert "gradient_checkpointing: true" in out


def test_a_single_target_module_of_lora_is_a_name(recipe: Any, capsys: pytest.CaptureFixture[str]):
    lora = recipe(use_cpu=None, use_peft=True, lora_r=4, lora_target_modules=["q_proj"])
    found = json.loads(run(capsys, "--config", lora, "--gpu", "t4", "--json", "true", *QUICK))
    assert found["student"]["trainable"] == 2 * 2 * 4 * 32  # two layers, two matrices


def test_cpu_runs_are_measured_against_this_machine(recipe: Any, capsys: pytest.CaptureFixture[str]):
    assert "1 x CPU, one process" in run(capsys, "--config", recipe(), *QUICK)


def test_preflight_shows_targets_and_likelihoods(recipe: Any, capsys: pytest.CaptureFixture[str]):
    out = run(
        capsys, "--config", recipe(max_length=200), "--gpu", "t4", "--num_train_epochs", "3", "--max_steps", "-1"
    )
    assert "EOS '<|endoftext|>' (257), padding '<pad>' (256)" in out and "both models share the ids below 320" in out
    assert "First 8 of 8 rows: Kept 8 of 8 rows" in out and "targets: mean " in out
    assert re.search(r"\n      ### Response:\n    \| def f\(x\):\n    \|     return x \+ \d<\|endoftext\|>", out)
    assert re.search(r"in nats: student \d\.\d+, teacher \d\.\d+", out)
    assert "12 steps: " in out and "Memory is that of rows of 177 tokens" in out


def test_preflight_warns_of_a_loss_that_is_not_finite(recipe: Any, capsys: pytest.CaptureFixture[str]):
    overflowing = recipe(max_length=200, divergence="abkd", divergence_kwargs={"alpha": -30, "beta": -30})
    found = json.loads(run(capsys, "--config", overflowing, "--json", "true"))["preflight"]
    assert re.search(r"the divergence 'abkd' with .* is not finite", found["warnings"][0])
    assert found["student_nll"] is None and found["num_rows"] == 8


def test_preflight_without_weights_and_with_long_rows(recipe: Any, capsys: pytest.CaptureFixture[str]):
    short = ["--with_weights", "false", "--max_length", "160", "--json", "true"]
    found = json.loads(run(capsys, "--config", recipe(), *short))["preflight"]
    assert found["student_nll"] is None and "load the weights by" in found["skipped"][0]
    assert found["num_rows"] == 8 and found["longest"] == 160
    assert any("100% of the completions are truncated; raise `max_length`" in text for text in found["warnings"])
    assert any("no target of the batch is EOS" in text for text in found["warnings"])


def test_preflight_says_what_it_skips(recipe: Any, capsys: pytest.CaptureFixture[str]):
    out = run(capsys, "--config", recipe(dataset_name="nowhere/at-all"), "--gpu", "t4")
    assert "Skipped: models and data (The dataset 'nowhere/at-all'" in out and "Every row has 64 tokens" in out


METHODS = {"plan_weight": "codeplan", "contrastive_weight": "iterkd", "beta_strategy": "akd"}


@pytest.mark.parametrize("field", METHODS)
def test_the_method_is_the_one_with_the_fields(field: str):
    from trl_akd.cli.doctor import _find_method
    from trl_akd.cli.recipes import Recipe

    assert _find_method(Recipe(None, {"model_name_or_path": "x", field: 0}), []).name == METHODS[field]
    assert _find_method(Recipe(None, {"model_name_or_path": "x"}), [f"--{field}", "0"]).name == METHODS[field]
    assert _find_method(Recipe(None, {field: 0}), ["--method=iterkd"]).name == "iterkd"


BAD: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "unknown GPU": ({}, ["--gpu", "h1000"], "`gpu` is 'h1000', which is not known; did you mean 'h100'?"),
    "no memory": ({}, ["--gpu", "t4", "--gpu_memory_gb", "0"], "`gpu_memory_gb` is 0.0; give a positive number"),
    "empty batch": ({"per_device_train_batch_size": 0}, [], "`per_device_train_batch_size` is 0; give a number of at"),
    "no micro-batch": (
        {"gradient_accumulation_steps": 0},
        [],
        "`gradient_accumulation_steps` is 0; give a number of at",
    ),
    "too long": ({"max_length": 100_000}, [], "`max_length` is 100,000, but"),
    "unreachable": ({"model_name_or_path": "nowhere/at-all"}, [], "needs the architecture of 'nowhere/at-all'"),
    "no student": ({"model_name_or_path": None}, [], "`model_name_or_path` is not set"),
    "utilization": ({}, ["--utilization", "2"], "`utilization` is 2.0; give a fraction above 0 and at most 1"),
    "GPUs": ({}, ["--num_gpus", "2"], "nothing distributes the run; give `--accelerate_config`"),
    "no number of GPUs": ({}, ["--accelerate_config", "zero3"], "give `--num_gpus`"),
    "no such configuration": ({}, ["--accelerate_config", "zero9"], "zero9"),
    "no such method": ({}, ["--method", "sft"], "`method` is 'sft'; choose one of akd, codeplan, iterkd"),
    "unknown field": ({"learning_rat": 1}, [], "did you mean `learning_rate`"),
    "no rows": ({}, ["--num_rows", "0"], "`num_rows` is 0; give at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_named(name: str, recipe: Any, capsys: pytest.CaptureFixture[str]):
    values, flags, message = BAD[name]
    assert main(["doctor", "--config", recipe(**values), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_help_shows_the_fields(capsys: pytest.CaptureFixture[str]):
    out = run(capsys, "--help")
    assert "--gpu_memory_gb" in out and "--per_device_train_batch_size" in out and "examples:" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [path for path in sorted(RECIPES.glob("*/*/config*.yaml")) if not path.is_relative_to(RECIPES / "micro")],
    ids=lambda path: str(path.relative_to(RECIPES)),
)
def test_every_recipe_is_estimated_offline(path: Path, capsys: pytest.CaptureFixture[str]):
    found = json.loads(run(capsys, "--config", str(path), "--gpu", "h200", "--json", "true"))
    assert found["peak"]["bytes"] > found["student"]["bytes"]
    assert found["seconds_per_step"]["total"] > 0
