"""Checks of rows that plans are written for, and of plans: numbered steps in words, without code."""

import ast
import re
import textwrap
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

from ..data.schema import check_encodable, replace_lone_surrogates
from ..generation import parse_answer

__all__ = ["Reject", "check_plan", "check_rows", "extract_plan"]

Reject: TypeAlias = Literal["empty", "truncated", "not_numbered", "too_few_steps", "too_long", "code"]

_STEP = re.compile(r"^(?:#+[ \t]*)?(?:\*\*)?(?:[Ss]tep[ \t]+)?\(?(\d+)(?:[.):]|\*\*)[ \t]*(.*)$", re.MULTILINE)
_BULLET = re.compile(r"^[ \t]*(?:[-*+]|\w[.)])[ \t]+")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
_MARKDOWN = re.compile(
    r"^[ \t]*(`{3,}|~{3,})(?:markdown|md)[ \t]*\n((?:(?![ \t]*(?:```|~~~)).*\n)*)[ \t]*\1[ \t]*$",
    re.MULTILINE | re.IGNORECASE,
)
# The end of the last step: a blank line without an indented list after it, a heading or a closing tag.
_END = re.compile(r"\n(?:\n(?!\n*[ \t]+(?:[-*+]|\w[.)])[ \t])|#+[ \t]|</\w+>)")
_MIN_STEPS = 2
# Statements that make a line code; an expression alone may be a word or a formula.
_CODE_STATEMENTS = (
    ast.Assign | ast.AugAssign | ast.FunctionDef | ast.ClassDef | ast.For | ast.While | ast.If | ast.With | ast.Import
) | (ast.ImportFrom | ast.Return | ast.Raise | ast.Try | ast.Delete | ast.Assert)


def check_rows(rows: Iterable[Mapping[str, Any]], *, need_solutions: bool) -> None:
    """Check rows that plans are to be written for.

    Raises:
        ValueError: For the first row that is malformed; the message names it.
    """
    seen: set[str] = set()
    for number, row in enumerate(rows):
        for column in ("id", "problem", "solutions")[: 3 if need_solutions else 2]:
            if column not in row:
                raise ValueError(f"row {number} has no `{column}`; give rows {{id, problem, solutions}}.")
        name = str(row["id"])
        if name in seen:
            raise ValueError(f"`id` {name!r} occurs twice; give each problem a different id.")
        seen.add(name)
        if not _is_text(row["problem"]):
            raise ValueError(f"`problem` of row {name!r} is {row['problem']!r:.80}; give a text.")
        check_encodable(row["problem"], f"`problem` of row {name!r}")
        if need_solutions:
            _check_solutions(name, row["solutions"])


def _check_solutions(name: str, solutions: Any) -> None:
    if not isinstance(solutions, list | tuple) or not all(map(_is_text, solutions)):
        raise ValueError(f"`solutions` of row {name!r} is {solutions!r:.80}; give a list of programs, none empty.")
    for solution in solutions:
        check_encodable(solution, f"`solutions` of row {name!r}")
    if not solutions:
        raise ValueError(f"row {name!r} has no solutions to reason back from; drop it, or use reasoning='forward'.")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def extract_plan(answer: str) -> str:
    r"""Return the plan in a teacher's answer, from its first numbered step to its last, without trailing whitespace.

    The last step ends at a heading, at a closing tag, or at a blank line, unless an indented list follows it.

    Thoughts are removed; an answer that ends inside its thoughts contains no plan. Steps may be numbered `1.`, `1)`,
    `(1)`, `1:` or `Step 1:`. The plan may be in a fenced block. An answer without numbered steps is returned whole.

    Example:

    ```python
    >>> extract_plan("<think>Easy.</think>Here is the plan:\n\n1. Read n.\n2. Print it twice.\n\nGood luck!")
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
        end = _END.search(answer, steps[-1].start())
        answer = answer[steps[0].start() : end.start() if end else None]
    return "\n".join(line.rstrip() for line in answer.strip().splitlines())


def check_plan(plan: str, *, truncated: bool, max_chars: int) -> Reject | None:
    r"""Return the reason to reject a plan, or `None` if it is valid.

    | reason | meaning |
    |---|---|
    | `empty` | there is no text |
    | `truncated` | generation stopped at its length limit |
    | `not_numbered` | the steps are not numbered 1, 2, 3, … |
    | `too_few_steps` | there is a single step |
    | `too_long` | more than `max_chars` characters |
    | `code` | a code block, or a line that is a Python statement |

    Names and expressions within a sentence, such as `a[:k + 1]`, are allowed.

    Args:
        plan (`str`):
            Plan from [`extract_plan`].
        truncated (`bool`):
            Whether generation stopped at its length limit.
        max_chars (`int`):
            Maximum number of characters per plan.

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
    """Return whether a line without its number or bullet is a Python statement with an effect."""
    step = _STEP.match(line)
    text = (step.group(2) if step else _BULLET.sub("", line)).strip().strip("`*").strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            [statement] = ast.parse(f"{text} pass" if text.endswith(":") else text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return isinstance(statement, _CODE_STATEMENTS) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    )
