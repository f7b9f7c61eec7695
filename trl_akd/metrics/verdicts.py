"""Scores from execution results, and checks that the results are meaningful."""

from collections.abc import Iterable, Sequence

from trl_akd.execution.result import ExecutionResult
from trl_akd.metrics.statistics import pass_at_k_over_tasks

__all__ = ["UntestedProgramsError", "check_verdicts", "scores"]

_MAX_INFRA_ERRORS = 0.01  # fraction of the programs
_MAX_NAMED = 5


class UntestedProgramsError(RuntimeError):
    """So many programs could not be tested that a score of the others would mislead."""


def check_verdicts(verdicts: Iterable[tuple[str, ExecutionResult]]) -> None:
    """Raise an error if results do not measure the model.

    Args:
        verdicts (`Iterable[tuple[str, ExecutionResult]]`): Name of the test and result of each program.

    Raises:
        ValueError: If a test is not a Python program.
        UntestedProgramsError: If more than 1 % of the programs have infrastructure errors.
    """
    total, unjudged, first = 0, 0, ""
    names: dict[str, None] = {}
    for name, result in verdicts:
        total += 1
        if result.stage == "compile" and result.origin == "test":
            raise ValueError(f"The test {name} is not a Python program ({result.message}); fix it.")
        if result.status == "infra_error":
            first = first if unjudged else result.message
            unjudged += 1
            names[name] = None
    if unjudged > _MAX_INFRA_ERRORS * total:
        listed = ", ".join(list(names)[:_MAX_NAMED])
        listed += f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        raise UntestedProgramsError(
            f"{unjudged} of {total} programs could not be run (test {listed}), and a score of the rest would mislead; "
            f"fix what the first one reports: {first}"
        )


def scores(
    num_samples: Sequence[int], num_correct: Sequence[int], values_of_k: Iterable[int], confidence: float = 0.95
) -> dict[str, float]:
    """Compute pass@k over the tasks with at least k programs without infrastructure errors.

    Args:
        num_samples (`Sequence[int]`): Number of programs run for each task.
        num_correct (`Sequence[int]`): Number of programs that passed for each task.
        values_of_k (`Iterable[int]`): Values of k.
        confidence (`float`, *optional*, defaults to `0.95`): Confidence level of the intervals.

    Returns:
        `dict[str, float]`: `pass@k`, `pass@k_low` and `pass@k_high`, fractions, and `pass@k_tasks`, the number of
        tasks.

    Raises:
        UntestedProgramsError: If no task has k programs without infrastructure errors.
    """
    found: dict[str, float] = {}
    for k in sorted(set(values_of_k)):
        covered = [(n, c) for n, c in zip(num_samples, num_correct, strict=True) if n >= k]
        if not covered:
            raise UntestedProgramsError(
                f"No task has k={k} programs that could be run; run again or choose a smaller k."
            )
        interval = pass_at_k_over_tasks([n for n, _ in covered], [c for _, c in covered], k, confidence=confidence)
        found[f"pass@{k}"] = interval.value
        found[f"pass@{k}_low"] = interval.low
        found[f"pass@{k}_high"] = interval.high
        found[f"pass@{k}_tasks"] = len(covered)
    return found
