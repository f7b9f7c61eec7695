"""Verdicts do not depend on the load of the machine."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.execution.conftest import HONEST, RunOne
from tests.execution.machine_state import linux_only
from trl_akd.execution import CodeExecutor

pytestmark = [linux_only, pytest.mark.lengthy]

TIMEOUT = 0.3
BUSY = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\n" + HONEST[0]
CHILDREN = (
    "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        end = time.process_time() + {0}\n"
    "        while time.process_time() < end: pass\n        os._exit(0)\n    os.wait()\n" + HONEST[0]
)
LIMIT = TIMEOUT
PROGRAMS = {  # on an idle machine, all far below or far above their limit
    "trivial": (HONEST[0], "passed"),
    "wrong": ("def solve(x): return 0\n", "failed"),
    "half the limit": (BUSY.format(0.5 * LIMIT), "passed"),
    "most of the limit": (BUSY.format(0.8 * LIMIT), "passed"),
    "beyond the limit": (BUSY.format(1.5 * LIMIT), "timed_out"),
    "endless": ("while True: pass\n", "timed_out"),
    "children within the limit": (CHILDREN.format(0.25 * LIMIT), "passed"),
    "children beyond the limit": (CHILDREN.format(0.6 * LIMIT), "timed_out"),
    "wrong after most of the limit": (BUSY.format(0.7 * LIMIT) + "def solve(x): return 0\n", "failed"),
    "naps": (f"import time\ntime.sleep({0.8 * LIMIT})\n" + HONEST[0], "passed"),
    "naps for longer than it may compute": (f"import time\ntime.sleep({1.5 * LIMIT})\n" + HONEST[0], "passed"),
    "sleeps": ("import time\ntime.sleep(1000)\n", "timed_out"),
    "many short threads": (
        "import threading\nfor _ in range(50):\n    t = threading.Thread(target=sum, args=(range(1000),))\n"
        "    t.start()\n    t.join()\n" + HONEST[0],
        "passed",
    ),
}


@contextmanager
def spinners(count: int) -> Iterator[None]:
    running = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for spinner in running:
            spinner.kill()
            spinner.wait()


@pytest.mark.parametrize(
    ("count", "busy"), [(len(PROGRAMS), 4), pytest.param(200, 8, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_verdicts_beside_busy_processes(level: str, count: int, busy: int) -> None:
    names = (list(PROGRAMS) * count)[:count]
    random.Random(0).shuffle(names)
    with CodeExecutor(2, timeout=TIMEOUT, isolation=level, allow_code_execution=True) as executor, spinners(busy):
        results = executor.run([(PROGRAMS[name][0], HONEST[1]) for name in names])
    got = [(name, result.status, result.message) for name, result in zip(names, results, strict=True)]
    assert not [entry for entry in got if entry[1] != PROGRAMS[entry[0]][1]]


def test_processor_time_of_children_counts(run_one: RunOne) -> None:
    together = CHILDREN.format(0.2)
    assert run_one(together, timeout=2.0).passed
    result = run_one(together, timeout=0.3)
    assert (result.status, result.ending) == ("timed_out", "deadline")
    assert "processor time" in result.message


@pytest.mark.parametrize(
    "idle", ["import time\ntime.sleep(1000)", "import os\nos.read(os.pipe()[0], 1)", "import signal\nsignal.pause()"]
)
def test_idle_program_ends_at_the_idle_limit(run_one: RunOne, idle: str) -> None:
    result = run_one(idle + "\n", timeout=0.2)
    assert (result.status, result.ending) == ("timed_out", "deadline")
    assert result.seconds >= 0.8
    assert "idle" in result.message


LINGERING = {
    "a copy that is right": "import os\ntwin = os.fork() == 0\ndef solve(x):\n    return 4 if twin else None\n",
    "a copy that is right at once": "import os, time\nif os.fork():\n    time.sleep(0.2)\n"
    "    def solve(x): return None\nelse:\n    def solve(x): return 4\n",
    "a copy that sleeps": "import os, time\nif os.fork() == 0:\n    time.sleep(1000)\ndef solve(x): return None\n",
    "a process that sleeps": "import subprocess\nsubprocess.Popen(['sleep', '1000'])\ndef solve(x): return None\n",
    "a thread that sleeps": "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n"
    "def solve(x): return None\n",
    "a pool": "import multiprocessing, time\np = multiprocessing.Process(target=time.sleep, args=(1000,))\np.start()\n"
    "def solve(x): return None\n",
    "exit beside a copy": "import os, time\nif os.fork() == 0:\n    time.sleep(1000)\nos._exit(3)\n",
    "crash beside a copy": "import ctypes, os, time\nif os.fork() == 0:\n    time.sleep(1000)\nctypes.string_at(0)\n",
    "error while loading, beside a copy": "import os, time\nif os.fork() == 0:\n    time.sleep(1000)\n1 / 0\n",
    "exit in the call, beside a copy": "import os, time\ndef solve(x):\n    if os.fork() == 0:\n"
    "        time.sleep(1000)\n    os._exit(3)\n",
}


@pytest.mark.parametrize("strict", [False, True])
def test_failure_is_reported_before_descendants_end(level: str, strict: bool) -> None:
    with CodeExecutor(2, timeout=60.0, isolation=level, strict=strict, allow_code_execution=True) as executor:
        start = time.monotonic()
        results = executor.run([(text, HONEST[1]) for text in LINGERING.values()])
        assert time.monotonic() - start < 60.0, "one of them went on to its limit"
    for name, result in zip(LINGERING, results, strict=True):
        assert result.status == "failed", (name, result)


@pytest.mark.parametrize(
    "script",
    [
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n1 / 0\n",
        "import multiprocessing, time\nmultiprocessing.Process(target=time.sleep, args=(1000,)).start()\n1 / 0\n",
        "import os, time\nif os.fork() == 0:\n    time.sleep(1000)\nraise SystemExit('no')\n",
    ],
)
def test_failure_of_a_script_is_reported_at_once(run_one: RunOne, script: str) -> None:
    result = run_one(script, {"inputs": [""], "outputs": [""]}, timeout=60.0)
    assert result.status == "failed"
    assert result.seconds < 60.0


@pytest.mark.parametrize("strict", [False, True])
def test_forked_copies_do_not_affect_a_pass(level: str, strict: bool) -> None:
    copies = {
        "ends at once": "import os\nif os.fork() == 0:\n    raise SystemExit\nos.wait()\n",
        "fails": "import os\nif os.fork() == 0:\n    1 / 0\nos.wait()\n",
        "reaches the tests first": "import os, time\nif os.fork():\n    time.sleep(0.2)\n",
        "sleeps": "import os, time\nif os.fork() == 0:\n    time.sleep(1000)\n",
    }
    with CodeExecutor(2, timeout=20.0, isolation=level, strict=strict, allow_code_execution=True) as executor:
        results = executor.run([(text + HONEST[0], HONEST[1]) for text in copies.values()])
    for name, result in zip(copies, results, strict=True):
        assert result.passed, (name, result)
