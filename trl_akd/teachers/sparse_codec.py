"""Compact encoding of sparse signals: 293 bytes per token for 128 of 151,936 tokens, and 119 for 50.

Most of a list of ids and float log-probabilities is redundant, because their order has no meaning. Here the tokens are
sorted by id, and ids are stored by the Elias-Fano code: the low bits of each, and a bitmap of the differences between
their high bits. Log-probabilities are stored as differences to the largest one, with 5 bits each and 6 more for the
most probable tokens, and the tail as the logarithm of its odds. Decoded probabilities and tail sum to 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..losses.signals import SparseSignal

__all__ = ["SparseCodec", "bits_of", "numbers_of"]

_ODDS_BITS, _RANGE_BITS, _FINE_BITS = 13, 6, 6
_ODDS_PER_NAT, _ODDS_ZERO = 128, 1 << (_ODDS_BITS - 1)
_RANGES_PER_NAT = 2
_LARGEST_RANGE = (2**_RANGE_BITS - 1) / _RANGES_PER_NAT  # nats below the most probable token


@dataclass(frozen=True)
class SparseCodec:
    """Encode the sparse signal of a token in a fixed number of bytes.

    The difference of each log-probability to the largest one has an error of at most 1/64 of the range, which is the
    largest difference rounded up to a multiple of 0.5 nats. For the most probable tokens (a sixth, and at least 9), it
    is 1/4096 of the range. With 33 to 63 tokens, these errors are twice as large, so that 50 tokens fit into 120
    bytes. Differences above 31.5 nats are stored as 31.5. The odds of the tail have a relative error of 0.4 %.

    Args:
        vocabulary_size (`int`):
            Number of tokens in the vocabulary.
        k (`int`):
            Number of tokens per signal, at most `vocabulary_size`.

    Raises:
        ValueError: If `k` is not between 1 and `vocabulary_size`.

    Example:

    ```python
    >>> signal = SparseSignal.from_logits(torch.tensor([[8.0, 4.0, 2.0, 1.0, 1.0]]).log(), k=3)
    >>> codec = SparseCodec(vocabulary_size=5, k=3)
    >>> packed = codec.encode(signal)
    >>> packed.shape, packed.dtype
    (torch.Size([1, 8]), torch.uint8)
    >>> decoded = codec.decode(packed)
    >>> decoded.ids, decoded.log_probs.exp(), decoded.tail_log_prob.exp()
    (tensor([[0, 1, 2]]), tensor([[0.4999, 0.2500, 0.1250]]), tensor([0.1251]))

    ```
    """

    vocabulary_size: int
    k: int

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.vocabulary_size:
            raise ValueError(f"k is {self.k}; keep between 1 and all {self.vocabulary_size} tokens.")

    @property
    def bytes_per_token(self) -> int:
        """Number of bytes of one encoded signal."""
        return -(-sum(self._widths) // 8)

    def encode(self, signal: SparseSignal) -> Tensor:
        """Return a signal `[N, k]` as bytes `[N, bytes_per_token]`, uint8."""
        ids, order = signal.ids.sort(dim=-1)
        log_probs = signal.log_probs.gather(-1, order).double()
        kept = log_probs.logsumexp(-1)
        below = (log_probs.amax(-1, keepdim=True) - log_probs).clamp(max=_LARGEST_RANGE)
        ranges = (below.amax(-1) * _RANGES_PER_NAT).ceil().long()
        steps = self._step(ranges)
        intervals = below / steps.clamp(min=torch.finfo(steps.dtype).tiny)
        coarse = intervals.long().clamp(max=2**self._coarse_bits - 1)
        remainder = (intervals - coarse).gather(-1, self._refined_tokens(coarse))
        odds = ((signal.tail_log_prob.double() - kept) * _ODDS_PER_NAT).round().nan_to_num(neginf=-torch.inf)
        odds = torch.where(odds.isneginf(), 0, (odds + _ODDS_ZERO).clamp(1, 2**_ODDS_BITS - 1)).long()
        fields = (
            bits_of(odds.unsqueeze(-1), _ODDS_BITS),
            bits_of(ranges.unsqueeze(-1), _RANGE_BITS),
            bits_of(ids & (2**self._low_bits - 1), self._low_bits),
            self._bitmap(ids >> self._low_bits),
            bits_of(coarse, self._coarse_bits),
            bits_of((remainder * 2**_FINE_BITS).long().clamp(0, 2**_FINE_BITS - 1), _FINE_BITS),
        )
        return _pack(torch.cat(fields, dim=-1))

    def decode(self, packed: Tensor, temperature: float = 1.0) -> SparseSignal:
        """Return the signal `[N, k]` of bytes `[N, bytes_per_token]`, sorted by id, with float32 log-probabilities."""
        bits = bits_of(packed.long(), 8)[:, : sum(self._widths)]
        odds_bits, range_bits, low, bitmap, coarse_bits, fine_bits = torch.split(bits, list(self._widths), dim=-1)
        high = bitmap.nonzero()[:, 1].view(len(packed), self.k) - torch.arange(self.k, device=packed.device)
        ids = (high << self._low_bits) + numbers_of(low, self.k, self._low_bits)
        coarse = numbers_of(coarse_bits, self.k, self._coarse_bits)
        fine = (numbers_of(fine_bits, self._refined, _FINE_BITS).float() + 0.5) / 2**_FINE_BITS
        within = torch.full_like(coarse, 0.5, dtype=torch.float32).scatter_(-1, self._refined_tokens(coarse), fine)
        below = (coarse + within) * self._step(numbers_of(range_bits, 1, _RANGE_BITS)[:, 0])
        code = numbers_of(odds_bits, 1, _ODDS_BITS)[:, 0]
        odds = ((code - _ODDS_ZERO) / _ODDS_PER_NAT).masked_fill(code == 0, -torch.inf)
        log_probs = -below - (softplus(odds) + (-below).logsumexp(-1)).unsqueeze(-1)
        return SparseSignal(ids, log_probs, -softplus(-odds), temperature)

    @property
    def _low_bits(self) -> int:
        return (self.vocabulary_size // self.k).bit_length() - 1

    @property
    def _coarse_bits(self) -> int:
        return 4 if 32 < self.k < 64 else 5

    @property
    def _refined(self) -> int:
        return min(self.k, max(9, self.k // 6))

    @property
    def _widths(self) -> tuple[int, ...]:
        """Number of bits of each field."""
        return (
            _ODDS_BITS,
            _RANGE_BITS,
            self.k * self._low_bits,
            self.k + ((self.vocabulary_size - 1) >> self._low_bits),
            self.k * self._coarse_bits,
            self._refined * _FINE_BITS,
        )

    def _step(self, ranges: Tensor) -> Tensor:
        """Return the width `[N, 1]` of the intervals of differences in nats."""
        return (ranges / (_RANGES_PER_NAT << self._coarse_bits)).unsqueeze(-1)

    def _refined_tokens(self, coarse: Tensor) -> Tensor:
        """Return the indices of the most probable tokens, of those in one interval the ones with the lowest ids."""
        return coarse.argsort(dim=-1, stable=True)[:, : self._refined]

    def _bitmap(self, high: Tensor) -> Tensor:
        """Return the Elias-Fano bitmap of ascending numbers."""
        bitmap = torch.zeros(len(high), self._widths[3], dtype=torch.uint8, device=high.device)
        return bitmap.scatter_(-1, high + torch.arange(self.k, device=high.device), 1)


def bits_of(numbers: Tensor, width: int) -> Tensor:
    """Return the lowest `width` bits of numbers `[N, n]` as `[N, n * width]`, the highest first."""
    shifts = torch.arange(width - 1, -1, -1, device=numbers.device)
    return ((numbers.unsqueeze(-1) >> shifts) & 1).to(torch.uint8).flatten(1)


def numbers_of(bits: Tensor, count: int, width: int) -> Tensor:
    """Return the numbers `[N, count]` of bits `[N, count * width]`."""
    weights = 1 << torch.arange(width - 1, -1, -1, device=bits.device)
    numbers: Tensor = (bits.view(len(bits), count, width) * weights).sum(-1)
    return numbers


def _pack(bits: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % 8))
    return numbers_of(padded, padded.shape[-1] // 8, 8).to(torch.uint8)
