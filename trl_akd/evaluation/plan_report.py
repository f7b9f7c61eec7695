"""What plan sampling found, for people: a table, a figure, and what to keep in mind."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ..codeplan.plan_curve import plot_plan_curve
from ..metrics.statistics import Interval
from .tables import markdown_table

__all__ = ["plan_curve_table", "plan_remarks", "plot_plans"]

Curve: TypeAlias = Mapping[str, Mapping[str, Sequence[float]]]


def plan_curve_table(plans: Mapping[str, Any]) -> str:
    """Lay out pass@k by the number of plans, over all problems and by difficulty, as a Markdown table."""
    curve: Curve = plans["curve"]
    names = list(next(iter(curve.values())))
    rows = []
    for number in curve:
        title = {"0": "no plan", "1": "1 plan"}.get(number, f"{number} plans")
        rows += [
            [title, *(_interval(found[number][name]) for name in names)]
            for title, found in [
                (title, curve),
                *((f"  {level}", found) for level, found in plans["difficulties"].items()),
            ]
        ]
    return markdown_table(["to choose from", *names], rows)


def plan_remarks(results: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each thing that makes the number of plans mean less than it seems to."""
    plans, problems = results["plans"], len(results["tasks"])
    remarks = []
    if plans["judged_by_public_tests"]:
        remarks.append(
            f"For {plans['judged_by_public_tests']} of {problems} problems the public tests, which choose the plan, "
            "are those that judge, so the choice has seen what counts."
        )
    if plans["without_public_tests"]:
        remarks.append(
            f"{plans['without_public_tests']} of {problems} problems have no public tests; for them the likeliest "
            "plan was chosen."
        )
    if plans["too_long"]:
        remarks.append(f"{plans['too_long']} plans exceed the model's positions and count as not solved.")
    if plans["written_by"] == "server":
        remarks.append("The server writes plans as it does programs; a plan head, if the model has one, is not used.")
    return remarks


def plot_plans(plans: Mapping[str, Any], path: str | Path) -> None:
    """Draw pass@k by the number of plans, over all problems and by difficulty, into an image file.

    Raises:
        ImportError: If matplotlib is not installed (`pip install "trl_akd[plot]"`).
    """
    curves: dict[str, Curve] = {"all problems": plans["curve"], **plans["difficulties"]}
    plot_plan_curve({title: _points(curve) for title, curve in curves.items()}, path)


def _points(curve: Curve) -> dict[int, dict[str, Interval]]:
    return {
        int(number): {name: Interval(*values) for name, values in metrics.items()} for number, metrics in curve.items()
    }


def _interval(values: Sequence[float]) -> str:
    value, low, high, _ = values
    return f"{value:.3f} ({low:.3f} to {high:.3f})"
