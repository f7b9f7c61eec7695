"""Read a command's recipe and flags, then run it here or in several processes."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Any, Self

from .errors import SETUP_ERRORS, user_errors
from .help import Formatter, description, examples
from .launching import Launcher, check_reporting, find_launcher
from .parsing import RecipeParser, read_options
from .recipes import Recipe, read_recipe

__all__ = [
    "Action",
    "CommandLine",
    "check_output",
    "make_accelerator",
    "require_one_process",
    "start",
    "start_action",
]


@dataclass(frozen=True)
class Action:
    """Command that is not a training method, or one action of a command with several.

    The module of such a command has `ACTIONS`, a mapping from the names of its actions; that of the command itself,
    without an action, is `""`.

    Args:
        argument_types (`Callable`):
            Returns the dataclasses whose fields a recipe may set. Called after the recipe's `env` is set, so that it
            may import torch.
        run (`Callable`):
            Called with one instance of each dataclass.
        one_process (`bool`, *optional*, defaults to `False`):
            Whether it runs in one process only, and has no `--accelerate_config`.
        first (`str`, *optional*):
            Field that may be given without its flag, as the first argument.
    """

    argument_types: Callable[[], tuple[type, ...]]
    run: Callable[..., None]
    one_process: bool = False
    first: str | None = None

    @property
    def summary(self) -> str | None:
        """First paragraph of the docstring of `run`."""
        return cleandoc(self.run.__doc__).partition("\n\n")[0] if self.run.__doc__ else None


@dataclass
class CommandLine:
    """Values of a recipe and flags, before they are converted to dataclasses.

    `arguments` are command-line arguments with the same `values`.
    """

    parser: RecipeParser
    values: Namespace
    arguments: list[str]
    recipe: str | None = None
    launcher: Launcher | None = None
    launch_flags: Sequence[str] = ()

    @classmethod
    def read(
        cls,
        command: str,
        argument_types: Callable[[], tuple[type, ...]],
        argv: list[str] | None,
        docstring: str | None = None,
        summary: str | None = None,
        one_process: bool = False,
    ) -> Self:
        """Read the recipe and the flags in `argv`, by default the arguments of the process.

        `argument_types` is called after the recipe's `env` is set, so that it may import torch. The help text has the
        description and the examples of the module's `docstring`, or `summary` in place of this description. With
        `one_process`, there is no `--accelerate_config`.

        Raises:
            SystemExit: After printing the help, if it is requested.
            ValueError: If a key, a flag or a value is wrong.
            FileNotFoundError: If the recipe or the accelerate configuration does not exist.
        """
        options, flags = read_options(sys.argv[1:] if argv is None else argv)
        prog = f"trl-akd {command}"
        if "help" in options:
            texts = {"description": summary or description(docstring or ""), "epilog": examples(docstring or "", prog)}
            parser = RecipeParser(argument_types(), prog, one_process=one_process, **texts)
            print(parser.format_help(every_field=options.help == "all"), end="")
            raise SystemExit(0)
        if one_process and options.accelerate_config is not None:
            raise ValueError(_one_process(f"`{prog}`"))
        recipe = read_recipe(options.config)
        parser = RecipeParser(argument_types(), prog, one_process=one_process)
        launcher = find_launcher(options.accelerate_config)
        launch_flags, flags = launcher.split(flags, parser) if launcher else ([], flags)
        arguments = [*(["--config", options.config] if options.config else []), *flags]
        return cls(parser, parser.values(recipe, flags), arguments, options.config, launcher, launch_flags)

    def as_run(self) -> Recipe:
        """Return the values that differ from the defaults, from the recipe and from flags, as a recipe."""
        defaults = vars(self.parser.values(Recipe()))
        values = {name: value for name, value in vars(self.values).items() if value != defaults[name]}
        return Recipe(None if self.recipe is None else Path(self.recipe), values)

    def launch(self, *command: str) -> None:
        """Run `trl-akd command` with these arguments in several processes.

        Raises:
            SystemExit: With the status of a process that failed.
        """
        assert self.launcher is not None
        device = ["--use_cpu", "true"] if self.launcher.use_cpu and "use_cpu" in self.values else []
        self.launcher.launch("trl_akd", self.launch_flags, [*command, *self.arguments, *device])

    def dataclasses(self) -> tuple[Any, ...]:
        """Return one instance of each dataclass.

        Raises:
            ValueError: If a dataclass refuses its values, or a package of `report_to` is not installed.
        """
        parsed = self.parser.dataclasses(self.values)
        check_reporting(*parsed)
        return parsed


def start(command: str, actions: Mapping[str, Action], argv: list[str] | None = None, *, name: str = "") -> None:
    """Run a command that is not a training method.

    Args:
        command (`str`):
            Name of the command.
        actions (`Mapping[str, Action]`):
            Actions of the command.
        argv (`list[str]`, *optional*):
            Arguments after the command and the action, by default those of the process.
        name (`str`, *optional*, defaults to `""`):
            Name of the action.

    Raises:
        UserError: If a value, a file or the machine does not allow the run.
        SystemExit: With the status of a launched process that failed.
    """
    from ..execution import IsolationError
    from ..generation import GenerationError
    from ..metrics.verdicts import UntestedProgramsError

    action, words = actions[name], [command, name] if name else [command]
    summary = action.summary if name else None
    docstring = sys.modules[action.run.__module__].__doc__
    argv = sys.argv[1:] if argv is None else argv
    if action.first is not None and argv and not argv[0].startswith("-"):
        argv = [f"--{action.first}", *argv]
    with user_errors():
        line = CommandLine.read(
            " ".join(words), action.argument_types, argv, docstring, summary, one_process=action.one_process
        )
        if line.launcher is not None:
            line.launch(*words)
            return
        if action.one_process:
            require_one_process(f"`trl-akd {' '.join(words)}`")
        parsed = line.dataclasses()
    with user_errors((*SETUP_ERRORS, GenerationError, IsolationError, UntestedProgramsError)):
        action.run(*parsed)


def start_action(command: str, actions: Mapping[str, Action], docstring: str, argv: list[str] | None = None) -> None:
    """Run the action of a command that is named first in `argv`, by default the arguments of the process.

    Args:
        command (`str`):
            Name of the command.
        actions (`Mapping[str, Action]`):
            Actions by name.
        docstring (`str`):
            Docstring of the command's module, with a description and examples for the help text.
        argv (`list[str]`, *optional*):
            Arguments after the command, by default those of the process.

    Raises:
        UserError: If there is no such action, or a value, a file or the machine does not allow the run.
        SystemExit: With the status of a launched process that failed.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        usage = f"trl-akd {command} {{{','.join(actions)}}} [--config RECIPE] [--field value ...]"
        parser = ArgumentParser(
            usage=usage,
            description=description(docstring),
            epilog=examples(docstring),
            formatter_class=Formatter,
            add_help=False,
        )
        listing = parser.add_subparsers(title="actions", metavar="ACTION")
        for action, declared in actions.items():
            listing.add_parser(action, help=declared.summary)
        print(parser.format_help(), end="")
        return
    with user_errors():
        if name not in actions:
            raise ValueError(f"{name!r} is not an action of `trl-akd {command}`; choose one of {', '.join(actions)}.")
    start(command, actions, rest, name=name)


def check_output(name: str, output: str | Path, **inputs: str | None) -> None:
    """Raise a ValueError if the field `name` names the same file or folder as one of the fields in `inputs`."""
    target = Path(output).expanduser().resolve()
    for field, source in inputs.items():
        if source and target.exists() and Path(source).expanduser().resolve() == target:
            raise ValueError(
                f"`{name}` is {str(output)!r}, the same as `{field}`, which would be overwritten; give another "
                f"`{name}`."
            )


def make_accelerator() -> Any:
    """Return an accelerator if accelerate's launcher started several processes, else `None`.

    Raises:
        ValueError: If it shards the model, which generation does not support.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        raise ValueError(
            "`accelerate_config` shards the model, which this command does not support; use ddp, or leave it out "
            "and set `device_map: auto` for a model too large for a single GPU."
        )
    return accelerator


def require_one_process(subject: str) -> None:
    """Raise a ValueError about `subject` if accelerate's launcher started several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(_one_process(subject))


def _one_process(subject: str) -> str:
    return f"{subject} runs in one process; leave `accelerate_config` out."
