"""The fused divergence: values, gradients and edge cases."""

import math

import pytest
import torch

from tests import oracles
from tests.losses.problem import OPTIONS, TOKENS, fused, gradients, logits, problem, reference_loss, run, trainable
from trl_akd.losses import forward_kl, fused_linear_divergence, reverse_kl

EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
EVERY_BETA = pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])


def two_tokens(beta):
    """Student (1/2, 1/2), teacher (3/4, 1/4), from hidden states of one number."""
    student, teacher = torch.zeros(2, 1, requires_grad=True), torch.tensor([[3.0], [1.0]]).log()
    one = torch.ones(1, 1)
    return student, fused_linear_divergence(one, student, one, teacher, token_weights=torch.ones(1), beta=beta)


def test_two_tokens_by_hand():
    forward, reverse = 0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    weight, result = two_tokens(beta=0.25)
    assert result.forward_kl.item() == pytest.approx(forward)
    assert result.reverse_kl.item() == pytest.approx(reverse)
    assert result.student_entropy.item() == pytest.approx(math.log(2))
    assert result.loss.item() == pytest.approx(0.75 * forward + 0.25 * reverse)
    assert result.student_nll is None
    assert result.teacher_nll is None
    result.loss.backward()
    # q - p = (-1/4, 1/4), and q (log q/p - RKL) = 1/2 (ln 2/3 - ln 2) / 2 = -+ ln(3) / 4
    slope = -0.75 / 4 - 0.25 * math.log(3) / 4
    torch.testing.assert_close(weight.grad, torch.tensor([[slope], [-slope]]))


@EVERY_OPTION
def test_equals_loops(options):
    arguments = problem(**options)
    result = run(arguments)
    heads = {}
    for side in ("student", "teacher"):
        bias = arguments.get(f"{side}_bias")
        heads[side] = [
            oracles.head_logits(
                hidden,
                arguments[f"{side}_weight"].tolist(),
                None if bias is None else bias.tolist(),
                arguments.get(f"{side}_logit_scale", 1.0),
                arguments.get(f"{side}_softcap"),
            )[: arguments.get("vocab_size")]
            for hidden in arguments[f"{side}_hidden"].tolist()
        ]
    labels = arguments.get("labels", torch.full((TOKENS,), -100)).tolist()
    weights = arguments["token_weights"].tolist()
    ce_weights = torch.as_tensor(arguments.get("ce_weight", 0.0), dtype=torch.float64).expand(TOKENS).tolist()
    total = 0.0
    for n, weight in enumerate(weights):
        token = oracles.akd_token(
            heads["student"][n],
            heads["teacher"][n],
            beta=arguments["beta"],
            temperature=arguments.get("temperature", 1.0),
            label=labels[n],
            ce_weight=ce_weights[n],
        )
        total += weight * token.pop("loss")
        for name, number in token.items():
            if getattr(result, name) is not None:
                assert getattr(result, name)[n].item() == pytest.approx(number if weight else 0.0, abs=1e-12), name
    assert result.loss.item() == pytest.approx(total, abs=1e-12)


@EVERY_BETA
@EVERY_OPTION
def test_gradients_equal_autograd_through_full_logits(options, beta):
    arguments = problem(**options) | {"beta": beta}
    found, expected = gradients(fused(arguments), arguments), gradients(reference_loss(arguments), arguments)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


class Repeatable(torch.autograd.Function):
    """Compute the fused divergence again for every backward pass, since gradcheck makes several."""

    @staticmethod
    def forward(ctx, arguments, names, *tensors):
        ctx.arguments = arguments | dict(zip(names, (tensor.detach() for tensor in tensors), strict=True))
        ctx.names = names
        return fused(ctx.arguments)

    @staticmethod
    def backward(ctx, grad_loss):
        with torch.enable_grad():
            for name in ctx.names:
                ctx.arguments[name].requires_grad_()
            loss = fused(ctx.arguments)
        return None, None, *torch.autograd.grad(loss, [ctx.arguments[name] for name in ctx.names], grad_loss)


