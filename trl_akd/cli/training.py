"""What every training command does before it trains: read the recipe, then run here or in several processes."""

import sys
from collections.abc import Callable
from contextlib import ExitStack

from .errors import user_errors
from .launching import find_launcher
from .machine import check_processes, check_reporting
from .parsing import RecipeParser, read_options, read_recipe

__all__ = ["start"]


def start(
    command: str,
    argument_types: Callable[[], tuple[type, ...]],
    train: Callable[..., None],
    argv: list[str] | None = None,
) -> None:
    """Run a training command.

    Args:
        command (`str`):
            Name of the command and of its module in this package.
        argument_types (`Callable`):
            Returns the dataclasses whose fields a recipe may set. Called once the recipe's `env` is in place, so that
            it may import torch.
        train (`Callable`):
            Takes one instance of each dataclass, and the recipe's name.
        argv (`list[str]`, *optional*):
            Arguments, by default those of the process.

    Raises:
        UserError: If a value, a file or the machine is not as the run needs it.
        SystemExit: With the status of a launched process that failed.
    """
    argv = sys.argv[1:] if argv is None else argv
    with ExitStack() as stack:
        with user_errors():
            options, flags = read_options(argv)
            recipe = read_recipe(options.config)
            parser = RecipeParser(argument_types(), prog=f"trl-akd {command}")
            launcher = find_launcher(options.accelerate_config)
            launch_flags, flags = launcher.split(flags, parser) if launcher else ([], flags)
            values = parser.values(recipe, flags)
            arguments = [*(["--config", options.config] if options.config else []), *flags]
            if values.dry_run:
                from .dry_run import rehearsal

                values, arguments = stack.enter_context(rehearsal(values))
        if launcher:
            with user_errors():
                device = ["--use_cpu", "true"] if launcher.use_cpu else []
                launcher.launch(f"{__package__}.{command}", launch_flags, [*arguments, *device])
            return
        with user_errors():
            check_processes(use_cpu=values.use_cpu, deepspeed=values.deepspeed is not None)
            parsed = parser.dataclasses(values)
            check_reporting(*parsed)
        train(*parsed, recipe=options.config)
