"""Main programs: running programs without tests.

A program without tests is run as `python program.py` would run it, without arguments and with empty standard input.
Exit status 0 is a pass. A failure counts only if the program itself causes it: if the program has requested
input, arguments, environment variables, files, modules, other programs, the network or a display that are not
available, the failure is "unknown", and so is waiting without computing, as a server does.
"""

import ast
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

from ...execution import ExecutionResult, Tests
from ...generation.python_ast import parse
from . import main_harness
from .records import Runner

__all__ = ["Outcome", "Verdict", "lacks_surroundings", "run_alone"]

Verdict: TypeAlias = Literal["pass", "fail", "unknown"]

_OUTSIDE = {"OSError", "EOFError", "TclError"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a main program.

    Args:
        verdict (`str`):
            `"pass"`, `"fail"`, or `"unknown"` if the program lacks its environment or the sandbox failed.
        compiles (`bool`, *optional*, defaults to `True`):
            Whether Python compiles it.
        error_type (`str`, *optional*):
            Class name of the exception that ended it, `"timeout"`, or another cause; `None` if it succeeded.
    """

    verdict: Verdict
    compiles: bool = True
    error_type: str | None = None


def run_alone(run: Runner, programs: Sequence[str]) -> list[Outcome]:
    """Run Python programs as main programs, without arguments, input or tests.

    Args:
        run (`Runner`):
            Runs programs, each within its time limit. Each program is wrapped in the harness.
        programs (`Sequence[str]`):
            Programs.

    Returns:
        `list[Outcome]`: one outcome per program, in order.

    Example:

    ```python
    >>> from trl_akd.execution import CodeExecutor
    >>> with CodeExecutor(allow_code_execution=True) as executor:  # doctest: +SKIP
    ...     [outcome.verdict for outcome in run_alone(executor.run, ["print(1)", "1 / 0", "input()"])]
    ['pass', 'fail', 'unknown']

    ```
    """
    return [_outcome(result) for result in run([(_framed(program), "") for program in programs])] if programs else []


def lacks_surroundings(result: ExecutionResult, tests: Tests) -> bool:
    """Return whether a program that failed its tests may have failed for lack of an external resource.

    External resources are packages, files, the network, a display and, if the tests call functions, input, arguments
    or an exit while the program is loaded. A script that receives its input lacks none of the latter.

    Args:
        result (`ExecutionResult`):
            Result of running the program.
        tests (`Tests`):
            Tests of the program.
    """
    if result.status != "failed" or result.raised:
        return False
    kinds = {result.error_type, *result.error_bases}
    if "ModuleNotFoundError" in kinds:
        package = (result.missing or "").partition(".")[0]
        return package not in sys.stdlib_module_names
    script = not isinstance(tests, str) and tests.get("fn_name") is None
    if script:
        return bool(kinds & _OUTSIDE - {"EOFError"}) and "BrokenPipeError" not in kinds
    return bool(kinds & _OUTSIDE) or (result.stage == "load" and result.ending == "exit")


def _outcome(result: ExecutionResult) -> Outcome:
    if result.status == "infra_error":
        return Outcome("unknown")
    if result.passed or (result.ending == "exit" and result.exit_code == 0):
        return Outcome("pass")
    if result.status == "timed_out":
        return Outcome("fail", error_type="timeout")
    if result.error_type == "SurroundingsMissing":
        return Outcome("unknown", error_type=result.message)
    if result.error_type is None and result.exit_code == main_harness.GAVE_UP:
        return Outcome("unknown", error_type="waiting")
    if result.error_type == "NotCompiled":
        return Outcome("fail", compiles=False, error_type=result.message)
    return Outcome("fail", error_type=result.error_type or result.ending)


def _framed(program: str) -> str:
    """Return the program inside the harness, as a string literal, so that it remains a separate module."""
    return f"{_frame()}\n\nrun_as_main({program!r}, frozenset({sorted(_names(program))!r}))\n"


@cache
def _frame() -> str:
    return Path(main_harness.__file__).read_text(encoding="utf-8")


def _names(program: str) -> set[str]:
    """Return all names that a program binds in any scope, and `*` for an import of all names of a module."""
    tree = parse(program)
    if tree is None:
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.alias(name=name, asname=alias):
                names.add(alias or name.partition(".")[0])
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                names.add(name)
            case ast.Global(names=several) | ast.Nonlocal(names=several):
                names.update(several)
    return names
