"""Contrastive losses compared with float64 loops over the formulas, and their general properties."""

import math

import pytest
import torch

from trl_akd.losses.contrastive import Sequences, dpo, dpo_norm, infonce, log1mexp, simpo, unlikelihood

FAULTS = [2, 0, 3, 1]
LOSSES = {"dpo": dpo, "dpo_norm": dpo_norm, "simpo": simpo, "infonce": infonce}
BETA = {"dpo": 0.1, "dpo_norm": 2.0, "simpo": 2.0, "infonce": 2.0}


def problem(dtype=torch.float64, seed=0):
    """Four pairs with up to three faults; masked values must have no effect."""
    generator = torch.Generator().manual_seed(seed)

    def answers(*shape):
        lengths = torch.randint(1, 40, shape, generator=generator)
        log_probs = -lengths * (0.2 + torch.rand(shape, generator=generator, dtype=torch.float64))
        reference = log_probs + torch.randn(shape, generator=generator, dtype=torch.float64)
        return Sequences(log_probs.to(dtype), lengths, reference.to(dtype))

    mask = torch.arange(3) < torch.tensor(FAULTS).unsqueeze(1)
    return answers(4), answers(4, 3), mask


def reward(name, answers, index, beta):
    ratio = answers.log_probs[index].item()
    if name != "simpo":
        ratio -= answers.reference[index].item()
    return beta * (ratio if name == "dpo" else ratio / answers.lengths[index].item())


def by_hand(name, correct, faulty, beta, margin):
    losses, margins, accuracies = [], [], []
    for pair, count in enumerate(FAULTS):
        right = reward(name, correct, pair, beta)
        wrong = [reward(name, faulty, (pair, k), beta) for k in range(count)]
        if name == "infonce":
            loss = -math.log(math.exp(right) / (math.exp(right) + sum(map(math.exp, wrong))))
        else:
            each = [-math.log(1 / (1 + math.exp(-(right - one - margin)))) for one in wrong]
            loss = sum(each) / max(count, 1)
        losses.append(loss)
        margins.append(sum(right - one for one in wrong) / max(count, 1))
        accuracies.append(float(count > 0 and all(right > one for one in wrong)))
    return losses, margins, accuracies


