"""The caller's handle on one helper process."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any, Literal

from .zygote import channel

__all__ = ["Case", "HelperError", "Worker"]

OUTPUT_BYTES = 16 << 20
PACKAGE_FOLDER = os.path.realpath(os.path.dirname(__file__))

_START_SECONDS = 30.0
_STOP_SECONDS = 3.0
_OVERDUE_SECONDS = 30.0  # a helper keeps deadlines by itself; one that is so much later has died in some unknown way
_START = "import sys; sys.path.insert(0, sys.argv[1]); from zygote.helper import main; main(int(sys.argv[2]))"
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
    """The helper ended, or said something that it does not say."""


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
    """

    candidate: str
    mode: Literal["test", "strict", "script", "call"]
    text: str
    function: str | None = None
    preamble: str = ""


class Worker:
    """Start a helper; then send it one case at a time.

    Args:
        settings (`dict`): what the helper is told first; see `isolation`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._ready = False
        self._folder = tempfile.mkdtemp(prefix="trl_akd-") if settings["level"] == "process" else None
        self._output: int | None = None
        self.deadline = time.monotonic() + _START_SECONDS
        self._channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._errors = tempfile.TemporaryFile()
        python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
        with its:
            self._process = subprocess.Popen(
                [
                    *settings["command"],
                    python,
                    "-s",
                    "-S",
                    "-P",
                    "-c",
                    _START,
                    settings["own_folder"],
                    str(its.fileno()),
                ],
                env=_ENVIRONMENT | {name: os.environ[name] for name in _INHERITED if name in os.environ},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[its.fileno()],
                cwd="/",
                start_new_session=True,  # so that Ctrl-C reaches the caller alone, which then ends its helpers
            )
        files = [os.pidfd_open(os.getpid())] if hasattr(os, "pidfd_open") else []
        try:
            channel.send(self._channel, {**settings, "folder": self._folder}, files)
        except OSError:
            pass  # the helper has ended already, and receiving says so
        finally:
            for file in files:
                os.close(file)

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something to collect."""
        return self._channel.fileno()

    def wait_until_ready(self) -> None:
        """Wait for the helper to enter its surroundings.

        Raises:
            HelperError: saying why it could not; a PackageError if only a package is at fault.
        """
        self._channel.settimeout(_START_SECONDS)
        self._read_greeting()
        self._channel.settimeout(None)

    def submit(self, case: Case, timeout: float, memory_mb: int) -> None:
        """Send a case to run; its result is collected later."""
        request = {
            "mode": case.mode,
            "timeout": timeout,
            "memory_bytes": memory_mb << 20,
            "function": case.function,
            "preamble": case.preamble,
        }
        files = [channel.make_file(text.encode("utf-8", "surrogatepass")) for text in (case.candidate, case.text)]
        if case.mode in ("script", "call"):
            self._output = channel.make_file()
            files.append(self._output)
        self.deadline = max(self.deadline if not self._ready else 0.0, time.monotonic()) + timeout + _OVERDUE_SECONDS
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
            self._read_greeting()
            return None
        reply = self._receive()
        if self._output is not None:
            reply["output"] = channel.read_file(self._output, OUTPUT_BYTES + 1)
            os.close(self._output)
            self._output = None
        return reply

    def hang_up(self) -> None:
        """Tell the helper to kill its program and end; it does so by itself if this process dies."""
        try:
            self._channel.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def stop(self) -> None:
        """End the helper, wait until it and its program are gone, and let go of what it held."""
        self.hang_up()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._channel.close()
        self._errors.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)  # the helper did, unless it was killed
        if self._output is not None:
            os.close(self._output)
            self._output = None

    def _read_greeting(self) -> None:
        greeting = self._receive()
        if "package" in greeting:
            raise PackageError(greeting["package"], greeting["error"])
        if "error" in greeting:
            raise HelperError(greeting["error"])
        self._ready = True

    def _receive(self) -> dict[str, Any]:
        try:
            reply, files = channel.receive(self._channel)
        except (EOFError, OSError, ValueError) as error:
            raise HelperError(f"its helper ended without an answer ({self._last_words() or repr(error)})") from error
        for file in files:
            os.close(file)
        return reply

    def _last_words(self) -> str:
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 500))
        return " ".join(self._errors.read().decode(errors="replace").split())
