"""Losses of log-probabilities, compared with autograd through full logits."""

import pytest
import torch

from trl_akd.losses import LMHead, fused_linear_log_probs


def through_logits(hidden, weight, bias, labels, loss, scale=1.0, softcap=None):
    logits = (hidden @ weight.T + (0 if bias is None else bias)) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    found = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None])[:, 0]
    return loss(found.masked_fill(labels == -100, 0.0))


def tensors(dtype=torch.float64, with_bias=True):
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, dtype=dtype).requires_grad_() for shape in ((12, 8), (20, 8), (20,)))
    labels = torch.randint(0, 20, (12,))
    labels[[0, 5]] = -100
    return hidden, weight, bias if with_bias else None, labels


def sequences(log_probs):
    """A loss that is not a sum over tokens, with derivative 0 for the last four."""
    first, second, _ = log_probs.view(3, 4).sum(1)
    return torch.nn.functional.softplus(second - first) ** 2


@pytest.mark.parametrize("options", [{}, {"scale": 0.5, "softcap": 3.0}])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("chunk_size", [1, 5, None])
def test_values_and_gradients(options, with_bias, chunk_size):
    hidden, weight, bias, labels = tensors(with_bias=with_bias)
    wanted = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
    expected = through_logits(hidden, weight, bias, labels, sequences, **options)
    expected_gradients = torch.autograd.grad(expected * 3, wanted)
    head = LMHead(weight, bias, options.get("scale", 1.0), options.get("softcap"))
    found = fused_linear_log_probs(hidden, head, labels=labels, loss=sequences, chunk_size=chunk_size)
    torch.testing.assert_close(found.loss, expected.detach())
    for gradient, reference in zip(torch.autograd.grad(found.loss * 3, wanted), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, reference)


def test_no_targets():
    hidden, weight, bias, labels = tensors()
    found = fused_linear_log_probs(hidden, LMHead(weight, bias), labels=labels, loss=lambda values: 0.0 * values.sum())
    for gradient in torch.autograd.grad(found.loss, (hidden, weight, bias)):
        assert (gradient == 0).all()


def test_tokens_without_labels_have_no_influence():
    """Their derivative is not 0 if the loss adds up all log-probabilities, 0 included."""
    hidden, weight, bias, labels = tensors()
    expected = fused_linear_log_probs(hidden, LMHead(weight, bias), labels=labels, loss=sequences)
    expected_gradients = torch.autograd.grad(expected.loss, (hidden, weight, bias))
    with torch.no_grad():
        hidden[labels == -100] = torch.nan
    found = fused_linear_log_probs(hidden, LMHead(weight, bias), labels=labels, loss=sequences)
    torch.testing.assert_close(vars(found), vars(expected))
    torch.testing.assert_close(torch.autograd.grad(found.loss, (hidden, weight, bias)), expected_gradients)


def test_without_gradients():
    hidden, weight, bias, labels = tensors(torch.float32)
    with torch.no_grad():
        found = fused_linear_log_probs(hidden, LMHead(weight, bias), labels=labels, loss=sequences)
    assert not found.loss.requires_grad and not found.log_probs.requires_grad
    torch.testing.assert_close(found.loss, through_logits(hidden, weight, bias, labels, sequences).detach())
    assert (found.log_probs[labels == -100] == 0).all()
