"""Cycles on two processes equal those on one, and errors occur on both."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.invariant.launch import launch
from tests.iterkd import cycle_world
from tests.iterkd.cycle_world import completions, lines, verdicts

pytestmark = pytest.mark.distributed


def run(folder: Path, backend: str, *attempts: str) -> tuple[Path, list[dict[str, Any]]]:
    """Run the worker, and return its output folder and the results of each process."""
    output_dir = folder / backend
    path = folder / f"{backend}.json"
    path.write_text(json.dumps({"folder": str(folder), "output_dir": str(output_dir), "attempts": attempts}))
    launch(folder, backend, "tests.iterkd.cycle_worker", str(path), timeout=600)
    ranks = range(1 if backend == "single" else 2)
    return output_dir, [json.loads((folder / f"{backend}.rank{rank}.json").read_text()) for rank in ranks]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cycles")
    cycle_world.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    return run(folder, "single")


def assert_same(found: Path, expected: Path) -> None:
    assert completions(found) == completions(expected)
    assert verdicts(found) == verdicts(expected)
    assert lines(found, "items") == lines(expected, "items")
    for cycle in range(2):
        student, other = (load_file(run / f"cycle-{cycle}/student/model.safetensors") for run in (found, expected))
        assert_close(student, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", ["ddp", pytest.param("zero2", marks=pytest.mark.slow), "zero3"])
def test_two_processes(folder: Path, alone: tuple[Path, list[dict[str, Any]]], backend: str) -> None:
    """Under DDP also with a failing teacher, a full disk and interrupted training, one after another."""
    output_dir, [first, second] = run(folder, backend, *(["teacher", "disk", "training"] if backend == "ddp" else []))
    expected, [only] = alone
    assert first["world_size"] == second["world_size"] == 2
    assert first["reports"] == second["reports"] == only["reports"]
    assert first["asked"] > 0 and second["asked"] == 0, "the main process asks for both"
    assert first["asked_again"] == 0, "a run that is done asks nobody"
    final, last = (load_file(output_dir / f"{folder}/model.safetensors") for folder in ("final", "cycle-1/student"))
    assert_close(final, last, rtol=0, atol=0)
    assert first["errors"] == second["errors"]
    assert [error.split(":")[0] for error in first["errors"]] == (
        ["GenerationError", "OSError", "RuntimeError"] if backend == "ddp" else []
    )
    assert_same(output_dir, expected)
