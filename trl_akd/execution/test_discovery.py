"""Discovery of the tests that a test program only defines, and of the statements by which it may exit."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

__all__ = ["DiscoveredTests", "discover_tests"]

_MAY_NEED_DISCOVERY = re.compile(r"\b(?:def\s+test|class\s|(?:unittest|pytest|SystemExit|exit|quit)\b)")
_CHECK = re.compile(r"assert\b|[^\W\d][\w.]*\(")
_EXITS = {"exit", "quit", "SystemExit", "sys.exit", "unittest.main", "unittest.TestProgram"}
_NAMESPACE_LOOKUPS = {"globals", "locals", "vars", "dir"}
_PYTEST_HOOKS = {
    f"{when}_{what}" for when in ("setup", "teardown") for what in ("module", "function", "class", "method")
}
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
_CONSTANT = (ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.unaryop, ast.expr_context)
_Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
_Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class DiscoveredTests:
    """Tests of a test program that a test runner has to call.

    Args:
        functions (`tuple[str, ...]`):
            Names of test functions and of classes of test methods that the test program does not refer to. TestCases
            of unittest are found when the test program runs.
        runners (`tuple[str, ...]`):
            `unittest` and `pytest`, if the test program mentions them, and `pytest.main` if pytest is imported only
            under `if __name__ == "__main__":`.
        exits (`tuple[tuple[int, int, int, int], ...]`):
            Positions of statements by which it may exit, such as `sys.exit(main())`: first and last line, first and
            last column.
        imports_pytest (`bool`):
            Whether it imports pytest at its top level, outside `if` and `try`.
        unrunnable (`str`, *optional*):
            Reason why its tests cannot be run.
    """

    functions: tuple[str, ...] = ()
    runners: tuple[str, ...] = ()
    exits: tuple[tuple[int, int, int, int], ...] = ()
    imports_pytest: bool = False
    unrunnable: str | None = None


@lru_cache(maxsize=256)
def discover_tests(test: str) -> DiscoveredTests:
    """Find the tests that a test program defines and does not run.

    Example:
        ```python
        >>> discover_tests("def test_double():\\n    assert double(2) == 4").functions
        ('test_double',)
        >>> discover_tests("def test_double():\\n    assert double(2) == 4\\ntest_double()").functions
        ()

        ```
    """
    last_line = test.rstrip().rpartition("\n")[2]
    if _CHECK.match(last_line) and not _MAY_NEED_DISCOVERY.search(test):
        return DiscoveredTests()
    try:
        tree = ast.parse(test)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return DiscoveredTests()  # compiling it reports the error
    nodes = list(ast.walk(tree))
    names = _imported_names(nodes)
    called = {_dotted(node.func, names) for node in nodes if isinstance(node, ast.Call)}
    referenced = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    statements = list(_statements(tree.body))
    functions = [
        node
        for node in statements
        if (isinstance(node, _FUNCTION) and node.name.startswith("test"))
        or (isinstance(node, ast.ClassDef) and node.name.startswith("Test") and _test_methods(node))
    ]
    left = [] if referenced & _NAMESPACE_LOOKUPS else [node for node in functions if node.name not in referenced]
    if any(isinstance(node, ast.Assert) for node in statements):
        left = [node for node in left if not _is_helper(node)]
    return DiscoveredTests(
        functions=tuple(dict.fromkeys(node.name for node in left)),
        runners=tuple(name for name in ("unittest", "pytest") if name in test) + _guarded_runners(tree.body, nodes),
        exits=tuple(_position(node) for node in nodes if _is_exit(node, names)),
        imports_pytest=any(map(_imports_pytest, tree.body)),
        unrunnable=_missing_tests(called, statements, bool(functions))
        or _needs_pytest(left, statements)
        or (None if left else _calls_nothing(tree.body)),
    )


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module's own scope, including those inside `if`, `try`, `with` and loops."""
    for node in body:
        yield node
        if not isinstance(node, (*_FUNCTION, ast.ClassDef)):
            for field in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)


def _guarded_runners(body: list[ast.stmt], nodes: list[ast.AST]) -> tuple[str, ...]:
    guards = [node for node in body if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)]
    guarded = {id(node) for guard in guards for node in ast.walk(guard)}
    imports = [node for node in nodes if _imports_pytest(node)]
    return ("pytest.main",) if imports and all(id(node) in guarded for node in imports) else ()


