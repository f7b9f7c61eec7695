"""Figures of docs/benchmarks.md, drawn from the committed results of `bench_training` and `bench_losses`.

python -m tests.benchmarks.figures
"""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trl_akd.charts import interval_chart

from .bench_losses import BASELINE

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
TRAINERS = {"akd": "AKDTrainer", "sft": "SFTTrainer, no teacher", "gkd": "GKDTrainer"}
QUANTITIES = {"seconds": "time", "bytes": "memory"}
LOSSES = {
    "fused, beta 0.3": "fused",
    "Liger chunked JSD": "Liger",
    "TRL chunked divergence": "TRL chunked",
    BASELINE: "TRL GKD",
}


def main() -> None:
    for name, svg in figures(FOLDER).items():
        (FOLDER / name).write_text(svg, encoding="utf-8")


def figures(folder: Path) -> dict[str, str]:
    """Return the figures by file name, from the results in a folder."""
    steps = json.loads((folder / "steps.json").read_text())
    losses = [json.loads(path.read_text()) for path in folder.glob("losses-*.json")]
    losses = [found for found in losses if BASELINE in found["seconds"]]
    losses.sort(key=lambda found: found["case"]["tokens"] * found["case"]["vocab"])
    return {
        "steps.svg": interval_chart(
            "Training steps", "relative to TRL's GKDTrainer", dict(step_ratios(steps)), maximum=1.2
        ),
        "losses.svg": interval_chart(
            "Time of the loss", "time relative to TRL's GKD loss", dict(loss_ratios(losses)), maximum=2.0
        ),
    }


def step_ratios(found: dict[str, list[dict[str, float]]]) -> Iterator[tuple[str, tuple[float, float, float]]]:
    for key, quantity in QUANTITIES.items():
        for name, label in TRAINERS.items():
            ratios = [run[key] / other[key] for run, other in zip(found[name], found["gkd"], strict=True)]
            yield f"{label}: {quantity}", (statistics.median(ratios), min(ratios), max(ratios))


def loss_ratios(cases: list[dict[str, Any]]) -> Iterator[tuple[str, tuple[float, float, float]]]:
    for found in cases:
        size = f"{found['case']['tokens']:,} x {found['case']['vocab']:,}"
        reference = statistics.median(found["seconds"][BASELINE])
        for name, label in LOSSES.items():
            ratios = [seconds / reference for seconds in found["seconds"][name]]
            yield f"{size}: {label}", (statistics.median(ratios), min(ratios), max(ratios))


if __name__ == "__main__":
    main()
