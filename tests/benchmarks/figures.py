"""Figures of docs/benchmarks.md, drawn from the committed results of `bench_training` and `bench_losses`.

    python -m tests.benchmarks.bench_training --json docs/benchmarks/steps.json
    python -m tests.benchmarks.bench_losses --json docs/benchmarks/losses-SIZE.json
    python -m tests.benchmarks.figures

Bars are medians, and lines ranges. What was not measured is left out.
"""

import json
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trl_akd.charts import interval_chart

from .bench_losses import BASELINE

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
BASELINE_STEP = "gkd"
TRAINERS = {"akd": "AKDTrainer", "sft": "SFTTrainer, no teacher", BASELINE_STEP: "GKDTrainer"}
QUANTITIES = {"seconds": "time", "bytes": "memory"}
LOSSES = {
    "fused, beta 0.3": "fused",
    "Liger chunked JSD": "Liger",
    "TRL chunked divergence": "TRL chunked",
    BASELINE: "TRL GKD",
}

Interval = tuple[float, float, float]  # median, minimum, maximum


def main() -> None:
    for name, svg in figures(FOLDER).items():
        (FOLDER / name).write_text(svg, encoding="utf-8")


def figures(folder: Path) -> dict[str, str]:
    """Return the figures by file name, from the results in a folder."""
    [steps] = _read(folder, "steps.json") or [{}]
    losses = _read(folder, "losses-*.json")
    charts = {
        "steps.svg": ("Training steps", "relative to TRL's GKDTrainer", dict(step_ratios(steps))),
        "losses.svg": (
            "Time of the loss, by number of tokens and vocabulary",
            "time relative to TRL's GKD loss",
            dict(loss_ratios(losses)),
        ),
    }
    return {
        name: interval_chart(title, label, points, maximum=max(high for _, _, high in points.values()))
        for name, (title, label, points) in charts.items()
        if points
    }


def step_ratios(found: dict[str, list[dict[str, float]]]) -> Iterator[tuple[str, Interval]]:
    """Yield time and memory of steps, relative to the baseline in the same round."""
    for key, quantity in QUANTITIES.items():
        for name, label in TRAINERS.items():
            if name in found and BASELINE_STEP in found:
                runs = zip(found[name], found[BASELINE_STEP], strict=True)
                yield f"{label}: {quantity}", _interval(run[key] / other[key] for run, other in runs)


def loss_ratios(cases: Iterable[dict[str, Any]]) -> Iterator[tuple[str, Interval]]:
    """Yield times of losses, relative to the median of the baseline at the same size, the smallest size first."""
    measured = [found for found in cases if BASELINE in found["seconds"]]
    for found in sorted(measured, key=lambda found: found["case"]["tokens"] * found["case"]["vocab"]):
        size = f"{found['case']['tokens']:,} tokens x {found['case']['vocab']:,}"
        reference = statistics.median(found["seconds"][BASELINE])
        for name, label in LOSSES.items():
            if name in found["seconds"]:
                yield f"{size}: {label}", _interval(seconds / reference for seconds in found["seconds"][name])


def _read(folder: Path, pattern: str) -> list[Any]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(pattern))]


def _interval(values: Iterable[float]) -> Interval:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[0], ordered[-1]


if __name__ == "__main__":
    main()
