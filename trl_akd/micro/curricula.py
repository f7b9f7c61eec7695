"""What the teachers of the micro world are taught to write, besides programs."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..data.templates import render
from .world import Task

__all__ = ["BACKWARD_LAYOUT", "CODE", "FORWARD_LAYOUT", "PLANS", "Curriculum", "code_rows", "draw_plan"]

Row = Mapping[str, str]

FORWARD_LAYOUT = render("codeplan_plan", "{problem}")
"""Asks for the plan of a problem alone, in the words in which students are asked."""

BACKWARD_LAYOUT = "[GEN_PLAN]\nQUESTION:\n{problem}\n\nPROGRAM:\n{solution}\n\nLet's think step by step:\n"
"""Asks for the plan behind a solution."""


@dataclass(frozen=True)
class Curriculum:
    """State what a teacher learns, and how long.

    Args:
        name (`str`): identity, e.g. in the cache.
        rows (`Callable`): makes rows of `prompt` and `completion` from tasks.
        max_length (`int`): tokens that the longest row needs, rounded up; what teacher and student can read.
        steps (`int`): optimiser steps of the teacher.
    """

    name: str
    rows: Callable[[Sequence[Task]], Iterator[Row]]
    max_length: int
    steps: int


def code_rows(tasks: Sequence[Task]) -> Iterator[Row]:
    """Yield each task's instruction, as a comment, with its solution."""
    for task in tasks:
        yield {"prompt": task.prompt, "completion": task.solution}


def draw_plan(task: Task, rng: random.Random) -> str:
    """Write the steps of a task as a numbered list, each in one of its wordings, whichever the instruction has.

    Example:
        >>> from trl_akd.micro.world import sample_tasks
        >>> [task] = sample_tasks(1, split="train", lengths=(2,))
        >>> [line[:3] for line in draw_plan(task, random.Random(0)).splitlines()]
        ['1. ', '2. ']
    """
    wordings = (step.phrase(rng.randrange(len(step.operation.phrases))) for step in task.steps)
    return "\n".join(f"{number}. {wording}" for number, wording in enumerate(wordings, start=1))


def _plan_rows(tasks: Sequence[Task]) -> Iterator[Row]:
    """Yield, of each task, the program, the plan behind it, and the plan of the problem alone."""
    rng = random.Random("plans")
    for task in tasks:
        solution = task.solution.strip()
        yield {"prompt": render("codeplan_code", task.instruction), "completion": task.solution}
        yield {
            "prompt": BACKWARD_LAYOUT.format(problem=task.instruction, solution=solution),
            "completion": draw_plan(task, rng),
        }
        yield {"prompt": FORWARD_LAYOUT.format(problem=task.instruction), "completion": draw_plan(task, rng)}


CODE = Curriculum("code", code_rows, max_length=128, steps=800)
PLANS = Curriculum("plans", _plan_rows, max_length=192, steps=1_600)
