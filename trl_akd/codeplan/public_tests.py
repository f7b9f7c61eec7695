"""Split public tests into cases, and compute the fraction that a program passes."""

import ast
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TypeVar

from ..execution import ExecutionResult, Tests
from ..execution.test_discovery import discover_tests
from ..generation.python_ast import parse

__all__ = ["pass_fractions", "split_tests"]

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_SIMPLE = (ast.Assert, ast.Raise, ast.Expr)
_CONTAINED = (ast.stmt, ast.excepthandler, ast.match_case)
_MAX_ITERATIONS = 50  # each iteration runs in a separate process

Run = Callable[[Sequence[tuple[str, Tests]]], list[ExecutionResult]]
_Node = TypeVar("_Node", bound=ast.AST)


def split_tests(test: str) -> list[str]:
    r"""Split a test program into one program per case.

    A case is a statement that contains an assertion or calls a function of the test program that does: at the top
    level, as in MBPP, under `if __name__ == "__main__":`, in a function that is called once, as HumanEval's `check`,
    or in a test function or method that a test runner calls. In a loop over a literal list or dict, each iteration is
    a case. Each program has one case and all other statements; values that other statements read from an omitted case,
    such as a sum, are still computed. `assert True` is not a case.

    Returns:
        `list[str]`: One program per case, in order; only `test` if it does not parse or has a single case.

    Example:

    ```python
    >>> split_tests("x = 2\nassert double(x) == 4\nassert double(0) == 0")
    ['x = 2\nassert double(x) == 4', 'x = 2\nassert double(0) == 0']

    ```
    """
    tree = parse(test)
    if tree is None:
        return [test]
    try:
        program = _TestProgram(tree, discover_tests(test).functions)
        cases = list(program.cases(tree.body))
        if len(cases) < 2:
            return [test]
        droppable = {case.statement: program.droppable(case.statement) for case in cases}
        return [_keep_one_case(tree, droppable, case) for case in cases]
    except RecursionError:
        return [test]


def pass_fractions(programs: Sequence[str], tests: Tests, run: Run) -> list[float | None]:
    """Return the fraction of the cases of public tests that each program passes.

    The fraction is 1 if and only if the program passes the whole test program. If it does not, the cases run one by
    one, each in a separate process.

    Returns:
        `list[float | None]`: The fractions, with `None` for programs that could not be run.
    """
    results = run([(program, tests) for program in programs])
    fractions = [_fraction(result) for result in results]
    cases = split_tests(tests) if isinstance(tests, str) else []
    failed = [index for index, fraction in enumerate(fractions) if fraction == 0.0]
    if len(cases) < 2 or not failed:
        return fractions
    pairs = [(programs[index], case) for index in failed for case in cases]
    found = iter(run(pairs))
    for index in failed:
        passed = sum(next(found).passed for _ in cases)
        # Cases that pass separately but not together depend on each other.
        fractions[index] = min(passed, len(cases) - 1) / len(cases)
    return fractions


def _fraction(result: ExecutionResult) -> float | None:
    return None if result.status == "infra_error" else result.tests_passed / result.tests_total


@dataclass(frozen=True)
class _Case:
    """A statement of a test program, or an iteration of a loop."""

    statement: ast.stmt
    iteration: int | None = None


