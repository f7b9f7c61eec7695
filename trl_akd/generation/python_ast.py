"""Static analysis of Python programs: syntax trees, and the names that top-level statements bind, need and change."""

import ast
import builtins
import copy
import re
import symtable
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

__all__ = [
    "ASSIGNMENTS",
    "BUILTINS",
    "READS_INPUT",
    "Statement",
    "defines",
    "does_something",
    "is_other_version",
    "line_of_error",
    "parse",
    "returns",
    "statements_of",
]


def parse(source: str) -> ast.Module | None:
    """Return the syntax tree, or `None` if the program does not parse."""
    try:
        return _parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def line_of_error(source: str) -> int | None:
    """Return the number of the line, from 1, of the first syntax error; `None` if there is none."""
    try:
        _parse(source)
    except SyntaxError as error:
        return min(error.lineno or 1, source.count("\n") + 1)
    except (ValueError, RecursionError, MemoryError):
        return 1
    return None


def defines(source: str, name: str) -> bool:
    """Return whether a program parses and binds `name` at its top level, by a definition, an import or an assignment.

    Example:

    ```python
    >>> defines("def one():\\n    return 1", "one"), defines("one()", "one")
    (True, False)

    ```
    """
    tree = parse(source)
    return tree is not None and any(name in _bound_names(node) for node in tree.body)


