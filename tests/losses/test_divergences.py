"""Rules of the registry, compared with loops and with TRL, and properties of every divergence."""

import inspect
import math
import re
from fractions import Fraction
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from trl.experimental.gkd import GKDTrainer

from tests import oracles
from trl_akd.losses import (
    DenseSignal,
    LMHead,
    divergences,
    forward_kl,
    fused_divergence,
    reverse_kl,
    shared_vocabulary,
)

# Rule, knobs, and the oracle from the teacher's probabilities p and the student's q. Oracles of rules with detached
# weights also take the student's probabilities `at` which the weights are computed.
RULES = {
    "forward_kl": ("forward_kl", {}, lambda p, q: oracles.divergence(p, q)),
    "reverse_kl": ("reverse_kl", {}, lambda p, q: oracles.divergence(q, p)),
    "minillm": ("minillm", {}, lambda p, q: oracles.divergence(q, p)),
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
    **{
        f"akl-{mu}": ("akl", {"mu": mu}, lambda p, q, at=None, mu=mu: oracles.akl(p, q, mu, at))
        for mu in (0.0, 0.5, 0.9)
    },
    "todi": ("todi", {}, oracles.todi),
    **{
        f"eopd-{threshold}": ("eopd", {"threshold": threshold}, partial(oracles.eopd, threshold=threshold))
        for threshold in (0.8, 1.5)
    },
    **{
        f"abkd-{a}-{b}": ("abkd", {"alpha": a, "beta": b}, partial(oracles.abkd, a=a, b=b))
        for a, b in [(0.2, 0.7), (0.6, -0.1), (1, 0), (0, 1), (0.5, 0), (0, -0.3), (0.4, -0.4), (-0.4, 0.4), (0, 0)]
    },
    **{
        f"adaptive_alpha-{k}-{c}": (
            "adaptive_alpha",
            {"concentration": k, "entropy_weight": c},
            lambda p, q, at=None, k=k, c=c: oracles.adaptive_alpha(p, q, k, c, at),
        )
        for k, c in [(0.9, 3.0), (0.4, 0.0), (0.0, 0.5)]
    },
    **{f"taid-{t}": ("taid", {"t": t}, lambda p, q, at=None, t=t: oracles.taid(p, q, t, at)) for t in (0.4, 1.0)},
}
DETACHED = {"akl", "todi", "taid", "adaptive_alpha"}
F_DIVERGENCES = {"forward_kl", "reverse_kl", "minillm", "akd", "jsd", "skew_kl", "skew_reverse_kl", "todi", "eopd"}
SOME_RULES = (
    *("forward_kl", "akd", "jsd-0.2", "skew_kl-0.1", "akl-0.5", "todi", "eopd-1.5", "abkd-0.2-0.7", "taid-0.4"),
    "adaptive_alpha-0.9-3.0",
)
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
        if (owner := rule.schedule or rule.policy_gradient) is None:
            settings = rule.knobs
        else:
            settings = {each.name: each.default for each in inspect.signature(owner).parameters.values()}
        for setting, default in settings.items():
            written = str(default).lower() if isinstance(default, bool) else default  # as in YAML
            assert name == "akd" or f"`{setting}: {written}`" in row
        assert all(f"`{alias}`" in row for alias in rule.aliases)
        assert ("hand-written" in row) == (rule.fused is not None)


def test_two_tokens_by_hand():
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
        assert found[*index].item() == pytest.approx(oracle(p, q), rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_jsd_is_that_of_trl(logits, beta, temperature):
    student, teacher = logits[0].requires_grad_(), logits[1]
    ours = divergences.get("jsd")(student, teacher, beta=beta, temperature=temperature).sum()
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=temperature, reduction="sum")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student) for loss in (ours, theirs)), rtol=1e-9, atol=1e-12)


def test_directions_are_mirror_images(logits):
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
    """Gradient of the loops, with constant weights if the paper has no gradient through them."""
    student, teacher = logits[:, 0]
    student.requires_grad_()
    divergences.get(name)(student, teacher, temperature=1.7, **knobs).sum().backward()

    def value(row, token, shift):
        shifted = student[row].tolist()
        p, at = (oracles.probabilities(side[row].tolist(), 1.7) for side in (teacher, student))
        shifted[token] += shift
        q = oracles.probabilities(shifted, 1.7)
        return oracle(p, q, at=at) if name in DETACHED else oracle(p, q)

    for row in range(len(student)):
        for token in range(student.shape[1]):
            slope = (value(row, token, 1e-5) - value(row, token, -1e-5)) / 2e-5
            assert student.grad[row, token].item() == pytest.approx(slope, rel=1e-7, abs=1e-9)


