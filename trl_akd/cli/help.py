"""Help of the commands: its description and its examples are the docstring of the command's module."""

import argparse
import re
import shutil
import textwrap
from typing import ClassVar, cast

__all__ = ["WIDTH", "FieldFormatter", "Formatter", "description", "examples", "spellings"]

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


class FieldFormatter(Formatter, argparse.ArgumentDefaultsHelpFormatter):
    """Formatter of fields: one spelling of each flag, the type of its value, and its default."""

    _TYPES: ClassVar = {"int": "INT", "float": "FLOAT", "string_to_bool": "true|false", "_optional_text": "JSON"}
    _LONG = 60

    def _format_action_invocation(self, action: argparse.Action) -> str:
        metavar = self._metavar(action)
        value = {None: metavar, "?": f"[{metavar}]"}.get(cast(str | None, action.nargs), f"{metavar} ...")
        return f"{', '.join(spellings(action))} {value}"

    def _metavar(self, action: argparse.Action) -> str:
        if action.metavar is not None:
            return str(action.metavar)
        if action.choices is None:
            return self._TYPES.get(getattr(action.type, "__name__", ""), "TEXT")
        choices = "|".join(map(str, action.choices))
        return choices if len(choices) <= self._LONG else "TEXT"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.metavar is None and action.default is not None
        text = super()._get_help_string(action) if has_default else action.help
        if action.choices is None or self._metavar(action) != "TEXT":
            return text
        return f"One of {', '.join(map(str, action.choices))}. {text}"


def spellings(action: argparse.Action) -> list[str]:
    """Return the flags of a field that are shown: those with `_` rather than `-` between words."""
    return [flag for flag in action.option_strings if "-" not in flag.lstrip("-")]


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


def examples(docstring: str, command: str = "") -> str:
    """Return the commands in the shell blocks of a command's docstring, for the end of its help.

    Args:
        docstring (`str`):
            Docstring of the command's module.
        command (`str`, *optional*, defaults to `""`):
            Command with its action. If there are commands of several actions, only those with this one are returned.
    """
    commands = re.findall(r"^\S.*(?:\n +.*)*", "".join(_BLOCK.findall(docstring)), re.MULTILINE)
    if any(line.startswith("trl-akd") and not line.startswith(f"{command} -") for line in commands):
        commands = [line for line in commands if line.startswith(command)]
    return _EXAMPLES + textwrap.indent("\n".join(commands), "  ") if commands else ""
