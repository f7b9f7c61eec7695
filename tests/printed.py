"""Commands on a page or in the output of a program, as a user would copy them."""

import re
import shlex

_BLOCK = re.compile(r"```(?:bash|console|sh)\n(.*?)```", re.S)
_INLINE = re.compile(r"`(trl-akd [^`]+)`")
_LINE = re.compile(r"^[ #$]*(?:\w[\w ,]*?:?\s+)??((?:trl-akd|accelerate launch) .*)$", re.M)


def printed_commands(text: str) -> list[list[str]]:
    r"""Return the words of each command on a separate line, with continued lines joined and comments dropped."""
    joined = re.sub(r"\s*\\\n[ #]*", " ", text)
    return [shlex.split(command, comments=True) for command in _LINE.findall(joined)]


def commands_of_page(markdown: str) -> list[list[str]]:
    """Return the commands of a Markdown page: those of its shell blocks, and those in its prose that have flags."""
    found = [command for block in _BLOCK.findall(markdown) for command in printed_commands(block)]
    prose = re.sub(r"```.*?```", "", markdown, flags=re.S)
    inline = [shlex.split(" ".join(command.split())) for command in _INLINE.findall(prose)]
    return found + [command for command in inline if any(word.startswith("--") for word in command)]
