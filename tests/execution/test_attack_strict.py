"""Attacks on strict mode, where the test runs in another process and receives only plain data."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.execution.conftest import HONEST
from tests.execution.machine_state import linux_only
from trl_akd.execution import CodeExecutor, ExecutionResult

pytestmark = linux_only

TEST = "answer = solve(2)\nassert answer == 4\nlast = True\n"
EQUAL = """
class Equal:
    __eq__ = __bool__ = __le__ = __ge__ = lambda *a: True
    __ne__ = __lt__ = __gt__ = lambda *a: False
    __hash__ = lambda self: 4
"""
# These pass without `strict`, as the test calls what the candidate has changed.
PERSUASIVE = {
    "always equal": (EQUAL + "def solve(x):\n    return Equal()\n", TEST),
    "equal integer": (
        "class Int(int):\n    __eq__ = lambda *a: True\n    __hash__ = None\ndef solve(x):\n    return Int(0)\n",
        TEST,
    ),
    "equal list": (
        "class List(list):\n    __eq__ = lambda *a: True\ndef solve(x):\n    return List()\n",
        "assert solve(2) == [4]",
    ),
    "equal inside": (EQUAL + "def solve(x):\n    return [Equal()]\n", "assert solve(2) == [4]"),
    "equal key": (EQUAL + "def solve(x):\n    return {Equal(): Equal()}\n", "assert solve(2) == {4: 4}"),
    "class as result": (
        "class Meta(type):\n    __eq__ = lambda *a: True\n    __hash__ = type.__hash__\n"
        "class Result(metaclass=Meta): pass\ndef solve(x):\n    return Result\n",
        TEST,
    ),
    "close": (
        "import math\nmath.isclose = lambda *a, **k: True\ndef solve(x):\n    return 0\n",
        "import math\nassert math.isclose(solve(3), 6)",
    ),
    "close, late": (
        "def solve(x):\n    import math\n    math.isclose = lambda *a, **k: True\n    return 0\n",
        "import math\nanswer = solve(3)\nassert math.isclose(answer, 6)",
    ),
    "builtins, late": (
        "def solve(x):\n    import builtins\n    builtins.all = lambda *a: True\n",
        "first = solve(1)\nassert all(solve(x) == 2 * x for x in (1, 2))",
    ),
    "globals, late": (
        "import sys\ndef solve(x):\n    sys._getframe(1).f_globals['expected'] = None\n",
        "expected = 4\nanswer = solve(2)\nassert answer == expected",
    ),
    "trace, late": (
        """
import sys
def trace(frame, event, argument):
    if event == "line" and frame.f_lineno == 2:
        frame.f_lineno = 3
    return trace
def solve(x):
    sys._getframe(1).f_trace = trace
    sys.settrace(trace)
""",
        TEST,
    ),
}
ECHO = """
import os
def echo(firsts=range(256)):
    for fd in range(3, 64):
        try:
            os.set_blocking(fd, False)
            data = os.read(fd, 4096)
        except OSError: continue
        for first in firsts:
            try: os.write(fd, bytes([first]) + data)
            except OSError: break
"""
LIES = {
    "echo": ECHO + "def solve(x):\n    echo()\n",
    "echo, backwards": ECHO + "def solve(x):\n    echo(range(255, -1, -1))\n",
    "echo at load": ECHO + "echo(range(255, -1, -1))\ndef solve(x): pass\n",
    "callers": """
import sys
def solve(x):
    frame = sys._getframe(1)
    while frame:
        for space in (frame.f_globals, frame.f_locals, getattr(frame.f_globals.get("__builtins__"), "__dict__", {})):
            for name in list(space):
                if callable(space[name]): space[name] = lambda *a, **k: True
        frame = frame.f_back
""",
    "exit": "import os\ndef solve(x):\n    os._exit(0)\n",
    "sys.exit": "import sys\ndef solve(x):\n    sys.exit(0)\n",
    "SystemExit at load": "raise SystemExit(0)\n",
    "GeneratorExit": "def solve(x):\n    raise GeneratorExit\n",
    "KeyboardInterrupt": "def solve(x):\n    raise KeyboardInterrupt\n",
    "StopIteration": "def solve(x):\n    raise StopIteration\n",
    "kill all": """
import os
if os.getpid() < 100:
    for pid in range(1, 400):
        if pid != os.getpid():
            try: os.kill(pid, 9)
            except OSError: pass
def solve(x):
    return None
""",
    "endless": "def solve(x):\n    while True: pass\n",
    "endless at load": "while True: pass\n",
    "nothing": "",
    "recursive": "def solve(x):\n    values = []\n    values.append(values)\n    return values\n",
    "deep": "def solve(x):\n    value = []\n    for _ in range(100000): value = [value]\n    return value\n",
    "huge": "def solve(x):\n    return [0] * 10**8\n",
    "huge text": "def solve(x):\n    return 'x' * (3 * 10**8)\n",
    "generator": "def solve(x):\n    yield 4\n",
    "function": "def solve(x):\n    return solve\n",
    "junk": """
