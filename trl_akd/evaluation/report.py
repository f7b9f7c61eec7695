"""Tables and figures of results, of plan sampling, and of comparisons between models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ..codeplan.plan_curve import plot_plan_curve
from ..hub.markdown import markdown_table
from ..metrics.statistics import Interval, accuracy_loss, paired_test, pass_at_k

__all__ = [
    "compare",
    "comparison_table",
    "error_counts",
    "plan_curve_table",
    "plan_remarks",
    "plot_errors",
    "plot_plans",
    "results_table",
    "warnings_about",
]


def results_table(name: str, results: Mapping[str, Any]) -> str:
    """Return pass@k with its intervals, over all problems and by difficulty, as a Markdown table."""
    found = results["metrics"]
    ks = [key for key in found if key.startswith("pass@") and "_" not in key]
    tasks, solved = len(results["tasks"]), sum(task["correct"] > 0 for task in results["tasks"].values())
    rows = [[f"{name}, {results['benchmark']['name']}", *_intervals(found, ks), f"{solved} of {tasks}"]]
    if "base" in results:
        rows.append(["  base tests", *_intervals(results["base"], ks), ""])
    rows += [[f"  {level}", *_intervals(metrics, ks), ""] for level, metrics in results["difficulties"].items()]
    return markdown_table(["model, benchmark", *ks, "problems solved"], rows)


def error_counts(results: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of programs that passed, were wrong, and failed by exception type, in descending order."""
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
    """Return warnings about the results, one sentence each."""
    counts = results["samples"]
    total = counts["samples"]
    remarks = {
        "empty": "completions are empty; check prompt_style and stop",
        "truncated": "completions were cut off at the length limit; raise max_new_tokens",
        "tests_own_error": "programs failed because the tests lack a name or module; check the tests and `packages`",
        "infra_error": "programs could not be run and are excluded from the scores",
    }
    return [f"{counts[name]} of {total} {remark}." for name, remark in remarks.items() if counts[name]]


def plot_errors(results: Mapping[str, Any], path: str | Path) -> None:
    """Plot the error counts as horizontal bars into an image file.

    Raises:
        ImportError: If matplotlib is not installed (`pip install "trl_akd[plot]"`).
    """
    from matplotlib.figure import Figure

    counts = error_counts(results)
    figure = Figure(figsize=(7, 1 + 0.32 * len(counts)), layout="constrained")
    axes = figure.add_subplot()
    colors = ["tab:green", "tab:orange", *["tab:red"] * (len(counts) - 2)]
    bars = axes.barh(list(counts), list(counts.values()), color=colors)
    axes.bar_label(bars, padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"programs, {results['benchmark']['name']}")
    figure.savefig(path, dpi=120)


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _intervals(metrics: Mapping[str, float], keys: Sequence[str]) -> list[str]:
    return [_interval(metrics[key], metrics[f"{key}_low"], metrics[f"{key}_high"]) for key in keys]


def compare(runs: Mapping[str, Mapping[str, Any]], *, k: int = 1, seed: int = 0) -> list[dict[str, Any]]:
    """Compare results on the same problems.

    Args:
        runs (`Mapping`):
            Results by name, with the teacher's first.
        k (`int`, *optional*, defaults to `1`):
            Value of k for pass@k.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the permutation test, unless the test is exact.

    Returns:
        `list[dict]`: One row per model with `model`, `pass@k`, its interval from `low` to `high`, `accuracy_loss`
        relative to the first model (`None` if that scores 0), and the p-values of paired tests against the first model
        (`p_first`) and against the row above (`p_above`), which are `None` in the first row.

    Raises:
        ValueError: If problems or execution settings differ, or one of the runs has no pass@k.
    """
    first_name, first = next(iter(runs.items()))
    for name, results in runs.items():
        _check_comparable(first_name, first, name, results, k)
    shared = [task for task in first["tasks"] if all(run["tasks"][task]["samples"] >= k for run in runs.values())]
    scores = {
        name: [pass_at_k(run["tasks"][task]["samples"], run["tasks"][task]["correct"], k) for task in shared]
        for name, run in runs.items()
    }
    teacher = first["metrics"][f"pass@{k}"]
    rows: list[dict[str, Any]] = []
    for name, results in runs.items():
        found = results["metrics"]
        above = rows[-1]["model"] if rows else None
        rows.append(
            {
                "model": name,
                f"pass@{k}": found[f"pass@{k}"],
                "low": found[f"pass@{k}_low"],
                "high": found[f"pass@{k}_high"],
                "accuracy_loss": accuracy_loss(teacher, found[f"pass@{k}"]) if teacher > 0 else None,
                "p_first": paired_test(scores[first_name], scores[name], seed=seed).p_value if above else None,
                "p_above": paired_test(scores[above], scores[name], seed=seed).p_value if above else None,
            }
        )
    return rows


