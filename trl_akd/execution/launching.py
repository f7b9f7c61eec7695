"""Start and end of helper processes."""

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
from typing import Any, TypeAlias

from .zygote import channel

__all__ = [
    "PACKAGE_FOLDER",
    "BrokenServerError",
    "Launcher",
    "Process",
    "end_process",
    "interpreter",
    "shut_down",
    "stderr_tail",
]

PACKAGE_FOLDER = os.path.realpath(os.path.dirname(__file__))

# A child of this process, or the descriptor of another process.
Process: TypeAlias = "subprocess.Popen[bytes] | int"

_START_SECONDS = 30.0
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


class BrokenServerError(Exception):
    """The fork server has ended or does not answer."""


class Launcher:
    """Start the helpers of one executor: as forks of a fork server, or one by one at level `bwrap` and on macOS.

    Args:
        settings (`dict`): First message to each helper; see `isolation`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self._forks = not settings["command"] and hasattr(os, "pidfd_open")
        self._server: _ForkServer | None = None

    def start(self, helper_end: socket.socket, stderr: int) -> Process:
        """Start a helper.

        Args:
            helper_end (`socket.socket`): End of the helper of the socket that it shares with its worker.
            stderr (`int`): Descriptor of the file for the helper's standard error.

        Raises:
            OSError: If no process can be started.
            BrokenServerError: If the fork server has ended or does not answer; the next call starts another one.
        """
        if not self._forks:
            return _execute(self.settings, helper_end, stderr)
        if self._server is None:
            self._server = _ForkServer(self.settings)
        try:
            return self._server.fork(helper_end, stderr)
        except OSError:
            raise  # the server can serve further requests
        except BaseException:  # also if interrupted, as the next answer would be that to this request
            server, self._server = self._server, None
            server.kill()
            raise

    def request_stop(self) -> None:
        """Ask the fork server to end after its helpers."""
        if self._server is not None:
            self._server.request_stop()

    def stop(self) -> None:
        """End the fork server, and wait until it is gone; its helpers are to be ended before."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()


class _ForkServer:
    """A process that has prepared an interpreter, and forks helpers; see `zygote.fork_server`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr = -1
        self._channel, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._channel.settimeout(_START_SECONDS)
            with server_end:
                self._stderr = channel.make_file()
                watched = os.pidfd_open(os.getpid())
                try:
                    self._process = _execute(settings, server_end, self._stderr)
                    with contextlib.suppress(OSError):  # the process has ended; the first request reports that
                        channel.send(self._channel, {"forks": True}, [watched])
                finally:
                    os.close(watched)
        except BaseException:
            self.kill()
            raise

    def fork(self, helper_end: socket.socket, stderr: int) -> int:
        """Fork a helper with a socket and a file for its standard error, and return a descriptor of its process.

        Raises:
            OSError: If the server cannot fork.
            BrokenServerError: If it does not answer.
        """
        try:
            channel.send(self._channel, {}, [helper_end.fileno(), stderr])
            reply, files = channel.receive(self._channel)
        except (EOFError, OSError, ValueError) as error:
            reason = stderr_tail(self._stderr) or repr(error)
            raise BrokenServerError(f"the fork server does not answer: {reason}") from error
        if "error" in reply:
            failure = OSError(reply["error"])
            failure.errno = reply["errno"]
            raise failure
        if not files:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # the descriptor could not be received
        return files[0]

    def request_stop(self) -> None:
        """Ask the process to end after its helpers."""
        shut_down(self._channel)

    def stop(self) -> None:
        """End the process, and wait until it is gone."""
        self.request_stop()
        if self._process is not None:
            end_process(self._process)
        self._channel.close()
        if self._stderr >= 0:
            os.close(self._stderr)

    def kill(self) -> None:
        """End the process without waiting for its helpers, which go on."""
        if self._process is not None:
            self._process.kill()
        self.stop()


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
    # `Popen.wait` sleeps between its checks, so it returns late.
    if hasattr(os, "pidfd_open") and process.poll() is None:  # else another process may have its id
        with contextlib.suppress(OSError):  # too many open files
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
