"""A page of HTML in one file: no scripts, nothing loaded from elsewhere, and all text escaped."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

__all__ = [
    "Block",
    "Bullets",
    "Code",
    "Facts",
    "Figure",
    "Program",
    "Prose",
    "Section",
    "Table",
    "Text",
    "render",
    "shorten",
]

_MAX_CHARACTERS, _MAX_LINES = 6000, 200  # of one text, such as a program
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufff9-\ufffb]"
)
_EQUATION = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_SYMBOLS = {r"\beta": "β", r"\mathrm{KL}": "KL", r"\,": " ", r"\|": "‖"}


@dataclass(frozen=True)
class Prose:
    """Paragraphs in Markdown, without HTML and images."""

    text: str
    kind: ClassVar[str] = "prose"


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]
    kind: ClassVar[str] = "bullets"


@dataclass(frozen=True)
class Facts:
    """Values by name."""

    rows: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Table:
    """A table whose columns are aligned right, except for the first one."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Figure:
    """A chart of `trl_akd.charts`, whose labels are escaped."""

    svg: str
    caption: str
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Code:
    """A command or a program."""

    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Program:
    """A text of a model, shown when its title is clicked.

    Args:
        title (`str`):
            Title.
        outcome (`str`):
            Outcome, such as an error class.
        passed (`bool`, *optional*):
            Whether the program passed; `None` if it was not run.
        parts (`Sequence[tuple[str, str]]`):
            Headings and texts.
        shown (`bool`, *optional*, defaults to `False`):
            Whether the text is shown at first.
    """

    title: str
    outcome: str
    passed: bool | None
    parts: Sequence[tuple[str, str]]
    shown: bool = False
    kind: ClassVar[str] = "program"


Block: TypeAlias = Prose | Text | Bullets | Facts | Table | Figure | Code | Program


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """Name of the section in links."""
        return re.sub(r"\W+", "-", self.title.lower())


def render(title: str, subtitle: str, sections: Sequence[Section], footer: str, redact: Callable[[str], str]) -> str:
    """Return the page as HTML.

    Args:
        title (`str`):
            Title.
        subtitle (`str`):
            Line below the title.
        sections (`Sequence[Section]`):
            Sections, of which those without blocks are left out.
        footer (`str`):
            Last line.
        redact (`Callable`):
            Function that removes what must not be published from a text.
    """

    def shown(value: Any) -> Any:
        return make_visible(redact(value)) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=PackageLoader("trl_akd.report", "."), autoescape=True, undefined=StrictUndefined, finalize=shown
    )
    environment.filters |= {
        "markdown": lambda text: _markdown(make_visible(redact(text))),
        "runs": lambda blocks: [(kind, list(several)) for kind, several in groupby(blocks, lambda block: block.kind)],
        "shorten": lambda text: shorten(redact(text)),
        "svg": lambda figure: Markup(make_visible(redact(figure))),
    }
    return environment.get_template("page.html").render(
        title=title, subtitle=subtitle, sections=[each for each in sections if each.blocks], footer=footer
    )


def make_visible(text: str) -> str:
    r"""Return text in which characters that are invisible, or not allowed in HTML, are written as escapes.

    Example:

    ```python
    >>> print(make_visible("a\0b\u202ec"))
    a\x00b\u202ec

    ```
    """
    return _INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shorten(text: str) -> str:
    """Return the beginning of a long text, with the number of characters that are left out.

    Example:

    ```python
    >>> shorten("x" * 7000)[-41:]
    'xxxxx … (1,000 more characters not shown)'

    ```
    """
    kept = "\n".join(text[:_MAX_CHARACTERS].splitlines()[:_MAX_LINES])
    missing = len(text) - len(kept)
    return kept if missing <= 1 else f"{kept} … ({missing:,} more characters not shown)"


def _markdown(text: str) -> Markup:
    parser = MarkdownIt("commonmark", {"html": False}).disable("image")
    return Markup(parser.render(_EQUATION.sub(lambda found: f"`{_in_words(found[1])}`", text)))


def _in_words(equation: str) -> str:
    for symbol, written in _SYMBOLS.items():
        equation = equation.replace(symbol, written)
    return " ".join(equation.split())
