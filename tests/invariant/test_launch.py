"""`launch` gives processes what `accelerate launch` gives them."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from . import launch as launching
from .launch import ROOT, accelerate_config, launch

pytestmark = pytest.mark.distributed

NOT_COMPARED = re.compile(r"MASTER_|TORCHELASTIC_|TORCH_NCCL_|GROUP_|ROLE_|PYTEST_|KMP_|TRITON_CACHE_DIR$")
"""Variables of one launch, of PyTorch's launcher for its own use, and of tests."""

WORKER = "tests.invariant.environment_worker"


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def variables(record: dict[str, Any]) -> dict[str, str]:
    """The variables that accelerate, DeepSpeed or this package may read."""
    return {name: value for name, value in record["environment"].items() if not NOT_COMPARED.match(name)}


@pytest.mark.parametrize("backend", ["ddp", "zero3"])
def test_environment_is_that_of_accelerate(backend: str, tmp_path: Path) -> None:
    launch(tmp_path, backend, WORKER, str(tmp_path))
    ours = records(tmp_path)
    config = tmp_path / "accelerate.yaml"
    config.write_text(yaml.safe_dump(accelerate_config(tmp_path, backend)))
    subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "-m", WORKER, tmp_path],
        cwd=ROOT,
        env={**os.environ, **launching.ENVIRONMENT},
        check=True,
        capture_output=True,
        timeout=300,
    )
    for found, expected in zip(ours, records(tmp_path), strict=True):
        assert variables(found) == variables(expected)
        assert found["state"] == expected["state"]
    assert ours[0]["hash"] != ours[1]["hash"], "processes iterate over sets in different orders"


def test_a_process_that_fails_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_GRACE", 1.0)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"statuses=\[-9, 1\], unfinished=\[0\](.|\n)*rank 1 fails"):
        launch(tmp_path, "ddp", WORKER, str(tmp_path), "FAILS")
    assert time.monotonic() - started < 200
    launch(tmp_path, "ddp", WORKER, str(tmp_path))


def test_processes_that_take_too_long_are_ended(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"unfinished=\[0"):
        launch(tmp_path, "single", WORKER, str(tmp_path), "FAILS", timeout=5)
