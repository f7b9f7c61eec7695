"""The readable divergences, against the equations."""

import math

import pytest
import torch

from tests import oracles
from trl_akd.losses import forward_kl, reverse_kl, shared_vocabulary

BOTH = pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(2, 2, 5, 11, generator=generator, dtype=torch.float64)


def test_two_words_by_hand():
    student, teacher = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 1.0]).log()
    assert forward_kl(student, teacher).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert reverse_kl(student, teacher).item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_equals_loops(logits, temperature):
    student, teacher = logits
    forward, reverse = forward_kl(student, teacher, temperature), reverse_kl(student, teacher, temperature)
    assert forward.shape == (2, 5)
    for index in torch.cartesian_prod(torch.arange(2), torch.arange(5)):
        token = oracles.akd_token(
            student[*index].tolist(), teacher[*index].tolist(), beta=0.0, temperature=temperature
        )
        assert forward[*index].item() == pytest.approx(token["forward_kl"], abs=1e-12)
        assert reverse[*index].item() == pytest.approx(token["reverse_kl"], abs=1e-12)


def test_directions_are_each_others_mirror(logits):
    torch.testing.assert_close(forward_kl(*logits), reverse_kl(*logits.flip(0)))


@BOTH
def test_zero_only_between_equals(divergence, logits):
    student, teacher = logits
    assert divergence(student, student).abs().max() < 1e-15
    assert divergence(student, teacher).min() > 0.01


@BOTH
def test_a_constant_on_all_logits_changes_nothing(divergence, logits):
    student, teacher = logits
    torch.testing.assert_close(divergence(student + 7.0, teacher - 3.0), divergence(student, teacher))


@BOTH
def test_the_order_of_the_vocabulary_changes_nothing(divergence, logits):
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(divergence(*logits[..., order]), divergence(*logits))


@BOTH
def test_gradient(divergence, logits):
    student, teacher = logits
    assert torch.autograd.gradcheck(lambda s, t: divergence(s, t, 1.7), [student.requires_grad_(), teacher.clone()])


@BOTH
def test_words_beyond_the_shared_vocabulary_do_not_count(divergence, logits):
    student, teacher = logits
    expected = divergence(student[..., :8], teacher[..., :8])
    torch.testing.assert_close(divergence(student[..., :8], teacher), expected)
    torch.testing.assert_close(divergence(student, teacher[..., :8]), expected)
    assert [cut.shape[-1] for cut in shared_vocabulary(student, teacher[..., :8])] == [8, 8]


@BOTH
def test_words_impossible_for_both_add_nothing(divergence, logits):
    student, teacher = (torch.nn.functional.pad(side, (0, 3), value=-math.inf) for side in logits)
    student.requires_grad_()
    loss = divergence(student, teacher)
    torch.testing.assert_close(loss, divergence(*logits))
    loss.sum().backward()
    assert student.grad.isfinite().all()
    assert (student.grad[..., 11:] == 0).all()


def test_words_impossible_for_one():
    sure, unsure = torch.tensor([0.0, -math.inf]), torch.tensor([0.0, 0.0])
    assert forward_kl(unsure, sure).item() == pytest.approx(math.log(2))
    assert reverse_kl(sure, unsure).item() == pytest.approx(math.log(2))
    assert forward_kl(sure, unsure) == math.inf
    assert reverse_kl(unsure, sure) == math.inf


@BOTH
def test_halves_are_computed_in_float32(divergence, logits):
    student, teacher = logits.bfloat16()
    near = divergence(student, (student + 0.01).bfloat16())
    assert near.dtype == torch.float32
    assert near.min() > -1e-6
    torch.testing.assert_close(divergence(student, teacher), divergence(student.double(), teacher.double()).float())