@EVERY_RULE
def test_tokens_beyond_the_shared_vocabulary_are_ignored(name, knobs, oracle, logits):
    student, teacher = logits
    divergence = divergences.get(name)
    expected = divergence(student[..., :8], teacher[..., :8], **knobs)
    torch.testing.assert_close(divergence(student[..., :8], teacher, **knobs), expected)
    torch.testing.assert_close(divergence(student, teacher[..., :8], **knobs), expected)
    assert [cut.shape[-1] for cut in shared_vocabulary(student, teacher[..., :8])] == [8, 8]


@EVERY_RULE
def test_tokens_impossible_for_both_add_nothing(name, knobs, oracle, logits):
    student, teacher = (torch.nn.functional.pad(side, (0, 3), value=-math.inf) for side in logits)
    student.requires_grad_()
    loss = divergences.get(name)(student, teacher, **knobs)
    torch.testing.assert_close(loss, divergences.get(name)(*logits, **knobs))
    loss.sum().backward()
    assert student.grad.isfinite().all()
    assert (student.grad[..., 11:] == 0).all()


def test_tokens_impossible_for_one():
    sure, unsure = torch.tensor([0.0, -math.inf]), torch.tensor([0.0, 0.0])
    assert forward_kl(unsure, sure).item() == pytest.approx(math.log(2))
    assert reverse_kl(sure, unsure).item() == pytest.approx(math.log(2))
    assert forward_kl(sure, unsure) == math.inf
    assert reverse_kl(unsure, sure) == math.inf


@EVERY_RULE
def test_half_precision_is_computed_in_float32(name, knobs, oracle, logits):
    student, teacher = logits.bfloat16()
    divergence = divergences.get(name)
    near = divergence(student, (student + 0.01).bfloat16(), **knobs)
    assert near.dtype == torch.float32
    assert near.min() > -1e-6
    exact = divergence(student.double(), teacher.double(), **knobs)
    torch.testing.assert_close(divergence(student, teacher, **knobs), exact.float(), rtol=1e-5, atol=1e-6)


# With a teacher that excludes all words but one: the divergences that are infinite by definition.
INFINITE_FOR_ONE_HOT = {
    "reverse_kl",
    "minillm",
    "akd",
    "jsd-1.0",
    "akl-0.0",
    "akl-0.5",
    "akl-0.9",
    "todi",
    "eopd-0.8",
    "eopd-1.5",
}
INFINITE_FOR_ONE_HOT |= {f"abkd-{pair}" for pair in ("0-1", "0--0.3", "0.4--0.4", "-0.4-0.4", "0-0")}


@pytest.mark.parametrize("case", RULES)
def test_teacher_that_excludes_tokens(case, logits):
    name, knobs, _ = RULES[case]
    student = logits[0].requires_grad_()
    teacher = torch.full_like(student, -math.inf)
    teacher[..., 3] = 0.0
    found = divergences.get(name)(student, teacher, **knobs)
    if case in INFINITE_FOR_ONE_HOT:
        assert (found == math.inf).all()
        return
    assert found.isfinite().all() and (found > 0).all()
    found.sum().backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", [case for case in RULES if case not in {"abkd-0--0.3", "abkd-0.4--0.4"}])
def test_certain_models_that_contradict_each_other(case, dtype):
    """Nothing overflows, although probabilities differ by a factor of e^200."""
    name, knobs, _ = RULES[case]
    student, teacher = torch.zeros(2, 1, 7, dtype=dtype)
    student[:, 1], teacher[:, 4] = 200.0, 200.0
    student.requires_grad_()
    found = divergences.get(name)(student, teacher, **knobs)
    assert found.isfinite().all() and found > 0
    found.sum().backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("case", RULES)
