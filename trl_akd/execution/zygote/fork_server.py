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
    """Fork a helper for each message of the caller.

    A message has the helper's socket, and a file for its standard error. Each helper first sends a descriptor of its
    process, as the caller is not its parent. The server exits when the caller has ended or disconnected and all
    helpers have ended.

    Args:
        watched (`list[int]`): Descriptors that become readable when the caller ends.

    Returns:
        `socket.socket`: Socket of a helper. This function returns in helpers only.
    """
    linux.set_dumpable(False)
    callers = [caller.fileno(), *watched]
    helpers: dict[int, int] = {}  # process ids by descriptor
    poll = select.poll()
    for fd in callers:
        poll.register(fd, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        for fd in ready.intersection(helpers):
            poll.unregister(fd)
            os.waitpid(helpers.pop(fd), 0)
            os.close(fd)
        if not ready.intersection(callers):
            continue
        try:
            _, (own_fd, stderr) = channel.receive(caller)
        except (EOFError, OSError, ValueError):
            break
        with socket.socket(fileno=own_fd) as own:
            try:
                helper = os.fork()
            except OSError as error:
                send_error(own, error)
                helper = None
            if helper == 0:
                caller.close()
                _become_helper(own, stderr, [*watched, *helpers])
                return socket.socket(fileno=own.detach())
        os.close(stderr)
        if helper is not None and (descriptor := _open_or_kill(helper)) is not None:
            helpers[descriptor] = helper
            poll.register(descriptor, select.POLLIN)
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


def _become_helper(own: socket.socket, stderr: int, inherited: Iterable[int]) -> None:
    """Separate this process from the server, and send a descriptor of it."""
    for fd in inherited:
        os.close(fd)
    try:
        linux.set_dumpable(True)
        os.setsid()
        os.dup2(stderr, 2)
        os.close(stderr)
        descriptor = os.pidfd_open(os.getpid())
        channel.send(own, {}, [descriptor])
        os.close(descriptor)
    except OSError as error:
        send_error(own, error)
        os._exit(1)


def _open_or_kill(helper: int) -> int | None:
    """Return a descriptor of a new helper; without one, the helper is killed."""
    try:
        return os.pidfd_open(helper)
    except OSError:
        os.kill(helper, signal.SIGKILL)
        os.waitpid(helper, 0)
        return None
