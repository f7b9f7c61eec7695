"""Serialization of plain data as JSON, with tags for types that JSON lacks.

Decoding creates only values of built-in types, Decimal and Fraction, even from untrusted bytes.
"""

import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

_SAFE_INT = 1 << 53
_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_SCALARS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "complex": lambda parts: complex(*parts),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "Decimal": Decimal,
    "Fraction": lambda terms: Fraction(*map(untag, terms)),
}
_BASES = (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, Decimal, Fraction)
INVALID = (ValueError, RecursionError, TypeError, KeyError, IndexError, ArithmeticError)
"""Errors that bytes or tagged values that are not plain data may raise."""

# Taken before the candidate runs, as it may replace functions of modules.
_dumps, _loads = json.dumps, json.loads


def encode(value: Any) -> bytes:
    """Encode None, booleans, numbers, text, bytes and containers of these.

    Numbers are those of built-in types, Decimal and Fraction. Instances of subclasses are encoded as their base, and
    NumPy scalars as Python values.

    Raises:
        TypeError: If the value, or one inside it, has another type or is nested too deeply.
    """
    try:
        return _dumps(_tag(value)).encode()
    except RecursionError:
        raise TypeError("a value nested too deeply, or within itself, is not plain data") from None


def decode(data: bytes) -> Any:
    """Decode the bytes of `encode`.

    Sets and dicts of items with the same hash take quadratic time, so untrusted bytes are decoded only where time is
    limited.

    Raises:
        ValueError: If the bytes are not an encoding of plain data.
    """
    try:
        return untag(_loads(data))
    except INVALID as error:
        raise ValueError(f"bytes that are not plain data ({type(error).__name__})") from error


def split(value: Any) -> tuple[str | None, Any]:
    """Return the tag of a tagged value, `None` if JSON has its type, and its content."""
    if isinstance(value, list):
        return "list", value
    if not isinstance(value, dict):
        return None, value
    (item,) = value.items()
    return item


def untag(value: Any) -> Any:
    """Return the value that was tagged."""
    tag, content = split(value)
    if tag is None:
        return content
    if tag in _SEQUENCES:
        return _SEQUENCES[tag]([untag(item) for item in content])
    if tag == "dict":
        return {untag(key): untag(item) for key, item in content}
    return _SCALARS[tag](content)


def _tag(value: Any) -> Any:
    if value is None:
        return None
    kind = type(value) if type(value) in _BASES else next((base for base in _BASES if isinstance(value, base)), None)
    if kind is None and type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return _tag(value.item())
    if kind is None:
        raise TypeError(f"a value of type {type(value).__name__!r} is not plain data")
    if type(value) is not kind:
        value = kind.__call__(value) if kind is not dict else dict(dict.items(value))
    if kind in (bool, float, str) or (kind is int and -_SAFE_INT < value < _SAFE_INT):
        return value
    if kind is int:
        return {"int": hex(value)}
    if kind is list:
        return [_tag(item) for item in value]
    if kind is dict:
        return {"dict": [[_tag(key), _tag(item)] for key, item in value.items()]}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind in (bytes, bytearray):
        return {kind.__name__: value.hex()}
    if kind is Decimal:
        return {"Decimal": str(value)}
    if kind is Fraction:
        return {"Fraction": [_tag(value.numerator), _tag(value.denominator)]}
    return {kind.__name__: [_tag(item) for item in value]}
