"""Python in the parts of an answer: repairs of the text, and statements mixed with other text."""

import ast
import contextlib
import html
import io
import json
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal, TypeAlias

from .python_ast import ASSIGNMENTS, BUILTINS, Statement, does_something, is_other_version, parse, statements_of

__all__ = ["Part", "PartKind", "Source"]

PartKind: TypeAlias = Literal["python", "code", "diff", "prose", "text"]


@dataclass(frozen=True, slots=True)
class Part:
    """Part of an answer that may contain Python.

    Args:
        text (`str`):
            The text.
        kind (`str`):
            `"python"` for a block tagged as Python, `"code"` for a block without a known tag, `"diff"` for a diff,
            `"prose"` for text outside blocks, and `"text"` for an answer without blocks.
        wrong (`bool`, *optional*, defaults to `False`):
            Whether the answer calls the code wrong.
        right (`bool`, *optional*, defaults to `False`):
            Whether the answer calls the code a correction or an improvement.
        data (`bool`, *optional*, defaults to `False`):
            Whether the answer calls the block input or output of the program.
    """

    text: str
    kind: PartKind
    wrong: bool = False
    right: bool = False
    data: bool = False


class Source:
    """Python in a part of an answer.

    A part that does not parse is repaired, for example by removing prompts, line numbers and entities. If it still
    does not parse, its statements are separated from other text.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self.fenced = part.kind not in ("prose", "text")
        self.text, tree = _repaired(part)
        self.parses = tree is not None
        self.truncated = False
        if tree is not None:
            self.statements = statements_of(self.text, tree)
        else:
            self.statements, self.truncated = _salvaged(self.text)

    @cached_property
    def binders(self) -> dict[str, list[int]]:
        """Numbers of the statements that bind each name, at once or, for functions, when they are called."""
        found: dict[str, list[int]] = {}
        for number, statement in enumerate(self.statements):
            for name in () if statement.is_main else statement.binds | statement.binds_when_called:
                found.setdefault(name, []).append(number)
        return found

    def definitions(self, name: str) -> list[int]:
        """Return the numbers of the statements that define a name, without assignments in uses of the program.

        An assignment of input is ignored if there is another one.
        """
        binding = self.binders.get(name, [])
        defining = [number for number in binding if self.statements[number].defines(name)] or binding
        given = [number for number in defining if not self.statements[number].reads_input] or defining
        complete = [number for number in given if self.parses or self.statements[number].is_complete(name)]
        return complete or given

    def rank(self, name: str) -> int:
        """Return the rank of this part's definition of a name, higher for a better one, 0 for none."""
        binding = [self.statements[number] for number in self.binders.get(name, [])]
        defining = [statement for statement in binding if statement.defines(name)]
        own = [statement for statement in defining if not statement.is_import]
        classes = [statement for statement in self.statements if statement.has_method(name)]
        if own or classes:
            return (12 if own else 5) - 3 * self.part.wrong + (own or classes)[-1].is_complete(name)
        return 1 if defining or any(isinstance(statement.node, ASSIGNMENTS) for statement in binding) else 0

    @cached_property
    def code(self) -> str:
        """Lines of the text without comments and blank lines, with the changes of indentation between them."""
        found = []
        indent = 0
        for line in filter(str.strip, _without_comments(self.text.expandtabs()).split("\n")):
            found.append(f"\n{_indent(line) - indent:+}\n{line.strip()}\n")
            indent = _indent(line)
        return "".join(found)

    def repeats(self, other: "Source") -> bool:
        """Return whether this part only shows consecutive lines of another one again, rather than correcting it."""
        if self.part.right or other.part.wrong or self._corrects(other):
            return False
        code = self.code[self.code.find("\n", 1) :]  # at any indentation
        return code != "" and code in other.code

    def explains(self, other: "Source", name: str) -> bool:
        """Return whether this part's definition of a name only repeats the start of another part's definition."""
        if self.part.right or other.part.wrong:
            return False
        pairs = [
            [
                statement
                for statement in source.statements
                if statement.is_definition and (name in statement.binds or statement.has_method(name))
            ]
            for source in (self, other)
        ]
        return all(pairs) and pairs[0][-1].explains(pairs[1][-1], name)

    def _corrects(self, other: "Source") -> bool:
        """Return whether this part has another version of a function, or another use of all of them."""
        new, old = (
            {
                name: statement.node
                for statement in source.statements
                if statement.is_definition
                for name in statement.binds
            }
            for source in (self, other)
        )
        if not self.parses or not new:
            return False
        uses = new.keys() == old.keys() and any(statement.runs for statement in self.statements)
        return uses or any(is_other_version(node, old[name]) for name, node in new.items() if name in old)

    @cached_property
    def runs(self) -> list[list[int]]:
        """Numbers of the statements in each run without text other than blank lines and comments in between."""
        lines = self.text.split("\n")
        runs: list[list[int]] = []
        for number, statement in enumerate(self.statements):
            between = lines[self.statements[number - 1].last : statement.first] if runs else []
            if runs and all(not line.strip() or line.lstrip().startswith("#") for line in between):
                runs[-1].append(number)
            else:
                runs.append([number])
        return runs

    def text_of(self, numbers: Sequence[int]) -> str:
        """Return the text of some statements, with the comments and blank lines between them."""
        if self.parses and len(numbers) == len(self.statements):
            return self.text
        texts: list[str] = []
        last = 0
        lines = self.text.split("\n") if self.parses else []
        for statement in (self.statements[number] for number in numbers):
            between = lines[last : statement.first] if texts else []
            texts += [line for line in between if not line.strip() or line.startswith("#")]
            texts.append(_dedented(statement.text))
            last = statement.last
        return "\n".join(texts)

    @cached_property
    def longest_run(self) -> str | None:
        """Text of the longest run of statements."""
        if not self.statements:
            return None
        spans = [(self.statements[run[0]].first, self.statements[run[-1]].last) for run in self.runs]
        first, last = max(spans, key=lambda span: span[1] - span[0])
        return _dedented("\n".join(self.text.split("\n")[first:last]))

    @cached_property
    def program(self) -> str:
        """Program in the text, without the prose before and after it if it does not parse with that prose."""
        run = None if self.parses or self.truncated else self.longest_run
        if run is None:
            return self.text if self.parses else self.part.text
        outside = [line for line in self.text.replace(run, "", 1).split("\n") if line.strip()]
        return run if all(map(_is_prose, outside)) else self.part.text

    @property
    def is_code(self) -> bool:
        """Whether a block is code rather than words or values; always true for a block tagged as Python."""
        if self.part.kind == "python":
            return bool(self.text.strip())
        return does_something(self.text) or bool(self.statements) or _OPENS_CODE.search(self.text) is not None

    def continues(self, bound: Set[str]) -> bool:
        """Return whether a block belongs to a program that binds some names, rather than being its input or output.

        Definitions, imports, control flow and `print` do. Other statements do unless they are words or values, the
        answer calls them data, or they need another name, as `name = Alice` does.
        """
        if not self.parses or any(statement.is_certainly_code for statement in self.statements):
            return self.parses
        if self.part.data or all(_is_words(statement.node) for statement in self.statements):
            return False
        known = {*bound, *self.binders, *BUILTINS}
        return "*" in known or all(statement.needs <= known for statement in self.statements)

    def belongs_to(self, bound: Set[str], needed: Set[str]) -> bool:
        """Return whether a block binds names that a program needs and does not bind, or needs names that it binds."""
        if needed.isdisjoint(self.binders) and self.missing.isdisjoint(bound):
            return False
        return self.parses and not all(_is_words(statement.node) for statement in self.statements)

    @cached_property
    def missing(self) -> frozenset[str]:
        """Names that the statements need before they bind them."""
        found: set[str] = set()
        bound: set[str] = set(BUILTINS)
        for statement in self.statements:
            found |= statement.needs - bound
            bound |= statement.binds
        return frozenset(found)


