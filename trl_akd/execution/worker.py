"""The caller's handle on one helper process."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass, field
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
_OVERDUE_SECONDS = 60.0  # a helper keeps deadlines by itself; one that is so much later has died in some unknown way
_START_CODE = "import sys; sys.path.insert(0, {code!r}); from zygote.helper import main; main({channel}, {folder})"
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
_INHERITED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # without which some interpreters do not start


class HelperError(Exception):
    """The helper ended, or said something that it does not say; `errno` is the system's reason where there is one."""

    errno: int | None = None


class PackageError(HelperError):
    """The helper could not import a package."""

    def __init__(self, package: str, reason: str) -> None:
        super().__init__(reason)
        self.package = package


@dataclass(frozen=True)
class Case:
    """One process to run: a candidate, and what is done with it.

    Args:
        candidate (`str`): the program's text.
        mode (`str`): `test`, `strict`, `script` or `call`, as in `zygote.program`.
        text (`str`): the test program, the standard input, or the arguments as JSON.
        function (`str`, *optional*): what `call` calls.
        preamble (`str`, *optional*, defaults to `""`): imports that run in the candidate's namespace before it.
        checks (`DiscoveredTests`, *optional*): the checks that a test program leaves to a test runner.
    """

    candidate: str
    mode: Literal["test", "strict", "script", "call"]
    text: str
    function: str | None = None
    preamble: str = ""
    checks: DiscoveredTests = field(default_factory=DiscoveredTests)


class Worker:
    """Start a helper; then send it one case at a time.

    Args:
        settings (`dict`): what the helper is told first; see `isolation`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._ready = False
        self._folder: str | None = None
        if settings["level"] == "process":
            self._folder = os.path.join(tempfile.gettempdir(), f"trl_akd-{uuid.uuid4().hex}")
        self._output: int | None = None
        self.deadline = time.monotonic() + _START_SECONDS
        self._group: MemoryGroup | None = None
        self._channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._stderr = -1
        try:
            with its:
                self._stderr = channel.make_file()
                self._process = _start(settings, its, self._stderr)
        except OSError:
            self._close_files()
            raise
        self._group = make_group()
        group = self._group.hand_over() if self._group else []
        files = [os.pidfd_open(os.getpid())] if hasattr(os, "pidfd_open") else []
        told = {**settings, "folder": self._folder, "group": self._group and self._group.name}
        try:
            channel.send(self._channel, {**told, "group_files": len(group)}, [*files, *group])
        except OSError:
            pass  # the helper has ended already, and receiving says so
        finally:
            for file in files:
                os.close(file)
            if self._group is not None:
                self._group.close_files()

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something to collect."""
        return self._channel.fileno()

    def wait_until_ready(self) -> None:
        """Wait for the helper to enter its surroundings.

        Raises:
            HelperError: saying why it could not; a PackageError if only a package is at fault.
        """
        self._channel.settimeout(_START_SECONDS)
        self._read_ready_message()
        self._channel.settimeout(None)

    def submit(self, case: Case, timeout: float, memory_mb: int) -> None:
        """Send a case to run; its result is collected later."""
        request = {
            "mode": case.mode,
            "timeout": timeout,
            "memory_bytes": memory_mb << 20,
            "function": case.function,
            "preamble": case.preamble,
            "checks": asdict(case.checks),
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
            pass  # the helper has ended, and collecting says so
        finally:
            for file in files:
                if file != self._output:
                    os.close(file)

    def collect(self) -> dict[str, Any] | None:
        """Receive what came of the case: fields of its result, and `output` where the mode makes some.

        Returns:
            `dict`: `None` if what was to be read is but the greeting of a helper that has just begun.

        Raises:
            HelperError: If the helper ended, or what it sent is no result.
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
        """Tell the helper to kill its program and end; it does so by itself if this process dies."""
        try:
            self._channel.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def stop(self) -> None:
        """End the helper, wait until it and its program are gone, and let go of what it held."""
        self.request_stop()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close_files()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)  # the helper did, unless it was killed
        if self._group is not None:
            self._group.remove()  # the same

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
            raise HelperError(f"its helper ended without an answer ({self._stderr_tail() or repr(error)})") from error
        for file in files:
            os.close(file)
        return reply

    def _stderr_tail(self) -> str:
        size = os.fstat(self._stderr).st_size
        text = os.pread(self._stderr, _STDERR_TAIL_BYTES, max(0, size - _STDERR_TAIL_BYTES))
        return " ".join(text.decode(errors="replace").split())


def interpreter() -> str:
    """Return the Python that helpers run on: that of this process, without its virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _start(settings: dict[str, Any], its: socket.socket, errors: int) -> subprocess.Popen[bytes]:
    """Start a helper that finds its code by a descriptor, so that programs see no path of this machine."""
    code, folder = settings["own_folder"], None
    if code is None:
        folder = os.open(PACKAGE_FOLDER, os.O_RDONLY | os.O_DIRECTORY)
        code = f"/proc/self/fd/{folder}" if sys.platform == "linux" else PACKAGE_FOLDER
    start = _START_CODE.format(code=code, channel=its.fileno(), folder=folder)
    try:
        return subprocess.Popen(
            [*settings["command"], interpreter(), "-s", "-S", "-P", "-c", start],
            env=_ENVIRONMENT | {name: os.environ[name] for name in _INHERITED if name in os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[its.fileno()] if folder is None else [its.fileno(), folder],
            cwd="/",
            start_new_session=True,  # so that Ctrl-C reaches the caller alone, which then ends its helpers
        )
    finally:
        if folder is not None:
            os.close(folder)
