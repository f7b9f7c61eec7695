"""What a checkpoint holds of AKD beyond TRL's own files, and whether a run may continue from it."""

from pathlib import Path
from typing import Any

import torch

from ..beta import AdaptiveBeta

STATE_FILE = "akd_state.pt"


def save_state(beta: AdaptiveBeta, num_tokens: int, checkpoint: str | Path) -> None:
    """Write the state of `beta` and the number of tokens read so far into a checkpoint folder."""
    torch.save({"beta": beta.state_dict(), "num_tokens": num_tokens}, Path(checkpoint) / STATE_FILE)


def load_state(beta: AdaptiveBeta, checkpoint: str | Path) -> int:
    """Continue `beta` from a checkpoint folder.

    Returns:
        `int`: Tokens read so far.

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
    num_tokens: int = state["num_tokens"]
    return num_tokens