def test_finite_divergences_of_sure_models_have_finite_gradients(case):
    """For all gaps up to those whose probabilities are 0 in float32, with denormal numbers in between."""
    name, knobs, _ = RULES[case]
    gaps = torch.tensor([40.0, *range(60, 121), 200.0, 1000.0]).unsqueeze(-1)
    for student, teacher in SURE_MODELS:
        logits = (gaps * torch.tensor(student)).requires_grad_()
        found = divergences.get(name)(logits, gaps * torch.tensor(teacher), **knobs)
        found[found.isfinite()].sum().backward()
        assert logits.grad[found.isfinite()].isfinite().all(), gaps[~logits.grad.isfinite().all(-1)]
        exact = divergences.get(name)(logits.double(), gaps.double() * torch.tensor(teacher), **knobs)
        torch.testing.assert_close(found[found.isfinite()], exact[found.isfinite()].float(), atol=1e-5, rtol=1e-4)


SURE_MODELS = (
    ([0.0, 1.0], [1.0, 0.0]),
    ([0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]),
    ([0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]),
    ([1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]),
    ([0.0, 0.5, 1.0, 0.75], [0.0, 0.5, 0.0, 1.0]),
)


def test_student_that_excludes_tokens():
    """If `beta` and `alpha + beta` are positive, the divergence and its gradient are finite."""
    student = torch.tensor([0.0, 1.0, -math.inf, -math.inf], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([0.3, -math.inf, 0.2, -math.inf], dtype=torch.float64)
    found = divergences.abkd(student, teacher)
    p, q = teacher.softmax(-1).tolist(), student.softmax(-1).tolist()
    expected = -sum(x**0.2 * y**0.7 - 2 / 9 * x**0.9 - 7 / 9 * y**0.9 for x, y in zip(p, q, strict=True)) / 0.14
    assert found.item() == pytest.approx(expected, abs=1e-12)
    found.backward()
    assert student.grad.isfinite().all()
    assert divergences.abkd(student, teacher, alpha=1, beta=0) == math.inf
    assert divergences.abkd(student, teacher, alpha=0, beta=1) == math.inf
    assert divergences.taid(student, teacher, t=0.5).isfinite()
    disjoint = torch.tensor([-math.inf, -math.inf, 0.0, 0.0], dtype=torch.float64)
    assert divergences.taid(student, disjoint, t=0.5) == math.inf


def test_alpha_beta_divergences_of_the_ends_are_both_kls(logits):
    torch.testing.assert_close(divergences.abkd(*logits, alpha=1, beta=0), forward_kl(*logits), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(divergences.abkd(*logits, alpha=0, beta=1), reverse_kl(*logits), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("direction", [(1, 0), (0, 1), (1, 1), (1, -2)])
@pytest.mark.parametrize(("alpha", "beta"), [(1, 0), (0, 1), (0.5, 0), (0, -0.3), (0.4, -0.4), (-1, 1), (2, 0)])
def test_singularities_of_the_alpha_beta_divergence_are_removed(alpha, beta, direction, logits):
    exact = divergences.abkd(*logits, alpha=alpha, beta=beta)
    for step in (1e-3, 1e-6, 1e-9, 1e-12):
        near = divergences.abkd(*logits, alpha=alpha + step * direction[0], beta=beta + step * direction[1])
        torch.testing.assert_close(near, exact, rtol=100 * step + 1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("alpha", "beta"), [(0.01, 0), (0, 0.01), (0.01, 0.01), (0.01, -0.01), (-0.01, 0.01), (-0.01, 1e-9), (1, 1e-9)]
)
@pytest.mark.parametrize("scale", [3.0, 0.1])
def test_small_exponents_are_exact_in_float32(alpha, beta, scale):
    student, teacher = scale * torch.randn(2, 4, 1000, generator=torch.Generator().manual_seed(0))
    exact, single = student.double().requires_grad_(), student.requires_grad_()
    expected = divergences.abkd(exact, teacher.double(), alpha=alpha, beta=beta)
    found = divergences.abkd(single, teacher, alpha=alpha, beta=beta)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)
    found.sum().backward(), expected.sum().backward()
    assert (single.grad - exact.grad).norm() < 1e-3 * exact.grad.norm()


def test_exchanging_the_exponents_exchanges_the_models(logits):
    student, teacher = logits
    for alpha, beta in [(0.2, 0.7), (1, 0), (0.5, -0.2), (0.3, -0.3)]:
        found = divergences.abkd(student, teacher, alpha=alpha, beta=beta)
        torch.testing.assert_close(found, divergences.abkd(teacher, student, alpha=beta, beta=alpha))


def test_todi_is_the_sum_of_both_kls_but_its_gradient_is_not(logits):
    student, teacher = logits[0].requires_grad_(), logits[1]
    found, both = divergences.todi(student, teacher), forward_kl(student, teacher) + reverse_kl(student, teacher)
    torch.testing.assert_close(found, both, rtol=1e-13, atol=1e-14)
    slopes = [torch.autograd.grad(each.sum(), student)[0] for each in (found, both)]
    assert (slopes[0] - slopes[1]).abs().max() > 0.1


def test_taid_between_the_student_and_the_teacher(logits):
    student, teacher = logits[0].requires_grad_(), logits[1]
    torch.testing.assert_close(divergences.taid(student, teacher, t=1.0), forward_kl(student, teacher))
    own = divergences.taid(student, teacher, t=0.0)
    assert own.abs().max() < 1e-14
    assert torch.autograd.grad(own.sum(), student)[0].abs().max() < 1e-14
    [slope] = torch.autograd.grad(divergences.taid(student, teacher, t=0.3).sum(), student)
    between = (0.7 * student + 0.3 * teacher).softmax(-1)
    torch.testing.assert_close(slope, student.softmax(-1) - between)


def test_eopd_switches_on_the_entropy_of_the_teacher(logits):
    student, teacher = logits
    entropy = torch.distributions.Categorical(logits=teacher).entropy()
    threshold = entropy.median().item()
    found = divergences.eopd(student, teacher, threshold=threshold)
    forward = torch.where(entropy > threshold, forward_kl(student, teacher), 0.0)
    torch.testing.assert_close(found, reverse_kl(student, teacher) + forward)
    assert 0 < (forward == 0).sum() < forward.numel()


@pytest.mark.parametrize("concentration", [0.9, 0.3, 1e-3, 1e-12, 0.0])
def test_adaptive_alpha_of_a_sure_teacher(concentration):
    """With one possible token, the overlap is its probability for the student, and the teacher's entropy is 0."""
    q = torch.tensor([1e-9, 1e-4, 0.1, 0.5, 0.9, 1 - 1e-6], dtype=torch.float64)
    student = torch.stack([q, 1 - q], dim=-1).log()
    teacher = torch.tensor([0.0, -math.inf], dtype=torch.float64).expand_as(student)
    found = divergences.adaptive_alpha(student, teacher, concentration=concentration)
    a = 1 - concentration * q
    expected = -torch.expm1((1 - a) * q.log()) / (a * (1 - a)) if concentration > 1e-12 else -q.log()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_adaptive_alpha_moves_from_forward_to_reverse_kl(logits):
    """Without overlap it is forward KL; where both models nearly agree, a mix of both KLs."""
    student, teacher = logits
    found = divergences.adaptive_alpha(student, teacher, concentration=0.0, entropy_weight=0.0)
    torch.testing.assert_close(found, forward_kl(student, teacher))
    apart = torch.tensor([0.0, 40.0, 0.0], dtype=torch.float64), torch.tensor([40.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(
        divergences.adaptive_alpha(*apart, entropy_weight=0.0), forward_kl(*apart), rtol=1e-9, atol=0
    )
    near = teacher + 0.02 * student
    order = 1 - 0.9 * torch.minimum(teacher.softmax(-1), near.softmax(-1)).sum(-1)
    forward, reverse = forward_kl(near, teacher), reverse_kl(near, teacher)
    found = divergences.adaptive_alpha(near, teacher, concentration=0.9, entropy_weight=0.0)
    # The mix of both KLs, up to the fourth order of the difference of the logits; both KLs differ in the third.
    error = found - order * forward - (1 - order) * reverse
    assert (error.abs() < 0.05 * (forward - reverse).abs() + 1e-8).all()


@pytest.mark.parametrize("concentration", [0.0, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("noise", [1e-2, 1e-3])
def test_adaptive_alpha_of_nearly_equal_models_in_single_precision(noise, concentration):
    """Rounding of the probabilities is not magnified as the order of the divergence falls to 0."""
    generator = torch.Generator().manual_seed(0)
    teacher, change = torch.randn(2, 200, 500, generator=generator)
    student, knobs = teacher + noise * change, {"concentration": concentration}
    exact = divergences.adaptive_alpha(student.double(), teacher.double(), **knobs).float()
    identity = LMHead(torch.eye(500))
    fused = fused_divergence(
        *(student, identity, DenseSignal(teacher, identity)),
        **{"token_weights": torch.ones(200), "divergence": "adaptive_alpha", "knobs": knobs},
    )
    for found in (divergences.adaptive_alpha(student, teacher, **knobs), fused.divergence):
        if concentration:
            assert (found > 0).all()
        torch.testing.assert_close(found, exact, rtol=0.05, atol=0.0 if concentration else 1e-5)


def test_adaptive_alpha_weights_tokens_by_the_entropy_of_the_teacher(logits):
    student, teacher = logits
    entropy = torch.distributions.Categorical(logits=teacher).entropy()
    ratio = divergences.adaptive_alpha(student, teacher, entropy_weight=2.0) / divergences.adaptive_alpha(
        student, teacher, entropy_weight=0.0
    )
    torch.testing.assert_close(ratio, 1 + 2 * entropy)


def test_adaptive_alpha_is_infinite_where_no_token_is_possible_for_both():
    student = torch.tensor([0.0, 1.0, -math.inf, -math.inf], dtype=torch.float64, requires_grad=True)
    for teacher, finite in (([-math.inf, -math.inf, 0.0, 0.0], False), ([0.5, -math.inf, 0.0, -math.inf], True)):
        found = divergences.adaptive_alpha(student, torch.tensor(teacher, dtype=torch.float64))
        assert found.isfinite() == finite and found > 0
    found.backward()
    assert student.grad.isfinite().all() and student.grad.abs().max() > 0.1


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"concentration": 1.0}, "give at most 0.99"),
        ({"concentration": -0.1}, r"in \[0, 1\]"),
        ({"concentration": "much"}, "concentration is 'much'"),
        ({"entropy_weight": -1}, "entropy_weight is -1.0; give a number of at least 0"),
        ({"entropy_weight": math.inf}, "entropy_weight is inf; give a finite number"),
    ],
)
def test_invalid_knobs_of_adaptive_alpha(knobs, message):
    with pytest.raises(ValueError, match=message):
        divergences.get("adaptive_alpha").check_settings(knobs)


@pytest.mark.parametrize(
    "p",
    [
        [0.2, 0.2, 0.2, 0.2, 0.2],
        [0.25, 0.25, 0.25, 0.25, 0.0],
        [0.3, 0.3, 0.3, 0.05, 0.05],
        [0.1, 0.4, 0.1, 0.3, 0.1],
        [0.5, 0.5, 0.0, 0.0, 0.0],
        [0.125, 0.5, 0.125, 0.125, 0.125],
        [0.6, 0.1, 0.1, 0.1, 0.1],
    ],
)
@pytest.mark.parametrize("mu", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_equally_probable_tokens_count_equally(p, mu):
    """The weight is the mean over all orders in which they can be sorted, for any order of the vocabulary."""
    q = [0.1, 0.35, 0.3, 0.05, 0.2]
    orders = [list(order) for order in permutations(range(5)) if sorted(p, reverse=True) == [p[v] for v in order]]
    weight = sum(oracles.akl_weight(p, q, mu, order) for order in orders) / len(orders)
    teacher, student = (torch.tensor(side, dtype=torch.float64) for side in (p, q))
    for order in permutations(range(5)):
        for dtype in (torch.float32, torch.float64):
            found = divergences._head_share(
                teacher[list(order)].to(dtype).log().softmax(-1), student[list(order)].to(dtype), mu
            )
            assert found.item() == pytest.approx(weight, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "knobs", "student", "teacher", "expected"),
    [
        ("akl", {}, [0.5, 0.5, 0.0], [0.5, 0.25, 0.25], 0.5 * math.log(2)),  # w = 0, and forward KL is infinite
        ("akl", {"mu": 1.0}, [0.2, 0.3, 0.5], [0.5, 0.5, 0.0], 0.5 * math.log(0.25 / 0.06)),  # w = 1
        ("akl", {"mu": 1.0}, [0.1, 0.3, 0.6], [0.3, 0.7, 0.0], 0.3 * math.log(3) + 0.7 * math.log(7 / 3)),
        ("eopd", {}, [0.9, 0.1, 0.0], [0.9, 0.05, 0.05], 0.1 * math.log(2)),  # forward KL is infinite and not added
        ("akd", {"beta": 0.0}, [0.2, 0.3, 0.5], [0.5, 0.5, 0.0], 0.5 * math.log(0.25 / 0.06)),
        ("akd", {"beta": 1.0}, [0.5, 0.5, 0.0], [0.5, 0.25, 0.25], 0.5 * math.log(2)),
    ],
)
def test_an_infinite_part_without_weight(name, knobs, student, teacher, expected):
    student = torch.tensor(student).log().requires_grad_()
    found = divergences.get(name)(student, torch.tensor(teacher).log(), **knobs)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert student.grad.isfinite().all() and student.grad.abs().max() > 0.01


@pytest.mark.parametrize("words", [5, 63, 200, 5000])
def test_head_of_all_tokens_is_forward_kl(words):
    teacher, student = torch.randn(2, 50, words, generator=torch.Generator().manual_seed(words))
    teacher[:, -2:] = -math.inf
    student.requires_grad_()
    found = divergences.akl(student, teacher, mu=1.0)
    torch.testing.assert_close(found, forward_kl(student, teacher))
    found.sum().backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("words", [63, 64, 65, 300])
@pytest.mark.parametrize("levels", [1, 2, 300])
def test_heads_of_many_tokens(words, levels):
    generator = torch.Generator().manual_seed(words)
    teacher = torch.randint(levels, (4, words), generator=generator).double() / 3
    student = torch.randn(4, words, generator=generator, dtype=torch.float64)
    order = torch.randperm(words, generator=generator)
    found = divergences.akl(student, teacher, mu=0.6)
    torch.testing.assert_close(divergences.akl(student[:, order], teacher[:, order], mu=0.6), found)
    if levels == 300:
        for row in range(4):
            p, q = (oracles.probabilities(side[row].tolist()) for side in (teacher, student))
            assert len(set(p)) > 0.5 * words
            if len(set(p)) == words:
                assert found[row].item() == pytest.approx(oracles.akl(p, q, 0.6), abs=1e-12)


def test_long_heads_of_many_tokens():
    """Rows whose head is longer than the list are sorted some at a time."""
    student, teacher = torch.randn(2, 300, 5000, generator=torch.Generator().manual_seed(0))
    teacher[::7] *= 5
    found = divergences.akl(student, teacher, mu=0.9)
    for rows in (slice(0, 3), slice(208, 212), slice(297, 300)):
        torch.testing.assert_close(found[rows], divergences.akl(student[rows], teacher[rows], mu=0.9))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *[("kl", "forward_kl"), ("fkl", "forward_kl"), ("KL", "forward_kl"), ("forward-kl", "forward_kl")],
        *[("rkl", "reverse_kl"), ("RKL", "reverse_kl"), ("skl", "skew_kl"), ("SRKL", "skew_reverse_kl")],
        *[("Forward_KL", "forward_kl"), ("skew-reverse-KL", "skew_reverse_kl")],
        *[("AKD", "akd"), ("JSD", "jsd"), ("ToDi", "todi"), ("AKL", "akl"), ("TAID", "taid"), ("EOPD", "eopd")],
    ],
)
def test_other_spellings(name, rule):
    assert divergences.get(name) is divergences.get(rule)
    assert name not in divergences.names()


