"""Sparse signals, compared with loops and with dense signals."""

import math
from dataclasses import replace

import pytest
import torch

from tests import oracles
from tests.losses.problem import TOKENS, logits, problem
from tests.losses.test_divergences import F_DIVERGENCES, RULES, SOME_RULES
from trl_akd.losses import DenseSignal, LMHead, SparseSignal, divergences, fused_divergence

WORDS = 11
EVERY_RULE = pytest.mark.parametrize(("name", "knobs", "oracle"), RULES.values(), ids=RULES)
SEVERAL_RULES = pytest.mark.parametrize(
    ("name", "knobs", "oracle"), [RULES[name] for name in SOME_RULES], ids=SOME_RULES
)
OPTIONS = {
    "plain": {},
    "temperature": {"temperature": 1.7},
    "head": {"bias": True, "student_logit_scale": 0.4, "student_softcap": 1.5},
    "ce": {"labels": True, "ce_weight": 0.7},
    "ce-per-token": {"labels": True, "ce_weight": torch.tensor([0.7, 1.0, 0.0, 2.0, -0.4, 0.1, 3.0]).double()},
    "everything": {
        "bias": True,
        "student_logit_scale": 0.4,
        "student_softcap": 1.5,
        "labels": True,
        "ce_weight": 0.7,
        "temperature": 0.6,
        "chunk_size": 2,
    },
}
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def run(arguments, signal, name="akd", knobs=None):
    """`fused_divergence` of a problem with another signal than that of its teacher."""
    head = LMHead(
        arguments["student_weight"],
        arguments.get("student_bias"),
        arguments.get("student_logit_scale", 1.0),
        arguments.get("student_softcap"),
    )
    options = {
        key: arguments[key]
        for key in ("token_weights", "temperature", "labels", "ce_weight", "chunk_size", "vocab_size")
        if key in arguments
    }
    knobs = {"beta": 0.3} if knobs is None else knobs
    return fused_divergence(arguments["student_hidden"], head, signal, divergence=name, knobs=knobs, **options)


def test_an_infinite_part_without_weight():
    """A teacher whose tail is impossible: reverse KL is infinite, and has no weight in AKL's mix with a whole head."""
    arguments = problem()
    ids = torch.arange(3).expand(*arguments["student_hidden"].shape[:-1], 3)
    tail = torch.full(ids.shape[:-1], -math.inf)
    signal = SparseSignal(ids, torch.tensor([0.5, 0.3, 0.2]).log().expand(ids.shape), tail)
    whole, expected = (run(arguments, signal, *rule) for rule in (("akl", {"mu": 1.0}), ("forward_kl", {})))
    assert whole.loss.isfinite() and whole.reverse_kl.max() == math.inf
    torch.testing.assert_close(whole.loss, expected.loss)
    torch.testing.assert_close(slopes(whole.loss, arguments), slopes(expected.loss, arguments))


def top(arguments, k):
    return SparseSignal.from_logits(logits(arguments, "teacher"), k, arguments.get("temperature", 1.0))


def slopes(loss, arguments):
    tensors = [arguments[name] for name in ("student_hidden", "student_weight", "student_bias") if name in arguments]
    return list(torch.autograd.grad(loss, tensors))


def through_outcomes(arguments, signal, name, knobs):
    """The loss by full logits, `softmax` and sums, differentiable by autograd."""
    full = logits(arguments, "student")
    q = (full / signal.temperature).softmax(-1)
    inside = torch.zeros_like(q, dtype=torch.bool).scatter(-1, signal.ids, True)
    student = torch.cat([q.gather(-1, signal.ids), q.masked_fill(inside, 0.0).sum(-1, keepdim=True)], dim=-1).log()
    teacher = torch.cat([signal.log_probs, signal.tail_log_prob[:, None]], dim=-1)
    loss = divergences.get(name)(student, teacher, **knobs)
    if "ce_weight" in arguments:
        nll = torch.nn.functional.cross_entropy(full, arguments["labels"], reduction="none")
        loss = loss + arguments["ce_weight"] * nll
    return (loss * arguments["token_weights"]).sum()


