"""The command line `trl-akd`: one file a command, found by its name. Importing this package does not import torch."""

import sys
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from types import MappingProxyType

from .. import __version__
from .errors import run

__all__ = ["COMMANDS", "main"]

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "quickstart": "from nothing to a distilled student, judged by the code it writes; offline, on a CPU",
        "akd": "distil a teacher into a student with adaptive knowledge distillation",
        "plans": "ask a teacher for the plans behind solutions, for a student to learn",
        "codeplan": "train a student on plans and solutions at once",
        "iterkd": "train a student in cycles of right and wrong answers, feedback and new questions",
        "evaluate": "judge a model by running the programs it writes",
        "ranker": "train a small model to tell correct programs from others, and put programs in its order",
        "judge": "train a small model to judge answers on the six-point rubric of IterKD",
    }
)

_HELP = """usage: trl-akd COMMAND [--config RECIPE] [--field value ...]

{description}

commands:
{commands}

options:
  -h, --help   show this help; `trl-akd COMMAND --help` lists every field of a recipe
  --version    show the version

With TRL_AKD_DEBUG=1 in the environment, errors come with their traceback."""


def main(argv: list[str] | None = None) -> int:
    """Run the command named first in `argv` (by default the process's arguments) and return the exit status."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(_help())
    elif command == "--version":
        print(f"trl-akd {__version__}")
    elif command in COMMANDS:
        return run(import_module(f".{command}", __name__).main, rest)
    else:
        print(f"trl-akd: {_unknown(command)}", file=sys.stderr)
        return 2
    return 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}   {description}" for name, description in COMMANDS.items())
    return _HELP.format(description=sys.modules[__package__.rpartition(".")[0]].__doc__, commands=commands)


def _unknown(command: str) -> str:
    close = get_close_matches(command, COMMANDS, n=1)
    remedy = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(COMMANDS)}."
    return f"{command!r} is not a command; {remedy}"
