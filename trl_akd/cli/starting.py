"""What a command does before its own work: read the recipe, then run here or in several processes."""

import os
import sys
from collections.abc import Callable
from typing import Any

from .errors import SETUP_ERRORS, user_errors
from .launching import find_launcher
from .machine import check_reporting
from .parsing import RecipeParser, read_options, read_recipe

__all__ = ["accelerator", "refuse_processes", "start"]


def start(
    command: str,
    argument_types: Callable[[], tuple[type, ...]],
    run: Callable[..., None],
    argv: list[str] | None = None,
    *,
    action: str | None = None,
) -> None:
    """Run a command.

    Args:
        command (`str`):
            Name of the command and of its module in this package.
        argument_types (`Callable`):
            Returns the dataclasses whose fields a recipe may set. Called once the recipe's `env` is in place, so that
            it may import torch.
        run (`Callable`):
            Takes one instance of each dataclass.
        argv (`list[str]`, *optional*):
            Arguments behind command and action, by default those of the process.
        action (`str`, *optional*):
            What the command does, where it does several things.

    Raises:
        UserError: If a value, a file or the machine is not as the run needs it.
        SystemExit: With the status of a launched process that failed.
    """
    from ..execution import IsolationError
    from ..generation import GenerationError

    with user_errors():
        options, flags = read_options(sys.argv[1:] if argv is None else argv)
        recipe = read_recipe(options.config)
        parser = RecipeParser(argument_types(), prog=" ".join(filter(None, ["trl-akd", command, action])))
        launcher = find_launcher(options.accelerate_config)
        launch_flags, flags = launcher.split(flags, parser) if launcher else ([], flags)
        values = parser.values(recipe, flags)
        if launcher:
            recipe_flags = ["--config", options.config] if options.config else []
            device = ["--use_cpu", "true"] if launcher.use_cpu and hasattr(values, "use_cpu") else []
            arguments = [*filter(None, [action]), *recipe_flags, *flags, *device]
            launcher.launch(f"{__package__}.{command}", launch_flags, arguments)
            return
        parsed = parser.dataclasses(values)
        check_reporting(*parsed)
    with user_errors((*SETUP_ERRORS, GenerationError, IsolationError)):
        run(*parsed)


def accelerator() -> Any:
    """Return accelerate's accelerator where its launcher started several processes, else `None`.

    Raises:
        ValueError: If it shards the model, which generation alone does not do.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    found = Accelerator(cpu=not torch.accelerator.is_available())
    if found.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        raise ValueError(
            "`accelerate_config` shards the model, which generation alone does not do; use ddp, or leave it out and "
            "give `device_map: auto` for a model that no single GPU holds."
        )
    return found


def refuse_processes(what: str) -> None:
    """Raise a ValueError if accelerate's launcher started several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"{what} runs in one process; leave `accelerate_config` out.")
