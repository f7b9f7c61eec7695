"""Statistics of benchmarks: pass@k with its confidence interval, and paired tests of two models.

The tasks of a benchmark are treated as a sample of a larger population of tasks, and the programs of a task as samples
of the model. Intervals and tests use one score per task and therefore account for both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from statistics import NormalDist, fmean
from typing import Literal

__all__ = [
    "Interval",
    "PairedMean",
    "PairedTest",
    "accuracy_loss",
    "holm",
    "mean_interval",
    "paired_mean",
    "paired_test",
    "pass_at_k",
    "pass_at_k_over_tasks",
]

_PRIOR_TASKS = 2  # see mean_interval
_ROUNDING = 1e-12  # scores that differ by less are equal
_BLOCK = 256  # resamples per batch, which limits the memory of a test with thousands of tasks


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its confidence interval.

    Args:
        value (`float`): Estimate.
        low (`float`), high (`float`): Bounds of the interval, which contains `value`.
        confidence (`float`): Confidence level, in (0, 1).
    """

    value: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Result of a paired comparison of two models.

    Args:
        difference (`float`): Mean score of the first model minus that of the second.
        p_value (`float`): Two-sided p-value, in (0, 1]: probability of a difference at least as large if neither model
        is
            better.
        wins (`int`), losses (`int`), ties (`int`): Numbers of tasks on which the first model scored higher, lower and
        equal.
        method (`str`): `"exact McNemar"` or `"sign-flip permutation"`.
    """

    difference: float
    p_value: float
    wins: int
    losses: int
    ties: int
    method: Literal["exact McNemar", "sign-flip permutation"]


@dataclass(frozen=True, slots=True)
class PairedMean:
    """Mean of paired differences with Student's t interval and test.

    Args:
        difference (`float`): Mean difference.
        low (`float`), high (`float`): Bounds of the interval.
        p_value (`float`): Two-sided p-value of the hypothesis that the mean difference is 0.
        pairs (`int`): Number of pairs.
    """

    difference: float
    low: float
    high: float
    p_value: float
    pairs: int


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Compute the unbiased estimate of the probability that at least one of `k` programs solves a task.

    Chen et al., [Evaluating Large Language Models Trained on Code](https://huggingface.co/papers/2107.03374), eq. (1):
    1 - C(n - c, k) / C(n, k) from n samples of which c are correct. It is computed with integers up to the single
    division, so it neither overflows nor cancels. Eq. (18) of Adaptive Knowledge Distillation for code generation
    (jos.org.cn 7462) has the same formula but calls n the number of tasks; it is the number of samples of *one* task.

    Args:
        num_samples (`int`): Number of programs run for the task, n.
        num_correct (`int`): Number of programs that passed, c.
        k (`int`): Number of programs drawn, from 1 to n.

    Returns:
        `float`: Fraction in [0, 1].

    Raises:
        ValueError: If there are fewer than `k` samples or more correct than samples, or if a count is not a whole
        number.

    Example:
        ```python
        >>> pass_at_k(4, 1, 2)  # three of the six pairs include the correct program
        0.5

        ```
    """
    _check_counts("The task", num_samples, num_correct, k)
    subsets = math.comb(num_samples, k)
    return (subsets - math.comb(num_samples - num_correct, k)) / subsets