@pytest.mark.parametrize("value", [0.25, Fraction(1, 4), np.float32(0.25), np.array(0.25), torch.tensor(0.25)])
def test_knobs_of_any_numeric_type(value, logits):
    for name, knob in [("akd", "beta"), ("jsd", "beta"), ("skew_kl", "alpha"), ("akl", "mu"), ("taid", "t")]:
        rule = divergences.get(name)
        rule.check({knob: value})
        torch.testing.assert_close(rule(*logits, **{knob: value}), rule(*logits, **{knob: 0.25}), rtol=0, atol=0)
    for knobs in ({"alpha": value}, {"beta": value}):
        expected = divergences.abkd(*logits, **dict.fromkeys(knobs, 0.25))
        torch.testing.assert_close(divergences.abkd(*logits, **knobs), expected, rtol=0, atol=0)


@pytest.fixture
def registered(monkeypatch):
    """Register a rule for one test only."""
    monkeypatch.setattr(divergences, "_RULES", dict(divergences._RULES))
    return divergences.register


def test_custom_rule(registered, logits):
    @registered("mine", paper="https://example.org")
    def total_variation(student_logits, teacher_logits, power=1.0):
        return 0.5 * (student_logits.softmax(-1) - teacher_logits.softmax(-1)).abs().pow(power).sum(-1)

    rule = divergences.get("mine")
    assert "mine" in divergences.names()
    assert (rule.paper, rule.knobs) == ("https://example.org", {"power": 1.0})
    torch.testing.assert_close(rule(*logits, power=2.0), total_variation(*logits, power=2.0))
    rule.check({"power": 2.0})


