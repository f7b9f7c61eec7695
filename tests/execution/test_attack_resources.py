"""Attacks on the limits of memory, processes, descriptors, output and messages."""

import json
from dataclasses import asdict

import pytest

from tests.execution.conftest import GUARD, HONEST, RunOne
from tests.execution.machine_state import CONTAINED, linux_only, resident_kib
from trl_akd.execution import CodeExecutor

pytestmark = linux_only

MIB = 2**20
ESCAPED = "raise RuntimeError('escaped')\n"


@pytest.mark.parametrize(
    "candidate",
    [
        "block = bytearray(2 ** 31)\n",
        "blocks = []\nwhile True:\n    blocks.append(bytearray(2 ** 20))\n",
        "values = list(range(10 ** 9))\n",
        "text = 'x'\nwhile True:\n    text += text\n",
        "def solve(x):\n    return [x] * 10 ** 9\n",
    ],
)
def test_memory_of_one_process(run_one: RunOne, candidate: str) -> None:
    result = run_one(candidate, timeout=20.0)
    assert (result.status, result.error_type, result.ending) == ("failed", "MemoryError", "memory")


def test_limit_of_the_run(run_one: RunOne) -> None:
    candidate = "block = bytearray(150 * 2 ** 20)\n" + HONEST[0]
    assert run_one(candidate).status == "passed"
    assert run_one(candidate, memory_mb=100).ending == "memory"
    assert run_one("block = bytearray(400 * 2 ** 20)\n" + HONEST[0], memory_mb=600).status == "passed"


def test_raised_memory_error_is_an_exception(run_one: RunOne) -> None:
    result = run_one("raise MemoryError('mine')\n")
    assert (result.status, result.error_type, result.ending, result.raised) == (
        "failed",
        "MemoryError",
        "exception",
        True,
    )


def test_shared_mapping(run_one: RunOne) -> None:
    result = run_one(
        f"import mmap\nm = mmap.mmap(-1, 2 ** 30)\nm.write(bytes(2 ** 20) * 1000)\n{ESCAPED}", timeout=20.0
    )
    assert result.status == "failed"
    assert "escaped" not in result.message


FAMILY = """
import os, time
block = bytearray(100 * 2 ** 20)
for _ in range(12):
    if os.fork() == 0:
        for page in range(0, len(block), 4096): block[page] = 1
        time.sleep(60)
time.sleep(5)
"""
HOARD = """
import os
chunk = os.urandom(2 ** 20)
for number in range(1500):
    {write}
"""


@pytest.mark.parametrize("level", CONTAINED, indirect=True)
def test_memory_of_all_processes_together(run_one: RunOne) -> None:
    result = run_one(FAMILY + ESCAPED, timeout=20.0)
    assert (result.status, result.ending) == ("failed", "memory")


@pytest.mark.parametrize(
    "write",
    [
        'open("/tmp/one", "ab").write(chunk)',
        'open(f"/tmp/{number}", "wb").write(chunk)',
        'open(f"/dev/shm/{number}", "wb").write(chunk)',
        'file = os.open("/tmp/x", os.O_CREAT | os.O_RDWR); os.unlink("/tmp/x"); os.write(file, chunk)',
        'file = file if number else os.memfd_create("hoard"); os.write(file, chunk)',
        'os.write(os.memfd_create("hoard"), chunk)',
        'os.write(os.open("/tmp", os.O_TMPFILE | os.O_RDWR), chunk)',
    ],
)
@pytest.mark.parametrize("level", CONTAINED, indirect=True)
def test_memory_held_by_files(run_one: RunOne, write: str) -> None:
    result = run_one(HOARD.format(write=write) + ESCAPED, timeout=20.0)
    assert result.status == "failed"
    assert "escaped" not in result.message


@pytest.mark.parametrize("level", CONTAINED, indirect=True)
def test_memory_held_by_system_v_segments(run_one: RunOne) -> None:
    candidate = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
for _ in range(8):
    segment = libc.shmget(0, ctypes.c_size_t(128 * 2 ** 20), 0o1600)
    address = libc.shmat(segment, None, 0)
    if segment < 0 or address in (None, 2 ** 64 - 1):
        raise OSError(ctypes.get_errno(), "no segment")
    ctypes.memset(address, 1, 128 * 2 ** 20)
    libc.shmdt(ctypes.c_void_p(address))
