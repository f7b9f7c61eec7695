"""The question in what a teacher wrote, and whether it is one."""

import re
from typing import Literal, TypeAlias

from ..generation.source import parse
from .answers import has_code, refuses

__all__ = ["Reject", "check_question", "read_question"]

Reject: TypeAlias = Literal["empty", "refused", "solution", "too_short", "too_long", "truncated"]

_NOUN = r"(?:created|new|rewritten)[ \t]+(?:instruction|question|task|prompt)"
_TAG = re.compile(rf"^#+[ \t]*{_NOUN}[ \t]*(?:#+:?|:|$)", re.IGNORECASE | re.MULTILINE)
_NEXT_TAG = re.compile(r"^#[A-Z][\w ]*#", re.MULTILINE)
_OPENING = re.compile(r"(?:sure|certainly|of course|here(?:\Ws| is))\b[^\n]*:[ \t]*\n+", re.IGNORECASE)
_MARK = re.compile(
    rf"#{{1,6}}[ \t]+|\*{{0,2}}(?:{_NOUN}|instruction|question|task)(?:\*{{0,2}}:\*{{0,2}}|\*{{0,2}}[ \t]*\n)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"1[.)][ \t]+(?![\s\S]*^[ \t]*2[.)][ \t])", re.MULTILINE)
_QUOTES = {'"': '"', "'": "'", "`": "`", "\N{LEFT DOUBLE QUOTATION MARK}": "\N{RIGHT DOUBLE QUOTATION MARK}"}
_SOLUTION = re.compile(
    r"^[^\w\n]*(?:(?:example |sample |reference )?solution|answer)[^\w\n]*(?:$|:)"
    r"|^[^\w\n]*here(?:\Ws| is) (?:a|an|the|one|my)(?: \w+)? (?:solution|answer)\b",
    re.IGNORECASE | re.MULTILINE,
)


def read_question(answer: str) -> str:
    r"""Return the question in what a teacher wrote, without the tags, titles, numbers and quotes around it.

    Of several questions behind tags such as `#Created Instruction#:`, the authors' own, the first counts. A number
    goes unless it begins a list.

    Example:

    ```python
    >>> read_question("Sure, here it is:\n\n#Created Instruction#:\n1. \"Sort a list of names.\"")
    'Sort a list of names.'

    ```
    """
    text = answer.strip()
    while (bare := _without_frame(text)) != text:
        text = bare
    return text


def check_question(question: str, *, min_chars: int, max_chars: int) -> Reject | None:
    """Return why a text is no question for a student, or `None` if it is one.

    Example:

    ```python
    >>> check_question("Add two numbers. Solution: print(a + b)", min_chars=10, max_chars=100)
    >>> check_question("Add two numbers.\\n\\nSolution:\\nprint(a + b)", min_chars=10, max_chars=100)
    'solution'

    ```
    """
    if not question:
        return "empty"
    if refuses(question):
        return "refused"
    if _SOLUTION.search(question) or question.startswith("```") or (has_code(question) and parse(question)):
        return "solution"
    if len(question) < min_chars:
        return "too_short"
    return "too_long" if len(question) > max_chars else None


def _without_frame(text: str) -> str:
    """Take one layer off: a tag and what stands before it, an opening, a mark, a number, or quotes."""
    if tag := _TAG.search(text):
        return _NEXT_TAG.split(text[tag.end() :].strip())[0].strip()
    for frame in (_OPENING, _MARK, _NUMBER):
        if opening := frame.match(text):
            return text[opening.end() :].strip()
    closing = _QUOTES.get(text[:1])
    if closing and len(text) > 1 and text.endswith(closing) and closing not in text[1:-1]:
        return text[1:-1].strip()
    return text