@pytest.mark.parametrize("k", [1, 4])
@EVERY_RULE
def test_equals_loops(name, knobs, oracle, k):
    arguments = problem(labels=True, temperature=1.7)
    found = run(arguments, top(arguments, k), name, knobs)
    total = 0.0
    for n, weight in enumerate(arguments["token_weights"].tolist()):
        sides = [logits(arguments, side)[n].tolist() for side in ("student", "teacher")]
        q, p = (oracles.probabilities(side, 1.7) for side in sides)
        ids = sorted(range(WORDS), key=lambda token: -p[token])[:k]
        coarse_p, coarse_q = oracles.top_and_tail(p, ids), oracles.top_and_tail(q, ids)
        label = arguments["labels"][n].item()
        expected = {
            "divergence": oracle(coarse_p, coarse_q),
            "forward_kl": oracles.divergence(coarse_p, coarse_q),
            "reverse_kl": oracles.divergence(coarse_q, coarse_p),
            "student_entropy": oracles.entropy(q),
            "student_nll": 0.0 if label < 0 else -math.log(oracles.probabilities(sides[0])[label]),
            "teacher_nll": 0.0 if label < 0 else -math.log(p[label] if label in ids else coarse_p[-1]),
        }
        for number, value in expected.items():
            assert getattr(found, number)[n].item() == pytest.approx(value if weight else 0.0, abs=1e-12), number
        total += weight * expected["divergence"]
    assert found.loss.item() == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 10])
@EVERY_OPTION
@SEVERAL_RULES
def test_gradients_equal_autograd(name, knobs, oracle, options, k):
    arguments = problem(**options)
    signal = top(arguments, k)
    found, expected = run(arguments, signal, name, knobs).loss, through_outcomes(arguments, signal, name, knobs)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(slopes(found, arguments), slopes(expected, arguments), rtol=1e-9, atol=1e-12)


@EVERY_OPTION
@SEVERAL_RULES
def test_signal_of_all_tokens_equals_the_dense_signal(name, knobs, oracle, options):
    arguments = problem(**options)
    head = LMHead(arguments["teacher_weight"], arguments.get("teacher_bias"))
    dense = run(arguments, DenseSignal(arguments["teacher_hidden"], head), name, knobs)
    sparse = run(arguments, top(arguments, WORDS), name, knobs)
    assert (top(arguments, WORDS).tail_log_prob == -math.inf).all()
    torch.testing.assert_close(slopes(sparse.loss, arguments), slopes(dense.loss, arguments), rtol=1e-9, atol=1e-12)
    for number in set(vars(dense)) - ({"teacher_nll"} if "temperature" in options else set()):
        torch.testing.assert_close(getattr(sparse, number), getattr(dense, number))


@pytest.mark.parametrize(("name", "knobs"), [rule[:2] for rule in RULES.values() if rule[0] in F_DIVERGENCES])
def test_more_tokens_never_lower_the_divergence(name, knobs):
    """The data processing inequality: merging outcomes does not increase the divergence."""
    generator = torch.Generator().manual_seed(3)
    arguments = problem()
    for side in ("student", "teacher"):
        arguments[f"{side}_hidden"] = 2 * torch.randn(
            TOKENS, arguments[f"{side}_hidden"].shape[1], generator=generator, dtype=torch.float64
        )
    bounds = torch.stack([run(arguments, top(arguments, k), name, knobs).divergence for k in range(1, WORDS + 1)])
    assert (bounds.diff(dim=0) >= -1e-12).all()
    counted = arguments["token_weights"] > 0
    assert (bounds[0] < bounds[-1])[counted].all()


@EVERY_RULE
def test_zero_between_equals(name, knobs, oracle):
    arguments = problem()
    signal = SparseSignal.from_logits(logits(arguments, "student"), 3)
    found = run(arguments, signal, name, knobs)
    assert found.divergence.abs().max() < 1e-14
    assert max(slope.abs().max() for slope in slopes(found.loss, arguments)) < 1e-14


@pytest.mark.parametrize("options", [{}, {"labels": True, "ce_weight": 0.7, "temperature": 0.6}])
@EVERY_RULE
def test_missing_tokens_have_no_influence(name, knobs, oracle, options):
    """The ids of tokens that some positions lack are -1."""
    arguments = problem(**options)
    signal = top(arguments, 3)
    filler = torch.full((TOKENS, 2), -1), torch.full((TOKENS, 2), -math.inf, dtype=torch.float64)
    longer = replace(
        signal,
        ids=torch.cat([signal.ids, filler[0]], dim=-1),
        log_probs=torch.cat([signal.log_probs, filler[1]], dim=-1),
    )
    found, expected = run(arguments, longer, name, knobs), run(arguments, signal, name, knobs)
    torch.testing.assert_close(vars(found), vars(expected))
    torch.testing.assert_close(slopes(found.loss, arguments), slopes(expected.loss, arguments))


