"""The whole command on tiny models: killed, continued, and its page."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from trl_akd.cli import main


@pytest.mark.slow
@pytest.mark.end_to_end
def test_benchmark_is_killed_and_continues(settings: dict[str, Any], tmp_path: Path):
    settings["common"] = {**settings["common"], "max_steps": 20}
    settings["before"] = ["student"]
    recipe = tmp_path / "bench.yaml"
    recipe.write_text(yaml.safe_dump(settings, sort_keys=False))
    arguments = ["bench", "models", "--config", str(recipe), "--allow_code_execution"]
    runs = Path(settings["output_dir"]) / "runs"
    with subprocess.Popen([sys.executable, "-m", "trl_akd", *arguments]) as process:
        while not any(runs.glob("tiny-kd-1-*/student/checkpoint-*/trainer_state.json")):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert main(arguments) == 0
    results = Path(settings["output_dir"]) / "results.json"
    rows = json.loads(results.read_text())["runs"]
    assert [(row["rule"], row["seed"], row["continued"]) for row in rows] == [
        ("student", 1, False), ("kd", 1, True), ("akd", 1, False),
        ("student", 2, False), ("kd", 2, False), ("akd", 2, False),
    ]  # fmt: skip
    assert rows[0]["key"] == rows[3]["key"]
    for row in rows:
        assert row["measures"]["three"]["problems"] == 3 and row["versions"]["torch"]
        assert (row["peak_memory_mib"] is None) == (row["seconds"] is None) == (row["rule"] == "student")
    assert main(["bench", "models", "--report", str(results)]) == 0
    text = results.with_suffix(".md").read_text()
    assert "6 of 6 runs are finished, with 2 seeds" in text
    assert "| akd minus kd |" in text
