"""Encodings of a teacher's signal in a cache: hidden states, as they are or in 8 bits, and packed sparse signals.

Hidden states may be stored with the most probable tokens, from which, with a few sampled others, a loss is estimated.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses.lm_head import LMHead
from ..losses.signals import DenseSignal, SampledSignal, SparseSignal, TeacherSignal
from .cache_files import Manifest
from .sparse_codec import SparseCodec

__all__ = ["Encoding", "HiddenEncoding", "SparseEncoding", "encoding_of"]

_CHUNK = 1024  # tokens whose logits are computed at a time


@dataclass(frozen=True)
class HiddenEncoding:
    """Final hidden states, in a floating-point dtype or in 8 bits with one scale per token.

    Args:
        dtype (`torch.dtype`):
            `torch.int8`, or the dtype of the stored hidden states.
        hidden_size (`int`):
            Number of elements of a hidden state.
        head (`LMHead`, *optional*):
            LM head of the decoded signals.
        top_k (`int`, *optional*):
            Number of most probable tokens that are stored with each hidden state. By default none.
        vocabulary_size (`int`, *optional*):
            Number of leading token ids from which they are chosen.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of their log-probabilities.
    """

    dtype: torch.dtype
    hidden_size: int
    head: LMHead | None = None
    top_k: int | None = None
    vocabulary_size: int | None = None
    temperature: float = 1.0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stored tensors."""
        return self.decoded_names if self.top_k is None else (*self.decoded_names, *_TOP)

    @property
    def decoded_names(self) -> tuple[str, ...]:
        """Names of the stored tensors that [`decode`] needs."""
        return ("hidden", "scale") if self.dtype == torch.int8 else ("hidden",)

    @property
    def bytes_per_token(self) -> int:
        """Size of a stored signal."""
        hidden = self.hidden_size * self.dtype.itemsize + (4 if self.dtype == torch.int8 else 0)
        return hidden if self.top_k is None else hidden + 8 * self.top_k + 8

    def encode(self, signal: TeacherSignal) -> dict[str, Tensor]:
        """Return the tensors to store, on the CPU, for a dense signal of tokens `[N]`.

        Raises:
            ValueError: If the signal is sparse, or the dtype cannot represent a value.
        """
        if not isinstance(signal, DenseSignal):
            raise ValueError(
                "`cache_kind` is 'hidden', but the teacher returns sparse signals, without hidden states; choose "
                "'sparse'."
            )
        stored = self._encode_hidden(signal.hidden)
        return stored if self.top_k is None else stored | self._encode_top(stored, signal)

    def _encode_hidden(self, hidden: Tensor) -> dict[str, Tensor]:
        if self.dtype != torch.int8:
            stored = hidden.to("cpu", self.dtype)
            if not torch.isfinite(stored).all():
                name, largest = str(self.dtype).removeprefix("torch."), torch.finfo(self.dtype).max
                raise ValueError(
                    f"`cache_dtype` is {name!r}, but the teacher's hidden states have values above its largest, "
                    f"{largest:g}; choose 'bfloat16' or 'auto'."
                )
            return {"hidden": stored}
        hidden = hidden.float()
        scale = hidden.abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        return {"hidden": (hidden / scale.unsqueeze(-1)).round().to("cpu", torch.int8), "scale": scale.cpu()}

    def _encode_top(self, stored: Mapping[str, Tensor], signal: DenseSignal) -> dict[str, Tensor]:
        """Return the most probable tokens of the hidden states as they are stored."""
        assert self.top_k is not None and self.vocabulary_size is not None
        hidden = self._values(stored).to(signal.hidden.device)
        parts = []
        for logits in _logits(DenseSignal(hidden, signal.head), self.vocabulary_size):
            top = SparseSignal.from_logits(logits, self.top_k, self.temperature)
            normalizer = (logits / self.temperature).logsumexp(-1)
            parts.append((top.ids.to("cpu", torch.int32), top.log_probs, top.tail_log_prob, normalizer))
        return {name: torch.cat(tensors).cpu() for name, tensors in zip(_TOP, zip(*parts, strict=True), strict=True)}

    def decode(self, stored: Mapping[str, Tensor], shape: torch.Size, index: tuple[Tensor, Tensor]) -> DenseSignal:
        """Return a dense signal of `shape` `[B, T]`, with the stored tensors at `index` and NaN elsewhere.

        Hidden states of 8 bits become float32. The index, of rows and columns, and the stored tensors are on the
        device of the signal.
        """
        assert self.head is not None
        return DenseSignal(_placed(self._values(stored), shape, index), self.head)

    def decode_sampled(
        self,
        stored: Mapping[str, Tensor],
        shape: torch.Size,
        index: tuple[Tensor, Tensor],
        offsets: Tensor,
        samples: int,
    ) -> SampledSignal:
        """Return a signal of which `samples` tokens of each tail are sampled, otherwise as [`decode`] does.

        Args:
            stored (`Mapping[str, torch.Tensor]`), shape (`torch.Size`), index (`tuple`):
                As in [`decode`], with the most probable tokens.
            offsets (`torch.Tensor`):
                One random number per stored signal, see [`SampledSignal`].
            samples (`int`):
                Maximum number of sampled tokens per position.
        """
        assert self.top_k is not None
        dense = self.decode(stored, shape, index)
        ids = torch.arange(self.top_k, device=dense.hidden.device).repeat(*shape, 1)
        ids[index] = stored["top_ids"].long()
        log_probs, tail, normalizer, placed_offsets = (
            _placed(each, shape, index)
            for each in (stored["top_log_probs"], stored["tail_log_prob"], stored["log_normalizer"], offsets)
        )
        top = SparseSignal(ids, log_probs, tail, self.temperature)
        return SampledSignal(top, dense.hidden, dense.head, normalizer, placed_offsets, samples)

    def _values(self, stored: Mapping[str, Tensor]) -> Tensor:
        values = stored["hidden"]
        return values.float() * stored["scale"].unsqueeze(-1) if self.dtype == torch.int8 else values


