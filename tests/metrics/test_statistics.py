"""Estimator, intervals and tests compared with enumeration, exact binomial sums and simulation."""

import math
from itertools import combinations, product
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_akd.metrics.statistics import (
    accuracy_loss,
    mean_interval,
    paired_test,
    pass_at_k,
    pass_at_k_over_tasks,
)


def binomial(n: int, c: int, p: float) -> float:
    return math.comb(n, c) * p**c * (1 - p) ** (n - c)


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_counts_the_subsets_with_a_correct_program(n: int) -> None:
    for c, k in product(range(n + 1), range(1, n + 1)):
        subsets = list(combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@pytest.mark.parametrize(("n", "k"), [(8, 1), (8, 3), (8, 8)])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.7, 1.0])
def test_pass_at_k_is_unbiased(n: int, k: int, p: float) -> None:
    expected = sum(binomial(n, c, p) * pass_at_k(n, c, k) for c in range(n + 1))
    assert expected == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize(("n", "c", "k"), [(200, 3, 100), (1000, 17, 999), (5000, 2, 1500), (5000, 0, 2500)])
def test_pass_at_k_of_many_samples(n: int, c: int, k: int) -> None:
    product_form = 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1))
    assert pass_at_k(n, c, k) == pytest.approx(product_form, rel=1e-9)
    assert pass_at_k(n, 1, 1) == 1 / n


@pytest.mark.parametrize(
    ("counts", "complaint"),
    [
        ((1, 1, 2), r"The task has fewer samples \(1\) than k=2"),
        ((0, 0, 1), "fewer samples"),
        ((2, 3, 1), "num_correct=3 of 2"),
        ((2, -1, 1), "num_correct is -1"),
        ((2, 1, 0), "k is 0"),
        ((2, 1, True), "k is True"),
        ((2.0, 1, 1), "num_samples is 2.0"),
    ],
)
def test_pass_at_k_of_wrong_counts(counts: tuple[int, int, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        pass_at_k(*counts)


def test_pass_at_k_over_tasks_is_the_mean() -> None:
    found = pass_at_k_over_tasks([4, 3, np.int64(2)], [1, 3, 0], 2)
    assert found.value == pytest.approx((0.5 + 1 + 0) / 3)
    assert (found.low, found.high) == pytest.approx((0.128, 0.872), abs=0.05)


def test_pass_at_k_over_tasks_names_the_task() -> None:
    with pytest.raises(ValueError, match=r"Task 'HumanEval/7' has fewer samples \(9\) than k=10"):
        pass_at_k_over_tasks([10, 9], [0, 0], 10, tasks=["HumanEval/6", "HumanEval/7"])
    with pytest.raises(ValueError, match="Task '1' has num_correct=3"):
        pass_at_k_over_tasks([2, 2], [0, 3], 1)
    with pytest.raises(ValueError, match="have 2, 1 and 2 entries"):
        pass_at_k_over_tasks([2, 2], [0], 1)
    with pytest.raises(ValueError, match="give at least one task"):
        pass_at_k_over_tasks([], [], 1)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("tasks", "correct"), [(1, 0), (1, 1), (10, 0), (10, 3), (164, 34), (500, 499)])
def test_interval_of_0_and_1_is_wilsons(tasks: int, correct: int, confidence: float) -> None:
    """The bounds of Wilson's interval are the proportions at which a z-test has that p-value."""
    interval = mean_interval([1.0] * correct + [0.0] * (tasks - correct), confidence)
    p = correct / tasks
    for end in {interval.low, interval.high} - {0.0, 1.0}:
        z = abs(p - end) / math.sqrt(end * (1 - end) / tasks)
        assert math.erf(z / math.sqrt(2)) == pytest.approx(confidence, abs=1e-9)
    assert interval.low == 0 or correct
    assert interval.high == 1 or correct < tasks


@pytest.mark.parametrize("tasks", [20, 164, 500])
def test_interval_covers_a_proportion(tasks: int) -> None:
    intervals = [mean_interval([1.0] * c + [0.0] * (tasks - c)) for c in range(tasks + 1)]
    coverage = [
        sum(binomial(tasks, c, p) for c, interval in enumerate(intervals) if interval.low <= p <= interval.high)
        for p in np.linspace(0.005, 0.995, 199)
    ]
    assert min(coverage) > 0.83  # Wilson's known dips
    assert fmean(coverage) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (3, 3), (0.1, 0.9), (20, 20)])
