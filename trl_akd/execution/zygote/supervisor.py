"""Supervision of one program by its helper: start, limits, verdict and end."""

import contextlib
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn, Protocol

from . import confinement, linux, metering, program, verdict
from .cgroup import MAX_LEFT_OVER_BYTES, MemoryLimit

_SETUP_SECONDS = 30.0
_MESSAGE_SECONDS = 1.0
_MAX_PAUSE = 0.05  # between two checks of the limits
_MIN_PAUSE = 0.005
_PAUSE_WITHOUT_CGROUP = {False: 0.01, True: 0.003}  # for one process, and for several, which fill memory faster
_CORES = os.cpu_count() or 1
_CREDENTIALS = struct.Struct("3i")
_CREDENTIALS_SPACE = socket.CMSG_SPACE(_CREDENTIALS.size)
_PASSES_CREDENTIALS = hasattr(socket, "SO_PASSCRED")


class Level(Protocol):
    """Operations that differ between isolation levels."""

    memory: MemoryLimit | None
    set_up: list[linux.Call]  # makes the program's private folders, in its process
    drop_privileges: list[linux.Call]  # drops what the helper may do and a program may not

    def fork(self) -> int:
        """Fork the process of a program; return its id, or 0 in that process."""

    def process_limit(self) -> int:
        """Return the limit on the number of processes of the program's user."""

    def processes(self) -> Iterable[int]:
        """List the program's processes."""

    def scratch_usage(self) -> tuple[int, int]:
        """Return the size in bytes and the number of the program's files, or zeros if the file system limits them."""

    def scratch_memory_bytes(self, child: int) -> int:
        """Return the bytes of memory that the program's files use."""

    def destroy(self, child: int) -> None:
        """Kill all processes of the program, whose first is `child`, and remove its files."""

    def close(self) -> None:
        """Remove the files of the helper."""


class CallerDisconnected(Exception):
    """The caller has ended or disconnected."""


@dataclass(frozen=True)
class Job:
    """Request to run a program; `files` become its descriptors from CANDIDATE_FD to OUTPUT_FD (see `program`)."""

    mode: str
    timeout: float
    memory_bytes: int
    function: str | None
    preamble: str
    discovered: dict[str, Any]
    files: list[int]


def run(level: Level, job: Job, caller: list[int]) -> dict[str, Any]:
    """Run a program and return the fields of its result.

    Args:
        caller (`list[int]`): Descriptors that become readable when the caller ends or disconnects.

    Raises:
        CallerDisconnected: If one of them becomes readable. The program has been killed by then.
    """
    try:
        if level.memory is not None:
            if (left := level.memory.left_over_bytes()) > MAX_LEFT_OVER_BYTES:  # a new helper gets a new group
                return {"status": "infra_error", "message": f"earlier programs left {left >> 20} MiB in /dev/shm"}
            level.memory.allow(job.memory_bytes)
        receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with receiver, sender:
            return _start_and_monitor(level, job, receiver, sender, caller)
    except OSError as error:
        return {"status": "infra_error", "message": f"the program cannot be started ({error})"}
    finally:
        for file in job.files:
            os.close(file)


def _start_and_monitor(
    level: Level, job: Job, receiver: socket.socket, sender: socket.socket, caller: list[int]
) -> dict[str, Any]:
    if _PASSES_CREDENTIALS:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    set_up = _prepare_set_up(level, job, sender.fileno())
    child = level.fork()
    if child == 0:
        _run_program(job, set_up, sender.fileno())
    try:
        sender.close()
        nonce = os.urandom(verdict.NONCE_BYTES)  # made after the fork, so that the program's memory has no copy
        receiver.send(nonce)
        return _Monitor(level, job, child, receiver, nonce, caller).wait()
    finally:
        level.destroy(child)


def _prepare_set_up(level: Level, job: Job, verdict_fd: int) -> list[linux.Call]:
    """Prepare the calls that set up the sandbox in a program's process."""
    counted = level.memory is not None
    return [
        *level.set_up,
        *_descriptor_calls(job, verdict_fd),
        ("setsid", os.setsid, ()),
        *confinement.resource_limits(job.memory_bytes, job.timeout, level.process_limit(), counted),
        *level.drop_privileges,
        *_last_calls(counted),
    ]


def _descriptor_calls(job: Job, verdict_fd: int) -> Iterator[linux.Call]:
    """Move the descriptors that the program needs to their fixed numbers, and close all others."""
    wanted = {2: 1}  # /dev/null, as for the output of the helper; first, as descriptor 1 may change
    wanted.update(zip((program.CANDIDATE_FD, program.TEXT_FD, program.OUTPUT_FD), job.files, strict=False))
    wanted[program.VERDICT_FD] = verdict_fd
    if job.mode == "script":
        wanted[0], wanted[1] = wanted.pop(program.TEXT_FD), wanted.pop(program.OUTPUT_FD)
    for number, fd in wanted.items():
        yield "dup2", os.dup2, (fd, number, number <= 2)
    for number in range(3, program.LAST_FD + 1):
        if number not in wanted:
            yield "close", os.close, (number,)
    yield "closerange", os.closerange, (program.LAST_FD + 1, os.sysconf("SC_OPEN_MAX"))


