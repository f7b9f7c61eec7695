"""Detection of refusals, code, programs and remarks in answers."""

import ast
import re
from collections.abc import Iterator

from ...generation import parse_answer
from ...generation.answers import extract_program
from ...generation.python_ast import does_something, parse

__all__ = [
    "has_code",
    "identity",
    "may_be_another_language",
    "python_program",
    "refuses",
    "remarks",
    "split_answer",
    "string_literals",
    "without_comments",
    "without_strings",
]

_CANNOT = r"(?:i(?:\Wm|\s+am)?\s+(?:can\W?t|can\s?not|won\Wt|will\s+not|unable\s+to|not\s+able\s+to))"
_REFUSAL = re.compile(
    rf"""\W*+ (?:(?:unfortunately|well|hello|hi|oh)\W++)? (?:
        i(?:\Wm|\s+am)\s+(?:(?:very|so|really|truly)\s+)?(?:sorry|afraid)\b
        | (?:sorry|apologies|my\s+apologies|i\s+apologi[sz]e)\b
        | as\s+an?\s+(?:ai|artificial\s+intelligence)\b
        | (?:{_CANNOT}|i\s+must\s+decline\s+to)\s+(?:be\s+able\s+to\s+)?(?:assist|help(?!\s+but\b)|provide|create|write
          |generate|fulfil|comply|answer|produce|give|offer|do(?!\s+(?:any\s+)?(?:better|more)\b))
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_REFUSED = r"""(?:
    (?:with\s+)?(?:this|that|it|so)
    | (?:with\s+)?(?:this|that|these|those|such|your|the|any|an?)\s+(?:\w+\s+){0,3}
      (?:requests?|tasks?|questions?|instructions?|prompts?|exercises?|challenges?|help|assistance|answers?)
      (?:\s+(?:about|that|which|on|involving)\b[^.,;:\n]{0,60})?
) (?=\s*(?:[.,;:!?\u2013\u2014-]|\n|\Z|because\b|since\b|as\s+it\b))"""
_TO_HELP = rf"""(?:
    (?:help|assist|comply)(?:ing)?(?=\s*[.,;!]|\s*\Z) | (?:help|assist)(?:ing)?\s+(?:you\s+)?with\s+[^.,;:\n]{{1,60}}
    | (?:help|assist|comply|do|provid|creat|writ|generat|fulfil|answer|produc|giv|offer)(?:e|ing|ling)?\s+{_REFUSED}
)"""
_DECLINES = re.compile(
    rf"""\W*+ (?:(?:thank\s+you|thanks|hello|hi)\b[^.!,;:\n\u2013\u2014-]{{0,40}}[.!,;:\n\u2013\u2014-]\W*+)?
    (?:(?:unfortunately|sorry|i(?:\Wm|\s+am)\s+sorry)\W++(?:but\s+)?)? (?:
        i\s+(?:must|need\s+to|have\s+to|will\s+have\s+to)\s+(?:respectfully\s+|politely\s+)?(?:decline|refuse)
          (?:\s*(?:[.,;!]|\Z) | \s+{_REFUSED} | \s+to\s+{_TO_HELP})
        | i(?:\Wd|\s+would)\s+(?:rather|prefer)\s+not\s+(?:to\s+)?{_TO_HELP}
        | i(?:(?:\Wm|\s+am)\s+not|\s+(?:don\Wt|do\s+not)\s+feel)\s+comfortable\s+(?:{_TO_HELP} | {_REFUSED})
        | i\s+(?:don\Wt|do\s+not)\s+(?:think|believe)\s+(?:that\s+)?i\s+(?:can|should)\s+{_TO_HELP}
        | [^.?!\n]{{0,80}}\b(?:goes\s+against|violates)\s+my\s+(?:\w+\s+)?
          (?:guideline|polic|principle|rule|value|instruction)
        | (?:[^.?!\n]{{0,80}}[,;]\s*(?:but|so|and)\s+)?{_CANNOT}\s+(?:be\s+able\s+to\s+)?{_TO_HELP}
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_FOREIGN_REFUSAL = re.compile(
    r"""\W*+ (?:(?:leider|lo\s+siento|lamentablemente|malheureusement|infelizmente|purtroppo|к\s+сожалению|残念ながら
        |恐れ入りますが|(?:很|非常|十分)?(?:遗憾|遺憾))\W*+)? (?:
        (?:es\s+)?tut\s+mir\s+(?:\w+\s+)?leid\b | ich\s+bedau\w+ | entschuldigung(?=\s*[,.!])
        | (?:ich\s+(?:kann|darf|werde)|(?:kann|darf|werde)\s+ich)\b[^.\n]{0,80}\bnicht\s+(?:\w+\s+)?
          (?:helfen|erfüllen|erstellen|unterstützen|nachkommen)
        | lo\s+(?:siento|lamento)\b
        | no\s+puedo\s+(?:ayudar|asistir|crear|cumplir|generar|proporcionar|hacer(?:lo\b|\s+es[ot]))
        | je\s+suis\s+(?:\w+\s+)?désolée?s?\b | désolée?s?(?=\s*[,.!])
        | je\s+(?:ne\s+peux\s+pas|ne\s+suis\s+pas\s+en\s+mesure)\s+(?:de\s+|d\W)?(?:(?:vous|te)\s+|t\W)?
          (?:aider|assister|créer|fournir|générer|répondre|faire\s+(?:cela|ça|ceci))
        | desculp(?:e|a)(?=\s*[,.!]) | (?:eu\s+)?(?:sinto|lamento)\s+muito\b
        | (?:eu\s+)?não\s+posso\s+(?:ajudar|atender|auxiliar|criar|gerar|fornecer|fazer\s+is[st]o)
        | mi\s+dispiace\b | (?:mi\s+)?scus[ai](?=\s*[,.!])
        | non\s+posso\s+(?:aiutar|assister|creare|fornir|generare|soddisfare|farlo|fare\s+questo)
        | (?:извин(?:ите|и)|прост(?:ите|и))(?=\s*[,.!]) | мне\s+(?:очень\s+)?жаль\b
        | я\s+не\s+(?:могу|буду)\s+(?:\w+\s+)?(?:помо|выполн|созда|ответ|предостав)
        | 申し訳(?:ありません|ございません) | すみません
        | [^。\n]{0,60}(?:お手伝い|お応え|お答え|ご協力|ご対応)[^。\n]{0,8}(?:できません|できかね|いたしかね)
        | 죄송 | [^.\n]{0,60}(?:도와|도움을|응해|제공해)[^.\n]{0,8}(?:수\s*없|어렵)
        | (?:我?很|非常|十分)?抱歉 | 对不起 | 對不起 | 我(?:无法|無法|不能)
        | 作为[^\s。]{0,12}(?:AI|人工智能|语言模型|助手)\w{0,8}\W\s*我(?:无法|不能)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""Apologies and refusals at the beginning of an answer, in English and other languages."""
_ADVICE = re.compile(
    r"(?:[.,;:!?]\s|\n|[\u2013\u2014-])\s*+(?:(?:so|but|and|please|just|rather|instead)\b\W*+)*(?:use|sort|return|loop|iterate"
    r"|call|raise|store|replace|keep|take|check|start|add|convert|build|compute|count|write|define|pass|read|split)\b",
    re.IGNORECASE,
)
"""Imperatives of programming: an answer with such a sentence helps."""
_PYTHON = {"", "python"}
_CODE_LINE = re.compile(
    r"^[ \t]*(?:(?:async[ \t]+)?(?:def|class)[ \t]+\w+[ \t]*[(:]|import[ \t]+\w|from[ \t]+\S+[ \t]+import\b"
    r"|(?:for|while|if|with|try)\b.*:[ \t]*$|return\b.*[^.\n]$|raise[ \t]+[A-Z]\w*|print[ \t]*\("
    r"|[\w.\[\]]+[ \t]*[-+*/]?=[^=])",
    re.MULTILINE,
)
_OTHER_CODE_LINE = re.compile(
    r"[;{}\])]\s*(?://.*)?$(?<!\w\))|^\s*(?:<[?!/]?\w|\?>|[.#}]\w|//|[$]\w|\w+[ \t]*[-+]?=)|=>|[$]\w|\w\(.*\)[ {;]*$"
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
_EXPECTATION = re.compile(r"\W*should (?:be|print|output|return)\b", re.IGNORECASE)
_EXPECTED_OUTPUT = re.compile(r"^[ \t]*(?:print|assert|console\.log|self\.assert\w*)\b")


def refuses(answer: str) -> bool:
    """Return whether an answer is empty, or begins with an apology or a refusal and has no code.

    Example:

    ```python
    >>> refuses("I'm sorry, but I can't help with that."), refuses("I cannot see why this fails: print(x")
    (True, False)

    ```
    """
    if not answer.strip():
        return True
    declines = _DECLINES.match(answer)
    is_refusal = (
        _REFUSAL.match(answer)
        or _FOREIGN_REFUSAL.match(answer)
        or (declines and not _ADVICE.search(answer, declines.end()))
    )
    return bool(is_refusal) and not has_code(answer)


def has_code(answer: str) -> bool:
    """Return whether an answer has a code block or looks like Python; the code need not parse."""
    parsed = parse_answer(answer)
    return bool(parsed.blocks) or _looks_like_python(parsed.text)


def python_program(answer: str) -> str | None:
    """Return the Python program in an answer, or `None` if all its blocks are in other languages."""
    languages = _languages(answer)
    return extract_program(answer) if not languages or languages & _PYTHON else None


def may_be_another_language(answer: str) -> bool:
    """Return whether an answer without a Python tag does not parse as Python."""
    program = python_program(answer)
    return program is not None and parse(program) is None and "python" not in _languages(answer)


def _languages(answer: str) -> set[str]:
    return {language for language, _ in split_answer(answer)[1]}


def identity(answer: str) -> str:
    """Return a key that ignores layout, comments and docstrings of the program in an answer.

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
    _, blocks = split_answer(answer)
    return " ".join("\n".join(code for _, code in blocks or [("", answer)]).split())


def remarks(answer: str) -> list[str]:
    """Return the prose, comments and docstrings of an answer; comments on adjacent lines form one remark."""
    prose, blocks = split_answer(answer)
    unmarked = ["\n".join(line for line in text.splitlines() if _OTHER_CODE_LINE.search(line)) for text in prose]
    prose = ["\n".join(line for line in text.splitlines() if not _OTHER_CODE_LINE.search(line)) for text in prose]
    blocks += [("other", code) for code in unmarked if code]
    return [*filter(None, prose), *(remark for language, code in blocks for remark in _comments(code, language))]


def _looks_like_python(text: str) -> bool:
    """Return whether a line is certainly code, or the text parses to more than words such as `this or that`."""
    return _CODE_LINE.search(text) is not None or does_something(text)


def split_answer(answer: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the prose of an answer and its code with the language; paragraphs of code need no fences."""
    parsed = parse_answer(answer)
    if parsed.blocks:
        return [parsed.prose], [(block.language, block.text) for block in parsed.blocks]
    prose: list[str] = []
    code: list[str] = []
    for paragraph in _PARAGRAPHS.split(parsed.text):
        is_code = paragraph.startswith((" ", "\t")) or _looks_like_python(paragraph)
        (code if is_code else prose).append(paragraph)
    return prose, [("", "\n\n".join(code))] if code else []


def _token_pattern(language: str) -> re.Pattern[str]:
    """Return the pattern of strings and comments in programs that need not parse."""
    return _PYTHON_TOKENS if language in _PYTHON else _OTHER_TOKENS


def _comments(code: str, language: str) -> Iterator[str]:
    """Yield the comments of a program, and its docstrings where the language is Python."""
    block: list[str] = []
    end = -1
    for token in _token_pattern(language).finditer(code):
        before = code[: token.start()].rpartition("\n")[2]
        if token["comment"] and not (_EXPECTED_OUTPUT.match(before) and _EXPECTATION.match(token[0])):
            between = code[end : token.start()]
            if block and (before.strip() or between.strip() or between.count("\n") != 1):
                yield "\n".join(block)
                block = []
            block.append(token[0])
            end = token.end()
        elif token["string"] and language in _PYTHON and _is_docstring(token[0], code[: token.start()]):
            yield token[0]
    if block:
        yield "\n".join(block)


def string_literals(code: str, language: str) -> Iterator[str]:
    """Yield the strings of a program."""
    return (token[0] for token in _token_pattern(language).finditer(code) if token["string"])


def without_strings(code: str, language: str) -> str:
    """Return a program without its strings and comments."""
    return _token_pattern(language).sub(" ", code)


def without_comments(code: str, language: str) -> str:
    """Return a program without its comments."""
    return _token_pattern(language).sub(lambda token: token["string"] or " ", code)


def _is_docstring(literal: str, before: str) -> bool:
    """Return whether a string is a statement: in triple quotes, or on the line after a colon."""
    above, _, beside = before.rpartition("\n")
    return not beside.strip(" \trRuU") and (literal[:3] in ('"""', "'''") or above.rstrip().endswith(":"))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
    return tree
