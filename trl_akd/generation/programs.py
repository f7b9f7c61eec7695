"""Find the Python program in the parts of an answer, judging by the syntax tree.

With an entry point, the program is the last complete definition of it and what that needs. Statements that only use
the program, such as examples, self-tests and reads of standard input, are left out, because they run when the program
is imported and may fail although the definition is right.
"""

import ast
import builtins
import html
import json
import re
import symtable
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal, TypeAlias

from .source import does_something, parse

__all__ = ["Part", "find_program", "is_marked_wrong"]

PartKind: TypeAlias = Literal["python", "code", "diff", "prose", "text"]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an answer that may hold Python.

    Args:
        text (`str`):
            The text.
        kind (`str`):
            `"python"` for a block that is tagged as Python, `"code"` for one without a telling tag, `"diff"` for a
            diff, `"prose"` for text outside of blocks, and `"text"` for an answer without blocks.
        wrong (`bool`, *optional*, defaults to `False`):
            Whether the answer calls the code wrong.
    """

    text: str
    kind: PartKind
    wrong: bool = False


def find_program(parts: Sequence[Part], entry_point: str | None = None) -> str | None:
    """Return the Python program in the parts of an answer, or `None` if there is none.

    Without an entry point, or without a definition of it, the program is kept whole.

    Args:
        parts (`Sequence[Part]`):
            Parts of the answer in order.
        entry_point (`str`, *optional*):
            Name that the program should define.
    """
    sources = [_Source(part) for part in parts]
    if entry_point is not None:
        entry_point = entry_point.partition(".")[0]
        ranks = [(source.rank(entry_point), number) for number, source in enumerate(sources)]
        best, chosen = max(ranks, default=((0, 0), 0))
        if best[0]:
            return _Assembly(sources, chosen, entry_point).program()
    return _whole_program(sources)


# The prose before a block


_WRONG = re.compile(
    r"\b(?:wrong|incorrect(?:ly)?|buggy|bugs?|broken|faulty|flawed|mistaken?|mistakes?|pitfall|anti-?pattern"
    r"|avoid|fails?|naive attempt|bad|inefficient|too slow|slower|for (?:comparison|reference)"
    r"|(?:do|does|did|would|will|is|are)(?: not|n['\u2019]?t) (?:be )?"
    r"(?:do|use|write|work|correct|right|valid|handle|pass)\w*"
    r"|won['\u2019]t work|not (?:do|to do)|your (?:original )?(?:code|version|attempt)|original code)\b",
    re.IGNORECASE,
)
_RIGHT = re.compile(
    r"\b(?:correct(?:ed|ly|ion)?|fix(?:ed|es|ing)?|instead|right|improved?|optimi[sz]ed|updated|revised|final|working"
    r"|better|efficient|faster|solution is|avoids|handles)\b",
    re.IGNORECASE,
)
_NEGATED = re.compile(
    r"\b(?:not|n['\u2019]t|never)\s+(?:be\s+|quite\s+)?(?:correct|right|working|efficient|handle)\w*", re.IGNORECASE
)
_HEADING_CHARS = 300


def is_marked_wrong(before: str, block: str) -> bool:
    """Tell whether the last line of prose before a block, or the comment that opens it, calls the code wrong."""
    lines = before[-_HEADING_CHARS:].strip().splitlines()
    comment = re.match(r"\s*+#(.{0,200})", block)
    return any(_is_disapproval(line) for line in [*lines[-1:], *([comment[1]] if comment else [])])


def _is_disapproval(line: str) -> bool:
    if "❌" in line:
        return True
    wrong = _WRONG.search(line)
    return wrong is not None and _RIGHT.search(_NEGATED.sub("", line)) is None


# Statements and what they need


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
_BUILTINS = frozenset(dir(builtins)) | {"__name__", "__file__", "__doc__"}
_DYNAMIC = {"globals", "eval", "exec", "locals", "vars"}
_SETTINGS = {"setrecursionlimit", "set_int_max_str_digits", "stack_size", "seed", "filterwarnings", "simplefilter"}
_TEST_FRAMEWORKS = {"unittest", "doctest", "pytest", "hypothesis", "timeit"}
_UNSAFE_MODULES = {*_TEST_FRAMEWORKS, "tkinter", "turtle", "this", "antigravity"}


@dataclass(frozen=True)
class _Statement:
    """A statement at a program's top level, with its lines."""

    node: ast.stmt
    text: str
    first: int
    last: int

    @cached_property
    def parts(self) -> list[ast.AST]:
        """The nodes that run when the statement does: without the bodies of functions."""
        found: list[ast.AST] = []
        waiting: list[ast.AST] = [self.node]
        while waiting:
            node = waiting.pop()
            found.append(node)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                waiting += [
                    node.args,
                    *getattr(node, "decorator_list", []),
                    *filter(None, [getattr(node, "returns", None)]),
                ]
            else:
                waiting += ast.iter_child_nodes(node)
        return found

    @cached_property
    def binds(self) -> frozenset[str]:
        """The names that the statement binds."""
        return frozenset(_bound(self.parts if isinstance(self.node, _BLOCKS) else [self.node]))

    @cached_property
    def needs(self) -> frozenset[str]:
        """The global names that the statement and the functions in it read or assign."""
        return self._names[0]

    @cached_property
    def needs_now(self) -> frozenset[str]:
        """The names that must be there when the statement runs."""
        if isinstance(self.node, ast.ClassDef):
            inside = {name for statement in self.node.body for name in _bound([statement])}
            return frozenset(_loaded(self.parts)) - inside
        return frozenset(_loaded(self.parts))

    @cached_property
    def _names(self) -> tuple[frozenset[str]]:
        if not any(isinstance(node, _SCOPES) for node in ast.walk(self.node)):
            return (frozenset(_loaded(self.parts)),)
        try:
            tables = [symtable.symtable(self.text, "<answer>", "exec")]
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return (frozenset(_loaded(ast.walk(self.node))),)
        names: set[str] = {symbol.get_name() for symbol in tables[0].get_symbols() if symbol.is_referenced()}
        while tables:
            table = tables.pop()
            if table.get_type() != "module":
                names.update(symbol.get_name() for symbol in table.get_symbols() if symbol.is_global())
            tables += table.get_children()
        return (frozenset(names),)

    @cached_property
    def changes(self) -> frozenset[str]:
        """The names of objects that the statement changes: by an item, an attribute or a method."""
        names = set()
        for node in self.parts:
            if isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
                names.add(_root(node))
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                if isinstance(node.value.func, ast.Attribute):
                    names.add(_root(node.value.func))
        return frozenset(filter(None, names))

    @property
    def is_definition(self) -> bool:
        return isinstance(self.node, _DEFINITIONS)

    @property
    def is_import(self) -> bool:
        return isinstance(self.node, ast.Import | ast.ImportFrom)

    @property
    def is_foreign_import(self) -> bool:
        """Whether a module outside of the standard library is imported."""
        return any(module not in sys.stdlib_module_names for module in self.modules)

    @property
    def modules(self) -> set[str]:
        """The top-level packages of the modules that are imported."""
        if isinstance(self.node, ast.Import):
            return {alias.name.partition(".")[0] for alias in self.node.names}
        if isinstance(self.node, ast.ImportFrom):
            return {(self.node.module or "").partition(".")[0] if not self.node.level else ""}
        return set()

    @property
    def is_constant(self) -> bool:
        """Whether the statement is a docstring, or assigns a value that needs nothing to run."""
        if not isinstance(self.node, ast.Assign | ast.AnnAssign | ast.Expr):
            return False
        return not any(isinstance(node, ast.Call | ast.Await) for node in self.parts) and not self.needs_now

    @property
    def is_settings(self) -> bool:
        """Whether the statement sets up the interpreter, as `sys.setrecursionlimit(10**6)` does."""
        if isinstance(self.node, ast.ImportFrom):
            return self.node.module == "__future__"
        if isinstance(self.node, ast.Assign):
            return any("getcontext" in ast.dump(target) for target in self.node.targets if _is_attribute(target))
        call = self.node.value if isinstance(self.node, ast.Expr) else None
        return isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in _SETTINGS

    @cached_property
    def is_main(self) -> bool:
        """Whether the statement runs only in a script: `if __name__ == "__main__":`."""
        return isinstance(self.node, ast.If) and any(
            isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(self.node.test)
        )

    def defines(self, name: str) -> bool:
        """Tell whether the statement is a definition of a name rather than a use that happens to assign it."""
        if name not in self.binds or self.is_main:
            return False
        if self.is_import:
            return not self.is_foreign_import
        if self.is_definition:
            return True
        if isinstance(self.node, _BLOCKS):
            return any(
                name in _bound([node]) for node in self.parts if isinstance(node, (*_DEFINITIONS, *_ASSIGNMENTS))
            )
        value = getattr(self.node, "value", None)
        if isinstance(value, ast.Lambda | ast.Name | ast.Attribute):
            return True
        return isinstance(value, ast.Call) and not _calls(value, name)

    def is_stub(self, name: str) -> bool:
        """Tell whether the statement is a function of that name with nothing in it."""
        if not isinstance(self.node, ast.FunctionDef | ast.AsyncFunctionDef) or self.node.name != name:
            return False
        return all(
            isinstance(node, ast.Pass)
            or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            or (isinstance(node, ast.Raise) and "NotImplemented" in ast.dump(node))
            for node in self.node.body
        )

    def has_method(self, name: str) -> bool:
        """Tell whether the statement is a class with a method of that name."""
        return isinstance(self.node, ast.ClassDef) and any(name in _bound([node]) for node in self.node.body)


