"""Frames that a program's process sends to its helper.

A frame is one datagram: a letter for its kind, a seal, and text. The helper accepts frames only from the program's
first process, and a pass only with the right seal: the reversed nonce, which the helper sends to the program's end of
the socket after the fork. The nonce stays in the socket's buffer, outside the memory of the program's process, until
`send_passed` reads it after the end of the tests.
"""

import json
import os
import time
from dataclasses import dataclass
from typing import Any

STAGE, PASSED, FAILED, MESSAGE, SETUP_FAILED = b"S", b"P", b"F", b"M", b"T"
NONCE_BYTES = SEAL_BYTES = 16
MAX_FRAME = 16 << 10

_FACTS: dict[str, type] = {
    "error_type": str,
    "origin": str,
    "line": int,
    "raised": bool,
    "missing": str,
    "ending": str,
    "exit_code": int,
}
_CHOICES = {"origin": ("candidate", "test"), "ending": ("exception", "exit", "memory")}
_MAX_TEXT = 500
_MAX_NAME = 100
_MAX_BASES = 32

# Taken before the program runs, as it may replace any function of any module.
_read, _write, _dumps, _monotonic = os.read, os.write, json.dumps, time.monotonic


@dataclass(frozen=True)
class Frame:
    """Content of one datagram."""

    kind: bytes
    text: str


def send_setup_failed(fd: int, reason: str) -> None:
    """Report why the program cannot start."""
    _send(fd, SETUP_FAILED, printable(reason))


def send_stage(fd: int, stage: str) -> None:
    """Report the start of a stage, and its time."""
    _send(fd, STAGE, f"{stage} {_monotonic()!r}")


def send_passed(fd: int) -> None:
    """Report that the end of the tests was reached."""
    _write(fd, PASSED + seal(_read(fd, NONCE_BYTES)))


def send_failed(fd: int, facts: dict[str, Any]) -> None:
    """Report an exception without its message, which may take forever to compute."""
    _send(fd, FAILED, _dumps(clean_facts(facts)))


def send_message(fd: int, message: str) -> None:
    """Report the message of the exception."""
    _send(fd, MESSAGE, printable(message))


def seal(nonce: bytes) -> bytes:
    """Return the proof that the sender of a pass has read the nonce rather than echoed it."""
    return nonce[::-1]


def parse(datagram: bytes, nonce: bytes) -> Frame | None:
    """Parse a datagram; return None if it is forged or malformed."""
    kind, given, text = datagram[:1], datagram[1 : 1 + SEAL_BYTES], datagram[1 + SEAL_BYTES :]
    if kind not in (STAGE, PASSED, FAILED, MESSAGE, SETUP_FAILED) or (kind == PASSED and given != seal(nonce)):
        return None
    return Frame(kind, text.decode(errors="replace"))


def parse_facts(text: str) -> dict[str, Any]:
    """Parse facts that may come from a hostile program."""
    try:
        return clean_facts(json.loads(text))
    except (ValueError, RecursionError):
        return clean_facts({})


def clean_facts(given: object) -> dict[str, Any]:
    """Keep the facts with a known name, the right type and a limited size."""
    facts: dict[str, Any] = {"error_type": "Exception", "ending": "exception"}
    for key, kind in _FACTS.items():
        value = given.get(key) if isinstance(given, dict) else None
        if type(value) is str and kind is str:
            value = printable(value[:_MAX_NAME])
        if type(value) is int and not 0 <= value < 1 << 31:
            continue
        if type(value) is kind and value in _CHOICES.get(key, (value,)):
            facts[key] = value
    bases = given.get("error_bases") if isinstance(given, dict) else None
    names = bases[:_MAX_BASES] if isinstance(bases, list | tuple) else []
    facts["error_bases"] = [printable(name[:_MAX_NAME]) for name in names if type(name) is str]
    return facts


def printable(text: str, limit: int = _MAX_TEXT) -> str:
    """Escape unprintable characters except line ends, and shorten the text to `limit` characters."""
    clean = "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text[: limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _send(fd: int, kind: bytes, text: str) -> None:
    _write(fd, kind + bytes(SEAL_BYTES) + text.encode())
