"""Training data of the teachers: programs for AKD, plans for CodePLAN; answers, faults, judgements and questions for
IterKD.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..data.templates import render
from ..iterkd.cycle.records import FAULT_KINDS, FaultKind
from ..iterkd.judge.rubric import Judgement, format_judgement
from .operations import OPERATIONS
from .tasks import Step, Task, draw_solution

__all__ = [
    "AKD_DATA",
    "BACKWARD_PROMPT",
    "CODEPLAN_DATA",
    "FORWARD_PROMPT",
    "ITERKD_DATA",
    "JUDGE_PROMPT",
    "TEACHING_PROMPTS",
    "TeacherData",
    "code_rows",
    "draw_fault",
    "draw_plan",
    "score",
]

Row = Mapping[str, str]

FORWARD_PROMPT = render("codeplan_plan", "{problem}")
"""Prompt for the plan of a problem alone, the same as the student's."""

BACKWARD_PROMPT = "[GEN_PLAN]\nQUESTION:\n{problem}\n\nPROGRAM:\n{solution}\n\nLet's think step by step:\n"
"""Prompt for the plan behind a solution."""

TEACHING_PROMPTS: Mapping[str, str] = {
    "correct": "# {instruction}\n",
    "faulty": "# {instruction}\n# With a fault: {kind}\n",
    "new_easy": "# {instruction}\n# Another task:\n",
    "new_same": "# {instruction}\n# Another task of this kind:\n",
}
"""Prompts of the teacher, by the names of `TeachingPrompts`."""

JUDGE_PROMPT = "# {instruction}\n{answer}\n# Judgement\n"
"""Prompt of the judge."""

_SCORES: Mapping[FaultKind, tuple[float, ...]] = {
    "syntax": (0, 0, 0.5, 0, 0),
    "logical": (0, 1, 0.5, 1, 1),
    "type": (0, 0, 1, 0.5, 0.5),
    "name": (0, 0, 1, 0.5, 0.5),
    "timeout": (0, 0, 1, 0.5, 0),
}


@dataclass(frozen=True)
class TeacherData:
    """Training data and length of training of a teacher.

    Args:
        name (`str`):
            Name of the teacher in the cache.
        rows (`Callable`):
            Function from tasks to rows of `prompt` and `completion`.
        max_length (`int`):
            Maximum number of tokens of a row, rounded up: the number of positions of teacher and student.
        steps (`int`):
            Number of optimizer steps.
    """

    name: str
    rows: Callable[[Sequence[Task]], Iterator[Row]]
    max_length: int
    steps: int


def code_rows(tasks: Sequence[Task]) -> Iterator[Row]:
    """Yield the instruction of each task, as a comment, with its solution."""
    for task in tasks:
        yield {"prompt": task.prompt, "completion": task.solution}


def draw_plan(task: Task, rng: random.Random) -> str:
    """Return the steps of a task as a numbered list, each in a wording drawn at random.

    Example:
        >>> from trl_akd.micro.tasks import sample_tasks
        >>> [task] = sample_tasks(1, split="train", lengths=(2,))
        >>> [line[:3] for line in draw_plan(task, random.Random(0)).splitlines()]
        ['1. ', '2. ']
    """
    wordings = (step.phrase(rng.randrange(len(step.operation.phrases))) for step in task.steps)
    return "\n".join(f"{number}. {wording}" for number, wording in enumerate(wordings, start=1))


def _plan_rows(tasks: Sequence[Task]) -> Iterator[Row]:
    """Yield the program, the plan behind the program, and the plan of the problem alone of each task."""
    rng = random.Random("plans")
    for task in tasks:
        solution = task.solution.strip()
        yield {"prompt": render("codeplan_code", task.instruction), "completion": task.solution}
        yield {
            "prompt": BACKWARD_PROMPT.format(problem=task.instruction, solution=solution),
            "completion": draw_plan(task, rng),
        }
        yield {"prompt": FORWARD_PROMPT.format(problem=task.instruction), "completion": draw_plan(task, rng)}


