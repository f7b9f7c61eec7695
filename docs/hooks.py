"""Hook of MkDocs: formulas become MathML, and diagrams SVG, when the site is built.

Pages need no script and no other host.
"""

import html
import re
from itertools import count
from typing import Any

import mmdr
from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_DIAGRAM = re.compile(r'<pre class="mermaid"><code>(.*?)</code></pre>', re.DOTALL)
_STYLE = (
    "---\nconfig:\n  look: classic\n  theme: neutral\n  flowchart:\n    nodeSpacing: 24\n    rankSpacing: 32\n---\n"
)


def on_page_content(content: str, **kwargs: Any) -> str:
    """Return a page's HTML with its formulas as MathML and its diagrams as SVG."""
    content = _FORMULA.sub(_mathml, content)
    number = count(1)
    return _DIAGRAM.sub(lambda match: _svg(match[1], f"diagram-{next(number)}"), content)


def _mathml(match: re.Match[str]) -> str:
    formula = html.unescape(match[3]).strip()
    if match[2] == "(":
        return convert(formula)
    return f'<div class="formula">{convert(formula, display="block")}</div>'  # which scrolls if the page is narrow


def _svg(source: str, name: str) -> str:
    drawing = mmdr.render(_STYLE + html.unescape(source)).svg()
    return f'<div class="diagram">{drawing.replace("merman", name)}</div>'  # ids are unique on the page
