"""The question in what a teacher wrote, and whether it is one."""

import ast
import json
import re
from typing import Literal, TypeAlias

from ..generation import parse_answer
from ..generation.python_ast import parse
from .answers import has_code, refuses

__all__ = ["Reject", "check_question", "read_question"]

Reject: TypeAlias = Literal["empty", "refused", "solution", "too_short", "too_long", "truncated"]

_MADE = r"(?:created|new|rewritten|generated|revised|final)"
_KIND = r"(?:programming[ \t]+|coding[ \t]+)?(?:instruction|question|task|prompt|problem|exercise|challenge)"
_TITLE = rf"(?:the[ \t]+|my[ \t]+)?{_MADE}[ \t]+{_KIND}(?:[ \t]+(?:is|\d+))?"
_TAG = re.compile(
    rf"^[ \t]*(?:[*\[>_ \t]*#[#*\[>_ \t]*{_TITLE}[ \t]*(?:[#*\]_ \t]*:[#*_ \t]*|[#*\]_ \t]*$)"
    r"|[<\[](?:instruction|task|question|prompt|problem)[>\]][ \t]*)",
    re.IGNORECASE | re.MULTILINE,
)
_FIRST_TAG = re.compile(rf"[*\[>_ \t]*{_TITLE}[ \t]*(?:[*\]_ \t]*:[*_ \t]*|[*\]_ \t]*$)", re.IGNORECASE | re.MULTILINE)
_NEXT_TAG = re.compile(
    r"^[*_ \t]*#(?:given|original|created|new|rewritten|sample|example|solution|answer|end|reason|reasoning"
    r"|rationale|explanation|difficulty|domain)\b[\w ]*#"
    r"|[<\[]/(?:instruction|task|question|prompt|problem)[>\]][ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_NUMBERED = re.compile(
    rf"^[#*> \t]*(?:{_KIND}|option|variant)[ \t]*#?(?P<number>[1-9])[*]*[ \t]*(?:[.:)][* \t]*"
    rf"|[* \t]*$)",
    re.IGNORECASE | re.MULTILINE,
)
_LISTED = re.compile(r"^[*_ \t]*(?P<number>[1-9])[.)][*_]*[ \t]+", re.MULTILINE)
_ASKS = re.compile(
    r"[\"*_]*(?:write|create|implement|given|design|develop|build|find|compute|generate|define|make|you are"
    r"|construct|convert)\b",
    re.I,
)
_OPENING = re.compile(
    r"(?:(?:sure(?:[ \t]thing)?|certainly|of course|absolutely|okay|ok|great|alright|no problem|got it)\b[^\w\n]*"
    rf"(?=\s|$)[ \t]*)?(?:(?:here(?:\Ws|[ \t]+is|[ \t]+are|[ \t]+you[ \t]+go|[ \t]+it[ \t]+is)|(?:below"
    rf"|the[ \t]+following)[ \t]+(?:is|are)"
    rf"|this[ \t]+is)\b(?:[^\n:.]*\b(?:{_KIND}s?|one|ones)\b"
    r"[^\n:.]*|[ \t]*)[:.!][ \t]*)?(?:\n+|(?<=[!.,:])[ \t]+|(?<=[!.:])$|(?<=:)(?=\S))",
    re.IGNORECASE,
)
_CHINESE_OPENING = re.compile(
    r"(?:新的?|创建的?)?(?:指令|任务|题目|问题)[^\w\n]*[:\uff1a][^\w\n]*\s*|(?:好的|当然|没问题)?[^\w\n]*(?:这|以下)\w{0,20}(?:任务|题目?|问题|指令)[^\w\n]+"
)
_MARK = re.compile(
    rf"#{{1,6}}[ \t]+|[-*>][ \t]+|-{{3,}}[ \t]*\n"
    rf"|\*{{0,2}}(?:{_KIND}(?:[ \t]+(?:statement|description|text))?|output)(?:\*{{0,2}}:\*{{0,2}}|\*{{0,2}}[ \t]*\n)"
    r"|(?:python3?|java|javascript|c\+\+|rust|go)[ \t]*\n",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\(?1[.)][ \t]+(?:(?=[\s\S]*^[ \t]*1[.)][ \t])|(?![\s\S]*^[ \t]*2[.)][ \t]))", re.MULTILINE)
