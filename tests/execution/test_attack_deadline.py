"""Attacks on the deadline: programs and all their processes end at the time limit."""

import os
import signal
import time

import pytest

from tests.execution.conftest import HONEST, RunOne
from tests.execution.machine_state import commands, eventually, linux_only
from trl_akd.execution import CodeExecutor

pytestmark = [linux_only, pytest.mark.lengthy]

DEADLINE = 0.2
GRACE = 5.0  # Generous, as other programs may share the cores.
IGNORE = """
import signal
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
"""
LASTS = ["sleep", f"4242.{os.getpid()}"]  # A unique command line.

HANGS = {
    "loop": "while True: pass\n",
    "loop in the test": "def solve(x):\n    while True: pass\n",
    "sleep": "import time\ntime.sleep(1000)\n",
    "signals ignored": IGNORE + "while True: pass\n",
    "signals ignored, asleep": IGNORE + "import time\nwhile True: time.sleep(1)\n",
    "everything caught": "while True:\n    try:\n        while True: pass\n    except BaseException: pass\n",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n",
    "stopped, in a group of its own": "import os, signal\nos.setpgid(0, 0) if os.getpgrp() != os.getpid() else 0\n"
    "os.kill(os.getpid(), signal.SIGSTOP)\n",
    "power": "10 ** 10 ** 8\n",
    "power in the test": "def solve(x):\n    return 7 ** (x * 10 ** 8)\n",
    "regular expression": "import re\nre.match(r'(a+)+$', 'a' * 80 + 'b')\n",
    "sum": "sum(range(10 ** 15))\n",
    "search": "'b' in iter(int, 1)\n",
    "sort": "class X:\n    def __lt__(self, other):\n        while True: pass\nsorted([X(), X()])\n",
    "import lock": "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()\n",
    "pipe": "import os\nr, w = os.pipe()\nos.read(r, 1)\n",
    "socket": "import socket\na, b = socket.socketpair()\na.recv(1)\n",
    "pause": "import signal\nsignal.pause()\n",
    "thread": "import threading\nthreading.Thread(target=threading.Event().wait).start()\nthreading.Event().wait()\n",
    "child": "import os, time\nif os.fork() == 0:\n    time.sleep(1000)\nos.wait()\n",
    "command": f"import subprocess\nsubprocess.run({LASTS})\n",
    "exec": f"import os\nos.execvp('sleep', {LASTS})\n",
    "clock turned": "import time\ntime.monotonic = time.time = time.perf_counter = lambda: 0.0\nwhile True: pass\n",
    "while exiting": "import sys\ntry:\n    sys.exit(0)\nfinally:\n    while True: pass\n",
    "in a class body": "class X:\n    while True: pass\n",
    "collector": "import gc\ngc.callbacks.append(lambda *a: 'b' in iter(int, 1))\ngc.collect()\n",
}


def test_hang(executor: CodeExecutor, check_cleanup: None) -> None:
    results = executor.run([(text, HONEST[1]) for text in HANGS.values()], timeout=DEADLINE)
    for attack, result in zip(HANGS, results, strict=True):
        assert (result.status, result.ending, result.error_type) == ("timed_out", "deadline", None), (attack, result)
        assert 0.9 * DEADLINE <= result.seconds < DEADLINE + GRACE, attack
        assert (result.tests_passed, result.tests_total, result.exit_code) == (0, 1, None), attack
    assert eventually(lambda: not commands(LASTS[1]))


def test_hang_does_not_delay_the_result(run_one: RunOne) -> None:
    start = time.monotonic()
    assert run_one(HANGS["signals ignored"], timeout=DEADLINE).status == "timed_out"
    assert time.monotonic() - start < DEADLINE + GRACE


STUCK_TEXT = {
    "looping text": "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E\n",
    "sleeping text": "import time\nclass E(Exception):\n    def __str__(self): time.sleep(1000)\nraise E\n",
    "looping name": "class M(type):\n    @property\n    def __name__(cls):\n        while True: pass\n"
    "    __qualname__ = __module__ = __mro__ = __bases__ = __name__\n"
    "class E(Exception, metaclass=M): pass\nraise E\n",
    "looping class": "class E(Exception):\n  @property\n  def __class__(self):\n    while True: pass\nraise E\n",
    "looping key": "class K:\n    def __repr__(self):\n        while True: pass\nraise KeyError(K())\n",
    "looping attribute": "class E(NameError):\n  @property\n  def name(self):\n    while True: pass\nraise E\n",
    "looping line": "class E(SyntaxError):\n    @property\n    def lineno(self):\n        while True: pass\n"
    "    msg = text = filename = lineno\nraise E\n",
    "looping collection": "class E(Exception):\n    def __del__(self):\n        while True: pass\nraise E\n",
    "looping cause": "a, b = ValueError(1), ValueError(2)\na.__cause__, b.__cause__ = b, a\nraise a\n",
    "slow to compile": "".join("    " * depth + "try: pass\n" + "    " * depth + "finally:\n" for depth in range(19))
    + "    " * 19
    + "pass\n",
    "exiting text": "import os\nclass E(Exception):\n    def __str__(self): os._exit(0)\nraise E\n",
    "exiting attribute": "import os\nclass E(NameError):\n  def __getattribute__(self, name): os._exit(0)\nraise E\n",
    "killing text": "import os\nclass E(Exception):\n    def __str__(self): os.kill(os.getpid(), 9)\nraise E\n",
}