def pass_at_k_over_tasks(
    num_samples: Sequence[int],
    num_correct: Sequence[int],
    k: int,
    *,
    tasks: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Average [`pass_at_k`] over tasks, with a confidence interval by [`mean_interval`].

    Args:
        num_samples (`Sequence[int]`): Number of programs run for each task, which may differ.
        num_correct (`Sequence[int]`): Number of programs that passed for each task.
        k (`int`): Number of programs drawn per task.
        tasks (`Sequence[str]`, *optional*): Names for error messages. Defaults to positions from 0.
        confidence (`float`, *optional*, defaults to `0.95`): Confidence level of the interval.

    Returns:
        [`Interval`]: Fractions in [0, 1].

    Raises:
        ValueError: If a task has fewer than `k` samples, which the message names; if there is no task; or if the
            sequences differ in length.

    Example:
        ```python
        >>> found = pass_at_k_over_tasks([1] * 164, [1] * 34 + [0] * 130, k=1)  # AKD's 20.7 % on HumanEval
        >>> f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
        '0.207 [0.152, 0.276]'

        ```
    """
    names = [str(index) for index in range(len(num_samples))] if tasks is None else tasks
    if not len(num_samples) == len(num_correct) == len(names):
        raise ValueError(
            f"num_samples, num_correct and tasks have {len(num_samples)}, {len(num_correct)} and {len(names)} entries;"
            " give one per task."
        )
    for name, n, c in zip(names, num_samples, num_correct, strict=True):
        _check_counts(f"Task {name!r}", n, c, k)
    return mean_interval([pass_at_k(n, c, k) for n, c in zip(num_samples, num_correct, strict=True)], confidence)


def mean_interval(scores: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean of scores, one per task, with a Wilson interval for the effective number of tasks.

    Wilson's interval for a proportion p of m tasks has the right coverage for few tasks and near 0 and 1, where the
    normal interval and the percentile bootstrap shrink to zero width. It assumes 0/1 scores, whose variance is p(1 -
    p). The variance of fractional scores, as with several samples per task, is smaller, so m is multiplied by the
    inverse ratio of the variances (the effective sample size of survey statistics). The variance is estimated as if
    two more tasks had the largest possible variance, p(1 - p), since a few equal scores are weak evidence. For 0/1
    scores the result is exactly Wilson's interval.

    Args:
        scores (`Sequence[float]`): Score of each task, in [0, 1].
        confidence (`float`, *optional*, defaults to `0.95`): Confidence level of the interval, in (0, 1).

    Returns:
        [`Interval`]: Bounds in [0, 1].

    Raises:
        ValueError: If there is no score, one is outside [0, 1], or `confidence` is outside (0, 1).

    Example:
        ```python
        >>> round(mean_interval([0.0] * 10).high, 3)  # ten failures do not prove that every task fails
        0.278

        ```
    """
    if len(scores) == 0:
        raise ValueError("scores is empty; give at least one task.")
    for index, score in enumerate(scores):
        if not 0 <= _finite(f"scores[{index}]", score) <= 1:
            raise ValueError(f"scores[{index}] is {score}; give fractions between 0 and 1.")
    if not 0 < _finite("confidence", confidence) < 1:
        raise ValueError(f"confidence is {confidence}; give a number between 0 and 1, such as 0.95.")
    mean = fmean(scores)
    low, high = _wilson(mean, _effective_tasks(scores, mean), NormalDist().inv_cdf((1 + confidence) / 2))
    return Interval(mean, min(low, mean), max(high, mean), confidence)


def paired_test(
    first: Sequence[float], second: Sequence[float], *, seed: int = 0, resamples: int = 9_999
) -> PairedTest:
    """Test whether two models differ, given their scores on the same tasks.

    If neither model is better, the difference on each task has either sign with equal probability. If all differences
    have the same size, as with 0/1 scores, this is the exact McNemar test. Otherwise the signs are flipped at random,
    and p = (1 + number of flips at least as extreme) / (1 + resamples), which is valid for any number of resamples.

    Args:
        first (`Sequence[float]`): Scores of the first model, one per task.
        second (`Sequence[float]`): Scores of the second model, in the same order.
        seed (`int`, *optional*, defaults to `0`): Seed of the random flips.
        resamples (`int`, *optional*, defaults to `9999`): Number of random flips of all signs.

    Returns:
        [`PairedTest`]: Difference, p-value, and numbers of wins, losses and ties.

    Raises:
        ValueError: If there is no task, the numbers of tasks differ, a score is not finite, or `resamples` is below 1.

    Example:
        ```python
        >>> paired_test([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])  # five wins: 2 / 2**5
        PairedTest(difference=0.8333333333333334, p_value=0.0625, wins=5, losses=0, ties=1, method='exact McNemar')

        ```
    """
    if len(first) != len(second):
        raise ValueError(f"first and second have {len(first)} and {len(second)} scores; give both for the same tasks.")
    if len(first) == 0:
        raise ValueError("first and second are empty; give at least one task.")
    _whole("resamples", resamples, least=1)
    differences = [
        _finite(f"first[{index}]", a) - _finite(f"second[{index}]", b)
        for index, (a, b) in enumerate(zip(first, second, strict=True))
    ]
    moved = [difference for difference in differences if abs(difference) > _ROUNDING]
    wins = sum(difference > 0 for difference in moved)
    alike = all(abs(abs(difference) - abs(moved[0])) <= _ROUNDING for difference in moved)
    return PairedTest(
        difference=fmean(differences),
        p_value=_mcnemar(wins, len(moved) - wins) if alike else _sign_flips(moved, seed, resamples),
        wins=wins,
        losses=len(moved) - wins,
        ties=len(differences) - len(moved),
        method="exact McNemar" if alike else "sign-flip permutation",
    )


def paired_mean(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> PairedMean:
    """Estimate the mean difference of paired scores, such as those of two methods with the same seeds.

    Uses Student's t interval and test, which assume approximately normal differences. For scores of tasks, use
    [`paired_test`].

    Args:
        first (`Sequence[float]`): Scores of the first method, one per pair.
        second (`Sequence[float]`): Scores of the second method, in the same order.
        confidence (`float`, *optional*, defaults to `0.95`): Confidence level of the interval, in (0, 1).

    Returns:
        [`PairedMean`]: Mean of first minus second, its interval and p-value.

    Raises:
        ValueError: If there are fewer than two pairs, the numbers of scores differ, a score is not finite, or
            `confidence` is outside (0, 1).

    Example:
        ```python
        >>> found = paired_mean([0.6, 0.7, 0.65], [0.4, 0.45, 0.5])
        >>> f"{found.difference:.2f} [{found.low:.2f}, {found.high:.2f}], p = {found.p_value:.3f}"
        '0.20 [0.08, 0.32], p = 0.020'

        ```
    """
    if len(first) != len(second):
        raise ValueError(f"first and second have {len(first)} and {len(second)} scores; give pairs.")
    if len(first) < 2:
        raise ValueError(f"first and second have {len(first)} scores; give at least two pairs.")
    if not 0 < _finite("confidence", confidence) < 1:
        raise ValueError(f"confidence is {confidence}; give a number between 0 and 1, such as 0.95.")
    differences = [
        _finite(f"first[{index}]", a) - _finite(f"second[{index}]", b)
        for index, (a, b) in enumerate(zip(first, second, strict=True))
    ]
    mean, freedom = fmean(differences), len(differences) - 1
    error = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / freedom / len(differences))
    if error <= _ROUNDING:
        return PairedMean(mean, mean, mean, 1.0 if abs(mean) <= _ROUNDING else 0.0, len(differences))
    half_width = _t_quantile((1 + confidence) / 2, freedom) * error
    p_value = 2 * _t_tail(abs(mean) / error, freedom)
    return PairedMean(mean, mean - half_width, mean + half_width, p_value, len(differences))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple tests by Holm's method, which controls the family-wise error rate.

    Args:
        p_values (`Sequence[float]`): p-values of a family of tests, in [0, 1].

    Returns:
        `list[float]`: Adjusted p-values in the same order, to compare with the significance level of the whole family.

    Raises:
        ValueError: If a p-value is outside [0, 1].

    Example:
        ```python
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

        ```
    """
    for index, p_value in enumerate(p_values):
        if not 0 <= _finite(f"p_values[{index}]", p_value) <= 1:
            raise ValueError(f"p_values[{index}] is {p_value}; give numbers between 0 and 1.")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def accuracy_loss(teacher: float, model: float) -> float:
    """Return the relative accuracy loss of a model, (teacher - model) / teacher.

    It is the 精度损失 of Adaptive Knowledge Distillation for code generation (jos.org.cn 7462).

    Args:
        teacher (`float`): Score of the teacher, as a fraction or in percent, above 0.
        model (`float`): Score of the model in the same unit, at least 0.

    Returns:
        `float`: At most 1, if the model scores 0; 0 if it equals the teacher; negative if it is better.

    Raises:
        ValueError: If the teacher scores 0 or either score is negative or not finite.

    Example:
        ```python
        >>> f"{accuracy_loss(teacher=29.3, model=20.7):.3f}"
        '0.294'

        ```
    """
    if _finite("teacher", teacher) <= 0:
        raise ValueError(f"teacher is {teacher}; the relative loss requires a teacher's score above 0.")
    if _finite("model", model) < 0:
        raise ValueError(f"model is {model}; give a score of at least 0.")
    return (teacher - model) / teacher


def _effective_tasks(scores: Sequence[float], mean: float) -> float:
    """Return the number of 0/1 tasks whose mean would have the same variance as that of these scores."""
    largest = mean * (1 - mean)
    if largest == 0:
        return len(scores)
    squares = math.fsum((score - mean) ** 2 for score in scores)
    return len(scores) * largest * (len(scores) + _PRIOR_TASKS) / (squares + _PRIOR_TASKS * largest)


def _wilson(proportion: float, tasks: float, z: float) -> tuple[float, float]:
    center = proportion + z * z / (2 * tasks)
    half_width = z * math.sqrt(proportion * (1 - proportion) / tasks + (z / (2 * tasks)) ** 2)
    total = 1 + z * z / tasks
    return max(0.0, (center - half_width) / total), min(1.0, (center + half_width) / total)


def _mcnemar(wins: int, losses: int) -> float:
    tosses = wins + losses
    tail, ways = 0, 1  # number of ways to get i losses, from i = 0
    for i in range(min(wins, losses) + 1):
        tail += ways
        ways = ways * (tosses - i) // (i + 1)
    return min(1.0, 2 * tail / (1 << tosses))


def _sign_flips(differences: Sequence[float], seed: int, resamples: int) -> float:
    import numpy as np

    moved = np.array(differences)
    observed = abs(moved.sum()) - _ROUNDING * len(moved)
    generator = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, resamples, _BLOCK):
        signs = generator.choice([-1.0, 1.0], size=(min(_BLOCK, resamples - start), len(moved)))
        extreme += int((abs(signs @ moved) >= observed).sum())
    return (1 + extreme) / (1 + resamples)


def _t_quantile(probability: float, freedom: int) -> float:
    """Return a quantile, of at least one half, of Student's t distribution, by bisection."""
    low, high = 0.0, 1.0
    while _t_tail(high, freedom) > 1 - probability:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_tail(middle, freedom) > 1 - probability else (low, middle)
    return high


def _t_tail(value: float, freedom: int) -> float:
    """Return the probability that Student's t exceeds a nonnegative value, from its finite series.

    [Abramowitz and Stegun](https://personal.math.ubc.ca/~cbm/aands/page_948.htm), equations 26.7.3 and 26.7.4.
    """
    angle = math.atan(value / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    term = math.cos(angle) if freedom % 2 else 1.0
    total = 0.0
    for index in range(1 if freedom % 2 else 0, freedom - 1, 2):
        total += term
        term *= square * (index + 1) / (index + 2)
    inside = 2 / math.pi * (angle + sine * total) if freedom % 2 else sine * total
    return max(0.0, (1 - inside) / 2)


def _check_counts(task: str, num_samples: int, num_correct: int, k: int) -> None:
    _whole("k", k, least=1)
    _whole("num_samples", num_samples, least=0)
    _whole("num_correct", num_correct, least=0)
    if num_samples < k:
        raise ValueError(f"{task} has fewer samples ({num_samples}) than k={k}; generate more or choose a smaller k.")
    if num_correct > num_samples:
        raise ValueError(f"{task} has num_correct={num_correct} of {num_samples} samples; give at most as many.")


def _whole(name: str, value: object, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is {value!r}; give a whole number of at least {least}.")


def _finite(name: str, value: object) -> float:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; give a finite number.")
    return float(value)