# Repairs


_REPL = re.compile(r"^[ \t]*(?:>>>|In \[\d*\]:)(?: |$)", re.MULTILINE)
_QUOTED = re.compile(r"\s*+(?P<quotes>\"\"\"|''')(?:python)?\n(?P<text>.*)(?P=quotes)\s*", re.DOTALL | re.IGNORECASE)
_NEXT_TURN = re.compile(r"^### ?(?:Instruction|Human|User)\b", re.MULTILINE)
_OPENS_PROGRAM = re.compile(r"^[ \t]*(?:async def|def|class|import|from|@)[ \t\w]", re.MULTILINE)
_REPL_LINE = re.compile(r"[ \t]*(?:>>> ?|\.\.\.(?: |$)|In \[\d*\]: ?|[ \t]*\.{3,}: ?)(.*)")
_QUOTE_MARK = re.compile(r"[ \t]*>(?!>>)[ \t]?")
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
_JSON = re.compile(r"\s*+(?:<\|?\w{1,40}\|?>\s*+|\[[A-Z_]{1,40}\]\s*+)?(?P<json>\{|\[\s*+\{)")
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
    """Return the text and tree of a part after the first repairs with which it parses."""
    text = part.text
    if part.kind == "diff" or (part.kind == "code" and text.lstrip().startswith(("@@ ", "--- "))):
        text = _without_diff_marks(text)
    prose = part.kind == "prose" or part.kind == "text"
    if prose:
        text = _NEXT_TURN.split(text, maxsplit=1)[0] if not _NEXT_TURN.match(text.lstrip()) else text
    if part.kind != "python":
        text = _unquoted(_from_json(text))
    tree = _tree(text, prose)
    if (decoded := _decoded(text, tree)) != text:
        text, tree = decoded, _tree(decoded, prose)
    for repair in _REPAIRS:
        if tree is not None:
            break
        repaired = repair(text)
        if repaired != text:
            text = repaired
            tree = _tree(text, prose)
    return text, tree


