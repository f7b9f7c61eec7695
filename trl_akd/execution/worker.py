"""A worker: one helper process, and the exchange of cases and outcomes with it."""

import os
import shutil
import socket
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

from .launching import BrokenServerError, Launcher, Process, end_process, shut_down, stderr_tail
from .test_discovery import DiscoveredTests
from .zygote import channel, metering
from .zygote.cgroup import MemoryGroup, make_group

__all__ = ["Case", "HelperError", "Worker"]

OUTPUT_BYTES = 16 << 20

_START_SECONDS = 30.0
_OVERDUE_SECONDS = 60.0  # helpers enforce deadlines; one that is this late is broken


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
        launcher (`Launcher`): Starts the helper.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._ready = False
        self._folder: str | None = None
        if launcher.settings["level"] == "process":
            self._folder = os.path.join(tempfile.gettempdir(), f"trl_akd-{uuid.uuid4().hex}")
        self._output: int | None = None
        self._stderr = -1
        self._process: Process | None = None
        self._failure: str | None = None  # of the start, reported when this worker is read
        self._group: MemoryGroup | None = None
        self._channel, helper_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with helper_end:
                self._stderr = channel.make_file()
                started = self._start_helper(launcher, helper_end)
            if not started:
                self._channel.close()  # a helper that was forked before the server ended may have the other end
                self._channel, helper_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                with helper_end:
                    self._start_helper(launcher, helper_end)
            self._group = make_group()
            self._send_settings(launcher.settings)
            self.deadline = time.monotonic() + _START_SECONDS
        except BaseException:
            self.stop()
            raise

    def _start_helper(self, launcher: Launcher, helper_end: socket.socket) -> bool:
        """Start the helper; return False if the fork server is broken, which the next start replaces."""
        try:
            self._process = launcher.start(helper_end, self._stderr)
        except BrokenServerError as error:
            self._failure = str(error)
            return False
        self._failure = None
        return True

    def _send_settings(self, settings: dict[str, Any]) -> None:
        group = self._group.hand_over() if self._group else []
        message = {**settings, "folder": self._folder, "group": self._group and self._group.name}
        files = [os.pidfd_open(os.getpid())] if hasattr(os, "pidfd_open") else []  # the helper ends with this process
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
        shut_down(self._channel)

    def stop(self) -> None:
        """End the helper, wait until it and its program are gone, and free what it used."""
        self.request_stop()
        if self._process is not None:
            end_process(self._process)
            self._process = None
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
            reason = self._failure or stderr_tail(self._stderr) or repr(error)
            raise HelperError(f"the helper ended without an answer ({reason})") from error
        for file in files:
            os.close(file)
        return reply
