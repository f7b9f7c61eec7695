"""Help of the commands: its description and its examples are the docstring of the command's module."""

import argparse
import re
import shutil
import textwrap

__all__ = ["WIDTH", "Formatter", "description", "examples"]

WIDTH = 100
"""Maximum width of a line of help."""

_BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
_TITLE = re.compile(r"^`trl-akd [^`]*`: ")
_EXAMPLES = "examples:\n"


class Formatter(argparse.HelpFormatter):
    """Formatter that wraps paragraphs, but not examples, in lines of at most `WIDTH` characters.

    Args:
        prog (`str`):
            Command.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(shutil.get_terminal_size().columns - 2, WIDTH))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(_EXAMPLES):
            return text
        return "\n\n".join(super(Formatter, self)._fill_text(part, width, indent) for part in text.split("\n\n"))


def description(docstring: str) -> str:
    """Return the paragraphs of a command's docstring, without its shell blocks and the name of the command.

    Example:

    ```python
    >>> description("`trl-akd akd`: distill a teacher into a student.")
    'Distill a teacher into a student.'

    ```
    """
    text = _TITLE.sub("", re.sub(r"\n\n+", "\n\n", _BLOCK.sub("", docstring)).strip())
    return text[:1].upper() + text[1:]


def examples(docstring: str) -> str:
    """Return the commands in the shell blocks of a command's docstring, for the end of its help."""
    commands = "".join(_BLOCK.findall(docstring))
    return f"{_EXAMPLES}{textwrap.indent(commands, '  ')}" if commands else ""
