"""A deterministic student and runner, and the records of a run."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_akd.execution import ExecutionResult
from trl_akd.generation import Completion
from trl_akd.iterkd.cycle.report import CycleReport


class Student:
    """Student that repeats the answers it was trained on, and replies with `says` to other questions."""

    def __init__(self, says: Callable[[str], str] = lambda prompt: "def add(x):\n    return 0\n") -> None:
        self.known: dict[str, str] = {}
        self.rows: list[list[dict[str, Any]]] = []
        self.loaded: list[str] = []
        self._says = says

    def train_cycle(self, pairs: Any, *, cycle: int, output_dir: Path) -> None:
        (output_dir / "checkpoint-1").mkdir(parents=True)
        self.rows.append(list(pairs))
        self.known |= {row["prompt"]: row["completion"] for row in list(pairs)[: 2 * cycle + 3]}

    def save_student(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights.json").write_text(json.dumps(self.known))

    def load_student(self, folder: Path) -> None:
        self.loaded.append(folder.parent.name)
        self.known = json.loads((folder / "weights.json").read_text())

    def student_generator(self) -> "Student":
        return self

    def generate(self, prompts: list[str], **sampling: Any) -> list[list[Completion]]:
        texts = [self.known.get(prompt) or self._says(prompt) for prompt in prompts]
        return [[Completion(text, -1.0, "stop", 5)] for text in texts]


@dataclass
class Actors:
    """Participants and results of a run."""

    student: Student
    asked: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    reports: list[CycleReport] = field(default_factory=list)

    def run(self, programs: Any) -> list[ExecutionResult]:
        self.ran += [program for program, _ in programs]
        return [_execute(program, tests) for program, tests in programs]


def _execute(program: str, tests: str) -> ExecutionResult:
    """Run a program with its tests in this process, or as a main program in a child, which its harness ends."""
    if tests:
        try:
            exec(f"{program}\n{tests}", {})
        except Exception as error:
            return ExecutionResult("failed", type(error).__name__, stage="test", tests_total=1)
        return ExecutionResult("passed", tests_passed=1, tests_total=1)
    hear, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            exec(program, {})
        except BaseException as error:
            os.write(tell, type(error).__name__.encode())
            os._exit(1)
        os._exit(0)
    os.close(tell)
    with open(hear, "rb") as heard:
        error_type = heard.read().decode()
    _, status = os.waitpid(child, 0)
    if status:
        return ExecutionResult("failed", error_type or "SystemExit", stage="test", tests_total=1)
    return ExecutionResult("passed", tests_passed=1, tests_total=1)
