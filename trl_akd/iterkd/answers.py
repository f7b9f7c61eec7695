"""What an answer's text tells by itself: that it refuses, that it has code, that it gives its fault away."""

import ast
import re
from collections.abc import Iterator

from ..generation.extraction import extract_program
from ..generation.source import does_something, parse

__all__ = ["has_code", "identity", "leak", "may_be_another_language", "python_program", "refuses", "remarks"]

_REFUSAL = re.compile(
    r"""\W* (?:(?:unfortunately|well|hello|hi|oh)\W+)? (?:
        i(?:\Wm|\s+am)\s+(?:(?:very|so|really|truly)\s+)?(?:sorry|afraid)\b
        | (?:sorry|apologies|my\s+apologies|i\s+apologi[sz]e)\b
        | as\s+an?\s+(?:ai|artificial\s+intelligence)\b
        | i(?:\Wm|\s+am)?\s+(?:can\W?t|can\s?not|won\Wt|will\s+not|unable\s+to|not\s+able\s+to|must\s+decline\s+to)
          \s+(?:assist|help|provide|create|write|generate|fulfil|comply|answer|produce|give|offer|do)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*([\w+#-]*).*$", re.MULTILINE)
_NAMED = {"py", "python", "python3"}
_PYTHON = {"", *_NAMED}
_CODE_LINE = re.compile(
    r"^[ \t]*(?:(?:async[ \t]+)?(?:def|class)[ \t]+\w+[ \t]*[(:]|import[ \t]+\w|from[ \t]+\S+[ \t]+import\b"
    r"|(?:for|while|if|with|try)\b.*:[ \t]*$|return\b.*[^.\n]$|raise[ \t]+[A-Z]\w*|print[ \t]*\("
    r"|[\w.\[\]]+[ \t]*[-+*/]?=[^=])",
    re.MULTILINE,
)
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")

_STRING = r""""(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'"""
_PYTHON_TOKENS = re.compile(
    rf"""(?P<string>\"{{3}}(?:\\.|[^\\])*?\"{{3}}|'{{3}}(?:\\.|[^\\])*?'{{3}}|{_STRING})|(?P<comment>\#[^\n]*)""",
    re.DOTALL,
)
_OTHER_TOKENS = re.compile(
    rf"""(?P<string>{_STRING})|(?P<comment>//[^\n]*|/\*.*?\*/|<!--.*?-->|(?:\#|--)\s[^\n]*)""", re.DOTALL
)
_LEAK = re.compile(
    r"\b(bug|deliberate|error|fault|fix|flaw|incorrect|intentional|missing|mistake|oops|should\s+(?:be(?!\s+able)|have\s+been)"
    r"|wrong)(?:s|y|gy|ly|ed|es)?\b",
    re.IGNORECASE,
)


def refuses(answer: str) -> bool:
    """Tell whether an answer is empty, or opens with an apology and has no code.

    Example:

    ```python
    >>> refuses("I'm sorry, but I can't help with that."), refuses("I cannot see why this fails: print(x")
    (True, False)

    ```
    """
    return not answer.strip() or (_REFUSAL.match(answer) is not None and not has_code(answer))


def has_code(answer: str) -> bool:
    """Tell whether an answer has a fenced block, or looks like Python in a line or as a whole; it need not parse."""
    return _FENCE.search(answer) is not None or _looks_like_python(answer)


def python_program(answer: str) -> str | None:
    """Return the Python program in an answer, or `None` if all its blocks are in other languages."""
    languages = {language for language, _ in _split(answer)[1]}
    return extract_program(answer) if not languages or languages & _PYTHON else None


def may_be_another_language(answer: str) -> bool:
    """Return whether an answer that no tag calls Python does not parse as Python."""
    program = python_program(answer)
    return program is not None and parse(program) is None and not {tag for tag, _ in _split(answer)[1]} & _NAMED


def identity(answer: str) -> str:
    """Return what is equal for two answers whose programs differ in layout, comments and docstrings at most.

    Example:

    ```python
    >>> identity("Sure!\\n```python\\nx = (1)  # one\\n```") == identity("x=1")
    True

    ```
    """
    program = python_program(answer)
    tree = parse(program) if program else None
    if tree is not None and tree.body:
        try:
            return ast.dump(_without_docstrings(tree))
        except RecursionError:
            pass
    _, blocks = _split(answer)
    return " ".join("\n".join(code for _, code in blocks or [("", answer)]).split())


def leak(fault: str, *, instruction: str = "", correct: str = "") -> str | None:
    """Return the first word by which a faulty answer gives itself away, in comments, docstrings or prose.

    Words that the question, or what the right answer says about itself, has too are of the subject and no leak: in a
    task about missing values, "missing" says nothing. What the program prints, raises or calls its variables is not
    looked at.

    Example:

    ```python
    >>> leak("total = a - b  # should be a plus"), leak('raise ValueError("wrong input")  # refuse the input')
    ('should be', None)

    ```
    """
    subject = set(_words(instruction)) | set(_words(remarks(correct)))
    return next((word for word in _words(remarks(fault)) if word not in subject), None)


def remarks(answer: str) -> str:
    """Return what an answer says in prose, comments and docstrings, a remark a line."""
    prose, blocks = _split(answer)
    return "\n".join([*prose, *(remark for language, code in blocks for remark in _comments(code, language))])


def _looks_like_python(text: str) -> bool:
    """Tell whether a line is what prose never is, or the whole parses to more than words such as `this or that`."""
    return _CODE_LINE.search(text) is not None or does_something(text)


def _words(text: str) -> Iterator[str]:
    return (" ".join(match[1].lower().split()) for match in _LEAK.finditer(text))


def _split(answer: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the prose of an answer, and its code by language; without fences, paragraphs with a line of code are."""
    first, *rest = _FENCE.split(answer)
    if rest:
        texts = [first, *rest[1::2]]
        tags = [tag.lower() for tag in rest[::4]]
        return texts[::2], list(zip(tags, texts[1::2], strict=True))
    prose: list[str] = []
    code: list[str] = []
    for paragraph in _PARAGRAPHS.split(answer):
        is_code = paragraph.startswith((" ", "\t")) or _looks_like_python(paragraph)
        (code if is_code else prose).append(paragraph)
    return prose, [("", "\n\n".join(code))] if code else []


def _comments(code: str, language: str) -> Iterator[str]:
    """Yield the comments of a program that need not parse, and its docstrings where the language is Python."""
    python = language in _PYTHON
    for token in (_PYTHON_TOKENS if python else _OTHER_TOKENS).finditer(code):
        if token["comment"] or (python and _is_docstring(token[0], code[: token.start()])):
            yield token[0]


def _is_docstring(literal: str, before: str) -> bool:
    """Tell whether a string opens its line as a statement does: in triple quotes, or right after a colon."""
    above, _, beside = before.rpartition("\n")
    return not beside.strip(" \trRuU") and (literal[:3] in ('"""', "'''") or above.rstrip().endswith(":"))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
    return tree
