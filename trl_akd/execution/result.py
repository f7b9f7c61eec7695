"""What came of running one program."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["ExecutionResult", "Isolation", "Status"]

Status = Literal["passed", "failed", "timed_out", "infra_error"]
Isolation = Literal["namespace", "bwrap", "process"]


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """Say what came of running one program against its tests, plainly enough to be written as JSON.

    Args:
        status (`str`):
            `passed`; `failed`, by the program's fault; `timed_out`, at the limit on time; or `infra_error`: the
            program was never judged, twice in a row, and must not be scored as wrong.
        error_type (`str`, *optional*):
            Class name of the exception that ended the program, as `IndentationError`, never a base of it. A wrong
            output of a script counts as the `AssertionError` of its test.
        message (`str`):
            The exception's text or what else is known, printable and bounded.
        error_bases (`tuple[str, ...]`):
            Names of the classes that the exception's class derives from, nearest first.
        stage (`str`, *optional*):
            Where it ended: `compile`, `load` (the candidate's top level) or `test`.
        origin (`str`, *optional*):
            Whose line raised the exception: the `candidate`'s or the `test`'s.
        line (`int`, *optional*):
            That line's number in its own text, from 1.
        raised (`bool`):
            Whether that line is a `raise` statement.
        missing (`str`, *optional*):
            The name, module, attribute or key that was not found.
        ending (`str`, *optional*):
            What ended a program that did not pass: an `exception` that nothing caught, `exit` before the end of the
            tests, a `signal`, the limit on time (`deadline`), or that on `memory`.
        signal (`int`, *optional*):
            Number of the signal.
        exit_code (`int`, *optional*):
            Exit status, where the program exited by itself.
        tests_passed (`int`), tests_total (`int`):
            Cases passed and run: a test program is one case, a script has one an input.
        seconds (`float`):
            Wall time of the program, without that of setting up its surroundings.
        isolation (`str`):
            The level that the program ran at.
        strict (`bool`):
            Whether the test ran apart from the candidate.
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
        """Tell whether every test passed."""
        return self.status == "passed"