import os, socket
def solve(x):
    for fd in range(64):
        for frame in (b"", b"\\x00" * 100, b"passed", b"\\xff" * 65536, os.urandom(512), b'{"status": "passed"}'):
            try:
                os.set_blocking(fd, False)
                os.write(fd, frame)
            except OSError: pass
    return None
""",
    "reads the test's memory": """
import os
def solve(x):
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                open(f"/proc/{entry}/mem", "r+b", buffering=0).close()
            except OSError:
                continue
            return 2 * x
""",
    "traces the test": """
import ctypes, os
def solve(x):
    for pid in range(1, 400):
        if pid != os.getpid() and ctypes.CDLL(None).ptrace(16, pid, 0, 0) == 0:
            return 2 * x
""",
}


@pytest.fixture(scope="module")
def strict(level: str) -> Iterator[CodeExecutor]:
    with CodeExecutor(2, memory_mb=256, isolation=level, strict=True, allow_code_execution=True) as made:
        yield made


def run_one(executor: CodeExecutor, candidate: str, test: Any, **limits: Any) -> ExecutionResult:
    result, after = executor.run([(candidate, test), HONEST], **limits)
    assert after.status == "passed", after
    assert result.strict
    return result


@pytest.mark.parametrize("attack", PERSUASIVE)
def test_attack_that_succeeds_without_strict(strict: CodeExecutor, executor: CodeExecutor, attack: str) -> None:
    [beside] = executor.run([PERSUASIVE[attack]])
    assert beside.passed, "no longer a lie worth telling"
    result = run_one(strict, *PERSUASIVE[attack])
    assert result.status == "failed", result


@pytest.mark.parametrize("attack", LIES)
def test_attack(strict: CodeExecutor, attack: str) -> None:
    if strict.isolation == "process" and attack in ("reads the test's memory", "traces the test"):
        pytest.skip("promised where there are namespaces")
    result = run_one(strict, LIES[attack], TEST, timeout=0.7)
    assert result.status in ("failed", "timed_out"), result


PLAIN = (
    "[None, True, 2**80, -1.5, 3j, 'ä\\x00\\ud800', b'\\xff', (1, (2,)), {3}, frozenset([4]), {'k': [5], (6,): None}]"
)


@pytest.mark.parametrize(
    ("candidate", "test"),
    [
        (
            f"def f(x):\n    return {PLAIN}\n",
            f"value = f(1)\nassert value == {PLAIN}\nassert repr(value) == repr({PLAIN})",
        ),
        (
            "def f(x):\n    return x\n",
            f"for value in {PLAIN}:\n    assert f(value) == value and type(f(value)) is type(value)",
        ),
        ("def f(x):\n    return x\n", "assert str(f(float('nan'))) == 'nan' and f(float('inf')) == float('inf')"),
        ("def f(x):\n    x.sort()\n", "values = [3, 1, 2]\nassert f(values) is None and values == [1, 2, 3]"),
        ("def f(x, *, y=1, **z):\n    return x + y + sum(z.values())\n", "assert f(1, y=2, a=3) == 6 and f(x=1) == 2"),
        (
            "def f(x):\n    raise KeyError('gone')\n",
            "try:\n    f(1)\nexcept KeyError as e:\n    assert 'gone' in str(e)\nelse:\n    assert 0",
        ),
        ("LIMIT = 7\ndef f(x):\n    return x\n", "assert f(1) == 1 and LIMIT == 7"),
        ("def g(x):\n    return x + 1\ndef f(x):\n    return g(g(x))\n", "assert f(1) == 3 and g(1) == 2"),
        ("count = 0\ndef f():\n    global count\n    count += 1\n    return count\n", "assert [f(), f()] == [1, 2]"),
        (
            "import math\nfrom typing import List\ndef f(x: List[int]) -> int:\n    return math.prod(x)\n",
            "assert f([2, 3]) == 6",
        ),
        ("def f(n):\n    return list(range(n))\n", "assert f(100000) == list(range(100000))"),
    ],
)
def test_plain_data_is_exchanged(strict: CodeExecutor, candidate: str, test: str) -> None:
    result = run_one(strict, candidate, test)
    assert result.status == "passed", result


def test_facts_describe_the_candidates_exception(strict: CodeExecutor) -> None:
    result = run_one(strict, "def solve(x):\n    raise LookupError('why')\n", TEST)
    assert (result.status, result.error_type, result.message) == ("failed", "LookupError", "why")
    result = run_one(strict, "def solve(x):\n    return undefined\n", TEST)
    assert (result.error_type, result.missing) == ("NameError", "undefined")
    result = run_one(strict, "def solve(x):\n    return 0\n", TEST)
    assert (result.error_type, result.stage, result.origin) == ("AssertionError", "test", "test")
    result = run_one(strict, "def solve(x:\n", TEST)
    assert (result.error_type, result.stage, result.origin) == ("SyntaxError", "compile", "candidate")


def test_custom_exceptions_keep_their_name(strict: CodeExecutor) -> None:
    result = run_one(strict, "class Odd(Exception): pass\ndef solve(x):\n    raise Odd('x')\n", TEST)
    assert (result.status, result.error_type) == ("failed", "Odd")
