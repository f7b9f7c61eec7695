"""Student's t compared with tables, numerical integration and simulation; Holm's method with its definition."""

import math
from itertools import permutations

import numpy as np
import pytest

from trl_akd.metrics.statistics import _t_quantile, _t_tail, holm, paired_mean

QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 7: 2.365, 10: 2.228, 29: 2.045}  # printed tables, 97.5 %


@pytest.mark.parametrize("freedom", QUANTILES)
def test_quantiles_are_those_of_the_tables(freedom: int) -> None:
    assert _t_quantile(0.975, freedom) == pytest.approx(QUANTILES[freedom], abs=5e-4)


@pytest.mark.parametrize("freedom", [1, 2, 3, 6, 11])
@pytest.mark.parametrize("value", [0.0, 0.4, 1.7, 5.0])
def test_tail_is_the_integral_of_the_density(freedom: int, value: float) -> None:
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    points = np.linspace(0.0, value, 20_001)
    density = scale * (1 + points**2 / freedom) ** (-(freedom + 1) / 2)
    assert _t_tail(value, freedom) == pytest.approx(0.5 - np.trapezoid(density, points), abs=1e-7)


def test_interval_and_test_agree() -> None:
    """The interval excludes 0 if and only if the p-value is below one minus the level."""
    generator = np.random.default_rng(0)
    for pairs in (2, 3, 8):
        for _ in range(50):
            first, second = generator.normal(0.7, 1.0, (2, pairs)).tolist()
            found = paired_mean(first, [value - 0.9 for value in second])
            assert found.low <= found.difference <= found.high and found.pairs == pairs
            assert (found.low > 0 or found.high < 0) == (found.p_value < 0.05)


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for differences in generator.normal(0.3, 1.0, (2000, 4)).tolist():
        found = paired_mean(differences, [0.0] * 4, confidence=0.9)
        covered += found.low <= 0.3 <= found.high
    assert covered / 2000 == pytest.approx(0.9, abs=0.02)


def test_equal_differences_have_no_width() -> None:
    assert (paired_mean([0.5, 0.7], [0.5, 0.7]).p_value, paired_mean([1.0, 2.0], [0.5, 1.5]).p_value) == (1.0, 0.0)
    assert paired_mean([1.0, 2.0], [0.5, 1.5]).low == 0.5


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (([1.0], [1.0]), "at least two pairs"),
        (([1.0, 2.0], [1.0]), "give pairs"),
        (([1.0, math.nan], [1.0, 2.0]), r"first\[1\] is nan"),
        (([1.0, 2.0], [1.0, 2.0], 95), "confidence is 95"),
    ],
)
def test_wrong_scores_are_refused(arguments: tuple, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        paired_mean(*arguments)


def test_holm_rejects_as_its_definition_does() -> None:
    """Step down from the smallest p-value and stop at the first that exceeds level / (tests left)."""
    for p_values in permutations([0.003, 0.012, 0.02, 0.04, 0.9]):
        for level in (0.01, 0.05, 0.1, 0.5):
            rejected = set()
            for left, p_value in zip(range(len(p_values), 0, -1), sorted(p_values), strict=True):
                if p_value > level / left:
                    break
                rejected.add(p_value)
            adjusted = holm(p_values)
            assert {p for p, a in zip(p_values, adjusted, strict=True) if a <= level} == rejected


def test_holm_of_none_and_of_wrong_values() -> None:
    assert holm([]) == [] and holm([0.2]) == [0.2]
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, 1.2])
