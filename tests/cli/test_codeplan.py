"""`trl-akd codeplan` from its arguments to its output files, with a tiny student."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.codeplan import world
from trl_akd.cli import main
from trl_akd.codeplan.plan_head import load_plan_head, plan_head_of


@pytest.fixture
def codeplan(settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    rows = tmp_path / "plans.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in world.problems(10)))
    del settings["teacher_model_name_or_path"]
    return {**settings, "dataset_name": str(rows)}


def test_run_writes_a_student_with_its_plan_head(codeplan: dict[str, Any], recipe, tmp_path: Path):
    path = recipe({**codeplan, "eval_strategy": "steps", "eval_steps": 1})
    assert main(["codeplan", "--config", path, "--plan_weight", "0.3"]) == 0
    run = tmp_path / "run"
    student = AutoModelForCausalLM.from_pretrained(run)
    load_plan_head(student, str(run))
    assert not plan_head_of(student).weight.equal(student.get_output_embeddings().weight)
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert len([log for log in history if "codeplan/plan_loss" in log]) == 2
    assert len([log for log in history if "eval_codeplan/code_loss" in log]) == 3
    card = (run / "README.md").read_text()
    for fact in ("CodePLAN", "`0.3`", "plans.jsonl", Path(path).name):
        assert fact in card


def test_resume(codeplan: dict[str, Any], recipe, tmp_path: Path):
    path = recipe({**codeplan, "save_strategy": "steps", "save_steps": 1})
    assert main(["codeplan", "--config", path]) == 0
    assert main(["codeplan", "--config", path, "--max_steps", "3", "--resume_from_checkpoint", "true"]) == 0
    assert (tmp_path / "run" / "checkpoint-3" / "plan_head.safetensors").is_file()


def test_impossible_resume(codeplan: dict[str, Any], recipe, capsys: pytest.CaptureFixture[str]):
    path = recipe({**codeplan, "save_strategy": "steps", "save_steps": 1, "plan_head": "shared"})
    assert main(["codeplan", "--config", path]) == 0
    assert main(["codeplan", "--config", path, "--plan_head", "separate", "--resume_from_checkpoint", "true"]) != 0
    assert "has no plan_head.safetensors: it was trained with plan_head='shared'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--plan_weight", "1.5"], "`plan_weight` is 1.5"),
        (["--plan_weihgt", "0.5"], "plan_weight"),
        (["--dataset_name", "missing.jsonl"], "missing.jsonl"),
        (["--packing", "true"], "`packing` is on"),
        (["--max_length", "8"], "Every row of the train dataset is too long"),
    ],
)
def test_error_messages(codeplan: dict[str, Any], recipe, capsys: pytest.CaptureFixture[str], flags, message):
    assert main(["codeplan", "--config", recipe(codeplan), *flags]) != 0
    assert message in capsys.readouterr().err


def test_training_of_an_adapter_continues(codeplan: dict[str, Any], recipe, tmp_path: Path):
    path = recipe({**codeplan, "max_steps": 1})
    adapter, again = tmp_path / "run", tmp_path / "again"
    assert main(["codeplan", "--config", path, "--use_peft", "true", "--lora_target_modules", "q_proj"]) == 0
    assert main(["codeplan", "--config", path, "--model_name_or_path", str(adapter), "--output_dir", str(again)]) == 0
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, again))
    assert before.keys() == after.keys()
    assert not any(before[name].equal(after[name]) for name in before if "lora_B" in name)
    assert (again / "plan_head.safetensors").is_file()
