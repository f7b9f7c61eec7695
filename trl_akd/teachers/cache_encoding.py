"""Encodings of a teacher's signal in a cache: hidden states, as they are or in 8 bits, and packed sparse signals."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses.lm_head import LMHead
from ..losses.signals import DenseSignal, SparseSignal, TeacherSignal
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
    """

    dtype: torch.dtype
    hidden_size: int
    head: LMHead | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stored tensors."""
        return ("hidden", "scale") if self.dtype == torch.int8 else ("hidden",)

    @property
    def bytes_per_token(self) -> int:
        """Size of a stored signal."""
        return self.hidden_size * self.dtype.itemsize + (4 if self.dtype == torch.int8 else 0)

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
        if self.dtype != torch.int8:
            stored = signal.hidden.to("cpu", self.dtype)
            if not torch.isfinite(stored).all():
                name, largest = str(self.dtype).removeprefix("torch."), torch.finfo(self.dtype).max
                raise ValueError(
                    f"`cache_dtype` is {name!r}, but the teacher's hidden states have values above its largest, "
                    f"{largest:g}; choose 'bfloat16' or 'auto'."
                )
            return {"hidden": stored}
        hidden = signal.hidden.float()
        scale = hidden.abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        return {"hidden": (hidden / scale.unsqueeze(-1)).round().to("cpu", torch.int8), "scale": scale.cpu()}

    def decode(self, stored: Mapping[str, Tensor], shape: torch.Size, index: tuple[Tensor, Tensor]) -> DenseSignal:
        """Return a dense signal of `shape` `[B, T]`, with the stored tensors at `index` and NaN elsewhere.

        Hidden states of 8 bits become float32. The index, of rows and columns, and the stored tensors are on the
        device of the signal.
        """
        assert self.head is not None
        values = stored["hidden"]
        if self.dtype == torch.int8:
            values = values.float() * stored["scale"].unsqueeze(-1)
        hidden = values.new_full((*shape, self.hidden_size), torch.nan)
        hidden[index] = values
        return DenseSignal(hidden, self.head)


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
    def names(self) -> tuple[str, ...]:
        """Names of the stored tensors."""
        return ("packed",)

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
        head = signal.head.cut(self.codec.vocabulary_size, torch.float32)
        parts = []
        for hidden in torch.split(signal.hidden, _CHUNK):
            logits = hidden.new_empty(len(hidden), self.codec.vocabulary_size, dtype=torch.float32)
            logits = head.finish_(head.project(hidden, out=logits))
            parts.append(self.codec.encode(SparseSignal.from_logits(logits, self.codec.k, self.temperature)).cpu())
        return {"packed": torch.cat(parts)}

    def decode(self, stored: Mapping[str, Tensor], shape: torch.Size, index: tuple[Tensor, Tensor]) -> SparseSignal:
        """Return a sparse signal of `shape` `[B, T]`, as [`HiddenEncoding.decode`] does."""
        found = self.codec.decode(stored["packed"], self.temperature)
        ids = torch.arange(self.codec.k, device=found.ids.device).repeat(*shape, 1)
        log_probs = found.log_probs.new_full((*shape, self.codec.k), torch.nan)
        tail = found.tail_log_prob.new_full(shape, torch.nan)
        ids[index], log_probs[index], tail[index] = found.ids, found.log_probs, found.tail_log_prob
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
        return HiddenEncoding(getattr(torch, manifest.dtype), manifest.hidden_size, head)
    assert manifest.top_k is not None
    return SparseEncoding(SparseCodec(manifest.vocabulary_size, manifest.top_k), manifest.temperature)