def does_something(source: str) -> bool:
    """Return whether a text parses as more than words, unlike `this or that` and `Done`.

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


def _bound_names(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {alias.asname or alias.name for alias in names}
    return set()


ASSIGNMENTS = (ast.Assign, ast.AnnAssign)
BUILTINS = frozenset(dir(builtins)) | {"__name__", "__file__", "__doc__"}
READS_INPUT = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\(\s*0\b|\bfileinput\b|\bos\.read\(\s*0\b")

_LEFT_OUT = (
    r"(?:(?:the )?(?:rest of (?:the|your)|existing|other|previous|remaining)(?: \w+){0,2}? "
    r"(?:class|code|function|implementation|logic|methods?)"
    r"(?: (?:(?:goes )?here|(?:remains |stays |is )?unchanged|as (?:above|before)))?)"
)
_PLACEHOLDER = re.compile(
    rf"^[ \t]*#[ \t]*[\[(<]?"
    rf"(?:(?:\.{{3}}|\u2026)(?:[ \t].*|{_LEFT_OUT}.*|[^\w\n]*)|{_LEFT_OUT}[ \t]*[\])>.\u2026]*)[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITIONS = (*_FUNCTIONS, ast.ClassDef)
_COMPOUND = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
_SCOPES = (*_DEFINITIONS, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_SETTINGS = {"setrecursionlimit", "set_int_max_str_digits", "stack_size", "seed", "filterwarnings", "simplefilter"}
_NOT_FOR_PROGRAMS = {"unittest", "doctest", "timeit", "tkinter", "turtle", "this", "antigravity"}


@dataclass(frozen=True)
class Statement:
    """A statement at a program's top level.

    Args:
        node (`ast.stmt`):
            Syntax tree.
        text (`str`):
            Source, from the start of a line.
        first (`int`), last (`int`):
            Numbers, from 0, of its first line and of the line after it.
    """

    node: ast.stmt
    text: str
    first: int
    last: int

    @cached_property
    def _now(self) -> list[ast.AST]:
        """Nodes that run together with the statement, without the bodies of functions."""
        found: list[ast.AST] = []
        waiting: list[ast.AST] = [self.node]
        while waiting:
            node = waiting.pop()
            found.append(node)
            if isinstance(node, _FUNCTIONS):
                waiting += [node.args, *node.decorator_list, *([node.returns] if node.returns else [])]
            elif isinstance(node, ast.Lambda):
                waiting.append(node.args)
            else:
                waiting += ast.iter_child_nodes(node)
        return found

    @cached_property
    def binds(self) -> frozenset[str]:
        """Names that the statement binds."""
        if isinstance(self.node, _COMPOUND):
            return frozenset(_bound(self._now))
        inside = () if isinstance(self.node, ast.ClassDef) else self._now
        return frozenset(_bound([self.node, *(node for node in inside if isinstance(node, ast.NamedExpr))]))

    @cached_property
    def binds_when_called(self) -> frozenset[str]:
        """Names that the statement, if it is a function, declares as global."""
        nodes = ast.walk(self.node) if self.is_function else ()
        return frozenset(name for node in nodes if isinstance(node, ast.Global) for name in node.names)

    @cached_property
    def needs(self) -> frozenset[str]:
        """Global names that the statement and the functions in it read or assign."""
        if not any(isinstance(node, _SCOPES) for node in ast.walk(self.node)):
            return frozenset(_loaded(self._now))
        try:
            tables = [symtable.symtable(_without_inlined_scopes(self.node, self.text), "<answer>", "exec")]
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return frozenset(_loaded(ast.walk(self.node)))
        names = {symbol.get_name() for symbol in tables[0].get_symbols() if symbol.is_referenced()}
        while tables:
            table = tables.pop()
            if table.get_type() != "module":
                names.update(symbol.get_name() for symbol in table.get_symbols() if symbol.is_global())
            tables += table.get_children()
        return frozenset(names)

    @cached_property
    def needs_now(self) -> frozenset[str]:
        """Names that must be bound when the statement runs."""
        if isinstance(self.node, ast.ClassDef):
            return frozenset(_loaded(self._now)) - frozenset(_bound(self.node.body))
        return frozenset(_loaded(self._now))

    @cached_property
    def changes(self) -> frozenset[str]:
        """Names of objects of which the statement sets an item or an attribute or calls a method."""
        return frozenset(_changed(self._now))

    @cached_property
    def changes_when_called(self) -> frozenset[str]:
        """Global names that a function assigns or whose objects it may change; without a result, all that it uses."""
        nodes = [*ast.walk(self.node)]
        changed = {*_changed(nodes), *_given(nodes)} if self.asserts or returns(self.node) else self.needs
        return self.binds_when_called | (self.needs & changed)

    @cached_property
    def calls(self) -> frozenset[str]:
        """Names of functions that are called when the statement runs."""
        calls = (node.func for node in self._now if isinstance(node, ast.Call))
        return frozenset(function.id for function in calls if isinstance(function, ast.Name))

    @cached_property
    def gives(self) -> frozenset[str]:
        """Names of objects that are passed as arguments in expression statements."""
        return frozenset(_given(self._now))

    @cached_property
    def reads_files_or_arguments(self) -> bool:
        """Whether the statement opens a file or reads the arguments of the script."""
        return re.search(r"\bopen\s*\(|\bargv\b|\bArgumentParser\b", self.text) is not None

    @property
    def is_filled(self) -> bool:
        """Whether the statement assigns a literal or a comprehension with content."""
        value = getattr(self.node, "value", None)
        if isinstance(value, ast.List | ast.Tuple | ast.Set):
            return bool(value.elts)
        if isinstance(value, ast.Dict):
            return bool(value.keys)
        return isinstance(value, ast.ListComp | ast.SetComp | ast.DictComp | ast.BinOp)

    @cached_property
    def calls_or_passes(self) -> frozenset[str]:
        """Names of functions that are called, or passed to others that may call them, when the statement runs."""
        arguments = (argument for node in self._now if isinstance(node, ast.Call) for argument in node.args)
        return self.calls | {argument.id for argument in arguments if isinstance(argument, ast.Name)}

    @property
    def is_definition(self) -> bool:
        """Whether the statement is a function or a class."""
        return isinstance(self.node, _DEFINITIONS)

    @property
    def is_function(self) -> bool:
        """Whether the statement is a function."""
        return isinstance(self.node, _FUNCTIONS)

    @property
    def is_import(self) -> bool:
        """Whether the statement is an import."""
        return isinstance(self.node, ast.Import | ast.ImportFrom)

    @property
    def runs(self) -> bool:
        """Whether the statement does more than to define, import or assign names."""
        return (
            not self.is_definition
            and not self.is_import
            and not isinstance(self.node, ASSIGNMENTS)
            and not (self.is_constant or self.is_settings)
        )

    @property
    def is_expression(self) -> bool:
        """Whether the statement is an expression."""
        return isinstance(self.node, ast.Expr)

    @property
    def is_certainly_code(self) -> bool:
        """Whether the statement is a definition, an import or control flow, or prints or reads."""
        compound = isinstance(self.node, _COMPOUND)
        return compound or self.is_definition or self.is_import or bool(self.calls & {"print", "input"})

    @property
    def modules(self) -> set[str]:
        """Top-level packages that the statement imports; `""` for relative imports."""
        if isinstance(self.node, ast.Import):
            return {alias.name.partition(".")[0] for alias in self.node.names}
        if isinstance(self.node, ast.ImportFrom):
            return {(self.node.module or "").partition(".")[0] if not self.node.level else ""}
        return set()

    @property
    def is_foreign_import(self) -> bool:
        """Whether the statement imports from outside the standard library."""
        return any(module not in sys.stdlib_module_names for module in self.modules)

    @property
    def is_safe_import(self) -> bool:
        """Whether the statement imports only from the standard library, except packages for tests and windows."""
        return self.is_import and not self.is_foreign_import and not self.modules & _NOT_FOR_PROGRAMS

    @property
    def is_future_import(self) -> bool:
        """Whether the statement is an import from `__future__`, which must come first in its file."""
        return self.modules == {"__future__"}

    @property
    def is_constant(self) -> bool:
        """Whether the statement is a docstring, or assigns a value without names and calls."""
        if not isinstance(self.node, (*ASSIGNMENTS, ast.Expr)):
            return False
        return not self.needs_now and not any(isinstance(node, ast.Call | ast.Await) for node in self._now)

    @property
    def is_settings(self) -> bool:
        """Whether the statement sets up the interpreter, as `sys.setrecursionlimit(10**6)` does."""
        if self.is_future_import:
            return True
        if isinstance(self.node, ast.Assign):
            return any(_mentions(target, "getcontext") for target in self.node.targets)
        call = self.node.value if isinstance(self.node, ast.Expr) else None
        return isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in _SETTINGS

    @cached_property
    def is_main(self) -> bool:
        """Whether the statement runs only in a script: `if __name__ == "__main__":`."""
        return isinstance(self.node, ast.If) and "__name__" in _loaded(ast.walk(self.node.test))

    @property
    def may_set_up(self) -> bool:
        """Whether the statement may set up objects of the program, rather than demonstrate or test it."""
        if self.is_import or self.is_definition or self.is_main or isinstance(self.node, ast.Assert):
            return False
        return not self.calls & {"print", "input"}

    @cached_property
    def reads_input(self) -> bool:
        """Whether the statement reads standard input."""
        return READS_INPUT.search(self.text) is not None

    @property
    def asserts(self) -> bool:
        """Whether the statement contains assertions, as tests do."""
        return any(isinstance(node, ast.Assert) for node in ast.walk(self.node))

    def defines(self, name: str) -> bool:
        """Return whether the statement defines a name, rather than assigning it in a use of the program."""
        if name not in self.binds or self.is_main:
            return False
        if self.is_import:
            return not self.is_foreign_import
        if self.is_definition:
            return True
        if isinstance(self.node, _COMPOUND):
            changes = ASSIGNMENTS if name not in self.needs_now else ()  # `x = x + 1` needs another definition
            kinds = (*_DEFINITIONS, *changes, ast.Import, ast.ImportFrom)
            return any(name in _bound([node]) for node in self._now if isinstance(node, kinds))
        value = getattr(self.node, "value", None)
        if isinstance(value, ast.Lambda | ast.Name | ast.Attribute):
            return True
        return isinstance(value, ast.Call) and name not in self.calls

    @cached_property
    def has_placeholder(self) -> bool:
        """Whether code of the statement is left out, as in an empty function or class."""
        if _has_ellipsis(self.node):
            return True
        return self.is_definition and (_is_stub(self.node) or _PLACEHOLDER.search(self.text) is not None)

    def is_complete(self, name: str) -> bool:
        """Return whether no code of a function, class or method is left out."""
        function = self._function(name)
        return not (self.is_definition and self.has_placeholder) and not (function is not None and _is_stub(function))

    def explains(self, other: "Statement", name: str) -> bool:
        """Return whether a function or method repeats the start of another one that returns something, unlike itself.

        A function that changes other objects, such as one that works in place, is another version.
        """
        mine, others = self._function(name), other._function(name)
        if mine is None or others is None or returns(mine, value=True) or not returns(others, value=True):
            return False
        lines, known = _lines_of(mine), _lines_of(others)
        shown_again = 2 * sum(line in known for line in lines) >= len(lines)
        return shown_again and _changes_outside(mine) <= _changes_outside(others)

    def _function(self, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        """Return the last function or method of that name."""
        body = self.node.body if isinstance(self.node, ast.ClassDef) else [self.node]
        functions = [node for node in body if isinstance(node, _FUNCTIONS) and node.name == name]
        return functions[-1] if functions else None

    def has_method(self, name: str) -> bool:
        """Return whether the statement is a class with a method of that name."""
        return isinstance(self.node, ast.ClassDef) and name in _bound(self.node.body)


def statements_of(text: str, tree: ast.Module, offset: int = 0) -> list[Statement]:
    """Return the top-level statements of a program, whose first line has the number `offset`."""
    lines = text.split("\n")
    ends = [node.end_lineno or node.lineno for node in tree.body]
    starts = [_first_line(node) for node in tree.body]
    found = []
    for number, node in enumerate(tree.body):
        shared = starts[number] in ends[max(number - 1, 0) : number] or ends[number] in starts[number + 1 : number + 2]
        source = _unparsed(node) if shared else "\n".join(lines[starts[number] - 1 : ends[number]])
        found.append(Statement(node, source, starts[number] - 1 + offset, ends[number] + offset))
    return found


def _is_stub(node: ast.stmt) -> bool:
    """Return whether a statement is a placeholder without an effect."""
    if isinstance(node, _DEFINITIONS):
        return all(map(_is_stub, node.body))
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Raise) and _mentions(node, "NotImplemented"))


def _has_ellipsis(statement: ast.stmt) -> bool:
    """Return whether `...` is a statement that stands for code; as the body of a method or a handler, it need not."""
    if _is_ellipsis(statement):
        return True
    for node in ast.walk(statement):
        for body in (getattr(node, field, None) for field in ("body", "orelse", "finalbody")):
            if isinstance(body, list) and any(map(_is_ellipsis, body)):
                if not isinstance(node, (*_DEFINITIONS, ast.ExceptHandler)) or not all(map(_is_stub, body)):
                    return True
    return False


def _is_ellipsis(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...


def returns(definition: ast.AST, *, value: bool = False) -> bool:
    """Return whether a function returns, yields or raises anything itself; `value` ignores returns without a value."""
    waiting = [*ast.iter_child_nodes(definition)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom | ast.Raise):
            return True
        if isinstance(node, ast.Return) and (node.value is not None or not value):
            return True
        if not isinstance(node, (*_DEFINITIONS, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return False


def is_other_version(new: ast.stmt, old: ast.stmt) -> bool:
    """Return whether a function differs from another one, up to its end, rather than repeating the start of it."""
    if not isinstance(new, _FUNCTIONS) or not isinstance(old, _FUNCTIONS):
        return False
    if not isinstance(new.body[-1], ast.Return | ast.Raise):
        return False
    return _unparsed(new) != _unparsed(old)


def _lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Return the lines of a function's body, without docstrings."""
    body = [node for node in function.body if not _is_stub(node)]
    return [line.strip() for node in body for line in _unparsed(node).split("\n")]


