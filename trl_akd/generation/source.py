"""What can be told from a program's text alone."""

import ast
import warnings

__all__ = ["defines", "does_something", "line_of_error", "parse"]


def parse(source: str) -> ast.Module | None:
    """Return the syntax tree, or `None` where there is none."""
    try:
        return _parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def line_of_error(source: str) -> int | None:
    """Return the number of the line, from 1, at which Python stops understanding a program; `None` if it does not."""
    try:
        _parse(source)
    except SyntaxError as error:
        return min(error.lineno or 1, source.count("\n") + 1)
    except (ValueError, RecursionError, MemoryError):
        return 1
    return None


def defines(source: str, name: str) -> bool:
    """Tell whether a program parses and binds `name` at its top level by a definition, an import or an assignment.

    Example:

    ```python
    >>> defines("def one():\\n    return 1", "one"), defines("one()", "one")
    (True, False)

    ```
    """
    tree = parse(source)
    return tree is not None and any(name in _bound(node) for node in tree.body)


def does_something(source: str) -> bool:
    """Tell whether a text parses to more than words, as `this or that` and `Done` do.

    Example:

    ```python
    >>> does_something("print(1)"), does_something("this or that")
    (True, False)

    ```
    """
    tree = parse(source)
    return tree is not None and any(
        not isinstance(node, ast.Expr) or isinstance(node.value, ast.Call) for node in tree.body
    )


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the program's escape sequences and the like
        return ast.parse(source)


def _bound(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {alias.asname or alias.name for alias in names}
    return set()