def _is_helper(node: _Definition) -> bool:
    """Return whether a function named like a test takes arguments and has no decorator, so that no runner calls it."""
    return isinstance(node, _FUNCTION) and not node.decorator_list and _arguments_from_pytest(node, 0) is not None


def _imports_pytest(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.partition(".")[0] == "pytest" for alias in node.names)
    return isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] == "pytest"


def _imported_names(nodes: list[ast.AST]) -> dict[str, str]:
    """Map each imported name to its dotted origin, such as `{"stop": "sys.exit"}`."""
    found = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom):
            found.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return found


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def _is_exit(node: ast.AST, names: dict[str, str]) -> bool:
    if isinstance(node, ast.Raise) and node.exc is not None:
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return _dotted(raised, names) == "SystemExit"
    return isinstance(node, ast.Call) and _dotted(node.func, names) in _EXITS


def _position(node: ast.AST) -> tuple[int, int, int, int]:
    assert isinstance(node, ast.Call | ast.Raise)
    return node.lineno, node.end_lineno or 0, node.col_offset, node.end_col_offset or 0


def _test_methods(node: ast.ClassDef) -> list[_Function]:
    return [item for item in node.body if isinstance(item, _FUNCTION) and item.name.startswith("test")]


def _missing_tests(called: set[str], statements: list[ast.stmt], has_functions: bool) -> str | None:
    if "unittest.main" in called and not any(isinstance(node, ast.ClassDef) and node.bases for node in statements):
        return "the test calls unittest.main() and defines no TestCase"
    if "pytest.main" in called and not (has_functions or any(isinstance(node, ast.ClassDef) for node in statements)):
        return "the test calls pytest.main() and defines no test function"
    return None


def _calls_nothing(body: list[ast.stmt]) -> str | None:
    """Return a message if a module only imports, and defines functions, classes of functions, and constants."""
    defined = [node.name for node in body if isinstance(node, (*_FUNCTION, ast.ClassDef))]
    if not defined or not all(map(_only_defines, body)):
        return None
    return (
        f"the test defines {defined[0]} and calls nothing, so every program would pass; call it in the test with the "
        "function to be tested, or give the row an entry_point"
    )


def _only_defines(node: ast.stmt) -> bool:
    if isinstance(node, _FUNCTION):
        return not node.decorator_list
    if isinstance(node, ast.ClassDef):
        return not (node.decorator_list or node.bases or node.keywords) and all(map(_only_defines, node.body))
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr):
        return all(isinstance(part, _CONSTANT) for part in ast.walk(node.value)) if node.value else True
    return isinstance(node, ast.Import | ast.ImportFrom | ast.Pass)


def _needs_pytest(left: list[_Definition], statements: list[ast.stmt]) -> str | None:
    """Return a message about the first test to be called that needs pytest."""
    for node in left:
        if not isinstance(node, ast.ClassDef):
            needs = _pytest_only(statements) or _arguments_from_pytest(node, 0)
        elif all(isinstance(base, ast.Name) and base.id == "object" for base in node.bases):
            needs = _pytest_only(node.body)
            needs = needs or next(
                filter(None, (_arguments_from_pytest(item, 1) for item in _test_methods(node))), None
            )
        else:
            needs = None  # a TestCase, or a subclass of a class whose methods are unknown here
        if needs:
            return needs
    return None


def _pytest_only(body: list[ast.stmt]) -> str | None:
    for node in body:
        if isinstance(node, _FUNCTION) and node.name in _PYTEST_HOOKS:
            return f"{node.name} in the test is called only by pytest; move the set-up into the test function"
    return None


def _arguments_from_pytest(function: _Function, given: int) -> str | None:
    taken = function.args
    positional = [argument.arg for argument in (*taken.posonlyargs, *taken.args)]
    required = positional[given : len(positional) - len(taken.defaults)]
    for argument, default in zip(taken.kwonlyargs, taken.kw_defaults, strict=True):
        required += [] if default else [argument.arg]
    if required:
        return (
            f"{function.name} in the test takes {', '.join(required)}, which only pytest can supply, and nothing "
            "calls it; call it in the test with values"
        )
    if any("pytest" in ast.unparse(decorator) for decorator in function.decorator_list):
        return f"{function.name} in the test has a pytest mark; replace the mark by code in the test"
    return None
