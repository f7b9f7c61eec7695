"""Descriptions of exceptions: facts for a taxonomy of errors, and their messages."""

import ast
import re
from types import TracebackType
from typing import Any, NamedTuple

_MAX_TEXT = 1000

_QUOTED = re.compile(r"'([^']*)'")
# These cannot be overridden by the metaclass of an exception's class.
_name_of = type.__dict__["__name__"].__get__
_bases_of = type.__dict__["__mro__"].__get__


class Source(NamedTuple):
    """A compilation unit: its origin (`candidate` or `test`) and its source text."""

    origin: str
    text: str


def facts(error: BaseException, stage: str, sources: dict[str, Source]) -> dict[str, Any]:
    """Describe an exception without calling any of its methods."""
    file, line = _position(error, stage, sources)
    source = sources.get(file or "")
    raised = source is not None and line is not None and _is_raise(source.text, line)
    found = {
        "error_type": _name_of(type(error)),
        "error_bases": [_name_of(base) for base in _bases_of(type(error))[1:]],
        "origin": source and source.origin,
        "line": line,
        "raised": raised,
        "missing": _missing(error),
        "ending": "exception",
    }
    if isinstance(error, MemoryError) and not raised:
        found["ending"] = "memory"
    if isinstance(error, SystemExit):
        found["ending"] = "exit"
        found["exit_code"] = exit_code(error)
    return found


def message(error: BaseException) -> str:
    """Return the text of an exception, or a note that it has none; this may run code of the program, forever."""
    try:
        is_key = isinstance(error, KeyError) and len(error.args) == 1
        return str.__str__(repr(error.args[0]) if is_key else str(error))[:_MAX_TEXT]
    except BaseException as unprintable:
        return f"(its text is not available: {type(unprintable).__name__})"


def exit_code(error: SystemExit) -> int:
    """Return the status with which Python would exit."""
    if error.code is None:
        return 0
    return int(error.code) & 0xFF if isinstance(error.code, int) else 1


def _position(error: BaseException, stage: str, sources: dict[str, Source]) -> tuple[str | None, int | None]:
    if stage == "compile" and isinstance(error, SyntaxError):
        return error.filename, error.lineno
    position: tuple[str | None, int | None] = (None, None)
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in sources:
            position = (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return position


def _is_raise(source: str, line: int) -> bool:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(
        isinstance(node, ast.Raise) and node.lineno <= line <= (node.end_lineno or node.lineno)
        for node in ast.walk(tree)
    )


def _missing(error: BaseException) -> str | None:
    name: Any = None
    if isinstance(error, NameError | AttributeError | ImportError):
        name = error.name
        if name is None and error.args and isinstance(error.args[0], str):  # UnboundLocalError has no name
            quoted = _QUOTED.search(error.args[0])
            name = quoted and quoted[1]
    elif isinstance(error, KeyError) and error.args and isinstance(error.args[0], str | int | float | bool | None):
        name = repr(error.args[0])
    return name[:_MAX_TEXT] if isinstance(name, str) else None
