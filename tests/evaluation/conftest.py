"""A benchmark of three problems, and a generator that answers from a list."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from trl_akd.evaluation.problems import Problem
from trl_akd.generation import Completion

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
ROWS = [
    {"task_id": "double", "prompt": "def double(x):\n", "entry_point": "double", "test": "assert double(2) == 4"},
    {"task_id": "negate", "prompt": "def negate(x):\n", "entry_point": "negate", "test": "assert negate(2) == -2"},
    {"task_id": "one", "prompt": "def one():\n", "entry_point": "one", "test": "assert one() == 1"},
]


def data(path: str) -> Path:
    """A file of real data; skips the test if it is missing."""
    if not (DATA / path).exists():
        pytest.skip(f"needs ../shared/data/{path}")
    return DATA / path


def write_lines(path: Path, rows: Sequence[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


class Scripted:
    """A generator whose completions are a function of the prompt and the number of the sample."""

    def __init__(self, write) -> None:
        self.write = write
        self.calls: list[list[str]] = []
        self.seeds: list[int | None] = []
        self.stops: list[tuple[str, ...]] = []

    def generate(self, prompts, *, n=1, temperature=0.0, top_p=1.0, max_new_tokens=512, stop=(), seed=None):
        self.calls.append(list(prompts))
        self.seeds.append(seed)
        self.stops.append(tuple(stop))
        return [[Completion(self.write(prompt, i), -0.5, "stop", 3) for i in range(n)] for prompt in prompts]


@pytest.fixture
def problems() -> list[Problem]:
    return [
        Problem(row["task_id"], row["prompt"], row["test"], code_prompt=row["prompt"], entry_point=row["entry_point"])
        for row in ROWS
    ]


@pytest.fixture
def benchmark_file(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "three.jsonl", ROWS)