@EVERY_BETA
@EVERY_OPTION
def test_gradcheck(options, beta):
    arguments = problem(**options) | {"beta": beta}
    names = [name for name, value in arguments.items() if isinstance(value, torch.Tensor) and value.requires_grad]
    assert torch.autograd.gradcheck(
        lambda *tensors: Repeatable.apply(arguments, names, *tensors), trainable(arguments)
    )


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4, 5, 100])
def test_chunks_change_nothing(chunk_size):
    whole, cut = problem(**OPTIONS["everything"]) | {"chunk_size": 5}, problem(**OPTIONS["everything"])
    cut["chunk_size"] = chunk_size
    torch.testing.assert_close(fused(cut), fused(whole))
    torch.testing.assert_close(gradients(fused(cut), cut), gradients(fused(whole), whole))


@pytest.mark.parametrize("options", ["everything", "ce-per-token"])
def test_blocks_of_a_chunk_change_nothing(options, monkeypatch):
    arguments = problem(**OPTIONS[options]) | {"chunk_size": 5}
    expected = gradients(fused(arguments), arguments)
    monkeypatch.setattr("trl_akd.losses.fused_linear._block_size", lambda *_: 2)
    torch.testing.assert_close(gradients(fused(arguments), arguments), expected)


def test_parts_of_a_head_change_nothing(monkeypatch):
    """A CPU multiplies some rows of an LM head at a time."""
    arguments = problem(**OPTIONS["everything"])
    expected = gradients(fused(arguments), arguments)
    monkeypatch.setattr("trl_akd.losses.lm_head._CPU_ROWS", 4)
    torch.testing.assert_close(gradients(fused(arguments), arguments), expected)


@EVERY_BETA
def test_zero_only_between_equals(beta):
    arguments = problem(beta=beta)
    assert fused(arguments) > 0.01
    for part in ("hidden", "weight"):
        arguments[f"teacher_{part}"] = arguments[f"student_{part}"].detach()
    assert fused(arguments).abs() < 1e-15
    for gradient in gradients(fused(arguments), arguments):
        assert gradient.abs().max() < 1e-15


def test_a_constant_on_all_logits_changes_nothing():
    plain = problem(bias=True)
    shifted = plain | {"student_bias": plain["student_bias"] + 7.0, "teacher_bias": plain["teacher_bias"] - 3.0}
    torch.testing.assert_close(fused(shifted), fused(plain))


def test_the_order_of_the_vocabulary_changes_nothing():
    plain = problem(bias=True)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    names = ["student_weight", "student_bias", "teacher_weight", "teacher_bias"]
    torch.testing.assert_close(fused(plain | {name: plain[name][order] for name in names}), fused(plain))


@pytest.mark.parametrize(("beta", "only"), [(0.0, forward_kl), (1.0, reverse_kl)])
def test_ends_of_beta(beta, only):
    arguments = problem(beta=beta)
    expected = only(logits(arguments, "student"), logits(arguments, "teacher")) * arguments["token_weights"]
    torch.testing.assert_close(fused(arguments), expected.sum())


def test_plain_tensors():
    arguments = problem(bias=True, temperature=2.5, chunk_size=3)
    found = fused_linear_divergence(**arguments)
    for name in vars(found):
        torch.testing.assert_close(getattr(found, name), getattr(run(arguments), name))
    torch.testing.assert_close(gradients(found.loss, arguments), gradients(fused(arguments), arguments))


def test_beta_may_be_a_tensor_and_is_not_differentiated():
    beta = torch.tensor(0.3, requires_grad=True)
    loss = fused_linear_divergence(**problem() | {"beta": beta}).loss
    torch.testing.assert_close(loss, fused(problem()), rtol=1e-6, atol=0.0)
    loss.backward()
    assert beta.grad is None
    with pytest.raises(ValueError, match=r"beta is -0\.5"):
        fused_linear_divergence(**problem() | {"beta": torch.tensor(-0.5)})