_TOP = ("top_ids", "top_log_probs", "tail_log_prob", "log_normalizer")


def _placed(values: Tensor, shape: torch.Size, index: tuple[Tensor, Tensor]) -> Tensor:
    """Return a tensor of `shape` and the other dimensions of the values, with the values at `index`, NaN elsewhere."""
    placed = values.new_full((*shape, *values.shape[1:]), torch.nan)
    placed[index] = values
    return placed


def _logits(signal: DenseSignal, vocabulary_size: int) -> Iterator[Tensor]:
    """Yield the logits of a signal of tokens `[N]`, float32, some tokens at a time."""
    head = signal.head.cut(vocabulary_size, torch.float32)
    for hidden in torch.split(signal.hidden, _CHUNK):
        logits = hidden.new_empty(len(hidden), vocabulary_size, dtype=torch.float32)
        yield head.finish_(head.project(hidden, out=logits))


@dataclass(frozen=True)
class SparseEncoding:
    """The most probable tokens and the tail, packed by [`SparseCodec`].

    Args:
        codec (`SparseCodec`):
            Encoding of one signal.
        temperature (`float`):
            Temperature of the distribution.
    """

    codec: SparseCodec
    temperature: float

    @property
    def top_k(self) -> int:
        """Number of stored tokens."""
        return self.codec.k

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stored tensors."""
        return ("packed",)

    @property
    def decoded_names(self) -> tuple[str, ...]:
        """Names of the stored tensors that [`decode`] needs."""
        return self.names

    @property
    def bytes_per_token(self) -> int:
        """Size of a stored signal."""
        return self.codec.bytes_per_token

    def encode(self, signal: TeacherSignal) -> dict[str, Tensor]:
        """Return the tensors to store, on the CPU, for a signal of tokens `[N]`.

        Of a sparse signal of more tokens, the least probable ones are added to the tail.

        Raises:
            ValueError: If the signal has fewer tokens, or another temperature.
        """
        if isinstance(signal, SparseSignal):
            return {"packed": self.codec.encode(self._fewer_tokens(signal)).cpu()}
        if isinstance(signal, SampledSignal):
            signal = DenseSignal(signal.hidden, signal.head)
        parts = [
            self.codec.encode(SparseSignal.from_logits(logits, self.codec.k, self.temperature)).cpu()
            for logits in _logits(signal, self.codec.vocabulary_size)
        ]
        return {"packed": torch.cat(parts)}

    def decode(self, stored: Mapping[str, Tensor], shape: torch.Size, index: tuple[Tensor, Tensor]) -> SparseSignal:
        """Return a sparse signal of `shape` `[B, T]`, as [`HiddenEncoding.decode`] does."""
        found = self.codec.decode(stored["packed"], self.temperature)
        ids = torch.arange(self.codec.k, device=found.ids.device).repeat(*shape, 1)
        ids[index] = found.ids
        log_probs, tail = (_placed(each, shape, index) for each in (found.log_probs, found.tail_log_prob))
        return SparseSignal(ids, log_probs, tail, self.temperature)

    def _fewer_tokens(self, signal: SparseSignal) -> SparseSignal:
        given, k = int((signal.ids >= 0).sum(-1).min()), self.codec.k
        if given < k or signal.temperature != self.temperature:
            raise ValueError(
                f"the teacher returns {given} tokens or more per position at temperature {signal.temperature}, but "
                f"the cache is for `cache_top_k` {k} at `kd_temperature` {self.temperature}; give at most {given} and "
                "the same temperature."
            )
        log_probs, order = signal.log_probs.sort(dim=-1, descending=True)
        rest = torch.cat([log_probs[..., k:], signal.tail_log_prob.unsqueeze(-1)], dim=-1)
        return SparseSignal(
            signal.ids.gather(-1, order)[..., :k], log_probs[..., :k], rest.logsumexp(-1), signal.temperature
        )


Encoding = HiddenEncoding | SparseEncoding


def encoding_of(manifest: Manifest, head: LMHead | None = None) -> Encoding:
    """Return the encoding that a manifest describes, with the LM head of decoded signals."""
    if manifest.kind == "hidden":
        assert manifest.hidden_size is not None
        return HiddenEncoding(
            getattr(torch, manifest.dtype),
            manifest.hidden_size,
            head,
            manifest.top_k,
            manifest.vocabulary_size,
            manifest.temperature,
        )
    assert manifest.top_k is not None
    return SparseEncoding(SparseCodec(manifest.vocabulary_size, manifest.top_k), manifest.temperature)