def test_composition_of_the_tail_has_no_effect():
    """Moving probability within the tail changes neither the loss nor its gradient."""
    arguments = problem()
    full = logits(arguments, "teacher")
    signal = SparseSignal.from_logits(full, 3)
    other = full.clone()
    for row, ids in enumerate(signal.ids.tolist()):
        rest = [token for token in range(WORDS) if token not in ids]
        other[row, rest] = full[row, rest[::-1]]
    found, expected = (run(arguments, SparseSignal.from_logits(logit, 3)).loss for logit in (other, full))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(slopes(found, arguments), slopes(expected, arguments))


def test_single_precision_with_a_tiny_tail():
    arguments = problem(dtype=torch.float32)
    sure = 40.0 * torch.nn.functional.one_hot(torch.arange(TOKENS), WORDS).float()
    signal = SparseSignal.from_logits(sure, 1)
    assert signal.tail_log_prob.max() < -35
    found = run(arguments, signal)
    assert found.loss.isfinite()
    assert all(slope.isfinite().all() for slope in slopes(found.loss, arguments))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("case", RULES)
def test_finite_losses_of_sure_models_have_finite_gradients(case, dense):
    """Also where the overlap of both distributions is a denormal number."""
    name, knobs, _ = RULES[case]
    identity = LMHead(torch.eye(4))
    for gap in (40.0, 85.0, 88.0, 90.0, 95.0, 100.0, 103.0, 104.0, 120.0):
        student = gap * torch.tensor([[0.0, 1.0, 0.0, 1.0]]).requires_grad_()
        teacher = gap * torch.tensor([[1.0, 0.0, 1.0, 0.0]])
        signal = DenseSignal(teacher, identity) if dense else SparseSignal.from_logits(teacher, k=2)
        found = fused_divergence(student, identity, signal, token_weights=torch.ones(1), divergence=name, knobs=knobs)
        [slope] = torch.autograd.grad(found.loss, student)
        assert slope.isfinite().all() or not found.loss.isfinite(), gap


def test_tokens_of_weight_zero_have_no_influence():
    arguments = problem(labels=True)
    signal = top(arguments, 3)
    expected = run(arguments, signal)
    spoilt = replace(signal, ids=signal.ids.clone(), log_probs=signal.log_probs.clone())
    spoilt.ids[[1, 5]] = 10**6
    spoilt.log_probs[[1, 5]] = math.nan
    torch.testing.assert_close(vars(run(arguments, spoilt)), vars(expected))


def test_log_probabilities_are_not_renormalized():
    """The log-probabilities are used unchanged: the probabilities and the tail sum to 1."""
    signal = top(problem(), 4)
    mass = signal.log_probs.exp().sum(-1) + signal.tail_log_prob.exp()
    torch.testing.assert_close(mass, torch.ones_like(mass))
    assert (signal.log_probs.exp().sum(-1) < 1).all()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"ids": torch.full((TOKENS, 2), 11)}, r"token id 11; keep ids of the 11 shared tokens"),
        ({"ids": torch.tensor([[0, -2]] * TOKENS)}, "token id -2"),
        ({"ids": torch.tensor([[0, -1]] * TOKENS)}, "token id -1 first, or with a log-probability"),
        (
            {"ids": torch.tensor([[-1, 0]] * TOKENS), "log_probs": torch.tensor([[-math.inf, -0.5]] * TOKENS)},
            "token id -1 first, or with a log-probability",
        ),
        ({"ids": torch.tensor([[3, 3]] * TOKENS)}, "token id 3 twice"),
        ({"ids": torch.zeros(TOKENS, 3, dtype=torch.long)}, r"ids \[7, 3\], log_probs \[7, 2\]"),
        ({"tail_log_prob": torch.zeros(TOKENS, 1)}, r"tail_log_prob \[7, 1\]; for \[7\] tokens"),
        ({"ids": torch.zeros(TOKENS, 2, dtype=torch.int32)}, r"ids of the teacher's signal are torch.int32; convert"),
        ({"temperature": 2.0}, r"temperature is 1\.0, but the teacher's log-probabilities are at temperature 2\.0"),
    ],
)
def test_invalid_arguments(change, complaint):
    arguments = problem()
    with pytest.raises(ValueError, match=complaint):
        run(arguments, replace(top(arguments, 2), **change))
