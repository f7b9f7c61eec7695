"""Statistics of benchmarks: the pass@k estimator, its interval over tasks, and a paired test of two models.

A benchmark's tasks count as drawn from a larger population of tasks, and a model's programs for a task as drawn from
the model. Intervals and tests below cover both draws at once, since each works on one score per task.
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
_ROUNDING = 1e-12  # scores closer than this are the same
_BLOCK = 256  # resamples drawn at once, which bounds the memory of a test over thousands of tasks


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its confidence interval.

    Args:
        value (`float`): the estimate.
        low (`float`), high (`float`): the interval's ends; `value` lies between.
        confidence (`float`): share of such intervals that hold the true value, in (0, 1).
    """

    value: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Result of a paired comparison of two models.

    Args:
        difference (`float`): mean of the first model's score minus the second's.
        p_value (`float`): two-sided, in (0, 1]: how often a difference at least as large comes up where neither model
            is the better.
        wins (`int`), losses (`int`), ties (`int`): tasks at which the first model scored higher, lower, the same.
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
        difference (`float`): mean difference.
        low (`float`), high (`float`): ends of the interval.
        p_value (`float`): two-sided p-value of the hypothesis that the mean difference is 0.
        pairs (`int`): number of pairs.
    """

    difference: float
    low: float
    high: float
    p_value: float
    pairs: int


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Estimate, without bias, the chance that at least one of `k` programs solves a task.

    Chen et al., [Evaluating Large Language Models Trained on Code](https://huggingface.co/papers/2107.03374), eq. (1):
    1 - C(n - c, k) / C(n, k) from n samples of which c are correct. Numbers stay whole up to the one division, so that
    nothing overflows or cancels. Eq. (18) of Adaptive Knowledge Distillation for code generation (jos.org.cn 7462)
    prints the same formula but calls n the number of tasks; it is the number of samples of *one* task.

    Args:
        num_samples (`int`): n, programs run for the task.
        num_correct (`int`): c, those that passed.
        k (`int`): programs one may try, from 1 to n.

    Returns:
        `float`: a fraction in [0, 1].

    Raises:
        ValueError: If there are fewer than `k` samples or more correct than samples, or if a count is no whole number.

    Example:
        ```python
        >>> pass_at_k(4, 1, 2)  # three of the six pairs hold the correct program
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
        num_samples (`Sequence[int]`): number of programs run for each task; tasks may differ.
        num_correct (`Sequence[int]`): number of programs that passed for each task.
        k (`int`): programs one may try.
        tasks (`Sequence[str]`, *optional*): names for error messages; positions from 0 where absent.
        confidence (`float`, *optional*, defaults to `0.95`): level of the interval.

    Returns:
        [`Interval`]: fractions in [0, 1].

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
            " give one a task."
        )
    for name, n, c in zip(names, num_samples, num_correct, strict=True):
        _check_counts(f"Task {name!r}", n, c, k)
    return mean_interval([pass_at_k(n, c, k) for n, c in zip(num_samples, num_correct, strict=True)], confidence)


def mean_interval(scores: Sequence[float], confidence: float = 0.95) -> Interval:
    """Give the mean of one score per task with a Wilson interval for as many tasks as the scores are worth.

    Wilson's interval for a proportion p of m tasks holds its level for few tasks and near 0 and 1, where the normal
    interval and the percentile bootstrap shrink to nothing. It presumes 0/1 scores, of variance p(1 - p). Fractional
    scores, as with several samples per task, vary less by some factor, so m is multiplied by that factor (the
    effective sample size of survey statistics). The variance is estimated as if two more tasks had the largest one
    possible, p(1 - p), since a handful of like scores says little. For 0/1 scores it is Wilson's interval exactly.

    Args:
        scores (`Sequence[float]`): one number in [0, 1] per task.
        confidence (`float`, *optional*, defaults to `0.95`): level of the interval, in (0, 1).

    Returns:
        [`Interval`]: within [0, 1].

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
    """Test whether two models differ, by their scores on the same tasks.

    If neither is better, each task's difference is as likely to have the other sign. Where all differences are of one
    size, as of 0/1 scores, the flips are coin tosses and the test is McNemar's, exact. Otherwise signs are flipped at
    random, and p = (1 + flips at least as extreme) / (1 + resamples), which is valid for any number of resamples.

    Args:
        first (`Sequence[float]`): scores of the first model, one per task.
        second (`Sequence[float]`): the second model's, in the same order.
        seed (`int`, *optional*, defaults to `0`): seed of the random flips.
        resamples (`int`, *optional*, defaults to `9999`): number of random flips of all signs.

    Returns:
        [`PairedTest`]: difference, p-value, and tasks won, lost and tied.

    Raises:
        ValueError: If there is no task, the numbers of tasks differ, a score is not finite, or `resamples` is below 1.

    Example:
        ```python
        >>> paired_test([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])  # five tosses alike: 2 / 2**5
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
    """Estimate the mean difference of paired scores, such as two methods' with the same seeds.

    Student's t interval and test, which presume that differences are about normal. For scores of tasks, which are
    not, use [`paired_test`].

    Args:
        first (`Sequence[float]`): scores of the first method, one per pair.
        second (`Sequence[float]`): scores of the second method, in the same order.
        confidence (`float`, *optional*, defaults to `0.95`): level of the interval, in (0, 1).

    Returns:
        [`PairedMean`]: mean of first minus second, its interval and p-value.

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
    """Adjust p-values for several tests by Holm's method, which bounds the chance of any false rejection.

    Args:
        p_values (`Sequence[float]`): p-values of a family of tests, in [0, 1].

    Returns:
        `list[float]`: adjusted p-values in the same order, to compare with the level of the whole family.

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
        teacher (`float`): the teacher's score, as a fraction or in per cent, above 0.
        model (`float`): the model's score in the same unit, at least 0.

    Returns:
        `float`: at most 1, where the model scores 0; 0 where it equals the teacher; below 0 where it is better.

    Raises:
        ValueError: If the teacher scores 0 or either score is negative or not finite.

    Example:
        ```python
        >>> f"{accuracy_loss(teacher=29.3, model=20.7):.3f}"
        '0.294'

        ```
    """
    if _finite("teacher", teacher) <= 0:
        raise ValueError(f"teacher is {teacher}; a loss relative to it needs a teacher that scores above 0.")
    if _finite("model", model) < 0:
        raise ValueError(f"model is {model}; give a score of at least 0.")
    return (teacher - model) / teacher


