"""Rules without a hand-written gradient in the fused pass, compared with autograd through full logits."""

import pytest
import torch

from tests.losses.problem import OPTIONS, fused, gradients, problem, reference_loss, run
from tests.losses.test_divergences import RULES, SOME_RULES
from trl_akd.losses import divergences

EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
EVERY_RULE = pytest.mark.parametrize(("name", "knobs"), [each[:2] for each in RULES.values()], ids=RULES)

SEVERAL_RULES = pytest.mark.parametrize(("name", "knobs"), [RULES[name][:2] for name in SOME_RULES], ids=SOME_RULES)


def solved(arguments):
    """Loss, gradients and numbers per token."""
    result = run(arguments)
    numbers = {name: value for name, value in vars(result).items() if name != "loss" and value is not None}
    return result.loss, gradients(result.loss, arguments), numbers


@SEVERAL_RULES
@EVERY_OPTION
def test_equals_autograd_through_full_logits(options, name, knobs):
    arguments = problem(**options) | {"divergence": name, "knobs": knobs}
    expected = reference_loss(arguments)
    torch.testing.assert_close(fused(arguments), expected)
    found = gradients(fused(arguments), arguments)
    torch.testing.assert_close(found, gradients(expected, arguments), rtol=1e-9, atol=1e-12)


@EVERY_RULE
def test_both_kls_are_measured_for_every_rule(name, knobs):
    arguments = problem(**OPTIONS["everything"])
    expected = run(arguments)
    found = run(arguments | {"divergence": name, "knobs": knobs})
    for number in ("forward_kl", "reverse_kl", "student_entropy", "student_nll", "teacher_nll"):
        torch.testing.assert_close(getattr(found, number), getattr(expected, number))


@pytest.mark.parametrize("case", [case for case, (name, *_) in RULES.items() if divergences.get(name).fused])
def test_hand_written_gradients_equal_autograd(case, monkeypatch):
    name, knobs, _ = RULES[case]
    arguments = problem(**OPTIONS["everything"]) | {"divergence": name, "knobs": knobs}
    expected = solved(arguments)
    rule = divergences.get(name)
    monkeypatch.setitem(divergences._RULES, name, divergences.Rule(name, rule.function))
    torch.testing.assert_close(solved(arguments), expected)


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_chunks_and_blocks_change_nothing(chunk_size, monkeypatch):
    arguments = problem(**OPTIONS["everything"]) | {"divergence": "jsd", "knobs": {"beta": 0.4}}
    expected = solved(arguments | {"chunk_size": 5})
    monkeypatch.setattr("trl_akd.losses.fused_linear._block_size", lambda *_: 2)
    torch.testing.assert_close(solved(arguments | {"chunk_size": chunk_size}), expected)


@EVERY_RULE
def test_zero_between_equals(name, knobs):
    arguments = problem() | {"divergence": name, "knobs": knobs}
    for part in ("hidden", "weight"):
        arguments[f"teacher_{part}"] = arguments[f"student_{part}"].detach()
    loss, slopes, numbers = solved(arguments)
    assert loss.abs() < 1e-15
    assert numbers["divergence"].abs().max() < 1e-14
    assert max(slope.abs().max() for slope in slopes) < 1e-14


@pytest.mark.parametrize("tokens", ["some", "none"])
def test_tokens_of_weight_zero_have_no_influence(tokens):
    arguments = problem(labels=True) | {"divergence": "skew_kl", "knobs": {"alpha": 0.2}}
    if tokens == "none":
        arguments["token_weights"] = torch.zeros_like(arguments["token_weights"])
    expected = solved(arguments)
    with torch.no_grad():
        arguments["student_hidden"][[1, 5]] = torch.nan
        arguments["teacher_hidden"][[1, 5]] = torch.inf
    found = solved(arguments)
    torch.testing.assert_close(found, expected)
    assert (found[2]["divergence"][[1, 5]] == 0).all()


def test_without_gradients_the_numbers_are_the_same():
    arguments = problem(**OPTIONS["everything"]) | {"divergence": "jsd", "knobs": {}}
    expected = vars(run(arguments))
    with torch.no_grad():
        found = vars(run(arguments))
    assert not found["loss"].requires_grad
    torch.testing.assert_close(found, {name: value.detach() for name, value in expected.items()})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    halves = problem(dtype=dtype, bias=True) | {"divergence": "jsd", "knobs": {"beta": 0.2}}
    exact = {
        name: value.detach().float().requires_grad_(value.requires_grad)
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in halves.items()
    }
    torch.testing.assert_close(fused(halves), fused(exact))
    for found, expected in zip(gradients(fused(halves), halves), gradients(fused(exact), exact), strict=True):
        torch.testing.assert_close(found, expected.to(dtype))


def test_rules_receive_raw_logits(monkeypatch):
    """Unlike a divergence, a rule may distinguish logits that differ by a constant."""
    monkeypatch.setattr(divergences, "_RULES", dict(divergences._RULES))

    @divergences.register("mean_squares")
    def mean_squares(student_logits, teacher_logits, temperature=1.0):
        return ((student_logits - teacher_logits) / temperature).square().mean(-1)

    arguments = problem(bias=True, temperature=2.0, labels=True, ce_weight=0.3)
    arguments |= {"divergence": "mean_squares", "knobs": {}}
    torch.testing.assert_close(fused(arguments), reference_loss(arguments))
    torch.testing.assert_close(gradients(fused(arguments), arguments), gradients(reference_loss(arguments), arguments))


def test_errors_name_invalid_knobs():
    with pytest.raises(ValueError, match="'jsd' has no knob 'alpha'"):
        run(problem() | {"divergence": "jsd", "knobs": {"alpha": 0.1}})
