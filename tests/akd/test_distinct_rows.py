"""Distinct rows of a teacher cache, against a dictionary of all rows in memory."""

import weakref

import numpy as np
import pytest

from trl_akd.akd.distinct_rows import DistinctRows
from trl_akd.teachers.cache_files import CachedRow, row_key


def make(number: int, seed: int) -> list[CachedRow]:
    """Rows of few tokens, so that many are equal, some in tokens alone and some without a target."""
    source = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        length = int(source.integers(1, 6))
        tokens = source.integers(-1, 3, length).astype(np.int32)
        rows.append(CachedRow(tokens, source.random(length) < 0.4))
    return rows


def in_memory(rows: list[CachedRow]) -> list[CachedRow]:
    found: dict[bytes, CachedRow] = {}
    for row in rows:
        if row.is_target.any():
            key = row_key(row.tokens)
            is_target = row.is_target | found[key].is_target if key in found else row.is_target
            found[key] = CachedRow(row.tokens, is_target)
    return [found[key] for key in sorted(found, key=lambda key: (-len(found[key].tokens), key))]


def plain(rows) -> list[tuple[list[int], list[bool]]]:
    return [(row.tokens.tolist(), row.is_target.tolist()) for row in rows]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("number", [3, 30, 3000])
def test_rows_equal_those_in_memory(number: int, seed: int):
    given = make(number, seed)
    expected, found = in_memory(given), DistinctRows(iter(given))
    assert plain(found) == plain(expected) and len(found) == len(expected)
    assert plain(found[-3:]) == plain(expected[-3:]) and plain([found[-1]]) == plain(expected[-1:])
    assert found.num_targets.tolist() == [int(row.is_target.sum()) for row in expected]
    assert all(row.tokens.dtype == np.int32 and row.is_target.dtype == bool for row in found)
    with pytest.raises(IndexError):
        found[len(expected)]


def test_rows_are_not_kept_in_memory():
    alive: weakref.WeakSet = weakref.WeakSet()
    most = 0

    class Tokens(np.ndarray):
        __hash__ = object.__hash__

    def given():
        nonlocal most
        for number in range(500):
            tokens = np.full(50, number, dtype=np.int32).view(Tokens)
            alive.add(tokens)
            most = max(most, len(alive))
            yield CachedRow(tokens, tokens == number)
            del tokens

    rows = DistinctRows(given())
    assert len(rows) == 500 and most <= 2 and not alive
    kept = sum(value.nbytes for value in vars(rows).values() if type(value) is np.ndarray)
    assert kept <= 40 * len(rows), "positions, lengths and numbers of targets"


def test_rows_without_targets_are_refused():
    with pytest.raises(ValueError, match="no row of the datasets has a target"):
        DistinctRows([CachedRow(np.array([1, 2], dtype=np.int32), np.zeros(2, dtype=bool))])