def test_several_leading_dimensions():
    arguments = problem(**OPTIONS["everything"])
    flat = run(arguments)
    for name in ("student_hidden", "teacher_hidden", "token_weights", "labels"):
        arguments[name] = arguments[name].unflatten(0, (1, TOKENS))
    shaped = run(arguments)
    torch.testing.assert_close(shaped.loss, flat.loss)
    for name in set(vars(flat)) - {"loss"}:
        torch.testing.assert_close(getattr(shaped, name), getattr(flat, name)[None])


def test_tokens_of_weight_zero_have_no_influence():
    arguments = problem(labels=True, ce_weight=0.5)
    spoilt = problem(labels=True, ce_weight=0.5)
    with torch.no_grad():
        spoilt["student_hidden"][[1, 5]] = math.nan
        spoilt["teacher_hidden"][[1, 5]] = math.inf
        spoilt["labels"][[1, 5]] = 10**6
    torch.testing.assert_close(fused(spoilt), fused(arguments))
    found, expected = gradients(fused(spoilt), spoilt), gradients(fused(arguments), arguments)
    torch.testing.assert_close(found, expected)
    assert (found[0][[1, 5]] == 0).all()


def test_gradients_beyond_the_shared_vocabulary_are_zero():
    arguments = problem(student_words=14, bias=True)
    _, weight, bias = gradients(fused(arguments), arguments)
    assert (weight[11:] == 0).all()
    assert (bias[11:] == 0).all()
    assert (weight[:11] != 0).all()


@pytest.mark.parametrize("tokens", [0, TOKENS])
def test_no_targets(tokens):
    arguments = problem(bias=True, labels=True)
    for name in ("student_hidden", "teacher_hidden", "labels"):
        arguments[name] = arguments[name].detach()[:tokens]
    arguments["student_hidden"].requires_grad_()
    arguments["token_weights"] = torch.zeros(tokens)
    result = run(arguments)
    assert result.loss == 0
    assert result.forward_kl.tolist() == [0.0] * tokens
    for gradient in gradients(result.loss, arguments):
        assert (gradient == 0).all()


def test_one_token():
    arguments = problem()
    for name in ("student_hidden", "teacher_hidden"):
        arguments[name] = arguments[name].detach()[:1]
    arguments["token_weights"] = torch.ones(1)
    torch.testing.assert_close(fused(arguments), reference_loss(arguments))


def test_the_gradient_of_the_loss_is_a_factor():
    arguments = problem(bias=True)
    plain, tripled = gradients(fused(arguments), arguments), gradients(-3 * fused(arguments), arguments)
    torch.testing.assert_close(tripled, [-3 * gradient for gradient in plain])


def test_negative_weights_push_away():
    arguments = problem()
    negative = arguments | {"token_weights": -arguments["token_weights"]}
    torch.testing.assert_close(gradients(fused(negative), negative), gradients(-fused(arguments), arguments))


def test_tied_embeddings_get_both_gradients():
    ids = torch.tensor([3, 1, 4, 1, 5, 9, 2])

    def gradient(loss_of):
        arguments = problem()
        arguments["student_hidden"] = arguments["student_weight"][ids].tanh()
        loss_of(arguments).backward()
        return arguments["student_weight"].grad

    torch.testing.assert_close(gradient(fused), gradient(reference_loss))


def test_a_second_backward_raises():
    arguments = problem()
    loss = fused(arguments)
    loss.backward(retain_graph=True)
    before = arguments["student_weight"].grad.clone()
    with pytest.raises(RuntimeError, match="first backward pass"):
        loss.backward()
    torch.testing.assert_close(arguments["student_weight"].grad, before, rtol=0, atol=0)


def test_only_the_loss_is_differentiable():
    result = run(problem(labels=True))
    assert result.loss.requires_grad
    for name in ("forward_kl", "reverse_kl", "student_entropy", "student_nll", "teacher_nll"):
        assert not getattr(result, name).requires_grad, name


