"""What a judge is asked.

The rubric is SODA's: five rules, two points for a working core and one for each of the others. The wording is this
project's own, as theirs is not licensed.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Self

from .judging import RULES

__all__ = ["JUDGE_PROMPT", "JudgePrompt"]

_FIELDS = ["answer", "instruction"]


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """Lay out a task and an answer to it as a request for a judgement.

    Args:
        layout (`str`): format string with the fields `instruction` and `answer`, each once.
        name (`str`, *optional*, defaults to `"custom"`): what the wording is called.
        source (`str`, *optional*, defaults to `"the user"`): where it comes from.

    Raises:
        ValueError: If the layout has other fields.

    Example:

    ```python
    >>> JudgePrompt("Task: {instruction}\\nAnswer: {answer}\\n").render("Add {a}.", "a + 1")
    'Task: Add {a}.\\nAnswer: a + 1\\n'

    ```
    """

    layout: str
    name: str = "custom"
    source: str = "the user"

    def __post_init__(self) -> None:
        try:
            found = sorted(field for _, field, _, _ in Formatter().parse(self.layout) if field is not None)
            if found == _FIELDS:
                self.render("", "")
        except (ValueError, KeyError) as error:
            raise ValueError(f"`layout` is no format string ({error}); write literal braces twice.") from error
        if found != _FIELDS:
            raise ValueError(
                f"`layout` has the fields {found}; give {{instruction}} and {{answer}}, once each, and write literal "
                "braces twice."
            )

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a layout of one's own from a text file.

        Raises:
            OSError: If it cannot be read.
            ValueError: If what is in it is no layout.
        """
        return cls(Path(path).expanduser().read_text(encoding="utf-8"))

    @property
    def version(self) -> str:
        """Name the wording: what it is called and a digest, so that no change to it goes unnoticed."""
        return f"{self.name}-{hashlib.sha256(self.layout.encode()).hexdigest()[:8]}"

    def render(self, instruction: str, answer: str) -> str:
        """Return the prompt for one answer."""
        return self.layout.format(instruction=instruction.strip(), answer=answer.strip())


_MEANING = (
    "it runs, it has no bug that a reader finds, and it tries to do what the task asks",
    "it guards against inputs at the edges of what the task allows, and treats the usual ones right",
    "it does nearly all that the task asks for",
    "it is laid out clearly, and comments explain what is not plain",
    "it is efficient, handles errors and would go on working with more data",
)

JUDGE_PROMPT = JudgePrompt(
    "You review programs. Below are a task and an answer to it. Judge the answer by five rules; their points add up "
    "to at most 6.\n\n"
    + "\n".join(
        f"Rule {number}. {rule.name}, {rule.maximum:g} {'points' if rule.maximum > 1 else 'point'}: {meaning}."
        for number, (rule, meaning) in enumerate(zip(RULES, _MEANING, strict=True), 1)
    )
    + "\n\nGive half points where a rule is met in part. An answer without any program can earn no points for rule 1."
    "\n\nFirst write a line `Code Analysis:` and below it, in a few sentences, what you find by each rule. Then "
    "write a line `Score:` and below it the points, one rule a line, as in `"
    f"Rule 1. {RULES[0].name}: 1.5`. Write nothing after the fifth.\n\n"
    "### Task\n{instruction}\n\n### Answer\n{answer}\n\n### Judgement\n",
    name="rubric",
    source="this project; the rubric is SODA's",
)
"""What a judge is asked by default."""
