"""Start and end of helper processes."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from typing import Any, TypeAlias

from .zygote import channel

__all__ = ["PACKAGE_FOLDER", "Launcher", "Process", "end_process", "interpreter", "shut_down", "stderr_tail"]

PACKAGE_FOLDER = os.path.realpath(os.path.dirname(__file__))

# A child of this process, or the descriptor of another process.
Process: TypeAlias = "subprocess.Popen[bytes] | int"

_STOP_SECONDS = 3.0
_STDERR_TAIL_BYTES = 500
_START_CODE = """\
import gc, sys
gc.disable()
sys.path.insert(0, {code!r})
sys.dont_write_bytecode, kept = {dont_write_bytecode}, sys.dont_write_bytecode
from zygote.helper import main
sys.dont_write_bytecode = kept
del gc, kept
main({channel}, {folder})
"""
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "USER": "program",
    "LANG": "C.UTF-8",
    "LD_BIND_NOW": "1",  # else each fork would resolve functions of shared libraries that it is the first to call
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
}
_INHERITED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # needed by some interpreters to start


class Launcher:
    """Start the helpers of one executor: as forks of a fork server, or one by one at level `bwrap` and on macOS.

    Args:
        settings (`dict`): First message to each helper; see `isolation`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self._forks = not settings["command"] and hasattr(os, "pidfd_open")
        self._server: _ForkServer | None = None

    def start(self, helper_end: socket.socket, stderr: int) -> "subprocess.Popen[bytes] | None":
        """Start a helper.

        Returns:
            `subprocess.Popen`: `None` for a fork of the fork server, which first sends a descriptor of its process.

        Raises:
            OSError: If no process can be started.
        """
        if not self._forks:
            return _execute(self.settings, helper_end, stderr)
        if self._server is None or not self._server.is_alive():
            self.stop()
            self._server = _ForkServer(self.settings)
        self._server.fork(helper_end, stderr)
        return None

    def failure(self) -> dict[str, Any] | None:
        """Return the fields of the error with which the fork server ended, or None."""
        return None if self._server is None else self._server.failure()

    def request_stop(self) -> None:
        """Ask the fork server to end after its helpers."""
        if self._server is not None:
            self._server.request_stop()

    def stop(self) -> None:
        """End the fork server, and wait until it is gone."""
        if self._server is not None:
            self._server.stop()
            self._server = None


class _ForkServer:
    """A process that has prepared an interpreter, and forks helpers."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._channel, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._stderr = -1
        try:
            with server_end:
                self._stderr = channel.make_file()
                watched = os.pidfd_open(os.getpid())
                try:
                    self._process = _execute(settings, server_end, self._stderr)
                    self._send({"forks": True}, [watched])
                finally:
                    os.close(watched)
        except OSError:
            self._close_files()
            raise

    def is_alive(self) -> bool:
        """Return whether the process has neither disconnected nor sent an error, after which it ends."""
        try:
            self._channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def fork(self, helper_end: socket.socket, stderr: int) -> None:
        """Request a helper with a socket and a file for its standard error."""
        self._send({}, [helper_end.fileno(), stderr])

    def _send(self, message: dict[str, Any], files: list[int]) -> None:
        try:
            channel.send(self._channel, message, files)
        except OSError:
            pass  # the process has ended; its helpers' sockets report that

    def failure(self) -> dict[str, Any] | None:
        """Return the fields of the error with which the process ended, or None."""
        self._channel.setblocking(False)
        try:
            message, _ = channel.receive(self._channel)
        except (EOFError, OSError, ValueError):
            tail = stderr_tail(self._stderr)
            return {"error": f"the fork server ended ({tail})"} if tail else None
        finally:
            self._channel.setblocking(True)
        return message

    def request_stop(self) -> None:
        """Ask the process to end after its helpers."""
        shut_down(self._channel)

    def stop(self) -> None:
        """End the process, and wait until it is gone."""
        self.request_stop()
        end_process(self._process)
        self._close_files()

    def _close_files(self) -> None:
        self._channel.close()
        if self._stderr >= 0:
            os.close(self._stderr)
        self._stderr = -1


def interpreter() -> str:
    """Return the Python that helpers run on: the base interpreter of this process, outside virtual environments."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def stderr_tail(file: int) -> str:
    """Return the end of the text that a process wrote to its standard error."""
    size = os.fstat(file).st_size
    text = os.pread(file, _STDERR_TAIL_BYTES, max(0, size - _STDERR_TAIL_BYTES))
    return " ".join(text.decode(errors="replace").split())


def end_process(process: Process) -> None:
    """Wait until a process has ended, and kill it if that takes long.

    Args:
        process (`subprocess.Popen` or `int`): Child of this process, or descriptor of another process, to be closed.
    """
    if isinstance(process, int):
        try:
            if not _has_ended(process, _STOP_SECONDS):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                _has_ended(process)
        finally:
            os.close(process)
        return
    if hasattr(os, "pidfd_open"):  # `Popen.wait` sleeps between its checks, so it returns late
        with contextlib.suppress(OSError):  # waited for by the caller's own code, or too many open files
            end_process(os.pidfd_open(process.pid))
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _has_ended(descriptor: int, seconds: float | None = None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def shut_down(end: socket.socket) -> None:
    """Disconnect a socket, also for forked copies of this process."""
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def _execute(settings: dict[str, Any], own_end: socket.socket, stderr: int) -> "subprocess.Popen[bytes]":
    """Start a process that reads its code through a descriptor, so that programs see no path of this machine."""
    code, folder = settings["own_folder"], None
    if code is None:
        folder = os.open(PACKAGE_FOLDER, os.O_RDONLY | os.O_DIRECTORY)
        code = f"/proc/self/fd/{folder}" if sys.platform == "linux" else PACKAGE_FOLDER
    start = _START_CODE.format(
        code=code,
        dont_write_bytecode=sys.dont_write_bytecode or sys.pycache_prefix is not None,
        channel=own_end.fileno(),
        folder=folder,
    )
    try:
        return subprocess.Popen(
            [*settings["command"], interpreter(), "-s", "-S", "-P", "-c", start],
            env=_ENVIRONMENT | {name: os.environ[name] for name in _INHERITED if name in os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=[own_end.fileno()] if folder is None else [own_end.fileno(), folder],
            cwd="/",
            start_new_session=True,  # Ctrl-C reaches only the caller, which then ends its helpers
        )
    finally:
        if folder is not None:
            os.close(folder)
