"""The static-tool view of an answer: what can be told without knowing the task.

SODA's released tool ([Chen et al.](https://huggingface.co/papers/2408.03680)) looks whether fences are closed, takes
the first fenced block, and compiles and runs it without tests. This module runs Python alone: answers in other
languages are told apart, and their execution is "unknown". Where the first block is Python, the program is what
`extract_program` finds in the answer, as everywhere in this package. A linter, pyflakes, is added.
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from ..generation import parse_answer
from ..generation.answers import extract_program
from ..generation.python_ast import parse
from .records import Runner
from .running_alone import Outcome, Verdict, run_alone

__all__ = ["MAX_CHARS", "MAX_FINDINGS", "StaticView", "program_of", "static_views"]

MAX_CHARS = 50_000
"""Answers that are longer are not searched for a program."""

MAX_FINDINGS = 20
_FINDING_CHARS = 200
_TAG_CHARS = 20
_Linter: TypeAlias = Callable[[ast.Module], list[str]]


@dataclass(frozen=True, slots=True)
class StaticView:
    """Hold what tools say of one answer.

    Args:
        complete (`bool`):
            Whether the thoughts and all code blocks are closed.
        language (`str`, *optional*):
            That of the first fenced block, by its tag, or `"python"` for text that looks like it; `None` where there
            is no code.
        parses (`bool`, *optional*):
            Whether the Python program parses; `None` where there is none.
        compiles (`bool`, *optional*):
            Whether Python compiles it; `None` where that was not tried.
        executed (`str`):
            `"pass"` where the program ends well as a main program, `"fail"` where it does not, at the latest at the
            runner's time limit; `"unknown"` without a Python program or a runner, after a fault of the sandbox, and
            where the program lacks its surroundings (see `running_alone`).
        error_type (`str`, *optional*):
            Class name of the exception that ended it, `"timeout"`, or what else did.
        findings (`tuple[str, ...]`):
            Line and message of what the linter found, the first of them.
        num_findings (`int`):
            Their number.
    """

    complete: bool
    language: str | None
    parses: bool | None = None
    compiles: bool | None = None
    executed: Verdict = "unknown"
    error_type: str | None = None
    findings: tuple[str, ...] = ()
    num_findings: int = 0


def static_views(answers: Sequence[str], run: Runner | None) -> list[StaticView]:
    """Look at answers with tools, and run the Python programs among them alone, without tests.

    Args:
        answers (`Sequence[str]`):
            What the student wrote.
        run (`Runner`, *optional*):
            Runs programs, each within its time limit; `None` looks only whether they parse.

    Returns:
        `list[StaticView]`: one an answer, in order.

    Raises:
        ImportError: If pyflakes is missing.

    Example:

    ```python
    >>> for view in static_views(["```python\\nprint(y)\\n```", "```js\\nlet x = 1\\n```", "I cannot."], None):
    ...     print(view.language, view.parses, view.executed, view.findings)
    python True unknown ("line 1: undefined name 'y'",)
    javascript None unknown ()
    None None unknown ()

    ```
    """
    lint = _linter()
    read = [_read(answer, lint) for answer in answers]
    views = [view for view, _ in read]
    runnable = [(index, program) for index, (_, program) in enumerate(read) if program is not None]
    if run is not None:
        outcomes = run_alone(run, [program for _, program in runnable])
        for (index, _), outcome in zip(runnable, outcomes, strict=True):
            views[index] = _executed(views[index], outcome)
    return views


def program_of(answer: str) -> str | None:
    """Return the Python program in an answer, or `None` where the answer is too long to be searched for one."""
    return extract_program(answer) if len(answer) <= MAX_CHARS else None


def _read(answer: str, lint: _Linter) -> tuple[StaticView, str | None]:
    """Return what can be told without running anything, and the program to run."""
    read = parse_answer(answer)
    complete = read.complete
    is_searched = len(answer) <= MAX_CHARS
    language = read.language[:_TAG_CHARS] if read.language and (read.blocks or is_searched) else None
    program = program_of(answer) if language == "python" else None
    if program is None:
        return StaticView(complete, language), None
    tree = parse(program)
    if tree is None:
        return StaticView(complete, language, False, False, "fail", "SyntaxError"), program
    findings = lint(tree)
    shown = tuple(finding[:_FINDING_CHARS] for finding in findings[:MAX_FINDINGS])
    return StaticView(complete, language, True, findings=shown, num_findings=len(findings)), program


def _executed(view: StaticView, outcome: Outcome) -> StaticView:
    """Add what came of running the program."""
    if outcome.error_type is None and outcome.verdict == "unknown":
        return view
    return replace(view, compiles=outcome.compiles, executed=outcome.verdict, error_type=outcome.error_type)


def _linter() -> _Linter:
    """Return what lists line and message of each of pyflakes's findings in a syntax tree."""
    try:
        from pyflakes.checker import Checker
    except ImportError as error:
        raise ImportError("The static view needs pyflakes; install it with `pip install trl_akd[iterkd]`.") from error

    def lint(tree: ast.Module) -> list[str]:
        try:
            found = Checker(tree).messages
        except RecursionError:
            return []
        messages = sorted(found, key=lambda message: (message.lineno, message.col))
        return [f"line {message.lineno}: {message.message % message.message_args}" for message in messages]

    return lint