def _effective_tasks(scores: Sequence[float], mean: float) -> float:
    """Return the number of 0/1 tasks whose mean would vary as little as that of these scores."""
    largest = mean * (1 - mean)
    if largest == 0:
        return len(scores)
    squares = math.fsum((score - mean) ** 2 for score in scores)
    return len(scores) * largest * (len(scores) + _PRIOR_TASKS) / (squares + _PRIOR_TASKS * largest)


def _wilson(proportion: float, tasks: float, z: float) -> tuple[float, float]:
    centre = proportion + z * z / (2 * tasks)
    half_width = z * math.sqrt(proportion * (1 - proportion) / tasks + (z / (2 * tasks)) ** 2)
    total = 1 + z * z / tasks
    return max(0.0, (centre - half_width) / total), min(1.0, (centre + half_width) / total)


def _mcnemar(wins: int, losses: int) -> float:
    tosses = wins + losses
    tail, ways = 0, 1  # ways to lose i tosses, from i = 0
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
    """Return the value below which Student's t falls with a probability of at least one half, by bisection."""
    low, high = 0.0, 1.0
    while _t_tail(high, freedom) > 1 - probability:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_tail(middle, freedom) > 1 - probability else (low, middle)
    return high


def _t_tail(value: float, freedom: int) -> float:
    """Return the probability that Student's t exceeds a value of at least 0, from its finite series.

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
