"""Messages between caller and helper: JSON objects, with open files attached.

Sources of programs are sent as open files that the helper does not read. The next program, a fork of the helper, can
therefore not find them in its memory.
"""

import json
import os
import select
import socket
import struct
from collections.abc import Sequence
from typing import Any

_LENGTH = struct.Struct("!I")
_MAX_LENGTH = 1 << 20
_MAX_FILES = 16


def send(channel: socket.socket, message: dict[str, Any], files: Sequence[int] = ()) -> None:
    """Send a message with copies of open files."""
    body = json.dumps(message).encode()
    data = _LENGTH.pack(len(body)) + body
    sent = socket.send_fds(channel, [data], files) if files else 0
    channel.sendall(data[sent:])


def receive(channel: socket.socket, watched: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
    """Wait for a message and the files attached to it, which are not inherited by processes started by exec.

    Args:
        watched (`Sequence[int]`): Descriptors that become readable when the other process ends, of which a forked
            copy may keep the socket open.

    Raises:
        EOFError: If the other process has ended.
        ValueError: If the message is invalid.
    """
    if watched:
        poll = select.poll()
        for fd in (channel.fileno(), *watched):
            poll.register(fd, select.POLLIN)
        if any(fd in watched for fd, _ in poll.poll()):
            raise EOFError
    head, files, _, _ = socket.recv_fds(channel, _LENGTH.size, _MAX_FILES)
    try:
        for file in files:
            os.set_inheritable(file, False)
        (length,) = _LENGTH.unpack(head + _read(channel, _LENGTH.size - len(head)))
        if length > _MAX_LENGTH:
            raise ValueError(f"message of {length} bytes, more than the maximum of {_MAX_LENGTH}")
        message = json.loads(_read(channel, length))
        if not isinstance(message, dict):
            raise ValueError("message that is not a JSON object")
    except BaseException:
        for file in files:
            os.close(file)
        raise
    return message, files


def make_file(content: bytes = b"") -> int:
    """Create an unnamed file, positioned at its start, that exists as long as it is open."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("text")
    else:
        import tempfile  # not needed on Linux, and imports make every fork of the helper slower

        with tempfile.TemporaryFile() as unnamed:
            file = os.dup(unnamed.fileno())
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
    os.lseek(file, 0, os.SEEK_SET)
    return file


def read_file(file: int, limit: int) -> bytes:
    """Read up to `limit` bytes from the start of a file, regardless of its position."""
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
