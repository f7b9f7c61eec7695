"""A benchmark of two rules with a pair of tiny models."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.cli.conftest import ROWS
from tests.evaluation.conftest import ROWS as PROBLEMS

TRAINING: dict[str, Any] = {
    **tiny.SHORT_RUN,
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 1,
    "per_device_train_batch_size": 2,
    "test_size": 2,
    "max_length": 256,
    "bf16": False,
    "eval_strategy": "no",
}


@pytest.fixture
def settings(pair: tuple[str, str], tmp_path: Path) -> dict[str, Any]:
    """Keys and values of a recipe of the benchmark."""
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    problems = tmp_path / "three.jsonl"
    problems.write_text("".join(f"{json.dumps(row)}\n" for row in PROBLEMS))
    models = {"model_name_or_path": pair[0], "teacher_model_name_or_path": pair[1]}
    return {
        "output_dir": str(tmp_path / "bench"),
        "pairs": {"tiny": {**models, "dataset_name": str(tmp_path / "rows.json")}},
        "common": TRAINING,
        "rules": {"kd": {"divergence": "forward_kl"}, "akd": {}},
        "seeds": [1, 2],
        "benchmarks": {"three": {"benchmark": str(problems)}},
        "evaluate": {"max_new_tokens": 4},
        "before": ["student", "teacher"],
        "predictions": {"p": {"pair": "tiny", "benchmark": "three", "first": "akd", "second": "kd", "at_least": 0.0}},
    }
