"""Run programs nobody trusts, several at a time, each in a sandbox of its own."""

import math
import os
import selectors
import threading
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from .isolation import start_first_worker, start_worker
from .test_cases import CaseRun, Tests, check_tests, judge
from .result import ExecutionResult, Isolation
from .worker import Case, HelperError, Worker

__all__ = ["CodeExecutor"]

_MIN_MEMORY_MB = 64
_ATTEMPTS = 2


@dataclass
class _Task:
    """A program under way: its judgement, and the case that a helper runs for it."""

    index: int
    judgement: CaseRun
    case: Case
    attempt: int = 1


class CodeExecutor:
    """Run programs nobody trusts, several at a time, each in a sandbox of its own.

    A light helper process per worker, started by exec and never a fork of the caller, forks one for each program. At
    level `namespace` (Linux; as root or as an ordinary user), whatever a program does:

    - the caller lives, and no process, file, folder or descriptor is left behind, not even if the caller is killed;
    - nothing outside the program's own /tmp changes, and that is empty at its start and gone at its end (64 MiB);
    - it sees the system's folders, Python and `packages`, read-only; no home, no other process, no network, and of the
      environment nothing of the caller's. As root, it runs as nobody; it has no capability and cannot get one;
    - memory and processor time, of all its processes together, the number of processes, open files and output are
      bounded, and the kernel ends it before its caller when the machine runs out of memory;
    - its verdict does not depend on what else the machine does: processor time decides;
    - it passes only if its process reached the end of the tests: exit codes, forked copies, and messages that are not
      the harness's own do not. Candidate and test are compiled apart, and what the candidate did to built-ins,
      `__builtins__`, standard streams, tracing and timers is undone before the test runs;
    - it sees itself as `python candidate.py` would: `sys.argv`, `__file__`, `sys.path[0]`, signals, file modes and
      limits are ordinary, whatever the caller's are, its file can be read and run again, and no path of the caller's
      shows;
    - what Python refuses to compile is a failed program like any other, compiled in its sandbox.

    Not covered:

    - bugs of the kernel, and side channels: timing, load of the processor and its caches;
    - a program written to cheat, unless `strict`. The test program shares the candidate's interpreter, and whatever
      the harness does there to report a pass, the candidate can do as well: read the nonce from its descriptor and
      send the message, or find test and verdict on the stack or in memory (which Python 3.13 makes easier). Nor are
      objects noticed whose `__eq__` lies, patched modules (as `math.isclose`), names of built-ins defined anew, and
      threads and callbacks that change built-ins while the test runs. With `strict`, the test runs in another process,
      and of the candidate it sees functions that take and return plain data, copies of plain constants, and no
      classes. Scripts and calls are always compared in the caller's process;
    - memory to the last byte. A control group (version 2 or 1) bounds it wherever this user may make one below its
      own: a program holds at most a quarter more than `memory_mb`, or 16 MiB where that is more. Elsewhere the helper
      watches and estimates, up to 300 times a second, and is late on a busy machine: programs of many processes have
      held 1.8 times a `memory_mb` of 128 there, and 2.9 times one of 64. There, a
      mapping that processes share has at most 8 MiB and counts as such, and a process has 128 open files instead
      of 256;
    - processor time of processes that no parent waits for, once they have ended; wall-clock time is bounded too;
    - standard error, which is thrown away;
    - level `bwrap` has the same promises by way of bubblewrap, save that programs of a worker share /tmp's quota, and
      that where root's Python lies out of nobody's reach they keep the right to read what is in their sandbox;
    - level `process` keeps deadlines, limits and verdicts, and kills descendants by hunting for them, which a chain of
      forks in ever new sessions can outrun. If helper and caller are killed together, processes that left the
      program's session go on. The 64 MiB and 4096 files that are allowed are checked several times a second; files
      that were removed and are still open do not count. Sockets but those of the Unix kind are refused (x86-64 and
      Arm). Files are out of reach only as far as Landlock (Linux 5.13) and the user's rights go: without it, a program
      may read and write what this user may, or as root what nobody may (and the level is refused where root's Python
      lies out of nobody's reach). Signals to the user's other processes are kept inside from Linux 6.12 on. /dev/shm
      is shared; files there stay, and without a control group they do not count as memory. macOS has this level only,
      untested;
    - other machines than x86-64 and Arm have no filter of system calls.

    Args:
        workers (`int`, *optional*): programs at a time, at most and by default the cores that this process may use.
        timeout (`float`, *optional*, defaults to `3.0`): seconds of processor time for a program, all its processes
            together, or for each input of a script. A program also ends after four times as many seconds in which none
            of its processes could run, as they slept or waited, and at the latest after forty times as many.
        memory_mb (`int`, *optional*, defaults to `512`): MiB of memory for all processes of a program together, and of
            address space for each.
        isolation (`str`, *optional*, defaults to `"auto"`): `"namespace"`, `"bwrap"`, `"process"`, or the stronger one
            of the first two that works here; `"process"` is never chosen, only asked for.
        strict (`bool`, *optional*, defaults to `False`): whether test programs run apart from the candidate.
        packages (`Sequence[str]`, *optional*): importable packages, as `numpy`, that programs may use beside the
            standard library. They are loaded once a worker, and make starting each program slower.
        allow_code_execution (`bool`, *optional*): consent to running programs; else the environment variable
            `HF_ALLOW_CODE_EVAL` must be 1, as for `evaluate`'s code_eval.

    Raises:
        PermissionError: If nobody consented.
        IsolationError: If the level cannot be had here; the message says why.
        ImportError: If one of `packages` cannot be imported.
        ValueError, TypeError: If an argument is none of its kind.

    Example:
        ```python
        >>> from trl_akd.execution import CodeExecutor
        >>> program = "def double(x):\\n    return x + x"
        >>> with CodeExecutor(allow_code_execution=True) as executor:  # doctest: +SKIP
        ...     good, bad = executor.run([(program, "assert double(2) == 4"), (program, "assert double(2) == 5")])
        >>> good.status, bad.status, bad.error_type  # doctest: +SKIP
        ('passed', 'failed', 'AssertionError')

        ```
    """

    isolation: Isolation

    def __init__(
        self,
        workers: int | None = None,
        timeout: float = 3.0,
        memory_mb: int = 512,
        isolation: str = "auto",
        *,
        strict: bool = False,
        packages: Sequence[str] = (),
        allow_code_execution: bool | None = None,
    ) -> None:
        _check_consent(allow_code_execution)
        self._workers = _check_workers(workers)
        self._timeout = _check_timeout(timeout)
        self._memory_mb = _check_memory(memory_mb)
        self._strict = strict
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._user: int | None = None
        self.isolation, self._settings, worker = start_first_worker(isolation, packages)
        self._helpers: list[Worker] = [worker]
        self._finalizer = weakref.finalize(self, _stop, self._helpers, self._owner)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all helpers and wait until they are gone; a second call does nothing."""
        self._finalizer()

    def run(
        self,
        programs: Sequence[tuple[str, Tests]],
        timeout: float | None = None,
        memory_mb: int | None = None,
        *,
        fail_fast: bool = False,
    ) -> list[ExecutionResult]:
        """Run programs and return their results, in order.

        Args:
            programs (`Sequence[tuple[str, Tests]]`): candidate and tests of each: a test program, which runs in the
                candidate's namespace as `__main__`, followed by the test functions and TestCases that it defines and
                does not run; or `{"inputs": [...], "outputs": [...]}` as in APPS, texts (or lists of lines)
                for standard input and output; or the same with `"fn_name"`, lists of arguments and returned values.
                Inputs and outputs may come with a `"harness"`, whose imports run before each program and by whose
                rules answers are compared: `"apps"` (the default), `"livecodebench"`, or `"none"`, for no imports.
            timeout (`float`, *optional*): in place of the executor's.
            memory_mb (`int`, *optional*): in place of the executor's.
            fail_fast (`bool`, *optional*, defaults to `False`): whether to leave out a script's inputs after the first
                that fails.

        Raises:
            TypeError, ValueError: If a program is no such pair; nothing has run then.
        """
        for index, pair in enumerate(programs):
            _check_program(index, pair)
        results: list[ExecutionResult | None] = [None] * len(programs)
        for index, result in self.stream(programs, timeout, memory_mb, fail_fast=fail_fast):
            results[index] = result
        return [result for result in results if result is not None]

    def stream(
        self,
        programs: Iterable[tuple[str, Tests]],
        timeout: float | None = None,
        memory_mb: int | None = None,
        *,
        fail_fast: bool = False,
    ) -> Iterator[tuple[int, ExecutionResult]]:
        """Run programs as they are drawn from an iterable, and yield index and result of each as it ends.

        Memory does not grow with their number. The executor is taken until the iterator ends or is closed, which ends
        the programs under way.

        Args: as those of `run`.
        """
        timeout = self._timeout if timeout is None else _check_timeout(timeout)
        memory_mb = self._memory_mb if memory_mb is None else _check_memory(memory_mb)
        return self._stream(enumerate(programs), timeout, memory_mb, fail_fast)

    def _stream(
        self, programs: Iterator[tuple[int, tuple[str, Tests]]], timeout: float, memory_mb: int, fail_fast: bool
    ) -> Iterator[tuple[int, ExecutionResult]]:
        self._acquire()
        busy: dict[Worker, _Task] = {}
        try:
            with selectors.DefaultSelector() as selector:
                while True:
                    while len(busy) < self._workers and (started := self._start_next(programs, fail_fast)):
                        if isinstance(started, _Task):
                            self._assign(started, busy, selector, timeout, memory_mb)
                        else:
                            yield started
                    if not busy:
                        return
                    for worker in _wait(selector, busy):
                        task = busy.pop(worker)
                        selector.unregister(worker)
                        outcome = self._collect(worker)
                        if outcome is None:
                            busy[worker] = task
                            selector.register(worker, selectors.EVENT_READ)
                            continue
                        if outcome["status"] == "infra_error" and task.attempt < _ATTEMPTS:
                            task.attempt += 1
                            self._discard(worker)
                        else:
                            try:
                                task.case = task.judgement.send(outcome)
                                task.attempt = 1
                            except StopIteration as end:
                                yield task.index, self._result(end.value)
                                continue
                        self._assign(task, busy, selector, timeout, memory_mb)
        except BaseException:
            _stop(self._helpers, self._owner)  # abandoned or interrupted: nothing may go on running
            raise
        finally:
            self._release()

    def _start_next(
        self, programs: Iterator[tuple[int, tuple[str, Tests]]], fail_fast: bool
    ) -> _Task | tuple[int, ExecutionResult] | None:
        """Start to judge the next program; return its task, or its result where nothing has to run for that."""
        for index, pair in programs:
            _check_program(index, pair)
            judgement = judge(*pair, strict=self._strict, fail_fast=fail_fast)
            try:
                return _Task(index, judgement, next(judgement))
            except StopIteration as end:
                return index, self._result(end.value)
        return None

    def _assign(
        self,
        task: _Task,
        busy: dict[Worker, _Task],
        selector: selectors.BaseSelector,
        timeout: float,
        memory_mb: int,
    ) -> None:
        idle = next((worker for worker in self._helpers if worker not in busy), None)
        if idle is None:
            idle = start_worker(self._settings)
            self._helpers.append(idle)
        idle.submit(task.case, timeout, memory_mb)
        busy[idle] = task
        selector.register(idle, selectors.EVENT_READ)

    def _collect(self, worker: Worker) -> dict[str, Any] | None:
        try:
            if time.monotonic() >= worker.deadline:
                raise HelperError("its helper did not answer in time")
            return worker.collect()
        except HelperError as error:
            self._discard(worker)
            return {"status": "infra_error", "message": str(error)}

    def _discard(self, worker: Worker) -> None:
        if worker in self._helpers:
            self._helpers.remove(worker)
            worker.stop()

    def _result(self, fields: dict[str, Any]) -> ExecutionResult:
        fields["error_bases"] = tuple(fields.get("error_bases", ()))
        return ExecutionResult(**fields, isolation=self.isolation, strict=self._strict)

    def _acquire(self) -> None:
        if os.getpid() != self._owner:
            raise RuntimeError("This CodeExecutor was made in another process; make one in this process.")
        if self._user == threading.get_ident():
            raise RuntimeError("This CodeExecutor is running a stream; finish or close that one first.")
        self._lock.acquire()
        self._user = threading.get_ident()
        if not self._finalizer.alive:
            self._release()
            raise RuntimeError("This CodeExecutor is closed; make another one.")

    def _release(self) -> None:
        self._user = None
        self._lock.release()


def _wait(selector: selectors.BaseSelector, busy: dict[Worker, _Task]) -> list[Worker]:
    """Wait for the first helpers to answer, or for the first to be overdue."""
    first = min(busy, key=lambda worker: worker.deadline)
    ready = selector.select(max(0.0, first.deadline - time.monotonic()))
    return [key.fileobj for key, _ in ready if isinstance(key.fileobj, Worker)] or [first]


def _stop(helpers: list[Worker], owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked copy of the caller: the helpers are not its own
    for worker in helpers:
        worker.request_stop()
    while helpers:
        helpers.pop().stop()


def _check_consent(allowed: bool | None) -> None:
    if allowed is None:
        allowed = os.environ.get("HF_ALLOW_CODE_EVAL") == "1"
    if allowed is not True:
        raise PermissionError(
            "Running programs that a model wrote must be allowed: pass allow_code_execution=True or set the "
            "environment variable HF_ALLOW_CODE_EVAL=1."
        )


def _check_program(index: int, pair: object) -> None:
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
        raise TypeError(f"programs[{index}] is no pair of a program's text and its tests; give (text, tests).")
    check_tests(pair[1], f"programs[{index}]")


def _check_workers(workers: int | None) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers is None:
        return cores
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers is {workers!r}; give a number of processes from 1 to {cores}, or None for {cores}.")
    if workers > cores:
        warnings.warn(
            f"workers={workers} is more than the {cores} cores this process may use; it goes on with {cores}, as more "
            "would make programs wait and time out.",
            stacklevel=3,
        )
    return min(workers, cores)


def _check_timeout(timeout: float) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise ValueError(f"timeout is {timeout!r}; give a positive number of seconds.")
    return float(timeout)


def _check_memory(memory_mb: int) -> int:
    if isinstance(memory_mb, bool) or not isinstance(memory_mb, int) or memory_mb < _MIN_MEMORY_MB:
        raise ValueError(f"memory_mb is {memory_mb!r}; give a whole number of MiB, at least {_MIN_MEMORY_MB}.")
    return memory_mb
