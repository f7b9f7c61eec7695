"""What the teacher of IterKD's micro world is taught: right answers, faulty ones, judgements and new questions."""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from ..iterkd.cycle.records import FAULT_KINDS, FaultKind
from ..iterkd.judge.rubric import Judgement, format_judgement
from .curricula import Curriculum, Row
from .operations import OPERATIONS
from .world import Step, Task, draw_solution

__all__ = ["JUDGE_LAYOUT", "LESSONS", "TEACHING_LAYOUTS", "draw_fault", "rubric"]

TEACHING_LAYOUTS: Mapping[str, str] = {
    "correct": "# {instruction}\n",
    "faulty": "# {instruction}\n# With a fault: {kind}\n",
    "new_easy": "# {instruction}\n# Another task:\n",
    "new_same": "# {instruction}\n# Another task of this kind:\n",
}
"""How the teacher is asked, by the names that `TeachingPrompts` has for it."""

JUDGE_LAYOUT = "# {instruction}\n{answer}\n# Judgement\n"
"""How the judge is asked."""

_SCORES: Mapping[FaultKind, tuple[float, ...]] = {
    "syntax": (0, 0, 0.5, 0, 0),
    "logical": (0, 1, 0.5, 1, 1),
    "type": (0, 0, 1, 0.5, 0.5),
    "name": (0, 0, 1, 0.5, 0.5),
    "timeout": (0, 0, 1, 0.5, 0),
}


def draw_fault(task: Task, kind: FaultKind, rng: random.Random) -> str:
    r"""Write a program for a task that has a fault of this kind.

    Example:

    ```python
    >>> from trl_akd.micro.world import sample_tasks
    >>> [task] = sample_tasks(1, split="train")
    >>> "while True" in draw_fault(task, "timeout", random.Random(0))
    True

    ```
    """
    if kind == "logical":
        return draw_solution(_with_another_step(task.steps, rng), rng)
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


def rubric(program: str, fault: FaultKind | None) -> Judgement:
    """Judge a program whose fault is known: all points for a right one, but half for readability if it has lambdas."""
    if fault is not None:
        return Judgement(_SCORES[fault])
    return Judgement((2, 1, 1, 0.5 if "lambda" in program else 1, 1))


def _rows(tasks: Sequence[Task]) -> Iterator[Row]:
    """Yield, of each task, the answer, a faulty answer, a judgement on an answer, and a new question.

    Of the answers that are judged, two in five are right, and as many have a logical fault: to see that takes reading
    the task, where the other faults show in the program alone.
    """
    rng = random.Random("lessons")
    others = _Others(tasks)
    for task in tasks:
        kind = rng.choice(FAULT_KINDS)
        known = rng.choice([None, None, "logical", "logical", kind])
        judged = task.solution if known is None else draw_fault(task, known, rng)
        question = rng.choice(["new_easy", "new_same"])
        asked = {"instruction": task.instruction, "kind": kind}
        yield {"prompt": TEACHING_LAYOUTS["correct"].format(**asked), "completion": task.solution}
        yield {"prompt": TEACHING_LAYOUTS["faulty"].format(**asked), "completion": draw_fault(task, kind, rng)}
        yield {
            "prompt": JUDGE_LAYOUT.format(instruction=task.instruction, answer=judged.strip()),
            "completion": format_judgement(rubric(judged, known)),
        }
        other = others.of_another_type(task, rng) if question == "new_easy" else others.of_same_type(task, rng)
        yield {"prompt": TEACHING_LAYOUTS[question].format(**asked), "completion": other.instruction}


class _Others:
    """Find tasks of the same domain, which is what they start from, and of the same type, which is how they end."""

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


def _with_another_step(steps: Sequence[Step], rng: random.Random) -> tuple[Step, ...]:
    """Replace one step by another that goes on with the same kind of value; of the last step, any kind will do."""
    last = len(steps) - 1
    choices = [(place, other) for place, step in enumerate(steps) for other in _in_place_of(step, place == last)]
    place, other = rng.choice(choices)
    return (*steps[:place], other, *steps[place + 1 :])


def _in_place_of(step: Step, is_last: bool) -> list[Step]:
    return [
        other
        for operation in OPERATIONS
        if operation.takes == step.operation.takes and (is_last or operation.gives == step.operation.gives)
        for argument in operation.arguments
        if (other := Step(operation, argument)) != step
    ]


LESSONS = Curriculum("lessons", _rows, max_length=192, steps=2_400)
