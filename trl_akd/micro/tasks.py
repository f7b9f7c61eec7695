"""Generate small Python programming tasks.

A task is a composition of up to three [`Operation`]s with their arguments, its steps. The instruction, the reference
solution and the unit tests derive from the steps. The instruction may give the last step first.

Each operation has several wordings and implementations, drawn at random, as in code that people write. A row of data
shows one implementation. A model trained on many rows learns the probability of each, so its distribution over tokens
has more information than the row.

Tasks are split by their sequence of operations: about a fifth of all sequences is held out and never drawn for
training. Every operation occurs in training; held-out tasks have new combinations.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from .operations import NUMBERS, OPERATIONS, TEXT, Operation

Split = Literal["train", "held_out"]

ENTRY_POINT = "solve"
MAX_STEPS = 3

_EXAMPLES_PER_TASK, _PUBLIC_EXAMPLES = 6, 2
_SEQUENCES_PER_HELD_OUT = 5
_WORDS = ("a", "Tree", "stone", "in", "River", "Ears", "to", "Radio", "iron", "Tie", "on", "Orbit", "sea", "Otter")
_FORWARD = (("first ", "then ", "finally "), ("to begin, ", "next, ", "in the end, "))
_BACKWARD = (("first of all ", "before that ", "finally "), ("to begin with, ", "before that ", "in the end, "))


@dataclass(frozen=True)
class Step:
    """An operation with its argument."""

    operation: Operation
    argument: str

    def phrase(self, wording: int = 0) -> str:
        """Return the step as an imperative clause."""
        return self.operation.phrases[wording].replace("{k}", self.argument)

    def expression(self, form: int = 0) -> str:
        """Return the step as a Python expression of the variable `operation.takes`."""
        return self.operation.forms[form].replace("{k}", self.argument)

    def __call__(self, value: Any) -> Any:
        """Return the result of the step."""
        return _function(self.operation.takes, self.expression())(value)


@dataclass(frozen=True)
class Task:
    """A programming task with its reference solution and tests.

    Args:
        task_id (`str`):
            Split, seed and position, such as `"held_out/0/17"`.
        steps (`tuple[Step, ...]`):
            Steps in the order of execution.
        instruction (`str`):
            Steps in natural language.
        solution (`str`):
            Program that defines the function `solve`.
        tests (`str`):
            `assert` statements that call `solve`, to run after a solution.
        public_tests (`str`):
            Two more assertions on other inputs, for selecting a program by tests.
    """

    task_id: str
    steps: tuple[Step, ...]
    instruction: str
    solution: str
    tests: str
    public_tests: str

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the operations in the order of execution, which determine the split."""
        return operation_names(self.steps)

    @property
    def prompt(self) -> str:
        """Instruction as a comment, which a model continues with a solution."""
        return f"# {self.instruction}\n"

    @property
    def difficulty(self) -> str:
        """Number of steps, and whether the instruction gives the last one first."""
        told = "backwards" if self.instruction.startswith(tuple(last for *_, last in _BACKWARD)) else "in order"
        return f"{len(self.steps)} steps, told {told}"


def is_held_out(operations: Sequence[str]) -> bool:
    """Return whether a sequence of operations is held out, as a function of their names alone.

    Example:
        >>> is_held_out(["add"])
        False
        >>> is_held_out(["reverse_text", "upper"]), is_held_out(["upper", "reverse_text"])
        (False, False)
    """
    digest = hashlib.sha256(" ".join(operations).encode()).digest()
    return len(operations) > 1 and digest[0] % _SEQUENCES_PER_HELD_OUT == 0


def run(steps: Iterable[Step], value: Any) -> Any:
    """Return the result of a composition of steps on an input.

    Example:
        >>> by_name = {operation.name: operation for operation in OPERATIONS}
        >>> run([Step(by_name["add"], "2"), Step(by_name["sum"], "")], [1, 2, 3])
        12
    """
    for step in steps:
        value = step(value)
    return value


def sample_tasks(count: int, *, split: Split, seed: int = 0, lengths: Sequence[int] = (2, 3, 3)) -> list[Task]:
    """Return random tasks of one split; the same arguments give the same tasks on every machine.

    Args:
        count (`int`):
            Number of tasks.
        split (`str`):
            `"train"` or `"held_out"`, which have no sequence of operations in common.
        seed (`int`, *optional*, defaults to `0`):
            Random seed, independent between splits.
        lengths (`Sequence[int]`, *optional*, defaults to `(2, 3, 3)`):
            Numbers of steps, drawn uniformly.

    Raises:
        ValueError: If a length is not between 1 and 3, or if every length of held-out tasks is 1.
    """
    if not all(1 <= length <= MAX_STEPS for length in lengths):
        raise ValueError(f"lengths must lie between 1 and {MAX_STEPS}, got {tuple(lengths)}")
    if split == "held_out" and max(lengths) == 1:
        raise ValueError("lengths must include 2 or 3 for held-out tasks: single operations are never held out")
    rng = random.Random(f"{split} {seed}")
    tasks: list[Task] = []
    while len(tasks) < count:
        steps = _draw_steps(rng, rng.choice(lengths))
        examples = draw_examples(rng, steps[0].operation.takes, _EXAMPLES_PER_TASK)
        if is_held_out(operation_names(steps)) == (split == "held_out") and every_step_matters(steps, examples):
            tasks.append(_make_task(f"{split}/{seed}/{len(tasks)}", rng, steps, examples))
    return tasks


