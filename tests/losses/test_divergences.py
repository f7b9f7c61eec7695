"""The rules of the registry: against loops, against TRL, and the properties of every divergence."""

import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from trl.experimental.gkd import GKDTrainer

from tests import oracles
from trl_akd.losses import divergences, forward_kl, reverse_kl, shared_vocabulary

# Rule, knobs, and the oracle from the teacher's probabilities p and the student's q.
RULES = {
    "forward_kl": ("forward_kl", {}, lambda p, q: oracles.divergence(p, q)),
    "reverse_kl": ("reverse_kl", {}, lambda p, q: oracles.divergence(q, p)),
    "akd": (
        "akd",
        {"beta": 0.3},
        lambda p, q: 0.7 * oracles.divergence(p, q) + 0.3 * oracles.divergence(q, p),
    ),
    **{
        f"jsd-{beta}": ("jsd", {"beta": beta}, lambda p, q, beta=beta: oracles.generalized_jsd(p, q, beta))
        for beta in (0.0, 0.2, 0.5, 1.0)
    },
    **{
        f"skew_kl-{alpha}": ("skew_kl", {"alpha": alpha}, lambda p, q, alpha=alpha: oracles.skew_kl(p, q, alpha))
        for alpha in (0.0, 0.1, 0.6)
    },
    "skew_reverse_kl": ("skew_reverse_kl", {"alpha": 0.3}, lambda p, q: oracles.skew_kl(q, p, 0.3)),
}
SOME_RULES = ("forward_kl", "akd", "jsd-0.2", "skew_kl-0.1")
EVERY_RULE = pytest.mark.parametrize(("name", "knobs", "oracle"), RULES.values(), ids=RULES)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(2, 2, 5, 11, generator=generator, dtype=torch.float64)


def test_every_rule_is_tested():
    # The example in the module's docstring registers a rule too, where it runs in the same process.
    built_in = {name for name in divergences.names() if hasattr(divergences, name)}
    assert built_in == {name for name, _, _ in RULES.values()}


def test_every_rule_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "methods" / "akd.md").read_text()
    for name in {name for name, _, _ in RULES.values()}:
        [row] = re.findall(rf"^\| `{name}`.*$", page, re.MULTILINE)
        rule = divergences.get(name)
        assert rule.paper in row
        for knob, default in rule.knobs.items():
            assert name == "akd" or f"`{knob}: {default}`" in row


def test_two_words_by_hand():
    student, teacher = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 1.0]).log()
    assert forward_kl(student, teacher).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert reverse_kl(student, teacher).item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@EVERY_RULE
def test_equals_loops(name, knobs, oracle, logits, temperature):
    student, teacher = logits
    found = divergences.get(name)(student, teacher, temperature=temperature, **knobs)
    assert found.shape == (2, 5)
    for index in torch.cartesian_prod(torch.arange(2), torch.arange(5)):
        q, p = (oracles.probabilities(side[*index].tolist(), temperature) for side in (student, teacher))
        assert found[*index].item() == pytest.approx(oracle(p, q), abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_jsd_is_that_of_trl(logits, beta, temperature):
    student, teacher = logits[0].requires_grad_(), logits[1]
    ours = divergences.get("jsd")(student, teacher, beta=beta, temperature=temperature).sum()
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=temperature, reduction="sum")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student) for loss in (ours, theirs)), rtol=1e-9, atol=1e-12)


def test_directions_are_each_others_mirror(logits):
    torch.testing.assert_close(forward_kl(*logits), reverse_kl(*logits.flip(0)))


@EVERY_RULE
def test_zero_only_between_equals(name, knobs, oracle, logits):
    student, teacher = logits
    divergence = divergences.get(name)
    assert divergence(student, student, **knobs).abs().max() < 1e-14
    assert divergence(student, teacher, **knobs).min() > 0.001


@EVERY_RULE
def test_a_constant_on_all_logits_changes_nothing(name, knobs, oracle, logits):
    student, teacher = logits
    divergence = divergences.get(name)
    torch.testing.assert_close(
        divergence(student + 7.0, teacher - 3.0, **knobs), divergence(student, teacher, **knobs)
    )


@EVERY_RULE
def test_the_order_of_the_vocabulary_changes_nothing(name, knobs, oracle, logits):
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    divergence = divergences.get(name)
    torch.testing.assert_close(divergence(*logits[..., order], **knobs), divergence(*logits, **knobs))


@EVERY_RULE
def test_gradient(name, knobs, oracle, logits):
    student, teacher = logits
    rule = divergences.get(name)
    assert torch.autograd.gradcheck(
        lambda s, t: rule(s, t, temperature=1.7, **knobs), [student.requires_grad_(), teacher.clone()]
    )


@EVERY_RULE
def test_words_beyond_the_shared_vocabulary_do_not_count(name, knobs, oracle, logits):
    student, teacher = logits
    divergence = divergences.get(name)
    expected = divergence(student[..., :8], teacher[..., :8], **knobs)
    torch.testing.assert_close(divergence(student[..., :8], teacher, **knobs), expected)
    torch.testing.assert_close(divergence(student, teacher[..., :8], **knobs), expected)
    assert [cut.shape[-1] for cut in shared_vocabulary(student, teacher[..., :8])] == [8, 8]


