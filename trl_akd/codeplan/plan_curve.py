"""Curves of pass@k over the number of plans."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..metrics.statistics import Interval, mean_interval, pass_at_k_over_tasks
from .plan_sampling import PlanChoice, PlanSamplingResult

__all__ = ["pass_at_k_by_plans", "plot_plan_curve", "top_k_by_plans"]


def pass_at_k_by_plans(
    results: Sequence[PlanSamplingResult], k: Sequence[int] = (1,), *, confidence: float = 0.95
) -> dict[int, dict[str, Interval]]:
    """Estimate pass@k of the final programs by the number of plans.

    The programs of one choice are samples of one prompt, so the unbiased estimator applies. Programs that could not be
    run are excluded.

    Args:
        results (`Sequence[PlanSamplingResult]`):
            Results of [`PlanSampler.run`] with hidden tests.
        k (`Sequence[int]`, *optional*, defaults to `(1,)`):
            Values of k, up to the number of final programs.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence level of the intervals.

    Returns:
        `dict[int, dict[str, Interval]]`: `pass@k` by number of plans, in ascending order.

    Raises:
        ValueError: If a problem has no hidden tests, or fewer than k programs that were run.
    """
    curve = {}
    for number, choices in _by_num_plans(results).items():
        executed = [[verdict for verdict in choice.verdicts if verdict.status != "infra_error"] for choice in choices]
        counts = [len(verdicts) for verdicts in executed]
        passed = [sum(verdict.passed for verdict in verdicts) for verdicts in executed]
        tasks = [result.id for result in results]
        curve[number] = {
            f"pass@{each}": pass_at_k_over_tasks(counts, passed, each, tasks=tasks, confidence=confidence)
            for each in sorted(set(k))
        }
    return curve


def top_k_by_plans(
    results: Sequence[PlanSamplingResult], k: Sequence[int] = (1,), *, confidence: float = 0.95
) -> dict[int, dict[str, Interval]]:
    """Return the fraction of problems solved by one of the first k final programs, by the number of plans.

    It measures a ranker; for programs in the order of sampling it is a noisy estimate of pass@k. Arguments, result and
    errors are those of [`pass_at_k_by_plans`]; the keys are `top@k`.
    """
    return {
        number: {
            f"top@{each}": mean_interval(
                [float(any(verdict.passed for verdict in choice.verdicts[:each])) for choice in choices], confidence
            )
            for each in sorted(set(k))
        }
        for number, choices in _by_num_plans(results).items()
    }


def plot_plan_curve(curves: Mapping[str, Mapping[int, Mapping[str, Interval]]], path: str | Path) -> None:
    """Plot curves with their intervals, one panel per curve, to an image file.

    Args:
        curves (`Mapping[str, Mapping[int, Mapping[str, Interval]]]`):
            Results of [`pass_at_k_by_plans`] by the title of the panel, such as a difficulty.
        path (`str` or `Path`):
            Path of the image, such as `plans.png`.

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
    figure.supxlabel("number of plans (0: generated without a plan)")
    panels[0].set_ylabel("problems solved")
    panels[0].legend()
    figure.savefig(path, dpi=120)


def _by_num_plans(results: Sequence[PlanSamplingResult]) -> dict[int, list[PlanChoice]]:
    for result in results:
        if not result.verdicts:
            raise ValueError(f"problem {result.id!r} has no results of `hidden_tests`; add them.")
    numbers = list(results[0].choices) if results else []
    return {number: [result.choices[number] for result in results] for number in numbers}