_ASSIGNMENTS = (ast.Assign, ast.AnnAssign)
_SCOPES = (*_DEFINITIONS, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


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
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from (alias.asname or alias.name.partition(".")[0] for alias in names)


def _target_names(target: ast.expr) -> Iterator[str]:
    yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))


def _loaded(nodes: Iterable[ast.AST]) -> set[str]:
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _root(node: ast.expr) -> str | None:
    """Return the name that attributes and items are taken of."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _is_attribute(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute)


def _calls(value: ast.expr, name: str) -> bool:
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
        for node in ast.walk(value)
    )


# A part as Python


class _Source:
    """The Python in one part of an answer."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.fenced = part.kind not in ("prose", "text")
        self.text, tree = _repaired(part)
        self.parses = tree is not None
        if tree is not None:
            self.statements, self.truncated = _statements(self.text, tree), False
        else:
            self.statements, self.truncated = _salvaged(self.text)

    def rank(self, name: str) -> tuple[int, int]:
        """Return how good a definition of a name this part has (0 for none), and whether it is a code block."""
        found = [statement for statement in self.statements if statement.defines(name)]
        real = [statement for statement in found if not statement.is_import]
        if real:
            rank = 6 - 2 * self.part.wrong - real[-1].is_stub(name)
        elif any(statement.has_method(name) for statement in self.statements):
            rank = 2
        else:
            rank = 1 if found or any(name in statement.binds for statement in self._assignments()) else 0
        return rank, self.fenced

    def _assignments(self) -> Iterator[_Statement]:
        return (statement for statement in self.statements if isinstance(statement.node, _ASSIGNMENTS))

    @cached_property
    def runs(self) -> list[list[_Statement]]:
        """The statements by runs with nothing but blank lines and comments in between."""
        lines = self.text.split("\n")
        runs: list[list[_Statement]] = []
        for statement in self.statements:
            between = lines[runs[-1][-1].last : statement.first] if runs else []
            if runs and all(not line.strip() or line.lstrip().startswith("#") for line in between):
                runs[-1].append(statement)
            else:
                runs.append([statement])
        return runs

    def definitions(self, name: str) -> list[_Statement]:
        """Return the statements that bind a name, without the uses that happen to assign it."""
        binding = [statement for statement in self.statements if name in statement.binds]
        return [statement for statement in binding if statement.defines(name)] or binding


