"""Comparison of returned values in the caller: Python's equality, bounded work, and short texts."""

import json
import time
import tracemalloc
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from trl_akd.execution.returned_values import describe_difference
from trl_akd.execution.zygote import plain_data

HUGE = 2**20000
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]


def name_type(value: Any) -> str:
    return type(value).__name__  # not the value: Python does not print HUGE


def difference(returned: Any, expected: Any, *, unwraps: bool = False) -> str | None:
    return describe_difference(plain_data.encode(returned), expected, unwraps=unwraps)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (None, None),
        (True, 1),
        (4.0, 4),
        (4 + 0j, 4),
        (HUGE, HUGE),
        ([HUGE, 1], [HUGE, 1]),
        (DEEP, DEEP),
        ("ä\ud800", "ä\ud800"),
        ((1, (2, [])), [1, [2, []]]),
        ({1: (1,), None: 2, "a": 3}, {"1": [1], "null": 2, "a": 3}),
        ({True: 1, 1.5: 2, 2**60: 3}, json.loads(json.dumps({True: 1, 1.5: 2, 2**60: 3}))),
        ({None: 1, False: 2, HUGE: 3}, {None: 1, False: 2, HUGE: 3}),
        ({(1, "x"): 1}, {"(1, 'x')": 1}),
        ({True: 1, None: 2, 0.5: 3, HUGE: 4}, {True: 1, None: 2, 0.5: 3, HUGE: 4}),
        ({True: 1, None: {False: 2}, 0.5: 3}, json.loads(json.dumps({True: 1, None: {False: 2}, 0.5: 3}))),
        ({1: (1,), None: 2, "a": 3}, {"1": [1], "None": 2, "a": 3}),
        ({Decimal("1.5"): 1}, {"1.5": 1}),
        ({1, (2, 3)}, {1.0, (2, 3)}),
        (frozenset(), set()),
        (b"\xff", b"\xff"),
        (Decimal(4), 4),
        (Decimal("4.000"), 4.0),
        (Decimal("0.5"), 0.5),
        (4, Decimal("4.0")),
        (Decimal("Infinity"), float("inf")),
        (Decimal(HUGE), HUGE),
        (Fraction(8, 2), 4),
        (Fraction(1, 4), 0.25),
        (Fraction(HUGE, 3), Fraction(HUGE, 3)),
        (Fraction(1, 2), Decimal("0.5")),
        ([Decimal(1), {"a": Fraction(2)}], [1, {"a": 2}]),
    ],
    ids=name_type,
)
def test_equal_values(returned: Any, expected: Any) -> None:
    assert difference(returned, expected) is None


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (3, 2),
        ("1", 1),
        (1, "1"),
        ([], {}),
        ({}, []),
        (set(), []),
        ([1], {1}),
        ({1, 2}, {1, 3}),
        ([1, 2], [2, 1]),
        ([1], [1, 1]),
        ({"a": 1}, {"a": 1, "b": 1}),
        ({"a": 1}, {"a": 2}),
        ({True: 1}, {"true": 2}),
        ({HUGE: 1}, {HUGE + 1: 1}),
        ({(HUGE,): 1}, {(HUGE + 1,): 1}),
        (float("nan"), float("nan")),
        (HUGE, HUGE + 1),
        (Decimal("0.1"), 0.1),
        (Decimal("sNaN"), 0),
        (Decimal("NaN"), float("nan")),
        (Decimal("1e999999999"), 4),
        (Decimal("1e-999999999"), 0.0),
        (Fraction(1, 3), 1 / 3),
        (Fraction(1), "1"),
        (Fraction(1), None),
        (Fraction(1), float("inf")),
        ([[1]], [1]),
    ],
    ids=name_type,
)
@pytest.mark.parametrize("unwraps", [False, True])
def test_different_values(returned: Any, expected: Any, unwraps: bool) -> None:
    assert difference(returned, expected, unwraps=unwraps) is not None


def test_an_expected_list_of_one_value() -> None:
    assert difference(1, [1], unwraps=True) is None
    assert difference(1, (1,), unwraps=True) is None
    assert difference(1, [1]) is not None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (HUGE, "<integer of 20001 bits>"),
        ([HUGE, (1,), (), (1, 2)], "[<integer of 20001 bits>, (1,), (), (1, 2)]"),
        ({"a": {1}, 2: frozenset({b"x"})}, "{'a': {1}, 2: frozenset({b'x'})}"),
        ([set(), frozenset(), {}, None, True, 1.5, 1j], "[set(), frozenset(), {}, None, True, 1.5, 1j]"),
        ([Decimal("1.50"), Fraction(1, HUGE)], "[Decimal('1.50'), Fraction(1, <integer of 20001 bits>)]"),
        (DEEP, "[" * 119 + "…"),
        (list(range(1000)), repr(list(range(1000)))[:119] + "…"),
        ("a" * 10**6, "'" + "a" * 118 + "…"),
        ({"k" * 10**6: 1}, "{'" + "k" * 117 + "…"),
    ],
    ids=name_type,
)
def test_texts(value: Any, shown: str) -> None:
    assert difference(value, 0) == f"returned {shown}, not 0"
    assert difference(0, value) == f"returned 0, not {shown}"