@pytest.mark.parametrize(
    ("name", "alias"), [("my_rule", "My-Alias"), ("Big-Rule", "big"), ("UPPER", "lower-Case"), ("a-b", "C")]
)
def test_names_of_a_custom_rule(name, alias, registered):
    def rule(student_logits, teacher_logits):
        return forward_kl(student_logits, teacher_logits)

    registered(name, aliases=(alias,))(rule)
    for written in (name, alias):
        for spelling in (written, written.lower(), written.upper(), written.replace("-", "_")):
            assert divergences.get(spelling).function is rule
            with pytest.raises(ValueError, match=f"'{spelling}' is already registered"):
                registered(spelling)(forward_kl)


@pytest.mark.parametrize("schedule", [partial(divergences.Interpolation, t_start=0.5), lambda: None, "linear"])
def test_a_schedule_is_a_class_that_names_its_knob(schedule, registered):
    with pytest.raises(ValueError, match=r"the schedule of the divergence 'mine' is .*; give a class with a `knob`"):
        registered("mine", schedule=schedule)
    assert "mine" not in divergences.names()


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


def test_names_are_unique(registered):
    def again(student_logits, teacher_logits):
        return student_logits.sum(-1)

    for name in ("jsd", "JSD", "kl"):
        with pytest.raises(ValueError, match=f"'{name}' is already registered"):
            registered(name)(again)
    with pytest.raises(ValueError, match="'skl' is already registered"):
        registered("mine", aliases=("skl",))(again)
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
        ("jsd", {"beta": 1.5}, r"beta is 1\.5; give a number in \[0, 1\]"),
        ("jsd", {"beta": "0.5"}, "beta is '0.5'"),
        ("jsd", {"beta": True}, "beta is True"),
        ("skew_kl", {"alpha": math.nan}, "alpha is nan"),
        ("skew_kl", {"alpha": 1.0}, r"alpha is 1\.0, with which the skew KL is 0"),
        ("jsd", {"beta": torch.tensor([0.1, 0.2])}, r"beta is tensor\(\[0.1000, 0.2000\]\)"),
        ("jsd", {"beta": None}, "beta is None"),
        ("jsd", {"beta": 0.5j}, "beta is 0.5j"),
        ("akl", {"mu": -0.1}, r"mu is -0\.1; give a number in \[0, 1\]"),
        ("taid", {"t": 1.2}, r"t is 1\.2; give a number in \[0, 1\]"),
        ("abkd", {"alpha": math.inf}, "alpha is inf; give a finite number"),
        ("abkd", {"beta": "0.7"}, "beta is '0.7'; give a finite number"),
        ("abkd", {"beta": 10**400}, "beta is 10*; give a finite number"),
        ("abkd", {"alpha": -(10**400)}, "alpha is -10*; give a finite number"),
        ("abkd", {"alpha": 1e-5, "beta": 1e-5}, "alpha is 1e-05 and beta is 1e-05, so small .* at least 0.01 for one"),
        ("abkd", {"alpha": 1e-6, "beta": -1e-6}, "alpha is 1e-06 and beta is -1e-06, so small"),
        ("abkd", {"alpha": 0, "beta": 0.009}, "alpha is 0.0 and beta is 0.009, so small"),
        ("jsd", {"beta": b"0.5"}, "beta is b'0.5'; give a number"),
        ("jsd", {"beta": bytearray(b"0.5")}, "beta is bytearray"),
        ("jsd", {"beta": np.bool_(True)}, "beta is .*True"),
        ("jsd", {"beta": np.array("0.5")}, "beta is array"),
        ("jsd", {"beta": torch.tensor(True)}, "beta is tensor"),
        ("jsd", {"beta": torch.tensor(0.5 + 0j)}, "beta is tensor"),
        ("jsd", {"beta": np.array([0.1, 0.2])}, "beta is array"),
        ("eopd", {"threshold": math.nan}, "threshold is nan; give a finite number"),
        ("todi", {"alpha": 0.1}, "'todi' has no knob 'alpha'; it takes none"),
    ],
)
def test_invalid_knobs(name, knobs, complaint):
    with pytest.raises(ValueError, match=complaint):
        divergences.get(name).check(knobs)


