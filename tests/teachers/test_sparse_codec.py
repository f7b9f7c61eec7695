"""Packed sparse signals: ids are exact, probabilities within the documented bounds, sizes as documented."""

import pytest
import torch

from trl_akd.losses.signals import SparseSignal
from trl_akd.teachers.sparse_codec import SparseCodec

QWEN, LLAMA = 151_936, 128_256


def logits(kind: str, tokens: int, vocabulary: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tokens + vocabulary)
    noise = torch.randn(tokens, vocabulary, generator=generator, dtype=torch.float64)
    if kind == "peaked":
        noise[:, 0] += 40.0
    if kind == "equal":
        noise.zero_()
    if kind == "impossible":  # probabilities of 0, also among the most probable tokens
        noise[:, 2:] = -torch.inf
    return noise * {"flat": 0.1, "usual": 4.0, "steep": 30.0}.get(kind, 1.0)


@pytest.mark.parametrize(("k", "limit"), [(128, 300), (50, 120)])
@pytest.mark.parametrize("vocabulary", [QWEN, 152_064, LLAMA])
def test_size(vocabulary: int, k: int, limit: int):
    codec = SparseCodec(vocabulary, k)
    signal = SparseSignal(
        torch.arange(k).repeat(3, 1) * (vocabulary // k), torch.full((3, k), -5.0), torch.full((3,), -1.0)
    )
    assert codec.encode(signal).shape == (3, codec.bytes_per_token)
    assert codec.bytes_per_token < limit


@pytest.mark.parametrize("kind", ["flat", "usual", "steep", "peaked", "equal", "impossible"])
@pytest.mark.parametrize(("vocabulary", "k"), [(1, 1), (2, 1), (5, 3), (320, 16), (320, 320), (1024, 50)])
def test_errors_are_within_the_bounds(kind: str, vocabulary: int, k: int):
    """The bounds of the docstring, against the signal in float64."""
    whole = SparseSignal.from_logits(logits(kind, 7, vocabulary), k)
    ids, order = whole.ids.sort(dim=-1)
    expected = whole.log_probs.gather(-1, order).clamp(min=whole.log_probs[:, :1] - 31.5)
    found = SparseCodec(vocabulary, k).decode(SparseCodec(vocabulary, k).encode(whole))
    assert torch.equal(found.ids, ids)
    assert torch.equal(found.tail_log_prob.isneginf(), whole.tail_log_prob.isneginf())
    total = torch.cat([found.log_probs, found.tail_log_prob.unsqueeze(-1)], dim=-1).logsumexp(-1)
    torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-5, rtol=0)

    below = [signal.amax(-1, keepdim=True) - signal for signal in (expected, found.log_probs.double())]
    largest = (below[0].amax(-1, keepdim=True) * 2).ceil().clamp(min=1) / 2
    bound = largest / (32 if 32 < k < 64 else 64)
    assert ((below[0] - below[1]).abs() <= bound * (1 + 1 / 32) + 1e-5).all()
    is_fine = (below[0] - below[1]).abs() <= bound / 32 + 1e-5
    assert (is_fine.sum(-1) >= min(k, max(9, k // 6))).all()

    kept = whole.log_probs.logsumexp(-1)
    odds = [whole.tail_log_prob - kept, found.tail_log_prob - found.log_probs.logsumexp(-1)]
    usual = odds[0].abs() < 31
    torch.testing.assert_close(odds[1][usual].double(), odds[0][usual], atol=0.0045, rtol=1e-5)


@pytest.mark.parametrize("k", [0, 6, -1])
def test_k_beyond_the_vocabulary(k: int):
    with pytest.raises(ValueError, match="keep between 1 and all 5 tokens"):
        SparseCodec(5, k)
