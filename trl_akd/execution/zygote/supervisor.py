"""A program from start to end, as its helper sees it.

helper ── init ── program ── whatever it starts
  │         └ control: "it exited with 1" ──────┐
  └<────────── verdict: "it passed, nonce …" ───┴─ poll, until the deadline
"""

import fcntl
import json
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from . import confinement, linux, program, verdict

_SETUP_SECONDS = 10.0
_MESSAGE_SECONDS = 1.0
_SAMPLE_SECONDS = 0.05
_CREDENTIALS = struct.Struct("3i")
_PASSES_CREDENTIALS = hasattr(socket, "SO_PASSCRED")


class Level(Protocol):
    """What differs between levels of isolation."""

    processes_allowed: int

    def fork(self) -> int:
        """Fork the init of a program."""

    def furnish(self) -> None:
        """Give the program what is its own; called by its init."""

    def drop_rights(self) -> None:
        """Give up what an init may do and a program may not."""

    def processes(self) -> Iterable[int]:
        """List the program's processes."""

    def destroy(self, init: int) -> None:
        """End all of the program's processes, its init among them, and remove what it left."""

    def close(self) -> None:
        """Remove what the helper itself left."""


class CallerGone(Exception):
    """The caller has ended or hung up."""


@dataclass(frozen=True)
class Job:
    """How to run a program; the files are those of `program`, from CANDIDATE_FD to OUTPUT_FD."""

    mode: str
    timeout: float
    memory_bytes: int
    function: str | None
    preamble: str
    files: list[int]


def run(level: Level, job: Job, caller: list[int]) -> dict[str, Any]:
    """Run a program and return the fields of its result.

    Args:
        caller (`list[int]`): descriptors that become readable when nobody waits for the result any more.

    Raises:
        CallerGone: If one of them does. The program is dead by then.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    if _PASSES_CREDENTIALS:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    reports, control = os.pipe()
    with ours, open(reports, "rb", buffering=0):
        init = level.fork()
        if init == 0:
            _be_init(level, job, its.fileno(), control)
        its.close()
        os.close(control)
        for file in job.files:
            os.close(file)
        try:
            nonce = os.urandom(verdict.NONCE_BYTES)  # made after the fork, so that no copy of it is in the program
            ours.send(nonce)
            return _Watch(level, job, ours, reports, nonce, caller).until_it_ends()
        finally:
            level.destroy(init)


class _Watch:
    """Follow one program: the only place where a result's status is decided."""

    def __init__(
        self, level: Level, job: Job, verdicts: socket.socket, reports: int, nonce: bytes, caller: list[int]
    ) -> None:
        self._level, self._job, self._verdicts, self._reports, self._nonce = level, job, verdicts, reports, nonce
        self._caller = caller
        self._poll = select.poll()
        for fd in (verdicts.fileno(), reports, *caller):
            self._poll.register(fd, select.POLLIN)
        self._pid: int | None = None
        self._stage: str | None = None
        self._failure: dict[str, Any] | None = None
        self._started = time.monotonic()
        self._deadline = self._started + _SETUP_SECONDS
        self._next_sample = self._started + _SAMPLE_SECONDS

    def until_it_ends(self) -> dict[str, Any]:
        """Return the result's fields as soon as they are known."""
        while True:
            wait = max(0.0, min(self._deadline, self._next_sample) - time.monotonic())
            ready = {fd for fd, _ in self._poll.poll(wait * 1000)}
            if ready.intersection(self._caller):
                raise CallerGone
            if time.monotonic() >= self._deadline:
                return self._at_deadline()
            if time.monotonic() >= self._next_sample:
                result = self._after_sample()
            elif self._verdicts.fileno() in ready:
                result = self._after_frame()
            elif self._reports in ready:  # only after all frames, as the last of them may be the verdict
                result = self._after_report()
            else:
                continue
            if result is not None:
                return result

    def _after_frame(self) -> dict[str, Any] | None:
        datagram, sender = _receive(self._verdicts)
        frame = verdict.parse(datagram, self._nonce)
        if frame is None or (self._pid is not None and sender != self._pid):
            return None
        if self._pid is None:
            self._pid = sender
            self._started = time.monotonic()
            self._deadline = self._started + self._job.timeout
        if frame.kind == verdict.STAGE:
            self._stage = frame.text if frame.text in ("compile", "load", "test") else None
        elif frame.kind == verdict.PASSED:
            return self._result("passed")
        elif frame.kind == verdict.FAILED:
            self._failure = verdict.parse_facts(frame.text)
            self._deadline = min(self._deadline, time.monotonic() + _MESSAGE_SECONDS)
        elif self._failure is not None:
            return self._result("failed", **self._failure, message=verdict.printable(frame.text))
        return None

    def _after_report(self) -> dict[str, Any]:
        first, _, _ = os.read(self._reports, 4096).partition(b"\n")
        report = json.loads(first or b"{}")
        if "trouble" in report:
            return self._result("infra_error", message=report["trouble"])
        if self._pid is None:
            return self._result("infra_error", message="the program's init ended before the program began")
        if self._failure is not None:
            return self._result("failed", **self._failure)
        if "exit" in report:
            return self._result(
                "failed",
                ending="exit",
                exit_code=report["exit"],
                message=f"exited with status {report['exit']} before the end of the tests",
            )
        number = report.get("signal", int(signal.SIGKILL))
        return self._result("failed", ending="signal", signal=number, message=f"killed by {_signal_name(number)}")

    def _after_sample(self) -> dict[str, Any] | None:
        self._next_sample = time.monotonic() + _SAMPLE_SECONDS
        used = sum(map(_private_memory, self._level.processes()))
        if used <= self._job.memory_bytes:
            return None
        message = f"used {used >> 20} MiB of memory in all its processes; {self._job.memory_bytes >> 20} are allowed"
        return self._result("failed", ending="memory", error_type="MemoryError", message=message)

    def _at_deadline(self) -> dict[str, Any]:
        if self._pid is None:
            return self._result("infra_error", message=f"the program did not begin within {_SETUP_SECONDS:g} s")
        if self._failure is not None:
            return self._result("failed", **self._failure)
        return self._result("timed_out", ending="deadline", message=f"still running after {self._job.timeout:g} s")

    def _result(self, status: str, **fields: Any) -> dict[str, Any]:
        stage = None if status == "passed" else self._stage
        return {"status": status, "stage": stage, "seconds": time.monotonic() - self._started, **fields}


