"""Generators whose completions are given by a function, and real data, whose tests are skipped if it is missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trl_akd.cli.plans import read_rows
from trl_akd.generation import Completion

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def data(path: str) -> Path:
    if not (DATA / path).exists():
        pytest.skip(f"needs ../shared/data/{path}")
    return DATA / path


class Scripted:
    """Complete a prompt by `write(prompt, number, seed)`: a text, optionally with its mean log-probability."""

    def __init__(self, write: Callable[[str, int, int | None], Any]) -> None:
        self.write = write
        self.calls: list[list[str]] = []
        self.settings: list[dict[str, Any]] = []

    def generate(self, prompts, *, n=1, temperature=0.0, top_p=1.0, max_new_tokens=512, stop=(), seed=None):
        self.calls.append(list(prompts))
        self.settings.append({"n": n, "temperature": temperature, "top_p": top_p, "stop": tuple(stop), "seed": seed})
        return [[self._complete(prompt, number, seed) for number in range(n)] for prompt in prompts]

    @property
    def asked(self) -> int:
        """Prompts so far."""
        return sum(map(len, self.calls))

    def _complete(self, prompt: str, number: int, seed: int | None) -> Completion:
        written = self.write(prompt, number, seed)
        text, logprob = written if isinstance(written, tuple) else (written, -0.5)
        return Completion(text, logprob, "stop", len(text.split()))


def apps_problems() -> list[dict]:
    """APPS's test problems with their public and hidden tests."""
    rows = []
    for row in read_rows(data("apps/test")):
        home = data("apps/test") / row["id"]
        tests = {
            "public_tests": json.loads((home / "example_input_output.json").read_text()),
            "hidden_tests": json.loads((home / "input_output.json").read_text()),
        }
        rows.append({**row, **tests})
    return rows


def mbpp_problems(first: int, last: int) -> list[dict]:
    """Some problems of MBPP, whose tests are all public."""
    lines = [json.loads(line) for line in data("mbpp/mbpp.jsonl").open()][first:last]
    rows = read_rows(data("mbpp/mbpp.jsonl"), split=f"train[{first}:{last}]")
    tests = ["\n".join(line["test_list"]) for line in lines]
    return [{**row, "public_tests": test, "hidden_tests": test} for row, test in zip(rows, tests, strict=True)]
