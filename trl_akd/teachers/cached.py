"""Teacher that reads its signals from a cache, so that no model is in memory."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.collators import split_samples
from ..losses.signals import TeacherSignal
from .cache_encoding import HiddenEncoding, encoding_of
from .cache_files import AGAIN, CachedRow, ShardReader, find_cache, read_head, read_manifest, row_key, shard_path

__all__ = ["CachedTeacher"]

_BLOCK = 1000  # rows that are looked up at once


class CachedTeacher:
    """Signals of a teacher, read from the cache that `trl-akd cache` wrote.

    A row is found by its tokens, in padded and in packed batches. At positions that the cache does not have, which
    must have no weight in the loss, the signal is NaN.

    With `tail_samples`, a part of the signal is sampled: the same for the same row in the same step, and independent
    of the batches, the processes and interruptions of the training.

    Args:
        folder (`str` or `Path`):
            Folder of the cache, or its name on the Hub, such as `me/teacher-cache`, from where it is downloaded.
        revision (`str`, *optional*):
            Branch, tag or commit of a cache on the Hub.
        tail_samples (`int`, *optional*):
            Number of tokens of the tail whose probabilities are computed in training, see
            [`~trl_akd.losses.SampledSignal`]. Defaults to the whole vocabulary.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples.

    Attributes:
        step (`int`, *optional*): Optimizer step of the next batch, or `None` for one whose signal is not sampled.
        manifest (`Manifest`): Description of the cache.
        vocabulary_size (`int`): Number of leading token ids of the signals.

    Raises:
        ValueError: If the folder is not a complete cache, a file of it is missing or damaged, or it does not have what
            `tail_samples` needs.
        HubError: If the cache cannot be downloaded.
    """

    def __init__(
        self, folder: str | Path, revision: str | None = None, *, tail_samples: int | None = None, seed: int = 0
    ) -> None:
        self.folder = find_cache(folder, revision)
        self.manifest = read_manifest(self.folder)
        written = sum(
            shard_path(self.folder, self.manifest, number).exists() for number in range(self.manifest.shards)
        )
        if written < self.manifest.shards:
            raise ValueError(
                f"`teacher_cache` {str(folder)!r} has {written} of {self.manifest.shards} shards; copy the whole "
                f"cache, or {AGAIN}."
            )
        head = read_head(self.folder) if self.manifest.kind == "hidden" else None
        self._encoding = encoding_of(self.manifest, head)
        self._rows = ShardReader(self.folder, self.manifest)
        self.vocabulary_size = self.manifest.vocabulary_size
        self.tail_samples = tail_samples
        if tail_samples is not None and (self.manifest.kind != "hidden" or self.manifest.top_k is None):
            raise ValueError(
                f"`teacher_tail_samples` is {tail_samples}, but `teacher_cache` {str(folder)!r} does not have hidden "
                "states with the most probable tokens; create it again with cache_kind='hidden' and `cache_top_k`."
            )
        self.step: int | None = None
        self._seed = seed
        self._signal: TeacherSignal | None = None

    def forward(self, inputs: Mapping[str, Any]) -> None:
        """Read the signals of a batch."""
        if "decoder_input_ids" in inputs:
            raise ValueError("`teacher_cache` is set, but a cache has no signals of encoder-decoders; leave it out.")
        self._signal = self._read(inputs)

    def signal(self, student: Any) -> TeacherSignal:
        """Return the signal of the last batch, on the device of its inputs."""
        if self._signal is None:
            raise RuntimeError("`signal` was called before `forward`.")
        signal, self._signal = self._signal, None
        return signal

    def uncached(self, rows: Iterable[CachedRow]) -> tuple[int, int, int]:
        """Count the rows, those that the cache does not have, and the others that have a target without a signal."""
        number = missing = without_targets = 0
        rows = iter(rows)
        while block := list(islice(rows, _BLOCK)):
            found = self._rows.find([row_key(row.tokens) for row in block])
            lengths = np.array([len(row.tokens) for row in block])
            is_target = np.concatenate([row.is_target for row in block])
            is_missing = is_target & ~self._rows.is_stored(found, lengths)
            number += len(block)
            missing += int(np.sum((found < 0) & _any_of_each(is_target, lengths)))
            without_targets += int(np.sum((found >= 0) & _any_of_each(is_missing, lengths)))
        return number, missing, without_targets

    def _read(self, inputs: Mapping[str, Any]) -> TeacherSignal:
        ids = inputs["input_ids"]
        tokens, samples = ids.cpu().numpy().astype(np.int32), list(split_samples(inputs))
        keys = [row_key(tokens[row, columns]) for row, columns in samples]
        numbers = self._rows.find(keys)
        index = [torch.empty(2, 0, dtype=torch.int64)]
        for number, (row, columns) in zip(numbers, samples, strict=True):
            if number >= 0:
                stored_columns = columns[self._rows.positions(number)]
                index.append(torch.stack([torch.full_like(stored_columns, row), stored_columns]))
        rows, columns = torch.cat(index, dim=1).to(ids.device)
        sampled = self.tail_samples is not None and self.step is not None
        names = self._encoding.names if sampled else self._encoding.decoded_names
        stored = self._rows.read(numbers[numbers >= 0], names)
        self._place_head(ids.device)
        placed = {name: tensor.to(ids.device) for name, tensor in stored.items()}
        if not sampled:
            return self._encoding.decode(placed, ids.shape, (rows, columns))
        assert isinstance(self._encoding, HiddenEncoding) and self.tail_samples is not None
        offsets = [torch.empty(0)]
        for number, key in zip(numbers, keys, strict=True):
            if number >= 0:
                offsets.append(self._offsets(key, len(self._rows.positions(number))))
        return self._encoding.decode_sampled(
            placed, ids.shape, (rows, columns), torch.cat(offsets).to(ids.device), self.tail_samples
        )

    def _offsets(self, key: bytes, number: int) -> torch.Tensor:
        """Return uniform random numbers for the stored signals of a row, which depend on the row and the step."""
        digest = blake2b(key + f":{self._seed}:{self.step}".encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
        return torch.from_numpy(generator.random(number, dtype=np.float32))

    def _place_head(self, device: torch.device) -> None:
        if isinstance(self._encoding, HiddenEncoding) and self._encoding.head is not None:
            self._encoding = replace(self._encoding, head=self._encoding.head.to(device))


def _any_of_each(values: NDArray[np.bool_], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether any value of each row is true, for the values of rows one after another."""
    counts = np.concatenate([[0], np.cumsum(values)])
    ends = np.cumsum(lengths)
    is_any: NDArray[np.bool_] = counts[ends] > counts[ends - lengths]
    return is_any
