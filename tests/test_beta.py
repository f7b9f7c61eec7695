"""β compared with Eq. 13-17 and Algorithm 1, computed in plain floats."""

import io
import math
from collections import Counter
from typing import get_args

import pytest
import torch

from trl_akd import AdaptiveBeta
from trl_akd.beta import BetaStrategy


def regularizer(name: str, beta: float, eps: float = 1e-4) -> float:
    u = 2 * abs(beta - 0.5)
    if name == "eq13":
        return -math.log(eps + u) - math.log(eps + 1 - u)
    return -math.log(eps + u) - math.log(eps + 2 * abs(1 - beta - 0.5))


def adam_trajectory(start: float, gradient, steps: int, lr: float = 0.01) -> list[float]:
    """Adam as in Kingma and Ba, Algorithm 1, with the clamp of AKD's Algorithm 1, line 18."""
    beta, first, second, values = start, 0.0, 0.0, []
    for t in range(1, steps + 1):
        g = gradient(beta)
        first = 0.9 * first + 0.1 * g
        second = 0.999 * second + 0.001 * g * g
        beta -= lr * (first / (1 - 0.9**t)) / (math.sqrt(second / (1 - 0.999**t)) + 1e-8)
        beta = min(max(beta, 0.0), 1.0)
        values.append(beta)
    return values


@pytest.mark.parametrize("start", [0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ["eq13", "alg1"])
@pytest.mark.parametrize(("strategy", "sign"), [("akd", -1), ("m2", -1), ("m1", 1)])
def test_trajectory_follows_the_paper(start, name, strategy, sign):
    forward_kl, reverse_kl, strength, h = 1.3, 0.7, 0.5, 1e-7

    def gradient(beta: float) -> float:
        slope = (regularizer(name, beta + h) - regularizer(name, beta - h)) / (2 * h)
        return sign * (reverse_kl - forward_kl) + strength * slope

    # Within one basin the finite difference is exact enough to follow forty steps.
    expected = adam_trajectory(start, gradient, 40)
    beta = AdaptiveBeta(strategy, [start], regularizer=name, regularization=strength)
    found = [beta.step(forward_kl, reverse_kl) for _ in range(40)]
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("start", "difference", "equilibrium"),
    [(0.1, -1, 0.191), (0.1, 0, 0.25), (0.1, 1, 0.309), (0.6, -1, 0.691), (0.6, 0, 0.75), (0.6, 1, 0.809)],
)
def test_equilibrium_of_eq13(start, difference, equilibrium):
    beta = AdaptiveBeta(initial_values=[start])
    for _ in range(400):
        beta.step(1.0, 1.0 + difference)
    assert beta.value == pytest.approx(equilibrium, abs=5e-4)


@pytest.mark.parametrize(("difference", "end"), [(-0.2, 0.0), (0.2, 1.0)])
def test_eq16_does_not_regularize(difference, end):
    beta = AdaptiveBeta("m2", [0.4], regularizer="eq16")
    for _ in range(300):
        beta.step(1.0, 1.0 + difference)
    assert beta.value == end


@pytest.mark.parametrize("start", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["eq13", "alg1"])
def test_extremes_are_finite_and_in_range(start, name):
    beta = AdaptiveBeta("m2", [start], regularizer=name)
    for _ in range(50):
        assert 0.0 <= beta.step(50.0, 0.0) <= 1.0


def test_fixed_and_random_never_step():
    for strategy in ("fixed", "random_epoch"):
        beta = AdaptiveBeta(strategy, [0.3])
        assert {beta.step(2.0, 1.0) for _ in range(5)} == {0.3}


def test_strategies_that_keep_their_draw():
    for strategy in ("fixed", "m1", "m2"):
        beta = AdaptiveBeta(strategy)
        beta.step(1.0, 2.0)
        before = beta.value
        assert beta.reset() == before


@pytest.mark.parametrize("strategy", ["akd", "random_epoch"])
def test_epochs_draw_evenly_and_agree_between_ranks(strategy):
    ranks = [AdaptiveBeta(strategy, seed=3) for _ in range(2)]
    draws = [ranks[0].value]
    for _ in range(400):
        first, second = (beta.reset() for beta in ranks)
        assert first == second
        draws.append(first)
    counts = Counter(draws)
    assert set(counts) == {0.1, 0.6}
    assert 150 < counts[0.1] < 250


def test_seeds_differ():
    histories = {tuple(_history(seed)) for seed in range(8)}
    assert len(histories) > 4


def _history(seed: int) -> list[float]:
    beta = AdaptiveBeta(seed=seed)
    return [beta.reset() for _ in range(10)]


def test_reset_clears_the_optimizer_state():
    used, fresh = AdaptiveBeta(seed=1), AdaptiveBeta(seed=1)
    for _ in range(7):
        used.step(3.0, 0.5)
    used.reset()
    fresh.reset()
    assert [used.step(1.0, 1.2) for _ in range(3)] == [fresh.step(1.0, 1.2) for _ in range(3)]


