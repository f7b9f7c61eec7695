"""Execution of untrusted programs by a pool of sandboxed workers."""

import math
import os
import selectors
import threading
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from .isolation import start_first_worker, start_worker
from .launching import Launcher
from .result import ExecutionResult, Isolation
from .test_cases import CaseRun, Tests, check_tests, decode_tests, run_cases
from .worker import Case, HelperError, Worker

__all__ = ["CodeExecutor"]

_MIN_MEMORY_MB = 64
_ATTEMPTS = 2
_CLOSED = "This CodeExecutor is closed; create a new one."


@dataclass
class _Task:
    """A program under test, and its case that a helper runs."""

    index: int
    case_run: CaseRun
    case: Case
    attempt: int = 1


class CodeExecutor:
    """Run untrusted programs in parallel, each in its own sandbox.

    Each worker has a small helper process, which is no fork of the caller and forks one process per program. At level
    `namespace` (Linux; as root or as an ordinary user), the following holds for any program:

    - It cannot end the caller, and leaves no process, file, folder or descriptor behind, even if the caller is killed.
    - It can write only to its own /tmp (64 MiB), which is empty at its start and removed at its end.
    - It sees the system's folders, Python and `packages`, all read-only; no home folder, no other process, no network,
      and no environment variable of the caller. If the caller is root, the program runs as user `nobody`. It has no
      capability and cannot gain one.
    - The memory and processor time of all its processes together are limited, as are the number of processes, open
      files and output. When the machine runs out of memory, the kernel ends the program before its caller.
    - Its verdict does not depend on the load of the machine, as the time limit is on processor time.
    - It passes only if its process reached the end of the tests; exit codes, forked copies and forged messages do not
      count. Candidate and test are compiled separately, and changes by the candidate to built-ins, `__builtins__`,
      standard streams, tracing and timers are undone before the test runs.
    - It runs as if started by `python candidate.py`: `sys.argv`, `__file__`, `sys.path[0]`, signals, file modes and
      limits have their usual values, its file can be read and run again, and no path of the caller is visible.
    - A program that Python cannot compile is a failed program; it is compiled inside its sandbox.

    Not covered:

    - Kernel bugs, and side channels such as timing, processor load and caches.
    - Programs written to cheat, unless `strict`. The test program shares the candidate's interpreter, so the candidate
      can imitate whatever the harness does to report a pass: read the nonce from its descriptor and send the message,
      or find test and verdict on the stack or in memory (which Python 3.13 makes easier). Objects with a false
      `__eq__`, patched modules (such as `math.isclose`), redefined names of built-ins, and threads or callbacks that
      change built-ins during the test are not detected either. With `strict`, the test runs in another process and
      sees only functions of the candidate that take and return plain data, and copies of plain constants, but no
      classes. The outputs of scripts and calls are always compared in the caller's process.
    - Exact memory limits without a control group. With one (version 2 or 1, wherever this user may make one below its
      own), a program has at most `memory_mb` and a quarter more, or 16 MiB more if that is larger. Otherwise the
      helper estimates the memory up to 300 times per second, and less often on a busy machine: programs of many
      processes have reached 1.8 times a `memory_mb` of 128, and 2.9 times one of 64. Without a control group, a
      mapping that processes share is limited to 8 MiB and counted as such, and a process has 128 open files instead
      of 256.
    - The processor time of processes that no parent waits for, after their end; wall-clock time is limited too.
    - Standard error, which is discarded.
    - Level `bwrap` gives the same guarantees with bubblewrap, except that the programs of a worker share the quota of
      /tmp, and that if root's Python is in a folder that user `nobody` cannot enter, they may read everything in
      their sandbox.
    - Level `process` enforces deadlines, limits and verdicts. Descendants are found and killed one by one, which
      a chain of forks in new sessions can outrun; if helper and caller are killed together, processes that left the
      program's session continue. The limits of 64 MiB and 4096 files are checked several times per second, and removed
      files that are still open do not count. Only Unix sockets are allowed (x86-64 and Arm). Access to files is
      restricted by Landlock (Linux 5.13) and this user's permissions: without Landlock, a program may read and write
      what this user may, or what user `nobody` may if the caller is root (the level is refused if root's Python is in
      a folder that user `nobody` cannot enter). Signals to other processes of the user are blocked from Linux 6.12 on.
      /dev/shm is shared: files there remain, and do not count as memory without a control group. macOS has this level
      only, untested.
    - Other architectures than x86-64 and Arm have no system-call filter.

    Args:
        workers (`int`, *optional*):
            Maximum number of programs that run at the same time. Defaults to one more than the number of cores that
            this process may use, which is also the maximum: programs wait for the kernel at their start and end, and
            another one can use that time.
        timeout (`float`, *optional*, defaults to `3.0`):
            Limit in seconds on the processor time of all processes of a program together, per input for scripts. A
            program also ends after four times as many seconds in which none of its processes could run (because they
            slept or waited), and at the latest after forty times as many seconds of wall-clock time.
        memory_mb (`int`, *optional*, defaults to `512`):
            Limit in MiB on the memory of all processes of a program together, and on the address space of each.
        isolation (`str`, *optional*, defaults to `"auto"`):
            Isolation level: `"namespace"`, `"bwrap"`, `"process"`, or `"auto"` for the first of `"namespace"` and
            `"bwrap"` that works on this machine.
        strict (`bool`, *optional*, defaults to `False`):
            Whether to run test programs in another process than the candidate.
        packages (`Sequence[str]`, *optional*):
            Importable packages, such as `numpy`, that programs may use in addition to the standard library. Each
            worker loads them once, and they make the start of each program slower.
        allow_code_execution (`bool`, *optional*):
            Consent to run programs. If not given, the environment variable `HF_ALLOW_CODE_EVAL` must be 1, as for
            `evaluate`'s code_eval.

    Raises:
        PermissionError: If there is no consent.
        IsolationError: If the level is not available on this machine; the message names the cause.
        ImportError: If one of `packages` cannot be imported.
        ValueError, TypeError: If an argument is invalid.

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
        self._running_thread: int | None = None
        self.isolation, self._launcher, worker = start_first_worker(isolation, packages)
        self._helpers: list[Worker] = [worker]
        self._finalizer = weakref.finalize(self, _close, self._helpers, self._launcher, self._owner)

    @property
    def limits(self) -> dict[str, Any]:
        """Settings that verdicts depend on: `isolation`, `strict`, `timeout` in seconds and `memory_mb`."""
        return {
            "isolation": self.isolation,
            "strict": self._strict,
            "timeout": self._timeout,
            "memory_mb": self._memory_mb,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all helpers and wait until they are gone; further calls do nothing."""
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
            programs (`Sequence[tuple[str, Tests]]`):
                Pairs of a candidate and its tests. Tests are one of: a test program, which runs in the candidate's
                namespace as `__main__`, followed by the test functions and TestCases that it defines and does not run;
                `{"inputs": [...], "outputs": [...]}` as in APPS, with standard input and output as strings or lists of
                lines; the same with `"fn_name"`, lists of arguments and returned values; or the JSON of either. With
                inputs and outputs, `"harness"` selects the imports that run before each program and the comparison of
                outputs: `"apps"` (the default), `"livecodebench"`, or `"none"` for no imports.
            timeout (`float`, *optional*):
                Replaces the executor's `timeout`.
            memory_mb (`int`, *optional*):
                Replaces the executor's `memory_mb`.
            fail_fast (`bool`, *optional*, defaults to `False`):
                Whether to skip the inputs of a script after the first that fails.

        Raises:
            TypeError, ValueError: If a pair is invalid; no program has run then.
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
        """Run programs from an iterable, and yield the index and result of each as it ends.

        The iterable is consumed as workers become free, so memory does not grow with its length. The executor is in
        use until the iterator ends or is closed, which ends the running programs. For the arguments, see `run`.
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
                                task.case = task.case_run.send(outcome)
                                task.attempt = 1
                            except StopIteration as end:
                                yield task.index, self._result(end.value)
                                continue
                        self._assign(task, busy, selector, timeout, memory_mb)
        except BaseException as error:
            _stop(self._helpers, self._owner)  # the stream was closed or interrupted
            if not self._finalizer.alive:  # the executor was closed by another thread
                self._launcher.stop()
                if isinstance(error, Exception):
                    raise RuntimeError(_CLOSED) from error
            raise
        finally:
            self._release()

    def _start_next(
        self, programs: Iterator[tuple[int, tuple[str, Tests]]], fail_fast: bool
    ) -> _Task | tuple[int, ExecutionResult] | None:
        """Return the task of the next program, or its result if none of its cases has to run."""
        packages = self._launcher.settings["packages"]
        for index, pair in programs:
            _check_program(index, pair)
            case_run = run_cases(
                pair[0], decode_tests(pair[1]), packages=packages, strict=self._strict, fail_fast=fail_fast
            )
            try:
                return _Task(index, case_run, next(case_run))
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
        if not self._finalizer.alive:
            raise RuntimeError(_CLOSED)
        idle = next((worker for worker in self._helpers if worker not in busy), None)
        if idle is None:
            idle = start_worker(self._launcher)
            self._helpers.append(idle)
        idle.submit(task.case, timeout, memory_mb)
        busy[idle] = task
        selector.register(idle, selectors.EVENT_READ)

    def _collect(self, worker: Worker) -> dict[str, Any] | None:
        try:
            if time.monotonic() >= worker.deadline:
                raise HelperError("the helper did not answer in time")
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
            raise RuntimeError("This CodeExecutor was created in another process; create one in this process.")
        if self._running_thread == threading.get_ident():
            raise RuntimeError("This CodeExecutor is running a stream; finish or close that stream first.")
        self._lock.acquire()
        self._running_thread = threading.get_ident()
        if not self._finalizer.alive:
            self._release()
            raise RuntimeError(_CLOSED)

    def _release(self) -> None:
        self._running_thread = None
        self._lock.release()


def _wait(selector: selectors.BaseSelector, busy: dict[Worker, _Task]) -> list[Worker]:
    """Wait for helpers that have answered, or for the first one whose deadline passes."""
    first = min(busy, key=lambda worker: worker.deadline)
    ready = selector.select(max(0.0, first.deadline - time.monotonic()))
    return [key.fileobj for key, _ in ready if isinstance(key.fileobj, Worker)] or [first]


def _close(helpers: list[Worker], launcher: Launcher, owner: int) -> None:
    if os.getpid() == owner:
        launcher.request_stop()
        _stop(helpers, owner)
        launcher.stop()


def _stop(helpers: list[Worker], owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked copy of the caller, which does not own the helpers
    for worker in helpers:
        worker.request_stop()
    while helpers:
        helpers.pop().stop()


def _check_consent(allowed: bool | None) -> None:
    if allowed is None:
        allowed = os.environ.get("HF_ALLOW_CODE_EVAL") == "1"
    if allowed is not True:
        raise PermissionError(
            "Running model-written programs needs consent: pass allow_code_execution=True (--allow_code_execution on "
            "the command line), or set the environment variable HF_ALLOW_CODE_EVAL=1."
        )


def _check_program(index: int, pair: object) -> None:
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
        raise TypeError(f"programs[{index}] is not a pair of a program (str) and its tests; give (program, tests).")
    check_tests(decode_tests(pair[1]), f"programs[{index}]")


def _check_workers(workers: int | None) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cores + 1
    if workers is None:
        return limit
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers is {workers!r}; give a number of processes from 1 to {limit}, or None for {limit}.")
    if workers > limit:
        warnings.warn(
            f"workers={workers} is more than {limit}, one more than the {cores} cores that this process may use; "
            f"{limit} are used, as further programs would only wait for a core.",
            stacklevel=3,
        )
    return min(workers, limit)


def _check_timeout(timeout: float) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise ValueError(f"timeout is {timeout!r}; give a positive number of seconds.")
    return float(timeout)


def _check_memory(memory_mb: int) -> int:
    if isinstance(memory_mb, bool) or not isinstance(memory_mb, int) or memory_mb < _MIN_MEMORY_MB:
        raise ValueError(f"memory_mb is {memory_mb!r}; give a whole number of MiB, at least {_MIN_MEMORY_MB}.")
    return memory_mb
