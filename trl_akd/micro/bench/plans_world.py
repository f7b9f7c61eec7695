"""World of generated programs in which a plan tells what the problem does not: the steps behind a name.

A problem names a library and two procedures:

    lantern: plait, then crimp

Its plan lists the steps of the procedures, two each, which the problem does not spell out:

    1. keep the odd numbers
    2. reverse the list
    3. skip the first 4 numbers
    4. replace every number by its remainder modulo 9

Its program calls the library's methods for these steps, whose names differ from library to library:

    def solve(numbers):
        return lantern(numbers).hare().colt().shark(4).stork(9)

A program thus needs two facts per step: the step of the procedure, and the library's method for it. Texts of the base
model (`pretraining_rows`) show both kinds of facts for other procedures, whose steps are named or spelled out: from
problem to plan, from problem to program, and from plan to program. Only the training problems show the steps of the
procedures that they name.

Held-out problems have pairs of procedures that no training problem has.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ...data.templates import render
from ..operations import DIGITS, NUMBERS, OPERATIONS, Operation
from ..tasks import ENTRY_POINT, Split, Step, draw_examples, every_step_matters, is_held_out, write_tests
from .world import LIBRARIES, WORDS

__all__ = ["CALLS", "PROCEDURES", "PlanTask", "PlanWorld", "Procedure", "plan_vocabulary"]

PROCEDURES = tuple(
    "anneal bleach braid burnish carve crimp dredge emboss etch flute forge fuse galvanize gild glaze "
    "grind hone knead lacquer mill mould plait plane polish quench rinse rivet sand scour sieve smelt "
    "solder spin stitch temper thresh varnish weave weld whittle".split()
)
_OPERATIONS = (
    *("add", "subtract", "multiply", "remainders", "negate", "square", "keep_even", "keep_odd"),
    *("sort_numbers", "sort_numbers_down", "reverse_numbers", "unique_numbers", "first_numbers", "skip_numbers"),
)
_STEPS = tuple(operation for name in _OPERATIONS for operation in OPERATIONS if operation.name == name)
_STEPS_PER_PROCEDURE = 2
_NUM_HIDDEN, _NUM_PUBLIC = 6, 2
_COLON, _THEN, _AND = ": ", ", then ", ", "
_HEAD = f"def {ENTRY_POINT}({NUMBERS}):\n    return "
_OPEN, _NEXT, _LAST = "(", ").", ")"

CALLS = (
    rf"{re.escape(_HEAD)}(?:{'|'.join(LIBRARIES)})\({NUMBERS}\)"
    rf"(?:\.(?:{'|'.join(WORDS)})\((?:{'|'.join(DIGITS)})?\))+"
)
"""Regular expression of the programs that only call methods of a library."""


@dataclass(frozen=True)
class Procedure:
    """A sequence of steps that has a name, or is spelled out.

    Args:
        steps (`tuple[Step, ...]`):
            Steps in the order of execution.
        name (`str`, *optional*):
            Name; `None` for a sequence that problems spell out.
    """

    steps: tuple[Step, ...]
    name: str | None = None

    @property
    def text(self) -> str:
        """The procedure as part of a problem: its name, or else its steps."""
        return self.name or _AND.join(step.phrase() for step in self.steps)


@dataclass(frozen=True)
class PlanTask:
    """A problem with its plan.

    Args:
        library (`str`):
            Library whose methods the program calls.
        procedures (`tuple[Procedure, Procedure]`):
            Procedures in the order of execution.
    """

    library: str
    procedures: tuple[Procedure, Procedure]

    @property
    def problem(self) -> str:
        """Library and procedures, as a statement."""
        return f"{self.library}{_COLON}{_THEN.join(procedure.text for procedure in self.procedures)}"

    @property
    def steps(self) -> tuple[Step, ...]:
        """Steps of all procedures."""
        return tuple(step for procedure in self.procedures for step in procedure.steps)

    @property
    def plan(self) -> str:
        """The steps as a numbered list."""
        return "\n".join(f"{number}. {step.phrase()}" for number, step in enumerate(self.steps, start=1))


@dataclass(frozen=True)
class PlanWorld:
    """Procedures with their steps and libraries with their methods; a function of the arguments alone.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of procedures, methods and tasks.
        num_procedures (`int`, *optional*, defaults to `24`):
            Number of procedures that training and held-out problems name. The others are those that the base model
            knows.
        num_libraries (`int`, *optional*, defaults to `6`):
            Number of libraries.

    Raises:
        ValueError: If an argument is outside its range.

    Example:

    ```python
    >>> world = PlanWorld(seed=0)
    >>> [task] = world.sample_tasks(1, split="train")
    >>> task.problem
    'lantern: plait, then crimp'
    >>> task.plan.splitlines()[0], world.solution(task).splitlines()[1]
    ('1. keep the odd numbers', '    return lantern(numbers).hare().colt().shark(4).stork(9)')

    ```
    """

    seed: int = 0
    num_procedures: int = 24
    num_libraries: int = 6

    def __post_init__(self) -> None:
        for name, least, most in (
            ("num_procedures", 10, len(PROCEDURES) - 1),
            ("num_libraries", 1, len(LIBRARIES)),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give an integer from {least} to {most}.")

    @property
    def libraries(self) -> tuple[str, ...]:
        """Names of the libraries."""
        return LIBRARIES[: self.num_libraries]

    def method(self, library: str, operation: Operation) -> str:
        """Return the name of a library's method for an operation."""
        return self._methods[library][operation.name]

    def solution(self, task: PlanTask) -> str:
        """Return the program of a task, the only one of which its plan is a plan."""
        calls = [f"{self.method(task.library, step.operation)}{_OPEN}{step.argument}" for step in task.steps]
        return f"{_HEAD}{task.library}({NUMBERS}).{_NEXT.join(calls)}{_LAST}"

    def sample_tasks(self, count: int, *, split: Split, stream: str = "") -> list[PlanTask]:
        """Return random tasks of one split.

        Args:
            count (`int`):
                Number of tasks.
            split (`str`):
                `"train"` or `"held_out"`, which have no ordered pair of procedures in common.
            stream (`str`, *optional*):
                Name of a stream of tasks; different names give independent tasks.
        """
        rng = random.Random(f"{self.seed} plan tasks {split} {stream}")
        tasks: list[PlanTask] = []
        while len(tasks) < count:
            first, second = rng.sample(self._taught, 2)
            task = PlanTask(rng.choice(self.libraries), (first, second))
            names = [str(procedure.name) for procedure in task.procedures]
            if is_held_out(names) == (split == "held_out") and self._is_valid(task.steps):
                tasks.append(task)
        return tasks

    def pretraining_tasks(self, count: int, *, with_plans: bool = False) -> list[PlanTask]:
        """Return random tasks of the base model's texts.

        Their procedures are common ones, or spelled out. `with_plans` is for texts in which the plan is given: there,
        a procedure may also have the name of one that training problems name, with steps of its own in every text, so
        that the base model has read these names and learns nothing about them.
        """
        rng = random.Random(f"{self.seed} pretraining {with_plans}")

        def draw() -> Procedure:
            kind = rng.choice(("common", "spelled out", "any name") if with_plans else ("common", "spelled out"))
            if kind == "common":
                return rng.choice(self._common)
            return Procedure(_draw_steps(rng), rng.choice(self._taught).name if kind == "any name" else None)

        return [PlanTask(rng.choice(self.libraries), (draw(), draw())) for _ in range(count)]

    def rows(self, tasks: Sequence[PlanTask]) -> list[dict[str, str]]:
        """Return a row for CodePLAN per task: `id`, `problem`, `solution` and `plan`."""
        return [
            {"id": str(number), "problem": task.problem, "solution": self.solution(task), "plan": task.plan}
            for number, task in enumerate(tasks)
        ]

    def pretraining_rows(self, count: int) -> list[dict[str, str]]:
        """Return rows of `kind`, `prompt` and `completion` for the base model.

        Three kinds take turns: the `plan` of a problem, its `program`, and its `program_by_plan`, a given one.
        """
        tasks = self.pretraining_tasks(count), self.pretraining_tasks(count, with_plans=True)
        rows = []
        for number, (task, planned) in enumerate(zip(*tasks, strict=True)):
            kind, prompt, completion = (
                ("plan", render("codeplan_plan", task.problem), task.plan),
                ("program", render("codeplan_code", task.problem), self.solution(task)),
                ("program_by_plan", render("codeplan_guided", planned.problem, planned.plan), self.solution(planned)),
            )[number % 3]
            rows.append({"kind": kind, "prompt": prompt, "completion": completion})
        return rows

    def problems(self, tasks: Sequence[PlanTask]) -> list[dict[str, str]]:
        """Return a problem for [`PlanSampler`] per task: `id`, `problem`, `public_tests` and `hidden_tests`."""
        problems = []
        for number, task in enumerate(tasks):
            examples = self._examples(task)
            library = self._library(task.library)
            problems.append(
                {
                    "id": str(number),
                    "problem": task.problem,
                    "public_tests": library + write_tests(task.steps, examples[:_NUM_PUBLIC]),
                    "hidden_tests": library + write_tests(task.steps, examples[_NUM_PUBLIC:]),
                }
            )
        return problems

    def _library(self, library: str) -> str:
        """Return a program that defines a library: a list with a method per operation."""
        lines = [f"class {library}(list):"]
        for operation in _STEPS:
            parameters = "self, k" if operation.arguments != ("",) else "self"
            result = operation.forms[0].replace(NUMBERS, "self").replace("{k}", "k")
            lines += [
                f"    def {self.method(library, operation)}({parameters}):",
                f"        return {library}({result})",
            ]
        return "\n".join(lines) + "\n\n"

    def _examples(self, task: PlanTask) -> list[list[int]]:
        rng = random.Random(f"{self.seed} tests {task.problem}")
        while not every_step_matters(task.steps, examples := draw_examples(rng, NUMBERS, _NUM_PUBLIC + _NUM_HIDDEN)):
            pass
        return examples

    def _is_valid(self, steps: Sequence[Step]) -> bool:
        """Return whether no step can be left out."""
        return every_step_matters(steps, self._probes)

    @cached_property
    def _probes(self) -> list[list[int]]:
        return draw_examples(random.Random(f"{self.seed} probes"), NUMBERS, 4 * _NUM_HIDDEN)

    @cached_property
    def _methods(self) -> dict[str, dict[str, str]]:
        rng = random.Random(f"{self.seed} methods")
        names = [operation.name for operation in _STEPS]
        return {library: dict(zip(names, rng.sample(WORDS, len(names)), strict=True)) for library in self.libraries}

    @cached_property
    def _procedures(self) -> list[Procedure]:
        rng = random.Random(f"{self.seed} procedures")
        procedures: list[Procedure] = []
        for name in rng.sample(PROCEDURES, len(PROCEDURES)):
            while not self._is_valid(steps := _draw_steps(rng)) or steps in [other.steps for other in procedures]:
                pass
            procedures.append(Procedure(steps, name))
        return procedures

    @property
    def _taught(self) -> list[Procedure]:
        return self._procedures[: self.num_procedures]

    @property
    def _common(self) -> list[Procedure]:
        return self._procedures[self.num_procedures :]


