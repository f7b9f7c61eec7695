"""World of generated programs for IterKD: a student that knows some operations, and questions of different difficulty.

Tasks are those of [`sample_tasks`]: two or three operations on a list or a text. The student was pre-trained on tasks
in which some operations are rare, so that it fails where they occur, and questions differ in difficulty for it.
"""

import itertools
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal, TypeAlias

from ...execution import CodeExecutor, ExecutionResult
from ..operations import OPERATIONS
from ..tasks import Split, Task, sample_tasks, write_solution

__all__ = [
    "MAX_NEW_TOKENS",
    "PASSED",
    "TIMEOUT",
    "CyclesWorld",
    "QuestionPool",
    "Relation",
    "correct_programs",
    "error_class",
    "outcomes",
]

PASSED = "passed"
TIMED_OUT = "timed_out"
TIMEOUT = 0.5  # seconds of CPU; programs that end need less than a hundredth of that
LENGTHS = (2, 3)
MAX_NEW_TOKENS = 48
_TASKS_PER_BATCH = 2_000
_MAY_BE_RARE = tuple(operation.name for operation in OPERATIONS if operation.takes == operation.gives)
_ARGUMENT = re.compile(r"\d|'[a-z]'")
_ENDLESS_LOOP = re.compile(r"^    while True:\n        (\w+) = \1\n", re.MULTILINE)
_Type: TypeAlias = tuple[tuple[str, ...], int, int]
Relation: TypeAlias = Literal["new_easy", "new_same"]


@dataclass(frozen=True)
class CyclesWorld:
    """Tasks of a seed, and the operations that are rare in pre-training.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of the rare operations and of the tasks.
        num_rare (`int`, *optional*, defaults to `9`):
            Number of rare operations.
        rare_share (`float`, *optional*, defaults to `0.1`):
            Probability with which pre-training keeps each occurrence of a rare operation.

    Raises:
        ValueError: If an argument is outside its range.

    Example:

    ```python
    >>> world = CyclesWorld(num_rare=2, rare_share=0.0)
    >>> tasks = world.sample_pretraining(50)
    >>> len(world.rare), any(world.rare.intersection(task.operations) for task in tasks)
    (2, False)

    ```
    """

    seed: int = 0
    num_rare: int = 9
    rare_share: float = 0.1

    def __post_init__(self) -> None:
        if self.num_rare not in range(len(_MAY_BE_RARE) + 1):
            raise ValueError(f"`num_rare` is {self.num_rare!r}; give an integer from 0 to {len(_MAY_BE_RARE)}.")
        if not 0.0 <= self.rare_share <= 1.0:
            raise ValueError(f"`rare_share` is {self.rare_share!r}; give a probability.")

    @cached_property
    def rare(self) -> frozenset[str]:
        """Names of the rare operations."""
        return frozenset(random.Random(f"{self.seed} rare").sample(_MAY_BE_RARE, self.num_rare))

    def sample(self, count: int, *, split: Split, stream: str) -> list[Task]:
        """Return random tasks of a split, in which no operation is made rare; streams are independent."""
        seed = random.Random(f"{self.seed} {stream}").getrandbits(31)
        return sample_tasks(count, split=split, seed=seed, lengths=LENGTHS)

    def sample_pretraining(self, count: int) -> list[Task]:
        """Return training tasks in which the rare operations are rare."""
        rng = random.Random(f"{self.seed} kept")
        batches = (
            self.sample(_TASKS_PER_BATCH, split="train", stream=f"pretraining {number}")
            for number in itertools.count()
        )
        kept = (
            task
            for task in itertools.chain.from_iterable(batches)
            if all(name not in self.rare or rng.random() < self.rare_share for name in task.operations)
        )
        return list(itertools.islice(kept, count))


