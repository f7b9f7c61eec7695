"""The program in what a model wrote: without the prose and the fences around it."""

import ast
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from .source import defines, line_of_error, parse

__all__ = ["FencedBlock", "extract_program", "fenced_blocks"]

_FENCE = re.compile(r"^(?P<indent>[ \t]*)(?:```|~~~)[ \t]*(?P<language>[\w+#-]*)[^\n]*$", re.MULTILINE)
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_PYTHON = {"", "python", "python3", "py"}
_OPENS_CODE = re.compile(r"(?:async\s+)?(?:def|class|import|from)\b|@|[A-Za-z_]\w*\s*=[^=]")
_MAX_STARTS = 100


@dataclass(frozen=True, slots=True)
class FencedBlock:
    """Hold a fenced block of a text.

    Args:
        language (`str`): the word behind the opening fence, in lower case; empty where there is none.
        text (`str`): what stands between the fences, without the opening fence's indent.
        closed (`bool`): whether there is a closing fence; without it, the block reaches to the text's end.
        start (`int`), end (`int`): where the block begins and ends in the text, fences included.
    """

    language: str
    text: str
    closed: bool
    start: int
    end: int


def fenced_blocks(text: str) -> list[FencedBlock]:
    """Return the fenced blocks of a text in order; opening and closing fences alternate.

    Example:

    ```python
    >>> [(block.language, block.closed) for block in fenced_blocks("~~~JS\\nf()\\n~~~\\nor\\n~~~\\ng()")]
    [('js', True), ('', False)]

    ```
    """
    fences = list(_FENCE.finditer(text))
    blocks = []
    for opening, closing in zip(fences[::2], [*fences[1::2], None], strict=False):
        inside = text[opening.end() + 1 : closing.start() if closing else len(text)]
        inside = textwrap.dedent(inside) if opening["indent"] else inside
        end = closing.end() if closing else len(text)
        blocks.append(FencedBlock(opening["language"].lower(), inside, closing is not None, opening.start(), end))
    return blocks


def extract_program(text: str, entry_point: str | None = None) -> str:
    """Return the Python program in a text of prose and code.

    What stands between `<think>` and `</think>` is left out. Of the fenced Python blocks: the last that defines the
    entry point (in Python, too, a later definition replaces an earlier one), behind the imports and definitions of
    the blocks before it. Without an entry point: all blocks joined where they parse, else the longest. A block that
    goes on beyond its program is cut where that still defines the entry point. An unclosed fence reaches to the end;
    code outside of fences counts where no fenced block defines the entry point.

    Without fences: the longest run of lines that parses, among those that define the entry point if there are any.
    Where nothing parses, the text as it is: its error is then the program's.

    Args:
        text (`str`):
            What a model wrote.
        entry_point (`str`, *optional*):
            Name that the program should define.

    Example:

    ```python
    >>> extract_program("The answer is below.\\ndef one():\\n    return 1\\nI hope this helps!", "one")
    'def one():\\n    return 1'

    ```
    """
    text = _THOUGHTS.sub("", text)
    outside, blocks = _split_at_fences(text)
    blocks = [_without_tail(block, entry_point) for block in blocks]
    if entry_point is not None and blocks:
        found = _last_definition(blocks, entry_point) or _last_definition(
            [_longest_run(part, entry_point) for part in outside], entry_point
        )
        if found is not None:
            return found
    if not blocks:
        return text if _is_program(text) else _longest_run(text, entry_point)
    joined = "\n".join(blocks)
    return joined if parse(joined) is not None else max(blocks, key=len)


def _last_definition(blocks: Sequence[str], entry_point: str) -> str | None:
    """Return the last block that defines the entry point, behind the imports and definitions of those before it."""
    defining = [number for number, block in enumerate(blocks) if defines(block, entry_point)]
    if not defining:
        return None
    before = [block for block in blocks[: defining[-1]] if _only_defines(block, entry_point)]
    return "\n".join([*before, blocks[defining[-1]]])


def _split_at_fences(text: str) -> tuple[list[str], list[str]]:
    """Return what stands outside of fenced Python blocks, and these."""
    outside: list[str] = []
    blocks: list[str] = []
    end = 0
    for block in fenced_blocks(text):
        outside.append(text[end : block.start])
        end = block.end
        if block.text.strip():
            (blocks if block.language in _PYTHON else outside).append(block.text)
    return [*outside, text[end:]], blocks


def _without_tail(block: str, entry_point: str | None) -> str:
    """Cut what follows the program in a block, as a transcript of its use, unless the entry point would be lost."""
    if entry_point is None or parse(block) is not None:
        return block
    run = _longest_run(block, entry_point)
    return run if defines(run, entry_point) else block


def _only_defines(block: str, entry_point: str) -> bool:
    """Tell imports, definitions and constants, which a later block may need, from examples and drafts."""
    tree = parse(block)
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    return tree is not None and all(isinstance(node, kinds) for node in tree.body) and not defines(block, entry_point)


def _is_program(text: str) -> bool:
    """Tell whether a text parses and has no line that is a bare word, as prose has."""
    tree = parse(text)
    return tree is not None and not any(map(_is_bare_word, tree.body))


def _is_bare_word(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Name)


def _longest_run(text: str, entry_point: str | None) -> str:
    """Return the longest run of lines that is a program, one with the entry point if there is any, else the text."""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if _OPENS_CODE.match(line)][:_MAX_STARTS]
    runs = [run for start in starts if (run := _program_at(lines[start:]))]
    defining = [run for run in runs if entry_point is not None and defines(run, entry_point)]
    return max(defining or runs, key=len, default=text)


def _program_at(lines: list[str]) -> str:
    """Return the program that lines open with: up to where Python stops understanding them."""
    while lines and (error := line_of_error("\n".join(lines))) is not None:
        lines = lines[: error - 1]
    tree = parse("\n".join(lines))
    while tree is not None and tree.body and _is_bare_word(tree.body[-1]):
        lines = lines[: tree.body.pop().lineno - 1]
    return "\n".join(lines).rstrip()
