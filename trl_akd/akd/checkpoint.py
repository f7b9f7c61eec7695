"""The file that AKD adds to a checkpoint: writing it, reading it, and checking that a run can resume from it."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import get_last_checkpoint

from ..beta import AdaptiveBeta

STATE_FILE = "akd_state.pt"


def save_state(beta: AdaptiveBeta, num_tokens: int, checkpoint: str | Path, loss: Mapping[str, Any]) -> None:
    """Write the state of `beta`, the number of tokens read so far and the settings of the loss into a checkpoint."""
    state = {"beta": beta.state_dict(), "num_tokens": num_tokens, "loss": dict(loss)}
    torch.save(state, Path(checkpoint) / STATE_FILE)


def check_loss(loss: Mapping[str, Any], checkpoint: str | Path) -> None:
    """Check that a checkpoint was written with the same settings of the loss, where it has them.

    Raises:
        ValueError: If one of them differs.
    """
    for name, written in _read(checkpoint).get("loss", {}).items():
        if loss.get(name) != written:
            raise ValueError(
                f"`resume_from_checkpoint` is {str(checkpoint)!r}, which was written with {name}={written!r}, but "
                f"this run has {name}={loss.get(name)!r}; resume with the old {name}, or start a new run."
            )


def load_state(beta: AdaptiveBeta, checkpoint: str | Path) -> int:
    """Continue `beta` from a checkpoint folder.

    Returns:
        `int`: Tokens read so far.

    Raises:
        ValueError: If the checkpoint was not written by AKD, or with another β strategy.
    """
    state = _read(checkpoint)
    try:
        beta.load_state_dict(state["beta"])
    except ValueError as error:
        raise ValueError(f"`resume_from_checkpoint` is {str(checkpoint)!r}: {error}") from None
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
    """Return the last checkpoint in a folder, after removing those whose writing was interrupted.

    The trainer writes `trainer_state.json` last, so a checkpoint in which that can be read is whole.
    """
    while Path(folder).is_dir() and (last := get_last_checkpoint(str(folder))) is not None:
        try:
            json.loads((Path(last) / "trainer_state.json").read_text())
        except (OSError, ValueError):
            shutil.rmtree(last)
        else:
            return str(last)
    return None