def _statements(text: str, tree: ast.Module, offset: int = 0) -> list[_Statement]:
    lines = text.split("\n")
    found: list[_Statement] = []
    for node in tree.body:
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))]) - 1
        last = node.end_lineno or node.lineno
        if found and found[-1].last > first + offset:  # two statements on a line
            source = ast.unparse(node)
        else:
            source = "\n".join(lines[first:last])
        found.append(_Statement(node, source, first + offset, last + offset))
    return found


# Repairs


_REPL = re.compile(r"^[ \t]*(?:>>>|In \[\d*\]:)(?: |$)", re.MULTILINE)
_REPL_LINE = re.compile(r"[ \t]*(?:>>> ?|\.\.\.(?: |$)|In \[\d*\]: ?|[ \t]*\.{3,}: ?)(.*)")
_LINE_NUMBER = re.compile(r"[ \t]*\d{1,5}(?:[ \t]*[|:.)│][ \t]?|[ \t]|$)")
_ENTITY = re.compile(r"&(?:lt|gt|amp|quot|apos|#39|#x27|nbsp);")
_TYPOGRAPHY = MappingProxyType(
    str.maketrans(
        {
            **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
            **dict.fromkeys("\u2018\u2019\u201a\u201b", "'"),
            **dict.fromkeys("\u00a0\u2007\u202f\u2009\u3000", " "),
            **dict.fromkeys("\u200b\u200c\u200d\ufeff\u2060", ""),
            **dict.fromkeys("\u2212\u2013", "-"),
        }
    )
)
_MAGIC = re.compile(r"^[ \t]*(?:%%?\w|![\w./]).*$\n?", re.MULTILINE)
_JSON_KEYS = (
    "code",
    "solution",
    "program",
    "python",
    "python_code",
    "answer",
    "completion",
    "implementation",
    "content",
)


