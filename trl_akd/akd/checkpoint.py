"""The file that AKD adds to a checkpoint: writing it, reading it, and checking that a run can resume from it."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import get_last_checkpoint

from ..beta import AdaptiveBeta
from ..losses.knobs import KnobSchedule

STATE_FILE = "akd_state.pt"


def save_state(
    checkpoint: str | Path,
    beta: AdaptiveBeta,
    schedule: KnobSchedule | None,
    loss: Mapping[str, Any],
    num_tokens: int,
) -> None:
    """Write the state file of a checkpoint.

    Args:
        checkpoint (`str` or `Path`):
            Folder of the checkpoint.
        beta (`AdaptiveBeta`):
            The mixing coefficient of AKD, which also counts the epochs.
        schedule (`KnobSchedule`, *optional*):
            The schedule of the divergence, which may be `beta`.
        loss (`Mapping`):
            Settings of the loss.
        num_tokens (`int`):
            Tokens read so far.
    """
    state = {"beta": beta.state_dict(), "num_tokens": num_tokens, "loss": dict(loss)}
    if schedule is not None and schedule is not beta:
        state["schedule"] = schedule.state_dict()
    torch.save(state, Path(checkpoint) / STATE_FILE)


def load_state(
    checkpoint: str | Path, beta: AdaptiveBeta, schedule: KnobSchedule | None, loss: Mapping[str, Any]
) -> int:
    """Restore `beta` and `schedule` from a checkpoint folder. The arguments are those of `save_state`.

    Only settings that both the checkpoint and `loss` have are compared: a run may resume from a teacher cache if it
    began with the teacher in memory, and vice versa.

    Returns:
        `int`: Tokens read so far.

    Raises:
        ValueError: If the checkpoint was not written by AKD, or was written with other settings.
    """
    state = _read(checkpoint)
    for name, written in state.get("loss", {}).items():
        if name in loss and loss[name] != written:
            raise ValueError(
                f"`resume_from_checkpoint` is {str(checkpoint)!r}, which was written with {name}={written!r}, but "
                f"this run has {name}={loss[name]!r}; resume with the old {name}, or start a new run."
            )
    try:
        beta.load_state_dict(state["beta"])
    except ValueError as error:
        raise ValueError(f"`resume_from_checkpoint` is {str(checkpoint)!r}: {error}") from None
    if schedule is not None and schedule is not beta:
        if "schedule" not in state:
            raise ValueError(
                f"`resume_from_checkpoint` is {str(checkpoint)!r}, which was written without a schedule of "
                f"{schedule.knob!r}, but the divergence {loss.get('divergence')!r} changes it; start a new run."
            )
        schedule.load_state_dict(state["schedule"])
    num_tokens: int = state["num_tokens"]
    return num_tokens


def _read(checkpoint: str | Path) -> dict[str, Any]:
    path = Path(checkpoint) / STATE_FILE
    if not path.is_file():
        raise ValueError(
            f"`resume_from_checkpoint` is {str(checkpoint)!r}, which has no {STATE_FILE}: another trainer wrote it, "
            "or save_only_model was on; start a new run with `model_name_or_path` set to that folder."
        )
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def last_whole_checkpoint(folder: str | Path) -> str | None:
    """Return the last complete checkpoint in a folder, after removing later ones whose writing was interrupted.

    The trainer writes `trainer_state.json` last, so a checkpoint is complete if this file can be read.
    """
    while Path(folder).is_dir() and (last := get_last_checkpoint(str(folder))) is not None:
        try:
            json.loads((Path(last) / "trainer_state.json").read_text())
        except (OSError, ValueError):
            shutil.rmtree(last)
        else:
            return str(last)
    return None
