"""Reports of cycles: metrics, a table and a figure."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .feedback import Feedback, feedback_metrics
from .records import LEVELS, Question
from .verification import Verification

__all__ = [
    "CYCLES",
    "HEADER",
    "CycleReport",
    "cycle_cells",
    "cycle_table",
    "make_report",
    "plot_cycles",
    "read_reports",
    "recorded_reports",
    "tracked_metrics",
    "write_reports",
]

CYCLES = "cycles.json"


@dataclass(frozen=True)
class CycleReport:
    """Metrics of a cycle, which counts from 0; mappings without values are empty."""

    cycle: int
    questions: int
    origins: Mapping[str, int]  # number of questions by origin
    pairs: int  # correct answers with faults
    faults: Mapping[str, int]  # by kind, `own` for those of the student
    without_fault: int  # correct answers without faults
    dropped: Mapping[str, int]  # answers by reason
    feedback: Mapping[str, float]  # see `feedback_metrics`
    held_out: Mapping[str, float]  # pass@1, pass@1_low, pass@1_high and pass@1_tasks
    new: Mapping[str, int]  # questions requested (`asked`) and `kept`, and dropped by reason

    def as_item(self) -> dict[str, Any]:
        """Return the fields that are known after the evaluation of the student."""
        return {name: value for name, value in asdict(self).items() if name not in ("cycle", "new")}


def make_report(
    cycle: int,
    questions: Sequence[Question],
    verified: Verification,
    feedback: Sequence[Feedback],
    held_out: Mapping[str, float],
) -> CycleReport:
    """Return the report of a cycle."""
    faults = Counter(fault.kind or "own" for pair in verified.pairs for fault in pair.faults)
    return CycleReport(
        cycle=cycle,
        questions=len(questions),
        origins=dict(Counter(question.origin for question in questions)),
        pairs=len(verified.pairs),
        faults=dict(sorted(faults.items())),
        without_fault=len(verified.without_fault),
        dropped=dict(sorted(verified.dropped.items())),
        feedback=feedback_metrics(feedback),
        held_out=held_out,
        new={},
    )


def tracked_metrics(report: CycleReport) -> dict[str, float]:
    """Return the figures of a cycle that are logged, by name."""
    feedback = {f"iterkd/{name}": report.feedback[name] for name in LEVELS}
    return {
        "iterkd/cycle": report.cycle + 1,
        "iterkd/questions": report.questions,
        "iterkd/pairs": report.pairs,
        "iterkd/without_fault": report.without_fault,
        "iterkd/dropped": sum(report.dropped.values()),
        "iterkd/feedback": report.feedback["score"],
        **feedback,
        **{f"eval_{name}": value for name, value in report.held_out.items()},
    }


HEADER = ("cycle", "questions", "pairs", "dropped", "feedback", "easy / medium / hard", "held-out pass@1", "new")


def cycle_table(reports: Sequence[CycleReport]) -> str:
    """Return the cycles as a Markdown table."""
    lines = [HEADER, ["---", *["---:"] * (len(HEADER) - 1)], *map(cycle_cells, reports)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def read_reports(folder: Path) -> list[CycleReport]:
    """Read the reports that `write_reports` wrote to `cycles.json`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged.
    """
    path = folder / CYCLES
    try:
        return [CycleReport(**row) for row in json.loads(path.read_text())]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); run `trl-akd iterkd` again to write it.") from error


def recorded_reports(items: Sequence[Mapping[str, Any]]) -> list[CycleReport]:
    """Return the reports among the items of a ledger, which do not have the numbers of new questions."""
    rows = [dict(item) for item in items if item["kind"] == "report"]
    return [CycleReport(**{name: row[name] for name in row.keys() - {"kind", "id"}}, new={}) for row in rows]


def write_reports(reports: Sequence[CycleReport], folder: Path) -> None:
    """Write `cycles.json`, `cycles.md` and, if matplotlib is installed, `cycles.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CYCLES).write_text(json.dumps([asdict(report) for report in reports], indent=2) + "\n")
    (folder / "cycles.md").write_text(f"{cycle_table(reports)}\n")
    if reports:
        with suppress(ImportError):
            plot_cycles(reports, folder / "cycles.png")


def plot_cycles(reports: Sequence[CycleReport], path: str | Path) -> None:
    """Plot the mean feedback, pass@1 on the held-out questions and the levels of the questions over the cycles.

    Raises:
        ImportError: If matplotlib is not installed (`pip install "trl_akd[plot]"`).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    scores, levels = figure.subplots(1, 2)
    cycles = [report.cycle + 1 for report in reports]
    feedback = [report.feedback["score"] for report in reports]
    scores.plot(cycles, feedback, marker="o", clip_on=False, label="mean feedback")
    measured = [report for report in reports if report.held_out]
    if measured:
        numbers = [report.cycle + 1 for report in measured]
        passed = [report.held_out["pass@1"] for report in measured]
        [line] = scores.plot(numbers, passed, marker="s", clip_on=False, label="held-out pass@1")
        low, high = ([report.held_out[f"pass@1_{end}"] for report in measured] for end in ("low", "high"))
        scores.fill_between(numbers, low, high, color=line.get_color(), alpha=0.15)
    bottom = [0.0] * len(reports)
    for level, color in zip(LEVELS, ("#7fbf7b", "#f1c40f", "#c0392b"), strict=True):
        shares = [report.feedback[level] for report in reports]
        levels.bar(cycles, shares, bottom=bottom, label=level, color=color, width=0.6)
        bottom = [below + share for below, share in zip(bottom, shares, strict=True)]
    for axes, label in ((scores, "score, fraction"), (levels, "share of questions")):
        axes.set_xticks(cycles)
        axes.set_ylim(0, 1)
        axes.set_xlabel("cycle")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize="small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    figure.savefig(path, dpi=120)


def cycle_cells(report: CycleReport) -> list[str]:
    """Return the cells of a cycle under `HEADER`."""
    measured = ""
    if report.held_out:
        measured = "{pass@1:.2f} ({pass@1_low:.2f} to {pass@1_high:.2f})".format(**report.held_out)
    return [
        str(report.cycle + 1),
        str(report.questions),
        f"{report.pairs} + {report.without_fault}",
        str(sum(report.dropped.values())),
        f"{report.feedback['score']:.3f}",
        " / ".join(f"{report.feedback[level]:.2f}" for level in LEVELS),
        measured,
        str(report.new.get("kept", "")),
    ]