def _tree(text: str, prose: bool) -> ast.Module | None:
    """Return the tree of a text, unless it is a function body, or words that are valid Python."""
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
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.expr):
            waiting += ast.iter_child_nodes(node)


def _is_words(node: ast.stmt) -> bool:
    """Return whether a statement consists of words that are valid Python, such as `Done` and `Note: this`."""
    if isinstance(node, ast.Expr):
        return not any(isinstance(part, ast.Call | ast.Await | ast.Yield) for part in ast.walk(node.value)) and not (
            isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
    return isinstance(node, ast.Global) or (isinstance(node, ast.AnnAssign) and node.value is None)


def _from_json(text: str) -> str:
    """Return the code in a JSON object or a list of objects, such as tool calls."""
    start = _JSON.match(text)
    if start is None:
        return text
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(text, start.start("json"))
    except (ValueError, RecursionError):
        return text
    waiting = [value]
    for found in waiting:  # grows
        if isinstance(found, dict):
            for code in map(found.get, _JSON_KEYS):
                if isinstance(code, str):
                    return code
        waiting += found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
        if isinstance(found, str) and found.startswith("{"):  # encoded arguments of a tool call
            with contextlib.suppress(ValueError, RecursionError):
                waiting.append(json.loads(found, strict=False))
    return text


def _unquoted(text: str) -> str:
    """Return the text in triple quotes that are used as a fence."""
    quoted = _QUOTED.fullmatch(text)
    return quoted["text"] if quoted and quoted["quotes"] not in quoted["text"] else text


def _without_quotes(text: str) -> str:
    """Return a program that is quoted as a whole, with unescaped line breaks."""
    inside = text.strip()
    return inside[1:-1] if len(inside) > 2 and inside[0] == inside[-1] and inside[0] in "'\"" else text


def _decoded(text: str, tree: ast.Module | None) -> str:
    """Return the content of a text that is only a string literal, or one with HTML entities."""
    match tree.body if tree is not None else []:
        case [ast.Expr(ast.Constant(str(value)))] if does_something(value):
            return value
    if tree is not None and _ENTITY.search(text):
        lines = text.encode(errors="surrogatepass").split(b"\n")
        names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
        around = (
            lines[name.lineno - 1][max(name.col_offset - 1, 0) : name.col_offset + len(name.id) + 1] for name in names
        )
        if any(_ENTITY.fullmatch(operand.decode(errors="replace")) for operand in around):
            return html.unescape(text)
    return text


def _without_prompts(text: str) -> str:
    """Return the input in a transcript of an interpreter, unless code without prompts comes first."""
    first = _REPL.search(text)
    if first is None or _OPENS_PROGRAM.search(text, 0, first.start()):
        return text
    return "\n".join(match[1] for line in text.split("\n") if (match := _REPL_LINE.fullmatch(line)))


def _dedented(text: str) -> str:
    """Remove the common indentation; without one, keep blank lines unchanged, since they may be in a string."""
    return textwrap.dedent(text) if text.lstrip("\n")[:1] in (" ", "\t") else text


def _without_quote_marks(text: str) -> str:
    lines = [line for line in text.split("\n") if line.strip()]
    if not all(map(_QUOTE_MARK.match, lines)):
        return text
    return "\n".join(_QUOTE_MARK.sub("", line, count=1) for line in text.split("\n"))


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
    """Replace tabs in indentation that mixes tabs and spaces."""
    if re.search(r"^ *\t", text, re.MULTILINE) is None:
        return text
    wide, narrow = (
        "\n".join(line.expandtabs(width) if line[:1].isspace() else line for line in text.split("\n"))
        for width in (8, 4)
    )
    return narrow if parse(wide) is None else wide


_REPAIRS: tuple[Callable[[str], str], ...] = (
    _dedented,
    _without_quote_marks,
    _without_prompts,
    _without_line_numbers,
    _without_entities,
    _with_plain_quotes,
    _without_quotes,
    _without_magics,
    _with_spaces,
)


# Statements mixed with other text


_OPENS_CODE = re.compile(r"[ \t]*(?:(?:async[ \t]+)?def[ \t]+\w+[ \t]*[\[(]|class[ \t]+\w+[ \t]*[(:]|@\w)")
_CONTINUES = re.compile(r"(?:else|elif|except|finally)\b|[)\]}]")
_LEXEME = re.compile(
    r"(?P<triple>\"\"\"|''')|\"(?>(?:[^\"\\\n]|\\.)*)\"?+|'(?>(?:[^'\\\n]|\\.)*)'?+|(?P<comment>\#.*+)|(?P<bracket>[(\[{)\]}])"
)


_LINE_COST = 16


def _salvaged(text: str) -> tuple[list[Statement], bool]:
    """Return the statements in a text that does not parse, and whether a definition in it is broken.

    The time is linear in the length of the text.
    """
    broken = False
    lines = text.split("\n")
    budget = 2 * (len(text) + _LINE_COST * len(lines)) + 10_000
    found: list[Statement] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        if not line.strip() or line.lstrip().startswith("#"):
            number += 1
            continue
        chunks = [_extent(lines, number, lexical=True, limit=budget)]
        tree = None
        for end in chunks:
            chunk = _dedented("\n".join(lines[number:end])).rstrip()
            budget -= len(chunk) + _LINE_COST * (end - number)
            tree = parse(chunk) if budget > 0 or end == number + 1 else None
            if tree is not None:
                break
            plain = _extent(lines, number, lexical=False, limit=budget)
            if plain != end and len(chunks) == 1:
                chunks.append(plain)
        if tree is not None and not _is_body(tree) and not any(map(_is_words, tree.body)):
            found += statements_of(chunk, tree, number)
            number = end
        else:
            broken = broken or (_OPENS_CODE.match(line) is not None and tree is None)
            number = end if _OPENS_CODE.match(line) or tree is not None else number + 1
    return found, broken


def _extent(lines: Sequence[str], first: int, *, lexical: bool, limit: int) -> int:
    """Return the number of the line after a statement, found by indentation, strings and brackets."""
    indent = _indent(lines[first])
    depth, delimiter = _lex(lines[first], 0, None)
    end = number = first + 1
    decorated = lines[first].lstrip().startswith("@")
    while number < len(lines):
        line = lines[number]
        limit -= len(line) + _LINE_COST
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


def _without_comments(text: str) -> str:
    """Remove comments, up to the first error of the tokenizer."""
    lines = text.split("\n")
    if "#" in text:
        with contextlib.suppress(tokenize.TokenError, SyntaxError, ValueError):
            for token in tokenize.generate_tokens(io.StringIO(text).readline):
                if token.type == tokenize.COMMENT:
                    row, column = token.start
                    lines[row - 1] = lines[row - 1][:column]
    return "\n".join(lines)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))


def _lex(line: str, depth: int, delimiter: str | None) -> tuple[int, str | None]:
    """Return the number of brackets and the triple quotes that are open after a line."""
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


# Prose


_WORD = re.compile(r"(?<![\w.])[A-Za-z]+(?:['\u2019-][a-z]+)*(?![\w(\[=])")
_CODE_SIGN = re.compile(r"[\[\]{};=]|\w\(")
_PROMPT = re.compile(r"[ \t]*(?:>>>|```|~~~|Output\b|#)|[\W\d]*$")


def _is_prose(line: str) -> bool:
    return _PROMPT.match(line) is not None or (len(_WORD.findall(line)) > 3 and _CODE_SIGN.search(line) is None)