class QuestionPool:
    """Training tasks by instruction, and the new questions that a teacher derives from one of them.

    Args:
        world (`CyclesWorld`):
            The world.
        size (`int`, *optional*, defaults to `8000`):
            Number of tasks.
    """

    def __init__(self, world: CyclesWorld, size: int = 8_000) -> None:
        self.tasks = {task.instruction: task for task in world.sample(size, split="train", stream="pool")}
        self._by_type: defaultdict[_Type, list[Task]] = defaultdict(list)
        self._by_domain: defaultdict[str, list[Task]] = defaultdict(list)
        for task in self.tasks.values():
            self._by_domain[_domain(task)].append(task)
            for kind in _types(task):
                self._by_type[kind].append(task)
        self._with_rare = [task for task in self.tasks.values() if world.rare.intersection(task.operations)]

    def add(self, tasks: Sequence[Task]) -> None:
        """Add tasks that are asked about, but not proposed as new questions."""
        self.tasks |= {task.instruction: task for task in tasks}

    def derive(self, task: Task, relation: Relation, rng: random.Random) -> Task:
        """Return another task of the same domain, or of the same type: with one operation replaced."""
        if relation == "new_easy":
            return rng.choice(self._by_domain[_domain(task)])
        kinds = _types(task)
        for kind in rng.sample(kinds, len(kinds)):
            others = [other for other in self._by_type[kind] if other.operations != task.operations]
            if others:
                return rng.choice(others)
        return rng.choice(self._by_domain[_domain(task)])

    def with_rare_operation(self, rng: random.Random) -> Task:
        """Return a task with a rare operation.

        Raises:
            ValueError: If the world has none.
        """
        if not self._with_rare:
            raise ValueError("the world has no rare operations; raise `num_rare`.")
        return rng.choice(self._with_rare)


@cache
def correct_programs(task: Task) -> frozenset[str]:
    """Return the programs of a task that data and teacher may write, without surrounding white space."""
    forms = itertools.product(*(range(len(step.operation.forms)) for step in task.steps))
    return frozenset(write_solution(task.steps, chosen).strip() for chosen in forms)


def outcomes(programs: Sequence[tuple[Task, str]], executor: CodeExecutor) -> list[str]:
    """Return `"passed"` or the error class of each program of a task; see [`error_class`].

    Equal programs run once. Programs that data and teacher may write are correct, and do not run; neither do they with
    the endless loop of a fault of the kind `timeout`.

    Raises:
        RuntimeError: If the sandbox could not run a program.
    """
    known = {program: _known_outcome(*program) for program in dict.fromkeys(programs)}
    unknown = [program for program, outcome in known.items() if outcome is None]
    results = executor.run([(text, task.tests) for task, text in unknown])
    for (task, text), result in zip(unknown, results, strict=True):
        known[task, text] = error_class(task, text, result)
    return [str(known[program]) for program in programs]


def _known_outcome(task: Task, text: str) -> str | None:
    for changed, outcome in ((text, PASSED), (_ENDLESS_LOOP.sub("", text), TIMED_OUT)):
        if changed.strip() in correct_programs(task):
            return outcome
    return None


def error_class(task: Task, program: str, result: ExecutionResult) -> str:
    """Return `"passed"`, the class of the exception, or the difference of a program that runs from a correct one.

    Programs that run are classified by their lines: `"number of steps"`, `"argument"` if only digits or letters in
    quotes differ from a correct line, and else `"wrong step"`.

    Raises:
        RuntimeError: If the sandbox could not run the program.
    """
    if result.status == "infra_error":
        raise RuntimeError(f"The sandbox could not run a program: {result.message}")
    if result.passed:
        return PASSED
    if result.error_type != "AssertionError":
        return result.error_type or result.status
    lines = program.strip().splitlines()
    correct = [text.splitlines() for text in correct_programs(task)]
    if len(lines) != len(correct[0]):
        return "number of steps"
    only_arguments = all(
        any(_without_arguments(line) == _without_arguments(other[number]) for other in correct)
        for number, line in enumerate(lines)
    )
    return "argument" if only_arguments else "wrong step"


def _without_arguments(line: str) -> str:
    return _ARGUMENT.sub("", line)


def _domain(task: Task) -> str:
    return task.steps[0].operation.takes


def _types(task: Task) -> list[_Type]:
    """Return the types of a task: its operations without one of them, the place of that one, and their number."""
    names = task.operations
    return [((*names[:place], *names[place + 1 :]), place, len(names)) for place in range(len(names))]
