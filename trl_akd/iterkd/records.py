"""What the stages of a cycle hand to one another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..execution import ExecutionResult, Tests

__all__ = ["FAULT_KINDS", "LEVELS", "Fault", "FaultKind", "Level", "Pair", "Question", "Runner"]

FaultKind: TypeAlias = Literal["syntax", "logical", "type", "name", "timeout"]
Level: TypeAlias = Literal["easy", "medium", "hard"]
Runner: TypeAlias = Callable[[Sequence[tuple[str, Tests]]], list[ExecutionResult]]
"""Runs programs with their tests, as `CodeExecutor.run` does; an empty test runs the program alone."""

FAULT_KINDS: tuple[FaultKind, ...] = ("syntax", "logical", "type", "name", "timeout")
LEVELS: tuple[Level, ...] = ("easy", "medium", "hard")


@dataclass(frozen=True, slots=True)
class Question:
    """Hold an instruction to write a program.

    Args:
        id (`str`):
            Identity, unique in a run.
        instruction (`str`):
            What the student and the teacher read.
        tests (`Tests`, *optional*):
            What a right program passes, as `CodeExecutor.run` takes it; `None` where there are none.
        answer (`str`, *optional*):
            A right answer that came with the question, so that the teacher need not be asked for one.
        origin (`str`, *optional*, defaults to `"seed"`):
            `"seed"`, or the level of the question that it was written after.
        parent (`str`, *optional*):
            Id of that question.
    """

    id: str
    instruction: str
    tests: Tests | None = None
    answer: str | None = None
    origin: Literal["seed"] | Level = "seed"
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """Hold a faulty answer: `kind` is what the teacher was told to do, or `None` where the student erred by itself."""

    text: str
    kind: FaultKind | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Hold a right answer to a question, and faulty ones beside it."""

    question: Question
    correct: str
    faults: tuple[Fault, ...]
