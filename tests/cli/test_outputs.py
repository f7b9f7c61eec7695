"""Outputs that would overwrite an input."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from trl_akd.cli import main
from trl_akd.cli.command import check_output


@pytest.mark.parametrize("field", ["model_name_or_path", "teacher_model_name_or_path"])
@pytest.mark.parametrize("linked", [False, True])
def test_a_training_keeps_its_models(
    field: str, linked: bool, settings: dict[str, Any], recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "model"
    shutil.copytree(settings[field], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    output = folder
    if linked:
        output = tmp_path / "link"
        output.symlink_to(folder)
    path = recipe({**settings, field: str(folder), "output_dir": str(output)})
    assert main(["akd", "--config", path]) == 2
    assert f"the same as `{field}`, which would be overwritten; give another `output_dir`" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("command", ["ranker", "judge"])
def test_checkpoints_are_found_before_data_and_model(
    command: str, resume: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    out = tmp_path / "out"
    argv = [command, "train", "--model_name_or_path", "x", "--train_file", "none.jsonl", "--output_dir", str(out)]
    argv += ["--use_cpu", "true", "--bf16", "false", "--resume_from_checkpoint", str(resume).lower()]
    out.mkdir()
    (out / "config.json").touch()
    assert main(argv) == 2
    expected = "has no checkpoint; leave it out" if resume else "There is no file 'none.jsonl'"
    assert expected in capsys.readouterr().err
    assert [message for message in caplog.messages if "has a trained model" in message] or resume
    (out / "checkpoint-1").mkdir()
    (out / "checkpoint-1" / "trainer_state.json").touch()
    assert main(argv) == 2
    expected = "There is no file 'none.jsonl'" if resume else "has checkpoints of an earlier run"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "output", "source"),
    [
        ("iterkd --text_teacher_model_name_or_path FOLDER", "output_dir", "text_teacher_model_name_or_path"),
        (
            "iterkd --text_teacher_model_name_or_path x --judge_model_name_or_path FOLDER",
            "output_dir",
            "judge_model_name_or_path",
        ),
        ("ranker train --model_name_or_path FOLDER", "output_dir", "model_name_or_path"),
        ("judge train --train_file x.jsonl --model_name_or_path FOLDER", "output_dir", "model_name_or_path"),
        ("templates --model_name_or_path x --dataset_name FILE", "output_file", "dataset_name"),
        ("ranker rank --ranker x --benchmark x.jsonl --samples FILE", "output", "samples"),
        ("ranker rank --ranker x --samples x.jsonl --benchmark FILE", "output", "benchmark"),
        ("ranker data --evaluations x --benchmark FILE", "output", "benchmark"),
        ("ranker data --evaluations FOLDER --benchmark x.jsonl", "output", "evaluations"),
        ("plans --model_name_or_path x --dataset_name PLANS", "output_dir", "dataset_name"),
    ],
)
def test_commands_keep_their_inputs(
    command: str, output: str, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    row = json.dumps({"instruction": "Add.", "output": "1"})
    names = {"FOLDER": tmp_path, "FILE": tmp_path / "samples.jsonl", "PLANS": tmp_path / "plans.jsonl"}
    for name in ("FILE", "PLANS"):
        names[name].write_text(row)
    target = tmp_path if output == "output_dir" else names["FILE"]
    argv = [str(names.get(word, word)) for word in command.split()]
    extra = ["--use_cpu", "true", "--bf16", "false"] if output == "output_dir" and argv[0] != "plans" else []
    assert main([*argv, f"--{output}", str(target), *extra]) == 2
    assert f"the same as `{source}`, which would be overwritten" in capsys.readouterr().err
    assert names["FILE"].read_text() == names["PLANS"].read_text() == row


def test_other_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    check_output("output_dir", "me/student", model_name_or_path="me/student", dataset_name=None)  # on the Hub
    (tmp_path / "model" / "run").mkdir(parents=True)
    check_output("output_dir", "model/run", model_name_or_path="model")
    with pytest.raises(ValueError, match="the same as `model_name_or_path`"):
        check_output("output_dir", "model/run/..", model_name_or_path="./model")
