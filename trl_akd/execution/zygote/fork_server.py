"""The fork server: a process with a prepared interpreter, which forks the helpers of an executor.

The start of an interpreter takes many times as long as a fork. The server runs no program and imports no package of
programs; each helper enters its own sandbox after the fork.
"""

import contextlib
import os
import select
import signal
import socket
from collections.abc import Iterable

from . import channel, linux


def serve(caller: socket.socket, watched: list[int]) -> socket.socket:
    """Fork a helper for each message of the caller, and answer with a descriptor of its process.

    A message has the helper's socket, and a file for its standard error. The server exits when the caller has ended or
    disconnected and all helpers have ended.

    Args:
        watched (`list[int]`): Descriptors that become readable when the caller ends.

    Returns:
        `socket.socket`: Socket of a helper. This function returns in helpers only.
    """
    linux.set_dumpable(False)
    helpers: dict[int, int] = {}  # process ids by descriptor
    poll = select.poll()
    for fd in (caller.fileno(), *watched):
        poll.register(fd, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        for fd in ready.intersection(helpers):
            poll.unregister(fd)
            os.waitpid(helpers.pop(fd), 0)
            os.close(fd)
        if ready.intersection(watched):
            break
        if caller.fileno() not in ready:
            continue
        try:
            _, (helper_end, stderr) = channel.receive(caller)
        except (EOFError, OSError, ValueError):
            break
        try:
            helper = os.fork()
            descriptor = _open_or_kill(helper) if helper else -1
        except OSError as error:
            send_error(caller, error)
        else:
            if helper == 0:
                _leave_server(stderr, [caller.detach(), stderr, *watched, *helpers])
                return socket.socket(fileno=helper_end)
            helpers[descriptor] = helper
            poll.register(descriptor, select.POLLIN)
            with contextlib.suppress(OSError):
                channel.send(caller, {}, [descriptor])
        os.close(helper_end)
        os.close(stderr)
    caller.close()
    for helper in helpers.values():
        os.waitpid(helper, 0)
    os._exit(0)


def send_error(caller: socket.socket, error: Exception) -> None:
    """Report to the caller why this process cannot run programs."""
    with contextlib.suppress(OSError):
        channel.send(caller, {"error": describe(error), "errno": getattr(error, "errno", None)})


def describe(error: Exception) -> str:
    """Return the type and the text of an exception."""
    return f"{type(error).__name__}: {error}"


def _leave_server(stderr: int, inherited: Iterable[int]) -> None:
    """Separate this process, a new helper, from the server."""
    os.dup2(stderr, 2)
    for fd in inherited:
        os.close(fd)
    os.setsid()
    linux.set_dumpable(True)


def _open_or_kill(helper: int) -> int:
    """Return a descriptor of a new helper; without one, the helper is killed."""
    try:
        return os.pidfd_open(helper)
    except OSError:
        os.kill(helper, signal.SIGKILL)
        os.waitpid(helper, 0)
        raise