"""
    result = run_one(candidate + ESCAPED, timeout=20.0)
    assert result.status == "failed"
    assert "escaped" not in result.message


@pytest.mark.parametrize("level", CONTAINED, indirect=True)
@pytest.mark.parametrize(
    "more",
    [
        "if os.fork() == 0:\n        time.sleep(60)",
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "subprocess.Popen(['sleep', '60'])",
    ],
)
def test_number_of_processes(run_one: RunOne, more: str) -> None:
    count = f"import os, subprocess, threading, time\nthreading.stack_size(65536)\nfor _ in range(3000):\n    {more}\n"
    result = run_one(GUARD + count + ESCAPED, timeout=20.0)
    assert result.status == "failed"
    assert "escaped" not in result.message


FOREVER = "import signal, time\nwhile True:\n    try: {}\n    except OSError: pass\n"
BOMBS = {
    "doubling": FOREVER.format("os.fork()"),
    "fleeing": FOREVER.format("os.setsid() if os.fork() == 0 else os._exit(0)"),
    "stubborn": "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    + FOREVER.format("os.fork() or time.sleep(1)"),
}


@pytest.mark.parametrize("level", CONTAINED, indirect=True)
@pytest.mark.parametrize("bomb", BOMBS)
def test_fork_bomb(run_one: RunOne, bomb: str) -> None:
    result = run_one(GUARD + BOMBS[bomb], timeout=1.0)
    assert result.status in ("failed", "timed_out")
    assert "escaped" not in result.message


@pytest.mark.parametrize(
    "more", ["open('/dev/null')", "socket.socket(socket.AF_UNIX)", "os.pipe()", "os.dup(0)", "os.eventfd(0)"]
)
def test_descriptors(run_one: RunOne, more: str) -> None:
    result = run_one(f"import os, socket\nkept = []\nfor _ in range(200000):\n    kept.append({more})\n{ESCAPED}")
    assert (result.status, result.error_type) == ("failed", "OSError")


@pytest.mark.parametrize(
    "output",
    [
        "print('x' * 10000)",
        "sys.stderr.write('x' * 10000)",
        "os.write(1, b'x' * 65536)",
        "os.write(2, b'x' * 65536)",
        "subprocess.run(['echo', 'x' * 10000])",
    ],
)
def test_endless_output(run_one: RunOne, output: str) -> None:
    before = resident_kib()
    result = run_one(f"import os, subprocess, sys\nwhile True:\n    {output}\n", timeout=0.3)
    assert result.status in ("timed_out", "failed")
    assert resident_kib() - before < 32 * 1024


@pytest.mark.parametrize("output", ["print('x' * 79)", "os.write(2, b'x' * 80)"])
def test_large_output_is_allowed(run_one: RunOne, output: str) -> None:
    result = run_one(f"import os\nfor _ in range(30000):\n    {output}\n{HONEST[0]}", timeout=20.0)
    assert result.status == "passed"


def test_endless_output_of_a_script(run_one: RunOne) -> None:
    tests = {"inputs": ["1\n"], "outputs": ["1\n"]}
    before = resident_kib()
    assert run_one("while True: print('x' * 10000)\n", tests, timeout=0.5).status in ("timed_out", "failed")
    assert run_one("print(1)\nwhile True: print()\n", tests, timeout=0.5).status in ("timed_out", "failed")
    assert run_one("print('1' * 10 ** 8)\n", tests).status == "failed"
    assert resident_kib() - before < 32 * 1024


NASTY = "\\x1b[31m\\x00\\x07\\r\\n\\u202e\\ud800\\U000e0001\\x85\\u2028'\\\""
LOUD = {
    "huge": "raise ValueError('x' * 10 ** 7)\n",
    "huge arguments": "raise ValueError(*range(10 ** 5))\n",
    "control characters": f'raise ValueError("{NASTY}")\n',
    "control characters in a key": f'{{}}["{NASTY}"]\n',
    "control characters in a name": 'raise type("\\x1b[31m\\nE" + "é" * 10 ** 5, (ValueError,), {})("x")\n',
    "control characters in a missing name": f'raise NameError("x", name="{NASTY}" * 10 ** 4)\n',
    "control characters in a module": "import importlib\nimportlib.import_module('no_\\x1b[31m\\n\\x85')\n",
    "missing name of another type": "raise NameError('x', name=[10 ** 5] * 1000)\n",
    "text that raises": "class E(ValueError):\n  def __str__(self): raise KeyError\n  __repr__ = __str__\nraise E\n",
    "text that exits": "class E(ValueError):\n  def __str__(self): raise SystemExit\n  __repr__ = __str__\nraise E\n",
    "text of another type": "class E(ValueError):\n    def __str__(self): return 7\nraise E\n",
    "text of a class of its own": "class S(str):\n    def __getattribute__(self, name): raise SystemExit\n"
    "    __len__ = __getitem__ = __iter__ = encode = lambda *a: 1 / 0\n"
    "class E(ValueError):\n    def __str__(self): return S('x')\nraise E\n",
    "text that grows": "class E(ValueError):\n    def __str__(self): return 'x' * 10 ** 10\nraise E\n",
    "thousand bases": "".join(
        f"class E{i}(E{i - 1}): pass\n" if i else "class E0(ValueError): pass\n" for i in range(500)
    )
    + "raise E499\n",
    "false class": "class E(ValueError):\n    __class__ = int\n    __module__ = __doc__ = None\nraise E\n",
    "false line": "raise SyntaxError('x', ('<candidate>', -5, 10 ** 30, None))\n",
    "line of another type": "raise SyntaxError('x', ('<candidate>', 'five', None, None))\n",
    "no traceback": "def solve(x):\n    raise ValueError\nwhile True:\n    try:\n        solve(1)\n"
    "    except ValueError as e:\n        e.__traceback__ = None\n        raise e from e\n",
    "deep traceback": "import sys\nsys.setrecursionlimit(50000)\ndef f(n):\n    f(n + 1)\nf(0)\n",
    "group": "raise ExceptionGroup('x' * 10 ** 6, [ExceptionGroup('y', [ValueError(1)])] * 1000)\n",
    "notes": "e = ValueError('x')\ne.__notes__ = 5\nraise e\n",
    "not an exception": "raise 5\n",
    "in the test": "def solve(x):\n    raise ValueError('x' * 10 ** 7)\n",
}


@pytest.mark.parametrize("attack", LOUD)
def test_message_is_bounded_and_printable(run_one: RunOne, attack: str) -> None:
    result = run_one(LOUD[attack])
    assert result.status == "failed", result
    assert result.ending in ("exception", "memory"), result
    assert len(result.message) <= 1000
    for text in (result.message, result.error_type or "", result.missing or "", *result.error_bases):
        assert text.replace("\n", "").isprintable()
        assert len(text) <= 1000
        text.encode()
    assert len(json.dumps(asdict(result))) < 20_000
    assert result.line is None or result.line >= 1


def test_endless_recursion_is_a_failure(run_one: RunOne) -> None:
    assert run_one("def f(): f()\nf()\n").error_type == "RecursionError"
    deep = "class A:\n    def __getattr__(self, name): return getattr(self, name)\nA().x\n"
    deep = "import sys\nsys.setrecursionlimit(10 ** 9)\n" + deep
    assert run_one(deep).status == "failed"
    unlimited = "import resource\nhard = resource.getrlimit(resource.RLIMIT_STACK)[1]\n"
    unlimited += "resource.setrlimit(resource.RLIMIT_STACK, (hard, hard))\n"
    assert run_one(unlimited + deep).status == "failed"


def test_unusual_candidates_fail(executor: CodeExecutor, check_cleanup: None) -> None:
    texts = ["\0", "x = '\ud800'", "\ud800", "(" * 100_000, "x = " + "-" * 200_000 + "1", "[" * 3000 + "]" * 3000]
    texts += [
        "x = 1\n" * 200_000 + "1 / 0",
        "'" * 10,
        "\ufeff\ufeff",
        "é = 1\nñ",
        "x = " + "9" * 10_000,
        "if 1:\n" * 200,
    ]
    texts += ["x" * (4 * MIB), "# " + "x" * (8 * MIB) + "\n1 / 0", "\x0c\x1a", "\r\r\r 1", "a.b" + ".c" * 100_000]
    for text, result in zip(texts, executor.run([(text, HONEST[1]) for text in texts]), strict=True):
        assert result.status in ("failed", "timed_out"), (text[:40], result)
        assert len(result.message) <= 1000
    empty, honest = executor.run([("", ""), HONEST])
    assert (empty.status, honest.status) == ("passed", "passed")


def test_unusual_tests_fail(executor: CodeExecutor, check_cleanup: None) -> None:
    texts = ["\0", "\ud800", "(" * 100_000, "assert '"]
    for result in executor.run([(HONEST[0], text) for text in texts]):
        assert (result.status, result.stage) == ("failed", "compile")
        assert result.origin == "test"
