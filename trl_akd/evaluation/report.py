"""Results for people: a table and a figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .tables import markdown_table

__all__ = ["error_counts", "plot_errors", "results_table", "warnings_about"]


def results_table(name: str, results: Mapping[str, Any]) -> str:
    """Lay out pass@k with its intervals, over all problems and by difficulty, as a Markdown table."""
    found = results["metrics"]
    ks = [key for key in found if key.startswith("pass@") and "_" not in key]
    tasks, solved = len(results["tasks"]), sum(task["correct"] > 0 for task in results["tasks"].values())
    rows = [
        [f"{name}, {results['benchmark']['name']}", *(_interval(found, key) for key in ks), f"{solved} of {tasks}"]
    ]
    if "base" in results:
        rows.append(["  base tests", *(_interval(results["base"], key) for key in ks), ""])
    rows += [
        [f"  {level}", *(_interval(metrics, key) for key in ks), ""]
        for level, metrics in results["difficulties"].items()
    ]
    return markdown_table(["model, benchmark", *ks, "problems solved"], rows)


def error_counts(results: Mapping[str, Any]) -> dict[str, int]:
    """Return how many programs passed, were wrong, and failed by each exception type that occurred, most first."""
    errors = results["errors"]
    types: dict[str, int] = {}
    for row, count in errors.items():
        if "/" in row and count:
            kind = row.partition("/")[0]
            label = f"{kind} (stub)" if row == "AssertionError/stub" else kind
            types[label] = types.get(label, 0) + count
    failed = dict(sorted(types.items(), key=lambda item: -item[1]))
    return {"passed": errors["correct"], "wrong answer": errors["wrong_answer"], **failed}


def warnings_about(results: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each thing that makes a number mean less than it seems to."""
    counts = results["samples"]
    total = counts["samples"]
    remarks = {
        "empty": "completions are empty: the model ended at once; check prompt_style and stop",
        "truncated": "completions were cut off at the length limit; raise max_new_tokens",
        "tests_own_error": "programs failed for a name or module that the tests lack; check the tests and `packages`",
        "infra_error": "programs could not be judged, and count neither for nor against the model",
    }
    return [f"{counts[name]} of {total} {remark}." for name, remark in remarks.items() if counts[name]]


def plot_errors(results: Mapping[str, Any], path: str | Path) -> None:
    """Draw how many programs ended how, as horizontal bars, into an image file.

    Raises:
        ImportError: If matplotlib is not installed (`pip install "trl_akd[plot]"`).
    """
    from matplotlib.figure import Figure

    counts = error_counts(results)
    figure = Figure(figsize=(7, 1 + 0.32 * len(counts)), layout="constrained")
    axes = figure.add_subplot()
    colours = ["tab:green", "tab:orange", *["tab:red"] * (len(counts) - 2)]
    bars = axes.barh(list(counts), list(counts.values()), color=colours)
    axes.bar_label(bars, padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"programs, {results['benchmark']['name']}")
    figure.savefig(path, dpi=120)


def _interval(metrics: Mapping[str, float], key: str) -> str:
    return f"{metrics[key]:.3f} ({metrics[f'{key}_low']:.3f} to {metrics[f'{key}_high']:.3f})"