MEANS = {"forward_kl": 1.1, "reverse_kl": 0.9}


@pytest.mark.parametrize("ends", [(0.1, 0.9), (0.75, 0.25), (0.3, 0.3), (0.0, 1.0)])
def test_a_linear_beta_depends_on_progress_alone(ends: tuple[float, float]):
    beta = AdaptiveBeta("linear", ends, seed=7)
    values = [beta.value]
    for step in range(1, 11):
        values.append(beta.update({"forward_kl": step, "reverse_kl": 0.0}, progress=step / 10))
        if step == 5:
            before = beta.value
            assert beta.reset() == before, "an epoch does not begin it again"
    first, last = ends
    assert values == pytest.approx([first + (last - first) * step / 10 for step in range(11)], abs=1e-12)
    assert beta.begin_training() == first


def test_a_linear_beta_resumes_at_its_value():
    saved, resumed = (AdaptiveBeta("linear", [0.1, 0.9]) for _ in range(2))
    saved.update(MEANS, progress=0.4)
    resumed.load_state_dict(saved.state_dict())
    assert resumed.value == pytest.approx(0.42)
    assert resumed.update(MEANS, progress=0.5) == saved.update(MEANS, progress=0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("values", [[0.1], [0.1, 0.5, 0.9]])
def test_a_linear_beta_has_two_ends(values: list[float]):
    with pytest.raises(ValueError, match=f"`initial_values` has {len(values)} values; give two"):
        AdaptiveBeta("linear", values)


@pytest.mark.parametrize("strategy", ["akd", "m1", "m2", "fixed", "random_epoch"])
def test_resume_is_exact(strategy):
    unbroken, saved = AdaptiveBeta(strategy, seed=5), AdaptiveBeta(strategy, seed=5)
    for beta in (unbroken, saved):
        beta.reset()
        for _ in range(9):
            beta.step(1.1, 0.9)
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    resumed = AdaptiveBeta(strategy, seed=5)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        assert [resumed.step(0.8, 1.0) for _ in range(5)] == [unbroken.step(0.8, 1.0) for _ in range(5)]
        assert resumed.reset() == unbroken.reset()


def test_state_of_another_strategy_is_refused():
    with pytest.raises(ValueError, match=r"'m2'.*'akd'"):
        AdaptiveBeta("akd").load_state_dict(AdaptiveBeta("m2").state_dict())


def test_each_training_starts_the_same():
    used, fresh = AdaptiveBeta(seed=3), AdaptiveBeta(seed=3)
    used.reset()
    used.step(1.0, 3.0)
    used.begin_training()
    assert [used.step(1.0, 1.2), used.reset()] == [fresh.step(1.0, 1.2), fresh.reset()]


def test_tensors_are_accepted_and_not_changed():
    forward_kl = torch.tensor(1.0, requires_grad=True)
    beta = AdaptiveBeta()
    beta.step(forward_kl, torch.tensor(2.0))
    assert forward_kl.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("strategy", get_args(BetaStrategy))
def test_non_finite_divergence_does_not_change_beta(strategy, name, bad):
    beta = AdaptiveBeta(strategy)
    before = beta.value
    with pytest.raises(ValueError, match=f"{name}={bad}.*; check the logits of teacher and student") as error:
        beta.update({**MEANS, name: bad}, progress=0.5)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="NaN or infinity"):
        beta.step(**{**MEANS, name: bad})
    assert beta.value == before
    assert math.isfinite(beta.update(MEANS, progress=0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "m4"}, "`strategy` is 'm4'"),
        ({"regularizer": "eq14"}, "`regularizer` is 'eq14'"),
        ({"initial_values": ()}, "`initial_values` is empty"),
        ({"initial_values": 0.3}, "`initial_values` is 0.3; give a list"),
        ({"initial_values": None}, "`initial_values` is None; give a list"),
        ({"initial_values": "0.1, 0.6"}, "`initial_values` is '0.1, 0.6'; give a list"),
        ({"initial_values": ["0.1"]}, "`initial_values` contains '0.1'"),
        ({"initial_values": [[0.1]]}, r"`initial_values` contains \[0.1\]"),
        ({"initial_values": [float("nan")]}, "`initial_values` contains nan"),
        ({"learning_rate": None}, "`learning_rate` is None"),
        ({"regularization": "0.5"}, "`regularization` is '0.5'"),
        ({"eps": "small"}, "`eps` is 'small'"),
        ({"initial_values": (0.1, 1.5)}, r"contains 1.5.*\[0, 1\]"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0"),
        ({"regularization": -1.0}, "`regularization` is -1.0"),
        ({"eps": 0.0}, "`eps` is 0.0"),
    ],
)
def test_errors_name_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveBeta(**arguments)
