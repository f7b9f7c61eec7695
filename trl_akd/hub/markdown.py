"""Markdown of cards: escaped text, and sections that a later command can replace."""

import html
import re
from collections.abc import Sequence

__all__ = ["code", "code_block", "escape", "has_section", "markdown_table", "section", "set_section"]

_MARKUP = re.compile(r"([\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_BACKTICKS = re.compile(r"`+")


def escape(text: str) -> str:
    r"""Return text on one line that Markdown and HTML show as it is.

    Example:

    ```python
    >>> print(escape("<img src=x> a|b *c*"))
    &lt;img src=x&gt; a\|b \*c\*

    ```
    """
    return _MARKUP.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def code(value: object) -> str:
    r"""Return a value as inline code, also inside a table.

    Example:

    ```python
    >>> print(code("a|b"), code("x`y"))
    `a\|b` `` x`y ``

    ```
    """
    text = " ".join(str(value).split()).replace("|", r"\|") or " "
    runs = {len(run) for run in _BACKTICKS.findall(text)}
    if not runs:
        return f"`{text}`"
    fence = "`" * next(length for length in range(1, len(runs) + 2) if length not in runs)
    return f"{fence} {text} {fence}"


def code_block(text: str, language: str = "") -> str:
    """Return text as a code block, whose fence is longer than any in the text."""
    longest = max((len(run) for run in _BACKTICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with the first column aligned left and the others right.

    Example:

    ```python
    >>> print(markdown_table(["model", "pass@1"], [["teacher", "0.96"], ["student", "0.1"]]))
    | model   | pass@1 |
    |---------|-------:|
    | teacher |   0.96 |
    | student |    0.1 |

    ```
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [_line(cells, widths) for cells in (header, *rows)]
    rule = "|" + "|".join(
        "-" * (width + (2 if i == 0 else 1)) + ("" if i == 0 else ":") for i, width in enumerate(widths)
    )
    return "\n".join([lines[0], f"{rule}|", *lines[1:]])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = (
        f"{cell:{'<' if i == 0 else '>'}{width}}" for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return f"| {' | '.join(aligned)} |"


def section(key: str, content: str) -> str:
    """Return a section between comments, which `set_section` replaces."""
    return f"<!-- trl_akd: {key} -->\n{content}\n<!-- end of trl_akd: {key} -->"


def has_section(text: str, key: str) -> bool:
    """Return whether a text has the section `key`."""
    return _pattern(key).search(text) is not None


def set_section(text: str, key: str, content: str, *, after: str | None = None) -> str:
    """Replace the section `key` of a text, or add it behind the section `after` or at the end.

    Example:

    ```python
    >>> text = set_section("# Student", "evaluation", "pass@1: 0.2")
    >>> print(set_section(text, "evaluation", "pass@1: 0.3"))
    # Student
    <BLANKLINE>
    <!-- trl_akd: evaluation -->
    pass@1: 0.3
    <!-- end of trl_akd: evaluation -->

    ```
    """
    new = section(key, content)
    found, before = _pattern(key).search(text), _pattern(after).search(text) if after else None
    if found:
        return f"{text[: found.start()]}{new}{text[found.end() :]}"
    if before:
        return f"{text[: before.end()]}\n\n{new}{text[before.end() :]}"
    return f"{text.rstrip()}\n\n{new}"


def _pattern(key: str) -> re.Pattern[str]:
    key = re.escape(key)
    return re.compile(f"<!-- trl_akd: {key} -->.*?<!-- end of trl_akd: {key} -->", re.DOTALL)
