"""Figure of β and the divergences during training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def plot_curves(log_history: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw forward KL, reverse KL and, if it was logged, β over optimiser steps into a PNG file.

    Args:
        log_history (`Sequence[Mapping]`):
            `trainer.state.log_history`, or the entry of that name in `trainer_state.json`.
        path (`str` or `Path`):
            The file.

    Raises:
        ImportError: If matplotlib is not installed (`pip install "trl_akd[plot]"`).
        ValueError: If `log_history` has no training step.
    """
    from matplotlib.figure import Figure

    logs = [log for log in log_history if "kd/forward_kl" in log]
    if not logs:
        raise ValueError("`log_history` has no 'kd/forward_kl'; train for at least `logging_steps` steps first.")
    steps, has_beta = [log["step"] for log in logs], "kd/beta" in logs[0]
    figure = Figure(figsize=(7, 5), layout="constrained")
    above, *others = figure.subplots(1 + has_beta, 1, sharex=True, squeeze=False)[:, 0]
    for key, label in (("kd/forward_kl", "forward KL"), ("kd/reverse_kl", "reverse KL")):
        above.plot(steps, [log[key] for log in logs], label=label)
    above.set_ylabel("nats per target token")
    above.set_ylim(bottom=0)
    above.legend()
    for below in others:
        below.plot(steps, [log["kd/beta"] for log in logs], color="tab:green")
        below.set_ylabel("β, share of reverse KL")
        below.set_ylim(0, 1)
    figure.axes[-1].set_xlabel("optimiser step")
    figure.savefig(path, dpi=120)