class _TestProgram:
    """The functions and names of a test program, by which its cases are found."""

    def __init__(self, tree: ast.Module, discovered: Collection[str]) -> None:
        self._discovered = discovered
        self._functions = {node.name: node for node in tree.body if isinstance(node, _FUNCTIONS)}
        self._reads, self._writes = _names(tree, ast.Load), _names(tree, ast.Store)
        assignments = (node for node in ast.walk(tree) if isinstance(node, ast.Assign))
        self._values = {
            node.targets[0].id: node.value for node in assignments if isinstance(node.targets[0], ast.Name)
        }
        self._asserting: set[str] = set()
        while found := {name for name in self._functions.keys() - self._asserting if self._function_asserts(name)}:
            self._asserting |= found

    def cases(self, body: Sequence[ast.stmt]) -> Iterator[_Case]:
        """Yield the cases in a body, and in the functions that it calls once or that a test runner calls."""
        for statement in body:
            name = _called(statement)
            if inner := self._runs_unconditionally(statement):
                yield from self.cases(inner)
            elif name in self._functions and self._reads[name] == 1:
                yield from self.cases(self._functions[name].body)
            elif self._asserts(statement):
                iterations = self._iterations(statement)
                yield from (_Case(statement, number) for number in iterations) if iterations else [_Case(statement)]

    def _runs_unconditionally(self, statement: ast.stmt) -> Sequence[ast.stmt]:
        """Return the statements inside another one that run once: of a test, or of an `if` that is always true."""
        match statement:
            case ast.FunctionDef(name, body=body) if name in self._discovered:
                return body
            case ast.ClassDef(name, bases, body=body) if name in self._discovered or any(map(_is_test_case, bases)):
                methods = (item for item in body if isinstance(item, _FUNCTIONS) and item.name.startswith("test"))
                return [inner for method in methods for inner in method.body]
            case ast.If(ast.Constant(True) | ast.Compare(ast.Name("__name__"), [ast.Eq()]), body, []):
                return body
        return ()

    def droppable(self, statement: ast.stmt) -> dict[ast.AST, ast.stmt | None]:
        """Return the statements of a case that other cases do not need, each with what remains of it if it is dropped.

        They are the whole statement of the case, or only its assertions.
        """
        dropped = [statement]
        if self._is_needed(statement):
            dropped = [node for node in ast.walk(statement) if isinstance(node, _SIMPLE) and self._asserts(node)]
        return {node: _remainder(node) for node in dropped}

    def _function_asserts(self, name: str) -> bool:
        return any(map(self._asserts, self._functions[name].body))

    def _asserts(self, node: ast.AST) -> bool:
        """Whether running a node executes an assertion; a definition alone does not."""
        if isinstance(node, ast.Assert):
            return not (isinstance(node.test, ast.Constant) and node.test.value)
        if isinstance(node, ast.Raise):
            return any(name == "AssertionError" for name in _names(node, ast.Load))
        if isinstance(node, ast.Expr):
            called = _called(node)
            return called is not None and (called in self._asserting or called.startswith("."))
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.Lambda)):
            return False
        if isinstance(node, ast.With) and any(_expects_error(item.context_expr) for item in node.items):
            return True
        return any(map(self._asserts, ast.iter_child_nodes(node)))

    def _iterations(self, statement: ast.stmt) -> range | None:
        """Return the range of a loop's iterations if their number is small and known, and they are independent."""
        if not isinstance(statement, ast.For) or statement.orelse or self._is_needed(statement):
            return None
        length = self._length(statement.iter)
        return range(length) if length is not None and 1 < length <= _MAX_ITERATIONS else None

    def _length(self, value: ast.expr) -> int | None:
        """Return the length of a literal iterable, or `None`."""
        match value:
            case ast.List(elts) | ast.Tuple(elts):
                return None if any(isinstance(item, ast.Starred) for item in elts) else len(elts)
            case ast.Dict(keys):
                return None if None in keys else len(keys)
            case ast.Call(ast.Attribute(mapping, "items" | "keys" | "values"), [], []):
                return self._length(mapping)
            case ast.Name(name) if self._writes[name] == 1 and name in self._values and self._reads[name] == 1:
                return self._length(self._values[name])
            case ast.Call(ast.Name("enumerate"), [inner, *_]):
                return self._length(inner)
            case ast.Call(ast.Name("zip"), [_, *_] as inner):
                lengths = [self._length(each) for each in inner]
                return None if None in lengths else min(length for length in lengths if length is not None)
            case ast.Call(ast.Name("range"), bounds, []) if all(_is_integer(bound) for bound in bounds):
                return len(range(*(ast.literal_eval(bound) for bound in bounds)))
        return None

    def _is_needed(self, statement: ast.stmt) -> bool:
        """Whether other statements read names that a compound statement sets or changes."""
        if isinstance(statement, _SIMPLE):
            return False
        loops = [node for node in ast.walk(statement) if isinstance(node, ast.For | ast.comprehension)]
        targets = {name for loop in loops for name in _names(loop.target, ast.Store)}
        written = _names(statement, ast.Store)
        new = {name for name in written if self._writes[name] == written[name]}
        read_elsewhere = self._reads - _names(statement, ast.Load)
        return any(name in read_elsewhere for name in (new | _changed(statement)) - targets)


