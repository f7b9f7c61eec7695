"""Correct programs pass, wrong ones fail with the right report, and results are complete and in order."""

import gzip
import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.execution.conftest import HONEST, RunOne
from tests.execution.machine_state import DATA, linux_only
from trl_akd.execution import CodeExecutor

pytestmark = linux_only

HUMAN_EVAL = DATA / "humaneval" / "HumanEval.jsonl.gz"
MBPP = DATA / "mbpp" / "mbpp.jsonl"
NAP = (f"import time\ntime.sleep(0.1)\n{HONEST[0]}", HONEST[1])

HONEST_PROGRAMS = {
    "temporary files": (
        "import tempfile\nwith tempfile.TemporaryDirectory() as d:\n    open(d + '/x', 'w').write('a')\n"
        "with tempfile.NamedTemporaryFile() as f:\n    f.write(b'x' * 2 ** 20)",
        "",
    ),
    "working folder": (
        "import os\nhere = os.getcwd()\nos.makedirs('a/b')\nos.chdir('a')\nopen('f', 'w').write('x')",
        "assert sorted(os.listdir('.')) == ['b', 'f'] and os.getcwd() == here + '/a'",
    ),
    "threads": (
        "import threading\nseen = []\nthreads = [threading.Thread(target=seen.append, args=(i,)) for i in range(20)]\n"
        "[t.start() for t in threads]\n[t.join() for t in threads]",
        "assert sorted(seen) == list(range(20))",
    ),
    "asyncio": (
        "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    return 3",
        "assert asyncio.run(f()) == 3",
    ),
    "pool": (
        "import multiprocessing\ndef f(x): return x * x\ndef g():\n"
        "    with multiprocessing.Pool(2) as pool: return pool.map(f, range(4))",
        "assert g() == [0, 1, 4, 9]",
    ),
    "queue": (
        "import multiprocessing as mp\ndef f(q): q.put(5)\ndef g():\n    q = mp.Queue()\n"
        "    p = mp.Process(target=f, args=(q,))\n    p.start()\n    got = q.get()\n    p.join()\n    return got",
        "assert g() == 5",
    ),
    "executor": (
        "import concurrent.futures as c\ndef f(x): return x + 1",
        "with c.ProcessPoolExecutor(2) as e: assert list(e.map(f, [1, 2])) == [2, 3]\n"
        "with c.ThreadPoolExecutor(8) as e: assert list(e.map(f, [1, 2])) == [2, 3]",
    ),
    "shared memory": (
        "from multiprocessing import shared_memory\ns = shared_memory.SharedMemory(create=True, size=100)\n"
        "s.buf[0] = 3\ns.close()\ns.unlink()",
        "",
    ),
    "fork": (
        "import os",
        "r, w = os.pipe()\np = os.fork()\nif p == 0:\n    os.write(w, b'x')\n    os._exit(0)\n"
        "os.waitpid(p, 0)\nassert os.read(r, 1) == b'x'",
    ),
    "a command": (
        "import subprocess",
        "assert subprocess.run(['/bin/echo', 'hi'], capture_output=True, text=True).stdout == 'hi\\n'",
    ),
    "another Python": (
        "import subprocess, sys",
        "assert subprocess.check_output([sys.executable, '-c', 'print(6 * 7)'], text=True) == '42\\n'",
    ),
    "dataclass": (
        "from __future__ import annotations\nfrom dataclasses import dataclass, field\n"
        "from typing import get_type_hints\n"
        "@dataclass\nclass A:\n    x: int = 0\n    y: list[int] = field(default_factory=list)",
        "assert A(1).y == [] and get_type_hints(A)['x'] is int",
    ),
    "pickle": ("import pickle\nclass B:\n    x = 4", "assert pickle.loads(pickle.dumps(B())).x == 4"),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(20000)\ndef depth(n): return 0 if n == 0 else 1 + depth(n - 1)",
        "assert depth(15000) == 15000",
    ),
    "empty input": (
        "import sys\nassert sys.stdin.read() == ''",
        "try: input()\nexcept EOFError: pass\nelse: raise AssertionError",
    ),
    "own alarm": (
        "import signal, time\nclass Late(Exception): pass\ndef ring(*a): raise Late\n"
        "signal.signal(signal.SIGALRM, ring)\n"
        "def f():\n    signal.setitimer(signal.ITIMER_REAL, 0.02)\n    try: time.sleep(2)\n    except Late: return 1",
        "assert f() == 1",
    ),
    "own signal": (
        "import os, signal\ngot = []\nsignal.signal(signal.SIGUSR1, lambda *a: got.append(1))",
        "os.kill(os.getpid(), signal.SIGUSR1)\nassert got == [1]",
    ),
    "source": ("import inspect\ndef f(a): return a", "assert inspect.getsource(f).startswith('def f')"),
    "who and where": (
        "import getpass, os, platform, socket, uuid",
        "assert getpass.getuser() and os.path.expanduser('~') and platform.platform() and socket.gethostname()\n"
        "assert uuid.uuid4() and os.cpu_count()",
    ),
    "random": ("import random\nrandom.seed(1)", "assert random.random() == 0.13436424411240122"),
    "devices": (
        "import os",
        "open('/dev/null', 'w').write('x')\nopen('/dev/stdout', 'w').write('x')\n"
        "assert len(open('/dev/urandom', 'rb').read(2)) == len(os.urandom(2)) == 2 and os.listdir('/proc/self/fd')",
    ),
    "own output": ("import io, sys", "sys.stdout = io.StringIO()\nprint('x')\nassert sys.stdout.getvalue() == 'x\\n'"),
    "main guard": ("def f(): return 1\nif __name__ == '__main__':\n    raise RuntimeError", "assert f() == 1"),
    "a local socket": ("import socket\na, b = socket.socketpair()\na.send(b'x')", "assert b.recv(1) == b'x'"),
    "much memory": ("x = b'a' * (100 << 20)", "assert len(x) == 100 << 20"),
    "library": (
        "import bz2, csv, ctypes, decimal, email, hashlib, http.client, json, logging, sqlite3, ssl, unittest, zlib\n"
        "import xml.etree.ElementTree",
        "logging.warning('x')\nassert sqlite3.connect(':memory:').execute('select 1').fetchone() == (1,)",
    ),
}