def comparison_table(rows: Sequence[Mapping[str, Any]], *, k: int = 1) -> str:
    """Return the rows of [`compare`] as a Markdown table."""
    first = rows[0]["model"]
    return markdown_table(
        ["model", f"pass@{k}", "interval", "accuracy loss", f"p, against {first}", "p, against the row above"],
        [
            [
                row["model"],
                f"{row[f'pass@{k}']:.3f}",
                f"{row['low']:.3f} to {row['high']:.3f}",
                "" if row["accuracy_loss"] is None else f"{row['accuracy_loss']:.1%}",
                *("" if row[name] is None else f"{row[name]:.2g}" for name in ("p_first", "p_above")),
            ]
            for row in rows
        ],
    )


def _check_comparable(
    first_name: str, first: Mapping[str, Any], name: str, results: Mapping[str, Any], k: int
) -> None:
    if f"pass@{k}" not in results["metrics"]:
        raise ValueError(f"{name} has no pass@{k}; evaluate it with `--k {k}` and as many samples.")
    if results["benchmark"]["fingerprint"] != first["benchmark"]["fingerprint"]:
        raise ValueError(
            f"{name} was evaluated on {results['benchmark']['name']} ({results['benchmark']['fingerprint']}) and "
            f"{first_name} by {first['benchmark']['name']} ({first['benchmark']['fingerprint']}); compare results "
            "on the same problems."
        )
    if list(results["tasks"]) != list(first["tasks"]):
        raise ValueError(f"{name} and {first_name} were not evaluated on the same problems; evaluate them again.")
    for setting, value in first["execution"].items():
        if results["execution"][setting] != value:
            raise ValueError(
                f"{name} was evaluated with {setting}={results['execution'][setting]!r} and {first_name} with "
                f"{value!r}; evaluate one of them again, from the same samples."
            )


Curve: TypeAlias = Mapping[str, Mapping[str, Sequence[float]]]


def plan_curve_table(plans: Mapping[str, Any]) -> str:
    """Return pass@k by the number of plans, over all problems and by difficulty, as a Markdown table."""
    curve: Curve = plans["curve"]
    names = list(next(iter(curve.values())))
    rows = []
    for number in curve:
        title = {"0": "no plan", "1": "1 plan"}.get(number, f"{number} plans")
        rows += [
            [title, *(_interval(*found[number][name][:3]) for name in names)]
            for title, found in [
                (title, curve),
                *((f"  {level}", found) for level, found in plans["difficulties"].items()),
            ]
        ]
    return markdown_table(["plans", *names], rows)


def plan_remarks(results: Mapping[str, Any]) -> list[str]:
    """Return remarks about plan sampling, one sentence each."""
    plans, problems = results["plans"], len(results["tasks"])
    remarks = []
    if plans["judged_by_public_tests"]:
        remarks.append(
            f"For {plans['judged_by_public_tests']} of {problems} problems, the public tests, which select the plan, "
            "are also the hidden tests, so these scores are biased upwards."
        )
    if plans["without_public_tests"]:
        remarks.append(
            f"{plans['without_public_tests']} of {problems} problems have no public tests; for them, the most likely "
            "plan was selected."
        )
    if plans["too_long"]:
        remarks.append(f"{plans['too_long']} plans exceed the model's positions and count as not solved.")
    if plans["written_by"] == "server":
        remarks.append(
            "The server generates plans as it generates programs; a plan head, if the model has one, is not used."
        )
    return remarks


def plot_plans(plans: Mapping[str, Any], path: str | Path) -> None:
    """Plot pass@k by the number of plans, over all problems and by difficulty, into an image file.

    Raises:
        ImportError: If matplotlib is not installed (`pip install "trl_akd[plot]"`).
    """
    curves: dict[str, Curve] = {"all problems": plans["curve"], **plans["difficulties"]}
    plot_plan_curve({title: _points(curve) for title, curve in curves.items()}, path)


def _points(curve: Curve) -> dict[int, dict[str, Interval]]:
    return {
        int(number): {name: Interval(*values) for name, values in metrics.items()} for number, metrics in curve.items()
    }