def test_the_teacher_and_frozen_tensors_get_no_gradient():
    arguments = problem(bias=True)
    expected = gradients(fused(arguments), arguments)[0]
    arguments["student_weight"].requires_grad_(False)
    arguments["student_bias"].requires_grad_(False)
    arguments["teacher_hidden"].requires_grad_()
    arguments["teacher_weight"].requires_grad_()
    fused(arguments).backward()
    torch.testing.assert_close(arguments["student_hidden"].grad, expected)
    for name in ("student_weight", "student_bias", "teacher_hidden", "teacher_weight"):
        assert arguments[name].grad is None, name


def test_without_gradients_the_numbers_are_the_same():
    arguments = problem(**OPTIONS["everything"])
    expected = run(arguments)
    with torch.no_grad():
        result = run(arguments)
    assert not result.loss.requires_grad
    for name in vars(expected):
        torch.testing.assert_close(getattr(result, name), getattr(expected, name).detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@EVERY_OPTION
def test_half_precision_is_computed_in_float32(options, dtype):
    halves = problem(dtype=dtype, **options)
    exact = {
        name: value.detach().float().requires_grad_(value.requires_grad)
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in halves.items()
    }
    loss = fused(halves)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, fused(exact))
    for found, expected in zip(gradients(loss, halves), gradients(fused(exact), exact), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected.to(dtype))


def test_near_the_teacher_bfloat16_stays_above_zero():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 32, generator=generator).bfloat16()
    weight = torch.randn(500, 32, generator=generator).bfloat16()
    weights, near = torch.ones(64), (hidden * 1.01).bfloat16()
    result = fused_linear_divergence(near, weight, hidden, weight, token_weights=weights, beta=0.3)
    assert 0 < result.forward_kl.mean() < 0.01
    assert result.forward_kl.min() > -1e-6
    assert result.reverse_kl.min() > -1e-6


def test_autocast_has_no_effect():
    arguments = problem(dtype=torch.float32)
    expected = fused(arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(fused(arguments), expected, rtol=0, atol=0)


def test_tiny_weights_in_half_precision():
    arguments = problem(dtype=torch.float16)
    expected = gradients(fused(arguments), arguments)[1]
    arguments["token_weights"] = arguments["token_weights"] * 2**-20
    found = gradients(fused(arguments) * 2**20, arguments)[1]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"beta": 1.2}, r"beta is 1\.2"),
        ({"beta": math.nan}, "beta is nan"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
        ({"ce_weight": 0.5}, r"ce_weight is 0\.5 without labels"),
        ({"ce_weight": torch.ones(7)}, "ce_weight is a tensor without labels"),
        ({"ce_weight": torch.ones(1), "labels": torch.zeros(7, dtype=torch.long)}, r"ce_weight has shape \[1\]"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"student_softcap": -1.0}, r"student_softcap is -1\.0"),
        ({"vocab_size": 12}, "vocab_size is 12"),
        ({"student_weight": torch.zeros(0)}, r"student_weight \[0\].*ZeRO-3"),
        ({"teacher_weight": torch.zeros(11, 3)}, r"teacher_hidden has shape \[7, 5\] and teacher_weight \[11, 3\]"),
        ({"student_hidden": torch.zeros(1, 7, 4)}, r"token_weights has shape \[7\]; the hidden states need \[1, 7\]"),
        ({"student_hidden": torch.zeros(7)}, r"token_weights has shape \[7\]; the hidden states need \[\]"),
        ({"teacher_hidden": torch.zeros(6, 5)}, r"teacher_hidden has \[6\] tokens"),
        ({"token_weights": torch.ones(6)}, r"token_weights has shape \[6\]"),
        ({"token_weights": torch.ones(7, 1)}, r"token_weights has shape \[7, 1\]"),
        ({"labels": torch.zeros(8, dtype=torch.long)}, r"labels has shape \[8\]"),
        ({"labels": torch.full((7,), 11)}, "labels holds 11"),
        ({"labels": torch.full((7,), -1)}, "labels holds -1"),
        ({"teacher_bias": torch.zeros(3)}, r"teacher_bias has shape \[3\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_invalid_arguments(change, words):
    with pytest.raises(ValueError, match=words):
        run(problem() | change)