_CREATED = re.compile(
    r"[^\n:]{0,80}?\b(?:I|we)(?:['\u2019]ve|[ ]have|['\u2019]ll|[ ]will)?[ ]"
    r"(?:creat|writ|wrote|came[ ]up|made|propos|generat|design|compos|devis|prepar|suggest|formulat)"
    rf"[^\n:]{{0,80}}?\b(?:{_KIND}|one)[^\w\n]*:[^\w\n]*\n+",
    re.IGNORECASE,
)
_JSON_KEY = re.compile(rf"(?:(?:{_MADE})[ _]?)?{_KIND}(?:[ _]?(?:statement|description|text))?", re.IGNORECASE)
_CODE_AT_END = re.compile(
    r"\n[ \t]*\n(?:```|~~~)(?:python3?|py)?[ \t]*\n(?P<code>(?:(?!```|~~~)[\s\S])*)\n(?:```|~~~)\s*\Z"
)
_ASKS_FOR_CODE = re.compile(
    r"\b(?:write|implement|create|design|develop|build|define|construct|code)\b", re.IGNORECASE
)
_SPEAKS_OF_CODE = re.compile(
    r":\s*\Z|\b(?:below|following|above|existing|starter|skeleton|template|given|complet\w+|refactor\w*|re-?writ\w+"
    r"|optimi[sz]\w+|debug\w*|fix\w*|modif\w+|extend\w*|translat\w+|explain\w*|improv\w+|chang\w+"
    r"|(?:this|the) (?:code|function|program|snippet|class))\b",
    re.IGNORECASE,
)
_FENCE = re.compile(
    r"(```|~~~)(?:text|markdown|md|plaintext|txt|json)?[ \t]*\n(?P<text>(?:(?!\1)[\s\S])*?)\n[ \t]*\1[ \t]*"
)
_QUOTES = {
    '"': '"',
    "'": "'",
    "`": "`",
    "**": "**",
    "*": "*",
    "\N{LEFT DOUBLE QUOTATION MARK}": "\N{RIGHT DOUBLE QUOTATION MARK}",
}
_SOLUTION = re.compile(
    r"^<details>|^```\w*[ \t]*\n\s*(?:#|//)[ \t]*(?:solution|answer)\b|"
    r"^[^\w\n]*(?:(?:an? |the |one )?(?:example |sample |reference |expected |possible |model |proposed "
    r"|correct |suggested )?(?:solution|answer)"
    r"|implementation|solution code)(?:[ \t]+in[ \t]+\w+)?[^\w\n]*(?:$|:)"
    r"|^[^\w\n]*here(?:\Ws| is) (?:a|an|the|one|my)(?: \w+){0,2} (?:solution|answer|implementation)\b",
    re.IGNORECASE | re.MULTILINE,
)
_CLOSING = re.compile(
    r"\n\s*(?:-{3,}|\*{3,})?\s*[(*_#> \t]*(?:let me know\b|(?:i )?hope (?:this|that|it)\b|\(?same (?:domain|type"
    r"|difficulty)\b|feel free\b|good luck\b|happy coding\b"
    r"|would you like\b|end of (?:the )?task"
    rf"|this (?:new )?{_KIND} (?:is|requires|comes|tests|stays|keeps|has|differs|focuses|involves|maintains|remains)\b"
    rf"|note: this (?:new )?{_KIND} (?:is|comes|stays|keeps|has|tests)\b|difficulty[* ]*:|(?:explanation"
    rf"|rationale|reasoning|why this task)[* ]*:[^\n]*(?:skill|same|original|given))[\s\S]*\Z",
    re.IGNORECASE,
)
_RULE_AT_END = re.compile(r"\s*\n[ \t]*(?:-{3,}|\*{3,}|_{3,})[ \t]*\Z")
_PLACEHOLDER = re.compile(r"\W*(?:n/?a|none|null|\[[^\]\n]{0,60}\])\W*", re.IGNORECASE)