def _changes_outside(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Return the names of parameters and global objects that a function changes."""
    nodes = [node for statement in function.body for node in ast.walk(statement)]
    declared = (name for node in nodes if isinstance(node, ast.Global | ast.Nonlocal) for name in node.names)
    return {*_changed(nodes), *declared} - {*_bound(node for node in nodes if not isinstance(node, ast.AugAssign))}


def _mentions(node: ast.AST, word: str) -> bool:
    """Return whether a name, an attribute or a string contains a word."""
    values = (value for part in ast.walk(node) for _, value in ast.iter_fields(part))
    return any(isinstance(value, str) and word in value for value in values)


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _unparsed(node: ast.stmt) -> str:
    try:
        return ast.unparse(node)
    except RecursionError:
        return "pass"


class _ComprehensionsAsGenerators(ast.NodeTransformer):
    """Replace comprehensions by generators, which have the same scopes in all versions of Python."""

    def visit_ListComp(self, node: ast.ListComp) -> ast.GeneratorExp:
        self.generic_visit(node)
        return ast.GeneratorExp(node.elt, node.generators)

    def visit_SetComp(self, node: ast.SetComp) -> ast.GeneratorExp:
        self.generic_visit(node)
        return ast.GeneratorExp(node.elt, node.generators)

    def visit_DictComp(self, node: ast.DictComp) -> ast.GeneratorExp:
        self.generic_visit(node)
        return ast.GeneratorExp(ast.Tuple([node.key, node.value], ast.Load()), node.generators)


def _without_inlined_scopes(node: ast.stmt, text: str) -> str:
    """Return the source of a statement, from Python 3.12 with comprehensions as generators.

    Symbol tables of Python 3.12 and later count the variables of a comprehension among those of its surroundings
    (PEP 709).
    """
    comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp)
    if sys.version_info < (3, 12) or not any(isinstance(each, comprehensions) for each in ast.walk(node)):
        return text
    return ast.unparse(_ComprehensionsAsGenerators().visit(copy.deepcopy(node)))


def _bound(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the names that statements bind."""
    for node in nodes:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                for target in targets:
                    yield from _target_names(target)
            case ast.AnnAssign(target=target, value=ast.expr()) | ast.AugAssign(target=target):
                yield from _target_names(target)
            case ast.For(target=target) | ast.AsyncFor(target=target) | ast.NamedExpr(target=target):
                yield from _target_names(target)
            case ast.withitem(optional_vars=ast.expr() as target):
                yield from _target_names(target)
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                yield name
            case ast.Expr(ast.Call(ast.Name("exec"), [ast.Constant(str(source)), *_])) if tree := parse(source):
                yield from _bound(tree.body)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from (alias.asname or alias.name.partition(".")[0] for alias in names)


def _target_names(target: ast.expr) -> Iterator[str]:
    for node in ast.walk(target):
        match node:
            case ast.Name(name, ast.Store()) | ast.Subscript(ast.Call(ast.Name("globals")), ast.Constant(str(name))):
                yield name


def _changed(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the names of objects that are changed, by setting an item or an attribute or by calling a method."""
    for node in nodes:
        changed: list[ast.expr] = []
        match node:
            case ast.Subscript(ctx=ast.Store() | ast.Del()) | ast.Attribute(ctx=ast.Store() | ast.Del()):
                changed = [node]
            case ast.Call(ast.Name("setattr" | "delattr"), [target, *_]):
                changed = [target]
            case ast.Expr(value):
                changed = [call.func for call in _unused_calls(value) if isinstance(call.func, ast.Attribute)]
        yield from filter(None, map(_root, changed))


def _given(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the names of objects that are passed to calls in expression statements."""
    values = [node.value for node in nodes if isinstance(node, ast.Expr)]
    calls = (node for value in values for node in ast.walk(value) if isinstance(node, ast.Call))
    yield from filter(None, (_root(argument) for call in calls for argument in call.args))


def _unused_calls(value: ast.expr) -> Iterator[ast.Call]:
    """Yield the calls in an expression statement whose results are not used, also in comprehensions and lambdas."""
    waiting: list[tuple[ast.AST, bool]] = [(value, True)]
    while waiting:
        node, is_unused = waiting.pop()
        if isinstance(node, ast.Call) and is_unused:
            yield node
        passes_on = is_unused and isinstance(node, ast.BoolOp | ast.IfExp | ast.Await | ast.List | ast.Tuple)
        for field, child in ast.iter_fields(node):
            is_result = passes_on or field == "elt" or (field == "body" and isinstance(node, ast.Lambda))
            children = child if isinstance(child, list) else [child]
            waiting += [(each, is_result) for each in children if isinstance(each, ast.AST)]


def _loaded(nodes: Iterable[ast.AST]) -> set[str]:
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _root(node: ast.expr) -> str | None:
    """Return the name at the root of attributes and items."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None
