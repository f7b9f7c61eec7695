"""A figure of what β and the divergences did during training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def plot_curves(log_history: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw β, forward KL and reverse KL over optimiser steps into a PNG file.

    Args:
        log_history (`Sequence[Mapping]`):
            `trainer.state.log_history`, or the entry of that name in `trainer_state.json`.
        path (`str` or `Path`):
            The file.

    Raises:
        ImportError: If matplotlib is not installed (`pip install "trl_akd[plot]"`).
        ValueError: If nothing was logged.
    """
    from matplotlib.figure import Figure

    logs = [log for log in log_history if "kd/beta" in log]
    if not logs:
        raise ValueError("`log_history` holds no 'kd/beta'; train for at least `logging_steps` steps before drawing.")
    steps = [log["step"] for log in logs]
    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for key, label in (("kd/forward_kl", "forward KL"), ("kd/reverse_kl", "reverse KL")):
        above.plot(steps, [log[key] for log in logs], label=label)
    above.set_ylabel("nats per target token")
    above.set_ylim(bottom=0)
    above.legend()
    below.plot(steps, [log["kd/beta"] for log in logs], color="tab:green")
    below.set_ylabel("β, share of reverse KL")
    below.set_ylim(0, 1)
    below.set_xlabel("optimiser step")
    figure.savefig(path, dpi=120)