def read_question(answer: str) -> str:
    r"""Return the question in what a teacher wrote, without the thoughts, tags, titles, quotes and remarks around it.

    Of several questions the first counts. A solution behind the question is cut off, and a number goes unless it
    begins a list.

    Example:

    ```python
    >>> read_question("Sure, here it is:\n\n#Created Instruction#:\n1. \"Sort a list of names.\"\n\nSolution: sort()")
    'Sort a list of names.'

    ```
    """
    text = parse_answer(answer).text.strip()
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
    if not question or _PLACEHOLDER.fullmatch(question):
        return "empty"
    if refuses(question):
        return "refused"
    if _SOLUTION.search(question) or question.startswith("```") or (has_code(question) and parse(question)):
        return "solution"
    if len(question) < min_chars:
        return "too_short"
    return "too_long" if len(question) > max_chars else None


def _without_frame(text: str) -> str:
    """Take one layer off: a tag and what stands before it, other questions, a solution, a mark, or quotes."""
    if fence := _FENCE.fullmatch(text):
        return fence["text"].strip()
    if text.startswith("{") and (value := _in_json(text)) is not None:
        return value
    if text.startswith(">") and all(line.startswith(">") for line in text.splitlines()):
        return re.sub(r"(?m)^>[ ]?", "", text).strip()
    if tag := _TAG.search(text):
        return _TAG.split(_NEXT_TAG.split(text[tag.end() :].strip())[0])[0].strip()
    if tag := _FIRST_TAG.match(text):
        following = re.compile("^" + re.escape(tag[0].strip()), re.MULTILINE)
        return following.split(text[tag.end() :])[0].strip()
    if (following_tag := _NEXT_TAG.search(text)) and following_tag.start() > 0:
        return text[: following_tag.start()].strip()
    if (solution := _SOLUTION.search(text)) and solution.start() > 0:
        return text[: solution.start()].strip()
    for pattern in (_CLOSING, _RULE_AT_END):
        if (closing := pattern.search(text)) and closing.start() > 0:
            return text[: closing.start()].strip()
    if (first := _first_of_several(text)) is not None:
        return first
    if (code := _CODE_AT_END.search(text)) and _solves(text[: code.start()], code["code"]):
        return text[: code.start()].strip()
    for frame in (_OPENING, _CREATED, _CHINESE_OPENING, _MARK, _NUMBER):
        if (opening := frame.match(text)) and opening.end():
            return text[opening.end() :].strip()
    for opening_quote, closing_quote in _QUOTES.items():
        inside = text.removeprefix(opening_quote).removesuffix(closing_quote)
        quoted = len(text) - len(inside) == len(opening_quote) + len(closing_quote)
        if quoted and closing_quote not in inside:
            return inside.strip()
    return text


def _in_json(text: str) -> str | None:
    """Return the question in a JSON object, or `None` where the text is none or holds no question."""
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    found = [item for key, item in value.items() if _JSON_KEY.fullmatch(key) and isinstance(item, str)]
    return found[0].strip() if len(found) == 1 else None


def _solves(question: str, code: str) -> bool:
    """Return whether code behind a question that asks for code is a function with a body."""
    asks_for_code = _ASKS_FOR_CODE.search(question) and not _SPEAKS_OF_CODE.search(question)
    tree = parse(code) if asks_for_code else None
    functions = [] if tree is None else [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return any(
        not isinstance(statement, ast.Pass | ast.Raise)
        and not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for function in functions
        for statement in function.body
    )


def _first_of_several(text: str) -> str | None:
    """Return the first of several numbered questions, or `None` where there is but one."""
    titles = list(_NUMBERED.finditer(text))
    if [title["number"] for title in titles[:2]] == ["1", "2"]:
        return text[titles[0].end() : titles[1].start()].strip()
    items = list(_LISTED.finditer(text))
    if [item["number"] for item in items[:2]] != ["1", "2"] or items[0].start():
        return None
    asks = [_ASKS.match(text[item.end() :]) is not None for item in items]
    return text[items[0].end() : items[1].start()].strip() if all(asks) else None
