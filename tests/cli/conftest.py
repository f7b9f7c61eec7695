import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny
from trl_akd.cli.akd import METHOD
from trl_akd.cli.parsing import RecipeParser

ROWS = [
    {"instruction": f"Add {number} to x.", "input": "", "output": f"def f(x):\n    return x + {number}"}
    for number in range(8)
]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the environment variables of process groups that a run leaves behind, which look like those of a
    launcher."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_USE_DEEPSPEED", "TRL_AKD_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def settings(pair: tuple[str, str], tmp_path: Path) -> dict[str, Any]:
    """Keys and values of a recipe that trains the tiny pair for two steps."""
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(ROWS))
    return {
        **tiny.SHORT_RUN,
        "model_name_or_path": pair[0],
        "teacher_model_name_or_path": pair[1],
        "dataset_name": str(data),
        "test_size": 2,
        "max_length": 256,
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 2,
        "bf16": False,
        "eval_strategy": "no",
        "seed": 0,
    }


@pytest.fixture
def parser() -> RecipeParser:
    return RecipeParser(METHOD.argument_types(), prog="trl-akd akd")


@pytest.fixture
def recipe(tmp_path: Path):
    """Write a recipe and return its path."""

    def write(content: Any, name: str = "recipe.yaml") -> str:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    return write
