"""Teachers and judges whose replies are computed by a function, and access to real data, which skips tests without
it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from trl_akd.generation import Completion
from trl_akd.iterkd.cycle.config import CycleConfig
from trl_akd.iterkd.cycle.prompts import TeachingPrompts
from trl_akd.iterkd.judge.rubric import RULES, Judgement, Unjudged

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def data(path: str) -> Path:
    if not (DATA / path).exists():
        pytest.skip(f"needs ../shared/data/{path}")
    return DATA / path


def rows(path: str) -> list[dict[str, Any]]:
    return json.loads(data(path).read_text())


def soda(name: str) -> list[dict[str, Any]]:
    """Return data that the authors of SODA released."""
    return rows(f"soda/{name}")


def labeled(name: str) -> list[dict[str, Any]]:
    """Return labeled texts."""
    return [json.loads(line) for line in Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()]


class ShortConfig(CycleConfig):
    """Configuration with prompts of a few words."""

    teaching_prompts = TeachingPrompts(
        correct="RIGHT {instruction}",
        faulty="FAULTY {kind} {instruction}",
        new_easy="EASY {instruction}",
        new_same="SAME {instruction}",
    )


class Teacher:
    """Generator that replies with `write(prompt)`, a text or a completion."""

    def __init__(self, write: Callable[[str], str | Completion]) -> None:
        self.write = write
        self.calls: list[list[str]] = []
        self.settings: list[dict[str, Any]] = []

    def generate(self, prompts, *, n=1, **settings):
        self.calls.append(list(prompts))
        self.settings.append(settings)
        return [[self._complete(prompt)] for prompt in prompts]

    def _complete(self, prompt: str) -> Completion:
        written = self.write(prompt)
        return written if isinstance(written, Completion) else Completion(written, -0.5, "stop", len(written.split()))


class Judge:
    """Judge that gives `points(answer)`, a multiple of 0.5 or `None` for no judgement."""

    def __init__(self, points: Callable[[str], float | None]) -> None:
        self.points = points
        self.calls: list[list[tuple[str, str]]] = []

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Judgement | Unjudged]:
        self.calls.append(list(pairs))
        return [judgement(self.points(answer)) for _, answer in pairs]


def judgement(total: float | None) -> Judgement | Unjudged:
    if total is None:
        return Unjudged("no_scores")
    scores = []
    for rule in RULES:
        scores.append(min(total - sum(scores), rule.maximum))
    return Judgement(tuple(scores))