def _repaired(part: Part) -> tuple[str, ast.Module | None]:
    """Return a part's text and its tree, repaired by the first repairs with which it parses."""
    text = part.text
    if part.kind == "diff" or (part.kind == "code" and text.lstrip().startswith(("@@ ", "--- "))):
        text = _without_diff_marks(text)
    prose = part.kind == "prose" or part.kind == "text"
    tree = _tree(text, prose)
    for repair in _REPAIRS:
        if tree is not None:
            break
        repaired = repair(text)
        if repaired != text:
            text = repaired
            tree = _tree(text, prose)
    return text, tree


def _tree(text: str, prose: bool) -> ast.Module | None:
    """Return the tree of a text, unless it is the body of a function or words that happen to parse."""
    tree = parse(text)
    if tree is None or (prose and any(map(_is_words, tree.body))) or _is_body(tree):
        return None
    return tree


def _is_body(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.Return) for statement in tree.body for node in _outside_functions(statement))


def _outside_functions(statement: ast.stmt) -> Iterator[ast.AST]:
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (*_DEFINITIONS, ast.expr)):
            waiting += ast.iter_child_nodes(node)


def _is_words(node: ast.stmt) -> bool:
    """Tell words that happen to parse, as `Done` and `Note: this`, from statements."""
    if isinstance(node, ast.Expr):
        return not any(isinstance(part, ast.Call | ast.Await | ast.Yield) for part in ast.walk(node.value)) and not (
            isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
    return isinstance(node, ast.Global) or (isinstance(node, ast.AnnAssign) and node.value is None)


def _from_json(text: str) -> str:
    """Return the code in a JSON object."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text
    return next((value[key] for key in _JSON_KEYS if isinstance(value.get(key), str)), text)


def _without_prompts(text: str) -> str:
    """Return what was typed in a transcript of an interpreter."""
    if _REPL.search(text) is None:
        return text
    lines = text.split("\n")
    first = next(number for number, line in enumerate(lines) if _REPL.match(line))
    before = "\n".join(lines[:first])
    if parse(before) is not None and before.strip():
        return before
    return "\n".join(match[1] for line in lines if (match := _REPL_LINE.fullmatch(line)))


def _without_line_numbers(text: str) -> str:
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < 2 or not all(map(_LINE_NUMBER.match, lines)):
        return text
    return textwrap.dedent("\n".join(_LINE_NUMBER.sub("", line, count=1) for line in lines))


def _without_entities(text: str) -> str:
    return html.unescape(text) if _ENTITY.search(text) else text


def _with_plain_quotes(text: str) -> str:
    return text.translate(_TYPOGRAPHY)


def _without_magics(text: str) -> str:
    return _MAGIC.sub("", text)


def _without_diff_marks(text: str) -> str:
    """Return the new side of a diff."""
    kept = [
        line[1:] if line[:1] in ("+", " ") else line
        for line in text.split("\n")
        if not line.startswith(("-", "@@", "+++", "diff ", "index ", "\\ No newline"))
    ]
    return "\n".join(kept)


def _with_spaces(text: str) -> str:
    return "\n".join(line.expandtabs(4) if line[:1].isspace() else line for line in text.split("\n"))


_REPAIRS: tuple[Callable[[str], str], ...] = (
    textwrap.dedent,
    _from_json,
    _without_prompts,
    _without_line_numbers,
    _without_entities,
    _with_plain_quotes,
    _without_magics,
    _with_spaces,
)


# Statements among other text


_OPENS_CODE = re.compile(r"[ \t]*(?:(?:async[ \t]+)?def[ \t]+\w+[ \t]*[\[(]|class[ \t]+\w+[ \t]*[(:]|@\w)")
_CONTINUES = re.compile(r"(?:else|elif|except|finally)\b|[)\]}]")
_LEXEME = re.compile(
    r"(?P<triple>\"\"\"|''')|\"(?:[^\"\\\n]|\\.)*+\"?+|'(?:[^'\\\n]|\\.)*+'?+|(?P<comment>\#.*+)|(?P<bracket>[(\[{)\]}])"
)


def _salvaged(text: str) -> tuple[list[_Statement], bool]:
    """Return the statements in a text that does not parse as a whole, and whether a definition in it is broken.

    Time is linear in the length of the text.
    """
    broken = False
    lines = text.split("\n")
    budget = 8 * len(text) + 10_000
    found: list[_Statement] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        if not line.strip() or line.lstrip().startswith("#"):
            number += 1
            continue
        chunks = [_extent(lines, number, lexical=True, limit=budget)]
        tree = None
        for end in chunks:
            chunk = textwrap.dedent("\n".join(lines[number:end])).rstrip()
            budget -= len(chunk) + 1
            tree = parse(chunk) if budget > 0 or end == number + 1 else None
            if tree is not None:
                break
            plain = _extent(lines, number, lexical=False, limit=budget)
            if plain != end and len(chunks) == 1:
                chunks.append(plain)
        if tree is not None and not _is_body(tree) and not any(map(_is_words, tree.body)):
            found += _statements(chunk, tree, number)
            number = end
        else:
            broken = broken or (_OPENS_CODE.match(line) is not None and tree is None)
            number = end if _OPENS_CODE.match(line) or tree is not None else number + 1
    return found, broken


def _extent(lines: Sequence[str], first: int, *, lexical: bool, limit: int) -> int:
    """Return the number of the line after a statement that begins at a line: by its indents, strings and brackets."""
    indent = _indent(lines[first])
    depth, delimiter = _lex(lines[first], 0, None)
    end = number = first + 1
    decorated = lines[first].lstrip().startswith("@")
    while number < len(lines):
        line = lines[number]
        limit -= len(line) + 1
        if limit < 0:
            break
        open_ = lexical and (delimiter is not None or depth > 0 or lines[number - 1].endswith("\\"))
        if open_ and delimiter is None and _OPENS_CODE.match(line) and _indent(line) <= indent:
            break
        if not open_ and line.strip() and not line.lstrip().startswith("#"):
            if _indent(line) <= indent and not (
                _indent(line) == indent and (decorated or _CONTINUES.match(line.strip()))
            ):
                break
            decorated = decorated and line.lstrip().startswith("@")
        if line.strip() and not (not open_ and line.lstrip().startswith("#") and _indent(line) <= indent):
            end = number + 1
        depth, delimiter = _lex(line, depth, delimiter)
        number += 1
    return end


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))


def _lex(line: str, depth: int, delimiter: str | None) -> tuple[int, str | None]:
    """Return how many brackets and which triple quotes are open after a line."""
    position = 0
    while True:
        if delimiter is not None:
            end = line.find(delimiter, position)
            if end < 0:
                return depth, delimiter
            position, delimiter = end + 3, None
        token = _LEXEME.search(line, position)
        if token is None or token["comment"]:
            return depth, None
        position, delimiter = token.end(), token["triple"]
        if token["bracket"]:
            depth = depth + 1 if token["bracket"] in "([{" else max(depth - 1, 0)


# The program with an entry point


class _Assembly:
    """Choose the statements that an entry point needs."""

    def __init__(self, sources: Sequence[_Source], chosen: int, entry_point: str) -> None:
        self._sources = sources
        self._chosen = chosen
        self._entry_point = entry_point
        self._kept: set[tuple[int, int]] = set()
        self._names: set[str] = set()
        self._waiting: list[str] = []

    def program(self) -> str:
        """Return the program."""
        source = self._sources[self._chosen]
        for number, statement in enumerate(source.statements):
            if statement.is_settings:
                self._keep(self._chosen, number)
            elif statement.has_method(self._entry_point) and not source.definitions(self._entry_point):
                self._keep(self._chosen, number)
        self._need(self._entry_point)
        self._resolve()
        self._keep_definitions()
        self._keep_star_imports()
        return self._text()

    def _need(self, name: str) -> None:
        if name not in self._names:
            self._names.add(name)
            self._waiting.append(name)

    def _keep(self, source: int, number: int) -> None:
        if (source, number) in self._kept:
            return
        self._kept.add((source, number))
        statement = self._sources[source].statements[number]
        self._names |= statement.binds if statement.is_import else set()
        for name in (statement.needs | statement.binds) if not statement.is_import else ():
            self._need(name)

    def _resolve(self) -> None:
        """Keep what binds or changes the names that are needed, until nothing is missing."""
        while self._waiting:
            name = self._waiting.pop()
            home = self._home(name)
            if home is None:
                continue
            source = self._sources[home]
            definitions = set(map(id, source.definitions(name)))
            for number, statement in enumerate(source.statements):
                if statement.is_main:
                    continue
                if id(statement) in definitions or (name in statement.changes and not self._is_use(statement)):
                    self._keep(home, number)
            if name in _DYNAMIC:
                for number, statement in enumerate(source.statements):
                    if statement.is_definition or isinstance(statement.node, _ASSIGNMENTS):
                        self._keep(home, number)

    def _home(self, name: str) -> int | None:
        """Return the number of the source whose binding of a name counts, the chosen one first."""
        numbers: list[int] = [
            self._chosen,
            *range(self._chosen - 1, -1, -1),
            *range(self._chosen + 1, len(self._sources)),
        ]
        if name in _DYNAMIC:
            return self._chosen
        binding: list[int] = [
            number
            for number in numbers
            if any(name in statement.binds for statement in self._sources[number].statements)
        ]
        if name in _BUILTINS:
            binding = [number for number in binding if number == self._chosen]
        preferences: tuple[Callable[[_Statement], bool], ...] = (
            lambda statement: statement.defines(name),
            lambda statement: not statement.is_foreign_import,
            lambda statement: True,
        )
        for preferred in preferences:
            for number in binding:
                binders = [statement for statement in self._sources[number].statements if name in statement.binds]
                if any(map(preferred, binders)):
                    return number
        return None

    def _is_use(self, statement: _Statement) -> bool:
        """Tell whether a statement only uses the program: prints, asserts, or reads input."""
        calls = {
            node.func.id for node in statement.parts if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        return bool(calls & {"print", "input"}) or isinstance(statement.node, ast.Assert)

    def _keep_definitions(self) -> None:
        """Keep the functions and classes that nothing needs but a test might, where defining them cannot fail."""
        for source in range(self._chosen + 1):
            drafted = source != self._chosen and self._sources[source].rank(self._entry_point)[0] > 0
            if drafted or (source != self._chosen and not self._sources[source].fenced):
                continue
            if self._sources[source].part.wrong and source != self._chosen:
                continue
            beside = self._beside(source)
            for number, statement in enumerate(self._sources[source].statements):
                if (source, number) in self._kept or statement.binds & self._names or id(statement) not in beside:
                    continue
                if statement.is_constant:
                    self._kept.add((source, number))
                elif (
                    statement.is_import and not statement.is_foreign_import and not statement.modules & _UNSAFE_MODULES
                ):
                    self._keep(source, number)
                elif statement.is_definition and self._is_safe(statement):
                    self._keep(source, number)
                    self._resolve()

    def _beside(self, number: int) -> set[int]:
        """Return the identities of a source's statements that prose does not set apart from those that are kept."""
        source = self._sources[number]
        kept = {id(source.statements[index]) for home, index in self._kept if home == number}
        runs = [source.statements] if source.fenced or source.parses else source.runs
        return {
            id(statement)
            for run in runs
            if source.fenced or any(id(statement) in kept for statement in run)
            for statement in run
        }

    def _is_safe(self, statement: _Statement) -> bool:
        """Tell whether a definition needs neither tests nor packages outside of the standard library."""
        seen: set[str] = set()
        waiting = list(statement.needs)
        while waiting:
            name = waiting.pop()
            if name in seen or name in self._names:
                continue
            seen.add(name)
            home = self._home(name)
            if home is None:
                if name in statement.needs_now and name not in _BUILTINS:
                    return False
                continue
            for other in self._sources[home].definitions(name):
                if other.is_foreign_import or other.modules & _UNSAFE_MODULES:
                    return False
                if not other.is_definition and not other.is_import:
                    return False
                waiting += other.needs if not other.is_import else ()
        return True

    def _keep_star_imports(self) -> None:
        """Keep `from ... import *` of the standard library, and of others where a name is missing without."""
        for number, source in enumerate(self._sources):
            for index, statement in enumerate(source.statements):
                if "*" in statement.binds and number <= self._chosen:
                    if not statement.is_foreign_import or self._is_missing():
                        self._kept.add((number, index))

    def _is_missing(self) -> bool:
        bound = {name for source, number in self._kept for name in self._sources[source].statements[number].binds}
        return bool(self._names - bound - _BUILTINS)

    def _text(self) -> str:
        futures: list[str] = []
        texts: list[str] = []
        for number, source in enumerate(self._sources):
            kept = [index for index, _ in enumerate(source.statements) if (number, index) in self._kept]
            if not kept:
                continue
            statements = [source.statements[index] for index in kept]
            future = [statement.text for statement in statements if statement.modules == {"__future__"}]
            if not texts and source.parses and len(kept) == len(source.statements):
                texts.append(source.text)
                continue
            futures += future
            statements = [statement for statement in statements if statement.modules != {"__future__"}]
            texts.append(_text_of(source, statements))
        return "\n".join([*dict.fromkeys(futures), *(text.strip("\n") for text in texts)])


def _text_of(source: _Source, statements: Sequence[_Statement]) -> str:
    """Return the text of some statements of a source, with the comments and blank lines between them."""
    texts: list[str] = []
    last = 0
    lines = source.text.split("\n")
    for statement in statements:
        between = lines[last : statement.first] if source.parses else []
        texts += [line for line in between if not line.strip() or line.startswith("#")] if texts else []
        texts.append(statement.text)
        last = statement.last
    return "\n".join(texts)


# The program as a whole


_WORD = re.compile(r"(?<![\w.])[A-Za-z]+(?:['\u2019-][a-z]+)*(?![\w(\[=])")
_CODE_SIGN = re.compile(r"[\[\]{};=]|\w\(")
_PROMPT = re.compile(r"[ \t]*(?:>>>|```|~~~|Output\b|#)|[\W\d]*$")
_READS_INPUT = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\(\s*0\b|\bfileinput\b|\bos\.read\(\s*0\b")


def _whole_program(sources: Sequence[_Source]) -> str | None:
    """Return the program that code blocks make together, or the one in the prose if there is no block."""
    blocks = [source for source in sources if source.fenced and _does_something(source)]
    if blocks:
        return _joined(blocks)
    unfenced = [source for source in sources if not source.fenced]
    whole = next((source.text for source in unfenced if source.parses and source.statements), None)
    return whole if whole is not None else max(filter(None, map(_longest_run, unfenced)), key=len, default=None)


def _does_something(source: _Source) -> bool:
    if source.part.kind == "python":
        return bool(source.text.strip())
    return does_something(source.text) or bool(source.statements) or _OPENS_CODE.search(source.text) is not None


def _joined(blocks: Sequence[_Source]) -> str:
    """Return the blocks that make the last program that is not called wrong."""
    if any(not block.part.wrong for block in blocks):
        blocks = [block for block in blocks if not block.part.wrong]
    parsing = [block for block in blocks if block.parses] or [block for block in blocks if _longest_run(block)]
    if not parsing:
        return max((block.part.text for block in blocks), key=len)
    readers = [block for block in parsing if _READS_INPUT.search(block.text)]
    kept: list[_Source] = [readers[-1]] if readers else []
    for block in reversed(parsing):
        if block in kept:
            continue
        defined = {name for other in kept for statement in other.statements for name in statement.binds}
        needed = {name for other in kept for statement in other.statements for name in statement.needs} - defined
        own = {name for statement in block.statements for name in statement.binds if statement.is_definition}
        if own & defined or (readers and not (needed & {n for s in block.statements for n in s.binds})):
            continue
        kept.insert(0, block)
    if len(kept) == 1:
        return kept[0].text if kept[0].parses else _cut(kept[0])
    return "\n".join((block.text if block.parses else _cut(block)).strip("\n") for block in kept)


def _cut(source: _Source) -> str:
    """Return the program in a block that has prose before or after it; any other block that does not parse stays."""
    run = _longest_run(source)
    if run is None or source.truncated:
        return source.part.text
    outside = [line for line in source.text.replace(run, "", 1).split("\n") if line.strip()]
    return run if all(map(_is_prose, outside)) else source.part.text


def _is_prose(line: str) -> bool:
    return _PROMPT.match(line) is not None or (len(_WORD.findall(line)) > 3 and _CODE_SIGN.search(line) is None)


def _longest_run(source: _Source) -> str | None:
    """Return the longest run of statements of a source."""
    if not source.statements:
        return None
    longest = max(source.runs, key=lambda run: run[-1].last - run[0].first)
    return textwrap.dedent("\n".join(source.text.split("\n")[longest[0].first : longest[-1].last]))