@pytest.mark.parametrize("settings", [{}, {"beta": 0.7}])
@pytest.mark.parametrize("name", LOSSES)
def test_values(name, settings):
    correct, faulty, mask = problem()
    found = LOSSES[name](correct, faulty, mask=mask, **settings)
    beta, margin = settings.get("beta", BETA[name]), 1.0 if name == "simpo" else 0.0
    for number, expected in zip(found, by_hand(name, correct, faulty, beta, margin), strict=True):
        torch.testing.assert_close(number, torch.tensor(expected, dtype=torch.float64))
    single = LOSSES[name](
        *(Sequences(*(x.float() for x in side)) for side in (correct, faulty)), mask=mask, **settings
    )
    torch.testing.assert_close(single.loss.double(), found.loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name):
    correct, faulty, mask = problem()
    for side in (correct, faulty):
        side.log_probs.requires_grad_()

    def loss(right, wrong):
        return LOSSES[name](correct._replace(log_probs=right), faulty._replace(log_probs=wrong), mask=mask).loss

    assert torch.autograd.gradcheck(loss, (correct.log_probs, faulty.log_probs))
    right, wrong = torch.autograd.grad(
        loss(correct.log_probs, faulty.log_probs).sum(), (correct.log_probs, faulty.log_probs)
    )
    assert (right[[0, 2, 3]] < 0).all() and right[1] == 0
    assert (wrong[mask] > 0).all() and (wrong[~mask] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_faults_does_not_matter(name):
    correct, faulty, mask = problem()
    order = [2, 0, 1]
    shuffled = Sequences(*(tensor[:, order] for tensor in faulty))
    torch.testing.assert_close(
        LOSSES[name](correct, shuffled, mask=mask[:, order]), LOSSES[name](correct, faulty, mask=mask)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_equal_answers(name):
    correct, _, _ = problem()
    twin = Sequences(*(tensor.unsqueeze(1) for tensor in correct))
    found = LOSSES[name](correct, twin, **({"margin": 0.0} if name == "simpo" else {}))
    torch.testing.assert_close(found.loss, torch.full_like(found.loss, math.log(2)))
    assert (found.margin == 0).all() and (found.accuracy == 0).all()


def test_only_dpo_depends_on_length():
    """Each token of an answer twice as long has the same log-probabilities."""
    correct, faulty, mask = problem()
    longer = Sequences(*(2 * tensor for tensor in faulty))
    for name, loss in LOSSES.items():
        same = torch.allclose(loss(correct, longer, mask=mask).loss, loss(correct, faulty, mask=mask).loss)
        assert same == (name != "dpo"), name


def test_infonce_with_one_fault_is_dpo_norm():
    correct, faulty, mask = problem()
    one = Sequences(*(tensor[:, :1] for tensor in faulty))
    torch.testing.assert_close(
        infonce(correct, one, mask=mask[:, :1], beta=0.9), dpo_norm(correct, one, mask=mask[:, :1], beta=0.9)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_extremes(name):
    """Answers that differ by ten thousand nats, in both directions, in float32."""
    correct = Sequences(torch.tensor([-1.0, -1e4]), torch.tensor([1, 1]), torch.tensor([-1.0, -1.0]))
    faulty = Sequences(*(tensor.flip(0).unsqueeze(1) for tensor in correct))
    correct.log_probs.requires_grad_()
    found = LOSSES[name](correct, faulty)
    [gradient] = torch.autograd.grad(found.loss.sum(), correct.log_probs)
    beta = BETA[name]
    assert found.loss[0] < 1e-6 and found.loss[1].item() == pytest.approx(1e4 * beta, rel=1e-3)
    assert gradient[0].abs() < 1e-6 and gradient[1].item() == pytest.approx(-beta)


def test_missing_reference():
    correct, faulty, _ = problem()
    with pytest.raises(ValueError, match="`reference` is missing"):
        dpo(correct._replace(reference=None), faulty)


def test_unlikelihood_values_and_gradients():
    log_probs = torch.log(torch.rand(3, 5, dtype=torch.float64) * 0.98 + 0.01).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    expected = []
    for row, kept in zip(log_probs.tolist(), mask.tolist(), strict=True):
        terms = [-math.log(1 - math.exp(value)) for value, keep in zip(row, kept, strict=True) if keep]
        expected.append(sum(terms) / max(len(terms), 1))
    found = unlikelihood(log_probs, mask)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda values: unlikelihood(values, mask), log_probs)


def test_unlikelihood_of_certain_and_impossible_tokens():
    log_probs = torch.tensor([[0.0, -1e-9, -1e-5, -200.0]], requires_grad=True)
    value = unlikelihood(log_probs, torch.ones(1, 4, dtype=torch.bool))
    [[*sure, impossible]] = torch.autograd.grad(value.sum(), log_probs)[0].tolist()
    assert value.item() == pytest.approx(-3 * math.log(1e-5) / 4, rel=1e-3)
    assert all(slope == pytest.approx(1e5 / 4, rel=1e-3) for slope in sure), "a sure fault is still pushed away"
    assert impossible == 0


@pytest.mark.parametrize("x", [-1e-12, -1e-3, -0.5, -math.log(2), -0.7, -5.0, -50.0])
def test_log1mexp(x):
    value = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    found = log1mexp(value)
    found.backward()
    expected = math.log(-math.expm1(x)) if x > -0.1 else math.log1p(-math.exp(x))
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert value.grad.item() == pytest.approx(-1 / math.expm1(-x), rel=1e-9)
