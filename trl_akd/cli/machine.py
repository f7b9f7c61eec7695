"""What this machine must have for a run, checked before an engine fails deep inside or trains something else."""

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["check_processes", "check_reporting", "require_deepspeed"]


def check_processes(*, use_cpu: bool, deepspeed: bool) -> None:
    """Check one of the processes of a run before it joins the others.

    Args:
        use_cpu (`bool`): whether the recipe asks for the CPU.
        deepspeed (`bool`): whether the recipe names a DeepSpeed configuration; accelerate's launcher may ask for
            DeepSpeed too.

    Raises:
        ValueError: If several processes meet no accelerator, if one process sees several, or if DeepSpeed could not
            build its operators.
    """
    import torch

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    deepspeed = deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"
    accelerators = 0 if use_cpu else torch.accelerator.device_count()
    if (processes > 1 or deepspeed) and not use_cpu and accelerators == 0:
        raise ValueError(
            f"`use_cpu` is false, but this machine has no accelerator, and {processes} processes were launched that "
            "would each train alone; set `use_cpu: true` and launch with one of the *_cpu configurations."
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
    """Check that the packages are installed to which a run reports, as `report_to` of any of its arguments says.

    Raises:
        ValueError: If one is missing.
    """
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    known = INTEGRATION_TO_CALLBACK.keys() - {"flyte"}  # which transformers cannot look for
    for name in (name for values in arguments for name in getattr(values, "report_to", None) or ()):
        if name in known and name not in get_available_reporting_integrations():
            raise ValueError(
                f"`report_to` names {name!r}, whose package is not installed; install it, or set `report_to: none`."
            )


def require_deepspeed(*, builds_operators: bool) -> None:
    """Check that DeepSpeed is there and, where it builds operators at first use, what it builds them with.

    Puts the folder of this interpreter's scripts on `PATH`, where pip has put `ninja`.

    Args:
        builds_operators (`bool`): whether the run needs compiled operators: any run on CPU, or one that offloads the
            optimiser.

    Raises:
        ValueError: If DeepSpeed, a C++ compiler or ninja is missing.
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
