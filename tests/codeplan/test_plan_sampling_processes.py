"""Two processes select the same plans as one, and request nothing that is recorded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.codeplan.sampling_worker import sample
from tests.invariant.launch import ROOT, accelerate_config

pytestmark = pytest.mark.distributed


def close(found: object, expected: object) -> bool:
    """Compare JSON values, with a tolerance for numbers, since rounding depends on the batch."""
    if isinstance(expected, float):
        return found == pytest.approx(expected, abs=1e-4)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    return found == expected


def test_two_processes_sample_the_same_as_one(tmp_path: Path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(accelerate_config(tmp_path, "ddp")))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "accelerate.yaml")]
    finished = subprocess.run(
        [*launch, "-m", "tests.codeplan.sampling_worker", str(tmp_path / "two")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert finished.returncode == 0, finished.stderr[-6000:]
    ranks = [json.loads((tmp_path / "two" / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1] and ranks[0][0] == 2
    assert close(ranks[0][1], json.loads(json.dumps(sample(tmp_path / "one"))))
    calls = (tmp_path / "two" / "calls.jsonl").read_text()
    sample(tmp_path / "two")
    assert (tmp_path / "two" / "calls.jsonl").read_text() == calls, "one process goes on where two were"
