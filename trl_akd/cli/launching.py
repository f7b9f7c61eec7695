"""Run a command in several processes with accelerate's launcher, after checks that the machine allows it."""

import glob
import logging
import os
import shutil
import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

from ..yaml_files import read_yaml
from .recipes import find_accelerate_config

__all__ = [
    "Launcher",
    "abandoned_locks",
    "check_processes",
    "check_reporting",
    "find_launcher",
    "is_launch_flag",
    "read_accelerate_config",
    "require_deepspeed",
]

logger = logging.getLogger(__name__)

_OPERATORS = ("deepspeed_*", "cpu_*", "fused_adam")
"""Names of the operators that runs with ZeRO compile on a CPU or with an offloaded optimizer, as patterns."""

_COMPILATION_TIME = 600.0
"""Seconds after which a lock is taken to be abandoned although another machine may hold it."""

_BETWEEN_LOOKS = 0.1  # seconds


@cache
def _launch_parser() -> ArgumentParser:
    from accelerate.commands.launch import launch_command_parser

    parser: ArgumentParser = launch_command_parser()
    return parser


def is_launch_flag(name: str) -> bool:
    """Return whether accelerate's launcher has the flag `name`, such as `"--num_processes"`."""
    return name in _launch_parser()._option_string_actions


def find_launcher(name: str | None) -> "Launcher | None":
    """Return the launcher for `--accelerate_config`, a name or a path; `None` if it is not given.

    Raises:
        FileNotFoundError: If there is no such configuration.
        ValueError: If this machine cannot run the configuration.
    """
    return None if name is None else Launcher(find_accelerate_config(name))


class Launcher:
    """accelerate's launcher with one of its configurations.

    Refuses configurations that accelerate would silently change: `MULTI_CPU` runs as one process, FSDP on CPU runs as
    DDP, and processes without their GPUs each train separately.

    Args:
        config (`Path`):
            Configuration file of accelerate.

    Raises:
        ValueError: If this machine cannot run the configuration.
    """

    def __init__(self, config: Path) -> None:
        self.config = config
        self._values = read_accelerate_config(config)
        _check(self._values, config)

    @property
    def use_cpu(self) -> bool:
        """Whether the configuration is for processes without a GPU."""
        return bool(self._values.get("use_cpu"))

    def split(self, flags: Sequence[str], training: ArgumentParser) -> tuple[list[str], list[str]]:
        """Split flags into those that only the launcher has, and the others, for the parser `training`."""
        known = training._option_string_actions
        own: list[str] = []
        rest: list[str] = []
        target = rest
        for token in flags:
            name = token.partition("=")[0]
            if name in known or token.startswith("--"):
                target = own if name not in known and is_launch_flag(name) else rest
            target.append(token)
        return own, rest

    def launch(self, module: str, flags: Sequence[str], arguments: Sequence[str]) -> None:
        """Run `python -m module arguments` in every process.

        Raises:
            SystemExit: With the status of the first process that failed, which has printed the reason, or with 128
                plus the number of the signal that ended the run.
        """
        import torch
        from accelerate.commands.launch import launch_command
        from torch.distributed.elastic.multiprocessing import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        args = _launch_parser().parse_args(["--config_file", str(self.config), *flags, "--module", module, *arguments])
        if args.num_processes is None and "num_processes" not in self._values:
            args.num_processes = torch.accelerator.device_count()
        try:
            launch_command(args)
        except ChildFailedError as error:
            raise SystemExit(error.get_first_failure()[1].exitcode) from None
        except CalledProcessError as error:
            raise SystemExit(error.returncode) from None
        except SignalException as signal:
            raise SystemExit(128 + signal.sigval) from None


def read_accelerate_config(config: Path) -> dict[str, Any]:
    """Return the content of a configuration of accelerate.

    Raises:
        ValueError: If the file is none.
    """
    values = read_yaml(config)
    if not isinstance(values, dict) or "distributed_type" not in values:
        raise ValueError(f"{config} is not a configuration of accelerate: it has no `distributed_type`.")
    for name in ("deepspeed_config", "fsdp_config"):
        if not isinstance(values.get(name) or {}, dict):
            raise ValueError(f"`{name}` in {config} is {values[name]!r}; give a mapping from settings to values.")
    return values


def _check(values: dict[str, Any], config: Path) -> None:
    import torch

    kind, use_cpu = str(values["distributed_type"]), bool(values.get("use_cpu"))
    if kind == "MULTI_CPU":
        raise ValueError(
            f"{config} has `distributed_type: MULTI_CPU`, which accelerate runs as a single process; write MULTI_GPU "
            "beside `use_cpu: true`, as `--accelerate_config ddp_cpu` does."
        )
    if kind == "FSDP" and (use_cpu or not torch.accelerator.is_available()):
        raise ValueError(f"{config} has `distributed_type: FSDP`, which accelerate runs on GPUs only; use zero3_cpu.")
    if kind != "NO" and not use_cpu and not torch.accelerator.is_available():
        raise ValueError(
            f"{config} is for GPUs (`use_cpu` is not set), but this machine has none; use ddp_cpu or zero1_cpu, "
            "zero2_cpu, zero3_cpu."
        )
    if kind == "DEEPSPEED":
        settings = values.get("deepspeed_config") or {}
        offload = str(settings.get("offload_optimizer_device", "none")) != "none"
        require_deepspeed(builds_operators=use_cpu or offload)


