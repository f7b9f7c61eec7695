"""Questions, answers and pairs, and the reading of questions from rows."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

from ...execution import ExecutionResult, Tests, check_tests, decode_tests

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
"""Function that runs programs with their tests, as `CodeExecutor.run` does; without a test, only the program runs."""

FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True, slots=True)
class Question:
    """Programming question."""

    id: str  # unique within a run
    instruction: str
    tests: Tests | None = None  # as for `CodeExecutor.run`
    answer: str | None = None  # correct one, if the data have any
    origin: Literal["seed"] | Level = "seed"  # level of the question from which the teacher derived it
    parent: str | None = None  # id of that question


@dataclass(frozen=True, slots=True)
class Fault:
    """Faulty answer; `kind` is the kind requested from the teacher, or `None` for an answer of the student."""

    text: str
    kind: FaultKind | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Correct answer to a question, with faulty ones."""

    question: Question
    correct: str
    faults: tuple[Fault, ...]


def read_questions(rows: Iterable[Mapping[str, Any]]) -> list[Question]:
    """Read questions, without repetitions.

    | column | meaning |
    |---|---|
    | `instruction`, `input` (*optional*) | task |
    | `id` (*optional*) | identifier; defaults to a digest of the task |
    | `tests` (*optional*) | test program, or `{"inputs": [...], "outputs": [...]}` or its JSON |
    | `answer` (*optional*) | correct answer; otherwise the teacher writes it |

    Raises:
        ValueError: If a row has another format, two different questions have the same id, or there are no rows.

    Example:

    ```python
    >>> [question.instruction for question in read_questions([{"instruction": "Add.", "input": "1 2"}])]
    ['Add.\\n1 2']

    ```
    """
    found: dict[str, Question] = {}
    for index, row in enumerate(rows):
        question = _read(row, index)
        if found.setdefault(question.id, question) != question:
            raise ValueError(f"row {index} has the `id` {question.id!r} of another question; make the ids unique.")
    if not found:
        raise ValueError("there are no seed questions; give at least one row with an `instruction`.")
    return list(found.values())


def question_as_json(question: Question) -> dict[str, Any]:
    """Return the fields of a question that have a value."""
    return {name: value for name, value in asdict(question).items() if value is not None}


def digest(questions: Iterable[Question]) -> str:
    """Return a digest of questions."""
    return hashlib.sha256(repr([question_as_json(question) for question in questions]).encode()).hexdigest()[:16]


def _read(row: Mapping[str, Any], index: int) -> Question:
    instruction = row.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        raise ValueError(
            f"`instruction` of row {index} is {instruction!r:.80}; give a text. The row has the columns "
            f"{', '.join(map(str, row))}."
        )
    text = "\n".join(filter(None, [instruction.strip(), _text(row, "input", index)]))
    tests = row.get("tests")
    if tests is not None:
        try:
            tests = decode_tests(tests)
            check_tests(tests, f"row {index}")
        except TypeError as error:
            raise ValueError(str(error)) from error
    name = row.get("id")
    return Question(
        id=hashlib.sha256(text.encode()).hexdigest()[:12] if name is None else str(name),
        instruction=text,
        tests=tests,
        answer=_text(row, "answer", index),
    )


def _text(row: Mapping[str, Any], column: str, index: int) -> str | None:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"`{column}` of row {index} is {value!r:.80}; give a text, or leave it out.")
    return value if value and value.strip() else None
