"""`trl-akd akd` from its arguments to its output files, with tiny models."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, PreTrainedModel

from trl_akd.cli import main


def history(run: Path) -> list[dict[str, float]]:
    return json.loads((run / "trainer_state.json").read_text())["log_history"]


@pytest.fixture
def no_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)


def test_run_writes_student_history_and_card(settings: dict[str, Any], recipe, tmp_path: Path):
    path = recipe({**settings, "eval_strategy": "steps", "eval_steps": 1})
    assert main(["akd", "--config", path, "--max_steps", "3", "--allow_code_execution"]) == 0
    run = tmp_path / "run"
    student = AutoModelForCausalLM.from_pretrained(run)
    start = AutoModelForCausalLM.from_pretrained(settings["model_name_or_path"])
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), start.parameters(), strict=True))
    logs = history(run)
    assert len([log for log in logs if "kd/beta" in log]) == 3
    assert len([log for log in logs if "eval_kd/forward_kl" in log]) == 4  # each step, and once more at the end
    assert json.loads((run / "all_results.json").read_text())["train_loss"] > 0
    card = (run / "README.md").read_text()
    for fact in (settings["teacher_model_name_or_path"], settings["dataset_name"], path):
        assert f"`{Path(fact).name}`" in card and fact not in card
    assert "trl-akd akd --config recipe.yaml --allow_code_execution\n" in card
    as_run = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (as_run["max_steps"], as_run["eval_strategy"], as_run["eval_steps"]) == (3, "steps", 1)
    assert (as_run["teacher_model_name_or_path"], as_run["output_dir"]) == ("teacher", "run")
    assert as_run.keys() <= settings.keys() | {"eval_strategy", "eval_steps"}, "defaults and consent are left out"


def test_another_divergence(settings: dict[str, Any], recipe, tmp_path: Path):
    path = recipe({**settings, "divergence": "jsd", "divergence_kwargs": {"beta": 0.9}})
    assert main(["akd", "--config", path, "--max_steps", "1", "--divergence_kwargs", '{"beta": 0.2}']) == 0
    [log] = [log for log in history(tmp_path / "run") if "loss" in log]
    assert log["loss"] == pytest.approx(log["kd/divergence"], rel=1e-3)
    assert 0 < log["kd/divergence"] < log["kd/forward_kl"]
    assert "kd/beta" not in log
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| divergence | `jsd` |" in card and "| beta | `0.2` |" in card and "beta_strategy" not in card


@pytest.fixture
def judged(settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    problem = {"task_id": 1, "prompt": "x = 1 #", "test": "assert x == 1"}
    (tmp_path / "one.jsonl").write_text(json.dumps(problem))
    return {
        **settings,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_benchmark": str(tmp_path / "one.jsonl"),
        "eval_prompt_style": "completion",
        "eval_max_new_tokens": 1,
        "allow_code_execution": True,
    }


def test_benchmark_selects_the_best_model(judged: dict[str, Any], recipe, tmp_path: Path):
    best = {"save_strategy": "steps", "save_steps": 1, "metric_for_best_model": "eval_pass@1"}
    assert main(["akd", "--config", recipe({**judged, **best})]) == 0
    assert [log["eval_pass@1"] for log in history(tmp_path / "run") if "eval_pass@1" in log] == [1.0, 1.0, 1.0]
    assert "| one | pass@1 | 1.000 |" in (tmp_path / "run" / "README.md").read_text()
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["best_metric"] == 1.0
    assert state["best_model_checkpoint"].endswith("checkpoint-1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eval_strategy": "no"}, "`eval_strategy` is 'no'; set it"),
        (
            {"eval_benchmark": None, "metric_for_best_model": "eval_pass@1"},
            "no benchmark is run; set `eval_benchmark`",
        ),
        ({"eval_benchmark": "humaneva"}, "did you mean 'humaneval'"),
    ],
)
def test_a_benchmark_that_cannot_be_run(
    change: dict[str, Any], message: str, judged: dict[str, Any], recipe, capsys, no_model_is_loaded
):
    assert main(["akd", "--config", recipe({**judged, **change})]) == 2
    assert message in capsys.readouterr().err


def test_lora_student_without_a_teacher(settings: dict[str, Any], recipe, tmp_path: Path):
    del settings["teacher_model_name_or_path"]
    settings |= {"use_peft": True, "lora_target_modules": "q_proj"}  # one name, which PEFT alone would not find
    assert main(["akd", "--config", recipe(settings)]) == 0
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["target_modules"] == ["q_proj"]


def test_resume_continues(settings: dict[str, Any], recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = recipe({**settings, "save_strategy": "steps", "save_steps": 1})
    assert main(["akd", "--config", path, "--max_steps", "4"]) == 0
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-2"
    other = ["--output_dir", str(tmp_path / "other"), "--max_steps", "4"]
    assert main(["akd", "--config", path, *other, "--resume_from_checkpoint", str(checkpoint)]) == 0
    resumed = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)

    shutil.rmtree(tmp_path / "run" / "checkpoint-3")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    assert main(["akd", "--config", path, "--max_steps", "3", "--resume_from_checkpoint", "true"]) == 0
    assert [log["step"] for log in history(tmp_path / "run") if "loss" in log] == [1, 2, 3]


def test_a_folder_with_a_student_is_named_before_training(
    settings: dict[str, Any], recipe, no_model_is_loaded: None, caplog: pytest.LogCaptureFixture
):
    folder = Path(settings["output_dir"])
    folder.mkdir()
    (folder / "config.json").touch()
    unknown = {"eval_benchmark": "humaneva", "eval_strategy": "steps", "eval_steps": 1}  # ends before training
    assert main(["akd", "--config", recipe({**settings, **unknown})]) == 2
    assert [message for message in caplog.messages if f"{str(folder)!r} has a trained model" in message]


@pytest.fixture
def checkpoint(settings: dict[str, Any], recipe) -> Path:
    """The output folder of a finished run, with a checkpoint."""
    assert (
        main(["akd", "--config", recipe({**settings, "save_strategy": "steps", "save_steps": 2}, "first.yaml")]) == 0
    )
    return Path(settings["output_dir"])


def test_earlier_run_is_not_overwritten(
    checkpoint: Path, settings: dict[str, Any], recipe, capsys: pytest.CaptureFixture[str]
):
    before = {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")}
    assert main(["akd", "--config", recipe(settings)]) == 2
    assert "has checkpoints of an earlier run" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")} == before


def test_resume_with_another_strategy(
    checkpoint: Path, settings: dict[str, Any], recipe, no_model_is_loaded: None, capsys: pytest.CaptureFixture[str]
):
    path = recipe({**settings, "beta_strategy": "m1"})
    assert main(["akd", "--config", path, "--resume_from_checkpoint", "true"]) == 2
    err = capsys.readouterr().err
    assert "strategy" in err and "'m1'" in err and "checkpoint-2" in err


@pytest.mark.parametrize(
    ("replaced", "sentence"),
    [
        ({"model_name_or_path": None}, "`model_name_or_path` is not set"),
        ({"teacher_model_name_or_path": None}, "`teacher_model_name_or_path` is not set"),
        ({"teacher_model_name_or_path": "STUDENT"}, "student and teacher are the same model"),
        ({"teacher_model_name_or_path": "nowhere/at-all"}, "`teacher_model_name_or_path` is 'nowhere/at-all'"),
        ({"dataset_name": None}, "`dataset_name` is not set"),
        ({"dataset_name": "missing.json"}, "'missing.json'"),
        ({"dataset_name": "[]"}, "cannot be read as json"),
        ({"dataset_name": '[{"instruction": "a", "answer": "b"}]', "test_size": None}, "'output'"),
        ({"test_size": 8}, "8"),
        ({"beta_strategy": "fixed", "beta": 1.5}, "`beta` is 1.5"),
        ({"divergence": "kll"}, "`divergence`: 'kll' is not a divergence; choose one of 'akd'"),
        ({"divergence": "jsd", "beta": 0.5}, "`beta` is 0.5, which has no effect with divergence='jsd'"),
        ({"divergence": "skew_kl", "divergence_kwargs": {"beta": 0.5}}, "'skew_kl' has no knob 'beta'; it takes"),
        ({"beta_initial_values": [0.1, 1.6]}, "1.6"),
        ({"resume_from_checkpoint": True}, "`resume_from_checkpoint` is true"),
        ({"eval_strategy": "epoch", "test_size": None}, "`eval_strategy` is 'epoch'"),
        ({"unknown": 1}, "unknown key `unknown`"),
    ],
)
def test_bad_input_is_an_error_of_one_sentence_before_loading(
    replaced: dict[str, Any],
    sentence: str,
    settings: dict[str, Any],
    recipe,
    tmp_path: Path,
    no_model_is_loaded: None,
    capsys: pytest.CaptureFixture[str],
):
    for key, value in replaced.items():
        if value == "STUDENT":
            value = settings["model_name_or_path"]
        if isinstance(value, str) and value.startswith("["):
            (tmp_path / "bad.json").write_text(value)
            value = str(tmp_path / "bad.json")
        settings[key] = value
    path = recipe({key: value for key, value in settings.items() if value is not None})
    assert main(["akd", "--config", path]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trl-akd: ")]
    assert len(lines) == 1 and sentence in lines[0]
    assert not Path(settings["output_dir"]).exists()


def test_prompts_longer_than_the_limit(settings: dict[str, Any], recipe, capsys: pytest.CaptureFixture[str]):
    assert main(["akd", "--config", recipe({**settings, "max_length": 16})]) == 2
    assert "within max_length=16" in capsys.readouterr().err


def test_teacher_that_is_not_finite(
    settings: dict[str, Any], recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    broken = tmp_path / "broken"
    shutil.copytree(settings["teacher_model_name_or_path"], broken)
    teacher = AutoModelForCausalLM.from_pretrained(broken)
    with torch.no_grad():
        teacher.get_input_embeddings().weight.fill_(float("nan"))
    teacher.save_pretrained(broken)
    path = recipe({**settings, "teacher_model_name_or_path": str(broken)})
    assert main(["akd", "--config", path]) == 2
    assert "the teacher's logits are not finite" in capsys.readouterr().err


def test_as_a_module_of_python():
    command = [sys.executable, "-m", "trl_akd.cli.akd", "--config", "missing.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("trl-akd: `--config` is 'missing.yaml'") and done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp_cpu", "zero1_cpu", "zero2_cpu", "zero3_cpu"])
def test_two_processes(config: str, settings: dict[str, Any], recipe, tmp_path: Path):
    del settings["use_cpu"], settings["test_size"]  # the launcher knows about the CPU
    path = recipe(settings)
    command = [sys.executable, "-c", "import sys, trl_akd.cli as cli; sys.exit(cli.main())"]
    arguments = ["akd", "--config", path, "--accelerate_config", config, "--main_process_port", "0"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    # 8 rows, 2 in each of 2 processes: one process would have gone through half an epoch only.
    assert [log["epoch"] for log in history(tmp_path / "run") if "loss" in log] == [0.5, 1.0]


@pytest.mark.slow
def test_status_of_failing_processes(settings: dict[str, Any], recipe, tmp_path: Path):
    path = recipe({**settings, "dataset_name": "missing.json"})
    command = [sys.executable, "-c", "import sys, trl_akd.cli as cli; sys.exit(cli.main())"]
    arguments = ["akd", "--config", path, "--accelerate_config", "ddp_cpu", "--main_process_port", "0"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "trl-akd (process " in done.stderr and "'missing.json'" in done.stderr
    assert "Traceback" not in done.stderr
