"""A training method of another package: one folder, `tests/cli/toy`, which registers it by an entry point."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from trl_akd import cli
from trl_akd.cli import COMMANDS, main
from trl_akd.cli.akd import AKDMethod
from trl_akd.cli.methods import find_methods

TOY = Path(__file__).parent / "toy"
OF_ONE_METHOD = {
    "akd",
    "codeplan",
    "iterkd",
    "quickstarts",
    "mock_server",
    "plans",
    "ranker",
    "judge",
    "evaluate",
    "push",
}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(TOY)
    monkeypatch.chdir(tmp_path)


def test_dry_run_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["toy", "--config", str(TOY / "config.yaml"), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "losses.json: a temporary file" in out and "the file of losses" in out
    assert "Dry run passed" in out and list(tmp_path.iterdir()) == []


def test_config_and_trainer_are_used(settings: dict[str, Any], recipe, tmp_path: Path):
    path = recipe({**settings, "losses_file": str(tmp_path / "losses.json"), "weight_decay": 0.0})
    assert main(["toy", "--config", path, "--loss_scale", "0"]) == 0
    assert json.loads((tmp_path / "losses.json").read_text()) == [0.0, 0.0]
    before = AutoModelForCausalLM.from_pretrained(settings["model_name_or_path"])
    after = AutoModelForCausalLM.from_pretrained(settings["output_dir"])
    for a, b in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dry_run", [[], ["--dry_run"]])
def test_check_of_the_method_runs_before_loading(
    dry_run: list[str], settings: dict[str, Any], recipe, capsys: pytest.CaptureFixture[str]
):
    path = recipe({**settings, "use_peft": True, "loss_scale": 2.0})
    assert main(["toy", "--config", path, *dry_run]) == 2
    assert "`loss_scale` is 2.0, but `use_peft` is on; leave one out." in capsys.readouterr().err
    assert not Path(settings["output_dir"]).exists()


def test_unknown_keys_and_help(settings: dict[str, Any], recipe, capsys: pytest.CaptureFixture[str]):
    assert main(["toy", "--config", recipe({**settings, "los_scale": 2.0})]) == 2
    assert "has the unknown key `los_scale`; did you mean `loss_scale`" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["toy", "--help"])
    assert "Factor of the loss. (default: 1.0)" in capsys.readouterr().out


def test_it_is_listed_and_suggested(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    assert "toy          method of toy_method" in capsys.readouterr().out
    assert main(["toi"]) == 2
    assert "did you mean 'toy'?" in capsys.readouterr().err


def test_a_method_that_cannot_be_loaded(capsys: pytest.CaptureFixture[str]):
    assert main(["broken"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("trl-akd: the method 'broken' cannot be loaded from toy_method (")
    assert err.count("\n") == 1


def test_names_of_this_package_are_reserved():
    assert isinstance(find_methods()["akd"].load(), AKDMethod)
    assert {"akd", "codeplan", "iterkd"} <= COMMANDS.keys() & find_methods().keys()


def test_it_has_no_quickstart(capsys: pytest.CaptureFixture[str]):
    assert main(["quickstart", "--method", "toy"]) == 2
    assert "`--method` is 'toy', which has no quickstart" in capsys.readouterr().err


def test_modules_for_all_methods_import_none_of_them():
    """The method defines everything that differs between methods."""
    modules = [path for path in Path(cli.__file__).parent.glob("*.py") if path.stem not in OF_ONE_METHOD]
    assert len(modules) > 8
    for path in modules:
        imported = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        packages = {(module or "").partition(".")[0] for module in imported}
        assert packages.isdisjoint({"codeplan", "iterkd"}), path.name


@pytest.mark.slow
def test_in_two_processes(settings: dict[str, Any], recipe, tmp_path: Path):
    del settings["use_cpu"], settings["test_size"]
    path = recipe({**settings, "losses_file": str(tmp_path / "losses.json")})
    command = [sys.executable, "-m", "trl_akd", "toy", "--config", path, "--accelerate_config", "ddp_cpu"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TOY), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([*command, "--main_process_port", "0"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(json.loads((tmp_path / "losses.json").read_text())) == 2
