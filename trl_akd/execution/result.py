"""Result of running one program."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["HARNESS_VERSION", "ExecutionResult", "Isolation", "Status"]

HARNESS_VERSION = 3
"""Version of the execution of tests, on which recorded results depend; increased when results may change."""

Status = Literal["passed", "failed", "timed_out", "infra_error"]
Isolation = Literal["namespace", "bwrap", "process"]


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """Result of running one program against its tests; all fields can be written as JSON.

    Args:
        status (`str`):
            `passed`; `failed`; `timed_out`; or `infra_error`: the program could not be tested, and must not be scored
            as wrong.
        error_type (`str`, *optional*):
            Name of the class of the exception that ended the program, such as `IndentationError`. A wrong output of
            a script counts as an `AssertionError` of its test.
        message (`str`):
            Text of the exception or another description of the failure, printable and of limited length.
        error_bases (`tuple[str, ...]`):
            Names of the base classes of the exception's class, in method resolution order.
        stage (`str`, *optional*):
            Stage at which it ended: `compile`, `load` (the candidate's top level) or `test`.
        origin (`str`, *optional*):
            Source of the line that raised the exception: `candidate` or `test`.
        line (`int`, *optional*):
            Number of that line in its source, from 1.
        raised (`bool`):
            Whether that line is a `raise` statement.
        missing (`str`, *optional*):
            Name, module, attribute or key that was not found.
        ending (`str`, *optional*):
            Cause of the end of a program that did not pass: an uncaught `exception`, an `exit` before the end of the
            tests, a `signal`, the time limit (`deadline`) or the `memory` limit.
        signal (`int`, *optional*):
            Number of the signal.
        exit_code (`int`, *optional*):
            Exit status, if the program exited by itself.
        tests_passed (`int`), tests_total (`int`):
            Number of cases passed and run: a test program is one case, a script has one case per input.
        seconds (`float`):
            Wall-clock time of the program, without the set-up of its sandbox.
        isolation (`str`):
            Isolation level at which the program ran.
        strict (`bool`):
            Whether the test ran in another process than the candidate.
    """

    status: Status
    error_type: str | None = None
    message: str = ""
    error_bases: tuple[str, ...] = ()
    stage: Literal["compile", "load", "test"] | None = None
    origin: Literal["candidate", "test"] | None = None
    line: int | None = None
    raised: bool = False
    missing: str | None = None
    ending: Literal["exception", "exit", "signal", "deadline", "memory"] | None = None
    signal: int | None = None
    exit_code: int | None = None
    tests_passed: int = 0
    tests_total: int = 1
    seconds: float = 0.0
    isolation: Isolation = "namespace"
    strict: bool = False

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return self.status == "passed"