@pytest.mark.parametrize(("tasks", "k"), [(30, 1), (30, 5), (164, 1)])
def test_interval_covers_fractional_scores(a: float, b: float, tasks: int, k: int) -> None:
    """Difficulties of tasks follow a beta distribution, with ten programs per task."""
    generator = np.random.default_rng(0)
    truth = 1 - math.prod((b + i) / (a + b + i) for i in range(k))
    width = covered = plain = 0.0
    for _ in range(300):
        correct = generator.binomial(10, generator.beta(a, b, tasks))
        interval = pass_at_k_over_tasks([10] * tasks, correct.tolist(), k)
        covered += (interval.low <= truth <= interval.high) / 300
        width += interval.high - interval.low
        plain += 2 * 1.96 * math.sqrt(interval.value * (1 - interval.value) / tasks)
    assert covered > 0.89
    if k == 1 and tasks == 164:
        assert width < 0.85 * plain  # ten samples a task do say more than one


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_interval_contains_the_mean(scores: list[float], confidence: float) -> None:
    interval = mean_interval(scores, confidence)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.value == pytest.approx(fmean(scores))
    assert interval.high > interval.low


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan, math.inf, "1", None])
def test_interval_refuses_values_that_are_not_fractions(score: object) -> None:
    with pytest.raises(ValueError, match=r"scores\[1\] is"):
        mean_interval([0.5, score])  # type: ignore[list-item]


@pytest.mark.parametrize("confidence", [0, 1, 95, math.nan])
def test_interval_refuses_invalid_levels(confidence: float) -> None:
    with pytest.raises(ValueError, match=r"confidence is .*; give"):
        mean_interval([0.5], confidence)


def enumerate_flips(differences: list[float]) -> float:
    """Fraction of all sign flips with a sum at least as large."""
    observed = abs(math.fsum(differences))
    flips = list(product([-1, 1], repeat=len(differences)))
    sums = [abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips]
    return sum(total >= observed - 1e-9 for total in sums) / len(flips)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 0), (6, 2), (3, 3), (2, 8)])
def test_paired_test_of_0_and_1(wins: int, losses: int) -> None:
    first, second = [1] * wins + [0] * losses + [1, 0], [0] * wins + [1] * losses + [1, 0]
    found = paired_test(first, second)
    assert found.method == "exact McNemar"
    assert (found.wins, found.losses, found.ties) == (wins, losses, 2)
    assert found.p_value == pytest.approx(enumerate_flips([1] * wins + [-1] * losses))
    assert found.difference == pytest.approx((wins - losses) / (wins + losses + 2))


def test_paired_test_of_many_tasks() -> None:
    found = paired_test([1] * 3000 + [0] * 2900, [0] * 3000 + [1] * 2900)
    assert found.p_value == pytest.approx(math.erfc(99 / math.sqrt(2 * 5900)), rel=1e-3)  # with Yates's correction


@pytest.mark.parametrize("seed", range(4))
def test_paired_test_of_fractions(seed: int) -> None:
    generator = np.random.default_rng(seed)
    first, second = generator.integers(0, 11, (2, 10)) / 10
    found = paired_test(first, second, seed=seed, resamples=20_000)
    assert found.method == "sign-flip permutation"
    assert found.p_value == pytest.approx(enumerate_flips((first - second).tolist()), abs=0.015)
    assert found == paired_test(first, second, seed=seed, resamples=20_000)
    assert paired_test(second, first, seed=seed).difference == pytest.approx(-found.difference)


def test_paired_test_keeps_its_level() -> None:
    generator = np.random.default_rng(0)
    rejected = 0
    for _ in range(400):
        difficulty = generator.beta(0.5, 0.5, 40)
        first, second = generator.binomial(10, difficulty, (2, 40)) / 10
        rejected += paired_test(first, second, resamples=199).p_value <= 0.05
    assert 0.02 < rejected / 400 < 0.085


def test_paired_test_never_claims_certainty() -> None:
    found = paired_test(np.linspace(0.5, 1, 60), np.linspace(0, 0.4, 60), resamples=99)
    assert found.p_value == 0.01


def test_paired_test_ignores_rounding_errors() -> None:
    assert paired_test([0.1 + 0.2, 1], [0.3, 0]).ties == 1


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        ([1], [1, 0], "have 1 and 2 scores"),
        ([], [], "are empty"),
        ([1, math.nan], [1, 0], r"first\[1\] is nan"),
        ([1, 0], [None, 0], r"second\[0\] is None"),
    ],
)
def test_paired_test_of_wrong_scores(first: list[float], second: list[float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        paired_test(first, second)


@pytest.mark.parametrize(("teacher", "model", "loss"), [(0.5, 0.25, 0.5), (50, 50, 0), (40, 60, -0.5), (3, 0, 1)])
def test_accuracy_loss(teacher: float, model: float, loss: float) -> None:
    assert accuracy_loss(teacher, model) == loss


@pytest.mark.parametrize(
    ("teacher", "model", "complaint"),
    [(0, 1, "teacher is 0;"), (-1, 1, "teacher is -1"), (1, -1, "model is -1"), (math.nan, 1, "teacher is nan")],
)
def test_accuracy_loss_of_wrong_scores(teacher: float, model: float, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        accuracy_loss(teacher, model)