def draw_solution(steps: Sequence[Step], rng: random.Random) -> str:
    """Return a program of the steps, each in one of its implementations."""
    return write_solution(steps, [rng.randrange(len(step.operation.forms)) for step in steps])


def write_solution(steps: Sequence[Step], forms: Sequence[int]) -> str:
    """Return the program of the steps in the given implementations."""
    expressions = [step.expression(form) for step, form in zip(steps, forms, strict=True)]
    assignments = [f"{step.operation.gives} = {e}" for step, e in zip(steps[:-1], expressions[:-1], strict=True)]
    lines = [*assignments, f"return {expressions[-1]}"]
    return f"def {ENTRY_POINT}({steps[0].operation.takes}):\n" + "".join(f"    {line}\n" for line in lines)


def write_rows(tasks: Iterable[Task], path: str | Path) -> None:
    """Write tasks as training rows with `prompt` and `completion`."""
    write_json_lines(({"prompt": task.prompt, "completion": task.solution} for task in tasks), path)


def write_problems(tasks: Iterable[Task], path: str | Path) -> None:
    """Write tasks as problems of a benchmark."""
    problems = (
        {
            "task_id": task.task_id,
            "prompt": task.prompt,
            "instruction": task.instruction,
            "entry_point": ENTRY_POINT,
            "test": task.tests,
            "public_test": task.public_tests,
            "difficulty": task.difficulty,
        }
        for task in tasks
    )
    write_json_lines(problems, path)


def write_json_lines(rows: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Write rows to a JSON Lines file."""
    Path(path).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


@cache
def _function(variable: str, expression: str) -> Any:
    return eval(f"lambda {variable}: {expression}")


def operation_names(steps: Iterable[Step]) -> tuple[str, ...]:
    """Return the names of operations, which determine the split of a task."""
    return tuple(step.operation.name for step in steps)


def _draw_steps(rng: random.Random, length: int) -> tuple[Step, ...]:
    kind = rng.choice((NUMBERS, TEXT))
    steps: list[Step] = []
    while len(steps) < length:
        operation = rng.choice([o for o in OPERATIONS if o.takes == kind and o.name not in operation_names(steps)])
        steps.append(Step(operation, rng.choice(operation.arguments)))
        kind = operation.gives
    return tuple(steps)


def draw_examples(rng: random.Random, kind: str, count: int) -> list[Any]:
    """Return random inputs of a kind, `NUMBERS` or `TEXT`."""
    return [_draw_numbers(rng) if kind == NUMBERS else _draw_text(rng) for _ in range(count)]


def _make_task(task_id: str, rng: random.Random, steps: tuple[Step, ...], examples: Sequence[Any]) -> Task:
    public = draw_examples(random.Random(f"public {task_id}"), steps[0].operation.takes, _PUBLIC_EXAMPLES)
    return Task(
        task_id,
        steps,
        _draw_instruction(rng, steps),
        draw_solution(steps, rng),
        write_tests(steps, examples),
        write_tests(steps, public),
    )


def _draw_numbers(rng: random.Random) -> list[int]:
    numbers = [rng.randint(-9, 20) for _ in range(rng.randint(5, 8))]
    return [*numbers, rng.choice(numbers)]


def _draw_text(rng: random.Random) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.randint(4, 7)))


def every_step_matters(steps: Sequence[Step], examples: Sequence[Any]) -> bool:
    """Return whether the examples depend on each step: results vary, and leaving out a step changes at least one."""
    results = [run(steps, example) for example in examples]
    shorter = [(*steps[:i], *steps[i + 1 :]) for i, s in enumerate(steps) if s.operation.takes == s.operation.gives]
    return any(result != results[0] for result in results) and all(
        any(run(rest, example) != result for example, result in zip(examples, results, strict=True))
        for rest in shorter
    )


def _draw_instruction(rng: random.Random, steps: Sequence[Step]) -> str:
    phrases = [step.phrase(rng.randrange(len(step.operation.phrases))) for step in steps]
    if len(phrases) == 1:
        return phrases[0]
    first, between, last = marks = rng.choice(_FORWARD + _BACKWARD)
    clauses = [first + phrases[0], *(between + phrase for phrase in phrases[1:-1]), last + phrases[-1]]
    return ", ".join(reversed(clauses) if marks in _BACKWARD else clauses)


def write_tests(steps: Sequence[Step], examples: Iterable[Any]) -> str:
    """Return an assertion per example, about a function `solve` that applies the steps."""
    return "".join(f"assert {ENTRY_POINT}({example!r}) == {run(steps, example)!r}\n" for example in examples)
