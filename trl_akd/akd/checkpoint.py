"""What a checkpoint holds of AKD beyond TRL's own files, and whether a run may continue from it."""

from pathlib import Path
from typing import Any

import torch

from ..beta import AdaptiveBeta

STATE_FILE = "akd_state.pt"
_METHOD = "akd"


def save_state(beta: AdaptiveBeta, checkpoint: str | Path) -> None:
    """Write the state of `beta` into a checkpoint folder."""
    torch.save({"method": _METHOD, "beta": beta.state_dict()}, Path(checkpoint) / STATE_FILE)


def load_state(beta: AdaptiveBeta, checkpoint: str | Path) -> None:
    """Continue `beta` from a checkpoint folder.

    Raises:
        ValueError: If the checkpoint was not written by AKD, or with another β strategy.
    """
    path = Path(checkpoint) / STATE_FILE
    if not path.is_file():
        raise ValueError(
            f"`resume_from_checkpoint` is {str(checkpoint)!r}, which has no {STATE_FILE}: another trainer wrote it, "
            "or save_only_model was on; start a new run with `model_name_or_path` set to that folder."
        )
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    try:
        beta.load_state_dict(state["beta"])
    except ValueError as error:
        raise ValueError(f"`resume_from_checkpoint` is {str(checkpoint)!r}: {error}") from None
