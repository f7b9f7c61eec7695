"""Start of a helper process, and exchange of cases and outcomes with it."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

from .test_discovery import DiscoveredTests
from .zygote import channel, metering
from .zygote.cgroup import MemoryGroup, make_group

__all__ = ["Case", "HelperError", "Worker"]

OUTPUT_BYTES = 16 << 20
PACKAGE_FOLDER = os.path.realpath(os.path.dirname(__file__))

_START_SECONDS = 30.0
_STOP_SECONDS = 3.0
_STDERR_TAIL_BYTES = 500
_OVERDUE_SECONDS = 60.0  # helpers enforce deadlines; one that is this late is broken
_START_CODE = """\
import sys
sys.path.insert(0, {code!r})
sys.dont_write_bytecode, kept = {dont_write_bytecode}, sys.dont_write_bytecode
from zygote.helper import main
sys.dont_write_bytecode = kept
del kept
main({channel}, {folder})
"""
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "USER": "program",
    "LANG": "C.UTF-8",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
}
_INHERITED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # needed by some interpreters to start


class HelperError(Exception):
    """The helper ended or sent an invalid message; `errno` is that of a failed system call, if any."""

    errno: int | None = None


class PackageError(HelperError):
    """The helper could not import a package."""

    def __init__(self, package: str, reason: str) -> None:
        super().__init__(reason)
        self.package = package


@dataclass(frozen=True)
class Case:
    """A candidate and one test of it, to be run by one process.

    Args:
        candidate (`str`): Source of the candidate.
        mode (`str`): `test`, `strict`, `script` or `call`; see `zygote.program`.
        text (`str`): Test program, standard input, or arguments as JSON.
        function (`str`, *optional*): Name of the function to call, for `call`.
        preamble (`str`, *optional*, defaults to `""`): Imports that run in the candidate's namespace before it.
        discovered (`DiscoveredTests`, *optional*): Tests that the harness calls after the test program.
    """

    candidate: str
    mode: Literal["test", "strict", "script", "call"]
    text: str
    function: str | None = None
    preamble: str = ""
    discovered: DiscoveredTests = field(default_factory=DiscoveredTests)


class Worker:
    """A helper process, which runs one case at a time.

    Args:
        settings (`dict`): First message to the helper; see `isolation`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._ready = False
        self._folder: str | None = None
        if settings["level"] == "process":
            self._folder = os.path.join(tempfile.gettempdir(), f"trl_akd-{uuid.uuid4().hex}")
        self._output: int | None = None
        self.deadline = time.monotonic() + _START_SECONDS
        self._group: MemoryGroup | None = None
        self._channel, helper_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._stderr = -1
        try:
            with helper_end:
                self._stderr = channel.make_file()
                self._process = _start(settings, helper_end, self._stderr)
        except OSError:
            self._close_files()
            raise
        self._group = make_group()
        group = self._group.hand_over() if self._group else []
        files = [os.pidfd_open(os.getpid())] if hasattr(os, "pidfd_open") else []
        message = {**settings, "folder": self._folder, "group": self._group and self._group.name}
        try:
            channel.send(self._channel, {**message, "group_files": len(group)}, [*files, *group])
        except OSError:
            pass  # the helper has ended; receiving reports that
        finally:
            for file in files:
                os.close(file)
            if self._group is not None:
                self._group.close_files()

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is a message to collect."""
        return self._channel.fileno()

    def wait_until_ready(self) -> None:
        """Wait until the helper has set up its sandbox.

        Raises:
            HelperError: If that failed; PackageError if a package could not be imported.
        """
        self._channel.settimeout(_START_SECONDS)
        self._read_ready_message()
        self._channel.settimeout(None)

    def submit(self, case: Case, timeout: float, memory_mb: int) -> None:
        """Send a case to run; its outcome is collected later."""
        request = {
            "mode": case.mode,
            "timeout": timeout,
            "memory_bytes": memory_mb << 20,
            "function": case.function,
            "preamble": case.preamble,
            "discovered": vars(case.discovered),
        }
        files = [channel.make_file(text.encode("utf-8", "surrogatepass")) for text in (case.candidate, case.text)]
        if case.mode in ("script", "call"):
            self._output = channel.make_file()
            files.append(self._output)
        self.deadline = max(self.deadline if not self._ready else 0.0, time.monotonic())
        self.deadline += metering.max_wall_seconds(timeout) + _OVERDUE_SECONDS
        try:
            channel.send(self._channel, request, files)
        except OSError:
            pass  # the helper has ended; collecting reports that
        finally:
            for file in files:
                if file != self._output:
                    os.close(file)

    def collect(self) -> dict[str, Any] | None:
        """Receive the outcome of the case: fields of its result, and `output` for modes that have one.

        Returns:
            `dict`: `None` if the message was only that a new helper is ready.

        Raises:
            HelperError: If the helper ended or sent an invalid message.
        """
        if not self._ready:
            self._read_ready_message()
            return None
        reply = self._receive()
        if self._output is not None:
            reply["output"] = channel.read_file(self._output, OUTPUT_BYTES + 1)
            os.close(self._output)
            self._output = None
        return reply

    def request_stop(self) -> None:
        """Ask the helper to kill its program and exit, which it also does when this process dies."""
        try:
            self._channel.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def stop(self) -> None:
        """End the helper, wait until it and its program are gone, and free what it used."""
        self.request_stop()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close_files()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)  # a no-op unless the helper was killed
        if self._group is not None:
            self._group.remove()  # likewise

    def _close_files(self) -> None:
        self._channel.close()
        for file in (self._stderr, self._output):
            if file is not None and file >= 0:
                os.close(file)
        self._stderr, self._output = -1, None

    def _read_ready_message(self) -> None:
        greeting = self._receive()
        if "package" in greeting:
            raise PackageError(greeting["package"], greeting["error"])
        if "error" in greeting:
            error = HelperError(greeting["error"])
            error.errno = greeting.get("errno")
            raise error
        self._ready = True

    def _receive(self) -> dict[str, Any]:
        try:
            reply, files = channel.receive(self._channel)
        except (EOFError, OSError, ValueError) as error:
            raise HelperError(f"the helper ended without an answer ({self._stderr_tail() or repr(error)})") from error
        for file in files:
            os.close(file)
        return reply

    def _stderr_tail(self) -> str:
        size = os.fstat(self._stderr).st_size
        text = os.pread(self._stderr, _STDERR_TAIL_BYTES, max(0, size - _STDERR_TAIL_BYTES))
        return " ".join(text.decode(errors="replace").split())


def interpreter() -> str:
    """Return the Python that helpers run on: the base interpreter of this process, outside virtual environments."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _start(settings: dict[str, Any], helper_end: socket.socket, stderr: int) -> subprocess.Popen[bytes]:
    """Start a helper that reads its code through a descriptor, so that programs see no path of this machine."""
    code, folder = settings["own_folder"], None
    if code is None:
        folder = os.open(PACKAGE_FOLDER, os.O_RDONLY | os.O_DIRECTORY)
        code = f"/proc/self/fd/{folder}" if sys.platform == "linux" else PACKAGE_FOLDER
    start = _START_CODE.format(
        code=code,
        dont_write_bytecode=sys.dont_write_bytecode or sys.pycache_prefix is not None,
        channel=helper_end.fileno(),
        folder=folder,
    )
    try:
        return subprocess.Popen(
            [*settings["command"], interpreter(), "-s", "-S", "-P", "-c", start],
            env=_ENVIRONMENT | {name: os.environ[name] for name in _INHERITED if name in os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=[helper_end.fileno()] if folder is None else [helper_end.fileno(), folder],
            cwd="/",
            start_new_session=True,  # Ctrl-C reaches only the caller, which then ends its helpers
        )
    finally:
        if folder is not None:
            os.close(folder)
