"""`launch` gives processes what `accelerate launch` gives them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

from . import launch as launching
from .launch import accelerate_launch, launch, run

pytestmark = pytest.mark.distributed

NOT_COMPARED = re.compile(r"MASTER_|TORCHELASTIC_|TORCH_NCCL_|GROUP_|ROLE_|PYTEST_|KMP_|TRITON_CACHE_DIR$")
"""Variables of one launch, those that PyTorch's launcher sets for its own use, and those that imports set."""

WORKER = "tests.invariant.environment_worker"


def records(start: Callable[..., None], folder: Path, backend: str) -> list[dict[str, Any]]:
    start(folder, backend, WORKER, str(folder))
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def variables(record: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in record["environment"].items() if not NOT_COMPARED.match(name)}


@pytest.mark.parametrize("backend", ["ddp", "zero3"])
def test_environment_is_that_of_accelerate(backend: str, tmp_path: Path) -> None:
    found, expected = (records(start, tmp_path, backend) for start in (launch, accelerate_launch))
    for ours, theirs in zip(found, expected, strict=True):
        assert variables(ours) == variables(theirs)
        assert ours["state"] == theirs["state"]
    assert found[0]["hash"] != found[1]["hash"], "processes iterate over sets in different orders"


@pytest.mark.parametrize("backend", ["ddp", pytest.param("zero3", marks=pytest.mark.slow)])
def test_training_under_accelerate_ends_without_threads_of_gloo(backend: str, tmp_path: Path) -> None:
    student, teacher = tiny.save_pair(tmp_path)
    settings = {"student": student, "teacher_model_name_or_path": teacher, "max_steps": 2}
    outcome = run(tmp_path / "run", backend, start=accelerate_launch, **settings)
    assert outcome.record["world_size"] == 2 and len(outcome.series("loss")) == 2


def test_a_process_that_fails_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_GRACE", 1.0)
    with pytest.raises(RuntimeError, match=r"exit statuses \[-9, 1\], killed after \d+ s: \[0\](.|\n)*rank 1 fails"):
        launch(tmp_path, "ddp", WORKER, str(tmp_path), "FAILS", timeout=10_000)
    launch(tmp_path, "ddp", WORKER, str(tmp_path))


def test_processes_that_take_too_long_are_ended(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"exit statuses \[-9\], killed after \d+ s: \[0\]"):
        launch(tmp_path, "single", WORKER, str(tmp_path), "FAILS", timeout=5)


def test_a_server_that_has_ended_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "ENVIRONMENT", {"PYTHONPATH": str(tmp_path)})
    (tmp_path / "peft.py").write_text("raise ImportError('no such luck')")
    with pytest.raises(RuntimeError, match=r"rank_server has ended with 1:(.|\n)*no such luck"):
        launching._Server().wait()
