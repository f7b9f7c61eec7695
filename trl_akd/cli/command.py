"""Read a command's recipe and flags, then run it here or in several processes."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from .errors import SETUP_ERRORS, user_errors
from .launching import Launcher, check_reporting, find_launcher
from .parsing import RecipeParser, read_options
from .recipes import read_recipe

__all__ = ["CommandLine", "make_accelerator", "require_one_process", "start"]


@dataclass
class CommandLine:
    """A recipe and flags, read but not yet turned into dataclasses.

    `arguments` are command-line arguments that give the same `values`.
    """

    parser: RecipeParser
    values: Namespace
    arguments: list[str]
    recipe: str | None = None
    launcher: Launcher | None = None
    launch_flags: Sequence[str] = ()

    @classmethod
    def read(cls, command: str, argument_types: Callable[[], tuple[type, ...]], argv: list[str] | None) -> Self:
        """Read the recipe and the flags in `argv`, by default the process's arguments.

        `argument_types` is called after the recipe's `env` is set, so that it may import torch.

        Raises:
            ValueError: If a key, a flag or a value is wrong.
            FileNotFoundError: If the recipe or the accelerate configuration does not exist.
        """
        options, flags = read_options(sys.argv[1:] if argv is None else argv)
        recipe = read_recipe(options.config)
        parser = RecipeParser(argument_types(), prog=f"trl-akd {command}")
        launcher = find_launcher(options.accelerate_config)
        launch_flags, flags = launcher.split(flags, parser) if launcher else ([], flags)
        arguments = [*(["--config", options.config] if options.config else []), *flags]
        return cls(parser, parser.values(recipe, flags), arguments, options.config, launcher, launch_flags)

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


def start(
    command: str,
    argument_types: Callable[[], tuple[type, ...]],
    run: Callable[..., None],
    argv: list[str] | None = None,
    *,
    action: str | None = None,
) -> None:
    """Run a command that is not a training method.

    Args:
        command (`str`):
            Name of the command.
        argument_types (`Callable`):
            Returns the dataclasses whose fields a recipe may set. Called after the recipe's `env` is set, so that it
            may import torch.
        run (`Callable`):
            Called with one instance of each dataclass.
        argv (`list[str]`, *optional*):
            Arguments after the command and the action, by default those of the process.
        action (`str`, *optional*):
            Action, for a command with several.

    Raises:
        UserError: If a value, a file or the machine does not allow the run.
        SystemExit: With the status of a launched process that failed.
    """
    from ..execution import IsolationError
    from ..generation import GenerationError

    name = [command] if action is None else [command, action]
    with user_errors():
        line = CommandLine.read(" ".join(name), argument_types, argv)
        if line.launcher is not None:
            line.launch(*name)
            return
        parsed = line.dataclasses()
    with user_errors((*SETUP_ERRORS, GenerationError, IsolationError)):
        run(*parsed)


def make_accelerator() -> Any:
    """Return an accelerator if accelerate's launcher started several processes, else `None`.

    Raises:
        ValueError: If it shards the model, which generation alone does not support.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        raise ValueError(
            "`accelerate_config` shards the model, which generation alone does not support; use ddp, or leave it out "
            "and set `device_map: auto` for a model too large for a single GPU."
        )
    return accelerator


def require_one_process(subject: str) -> None:
    """Raise a ValueError about `subject` if accelerate's launcher started several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"{subject} runs in one process; leave `accelerate_config` out.")