def draw_fault(task: Task, kind: FaultKind, rng: random.Random) -> str:
    r"""Return a program for a task with a fault of this kind.

    Example:

    ```python
    >>> from trl_akd.micro.tasks import sample_tasks
    >>> [task] = sample_tasks(1, split="train")
    >>> "while True" in draw_fault(task, "timeout", random.Random(0))
    True

    ```
    """
    if kind == "logical":
        return draw_solution(_replace_a_step(task.steps, rng), rng)
    head, *body, last = draw_solution(task.steps, rng).splitlines(keepends=True)
    value = last.removeprefix("    return ").rstrip("\n")
    variable = task.steps[-1].operation.takes
    match kind:
        case "syntax":
            head = head.replace(":", "")
        case "type":
            last = f"    return {value} + None\n"
        case "name":
            last = f"    return {value.replace(variable, f'{variable}_')}\n"
        case "timeout":
            last = f"    while True:\n        {variable} = {variable}\n{last}"
    return "".join([head, *body, last])


def score(program: str, fault: FaultKind | None) -> Judgement:
    """Return the judgement of a program with a known fault.

    Without a fault, all scores are full, but readability has half a point if the program has lambdas.
    """
    if fault is not None:
        return Judgement(_SCORES[fault])
    return Judgement((2, 1, 1, 0.5 if "lambda" in program else 1, 1))


def _teaching_rows(tasks: Sequence[Task]) -> Iterator[Row]:
    """Yield a correct answer, a faulty answer, a judgement of an answer, and a new question for each task.

    Two in five of the judged answers are correct, and as many have a logical fault, which shows only in comparison
    with the task.
    """
    rng = random.Random("lessons")
    others = _Others(tasks)
    for task in tasks:
        kind = rng.choice(FAULT_KINDS)
        known = rng.choice([None, None, "logical", "logical", kind])
        judged = task.solution if known is None else draw_fault(task, known, rng)
        question = rng.choice(["new_easy", "new_same"])
        asked = {"instruction": task.instruction, "kind": kind}
        yield {"prompt": TEACHING_PROMPTS["correct"].format(**asked), "completion": task.solution}
        yield {"prompt": TEACHING_PROMPTS["faulty"].format(**asked), "completion": draw_fault(task, kind, rng)}
        yield {
            "prompt": JUDGE_PROMPT.format(instruction=task.instruction, answer=judged.strip()),
            "completion": format_judgement(score(judged, known)),
        }
        other = others.of_another_type(task, rng) if question == "new_easy" else others.of_same_type(task, rng)
        yield {"prompt": TEACHING_PROMPTS[question].format(**asked), "completion": other.instruction}


class _Others:
    """Tasks by type: kind of input, last operation and number of steps."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._by_type: defaultdict[_Type, list[Task]] = defaultdict(list)
        for task in tasks:
            self._by_type[_type(task)].append(task)

    def of_same_type(self, task: Task, rng: random.Random) -> Task:
        return rng.choice(self._by_type[_type(task)])

    def of_another_type(self, task: Task, rng: random.Random) -> Task:
        domain = _type(task)[0]
        types = [found for found in self._by_type if found[0] == domain and found != _type(task)]
        return rng.choice(self._by_type[rng.choice(types or [_type(task)])])


_Type: TypeAlias = tuple[str, str, int]


def _type(task: Task) -> _Type:
    return task.steps[0].operation.takes, task.operations[-1], len(task.steps)


def _replace_a_step(steps: Sequence[Step], rng: random.Random) -> tuple[Step, ...]:
    """Replace one step by another with the same kinds of input and output, or, for the last step, of input alone."""
    last = len(steps) - 1
    choices = [(place, other) for place, step in enumerate(steps) for other in _replacements(step, place == last)]
    place, other = rng.choice(choices)
    return (*steps[:place], other, *steps[place + 1 :])


def _replacements(step: Step, is_last: bool) -> list[Step]:
    return [
        other
        for operation in OPERATIONS
        if operation.takes == step.operation.takes and (is_last or operation.gives == step.operation.gives)
        for argument in operation.arguments
        if (other := Step(operation, argument)) != step
    ]


AKD_DATA = TeacherData("code", code_rows, max_length=128, steps=800)
CODEPLAN_DATA = TeacherData("plans", _plan_rows, max_length=192, steps=1_600)
ITERKD_DATA = TeacherData("lessons", _teaching_rows, max_length=192, steps=2_400)