@pytest.mark.parametrize("name", HONEST_PROGRAMS)
def test_correct_program(run_one: RunOne, name: str) -> None:
    result = run_one(*HONEST_PROGRAMS[name], timeout=20.0)
    assert result.passed, result
    assert (result.tests_passed, result.tests_total, result.ending, result.error_type) == (1, 1, None, None)


ERRORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "wrong": ("def f(): return 1", "\nassert f() == 2", {"error_type": "AssertionError", "origin": "test", "line": 2}),
    "nothing": ("", "f()", {"error_type": "NameError", "missing": "f", "stage": "test", "origin": "test"}),
    "raise": (
        "def f():\n    raise ValueError('no\\x1b\\udc00')",
        "f()",
        {"error_type": "ValueError", "message": "no\\x1b\\udc00", "raised": True, "origin": "candidate", "line": 2},
    ),
    "unbound": (
        "def f(): x += 1",
        "f()",
        {
            "error_type": "UnboundLocalError",
            "missing": "x",
            "error_bases": ("NameError", "Exception", "BaseException", "object"),
        },
    ),
    "key": ("{}['k']", "", {"error_type": "KeyError", "missing": "'k'", "message": "'k'", "stage": "load"}),
    "attribute": ("''.foo", "", {"error_type": "AttributeError", "missing": "foo", "raised": False}),
    "module": ("import nothing_there", "", {"error_type": "ModuleNotFoundError", "missing": "nothing_there"}),
    "recursion": ("def f(): f()", "f()", {"error_type": "RecursionError", "origin": "candidate"}),
    "indentation": ("if 1:\nx", "", {"error_type": "IndentationError", "stage": "compile", "line": 2}),
    "open bracket": ("x = (", "", {"error_type": "SyntaxError", "stage": "compile", "origin": "candidate", "line": 1}),
    "broken test": ("", "\n\nx = (", {"error_type": "SyntaxError", "stage": "compile", "origin": "test", "line": 3}),
    "null": ("x = 1\0", "", {"error_type": "SyntaxError", "stage": "compile", "origin": "candidate"}),
    "surrogate": ("x = '\ud800'", "", {"error_type": "SyntaxError", "stage": "compile", "origin": "candidate"}),
    "parentheses": ("(" * 5000, "", {"error_type": "SyntaxError", "stage": "compile"}),
    "minuses": ("-" * 100_000 + "1", "", {"error_type": "SyntaxError", "stage": "compile"}),
    "own class": ("class Odd(LookupError): pass\nraise Odd", "", {"error_type": "Odd", "line": 2}),
    "own timeout": ("raise TimeoutError", "", {"error_type": "TimeoutError", "ending": "exception"}),
    "interrupt": ("raise KeyboardInterrupt", "", {"error_type": "KeyboardInterrupt", "ending": "exception"}),
    "exit": ("import sys\nsys.exit(3)", "", {"error_type": "SystemExit", "ending": "exit", "exit_code": 3}),
    "hard exit": (
        "import os\nos._exit(4)",
        "",
        {"error_type": None, "ending": "exit", "exit_code": 4, "stage": "load"},
    ),
    "signal": ("import os\nos.kill(os.getpid(), 15)", "", {"error_type": None, "ending": "signal", "signal": 15}),
    "memory": ("x = [0] * (1 << 28)", "", {"error_type": "MemoryError", "ending": "memory", "raised": False}),
    "raised memory": ("raise MemoryError", "", {"error_type": "MemoryError", "ending": "exception", "raised": True}),
    "silent text": (
        "class E(Exception):\n    def __str__(self): raise self\nraise E",
        "",
        {"error_type": "E", "message": "(its text is not available: E)"},
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error(run_one: RunOne, name: str) -> None:
    candidate, test, expected = ERRORS[name]
    result = run_one(candidate, test)
    assert result.status == "failed"
    assert {key: getattr(result, key) for key in expected} == expected, result
    assert (result.tests_passed, result.tests_total) == (0, 1)


def test_deadline(run_one: RunOne) -> None:
    result = run_one("def f():\n    while True: pass", "f()", timeout=0.3)
    assert (result.status, result.ending, result.error_type, result.stage) == ("timed_out", "deadline", None, "test")
    assert 0.3 <= result.seconds < 3


def test_message_that_never_ends(run_one: RunOne) -> None:
    result = run_one("class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E", "", timeout=0.3)
    assert (result.status, result.error_type, result.message, result.line) == ("failed", "E", "", 4)


def test_memory_of_all_processes(run_one: RunOne) -> None:
    child = "    if os.fork() == 0:\n        x = b'1' * (100 << 20)\n        time.sleep(9)\n"
    hungry = f"import os, time\nfor _ in range(8):\n{child}time.sleep(9)"
    result = run_one(hungry, "", timeout=9.0, memory_mb=256)
    assert (result.status, result.error_type, result.ending) == ("failed", "MemoryError", "memory")


def test_order_and_indices(executor: CodeExecutor) -> None:
    programs = [(f"import time\ntime.sleep({0.2 if i % 3 == 0 else 0})\nraise ValueError({i})", "") for i in range(12)]
    assert [result.message for result in executor.run(programs)] == [str(i) for i in range(12)]
    streamed = list(executor.stream(iter(programs)))
    assert sorted(index for index, _ in streamed) == list(range(12))
    assert all(result.message == str(index) for index, result in streamed)


def test_stream_is_lazy(executor: CodeExecutor) -> None:
    drawn = []

    def endless() -> Iterator[tuple[str, str]]:
        for number in itertools.count():
            drawn.append(number)
            yield HONEST

    stream = executor.stream(endless())
    for _ in range(5):
        assert next(stream)[1].passed
    assert len(drawn) < 12
    with pytest.raises(RuntimeError, match="running a stream"):
        executor.run([HONEST])
    stream.close()  # type: ignore[attr-defined]
    assert executor.run([HONEST])[0].passed


def test_stream_closed_early(executor: CodeExecutor) -> None:
    for _ in range(5):
        next(executor.stream([NAP, ("1 / 0\n", ""), NAP, NAP, NAP, NAP]))
        assert [result.status for result in executor.run([HONEST] * 3)] == ["passed"] * 3


def test_iterable_that_raises(executor: CodeExecutor) -> None:
    def programs() -> Iterator[tuple[str, str]]:
        yield NAP
        yield HONEST
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(executor.stream(programs()))
    assert [result.status for result in executor.run([HONEST] * 3)] == ["passed"] * 3


def test_no_programs(executor: CodeExecutor) -> None:
    assert executor.run([]) == []


def test_limits_of_a_call(executor: CodeExecutor) -> None:
    busy = ("import time\nwhile time.process_time() < 0.6: pass", "")
    assert executor.run([busy], timeout=0.2)[0].status == "timed_out"
    assert executor.run([busy])[0].passed
    large = ("x = b'1' * (150 << 20)", "")
    assert executor.run([large])[0].passed
    assert executor.run([large], memory_mb=128)[0].ending == "memory"


def test_repeatable_sets(executor: CodeExecutor) -> None:
    show = ("raise ValueError(list({'a', 'b', 'c', 'd', 'e', 'f'}))", "")
    assert len({result.message for result in executor.run([show] * 6)}) == 1


@pytest.mark.parametrize("level", ["namespace"], indirect=True)
def test_human_eval_references_pass(level: str) -> None:
    if not HUMAN_EVAL.is_file():
        pytest.skip("the optional ../shared/data/humaneval/HumanEval.jsonl.gz is absent")
    rows = [json.loads(line) for line in gzip.open(HUMAN_EVAL, "rt")]
    programs = [
        (row["prompt"] + row["canonical_solution"], f"{row['test']}\ncheck({row['entry_point']})\n") for row in rows
    ]
    assert len(programs) == 164
    for strict in (False, True):
        with CodeExecutor(timeout=20, isolation=level, strict=strict, allow_code_execution=True) as executor:
            failed = {rows[i]["task_id"]: r for i, r in executor.stream(programs) if not r.passed}
        assert failed == {}


@pytest.mark.slow
@pytest.mark.parametrize("level", ["namespace"], indirect=True)
def test_mbpp_references_pass(level: str) -> None:
    if not MBPP.is_file():
        pytest.skip("the optional ../shared/data/mbpp/mbpp.jsonl is absent")
    rows = [json.loads(line) for line in MBPP.read_text().splitlines()]
    programs = [(row["code"], "\n".join([row["test_setup_code"], *row["test_list"]])) for row in rows]
    with CodeExecutor(timeout=30, isolation=level, allow_code_execution=True) as executor:
        assert {rows[i]["task_id"]: r for i, r in executor.stream(programs) if not r.passed} == {}


def test_fork_of_the_caller_does_not_stop_helpers(executor: CodeExecutor) -> None:
    child = os.fork()
    if child == 0:
        try:
            executor.run([HONEST])
        except RuntimeError as error:
            executor.close()
            os._exit(0 if "another process" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert executor.run([HONEST])[0].passed
