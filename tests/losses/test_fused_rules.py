"""Rules without a hand-written gradient in the fused pass, compared with autograd through full logits."""

import pytest
import torch

from tests.losses.problem import OPTIONS, fused, gradients, problem, reference_loss, run
from tests.losses.test_divergences import RULES, SOME_RULES
from trl_akd.losses import DenseSignal, LMHead, divergences, fused_divergence

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


def by_logits(student, teacher, **options):
    """Return numbers and gradient of the logits themselves: the LM heads are identities."""
    head = LMHead(torch.eye(student.shape[-1], dtype=student.dtype))
    student = student.clone().requires_grad_()
    result = fused_divergence(
        student, head, DenseSignal(teacher, head),
        token_weights=torch.ones(len(student)), labels=torch.arange(len(student)) % student.shape[-1], **options,
    )  # fmt: skip
    numbers = {name: value for name, value in vars(result).items() if name != "loss"}
    return numbers, torch.autograd.grad(result.loss, student)[0]


def extreme_logits():
    student, teacher = 4 * torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    first, second = torch.eye(8)[[0, 0, 1]], torch.eye(8)[[0, 1, 2]]
    padding = torch.where(torch.arange(8) < 6, 0.0, -1e30)
    return {
        "random": (student, teacher),
        "near": (student, student + teacher / 4096),
        "large": (2500 * student, 2500 * teacher),
        "far from zero": (student + 1e4, teacher - 1e4),
        "equal probabilities": (torch.zeros(3, 8), torch.full((3, 8), -7.0)),
        "a certain token": (1e4 * first, 1e4 * second),
        "probabilities of nearly 0": (88.5 * first, 88.5 * second),
        "an impossible token": (-1e4 * first, -1e4 * second),
        "padding": (student + padding, teacher + padding),
        "a single token": (student[:, :1], teacher[:, :1]),
    }


@pytest.mark.parametrize("logits", extreme_logits().values(), ids=extreme_logits())
@SEVERAL_RULES
def test_extreme_logits_in_single_precision(name, knobs, logits):
    student, teacher = logits
    largest = max(each.abs().where(each > -1e30, 0.0).max().item() for each in logits)
    for temperature in (1.0, 0.1, 10.0):
        options = {"divergence": name, "knobs": knobs, "temperature": temperature, "ce_weight": 0.3}
        found, slope = by_logits(student, teacher, **options)
        expected, exact_slope = by_logits(student.double(), teacher.double(), **options)
        rounding = 1e-5 + 1e-6 * largest / temperature
        for number, value in found.items():
            torch.testing.assert_close(value.double(), expected[number], rtol=1e-4, atol=rounding)
        torch.testing.assert_close(slope.double(), exact_slope, rtol=1e-4, atol=rounding / min(1.0, temperature))


@pytest.mark.parametrize("beta", [1e-50, 1 - 1e-9])
@pytest.mark.parametrize("case", ["random", "large", "an impossible token"])
def test_jsd_with_a_share_of_almost_0_or_1_in_single_precision(case, beta):
    """Rounded to this precision, the teacher's share of the mixture is 0 or 1."""
    student, teacher = extreme_logits()[case]
    options = {"divergence": "jsd", "knobs": {"beta": beta}}
    found, slope = by_logits(student, teacher, **options)
    expected, exact_slope = by_logits(student.double(), teacher.double(), **options)
    torch.testing.assert_close(found["divergence"].double(), expected["divergence"], rtol=0, atol=1e-5)
    torch.testing.assert_close(slope.double(), exact_slope, rtol=0, atol=1e-6)


@SEVERAL_RULES
def test_a_logit_that_is_nan_spoils_its_own_token_alone(name, knobs):
    student, teacher = extreme_logits()["random"]
    options = {"divergence": name, "knobs": knobs, "ce_weight": 0.3}
    expected, slope = by_logits(student, teacher, **options)
    student[1, 2] = torch.nan
    found, spoilt_slope = by_logits(student, teacher, **options)
    assert found["divergence"][1].isnan() and spoilt_slope[1].isnan().any()
    for number, value in found.items():
        torch.testing.assert_close(value[[0, 2]], expected[number][[0, 2]])
    torch.testing.assert_close(spoilt_slope[[0, 2]], slope[[0, 2]])