@EVERY_RULE
def test_words_impossible_for_both_add_nothing(name, knobs, oracle, logits):
    student, teacher = (torch.nn.functional.pad(side, (0, 3), value=-math.inf) for side in logits)
    student.requires_grad_()
    loss = divergences.get(name)(student, teacher, **knobs)
    torch.testing.assert_close(loss, divergences.get(name)(*logits, **knobs))
    loss.sum().backward()
    assert student.grad.isfinite().all()
    assert (student.grad[..., 11:] == 0).all()


def test_words_impossible_for_one():
    sure, unsure = torch.tensor([0.0, -math.inf]), torch.tensor([0.0, 0.0])
    assert forward_kl(unsure, sure).item() == pytest.approx(math.log(2))
    assert reverse_kl(sure, unsure).item() == pytest.approx(math.log(2))
    assert forward_kl(sure, unsure) == math.inf
    assert reverse_kl(unsure, sure) == math.inf


@EVERY_RULE
def test_halves_are_computed_in_float32(name, knobs, oracle, logits):
    student, teacher = logits.bfloat16()
    divergence = divergences.get(name)
    near = divergence(student, (student + 0.01).bfloat16(), **knobs)
    assert near.dtype == torch.float32
    assert near.min() > -1e-6
    exact = divergence(student.double(), teacher.double(), **knobs)
    torch.testing.assert_close(divergence(student, teacher, **knobs), exact.float(), rtol=1e-5, atol=1e-6)


@pytest.fixture
def registered(monkeypatch):
    """Register a rule for one test only."""
    monkeypatch.setattr(divergences, "_RULES", dict(divergences._RULES))
    return divergences.register


def test_a_rule_from_outside(registered, logits):
    @registered("mine", paper="https://example.org")
    def total_variation(student_logits, teacher_logits, power=1.0):
        return 0.5 * (student_logits.softmax(-1) - teacher_logits.softmax(-1)).abs().pow(power).sum(-1)

    rule = divergences.get("mine")
    assert "mine" in divergences.names()
    assert (rule.paper, rule.knobs) == ("https://example.org", {"power": 1.0})
    torch.testing.assert_close(rule(*logits, power=2.0), total_variation(*logits, power=2.0))
    rule.check({"power": 2.0})


def test_a_rule_may_take_any_knob(registered, logits):
    @registered("mine")
    def scaled(student_logits, teacher_logits, **knobs):
        return knobs.get("factor", 1.0) * forward_kl(student_logits, teacher_logits)

    rule = divergences.get("mine")
    rule.check({"factor": 2.0})
    torch.testing.assert_close(rule(*logits, factor=2.0), 2 * forward_kl(*logits))


def test_a_partial_function_is_a_rule(registered, logits):
    registered("mine")(partial(divergences.jsd, beta=0.2))
    rule = divergences.get("mine")
    rule.check({})
    torch.testing.assert_close(rule(*logits), divergences.jsd(*logits, beta=0.2))


def test_a_name_is_taken_once(registered):
    def again(student_logits, teacher_logits):
        return student_logits.sum(-1)

    with pytest.raises(ValueError, match="'jsd' is registered already"):
        registered("jsd")(again)
    assert divergences.get("jsd").function is divergences.jsd
    assert registered("mine")(again) is again
    registered("mine")(again)  # as when a notebook's cell is run again


@pytest.mark.parametrize(
    ("name", "knobs", "complaint"),
    [
        ("jsd", {"alpha": 0.5}, "'jsd' has no knob 'alpha'; it takes 'beta'"),
        ("forward_kl", {"beta": 0.5}, "'forward_kl' has no knob 'beta'; it takes none"),
        ("jsd", {"temperature": 2.0}, "'jsd' has no knob 'temperature'"),
        ("akd", {}, "'akd' needs a value of 'beta'"),
        ("jsd", {"beta": 1.5}, r"beta is 1\.5; it is a share of a mixture"),
        ("jsd", {"beta": "0.5"}, "beta is '0.5'"),
        ("jsd", {"beta": True}, "beta is True"),
        ("skew_kl", {"alpha": math.nan}, "alpha is nan"),
        ("skew_kl", {"alpha": 1.0}, r"alpha is 1\.0, with which the skew KL is 0"),
    ],
)
def test_unsuitable_knobs(name, knobs, complaint):
    with pytest.raises(ValueError, match=complaint):
        divergences.get(name).check(knobs)


def test_an_unknown_rule():
    with pytest.raises(ValueError, match=r"'kl' is not a divergence; choose one of 'akd', 'forward_kl'"):
        divergences.get("kl")


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda student, teacher: (student - teacher).mean(), r"returns \[\] for logits \[1, 2\]"),
        (lambda student, teacher: student - teacher, r"returns \[1, 2\]"),
        (lambda student, teacher: 0.0, "returns float"),
        (lambda student, teacher, scale=1.0: student.sum(-1) * None, "unsupported operand"),
    ],
)
def test_a_rule_gives_one_number_per_token(registered, function, complaint):
    registered("mine")(function)
    with pytest.raises(ValueError, match=complaint):
        divergences.get("mine").check({})