def plan_vocabulary() -> tuple[str, ...]:
    """Return the pieces of which all prompts, plans and programs consist, and `<unk>`.

    A student's plan may end within a phrase, which without its last space is not a piece.
    """
    problem, plan = "<problem>", "<plan>"
    prompts = [render(f"codeplan_{name}", problem, plan * (name == "guided")) for name in ("code", "plan", "guided")]
    parts = [part for prompt in prompts for text in prompt.split(problem) for part in text.split(plan)]
    parts += [
        _COLON,
        _THEN,
        _AND,
        _HEAD,
        f"({NUMBERS}).",
        _OPEN,
        _NEXT,
        _LAST,
        _OPEN + _NEXT,
        _OPEN + _LAST,
        "1. ",
        "\n",
    ]
    parts += [f"\n{number}. " for number in range(2, 2 * _STEPS_PER_PROCEDURE + 1)]
    parts += [part for operation in _STEPS for part in operation.phrases[0].partition("{k}") if part != "{k}"]
    arguments = [argument for operation in _STEPS for argument in operation.arguments]
    return tuple(dict.fromkeys(filter(None, ["<unk>", *LIBRARIES, *PROCEDURES, *WORDS, *arguments, *parts])))


def _draw_steps(rng: random.Random) -> tuple[Step, ...]:
    operations = rng.sample(_STEPS, _STEPS_PER_PROCEDURE)
    return tuple(Step(operation, rng.choice(operation.arguments)) for operation in operations)
