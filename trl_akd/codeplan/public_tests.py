"""Public tests as single cases, so that plans are compared by fractions of them."""

import ast
from collections.abc import Callable, Sequence

from ..execution import ExecutionResult, Tests
from ..generation.source import parse

__all__ = ["pass_fractions", "split_tests"]

Run = Callable[[Sequence[tuple[str, Tests]]], list[ExecutionResult]]


def split_tests(test: str) -> list[str]:
    r"""Split a test program into programs of one case each.

    A case is a statement with an `assert`: at the top level, as in MBPP, or in a function of the test program that the
    top level calls once, as in HumanEval's `check`. Each program has one case and all statements that are none.
    Assertions of a constant, such as `assert True`, are no cases.

    Args:
        test (`str`):
            The test program.

    Returns:
        `list[str]`: One program per case, in order; `test` alone if it does not parse or has a single case.

    Example:

    ```python
    >>> split_tests("x = 2\nassert double(x) == 4\nassert double(0) == 0")
    ['x = 2\nassert double(x) == 4', 'x = 2\nassert double(0) == 0']

    ```
    """
    tree = parse(test)
    cases = [] if tree is None else _cases(tree)
    if tree is None or len(cases) < 2:
        return [test]
    try:
        return [_with_one(tree, cases, case) for case in cases]
    except RecursionError:
        return [test]


def pass_fractions(programs: Sequence[str], tests: Tests, run: Run) -> list[float | None]:
    """Return the fraction of the cases of public tests that each program passes.

    It is 1 if and only if the program passes the tests as a whole. The cases of a test program run one by one, each in
    a process of its own, for programs that fail the whole.

    Args:
        programs (`Sequence[str]`):
            The programs.
        tests (`str` or `Mapping`):
            A test program, or inputs and outputs.
        run (`Callable`):
            Runs pairs of program and tests.

    Returns:
        `list[float | None]`: `None` for a program that could not be judged.
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
        # Cases that pass one by one and not together depend on one another.
        fractions[index] = min(passed, len(cases) - 1) / len(cases)
    return fractions


def _fraction(result: ExecutionResult) -> float | None:
    return None if result.status == "infra_error" else result.tests_passed / result.tests_total


def _cases(tree: ast.Module) -> list[ast.stmt]:
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    called = [name for node in ast.walk(tree) if (name := _called(node)) in functions]
    cases: list[ast.stmt] = []
    for statement in tree.body:
        function = functions.get(_called(statement) or "")
        if function is not None and called.count(function.name) == 1:
            cases += filter(_asserts, function.body)
        elif _asserts(statement) or (function is not None and any(map(_asserts, function.body))):
            cases.append(statement)
    return cases


def _called(node: ast.AST) -> str | None:
    """Return the name of the function that a statement calls and does no more."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
        return node.value.func.id
    return None


def _asserts(node: ast.AST) -> bool:
    """Tell whether running a statement asserts something; a definition alone does not."""
    if isinstance(node, ast.Assert):
        return not isinstance(node.test, ast.Constant)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
        return False
    return any(map(_asserts, ast.iter_child_nodes(node)))


def _with_one(tree: ast.Module, cases: Sequence[ast.stmt], case: ast.stmt) -> str:
    """Return the test program without all cases but one."""
    dropped = {id(other) for other in cases if other is not case}
    bodies: list[ast.Module | ast.FunctionDef] = [
        tree,
        *(node for node in tree.body if isinstance(node, ast.FunctionDef)),
    ]
    whole = [node.body for node in bodies]
    try:
        for node in bodies:
            node.body = [statement for statement in node.body if id(statement) not in dropped] or [ast.Pass()]
        return ast.unparse(tree)
    finally:
        for node, body in zip(bodies, whole, strict=True):
            node.body = body