def test_an_unknown_rule():
    with pytest.raises(ValueError, match=r"'kll' is not a divergence; choose one of 'akd', 'forward_kl'"):
        divergences.get("kll")


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda student, teacher: (student - teacher).mean(), r"returns \[\] for logits \[2, "),
        (lambda student, teacher: student - teacher, r"returns \[2, .*return one number per token, \[2\]"),
        (lambda student, teacher: (student - teacher).mean(0), "return one number per token"),
        (lambda student, teacher: 0.0, "returns float"),
        (lambda student, teacher, scale=1.0: student.sum(-1) * None, "unsupported operand"),
    ],
)
def test_a_rule_gives_one_number_per_token(registered, function, complaint):
    registered("mine")(function)
    with pytest.raises(ValueError, match=complaint):
        divergences.get("mine").check({})


def top_tokens(student, teacher, k):
    top = teacher.topk(k, dim=-1)
    return (top.values - student.gather(-1, top.indices)).square().mean(-1)


@pytest.mark.parametrize("k", [1, 8, 64, 500, 10_000, 150_000])
def test_a_rule_of_the_most_probable_tokens(registered, k):
    registered("mine")(top_tokens)
    divergences.get("mine").check({"k": k})


def unpack(student, teacher):
    _, length, _ = student.shape
    return (student - teacher).sum(-1) / length


