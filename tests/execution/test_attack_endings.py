"""Endings of programs and their reports: exceptions, exits, signals, and origins of errors."""

import os

import pytest

from tests.execution.conftest import GUARD, HONEST, RunOne
from tests.execution.machine_state import CONTAINED, linux_only

pytestmark = linux_only

WRONG = "def solve(x):\n    return None\n"


@pytest.mark.parametrize("error", ["BaseException", "KeyboardInterrupt", "GeneratorExit", "StopIteration", "EOFError"])
@pytest.mark.parametrize("stage", ["load", "test"])
def test_any_exception_is_a_failure(run_one: RunOne, error: str, stage: str) -> None:
    body = f"raise {error}('why')\n"
    result = run_one(body if stage == "load" else f"def solve(x):\n    {body}")
    assert (result.status, result.error_type, result.stage) == ("failed", error, stage)
    assert (result.ending, result.origin, result.message) == ("exception", "candidate", "why")
    assert result.raised


@pytest.mark.parametrize(
    ("candidate", "ending", "number"),
    [
        ("import os\nos._exit(0)\n", "exit", 0),
        ("import os\nos._exit(7)\n", "exit", 7),
        ("import os\nos.kill(os.getpid(), 9)\n", "signal", 9),
        ("import os\nos.abort()\n", "signal", 6),
        ("import ctypes\nctypes.string_at(0)\n", "signal", 11),
    ],
)
def test_ending_is_reported(run_one: RunOne, candidate: str, ending: str, number: int) -> None:
    result = run_one(candidate, timeout=30)
    assert (result.status, result.ending, result.error_type) == ("failed", ending, None)
    assert number == (result.exit_code if ending == "exit" else result.signal)
    assert result.seconds < 20


@pytest.mark.parametrize("call", ["sys.exit()", "sys.exit(0)", "sys.exit('text')", "raise SystemExit(3)"])
def test_sys_exit_is_an_early_exit(run_one: RunOne, call: str) -> None:
    result = run_one(f"import sys\n{call}\n")
    assert (result.status, result.ending, result.error_type) == ("failed", "exit", "SystemExit")


@pytest.mark.parametrize("target", ["os.getppid()", "1", "-1"])
@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP", "SIGTERM", "SIGCHLD", "SIGUSR1"])
@pytest.mark.parametrize("level", CONTAINED, indirect=True)
def test_signals_to_the_helper(run_one: RunOne, target: str, number: str) -> None:
    attack = f"import signal\ntry:\n    os.kill({target}, signal.{number})\nexcept OSError:\n    pass\n"
    result = run_one(GUARD + attack + WRONG, timeout=1.0)
    assert result.status in ("failed", "timed_out")
    assert "escaped" not in result.message


@pytest.mark.parametrize("level", ["process"], indirect=True)
def test_killing_the_parent_is_not_a_pass(run_one: RunOne) -> None:
    result = run_one(f"import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n{WRONG}", timeout=1.0)
    assert result.status != "passed"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the call's number is that of x86-64")
@pytest.mark.parametrize("end", ["os._exit(0)", "time.sleep(1000)", "break"])
def test_children_of_the_helper_do_not_block_it(run_one: RunOne, end: str) -> None:
    """Children of the helper, as made by CLONE_PARENT, neither stay as zombies nor count as the program."""
    attack = (
        "import ctypes, os, time\nlibc = ctypes.CDLL(None)\nfor _ in range(20):\n"
        f"    pid = libc.syscall(56, 0x8011, 0, 0, 0, 0)\n    if pid == 0:\n        {end}\n"
        "solve = lambda x: 4 if pid == 0 else None\n"
    )
    result = run_one(attack, timeout=1.0)
    assert (result.status, result.error_type) == ("failed", "AssertionError"), result


def test_unterminated_candidate_does_not_absorb_the_test(run_one: RunOne) -> None:
    for end in ('"""', "'''", "(", "[", "{", "\\", "if True:", "@", "lambda:", "async", "def"):
        result = run_one(HONEST[0] + end)
        assert (result.status, result.stage, result.origin) == ("failed", "compile", "candidate"), end
        assert result.error_type in ("SyntaxError", "IndentationError"), end


def test_future_imports_do_not_affect_the_test(run_one: RunOne) -> None:
    candidate = "from __future__ import annotations\n" + HONEST[0]
    assert run_one(candidate, "def f(x: int): pass\nassert f.__annotations__ == {'x': int}\n").status == "passed"


def test_errors_of_the_test_have_origin_test(run_one: RunOne) -> None:
    result = run_one(HONEST[0], "assert solve(2 == 4\n")
    assert (result.status, result.stage, result.origin) == ("failed", "compile", "test")
    result = run_one(HONEST[0], "assert solve(2) == 4\nassert unknown\n")
    assert (result.error_type, result.stage, result.origin, result.line) == ("NameError", "test", "test", 2)
    assert result.missing == "unknown"
