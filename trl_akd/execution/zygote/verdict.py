"""Frames from a program's process to its helper.

A frame is one datagram: a letter for its kind, a seal, and text. The helper believes frames of the program's first
process alone, and a pass only with its seal: a nonce, backwards, which the helper sends into the program's end of the
socket after forking. It lies in the kernel, and in no memory of the program's process, until the tests have ended and
`send_passed` fetches it.
"""

import json
import os
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

# The program may replace any function of any module; these references are taken before it runs.
_read, _write, _dumps = os.read, os.write, json.dumps


@dataclass(frozen=True)
class Frame:
    """What one datagram says."""

    kind: bytes
    text: str


def send_setup_failed(fd: int, reason: str) -> None:
    """Say why the program cannot begin."""
    _send(fd, SETUP_FAILED, printable(reason))


def send_stage(fd: int, stage: str) -> None:
    """Say which stage begins."""
    _send(fd, STAGE, stage)


def send_passed(fd: int) -> None:
    """Say that the end of the tests was reached."""
    _write(fd, PASSED + seal(_read(fd, NONCE_BYTES)))


def send_failed(fd: int, facts: dict[str, Any]) -> None:
    """Say what is known of the exception but its message, which may take for ever to make."""
    _send(fd, FAILED, _dumps(clean_facts(facts)))


def send_message(fd: int, message: str) -> None:
    """Send the exception's message."""
    _send(fd, MESSAGE, printable(message))


def seal(nonce: bytes) -> bytes:
    """Return what proves that the sender of a pass knows the nonce, and did not just echo it."""
    return nonce[::-1]


def parse(datagram: bytes, nonce: bytes) -> Frame | None:
    """Read a datagram; None if it is forged or broken."""
    kind, given, text = datagram[:1], datagram[1 : 1 + SEAL_BYTES], datagram[1 + SEAL_BYTES :]
    if kind not in (STAGE, PASSED, FAILED, MESSAGE, SETUP_FAILED) or (kind == PASSED and given != seal(nonce)):
        return None
    return Frame(kind, text.decode(errors="replace"))


def parse_facts(text: str) -> dict[str, Any]:
    """Read facts that a hostile program may have written."""
    try:
        return clean_facts(json.loads(text))
    except (ValueError, RecursionError):
        return clean_facts({})


def clean_facts(given: object) -> dict[str, Any]:
    """Keep of the facts what has the right name, type and size."""
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
    """Escape what is not to be printed but line ends, and cut what is too long."""
    clean = "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text[: limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _send(fd: int, kind: bytes, text: str) -> None:
    _write(fd, kind + bytes(SEAL_BYTES) + text.encode())
