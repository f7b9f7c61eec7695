"""Commands that generate, in several processes."""

import json
import logging
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.commands import ACTIONS
from trl_akd.cli import main
from trl_akd.distributed import keep_off_stdout


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    tiny.model(max_position_embeddings=8192).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_plans_in_two_processes(model: str, tmp_path: Path):
    rows = [{"id": str(number), "problem": "P", "solutions": [f"print({number})"]} for number in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = []
    for launched in ([], ["--accelerate_config", "ddp_cpu", "--num_processes", "2"]):
        out = tmp_path / f"out{len(launched)}"
        flags = [
            "--model_name_or_path",
            model,
            "--dataset_name",
            str(tmp_path / "rows.jsonl"),
            "--output_dir",
            str(out),
        ]
        assert main(["plans", *flags, "--prompt_style", "completion", "--max_new_tokens", "4", *launched]) == 0
        found.append(sorted((out / "answers.jsonl").read_text().splitlines()))  # in the order of arrival
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_ranker_in_two_processes(model: str, tmp_path: Path):
    rows = [
        {"id": str(number), "problem": "P", "program": f"x{number}", "label": ["correct", "NameError"][number % 2]}
        for number in range(8)
    ]
    (tmp_path / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    flags = ["--model_name_or_path", model, "--train_file", str(tmp_path / "data.jsonl"), "--max_steps", "2"]
    flags += ["--output_dir", str(tmp_path / "ranker"), "--report_to", "none", "--max_length", "64"]
    launched = ["--accelerate_config", "ddp_cpu", "--num_processes", "2"]
    assert main(["ranker", "train", *flags, *launched]) == 0
    assert (tmp_path / "ranker" / "model.safetensors").exists()


SINGLE = [command for command, action in ACTIONS.items() if action.one_process]


def test_which_actions_need_a_single_process():
    benchmarks = ["bench", "bench cycles", "bench plans", "bench models"]
    assert SINGLE == [*benchmarks, "cache inspect", "push", "ranker data", "ranker rank", "report", "templates"]


@pytest.mark.parametrize("command", SINGLE)
@pytest.mark.parametrize("launched", [True, False])
def test_actions_of_a_single_process(command: str, launched: bool, monkeypatch: pytest.MonkeyPatch, capsys):
    """Given accelerate's launcher, or started by it."""
    if launched:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
    assert main([*command.split(), *([] if launched else ["--accelerate_config", "ddp_cpu"])]) == 2
    expected = f": `trl-akd {command}` runs in one process; leave `accelerate_config` out.\n"
    assert capsys.readouterr().err.endswith(expected)


@pytest.mark.parametrize("command", SINGLE)
def test_a_single_process_has_no_launch_flags(command: str, capsys: pytest.CaptureFixture[str]):
    assert main([*command.split(), "--num_processes", "2"]) == 2
    assert "the flag `--num_processes` is unknown" in capsys.readouterr().err


def test_warnings_of_deepspeed_are_not_on_stdout(capsys, monkeypatch):
    logger = logging.Logger("DeepSpeed")
    monkeypatch.setitem(logging.root.manager.loggerDict, "DeepSpeed", logger)
    logger.addFilter(keep_off_stdout)
    logger.addHandler(logging.StreamHandler(stream=sys.stdout))  # as DeepSpeed does when it is imported
    logger.warning("no GPU")
    assert capsys.readouterr() == ("", "no GPU\n")
