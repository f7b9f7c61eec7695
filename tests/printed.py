"""Commands that a page or a program prints, as a user would copy them."""

import re
import shlex

_COMMAND = re.compile(r"(?<![\w`/-])trl-akd (?:[^\n`|#]|\\\n)*")


def printed_commands(text: str) -> list[list[str]]:
    r"""Return the arguments of each `trl-akd ...` that stands on lines of its own, continued lines joined."""
    joined = re.sub(r"\\\n\s*(?:#\s+)?", "", text)
    return [shlex.split(command)[1:] for command in _COMMAND.findall(joined)]