def check_processes(*, use_cpu: bool, deepspeed: bool) -> None:
    """Check one of the processes of a run before it joins the others.

    Args:
        use_cpu (`bool`):
            Whether the recipe sets `use_cpu`.
        deepspeed (`bool`):
            Whether the recipe sets `deepspeed`; accelerate's launcher may select DeepSpeed too.

    Raises:
        ValueError: If there are several processes without an accelerator, if one process sees several accelerators, or
            if DeepSpeed cannot build its operators.
    """
    import torch

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    deepspeed = deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"
    accelerators = 0 if use_cpu else torch.accelerator.device_count()
    if (processes > 1 or deepspeed) and not use_cpu and accelerators == 0:
        raise ValueError(
            f"`use_cpu` is false, but this machine has no accelerator, and each of the {processes} launched processes "
            "would train separately; set `use_cpu: true` and launch with one of the *_cpu configurations."
        )
    if "LOCAL_RANK" not in os.environ and accelerators > 1:
        raise ValueError(
            f"{accelerators} accelerators are visible to a single process; give `--accelerate_config ddp` (or zero2, "
            "zero3) to use them all, or `--accelerate_config single` for one."
        )
    offload = os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none") != "none"
    if deepspeed:
        require_deepspeed(builds_operators=use_cpu or offload)


def check_reporting(*arguments: Any) -> None:
    """Check that the packages in `report_to` are installed.

    Raises:
        ValueError: If one is missing.
    """
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    known = INTEGRATION_TO_CALLBACK.keys() - {"flyte"}  # whose availability transformers cannot check
    for name in (name for values in arguments for name in getattr(values, "report_to", None) or ()):
        if name in known and name not in get_available_reporting_integrations():
            raise ValueError(
                f"`report_to` includes {name!r}, whose package is not installed; install it, or set `report_to: none`."
            )


def require_deepspeed(*, builds_operators: bool) -> None:
    """Check that DeepSpeed is installed and, if it builds operators at first use, the compiler and ninja.

    Adds the folder of this interpreter's scripts, to which pip installs `ninja`, to `PATH`.

    Args:
        builds_operators (`bool`):
            Whether the run needs compiled operators: on CPU, or with optimizer offloading.

    Raises:
        ValueError: If DeepSpeed, a C++ compiler or ninja is missing, or if a killed run has left a lock for which the
            compilation would wait forever.
    """
    if find_spec("deepspeed") is None:
        raise ValueError(
            "a ZeRO configuration was chosen, but DeepSpeed is not installed; run `pip install 'trl_akd[deepspeed]'` "
            "or choose `--accelerate_config ddp`."
        )
    if not builds_operators:
        return
    scripts = str(Path(sys.executable).parent)
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([scripts, *filter(None, [os.environ.get("PATH")])])
    compiler = os.environ.get("CXX", "c++")
    for tool, remedy in ((compiler, "install g++ or set CXX to a C++ compiler"), ("ninja", "run `pip install ninja`")):
        if shutil.which(tool) is None:
            raise ValueError(
                f"a ZeRO configuration was chosen, for which DeepSpeed compiles an operator, but {tool!r} is not "
                f"on the PATH; {remedy}, or choose `--accelerate_config ddp` (ddp_cpu on CPU)."
            )
    _check_locks()


def abandoned_locks() -> list[Path]:
    """Return the locks of DeepSpeed's operators that no process of this machine holds.

    PyTorch locks the folder of an operator by a file while it compiles the operator or checks that it is up to date.
    If the process is killed, the file stays, and every later run waits until it is deleted, without a message.
    """
    states = {}
    for operator in _OPERATORS:
        for lock in _operator_folder().glob(f"{operator}/lock"):
            if (state := _unheld_state(lock)) is not None:
                states[lock] = state
    if states:
        time.sleep(_BETWEEN_LOOKS)  # a process that releases a lock closes the file before it deletes it
    return [lock for lock, state in states.items() if _unheld_state(lock) == state]


def _operator_folder() -> Path:
    """Return the folder in which PyTorch compiles operators, for this Python and this build of PyTorch."""
    if "TORCH_EXTENSIONS_DIR" in os.environ:
        return Path(os.environ["TORCH_EXTENSIONS_DIR"])
    import torch
    from torch.utils.cpp_extension import get_default_build_root

    python = f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
    build = "cpu"
    if torch.version.hip is not None:
        build = f"rocm{torch.version.hip.replace('.', '')}"
    elif torch.version.cuda is not None:
        build = f"cu{torch.version.cuda.replace('.', '')}"
    return Path(get_default_build_root(), f"{python}_{build}")


def _unheld_state(lock: Path) -> tuple[int, int] | None:
    """Return the file number and time of a lock that no process has open, as far as /proc tells this user."""
    try:
        status = lock.stat()
    except OSError:  # released in the meantime
        return None
    for process in glob.iglob("/proc/[0-9]*"):
        with suppress(OSError):  # the process has ended, or is another user's
            for descriptor in os.listdir(f"{process}/fd"):
                with suppress(OSError):
                    if os.path.samestat(os.stat(f"{process}/fd/{descriptor}"), status):
                        return None
    return status.st_ino, status.st_mtime_ns


def _check_locks() -> None:
    """Raise a ValueError about an abandoned lock that is old, and warn of one that is new."""
    for lock in abandoned_locks():
        with suppress(FileNotFoundError):  # deleted in the meantime
            age = time.time() - lock.stat().st_mtime
            message = (
                f"{lock} seems to be left by a run that was killed, and DeepSpeed waits until it does not exist; "
                "end the runs that wait and delete it, unless another machine, container or user is compiling there"
            )
            if age > _COMPILATION_TIME:
                raise ValueError(f"{message}.")
            if os.environ.get("LOCAL_RANK", "0") == "0":
                logger.warning(f"{message}.")
