"""Serialization of plain data as JSON, with tags for types that JSON lacks.

Decoding creates only values of built-in types, even from untrusted bytes.
"""

import json
from collections.abc import Callable
from typing import Any

_SAFE_INT = 1 << 53
_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_BASES = (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset)

# Taken before the candidate runs, as it may replace functions of modules.
_dumps, _loads = json.dumps, json.loads


def encode(value: Any) -> bytes:
    """Encode None, booleans, numbers, text, bytes and containers of these.

    Instances of subclasses are encoded as their built-in base, and NumPy scalars as Python values.

    Raises:
        TypeError: If the value, or one inside it, has another type or is nested too deeply.
    """
    try:
        return _dumps(_tag(value)).encode()
    except RecursionError:
        raise TypeError("a value nested too deeply, or within itself, is not plain data") from None


def decode(data: bytes) -> Any:
    """Decode the bytes of `encode`.

    Raises:
        ValueError: If the bytes are not an encoding of plain data.
    """
    try:
        return _untag(_loads(data))
    except (RecursionError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"bytes that are not plain data ({type(error).__name__})") from error


def _tag(value: Any) -> Any:
    if value is None:
        return None
    kind = next((base for base in _BASES if isinstance(value, base)), None)
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
    return {kind.__name__: [_tag(item) for item in value]}


def _untag(value: Any) -> Any:
    if isinstance(value, list):
        return [_untag(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag in _SEQUENCES:
        return _SEQUENCES[tag]([_untag(item) for item in content])
    if tag == "dict":
        return {_untag(key): _untag(item) for key, item in content}
    if tag == "int":
        return int(content, 16)
    if tag == "bytes":
        return bytes.fromhex(content)
    if tag == "bytearray":
        return bytearray.fromhex(content)
    if tag == "complex":
        real, imaginary = content
        return complex(real, imaginary)
    raise ValueError(f"bytes that are not plain data (tag {tag!r})")