def raise_error(error):
    def rule(student, teacher):
        raise error

    return rule


@pytest.mark.parametrize(
    ("function", "knobs", "complaint"),
    [
        (top_tokens, {"k": 10**7}, "'mine' fails with {'k': 10000000}: RuntimeError: selected index k out of range"),
        (unpack, {}, r"three dimensions \(not enough values to unpack .*\); it must take logits \[\.\.\., V\]"),
        (lambda s, t: (s - t)[:, :, 0], {}, r"three dimensions \(too many indices"),
        (lambda s, t: (s - t)[:, :, :, 0], {}, "'mine' fails with {}: IndexError: too many indices"),
        (lambda logits: logits.sum(-1), {}, r"'mine' does not take {} \(.*takes 1 positional argument"),
        (lambda s, t: torch.einsum("btv,btv->bt", s, t), {}, r"three dimensions \(einsum.*\[tokens, V\]"),
        (raise_error(ValueError("choose a smaller k")), {}, "'mine' fails with {}: choose a smaller k"),
        (raise_error(KeyError("table")), {}, "'mine' fails with {}: KeyError: 'table'"),
        (raise_error(AssertionError("no GPU")), {}, "'mine' fails with {}: AssertionError: no GPU"),
    ],
)
def test_errors_of_a_rule_name_it(registered, function, knobs, complaint):
    registered("mine")(function)
    with pytest.raises(ValueError, match=complaint) as caught:
        divergences.get("mine").check_settings(knobs)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits.div_(2),
        lambda logits: logits.clamp_(min=-50),
        lambda logits: logits[..., :3].zero_(),
        lambda logits: logits.float().sub_(logits.mean()),
        lambda logits: logits.view(-1).add_(1),
    ],
)
@pytest.mark.parametrize("changed", [0, 1])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_rule_does_not_change_its_inputs(registered, change, changed, mode):
    def rule(*logits):
        change(logits[changed])
        return (logits[0].softmax(-1) - logits[1].softmax(-1)).square().sum(-1)

    registered("mine")(rule)
    with mode(), pytest.raises(ValueError, match=r"'mine' changes its inputs in place.*`div` in place of `div_`"):
        divergences.get("mine").check({})
