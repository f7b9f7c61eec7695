"""Questions, answers and pairs, and the reading of questions from rows."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from ...execution import ExecutionResult, Tests, check_tests

__all__ = [
    "FAULT_KINDS",
    "LEVELS",
    "Fault",
    "FaultKind",
    "Level",
    "Pair",
    "Question",
    "Runner",
    "digest",
    "question_as_json",
    "read_questions",
]

FaultKind: TypeAlias = Literal["syntax", "logical", "type", "name", "timeout"]
Level: TypeAlias = Literal["easy", "medium", "hard"]
Runner: TypeAlias = Callable[[Sequence[tuple[str, Tests]]], list[ExecutionResult]]
"""Runs programs with their tests, as `CodeExecutor.run` does; an empty test runs the program alone."""

FAULT_KINDS: tuple[FaultKind, ...] = ("syntax", "logical", "type", "name", "timeout")
LEVELS: tuple[Level, ...] = ("easy", "medium", "hard")


@dataclass(frozen=True, slots=True)
class Question:
    """Programming question.

    Args:
        id (`str`):
            Identity, unique in a run.
        instruction (`str`):
            Instruction for student and teacher.
        tests (`Tests`, *optional*):
            Tests of a correct program, as `CodeExecutor.run` takes them; `None` without tests.
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
    """Faulty answer; `kind` is what was requested from the teacher, or `None` for an answer of the student."""

    text: str
    kind: FaultKind | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Correct answer to a question, with faulty ones."""

    question: Question
    correct: str
    faults: tuple[Fault, ...]


def read_questions(rows: Iterable[Mapping[str, Any]]) -> list[Question]:
    """Read questions.

    | column | meaning |
    |---|---|
    | `instruction`, and perhaps `input` | what is asked |
    | `id`, *optional* | identity; otherwise a digest of the question |
    | `tests`, *optional* | a test program, or `{"inputs": [...], "outputs": [...]}` |
    | `answer`, *optional* | a right answer, so that the teacher need not be asked for one |

    Questions that are there twice are taken once.

    Raises:
        ValueError: If a row has another format, two different questions have the same id, or there are none.

    Example:

    ```python
    >>> [question.instruction for question in read_questions([{"instruction": "Add.", "input": "1 2"}])]
    ['Add.\\n1 2']

    ```
    """
    found: dict[str, Question] = {}
    for number, row in enumerate(rows):
        question = _read(row, number)
        if found.setdefault(question.id, question) != question:
            raise ValueError(f"row {number} has the `id` {question.id!r} of another question; give each its own.")
    if not found:
        raise ValueError("there are no questions to begin with; give at least one row with an `instruction`.")
    return list(found.values())


def question_as_json(question: Question) -> dict[str, Any]:
    """Return a question's plain values, without what it lacks."""
    return {name: value for name, value in asdict(question).items() if value is not None}


def digest(questions: Iterable[Question]) -> str:
    """Return what tells sets of questions apart."""
    return hashlib.sha256(repr([question_as_json(question) for question in questions]).encode()).hexdigest()[:16]


def _read(row: Mapping[str, Any], number: int) -> Question:
    instruction = row.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        raise ValueError(
            f"`instruction` of row {number} is {instruction!r:.80}; give a text. The row has the columns "
            f"{', '.join(map(str, row))}."
        )
    text = "\n".join(filter(None, [instruction.strip(), _text(row, "input", number)]))
    tests = row.get("tests")
    if tests is not None:
        _check(tests, f"`tests` of row {number}")
    name = row.get("id")
    return Question(
        id=hashlib.sha256(text.encode()).hexdigest()[:12] if name is None else str(name),
        instruction=text,
        tests=tests,
        answer=_text(row, "answer", number),
    )


def _check(tests: Any, where: str) -> None:
    try:
        check_tests(tests, where)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _text(row: Mapping[str, Any], column: str, number: int) -> str | None:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"`{column}` of row {number} is {value!r:.80}; give a text, or leave it out.")
    return value if value and value.strip() else None
