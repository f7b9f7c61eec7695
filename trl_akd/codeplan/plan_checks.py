"""Checks of plans: numbered steps in words, without the program, of a fitting length."""

import ast
import re
import textwrap
import warnings
from typing import Literal, TypeAlias

from ..data.schema import replace_lone_surrogates
from ..generation import parse_answer

__all__ = ["Reject", "check_plan", "plan_of_answer"]

Reject: TypeAlias = Literal["empty", "truncated", "not_numbered", "too_few_steps", "too_long", "code"]

_STEP = re.compile(r"^(?:#+[ \t]*)?(?:\*\*)?(?:[Ss]tep[ \t]+)?\(?(\d+)(?:[.):]|\*\*)[ \t]*(.*)$", re.MULTILINE)
_BULLET = re.compile(r"^[ \t]*(?:[-*+]|\w[.)])[ \t]+")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
_MARKDOWN = re.compile(
    r"^[ \t]*(`{3,}|~{3,})(?:markdown|md)[ \t]*\n((?:(?![ \t]*(?:```|~~~)).*\n)*)[ \t]*\1[ \t]*$",
    re.MULTILINE | re.IGNORECASE,
)
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_MIN_STEPS = 2
# What one line of code is made of; an expression alone may be a word or a formula.
_CODE = (
    ast.Assign | ast.AugAssign | ast.FunctionDef | ast.ClassDef | ast.For | ast.While | ast.If | ast.With | ast.Import
) | (ast.ImportFrom | ast.Return | ast.Raise | ast.Try | ast.Delete | ast.Assert)


def plan_of_answer(answer: str) -> str:
    r"""Return the plan in a teacher's answer: from its first numbered step on, without the blanks at line ends.

    Thoughts are left out; a teacher that never stopped thinking wrote no plan. Steps may be numbered `1.`, `1)`,
    `(1)`, `1:` or `Step 1:`. A plan that stands in a fenced block is taken out of it. Without any steps, the answer is
    returned.

    Example:

    ```python
    >>> plan_of_answer("<think>Easy.</think>Here is the plan:\n\n1. Read n.\n2. Print it twice.\n\nGood luck!")
    '1. Read n.\n2. Print it twice.'

    ```
    """
    read = parse_answer(_MARKDOWN.sub(r"\2", replace_lone_surrogates(answer)))
    in_blocks = (block.text for block in read.blocks if block.language != "python" and _STEP.search(block.text))
    answer = read.text if _STEP.search(read.prose) else next(in_blocks, read.text)
    answer = textwrap.dedent("\n".join(line.rstrip() for line in answer.strip("\n").splitlines()))
    answer = answer.lstrip() if _STEP.match(answer.lstrip()) else answer
    steps = list(_STEP.finditer(answer))
    if steps:
        end = _BLANK_LINE.search(answer, steps[-1].start())
        answer = answer[steps[0].start() : end.start() if end else None]
    return "\n".join(line.rstrip() for line in answer.strip().splitlines())


def check_plan(plan: str, *, truncated: bool, max_chars: int) -> Reject | None:
    r"""Return why a plan is of no use, or `None` if it is.

    | reason | what was found |
    |---|---|
    | `empty` | nothing |
    | `truncated` | the length limit of generation cut it off |
    | `not_numbered` | the steps are not numbered 1, 2, 3, … |
    | `too_few_steps` | a single step |
    | `too_long` | more characters than `max_chars` |
    | `code` | a code block, or a line that is a Python statement |

    Names and expressions inside a sentence are no code: a plan may speak of `a[:k + 1]`.

    Args:
        plan (`str`):
            From [`plan_of_answer`].
        truncated (`bool`):
            Whether generation was cut off.
        max_chars (`int`):
            Most characters of a plan.

    Example:

    ```python
    >>> check_plan("1. Read n.\n2. print(2 * n)", truncated=False, max_chars=2000)
    'code'

    ```
    """
    steps = _STEP.findall(plan)
    if not plan.strip():
        return "empty"
    if truncated:
        return "truncated"
    if not steps or [int(number) for number, _ in steps] != list(range(1, len(steps) + 1)):
        return "not_numbered"
    if len(steps) < _MIN_STEPS:
        return "too_few_steps"
    if len(plan) > max_chars:
        return "too_long"
    return "code" if _FENCE.search(plan) or any(map(_is_code, plan.splitlines())) else None


def _is_code(line: str) -> bool:
    """Tell whether a line, its number or bullet taken off, is a Python statement that does something."""
    step = _STEP.match(line)
    text = (step.group(2) if step else _BULLET.sub("", line)).strip().strip("`*").strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            [statement] = ast.parse(f"{text} pass" if text.endswith(":") else text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return isinstance(statement, _CODE) or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call))
