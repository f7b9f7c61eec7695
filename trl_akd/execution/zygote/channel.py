"""Messages between caller and helper: small JSON headers, and files for everything long.

Texts of programs travel as open files, so that the helper never reads them: what it does not hold, the next program,
a copy of it, cannot find in its memory.
"""

import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

_LENGTH = struct.Struct("!I")
_MAX_LENGTH = 1 << 20
_MAX_FILES = 16


def send(channel: socket.socket, message: dict[str, Any], files: Sequence[int] = ()) -> None:
    """Send a message, and copies of open files with it."""
    body = json.dumps(message).encode()
    data = _LENGTH.pack(len(body)) + body
    sent = socket.send_fds(channel, [data], files) if files else 0
    channel.sendall(data[sent:])


def receive(channel: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Wait for a message and the files that came with it.

    Raises:
        EOFError: If the other side is gone.
        ValueError: If what came is no message.
    """
    head, files, _, _ = socket.recv_fds(channel, _LENGTH.size, _MAX_FILES)
    try:
        (length,) = _LENGTH.unpack(head + _read(channel, _LENGTH.size - len(head)))
        if length > _MAX_LENGTH:
            raise ValueError(f"a message of {length} bytes")
        message = json.loads(_read(channel, length))
        if not isinstance(message, dict):
            raise ValueError("a message that is no object")
    except BaseException:
        for file in files:
            os.close(file)
        raise
    return message, files


def make_file(content: bytes = b"") -> int:
    """Make a file without a name, at its start, that lives as long as somebody has it open."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("text")
    else:
        import tempfile  # not on Linux: all that a helper imports, each program's process has a copy of

        with tempfile.TemporaryFile() as unnamed:
            file = os.dup(unnamed.fileno())
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
    os.lseek(file, 0, os.SEEK_SET)
    return file


def read_file(file: int, limit: int) -> bytes:
    """Read a file from its start, whatever its position, up to `limit` bytes."""
    chunks = []
    position = 0
    while position < limit and (chunk := os.pread(file, min(limit - position, 1 << 20), position)):
        chunks.append(chunk)
        position += len(chunk)
    return b"".join(chunks)


def _read(channel: socket.socket, length: int) -> bytes:
    chunks = []
    while length:
        chunk = channel.recv(length)
        if not chunk:
            raise EOFError
        chunks.append(chunk)
        length -= len(chunk)
    return b"".join(chunks)
