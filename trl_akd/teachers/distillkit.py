"""Teachers from datasets in the format of DistillKit, which stores compressed log-probabilities next to token ids.

A position has three parts, without separators: the largest log-probabilities as floating-point numbers, the
coefficients of a curve through the others, and the residuals of that curve in bins of few bits. Token ids are packed
in a column of their own, the most probable first. See the
[compression of DistillKit](https://github.com/arcee-ai/DistillKit/tree/main/distillkit/compression).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import count
from typing import Any, Literal, Self, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor

from ..data.collators import split_samples
from ..losses.signals import NO_TOKEN, SparseSignal
from .cache_files import row_key
from .sparse_codec import bits_of, numbers_of

__all__ = ["DistillKitFormat", "DistillKitTeacher", "ResidualBin"]

FloatName = Literal["float16", "bfloat16", "float32", "float64"]

_COLUMNS = ("input_ids", "compressed_logprobs", "bytepacked_indices")
_SMALLEST_TAIL = 1e-6  # probabilities are known to about this


@dataclass(frozen=True)
class ResidualBin:
    """Residuals of consecutive tokens with one scale.

    Args:
        scale_dtype (`str`):
            Dtype of the scale.
        element_bits (`int`):
            Bits per residual.
        num_elements (`int`):
            Number of residuals.
    """

    scale_dtype: FloatName
    element_bits: int
    num_elements: int


@dataclass(frozen=True)
class DistillKitFormat:
    """Format of compressed log-probabilities: the content of DistillKit's `compression_config.yaml`.

    Args:
        d (`int`):
            Number of tokens in the vocabulary, which determines the bits per id.
        k (`int`):
            Number of tokens per position.
        exact_k (`int`):
            Number of the most probable tokens whose log-probabilities are stored as floating-point numbers.
        exact_dtype (`str`, *optional*, defaults to `"float32"`):
            Their dtype.
        polynomial_terms (`Sequence[int | str]`, *optional*):
            Terms of the curve through the other log-probabilities: exponents, `"sqrt"` or `"exp"`.
        term_dtype (`str`, *optional*, defaults to `"float32"`):
            Dtype of the coefficients.
        residual_bins (`Sequence[ResidualBin]`, *optional*):
            Bins of residuals.
        delta_encoding (`bool`, *optional*, defaults to `True`):
            Whether differences to the previous token are stored.
        error_diffusion (`bool`, *optional*, defaults to `False`):
            Whether errors were diffused when the data was written. It makes no difference to reading.
        normalize_t (`bool`, *optional*, defaults to `False`):
            Whether the argument of the curve is in [0, 1] instead of the number of the token.

    Raises:
        ValueError: If a value is outside its range.

    Example:

    ```python
    >>> DistillKitFormat(d=151_936, k=50, exact_k=1, exact_dtype="bfloat16", polynomial_terms=[0, 1, "sqrt"]).widths
    (14, 113)

    ```
    """

    d: int
    k: int
    exact_k: int
    exact_dtype: FloatName = "float32"
    polynomial_terms: Sequence[int | str] | None = None
    term_dtype: FloatName = "float32"
    residual_bins: Sequence[ResidualBin] = ()
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.exact_k <= self.k <= self.d and self.k > 0):
            raise ValueError(
                f"`k` is {self.k}, `exact_k` {self.exact_k} and `d` {self.d}; give 0 <= exact_k <= k <= d, as in the "
                "compression_config.yaml of the data."
            )
        for name in (self.exact_dtype, self.term_dtype, *(each.scale_dtype for each in self.residual_bins)):
            if name not in get_args(FloatName):
                raise ValueError(
                    f"{name!r} is not a dtype of DistillKit; choose from {', '.join(get_args(FloatName))}."
                )
        for term in self.polynomial_terms or ():
            if term not in ("sqrt", "exp") and not isinstance(term, int):
                raise ValueError(f"`polynomial_terms` has {term!r}; give integers, 'sqrt' or 'exp'.")
        if sum(each.num_elements for each in self.residual_bins) > self.k - self.exact_k:
            raise ValueError("`residual_bins` have more elements than k - exact_k; give those of the data.")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the format of a `compression_config.yaml`, or of `logprob_compressor` in a recipe of DistillKit.

        Raises:
            ValueError: If the configuration has unknown or missing keys.
        """
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(config) - known):
            raise ValueError(
                f"the configuration has {', '.join(map(repr, unknown))}, which DistillKit's current format does not "
                "have; its older format has no normalized probabilities and cannot be read."
            )
        try:
            bins = [ResidualBin(**each) for each in config.get("residual_bins") or ()]
            return cls(**{**config, "residual_bins": bins})
        except TypeError as error:
            raise ValueError(f"the configuration is not DistillKit's ({error}).") from None

    @property
    def widths(self) -> tuple[int, int]:
        """Number of bytes per position of the log-probabilities and of the ids."""
        floats = self.exact_k * _dtype(self.exact_dtype).itemsize
        floats += len(self.polynomial_terms or ()) * _dtype(self.term_dtype).itemsize
        bins = [
            _dtype(each.scale_dtype).itemsize + -(-each.element_bits * each.num_elements // 8)
            for each in self.residual_bins
        ]
        return floats + sum(bins), -(-self.k * self._id_bits // 8)

    def decode(self, log_probs: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids `[N, k]`, int64, and log-probabilities `[N, k]`, float32, of positions.

        Args:
            log_probs (`torch.Tensor` of shape `[N, bytes]`):
                Compressed log-probabilities, uint8.
            ids (`torch.Tensor` of shape `[N, bytes]`):
                Packed ids, uint8.

        Raises:
            ValueError: If the numbers of bytes are not those of this format.
        """
        if (found := (log_probs.shape[-1], ids.shape[-1])) != self.widths:
            raise ValueError(
                f"a position has {found[0]} bytes of log-probabilities and {found[1]} of ids, but the configuration "
                f"needs {self.widths[0]} and {self.widths[1]}; give the compression_config.yaml of the data."
            )
        exact, rest = _take(log_probs, self.exact_dtype, self.exact_k)
        values = torch.zeros(len(rest), self.k - self.exact_k)
        if self.polynomial_terms:
            coefficients, rest = _take(rest, self.term_dtype, len(self.polynomial_terms))
            values += (self._curve(coefficients.dtype) * coefficients.unsqueeze(-2)).sum(-1).float()
        start = 0
        for each in self.residual_bins:
            scale, rest = _take(rest, each.scale_dtype, 1)
            width = -(-each.element_bits * each.num_elements // 8)
            levels = _unpack(rest[:, :width], each.num_elements, each.element_bits)
            centered = 2 * levels - 1 if each.element_bits == 1 else levels - (1 << (each.element_bits - 1))
            values[:, start : start + each.num_elements] += centered * scale.float()
            start, rest = start + each.num_elements, rest[:, width:]
        found_values = torch.cat([exact.float(), values], dim=-1)
        if self.delta_encoding:
            found_values = found_values.cumsum(-1)
        return _unpack(ids, self.k, self._id_bits), found_values

    @property
    def _id_bits(self) -> int:
        return int(torch.tensor(self.d, dtype=torch.float32).log2().ceil())  # in float32, as DistillKit does

    def _curve(self, dtype: torch.dtype) -> Tensor:
        """Return the terms `[k - exact_k, terms]` of the curve."""
        number = self.k - self.exact_k
        points = torch.linspace(0, 1, number, dtype=dtype) if self.normalize_t else torch.arange(number, dtype=dtype)
        terms = [
            points**term if isinstance(term, int) else getattr(points, term)() for term in self.polynomial_terms or ()
        ]
        return torch.stack(terms, dim=-1)


class DistillKitTeacher:
    """Teacher whose signals were captured by DistillKit, such as `arcee-ai/Qwen3-235B-Logits-Packed-8192`.

    Train on the token ids of the same dataset: a row is found by its tokens. All other tokens are one outcome, so
    divergences are lower bounds up to the error of the compression. Where that makes probabilities sum to more than 1,
    they are scaled.

    Args:
        dataset (`Dataset`):
            Rows with the columns `input_ids`, `compressed_logprobs` and `bytepacked_indices`.
        format ([`DistillKitFormat`]):
            Format of the compressed columns.
        vocabulary_size (`int`, *optional*):
            Number of leading token ids that student and teacher share. Others count in the total of all others.
            Defaults to `format.d`.

    Raises:
        ValueError: If the dataset does not have these columns.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> rows = Dataset.from_dict({"input_ids": [[5, 2]], "compressed_logprobs": [[[0, 0, 128, 191]]],
    ...                           "bytepacked_indices": [[[64]]]})
    >>> teacher = DistillKitTeacher(rows, DistillKitFormat(d=8, k=1, exact_k=1))
    >>> teacher.forward({"input_ids": torch.tensor([[5, 2]])})
    >>> signal = teacher.signal(None)[:, 0]
    >>> signal.ids, signal.log_probs, signal.tail_log_prob.exp()
    (tensor([[2]]), tensor([[-1.]]), tensor([0.6321]))

    ```
    """

    def __init__(self, dataset: Dataset, format: DistillKitFormat, vocabulary_size: int | None = None) -> None:
        if missing := [name for name in _COLUMNS if name not in dataset.column_names]:
            raise ValueError(
                f"the dataset has no column {', '.join(map(repr, missing))}, but {', '.join(dataset.column_names)}; "
                "give one that DistillKit captured in its current format."
            )
        self.vocabulary_size = format.d if vocabulary_size is None else min(vocabulary_size, format.d)
        self._format = format
        self._rows = dataset.select_columns(_COLUMNS[1:]).with_format("arrow")
        self._numbers: dict[bytes, int] = {}
        number = count()
        for batch in dataset.select_columns(_COLUMNS[:1]).with_format("arrow").iter(batch_size=1000):
            tokens = pc.list_flatten(batch["input_ids"]).to_numpy().astype(np.int32)
            for row in np.split(tokens, np.cumsum(pc.list_value_length(batch["input_ids"]).to_numpy())[:-1]):
                self._numbers.setdefault(row_key(row), next(number))
        self._signal: SparseSignal | None = None

    def forward(self, inputs: Mapping[str, Any]) -> None:
        """Read the signals of a batch.

        Raises:
            ValueError: If a row is not one of the dataset, or its signals are of another format.
        """
        input_ids = inputs["input_ids"]
        tokens = input_ids.cpu().numpy().astype(np.int32)
        shape = *input_ids.shape, self._format.k
        ids = torch.arange(self._format.k).repeat(*input_ids.shape, 1)
        log_probs, tail = torch.full(shape, torch.nan), torch.full(shape[:-1], torch.nan)
        for row, columns in split_samples(inputs):
            if len(columns) > 1:
                own = self._read(tokens[row, columns.cpu()])
                places = columns[: len(own.ids)].cpu()
                ids[row, places], log_probs[row, places], tail[row, places] = own.ids, own.log_probs, own.tail_log_prob
        device = input_ids.device
        self._signal = SparseSignal(ids.to(device), log_probs.to(device), tail.to(device))

    def signal(self, student: Any) -> SparseSignal:
        """Return the signal of the last batch, on the device of its inputs."""
        if self._signal is None:
            raise RuntimeError("`signal` was called before `forward`.")
        signal, self._signal = self._signal, None
        return signal

    def _read(self, tokens: np.ndarray[Any, Any]) -> SparseSignal:
        number = self._numbers.get(row_key(tokens))
        if number is None:
            raise ValueError(
                f"the dataset of DistillKit has no row with the {len(tokens)} tokens of a row of the batch; train on "
                "its own `input_ids`, without `packing`, and with a `max_length` of at least its longest row."
            )
        table = self._rows[number]
        ids, log_probs = self._format.decode(_bytes(table["compressed_logprobs"]), _bytes(table["bytepacked_indices"]))
        is_known = torch.isfinite(log_probs) & (ids < self.vocabulary_size)
        log_probs = log_probs.masked_fill(~is_known, -torch.inf)
        total = log_probs.logsumexp(-1, keepdim=True)
        largest = float(np.log1p(-_SMALLEST_TAIL))
        log_probs = log_probs - (total - largest).clamp(min=0.0)
        total = total.clamp(max=largest)[:, 0]
        order = log_probs.argsort(dim=-1, descending=True, stable=True)  # tokens before entries without one
        return SparseSignal(
            ids.masked_fill(~is_known, NO_TOKEN).gather(-1, order)[: len(tokens)],
            log_probs.gather(-1, order)[: len(tokens)],
            torch.log(-torch.expm1(total))[: len(tokens)],
        )


def _dtype(name: FloatName) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found


def _take(rows: Tensor, name: FloatName, count: int) -> tuple[Tensor, Tensor]:
    """Return `count` floating-point numbers at the beginning of each row of bytes, and the other bytes."""
    dtype = _dtype(name)
    width = count * dtype.itemsize
    return rows[:, :width].contiguous().view(dtype).view(len(rows), count), rows[:, width:]


def _unpack(rows: Tensor, count: int, width: int) -> Tensor:
    """Return the numbers `[N, count]` of `width` bits in rows of bytes, the highest bits first."""
    return numbers_of(bits_of(rows.long(), 8)[:, : count * width], count, width)


def _bytes(column: pa.ChunkedArray) -> Tensor:
    """Return the bytes `[N, bytes]` of one row's positions."""
    positions = pc.list_flatten(column)
    values = pc.list_flatten(positions).to_numpy()
    return torch.from_numpy(values.astype(np.uint8).reshape(len(positions), -1))
