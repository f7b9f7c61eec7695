"""The command line `trl-akd`: one module per command, named after it. Importing this package does not import torch.

To add a command, add its module, with a function `main(argv)`, and a row in `COMMANDS`. To add a training method, see
`methods.py`.
"""

import sys
import textwrap
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint
from types import MappingProxyType

from .. import __version__
from .errors import UserError, run

__all__ = ["COMMANDS", "descriptions", "main"]

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "quickstart": "train a small student on generated tasks and evaluate it; offline, on a CPU",
        "akd": "distill a teacher into a student with adaptive knowledge distillation",
        "plans": "generate plans for solutions with a teacher, as training data for codeplan",
        "codeplan": "train a student on solutions and plans",
        "cache": "run a teacher once over a dataset, to train from its stored signals",
        "iterkd": "train a student in cycles of correct and faulty answers, feedback and new questions",
        "evaluate": "evaluate a model by running the programs that it writes",
        "report": "write the report of a run, report.html, again from the files in its folder",
        "doctor": "estimate the memory and time of a recipe before it runs",
        "push": "upload a trained student, or generated texts as a dataset, to the Hub",
        "bench": "compare divergences in a world of generated programs on a CPU, or with real models",
        "templates": "compare prompt templates by a model's likelihood of the reference answers",
        "ranker": "train a small model that ranks programs by correctness, and rank programs with it",
        "judge": "train a small model that scores answers on IterKD's six-point rubric",
        "recipes": "list, print and copy the recipes and accelerate configurations of the package",
        "completion": "print a script for bash, zsh or fish that completes commands, fields and recipes",
    }
)

_WIDTH = 80
_HELP = """usage: trl-akd COMMAND [--config RECIPE] [--field value ...]

{description}

commands:
{commands}

options:
  -h, --help   show this help; `trl-akd COMMAND --help` shows that of a command
  --version    show the version

With TRL_AKD_DEBUG=1 in the environment, errors come with their traceback.

examples:
  trl-akd quickstart
  trl-akd recipes list starcoder
  trl-akd akd --config recipes/qwen2.5-coder-7b-to-0.5b/akd/config_full.yaml --dry_run"""


def main(argv: list[str] | None = None) -> int:
    """Run the command named first in `argv`, by default the arguments of the process, and return the exit status."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    return run(lambda argv: _run(command, argv), rest)


def _run(command: str, argv: list[str] | None) -> None:
    if command in ("-h", "--help"):
        print(_help())
        return
    if command == "--version":
        print(f"trl-akd {__version__}")
        return
    if command in COMMANDS:
        import_module(f".{command}", __name__).main(argv)
        return
    from .methods import load_method

    if command not in _plugins():
        known = [*COMMANDS, *_plugins()]
        close = get_close_matches(command, known, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}."
        raise UserError(f"{command!r} is not a command; {remedy}")
    load_method(command).main(argv)


def descriptions() -> dict[str, str]:
    """Return a line about each command, those of other packages last."""
    return {**COMMANDS, **{name: f"method of {method.module}" for name, method in _plugins().items()}}


def _plugins() -> dict[str, EntryPoint]:
    """Return the training methods of other packages."""
    from .methods import find_methods

    return {name: method for name, method in find_methods().items() if name not in COMMANDS}


def _help() -> str:
    commands = descriptions()
    width = max(map(len, commands))
    lines = "\n".join(f"  {name:{width}}   {description}" for name, description in commands.items())
    summary = textwrap.fill(str(sys.modules[__package__.rpartition(".")[0]].__doc__), _WIDTH)
    return _HELP.format(description=summary, commands=lines)
