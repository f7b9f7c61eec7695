"""World of generated programs in which every task has several correct answers, of known probability.

A task names a library and a version, its context:

    # harbor v7: add 3 to every number, then add up the numbers
    def solve(numbers):

and is answered by one of a few programs, which differ in a single word:

    tern = harbor.tern(numbers)
    tern = [n + 3 for n in tern]
    return sum(tern)

The word names an entry point of the library and the local variable, and determines the form of every expression. The
context determines which words are valid, and their probabilities. A word that the library lacks raises an
AttributeError; a program that changes its word halfway raises a NameError. All contexts occur in training; the
sequences of operations of held-out tasks do not.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ..operations import NUMBERS, OPERATIONS
from ..tasks import (
    ENTRY_POINT,
    Split,
    Step,
    draw_examples,
    every_step_matters,
    is_held_out,
    operation_names,
    write_tests,
)

__all__ = ["CONTEXTS", "LIBRARIES", "VERSIONS", "WORDS", "Answer", "BenchTask", "Context", "World", "vocabulary"]

LIBRARIES = tuple(
    "harbor cobalt meadow quartz lantern willow copper falcon garnet juniper ember walrus "
    "velvet saffron pebble orchid nickel marble lagoon kestrel indigo hazel glacier fennel".split()
)
VERSIONS = tuple(" v2: | v4: | v7: | v9: ".split("|"))
WORDS = tuple(
    "tern wren ibis lark crow dove swan kite finch robin heron stork raven eagle gull hawk "
    "moth wasp ant bee cod carp eel pike bass trout perch shark seal otter mole vole "
    "hare lynx wolf bear deer elk moose bison goat lamb colt mule toad newt crab clam".split()
)
_OPERATIONS = (
    "add",
    "subtract",
    "multiply",
    "remainders",
    "negate",
    "square",
    "sort_numbers",
    "reverse_numbers",
    "first_numbers",
    "sum",
    "largest",
    "smallest",
)
_EASY = tuple(operation for name in _OPERATIONS for operation in OPERATIONS if operation.name == name)
_PROBABILITIES = (0.42, 0.26, 0.19, 0.13)
_NUM_EXAMPLES = 4
_VARIABLE = re.compile(rf"\b{NUMBERS}\b")
_HOLE = re.compile(rf"(\{{k\}}|\b{NUMBERS}\b)")

_COMMENT, _THEN, _SIGNATURE = "# ", ", then ", f"\ndef {ENTRY_POINT}({NUMBERS}):\n    "
_CALL, _LINE, _RETURN, _ASSIGN, _DOT = f"({NUMBERS})", "\n    ", "return ", " = ", "."


class Context(NamedTuple):
    """A library and its version, which determine the valid words."""

    library: str
    version: str


CONTEXTS = tuple(Context(library, version) for library in LIBRARIES for version in VERSIONS)


@dataclass(frozen=True)
class BenchTask:
    """A task of the world.

    Args:
        context (`Context`):
            Library and version.
        steps (`tuple[Step, Step]`):
            Two operations with their arguments.
    """

    context: Context
    steps: tuple[Step, ...]

    @property
    def prompt(self) -> str:
        """Statement and signature, which a completion continues."""
        first, second = (step.phrase() for step in self.steps)
        return f"{_COMMENT}{self.context.library}{self.context.version}{first}{_THEN}{second}{_SIGNATURE}"

    def completion(self, word: str) -> str:
        """Return the program of a word, without the prompt."""
        form = WORDS.index(word) % 2
        first, second = (_VARIABLE.sub(word, step.expression(form)) for step in self.steps)
        call = f"{self.context.library}{_DOT}{word}{_CALL}"
        return f"{word}{_ASSIGN}{call}{_LINE}{word}{_ASSIGN}{first}{_LINE}{_RETURN}{second}"


class Answer(NamedTuple):
    """One of the correct programs of a task: its word, its probability in the data, and its text after the prompt."""

    word: str
    probability: float
    completion: str


@dataclass(frozen=True)
class World:
    """Contexts with their valid words, and tasks; a function of the arguments alone.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of the valid words, of the tasks and of the rows.
        num_valid (`int`, *optional*, defaults to `4`):
            Number of valid words per context, from 1 to 4. With 1, all divergences have the same optimum.
        same_everywhere (`bool`, *optional*, defaults to `False`):
            Whether all contexts accept the same words.
        noise (`float`, *optional*, defaults to `0.0`):
            Share of the training tasks for which rows and teacher are wrong: they use words that the context lacks.

    Raises:
        ValueError: If an argument is outside its range.

    Example:

    ```python
    >>> world = World(seed=0)
    >>> [task] = world.sample_tasks(1, split="train")
    >>> len(world.answers(task)), len(world.valid_words(task.context))
    (4, 4)

    ```
    """

    seed: int = 0
    num_valid: int = 4
    same_everywhere: bool = False
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.num_valid not in range(1, len(_PROBABILITIES) + 1):
            raise ValueError(f"`num_valid` is {self.num_valid!r}; give an integer from 1 to {len(_PROBABILITIES)}.")
        if not 0.0 <= self.noise < 1.0:
            raise ValueError(f"`noise` is {self.noise!r}; give a share of tasks of at least 0 and below 1.")

    def valid_words(self, context: Context) -> tuple[str, ...]:
        """Return the words that a context accepts, the most probable first."""
        return self._valid[context]

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Probabilities of the valid words of any context, which add up to 1."""
        chosen = _PROBABILITIES[: self.num_valid]
        return tuple(probability / sum(chosen) for probability in chosen)

    def sample_tasks(self, count: int, *, split: Split, stream: str = "") -> list[BenchTask]:
        """Return random tasks of one split.

        Contexts come in shuffled rounds, so that all occur about equally often.

        Args:
            count (`int`):
                Number of tasks.
            split (`str`):
                `"train"` or `"held_out"`, which have no sequence of operations in common.
            stream (`str`, *optional*):
                Name of a stream of tasks; different names give independent tasks.
        """
        rng = random.Random(f"{self.seed} tasks {split} {stream}")
        contexts: list[Context] = []
        while len(contexts) < count:
            contexts += rng.sample(CONTEXTS, len(CONTEXTS))
        return [BenchTask(context, _draw_steps(rng, split)) for context in contexts[:count]]

    def answers(self, task: BenchTask) -> tuple[Answer, ...]:
        """Return the correct programs of a task."""
        return self._answers(task, self.valid_words(task.context))

    def taught_answers(self, task: BenchTask) -> tuple[Answer, ...]:
        """Return the programs that teacher and rows use for a training task; with `noise`, they may be wrong."""
        rng = random.Random(f"{self.seed} noise {task.prompt}")
        valid = self.valid_words(task.context)
        if rng.random() >= self.noise:
            return self._answers(task, valid)
        return self._answers(task, rng.sample([word for word in WORDS if word not in valid], self.num_valid))

    def sample_rows(self, tasks: Sequence[BenchTask], *, stream: str = "") -> list[dict[str, str]]:
        """Return a row with `prompt` and `completion` per task, its program drawn from `taught_answers`."""
        rng = random.Random(f"{self.seed} rows {stream}")
        rows = []
        for task in tasks:
            answers = self.taught_answers(task)
            [drawn] = rng.choices(answers, [answer.probability for answer in answers])
            rows.append({"prompt": task.prompt, "completion": drawn.completion})
        return rows

    def tests(self, task: BenchTask) -> str:
        """Return the test program of a task: the library of its context, then assertions."""
        entries = ", ".join(f"{word}=list" for word in self.valid_words(task.context))
        rng = random.Random(f"{self.seed} tests {task.prompt}")
        examples = draw_examples(rng, NUMBERS, _NUM_EXAMPLES)
        while not every_step_matters(task.steps, examples):  # as for other examples when the task was drawn
            examples = draw_examples(rng, NUMBERS, _NUM_EXAMPLES)
        library = f"import types\n\n{task.context.library} = types.SimpleNamespace({entries})\n"
        return library + write_tests(task.steps, examples)

    @cached_property
    def _valid(self) -> dict[Context, tuple[str, ...]]:
        rng = random.Random(f"{self.seed} words")
        shared = tuple(rng.sample(WORDS, self.num_valid))
        return {
            context: shared if self.same_everywhere else tuple(rng.sample(WORDS, self.num_valid))
            for context in CONTEXTS
        }

    def _answers(self, task: BenchTask, words: Sequence[str]) -> tuple[Answer, ...]:
        return tuple(
            Answer(word, probability, task.completion(word))
            for word, probability in zip(words, self.probabilities, strict=True)
        )


