"""Commands with a teacher in a subfolder, and with one that is an adapter."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests import tiny
from trl_akd.cli import main


def in_subfolder(folder: Path, teacher: str) -> dict[str, Any]:
    shutil.copytree(teacher, folder / "step-100")
    return {"teacher_model_name_or_path": str(folder), "teacher_model_init_kwargs": {"subfolder": "step-100"}}


def adapter(folder: Path, teacher: str) -> dict[str, Any]:
    options = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(teacher), options).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return {"teacher_model_name_or_path": str(folder)}


@pytest.fixture(params=[in_subfolder, adapter], ids=["subfolder", "adapter"])
def path(request: Any, recipe: Any, settings: dict[str, Any], pair: tuple[str, str], tmp_path: Path) -> str:
    return recipe({**settings, **request.param(tmp_path / "teacher", pair[1])})


@pytest.mark.parametrize("flags", [[], ["--dry_run"]], ids=["run", "dry run"])
def test_training(path: str, tmp_path: Path, flags: list[str]):
    assert main(["akd", "--config", path, *flags]) == 0
    card = tmp_path / "run" / "README.md"
    assert card.exists() == (not flags)
    assert flags or "teacher" in card.read_text()


@pytest.mark.parametrize("flags", [["--with_weights", "false"], ["--with_weights", "true"], []], ids=" ".join)
def test_doctor(path: str, flags: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--config", path, *flags]) == 0
    out = capsys.readouterr().out
    assert "Teacher " in out and "both models share the ids below 320" in out