def colliding(tag: str, template: str) -> str:
    items = ",".join(template % hex(index * (2**61 - 1)) for index in range(1, 40_000))
    return f'{{"{tag}":[{items}]}}'


NUMBER = f"0x{'f' * (7 << 20)}"
HOSTILE = {
    "colliding set": colliding("set", '{"int":"%s"}'),
    "colliding frozenset": f'[{colliding("frozenset", """{"int":"%s"}""")}]',
    "colliding dict": colliding("dict", '[{"int":"%s"},1]'),
    "colliding key": f'{{"dict":[[{colliding("frozenset", """{"int":"%s"}""")},1]]}}',
    "many lists": f"[{'[],' * 5_000_000}1]",
    "many dicts": f'[{"""{"":0},""" * 2_000_000}1]',
    "many keys": "{" + ",".join(f'"{key}":0' for key in range(1_000_000)) + "}",
    "fraction of colliding sets": f'{{"Fraction":[{colliding("set", """{"int":"%s"}""")},1]}}',
    "fraction of three": '{"Fraction":[1,2,3]}',
    "fraction of texts": '{"Fraction":["1","2"]}',
    "fraction of decimals": '{"Fraction":[1.5,2.5]}',
    "fraction": f'{{"Fraction":[{{"int":"{NUMBER}"}},{{"int":"{NUMBER[:-1]}d"}}]}}',
    "integer": f'{{"int":"{NUMBER}{NUMBER}"}}',
    "digits": "1" * (16 << 20),
    "decimals": f'{{"Decimal":"0.{"1" * (15 << 20)}"}}',
    "exponent": '{"Decimal":"1e999999999999999999"}',
    "depth": "[" * (16 << 20),
    "depth of tuples": '{"tuple":[' * 50_000 + "1" + "]}" * 50_000,
}


@pytest.mark.parametrize("expected", [2, 2.5, [1], {"a": 1}, "x", None, [{"a": [1]}]], ids=repr)
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes(data: str, expected: Any) -> None:
    start = time.process_time()
    found = describe_difference(data.encode()[: 16 << 20], expected, unwraps=True)
    assert time.process_time() - start < 10.0  # the worst take 0.5 s
    assert found is not None and len(found) < 400


def test_hostile_bytes_take_little_memory() -> None:
    data = HOSTILE["many lists"].encode()
    tracemalloc.start()
    try:
        assert "far more items than 2" in (describe_difference(data, 2, unwraps=True) or "")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_values_with_many_items_are_compared() -> None:
    for item in (1, 1.0, 1 + 0j, Decimal(1), Fraction(1), (1,)):
        wanted = [[1] if isinstance(item, tuple) else 1] * 100_000
        assert difference([item] * 100_000, wanted) is None
    assert "far more items than 0" in (difference([1] * 100_000, 0) or "")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[",
        b"\xff",
        b'{"int":"zz"}',
        b'{"int":5}',
        b'{"other":1}',
        b'{"a":1,"b":2}',
        b"{}",
        b'{"complex":["1",[]]}',
        b'{"Decimal":"x"}',
        b'{"Decimal":"1e9999999999999999999999"}',
        b'{"Fraction":[1]}',
        b'{"Fraction":[1,0]}',
        b'{"Fraction":5}',
        b'{"set":5}',
        b'{"dict":[1]}',
        b'{"dict":{"ab":1}}',
        b'{"bytes":1}',
        b'{"tuple":{"a":1}}',
    ],
)
@pytest.mark.parametrize("expected", [2, [1], {"a": 1}, {1}, "x"], ids=repr)
def test_bytes_that_are_not_plain_data(data: bytes, expected: Any) -> None:
    assert describe_difference(data, expected, unwraps=True) is not None


@pytest.mark.parametrize("expected", [object(), [object()]], ids=["object", "list"])
def test_an_expected_value_that_cannot_be_compared(expected: Any) -> None:
    with pytest.raises(TypeError, match="not plain data"):
        difference(1, expected)
