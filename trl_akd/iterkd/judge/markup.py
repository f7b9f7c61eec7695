"""Removal of Markdown, HTML, XML and LaTeX markup from the text of a judge."""

import html
import re
import unicodedata

from .values import JSON_KEYS, RULE_KEYS, rule_of_key

__all__ = ["plain_text", "without_markup"]

_MAX_LINE = 2_000
_NESTED = re.compile(
    r"<(?P<name>[A-Za-z][\w-]{0,40})(?P<attributes>(?:\s[^<>]{0,200})?)>(?:(?!</(?P=name)>"
    r"|<(?P=name)\b)[\s\S]){0,2000}?"
    r"<(?:score|points|value|rating|awarded)>(?P<value>[^<]{1,30})<(?:(?!</(?P=name)>)[\s\S]){0,2000}</(?P=name)>"
)
_ELEMENT = re.compile(
    r"<(?P<name>[A-Za-z][\w-]{0,40})(?P<attributes>(?:\s[^<>]{0,200})?)(?:/>|>(?:[ ]*(?P<value>[0-9][^<\n]{0,200})"
    r"|[^<]{0,2000})</(?P=name)>)"
)
_ATTRIBUTE = re.compile(r"([\w-]+)\s*=\s*[\"']([^\"']*)[\"']")
_SCORE_ELEMENT = re.compile(r"<(?:final[_-]?)?(?:scores?|judge?ment|ratings?|verdict)>[ ]*\n", re.IGNORECASE)
_CIRCLED = re.compile(r"[\u2460-\u2464]")
_RANGE = re.compile(
    r"[(\[][ ]*(?:points?[ :]*)?0[ ]*(?:[-\u2013\u2014~]|to|\.\.)[ ]*[12](?:\.0)?[ ]*(?:points?|pts?|分)?[ ]*[)\]]",
    re.IGNORECASE,
)
_BREAK = re.compile(r"</?(?:li|tr|p|br|div|ol|ul|h[1-6]|table|tbody|thead)\b[^<>]*>", re.IGNORECASE)
_LATEX = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"\\boxed\s*\{([^{}\[\],]*(?:,[^{}\[\],]*){4})\}", r"[\1]"),
        *((r"\\(?:text\w*|math\w+|boxed|fbox|operatorname|emph|underline)\s*\{([^{}]*)\}", r"\1"),) * 4,
        (r"\\(?:begin|end)\{[^{}]*\}(?:\{[^{}]*\})?|\\\\|\\hline|\\item", "\n"),
        (r"\\(?:[,;:! ()\[\]]|q?quad|left|right|rightarrow|to)|\$+|[{}](?=[^{}\"]*$)", " "),
        (r"(?m)^([^&\n]*)&", r"\1|"),
        (r"(?m)^(?=[^&\n]*\|[^&\n]*&)|&", "|"),
    )
)
_HALF = re.compile(r"([0-9])?[ ]?½")
_STRUCK = re.compile(r"~~[^~\n]{1,200}~~|<(?:s|del|strike)>[^<\n]{0,200}</(?:s|del|strike)>", re.IGNORECASE)
_HTML = re.compile(r"</?[a-z][a-z0-9]{0,10}(?:[ ][^<>]{0,200})?/?>", re.IGNORECASE)
_COMMENT = re.compile(r"(?<=[0-9])[ \t]+(?:#+|//)[ ]")
_LONG_QUOTE = re.compile(
    r"[\"\u201c](?=[^\"\u201d\n]{0,300}(?:rule|score)[ ]*[1-5:])[^\"\u201d\n]{12,600}[\"\u201d]", re.I
)
_MARKUP = str.maketrans(
    {"*": "", "`": "", "#": "", "_": " ", "\u200b": "", "\ufe0f": "", "\u2212": "-", "\u00a0": " ", '"': ""}
)


def plain_text(text: str) -> str:
    """Return a text without LaTeX, XML and HTML markup; elements and table rows become lines."""
    if "\\" in text:
        for pattern, plain in _LATEX:
            text = pattern.sub(plain, text)
    if "<" in text:
        for element in (_NESTED, _ELEMENT):
            text = element.sub(_element_as_line, text)
        text = _BREAK.sub("\n", _SCORE_ELEMENT.sub("\nScore:\n", text))
    text = _CIRCLED.sub(lambda match: f"\nRule {ord(match[0]) - 0x245F}: ", text)
    text = _STRUCK.sub("", _HALF.sub(lambda match: f"{match[1] or 0}.5", html.unescape(text)))
    return unicodedata.normalize("NFKC", text)


def _element_as_line(element: re.Match[str]) -> str:
    attributes = {key.casefold(): value for key, value in _ATTRIBUTE.findall(element["attributes"])}
    named = (attributes[key] for key in RULE_KEYS if key in attributes)
    rule = next(filter(None, map(rule_of_key, named)), None) or rule_of_key(element["name"])
    given = next((attributes[key] for key in JSON_KEYS if key in attributes), None)
    value = element["value"] if given is None else given
    if rule is None or value is None or not re.match(r"\s*[0-9½]", value):
        return element[0]
    return f"\nRule {rule}: {value.strip()}\n"


def without_markup(line: str) -> str:
    """Return a line without Markdown, tags, emoji, ranges of points, comments and long quotations."""
    line = _RANGE.sub("", line)
    line = _COMMENT.sub(" ; ", _HTML.sub(" ", _LONG_QUOTE.sub("", line[:_MAX_LINE]))).translate(_MARKUP)
    return "".join(char for char in line if unicodedata.category(char) != "So" or char in "→⇒")
