"""Comparison of the values that untrusted programs return with expected values.

A returned value is compared in the form in which the program's process sent it. If it were decoded first, a program
could cost its caller far more time and memory than the expected value does, for example by a set of integers that all
have the same hash.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from .zygote import plain_data

__all__ = ["describe_difference", "shorten"]

_LISTS, _SETS = ("list", "tuple"), ("set", "frozenset")
_BRACKETS = {
    "list": ("[", "]"),
    "tuple": ("(", ")"),
    "set": ("{", "}"),
    "frozenset": ("frozenset({", "})"),
    "dict": ("{", "}"),
}
_MAX_SHOWN = 120
_MAX_BITS = 2048  # of an integer in decimals; Python refuses to print those of more than 4300 digits
_MAX_RATIO = 4  # {"complex": [1.0, 0.0]} for 1 in a list: four marks instead of one
_SPARE_MARKS = 1 << 16


def describe_difference(data: bytes, expected: Any, *, unwraps: bool) -> str | None:
    """Compare a returned value, as encoded by `plain_data`, with an expected one that was read from JSON.

    Tuples count as lists, and all keys of dicts as strings, as Python or JSON spells them. Time and memory are
    proportional to the length of the data and to the number of values in the expected one, unless that has sets, which
    JSON lacks.

    Args:
        data (`bytes`): Encoded value, which may be forged.
        expected (`Any`): Expected value.
        unwraps (`bool`): Whether an expected list of one value also accepts that value.

    Returns:
        `str`: What was returned instead, or `None` if the values are equal.

    Raises:
        TypeError: If the expected value is not plain data.
    """
    encoded = plain_data.encode(expected)
    wanted = json.loads(encoded)
    if _count_marks(data) > _MAX_RATIO * _count_marks(encoded) + _SPARE_MARKS:
        return f"returned a value with far more items than {shorten(wanted)}"
    try:
        returned = json.loads(data)
        tag, items = plain_data.split(wanted)
        unwrapped = items[:1] if unwraps and tag in _LISTS else []
        if any(_is_same(returned, accepted) for accepted in (wanted, *unwrapped)):
            return None
        return f"returned {shorten(returned)}, not {shorten(wanted)}"
    except plain_data.INVALID as error:
        return f"returned bytes that are not plain data ({type(error).__name__})"


def shorten(value: Any) -> str:
    """Return the beginning of the Python literal of a value that is tagged as by `plain_data`."""
    text = ""
    for part in _literal(value, _MAX_SHOWN):
        text += part
        if len(text) > _MAX_SHOWN:
            return text[: _MAX_SHOWN - 1] + "…"
    return text


def _count_marks(data: bytes) -> int:
    """Count the characters that begin a value inside another one, an upper limit on the number of such values."""
    return sum(map(data.count, (b",", b"[", b"{")))


def _is_same(returned: Any, wanted: Any) -> bool:
    (tag, content), (wanted_tag, items) = plain_data.split(returned), plain_data.split(wanted)
    if tag is None and wanted_tag is None:
        return bool(content == items)
    if wanted_tag in _LISTS:
        return tag in _LISTS and len(content) == len(items) and all(map(_is_same, content, items))
    if wanted_tag == "dict":
        return tag == "dict" and _are_same_items(content, items)
    if wanted_tag in _SETS:
        if tag not in _SETS or len(content) != len(items):
            return False
    elif tag in _BRACKETS:
        return False
    elif tag == "Fraction":
        return _is_same_fraction(content, plain_data.untag(wanted))
    return bool(plain_data.untag(returned) == plain_data.untag(wanted))


def _are_same_items(returned: list[Any], wanted: list[Any]) -> bool:
    for spelling in (str, json.dumps):  # `{True: 1}` has the keys of `{"True": 1}` and of its JSON, `{"true": 1}`
        left, right = ({_key_text(key, spelling): value for key, value in items} for items in (returned, wanted))
        if left.keys() == right.keys():
            return all(_is_same(left[key], value) for key, value in right.items())
    return False


def _key_text(key: Any, spelling: Callable[[Any], str]) -> str:
    tag, content = plain_data.split(key)
    if tag is None:
        return content if isinstance(content, str) else spelling(content)
    return str(content) if tag == "Decimal" else "".join(_literal(key))


def _is_same_fraction(terms: list[Any], wanted: Any) -> bool:
    """Compare without the greatest common divisor, which takes quadratic time; `encode` sends lowest terms."""
    try:
        ratio = wanted.as_integer_ratio()
    except (AttributeError, ValueError, OverflowError):
        return False  # not a finite number
    return bool(_terms(terms) == ratio)


def _terms(content: list[Any]) -> tuple[int, int]:
    """Return numerator and denominator of a tagged Fraction, which may be forged."""
    numerator, denominator = (plain_data.untag(term) for term in content if plain_data.split(term)[0] in (None, "int"))
    if not (isinstance(numerator, int) and isinstance(denominator, int)):
        raise TypeError("a Fraction of values that are no integers")
    return numerator, denominator


def _literal(value: Any, limit: int | None = None) -> Iterator[str]:
    """Yield the parts of a literal; a limit shortens texts to as many characters, and describes long integers."""
    tag, content = plain_data.split(value)
    if tag in _SETS and not content:
        yield f"{tag}()"
    elif tag in _BRACKETS:
        opening, closing = _BRACKETS[tag]
        yield opening
        for index, item in enumerate(content):
            if index:
                yield ", "
            if tag == "dict":
                key, item = item
                yield from _literal(key, limit)
                yield ": "
            yield from _literal(item, limit)
        yield ",)" if tag == "tuple" and len(content) == 1 else closing
    elif tag == "int":
        yield _integer(plain_data.untag(value), limit)
    elif tag == "Fraction":
        numerator, denominator = _terms(content)
        yield f"Fraction({_integer(numerator, limit)}, {_integer(denominator, limit)})"
    elif isinstance(content, str) and tag in (None, "Decimal"):
        text = repr(content[:limit])
        yield text if tag is None else f"Decimal({text})"
    else:
        yield repr(plain_data.untag(value))


def _integer(value: int, limit: int | None) -> str:
    if value.bit_length() <= _MAX_BITS:
        return repr(value)
    return hex(value) if limit is None else f"<integer of {value.bit_length()} bits>"
