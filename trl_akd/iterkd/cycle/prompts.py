"""Prompts for the teacher: correct answers, faulty answers and new questions.

The wording is this project's own. The authors' prompts, which have no license, describe all five kinds of faults and
let the teacher choose; each of these prompts names one kind, so that kinds are balanced and known.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from string import Formatter
from types import MappingProxyType
from typing import Any, Literal, Self

from ...generation import Completion, TextGenerator
from ...generation.protocol import FinishReason, SamplingParams
from ...yaml_files import read_yaml
from .records import FaultKind, Level

__all__ = ["FAULT_DEFINITIONS", "INCOMPLETE", "TeachingPrompts", "complete"]

FAULT_DEFINITIONS: Mapping[FaultKind, str] = MappingProxyType(
    {
        "syntax": (
            "The program breaks the grammar of its language, so that it cannot even start. "
            "Example: the colon after `for item in basket` is left out."
        ),
        "logical": (
            "The program runs to its end, and yet gives a wrong result for some input. "
            "Example: `total = prices[0]` is followed by a loop over all of `prices`, so the first one counts twice."
        ),
        "type": (
            "An operation meets a value of a type that it does not take, and the program stops there. "
            'Example: `"Total: " + count`, where `count` is an integer.'
        ),
        "name": (
            "The program uses a variable, function or module that is not defined at that point. "
            "Example: the parameter is called `width`, and the body reads `widht`."
        ),
        "timeout": (
            "The program never ends, or not in any time that one would wait, for some input. "
            "Example: `while low < high` with a body in which neither of the two changes."
        ),
    }
)
"""Definition of each kind of faults, with an example."""

_CORRECT = """\
Solve this programming task. Give one complete program in a fenced code block that does what is asked for every \
input that the task allows.

Task:
{instruction}
"""

_FAULTY = """\
We collect answers to programming tasks that look right and are not, so that a model can learn to tell the two \
apart. Write such an answer to the task below.

The answer must have a fault of this kind: {kind}. {definition}

Write it as somebody would who is sure of it: one complete program in a fenced code block that attempts the whole \
task, as long and as careful as a good answer. Nothing in it may give the fault away. Do not explain it, mark it, or \
hint at it, whether in comments, in names, in messages or around the program.

Task:
{instruction}
"""

_NEW_EASY = """\
Below is a programming task that a learner has mastered. Write a new task to go on with. It comes from the same \
domain, but asks for something else, and for something that learners rarely meet. Keep it about as long and about as \
difficult, make it clear without this one beside it, and make sure that a program can solve it.

Reply with the new task alone, without a title and without a solution.

Task:
{instruction}

New task:
"""

_NEW_SAME = """\
Below is a programming task that a learner got wrong. Write a new task to practise on. It comes from the same domain \
and is of the same type, so that it takes the same skills to solve, with other content. Keep it about as long and \
about as difficult, make it clear without this one beside it, and make sure that a program can solve it.

Reply with the new task alone, without a title and without a solution.

Task:
{instruction}

New task:
"""

_FIELDS: Mapping[str, tuple[set[str], set[str]]] = MappingProxyType(
    {
        "correct": ({"instruction"}, set()),
        "faulty": ({"instruction", "kind"}, {"definition"}),
        "new_easy": ({"instruction"}, set()),
        "new_same": ({"instruction"}, set()),
    }
)


@dataclass(frozen=True, slots=True)
class TeachingPrompts:
    r"""Prompt templates for the teacher, as format strings.

    As in the paper (arXiv 2408.03680), one template is for easy questions and one for medium and hard ones.

    All have the field `instruction`; `faulty` has also `kind` and optionally `definition`.

    Raises:
        ValueError: If a template lacks a field or has an unknown one.

    Example:

    ```python
    >>> prompts = TeachingPrompts(correct="Q: {instruction}\nA:", faulty="Q: {instruction}\n{kind}:")
    >>> prompts.for_fault("Add a and b.", "name")
    'Q: Add a and b.\nname:'

    ```
    """

    correct: str = _CORRECT
    faulty: str = _FAULTY
    new_easy: str = _NEW_EASY  # derived from an easy question
    new_same: str = _NEW_SAME  # derived from a medium or hard one

    def __post_init__(self) -> None:
        for name, (required, optional) in _FIELDS.items():
            _check_fields(name, getattr(self, name), required, optional)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read templates from a .yaml, .yml or .json file that maps names to texts; missing ones keep their defaults.

        Raises:
            ValueError: If the file has other content.
        """
        templates = _read_json(Path(path)) if Path(path).suffix == ".json" else read_yaml(Path(path))
        names = ", ".join(_FIELDS)
        if not isinstance(templates, dict) or not all(isinstance(template, str) for template in templates.values()):
            raise ValueError(f"{path} does not map names to texts; the names are {names}.")
        if unknown := sorted(set(map(str, templates)) - set(_FIELDS)):
            raise ValueError(f"{path} has a template {unknown[0]!r}; the names are {names}.")
        return cls(**templates)

    @property
    def version(self) -> str:
        """Digest of the wording of all templates."""
        wording = json.dumps([*astuple(self), *FAULT_DEFINITIONS.values()])
        return f"teaching-{hashlib.sha256(wording.encode()).hexdigest()[:8]}"

    def for_answer(self, instruction: str) -> str:
        """Return the prompt for a correct answer."""
        return self.correct.format(instruction=instruction.strip())

    def for_fault(self, instruction: str, kind: FaultKind) -> str:
        """Return the prompt for an answer with a fault of one kind."""
        return self.faulty.format(instruction=instruction.strip(), kind=kind, definition=FAULT_DEFINITIONS[kind])

    def for_question(self, instruction: str, level: Level) -> str:
        """Return the prompt for a new question derived from one of the given level."""
        template = self.new_easy if level == "easy" else self.new_same
        return template.format(instruction=instruction.strip())


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _check_fields(name: str, template: str, required: set[str], optional: set[str]) -> None:
    try:
        found = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise ValueError(f"`{name}` is not a format string ({error}); double braces that are not fields.") from error
    if missing := sorted(required - found):
        raise ValueError(f"`{name}` lacks the field {{{missing[0]}}}; add it.")
    if unknown := sorted(found - required - optional):
        known = ", ".join(f"{{{field}}}" for field in sorted(required | optional))
        raise ValueError(f"`{name}` has the unknown field {{{unknown[0]}}}; the fields are {known}.")


INCOMPLETE: Mapping[FinishReason, Literal["truncated", "refused"]] = MappingProxyType(
    {"length": "truncated", "refused": "refused"}
)
"""Reasons to drop a completion by its finish reason."""


def complete(teacher: TextGenerator, prompts: Sequence[str], sampling: SamplingParams) -> list[Completion]:
    """Return one completion per prompt; without prompts, the teacher is not called."""
    return [completion for [completion] in teacher.generate(list(prompts), **vars(sampling))] if prompts else []
