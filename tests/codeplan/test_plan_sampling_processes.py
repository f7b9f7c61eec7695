"""Two processes select the same plans as one, and request nothing that is recorded."""

import json
from pathlib import Path

import pytest

from tests.codeplan.sampling_worker import sample
from tests.invariant.launch import launch

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
    launch(tmp_path, "ddp", "tests.codeplan.sampling_worker", str(tmp_path / "two"))
    ranks = [json.loads((tmp_path / "two" / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1] and ranks[0][0] == 2
    assert close(ranks[0][1], json.loads(json.dumps(sample(tmp_path / "one"))))
    calls = (tmp_path / "two" / "calls.jsonl").read_text()
    sample(tmp_path / "two")
    assert (tmp_path / "two" / "calls.jsonl").read_text() == calls, "one process goes on where two were"