def _be_init(level: Level, job: Job, verdict_fd: int, control: int) -> NoReturn:
    """Prepare the surroundings, fork the program, and wait: for the program's end, and for orphans."""
    try:
        _arrange_descriptors(job, verdict_fd, control)
        level.furnish()
        child = os.fork()
        if child == 0:
            _be_program(level, job)
        _report(_wait_for(child))
        while True:
            signal.pause()  # until the helper kills it, and with it all the rest
    except BaseException as error:
        _report({"trouble": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(1)


def _be_program(level: Level, job: Job) -> NoReturn:
    try:
        os.setsid()
        confinement.limit(job.memory_bytes, job.timeout, level.processes_allowed)
        level.drop_rights()
        linux.die_with_parent(signal.SIGKILL)  # where no namespace sees to that, should helper and init be killed
        confinement.forbid_system_calls()
    except BaseException as error:
        _report({"trouble": f"{type(error).__name__}: {error}"})
        os._exit(1)
    os.close(program.CONTROL_FD)
    program.main(job.mode, job.function, job.preamble)


def _arrange_descriptors(job: Job, verdict_fd: int, control: int) -> None:
    """Keep what the program needs, at numbers it knows, and close all else."""
    wanted = dict(zip((program.CANDIDATE_FD, program.TEXT_FD, program.OUTPUT_FD), job.files, strict=False))
    wanted[program.VERDICT_FD] = verdict_fd
    wanted[program.CONTROL_FD] = control
    wanted[2] = os.open(os.devnull, os.O_WRONLY)
    if job.mode == "script":
        wanted[0], wanted[1] = wanted.pop(program.TEXT_FD), wanted.pop(program.OUTPUT_FD)
    copies = {number: _copy_above(fd) for number, fd in wanted.items()}
    for number, fd in copies.items():
        os.dup2(fd, number, inheritable=number <= 2)
    for number in range(3, program.LAST_FD + 1):
        if number not in copies:
            _close_if_open(number)
    os.closerange(program.LAST_FD + 1, os.sysconf("SC_OPEN_MAX"))


def _copy_above(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64)


def _close_if_open(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass


def _wait_for(child: int) -> dict[str, Any]:
    """Reap orphans until the child ends; it stays a zombie, so that no other process can get its id."""
    while True:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        if ended is None or ended.si_pid == child:
            break
        os.waitpid(ended.si_pid, 0)
    assert ended is not None
    return {"exit" if ended.si_code == os.CLD_EXITED else "signal": ended.si_status}


def _private_memory(pid: int) -> int:
    """Count the bytes of memory of a process that no file backs; 0 if it has just ended."""
    try:
        with open(f"/proc/{pid}/status") as lines:
            fields = dict(line.split(":", 1) for line in lines)
    except OSError:
        return 0
    return sum(int(fields[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem") if name in fields)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _report(report: dict[str, Any]) -> None:
    os.write(program.CONTROL_FD, json.dumps(report).encode() + b"\n")


def _receive(verdicts: socket.socket) -> tuple[bytes, int]:
    """Receive a datagram and the id of the process that sent it, by the kernel's word."""
    datagram, notes, _, _ = verdicts.recvmsg(verdict.MAX_FRAME, socket.CMSG_SPACE(_CREDENTIALS.size))
    for _, kind, data in notes:
        if _PASSES_CREDENTIALS and kind == socket.SCM_CREDENTIALS:
            return datagram, _CREDENTIALS.unpack(data)[0]
    return datagram, 0
