"""Running of programs without tests, as main programs.

A program is run as `python program.py` would run it, without arguments and with empty standard input. Exit status 0 is
a pass. A failure counts only if the program itself causes it: if the program has requested input, arguments,
environment variables, files, modules, other programs, the network or a display that are not available, the outcome is
"unknown". It is also "unknown" if the program waits without computing, as a server does.
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

__all__ = ["Outcome", "Verdict", "lacks_resources", "run_main_programs", "run_present"]

Verdict: TypeAlias = Literal["pass", "fail", "unknown"]

_EXTERNAL_ERRORS = {"OSError", "EOFError", "TclError"}
_COMPILED_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a main program, which is unknown if a resource was missing or the sandbox failed."""

    verdict: Verdict
    compiles: bool = True
    error_type: str | None = None  # class name of the exception that ended it, "timeout", or another cause


def run_present(run: Runner, jobs: Sequence[tuple[str, Tests] | None]) -> list[ExecutionResult | None]:
    """Run programs with their tests in one call, and return `None` in place of each missing program."""
    present = [job for job in jobs if job is not None]
    results = iter(run(present) if present else [])
    return [None if job is None else next(results) for job in jobs]


def run_main_programs(run: Runner, programs: Sequence[str | None]) -> list[Outcome]:
    """Run Python programs as main programs, without arguments, input or tests; `None` has an unknown outcome.

    Programs that contain only function definitions and constants pass if they compile, as they evaluate nothing. Many
    of them are compiled in one sandbox. All other programs run in their own.
    """
    passing = _compiling(run, [program for program in programs if program is not None and _evaluates_nothing(program)])
    jobs = [None if program is None or program in passing else (_in_harness(program), "") for program in programs]
    return [
        Outcome("pass") if program in passing else Outcome("unknown") if result is None else _outcome(result)
        for program, result in zip(programs, run_present(run, jobs), strict=True)
    ]


def lacks_resources(result: ExecutionResult, tests: Tests) -> bool:
    """Return whether a program may have failed its tests because an external resource is missing.

    External resources are packages, files, the network and a display. For tests that call functions, which provide no
    standard input, they include input, arguments and an exit while the program is loaded.
    """
    if result.status != "failed" or result.raised:
        return False
    kinds = {result.error_type, *result.error_bases}
    if "ModuleNotFoundError" in kinds:
        package = (result.missing or "").partition(".")[0]
        return package not in sys.stdlib_module_names
    script = not isinstance(tests, str) and tests.get("fn_name") is None
    if script:
        return bool(kinds & _EXTERNAL_ERRORS - {"EOFError"}) and "BrokenPipeError" not in kinds
    return bool(kinds & _EXTERNAL_ERRORS) or (result.stage == "load" and result.ending == "exit")


def _outcome(result: ExecutionResult) -> Outcome:
    if result.status == "infra_error":
        return Outcome("unknown")
    if result.passed or (result.ending == "exit" and result.exit_code == 0):
        return Outcome("pass")
    if result.status == "timed_out":
        return Outcome("fail", error_type="timeout")
    if result.error_type == main_harness.ResourceMissing.__name__:
        return Outcome("unknown", error_type=result.message)
    if result.error_type is None and result.exit_code == main_harness.GAVE_UP:
        return Outcome("unknown", error_type="waiting")
    if result.error_type == main_harness.NotCompiled.__name__:
        return Outcome("fail", compiles=False, error_type=result.message)
    return Outcome("fail", error_type=result.error_type or result.ending)


def _compiling(run: Runner, programs: Sequence[str]) -> set[str]:
    """Return the programs that are known to compile.

    A program that does not compile, or whose compilation needs too much time or memory, hides the others of its group.
    """
    groups = [programs[first : first + _COMPILED_TOGETHER] for first in range(0, len(programs), _COMPILED_TOGETHER)]
    results = run([(_COMPILATION.format(programs=group), "") for group in groups]) if groups else []
    return {program for group, result in zip(groups, results, strict=True) if result.passed for program in group}


_COMPILATION = """\
for program in {programs!r}:
    compile(program, "<candidate>", "exec", dont_inherit=True)
"""


def _evaluates_nothing(program: str) -> bool:
    """Return whether a program contains only constants and functions whose definition evaluates nothing."""
    tree = parse(program)
    return tree is not None and bool(tree.body) and all(map(_is_inert, tree.body))


def _is_inert(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    arguments = statement.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    annotations = [statement.returns, *(parameter.annotation for parameter in parameters if parameter is not None)]
    defaults = [default for default in (*arguments.defaults, *arguments.kw_defaults) if default is not None]
    return (
        not statement.decorator_list
        and not getattr(statement, "type_params", ())
        and all(annotation is None for annotation in annotations)
        and all(isinstance(default, ast.Constant) for default in defaults)
    )


def _in_harness(program: str) -> str:
    """Return the harness with the program as a string literal, so that the program remains a separate module."""
    return f"{_harness()}\n\nrun_as_main({program!r}, frozenset({sorted(_names(program))!r}))\n"


@cache
def _harness() -> str:
    return Path(main_harness.__file__).read_text(encoding="utf-8")


def _names(program: str) -> set[str]:
    """Return all names that a program binds in any scope, including `*` for `from module import *`."""
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