def test_exception_whose_message_never_ends(executor: CodeExecutor, check_cleanup: None) -> None:
    start = time.monotonic()
    results = executor.run([(text, HONEST[1]) for text in STUCK_TEXT.values()], timeout=DEADLINE)
    assert time.monotonic() - start < len(STUCK_TEXT) * DEADLINE + GRACE
    for attack, result in zip(STUCK_TEXT, results, strict=True):
        assert result.status in ("timed_out", "failed"), (attack, result)


HOLDS_PIPES = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        time.sleep(1000)
"""
DAEMON = f"""
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 256)
        os.execvp("sleep", {LASTS})
    os._exit(0)
os.wait()
"""
DAEMON_IGNORING = f"""
import os, signal, time
if os.fork() == 0:
    os.setsid()
    for number in set(signal.Signals) - {{signal.SIGKILL, signal.SIGSTOP}}:
        signal.signal(number, signal.SIG_IGN)
    while os.fork() == 0:
        if os.getpid() % 7 == 0:
            os.execvp("sleep", {LASTS})
    time.sleep(0.01)
    os.execvp("sleep", {LASTS})
"""


@pytest.mark.parametrize("leftover", [HOLDS_PIPES, DAEMON, DAEMON_IGNORING])
@pytest.mark.parametrize("honest", [True, False])
def test_processes_of_a_program_end_with_it(run_one: RunOne, leftover: str, honest: bool) -> None:
    candidate = leftover + (HONEST[0] if honest else "1 / 0\n")
    result = run_one(candidate, timeout=30.0)
    assert (result.status, result.error_type) == (("passed", None) if honest else ("failed", "ZeroDivisionError"))
    assert result.seconds < 20  # Processes that hold its pipes do not delay the result.
    assert eventually(lambda: not commands(LASTS[1]))


def test_deadline_of_the_run_and_of_the_executor(run_one: RunOne, executor: CodeExecutor) -> None:
    busy = "import time\nwhile time.process_time() < 0.6: pass\n" + HONEST[0]
    assert run_one(busy).status == "passed"
    assert run_one(busy, timeout=0.2).status == "timed_out"


def test_own_timeout_error_is_a_failure(run_one: RunOne) -> None:
    result = run_one("raise TimeoutError('mine')\n")
    assert (result.status, result.error_type, result.ending) == ("failed", "TimeoutError", "exception")


def test_program_may_set_its_own_alarm(run_one: RunOne) -> None:
    alarm = "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\nwhile True: pass\n"
    result = run_one(alarm, timeout=30.0)
    assert (result.status, result.ending, result.signal) == ("failed", "signal", signal.SIGALRM)


def test_hanging_programs_do_not_stop_the_others(executor: CodeExecutor, check_cleanup: None) -> None:
    batch = [("while True: pass\n", ""), HONEST, HONEST, ("import os\nos._exit(0)\n", ""), HONEST] * 3
    results = executor.run(batch, timeout=DEADLINE)
    assert [result.status for result in results] == ["timed_out", "passed", "passed", "failed", "passed"] * 3


@pytest.mark.parametrize("case", ["while True: pass", "import time; time.sleep(99)"])
def test_deadline_of_each_case_of_a_script(run_one: RunOne, case: str) -> None:
    script = f"if input() == 'hang':\n    {case}\nprint('fine')\n"
    tests = {"inputs": ["go\n", "hang\n", "go\n"], "outputs": ["fine\n"] * 3}
    result = run_one(script, tests, timeout=DEADLINE)
    assert (result.status, result.tests_passed, result.tests_total) == ("timed_out", 2, 3)
    result = run_one(script, tests, timeout=DEADLINE, fail_fast=True)
    assert (result.status, result.tests_passed) == ("timed_out", 1)
