"""TAID's schedule of the share t of the teacher."""

import math

import pytest
import torch

from trl_akd.losses import Interpolation

LOSSES = [2.0, 1.5, 1.6, 0.9, 0.9, 3.0, 0.5, 0.4]


def by_hand(losses, t_start=0.4, t_end=1.0, step_size=5e-4, momentum=0.99):
    t, m, values = t_start, 0.0, [t_start]
    for step, loss in enumerate(losses):
        if step:
            m = momentum * m + (1 - momentum) * max(-1.0, (losses[step - 1] - loss) / losses[step - 1])
        line = t_start + (t_end - t_start) * (step + 1) / len(losses)
        t = min(t_end, max(line, t + step_size / (1 + math.exp(-m)) * (1 - t)))
        values.append(t)
    return values


def run(schedule, losses=LOSSES, begin=0, end=8):
    values = [schedule.value] if begin == 0 else []
    for step in range(begin, end):
        values.append(schedule.update({"divergence": losses[step]}, (step + 1) / len(losses)))
        assert schedule.value == values[-1]
    return values


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"step_size": 0.0},
        {"step_size": 0.3, "momentum": 0.5},
        {"step_size": 0.3, "momentum": 0.0},
        {"t_start": 0.0, "t_end": 0.5, "step_size": 1.0},
        {"t_start": 0.7, "t_end": 0.7},
        {"t_start": 1.0, "t_end": 1.0, "step_size": 0.0},
        {"t_start": 0.0, "t_end": 0.01},
    ],
)
def test_equals_the_recurrence(settings):
    schedule = Interpolation(**settings)
    values = run(schedule)
    assert values == pytest.approx(by_hand(LOSSES, **settings), abs=1e-15)
    assert values == sorted(values)
    assert values[-1] == schedule.evaluation_value == settings.get("t_end", 1.0)


def test_falling_loss_exceeds_linear_growth():
    falling, rising = (run(Interpolation(step_size=0.3, momentum=0.1), losses) for losses in (LOSSES, LOSSES[::-1]))
    line = run(Interpolation(step_size=0.0))
    assert all(
        one > other >= least - 1e-12 for one, other, least in zip(falling[2:5], rising[2:5], line[2:5], strict=True)
    )


def test_loss_of_zero_or_infinity():
    schedule = Interpolation(step_size=0.5, momentum=0.0)
    for loss in (0.0, 0.0, 1e-30, 1e300, 1.0):
        schedule.update({"divergence": loss}, 0.1)
        assert 0.4 <= schedule.value <= 1.0


@pytest.mark.parametrize("first", [5.8e-9, -5.8e-9, 1e-30, 0.0])
def test_schedule_stays_adaptive_after_a_first_loss_of_roundoff(first):
    """With `t_start=0` the first divergence is that of the student from itself."""
    schedule = Interpolation(t_start=0.0, step_size=0.1)
    previous = schedule.update({"divergence": first}, 1e-6)
    for step in range(50):
        value = schedule.update({"divergence": 2.0 - 0.01 * step}, 1e-6)
        assert value - previous == pytest.approx(0.05 * (1 - previous), rel=0.01)
        previous = value


def test_state_and_reset(tmp_path):
    whole, interrupted, resumed = (Interpolation(step_size=0.3, momentum=0.5) for _ in range(3))
    expected = run(whole)
    begun = run(interrupted, end=3)
    torch.save(interrupted.state_dict(), tmp_path / "state")
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert resumed.value == begun[-1] == resumed.reset()
    assert begun + run(resumed, begin=3) == expected
    assert resumed.begin_training() == 0.4
    assert run(resumed) == expected


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"t_start": -0.1}, r"t_start is -0\.1; give a number in \[0, 1\]"),
        ({"t_end": "1"}, "t_end is '1'"),
        ({"step_size": 2}, "step_size is 2"),
        ({"momentum": True}, "momentum is True"),
        ({"t_start": 0.6, "t_end": 0.5}, r"t_end is 0\.5, below t_start, 0\.6"),
        ({"t_start": 0.0, "t_end": 0.0}, "t_end is 0, with which the loss is 0 throughout; give a value above 0"),
        ({"t_start": 0, "t_end": False}, "t_end is False"),
        ({"step_size": 0.0, "momentum": 0.5}, r"momentum is 0\.5, which has no effect with step_size 0; leave it out"),
        ({"step_size": 0, "momentum": 0}, "momentum is 0, which has no effect with step_size 0"),
        (
            {"t_start": 0.5, "t_end": 0.5, "step_size": 0.1},
            r"step_size is 0\.1, which has no effect with t_start equal",
        ),
        ({"t_start": 1, "momentum": 0.5}, r"momentum is 0\.5, which has no effect with t_start equal to t_end, 1\.0"),
        ({"momentum": 1.0}, r"momentum is 1\.0, with which the running mean never changes"),
    ],
)
def test_invalid_settings(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        Interpolation(**settings)