def vocabulary() -> tuple[str, ...]:
    """Return the pieces of which all prompts and programs consist: words, digits, and parts of phrases and forms."""
    parts = [_COMMENT, _THEN, _SIGNATURE, _CALL, _LINE, _RETURN, _ASSIGN, _DOT, "\n"]
    for operation in _EASY:
        for template in (operation.phrases[0], *operation.forms):
            variable = template not in operation.phrases
            pieces = _HOLE.split(template) if variable else template.partition("{k}")
            parts += [piece for piece in pieces if piece not in ("", "{k}") and not (variable and piece == NUMBERS)]
    arguments = [argument for operation in _EASY for argument in operation.arguments if argument]
    return tuple(dict.fromkeys([*LIBRARIES, *VERSIONS, *WORDS, *arguments, *parts]))


def _draw_steps(rng: random.Random, split: Split) -> tuple[Step, ...]:
    """Return two steps whose sequence is of the given split, neither of which can be left out."""
    while True:
        operations = rng.choice([operation for operation in _EASY if operation.gives == NUMBERS]), rng.choice(_EASY)
        steps = tuple(Step(operation, rng.choice(operation.arguments)) for operation in operations)
        if (
            operations[0] is not operations[1]
            and is_held_out(operation_names(steps)) == (split == "held_out")
            and every_step_matters(steps, draw_examples(rng, NUMBERS, _NUM_EXAMPLES))
        ):
            return steps
