"""`trl-akd completion`: print a script for bash, zsh or fish that completes commands, fields, recipes and files.

```bash
trl-akd completion bash > ~/.local/share/bash-completion/completions/trl-akd
trl-akd completion zsh > "${fpath[1]}/_trl-akd"
trl-akd completion fish > ~/.config/fish/completions/trl-akd.fish
```

A new shell reads the script. Write it again after an update: it has the commands and the fields of the installed
version, and of methods that other packages add.
"""

import shlex
from argparse import SUPPRESS, ArgumentParser, _SubParsersAction
from collections.abc import Iterable
from importlib import import_module
from itertools import chain

from . import descriptions
from .command import Action
from .errors import run
from .help import Formatter, description, examples, spellings
from .methods import find_methods, load_method
from .recipes import shipped_files

__all__ = ["SHELLS", "main", "make_parser", "make_script"]

_FISH_FILES = "__fish_complete_path (commandline -ct)"
SHELLS = ("bash", "zsh", "fish")


def make_parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(
        prog="trl-akd completion",
        description=description(str(__doc__)),
        epilog=examples(str(__doc__)),
        formatter_class=Formatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="shell that reads the script")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command with `argv`, by default the arguments of the process."""
    print(make_script(make_parser().parse_args(argv).shell))


def make_script(shell: str) -> str:
    """Return the script that completes `trl-akd` in a shell, one of `SHELLS`."""
    import shtab

    root = ArgumentParser(prog="trl-akd")
    root.add_argument("--version", action="version", help="show the version")
    commands = root.add_subparsers()
    for command, text in descriptions().items():
        actions = _parsers(command)
        parents = [actions.pop("")] if "" in actions else []
        parser = commands.add_parser(command, help=text, parents=parents, add_help=not parents)
        if actions:
            group = parser.add_subparsers()
            for name, action in actions.items():
                group.add_parser(name, help=action.description, parents=[action], add_help=False)
    _complete_values(root, shell)
    files = shipped_files()
    functions = (
        _function("config", files["recipe"], shell),
        _function("accelerate_config", files["accelerate_config"], shell),
        _function("name", chain(*files.values()), shell),
    )
    return shtab.complete(root, shell, preamble="\n".join(functions))


def _parsers(command: str) -> dict[str, ArgumentParser]:
    """Return the parsers of a command's actions; that of the command itself, without an action, is `""`."""
    from .parsing import RecipeParser

    prog = f"trl-akd {command}"
    if command in find_methods():
        return {"": RecipeParser(load_method(command).argument_types(), prog)}
    module = import_module(f".{command}", __package__)
    if not hasattr(module, "ACTIONS"):
        return {"": module.make_parser()}
    return {name: _parser_of_action(action, prog) for name, action in module.ACTIONS.items()}


def _parser_of_action(action: Action, prog: str) -> ArgumentParser:
    from .parsing import RecipeParser

    parser = RecipeParser(
        action.argument_types(), prog, description=action.summary or "", one_process=action.one_process
    )
    if action.first is not None:
        parser.add_argument(action.first, nargs="?")
    return parser


def _complete_values(parser: ArgumentParser, shell: str) -> None:
    """Set the completion of each flag's value, and leave out second spellings of flags."""
    import shtab

    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for child in action.choices.values():
                _complete_values(child, shell)
            continue
        if action.const is False:
            action.help = SUPPRESS  # `--no_field` is `--field false`
        elif action.option_strings:
            action.option_strings = spellings(action)
            action.help = (action.help or "").partition(". ")[0]
        if action.dest in ("config", "accelerate_config", "name"):
            function = f"_trl_akd_{action.dest}"
            action.complete = {shell: f"({function})" if shell == "fish" else function}  # type: ignore[attr-defined]
        elif action.dest in ("run_dir", "cache_dir"):
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif getattr(action.type, "__name__", "") == "string_to_bool":
            action.choices = ("true", "false")
        elif action.choices is None and action.type in (None, str) and action.nargs != 0:
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def _function(name: str, names: Iterable[str], shell: str) -> str:
    """Return a function of the shell that completes `names` and files."""
    words = " ".join(names)
    if shell == "fish":
        return f"function _trl_akd_{name}\n  string split ' ' {shlex.quote(words)}\n  {_FISH_FILES}\nend"
    body = {
        "bash": f'compgen -W {shlex.quote(words)} -- "$1"; compgen -f -- "$1"',
        "zsh": f"_alternative {shlex.quote(f'names:name:({words})')} 'files:file:_files'",
    }
    return f"_trl_akd_{name}() {{ {body[shell]}; }}"


if __name__ == "__main__":
    raise SystemExit(run(main))