def _remainder(statement: ast.stmt) -> ast.stmt | None:
    """Return the condition of an assertion if it sets names, which other statements may read."""
    if isinstance(statement, ast.Assert) and any(isinstance(node, ast.NamedExpr) for node in ast.walk(statement)):
        return ast.Expr(statement.test)
    return None


def _keep_one_case(
    tree: ast.Module, droppable: Mapping[ast.stmt, Mapping[ast.AST, ast.stmt | None]], kept: _Case
) -> str:
    """Return the test program with a single case."""
    changes: dict[ast.AST, ast.AST | None] = {}
    for statement, dropped in droppable.items():
        if statement is not kept.statement:
            changes.update(dropped)
    if kept.iteration is not None:
        changes[kept.statement] = _one_iteration(kept.statement, kept.iteration)
    return ast.unparse(_changed_copy(tree, changes))


def _one_iteration(loop: ast.stmt, number: int) -> ast.stmt:
    assert isinstance(loop, ast.For)
    part = copy(loop)
    part.iter = ast.parse(f"list({ast.unparse(loop.iter)})[{number}:{number + 1}]", mode="eval").body
    return part


def _changed_copy(node: _Node, changes: Mapping[ast.AST, ast.AST | None]) -> _Node:
    """Return a copy of a tree in which statements are replaced or, by `None`, removed."""
    copied = copy(node)
    for name, value in ast.iter_fields(node):
        if isinstance(value, list) and value and isinstance(value[0], _CONTAINED):
            inner = (changes[item] if item in changes else _changed_copy(item, changes) for item in value)
            setattr(copied, name, [item for item in inner if item is not None])
    if getattr(copied, "body", None) == []:
        copied.body = [ast.Pass()]  # type: ignore[attr-defined]
    return copied


def _called(node: ast.AST) -> str | None:
    """Return the name of the function if a statement is a call, including by `await` or `asyncio.run`, or `None`.

    The name of a method is returned with a leading dot, and only if it begins with `assert`.
    """
    match node:
        case ast.Expr(ast.Await(ast.Call() as call)):
            pass
        case ast.Expr(ast.Call(ast.Attribute(ast.Name("asyncio"), "run"), [ast.Call() as call])):
            pass
        case ast.Expr(ast.Call() as call):
            pass
        case _:
            return None
    match call.func:
        case ast.Name(name):
            return name
        case ast.Attribute(_, name) if name.startswith("assert"):
            return f".{name}"
    return None


def _is_test_case(base: ast.expr) -> bool:
    return isinstance(base, ast.Name | ast.Attribute) and ast.unparse(base).endswith("TestCase")


def _expects_error(context: ast.expr) -> bool:
    """Return whether a context manager is that of `assertRaises`, `pytest.raises` or the like."""
    name = ast.unparse(context.func).rpartition(".")[2] if isinstance(context, ast.Call) else ""
    return name.startswith(("assert", "raises"))


def _names(node: ast.AST, context: type[ast.expr_context]) -> Counter[str]:
    found = (each for each in ast.walk(node) if isinstance(each, ast.Name))
    return Counter(each.id for each in found if isinstance(each.ctx, context))


def _changed(statement: ast.stmt) -> set[str]:
    """Return the names whose values a statement changes by `+=`, a method call, or an item or attribute."""
    changed = set()
    for node in ast.walk(statement):
        match node:
            case ast.AugAssign(target=ast.Name(name)):
                changed.add(name)
            case ast.Expr(ast.Call(ast.Attribute(ast.Name(name), method))) if not method.startswith("assert"):
                changed.add(name)
            case ast.Subscript(ast.Name(name), ctx=ast.Store()) | ast.Attribute(ast.Name(name), ctx=ast.Store()):
                changed.add(name)
    return changed


def _is_integer(node: ast.expr) -> bool:
    try:
        return isinstance(ast.literal_eval(node), int)
    except ValueError:
        return False
