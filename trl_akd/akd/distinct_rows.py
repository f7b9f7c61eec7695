"""Distinct rows of datasets, for the creation of a teacher cache, without holding them in memory."""

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ..ledger import temporary_file
from ..teachers.cache_files import CachedRow, row_key

__all__ = ["DistinctRows"]


class DistinctRows(Sequence[CachedRow]):
    """Each row with a target once, the longest first, with all positions that are a target in any copy.

    The rows are read once, into a temporary file (five bytes per token), from which they are then read when they are
    needed. The memory needed is about 30 bytes per row, and 30 more while the rows are sorted.

    Args:
        rows (`Iterable[CachedRow]`):
            Rows, of which several may have the same tokens.

    Attributes:
        num_targets (`NDArray[np.int64]`): Number of targets of each row.

    Raises:
        ValueError: If no row has a target.
        OSError: If there is no space for the temporary file.

    Example:

    ```python
    >>> tokens, other = np.array([1, 2, 3], dtype=np.int32), np.array([4, 5], dtype=np.int32)
    >>> first, last = np.array([True, False, False]), np.array([False, True, False])
    >>> rows = DistinctRows([CachedRow(other, first[:2]), CachedRow(tokens, first), CachedRow(tokens, last)])
    >>> [(row.tokens.tolist(), row.is_target.tolist()) for row in rows]
    [([1, 2, 3], [True, True, False]), ([4, 5], [True, False])]

    ```
    """

    def __init__(self, rows: Iterable[CachedRow]) -> None:
        keys, lengths, starts, end = bytearray(), array("q"), array("q"), 0
        with temporary_file() as file:
            for row in rows:
                if row.is_target.any():
                    keys += row_key(row.tokens)
                    lengths.append(len(row.tokens))
                    starts.append(end)
                    end += file.write(row.tokens.astype("<i4").tobytes() + row.is_target.tobytes())
            if not lengths:
                raise ValueError("no row of the datasets has a target; give rows with completions.")
        with file:
            self._bytes: NDArray[np.uint8] = np.memmap(file, dtype=np.uint8, mode="r")
        halves = np.frombuffer(keys, dtype=">u8").reshape(len(lengths), 2)
        order = np.lexsort((halves[:, 1], halves[:, 0], -np.array(lengths)))
        is_first = np.append(True, (halves[order[1:]] != halves[order[:-1]]).any(axis=1))
        self._starts = np.array(starts)[order]  # of all copies, equal ones after each other
        self._copies = np.append(np.flatnonzero(is_first), len(order))
        self._lengths = np.array(lengths)[order[is_first]]
        self.num_targets: NDArray[np.int64] = np.array([row.is_target.sum() for row in self], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._lengths)

    @overload
    def __getitem__(self, index: int) -> CachedRow: ...

    @overload
    def __getitem__(self, index: slice) -> list[CachedRow]: ...

    def __getitem__(self, index: int | slice) -> CachedRow | list[CachedRow]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        index = range(len(self))[index]
        length = int(self._lengths[index])
        starts = self._starts[self._copies[index] : self._copies[index + 1]]
        tokens = np.frombuffer(self._bytes[starts[0] : starts[0] + 4 * length].tobytes(), dtype="<i4")
        are_targets = [self._bytes[start + 4 * length : start + 5 * length] for start in starts]
        return CachedRow(tokens.astype(np.int32), np.logical_or.reduce(are_targets))
