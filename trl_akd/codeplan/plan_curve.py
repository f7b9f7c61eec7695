"""What more plans to choose from are worth: pass@k against their number."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..metrics.statistics import Interval, mean_interval, pass_at_k_over_tasks
from .plan_sampling import PlanChoice, PlanSamplingResult

__all__ = ["pass_at_k_by_plans", "plot_plan_curve", "top_k_by_plans"]


def pass_at_k_by_plans(
    results: Sequence[PlanSamplingResult], k: Sequence[int] = (1,), *, confidence: float = 0.95
) -> dict[int, dict[str, Interval]]:
    """Estimate pass@k of the final programs for each number of plans to choose from.

    The programs of one choice are samples of one prompt, so the unbiased estimator applies. Programs that could not be
    judged count neither for nor against it.

    Args:
        results (`Sequence[PlanSamplingResult]`):
            From [`PlanSampler.run`], with hidden tests.
        k (`Sequence[int]`, *optional*, defaults to `(1,)`):
            The k of pass@k, up to the number of final programs.
        confidence (`float`, *optional*, defaults to `0.95`):
            Level of the intervals.

    Returns:
        `dict[int, dict[str, Interval]]`: `pass@k` by number of plans, ascending.

    Raises:
        ValueError: If a problem has no hidden tests, or fewer than k programs that were judged.
    """
    curve = {}
    for number, choices in _by_number(results).items():
        judged = [[verdict for verdict in choice.verdicts if verdict.status != "infra_error"] for choice in choices]
        counts = [len(verdicts) for verdicts in judged]
        passed = [sum(verdict.passed for verdict in verdicts) for verdicts in judged]
        tasks = [result.id for result in results]
        curve[number] = {
            f"pass@{each}": pass_at_k_over_tasks(counts, passed, each, tasks=tasks, confidence=confidence)
            for each in sorted(set(k))
        }
    return curve


def top_k_by_plans(
    results: Sequence[PlanSamplingResult], k: Sequence[int] = (1,), *, confidence: float = 0.95
) -> dict[int, dict[str, Interval]]:
    """Tell how many problems one of the first k final programs solves, for each number of plans to choose from.

    This is what a ranker is worth: of programs in the order that they were sampled in, it is a noisy pass@k.

    Args, returns and raises are those of [`pass_at_k_by_plans`]; the keys are `top@k`.
    """
    return {
        number: {
            f"top@{each}": mean_interval(
                [float(any(verdict.passed for verdict in choice.verdicts[:each])) for choice in choices], confidence
            )
            for each in sorted(set(k))
        }
        for number, choices in _by_number(results).items()
    }


def plot_plan_curve(curves: Mapping[str, Mapping[int, Mapping[str, Interval]]], path: str | Path) -> None:
    """Draw curves with their intervals, one panel each, into an image file.

    Args:
        curves (`Mapping[str, Mapping[int, Mapping[str, Interval]]]`):
            From [`pass_at_k_by_plans`], by what they are of, such as a difficulty.
        path (`str` or `Path`):
            The file, such as `plans.png`.

    Raises:
        ImportError: If matplotlib is not installed (`pip install "trl_akd[plot]"`).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 4 * len(curves), 4), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (title, curve) in zip(panels, curves.items(), strict=True):
        numbers = list(curve)
        for name in curve[numbers[0]]:
            points = [curve[number][name] for number in numbers]
            [line] = axes.plot(numbers, [point.value for point in points], marker="o", label=name)
            axes.fill_between(
                numbers,
                [point.low for point in points],
                [point.high for point in points],
                color=line.get_color(),
                alpha=0.15,
            )
        axes.set_title(title)
        axes.set_xticks(numbers)
        axes.set_ylim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("plans to choose from (0: written without a plan)")
    panels[0].set_ylabel("problems solved")
    panels[0].legend()
    figure.savefig(path, dpi=120)


def _by_number(results: Sequence[PlanSamplingResult]) -> dict[int, list[PlanChoice]]:
    for result in results:
        if not result.verdicts:
            raise ValueError(f"problem {result.id!r} has no `hidden_tests` that could have judged it; add them.")
    numbers = list(results[0].choices) if results else []
    return {number: [result.choices[number] for result in results] for number in numbers}