@cache
def _last_calls(memory_is_counted: bool) -> list[linux.Call]:
    calls: list[linux.Call] = []
    linux.die_with_parent(signal.SIGKILL, later=calls)  # for levels without a pid namespace
    confinement.install_syscall_filter(memory_is_counted, later=calls)
    return calls


class _Monitor:
    """Monitor of one program, which decides the status of its result."""

    def __init__(
        self, level: Level, job: Job, child: int, verdicts: socket.socket, nonce: bytes, caller: list[int]
    ) -> None:
        self._level, self._job, self._child, self._verdicts, self._nonce = level, job, child, verdicts, nonce
        self._caller = caller
        self._stage: str | None = None
        self._failure: dict[str, Any] | None = None
        self._failed_at = 0.0
        self._forked = self._started = self._checked_at = time.monotonic()
        self._used = self._idle = self._pause = self._next_check = 0.0
        self._own_cpu = time.process_time()  # processor time of the checks
        self._schedule_check(job.timeout)

    def wait(self) -> dict[str, Any]:
        """Return the fields of the result as soon as they are known."""
        ended = os.pidfd_open(self._child) if hasattr(os, "pidfd_open") else None
        try:
            poll = select.poll()
            # Most programs end before the first check, and all of their frames are read then.
            for fd in (*self._caller, self._verdicts.fileno() if ended is None else ended):
                poll.register(fd, select.POLLIN)
            while True:
                wait = max(0.0, self._next_check - time.monotonic())
                ready = {fd for fd, _ in poll.poll(min(wait, _MAX_PAUSE if ended is None else wait) * 1000)}
                if (result := self._handle(ready, ended)) is not None:
                    return result
                poll.register(self._verdicts, select.POLLIN)
        finally:
            if ended is not None:
                os.close(ended)

    def _handle(self, ready: set[int], ended: int | None) -> dict[str, Any] | None:
        if ready.intersection(self._caller):
            raise CallerDisconnected
        is_due = time.monotonic() >= self._next_check
        has_more, result = True, None
        while has_more and result is None:
            if (received := _receive(self._verdicts)) is None:
                has_more = False
            else:
                result = self._handle_frame(*received)
            if has_more and time.monotonic() >= self._next_check:  # a program may send frames forever
                break
        if is_due:
            return self._check_limits() or result
        if result is None and not has_more and (ended is None or ended in ready):
            return self._handle_exit()  # after all frames, as the last one may be the verdict
        return result

    def _handle_frame(self, datagram: bytes, sender: int | None) -> dict[str, Any] | None:
        frame = verdict.parse(datagram, self._nonce)
        if frame is None or sender not in (None, self._child):
            return None
        if frame.kind == verdict.SETUP_FAILED:
            return self._result("infra_error", message=frame.text) if self._stage is None else None
        if frame.kind == verdict.STAGE:
            stage, _, began = frame.text.partition(" ")
            if self._stage is None:  # this frame is sent before the program could forge it
                self._started = self._checked_at = float(began)
            self._stage = stage if stage in ("compile", "load", "test") else self._stage
        elif frame.kind == verdict.FAILED and self._failure is None:
            self._failure = verdict.parse_facts(frame.text)
            self._failed_at = time.monotonic()
            self._next_check = min(self._next_check, self._failed_at + _MESSAGE_SECONDS)
        elif frame.kind == verdict.MESSAGE and self._failure is not None:
            return self._verdict("failed", **self._failure, message=verdict.printable(frame.text))
        elif frame.kind == verdict.PASSED and self._failure is None:
            return self._verdict("passed")
        return None

    def _handle_exit(self) -> dict[str, Any] | None:
        end = os.waitid(os.P_PID, self._child, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if end is None:
            return None
        if self._stage is None:
            return self._result("infra_error", message="the program's process ended before the program began")
        if self._failure is not None:
            return self._verdict("failed", **self._failure)
        if end.si_code == os.CLD_EXITED:
            message = f"exited with status {end.si_status} before the end of the tests"
            return self._verdict("failed", ending="exit", exit_code=end.si_status, message=message)
        if end.si_status == signal.SIGXCPU:
            return self._timed_out("of processor time")
        message = f"killed by {_signal_name(end.si_status)}"
        return self._verdict("failed", ending="signal", signal=end.si_status, message=message)

    def _check_limits(self) -> dict[str, Any] | None:
        """Compare the resources used by the program with its limits, and schedule the next check."""
        now, own_cpu = time.monotonic(), time.process_time()
        if self._stage is None:
            if now - self._forked >= _SETUP_SECONDS:
                return self._result("infra_error", message=f"the program did not begin within {_SETUP_SECONDS:g} s")
            self._schedule_check(self._job.timeout)
            return None
        processes = list(self._level.processes())
        if result := self._over_memory(processes) or self._over_scratch():
            return result
        elapsed = now - self._started
        used, runnable = metering.cpu_usage(processes) if metering.AVAILABLE else (elapsed, True)
        if used >= self._job.timeout:
            return self._timed_out("of processor time")
        if not runnable and used <= self._used:
            expected = self._pause + own_cpu - self._own_cpu  # the last check and the pause after it
            self._idle += min(now - self._checked_at, 2 * expected)  # a check may be late because the machine is busy
        self._checked_at, self._used, self._own_cpu = now, used, own_cpu
        if self._idle >= metering.IDLE_FACTOR * self._job.timeout:
            return self._timed_out("idle")
        if elapsed >= metering.max_wall_seconds(self._job.timeout):
            return self._timed_out("of wall-clock time")
        if self._failure is not None and now - self._failed_at >= _MESSAGE_SECONDS:
            return self._verdict("failed", **self._failure)
        self._schedule_check(self._job.timeout - used, several=len(processes) > 1)
        return None

    def _schedule_check(self, cpu_left: float, several: bool = False) -> None:
        self._pause = min(_MAX_PAUSE, max(_MIN_PAUSE, cpu_left / _CORES))
        if self._level.memory is None:
            self._pause = min(self._pause, _PAUSE_WITHOUT_CGROUP[several])
        self._next_check = time.monotonic() + self._pause

    def _verdict(self, status: str, **fields: Any) -> dict[str, Any]:
        """Return a verdict, unless a limit was exceeded since the last check."""
        if (killed := self._killed_for_memory()) is not None:
            return killed
        elapsed = time.monotonic() - self._started
        if metering.AVAILABLE and self._failure is None and elapsed * _CORES >= self._job.timeout:
            used, _ = metering.cpu_usage({self._child, *self._level.processes()})  # the child may be a zombie
            if used >= self._job.timeout:
                return self._timed_out("of processor time")
        return self._result(status, **fields)

    def _timed_out(self, kind: str) -> dict[str, Any]:
        if self._failure is not None:
            return self._result("failed", **self._failure)
        seconds = {"idle": self._idle, "of wall-clock time": time.monotonic() - self._started}
        message = f"still running after {seconds.get(kind, self._job.timeout):.3g} s {kind}"
        return self._result("timed_out", ending="deadline", message=message)

    def _over_memory(self, processes: list[int]) -> dict[str, Any] | None:
        if self._level.memory is not None:
            return self._killed_for_memory()
        files = self._level.scratch_memory_bytes(self._child)
        used = files + metering.memory_bytes(processes, enough=self._job.memory_bytes - files)
        if used <= self._job.memory_bytes:
            return None
        return self._out_of_memory(f"used {used >> 20} MiB of memory in all its processes")

    def _killed_for_memory(self) -> dict[str, Any] | None:
        if self._level.memory is None or not self._level.memory.exceeded():
            return None
        return self._out_of_memory("used more memory in all its processes than allowed")

    def _out_of_memory(self, message: str) -> dict[str, Any]:
        message = f"{message}; {self._job.memory_bytes >> 20} MiB are allowed"
        return self._result("failed", ending="memory", error_type="MemoryError", message=message)

    def _over_scratch(self) -> dict[str, Any] | None:
        used, files = self._level.scratch_usage()
        if used > confinement.SCRATCH_BYTES:
            message = f"wrote more than the {confinement.SCRATCH_BYTES >> 20} MiB of files that are allowed"
        elif files > confinement.SCRATCH_FILES:
            message = f"made more than the {confinement.SCRATCH_FILES} files that are allowed"
        else:
            return None
        return self._result("failed", error_type="OSError", ending="exception", message=message)

    def _result(self, status: str, **fields: Any) -> dict[str, Any]:
        stage = None if status == "passed" else self._stage
        return {"status": status, "stage": stage, "seconds": time.monotonic() - self._started, **fields}


def _run_program(job: Job, set_up: list[linux.Call], verdict_fd: int) -> NoReturn:
    """Set up the sandbox of this process, then run the program."""
    try:
        linux.make(set_up)
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        for fd in (program.VERDICT_FD, verdict_fd):  # whichever is the socket at this point
            with contextlib.suppress(OSError):
                verdict.send_setup_failed(fd, reason)
        os._exit(1)
    program.main(job.mode, job.function, job.preamble, job.discovered)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _receive(verdicts: socket.socket) -> tuple[bytes, int | None] | None:
    """Receive a datagram and the sender's process id from the kernel, or None on systems without that.

    Returns:
        None if there is no datagram.
    """
    try:
        datagram, notes, _, _ = verdicts.recvmsg(verdict.MAX_FRAME, _CREDENTIALS_SPACE, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    for _, kind, data in notes:
        if _PASSES_CREDENTIALS and kind == socket.SCM_CREDENTIALS:
            return datagram, _CREDENTIALS.unpack(data)[0]
    return datagram, -1 if _PASSES_CREDENTIALS else None
