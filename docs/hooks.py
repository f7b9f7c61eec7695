"""Hook of MkDocs: formulas become MathML when the site is built, so that pages need no script and no other host."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **kwargs: Any) -> str:
    """Return a page's HTML with the formulas that `pymdownx.arithmatex` marked as MathML."""
    return _FORMULA.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    formula = html.unescape(match[3]).strip()
    if match[2] == "(":
        return convert(formula)
    return f'<div class="formula">{convert(formula, display="block")}</div>'  # which scrolls if the page is narrow
