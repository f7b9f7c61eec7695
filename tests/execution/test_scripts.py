"""Scripts and calls as in APPS, and the comparison of outputs."""

import json
import resource
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.execution.conftest import RunOne
from tests.execution.machine_state import DATA, linux_only
from trl_akd.execution import CodeExecutor
from trl_akd.execution.test_cases import _HARNESSES, same_output

pytestmark = linux_only

APPS = sorted((DATA / "apps").glob("*/*/solutions.json"))
ADD = "a, b = map(int, input().split())\nprint(a + b)\n"


def cases(*pairs: tuple[Any, Any], **more: Any) -> dict[str, Any]:
    return {"inputs": [given for given, _ in pairs], "outputs": [wanted for _, wanted in pairs], **more}


@pytest.mark.parametrize(
    ("printed", "wanted", "same"),
    [
        ("1\n2\n", "1\n2", True),
        ("1 \n2\t\n\n\n", "1\n2\n", True),
        ("1  2", "1 2", True),
        ("1\n2", "1 2", False),
        ("\n1", "1", True),
        ("1\r\n2\r\n", "1\n2\n", True),
        ("0.1000001", "0.1", True),
        ("1e3", "1000.0", True),
        ("1000000000.0", "1000000001.0", True),
        ("1000000000", "1000000001", False),
        ("+5 3.0", "5 3", True),
        ("0.101", "0.1", False),
        ("2", "1", False),
        ("2\n1", "1\n2", False),
        ("1 2 3", "1 2", False),
        ("", "0", False),
        ("YES", "yes", False),
        ("nan", "1", False),
        ("inf", "1e308", False),
        ("1" * 10_000, "1" * 9_999 + "2", False),
        ("", "", True),
    ],
)
def test_same_output(printed: str, wanted: str, same: bool) -> None:
    assert same_output(printed, wanted) is same


@pytest.mark.parametrize("printed", ["1\n", "12 ", "ab\n", "\n", "1e5 ", "1"], ids=repr)
@pytest.mark.parametrize("compare", [_HARNESSES[name].same_output for name in ("apps", "livecodebench")])
def test_long_outputs_cost_the_caller_little(printed: str, compare: Callable[[str, str], bool]) -> None:
    text = printed * ((8 << 20) // len(printed))
    tracemalloc.start()
    try:
        assert not compare(text, "5\n6")
        assert tracemalloc.get_traced_memory()[1] < 80 << 20  # of 1.6 GB if all lines and words are split
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encode", [json.dumps, repr, lambda tests: f"\n{json.dumps(tests, indent=2)}\n"])
def test_inputs_and_outputs_may_be_text(run_one: RunOne, encode: Callable[[Any], str]) -> None:
    text = encode(cases(("1 2\n", "3\n"), ("3 4", "7")))
    assert (run_one(ADD, text).status, run_one(ADD, text).tests_total) == ("passed", 2)
    assert not run_one("print(3)", text).passed
    assert not run_one("def f(a): return 'x'", encode(cases(([2], 4), fn_name="f"))).passed


@pytest.mark.parametrize(
    "tests", ['["assert f(2) == 4"]', "[]", "{}", "{'f(2)': 4}", '{"inputs": ["1"], "outputs": []}']
)
def test_text_without_a_program_is_no_test(run_one: RunOne, tests: str) -> None:
    with pytest.raises((TypeError, ValueError), match=r"programs\[0\] has"):
        run_one("def f(x): return x", tests)


@pytest.mark.parametrize(
    "tests", ["[print(x) for x in [1]]\nassert f(2) == 4", "{} == 1\nassert f(2) == 4", "[f(2) / 0]"]
)
def test_programs_may_begin_like_json(run_one: RunOne, tests: str) -> None:
    assert not run_one("def f(x): return x", tests).passed


def test_a_literal_that_is_not_json_is_no_test(run_one: RunOne) -> None:
    with pytest.raises(ValueError, match="has values that JSON lacks"):
        run_one("def f(x): return x", "{'inputs': [[1]], 'outputs': [{1, 2}], 'fn_name': 'f'}")


@pytest.mark.parametrize("limit", [1000, 20_000])
@pytest.mark.parametrize("tests", ["[" * 3000 + "]" * 3000, '{"a": ' * 3000 + "1" + "}" * 3000])
def test_deep_json_is_no_test(run_one: RunOne, tests: str, limit: int) -> None:
    before = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(limit)
        with pytest.raises((TypeError, ValueError), match=r"nested too deeply|test program|inputs"):
            run_one("def f(x): return x", tests)
    finally:
        sys.setrecursionlimit(before)


def test_script(run_one: RunOne) -> None:
    result = run_one(ADD, cases(("1 2\n", "3\n"), ("3 4", "7"), ("5 6", " 11 ")))
    assert (result.status, result.tests_passed, result.tests_total) == ("passed", 3, 3)


def test_a_return_at_the_top_level_ends_a_script(run_one: RunOne) -> None:
    script = (
        "n = int(input())\n"
        "def f(x):\n    return x + 1\n"
        "for i in range(3):\n    if n == i:\n        print(f(n))\n        return\n"
        "print('far')\nreturn 0\nprint('never')"
    )
    result = run_one(script, cases(("1", "2"), ("7", "far")))
    assert result.status == "passed"
    assert run_one("return (", cases(("1", "2"))).error_type == "SyntaxError"
    assert run_one("print(1)\nyield 2", cases(("1", "1"))).error_type == "SyntaxError"


def test_wrong_output(run_one: RunOne) -> None:
    tests = cases(("1 2", "3"), ("1 2", "4"), ("1 3", "4"))
    result = run_one(ADD, tests)
    assert (result.status, result.tests_passed, result.tests_total) == ("failed", 2, 3)
    assert (result.error_type, result.origin, result.ending) == ("AssertionError", "test", "exception")
    assert "case 2" in result.message and "'3" in result.message and "'4'" in result.message
    assert run_one(ADD, tests, fail_fast=True).tests_passed == 1


@pytest.mark.parametrize(
    "script",
    {
        "exit": "print(input())\nexit()\n1 / 0",
        "sys.exit(0)": "import sys\nprint(input())\nsys.exit(0)",
        "os._exit(0)": "import os\nprint(input(), flush=True)\nos._exit(0)",
        "main": "def main():\n    print(input())\nif __name__ == '__main__':\n    main()",
        "a buffer": "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.readline())",
        "open(0)": "print(open(0).read())",
        "raw": "import os\nos.write(1, os.read(0, 100))",
        "replaced": "import io, os, sys\nsys.stdin = io.StringIO(sys.stdin.read())\nprint(input())",
        "a thread": "import threading, time\ndef f():\n    time.sleep(0.1)\n    print(input())\n"
        "threading.Thread(target=f).start()",
        "at exit": "import atexit\natexit.register(lambda: print(input()))",
        "a child": "import subprocess\nsubprocess.run(['cat'])",
        "recursion": "import sys, threading\nsys.setrecursionlimit(10 ** 6)\nthreading.stack_size(2 ** 26)\n"
        "def f(n): return n and f(n - 1)\n"
        "t = threading.Thread(target=lambda: (f(20000), print(input())))\nt.start()\nt.join()",
    }.items(),
    ids=lambda item: item[0],
)
def test_kinds_of_scripts(run_one: RunOne, script: tuple[str, str]) -> None:
    result = run_one(script[1], cases(("some text\n", "some text\n")), timeout=20.0)
    assert result.passed, result


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_STACK)[1] != resource.RLIM_INFINITY, reason="this machine limits the stack"
)
@pytest.mark.parametrize("size", ["2 ** 26", "2 ** 28", "2 ** 29", "resource.RLIM_INFINITY"])
@pytest.mark.parametrize("hard", ["resource.RLIM_INFINITY", "resource.getrlimit(resource.RLIMIT_STACK)[1]"])
def test_a_script_may_raise_the_limit_on_its_stack(run_one: RunOne, size: str, hard: str) -> None:
    script = (
        f"import resource, sys\nresource.setrlimit(resource.RLIMIT_STACK, [{size}, {hard}])\n"
        "sys.setrecursionlimit(10 ** 6)\ndef f(n): return n and list(map(f, [n - 1]))[0]\n"
        "f(50_000)\nprint(input())\n"
    )
    assert run_one(script, cases(("x", "x")), timeout=20.0).passed


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("print(input(), input())", {"error_type": "EOFError", "origin": "candidate", "stage": "test"}),
        ("import sys\nprint(input())\nsys.exit(1)", {"error_type": "SystemExit", "exit_code": 1}),
        ("import os\nprint(input(), flush=True)\nos._exit(1)", {"ending": "exit", "exit_code": 1}),
        ("print(input())\n1 / 0", {"error_type": "ZeroDivisionError", "line": 2}),
        ("print(input()", {"error_type": "SyntaxError", "stage": "compile"}),
        ("pass", {"error_type": "AssertionError"}),
        ("print('some text', file=__import__('sys').stderr)", {"error_type": "AssertionError"}),
        ("while True: print('x' * 10 ** 6)", {"status": "failed"}),
    ],
)
def test_kinds_of_failures(run_one: RunOne, script: str, expected: dict[str, Any]) -> None:
    result = run_one(script, cases(("some text", "some text")), timeout=20.0)
    assert result.status == "failed" and result.tests_passed == 0
    assert {key: getattr(result, key) for key in expected} == expected


def test_deadline_per_input(run_one: RunOne) -> None:
    nap = "import time\ntime.sleep(float(input()))\nprint(1)"
    result = run_one(nap, cases(("0.3", "1"), ("0.3", "1"), ("9", "1"), ("0", "1")), timeout=0.8)
    assert (result.status, result.tests_passed, result.tests_total) == ("timed_out", 3, 4)


def test_line_ends_and_encodings(run_one: RunOne) -> None:
    result = run_one("print(input() + input())", cases((["ä", "€😀"], ["ä€😀"]), ("1\n2", ["12", ""])))
    assert result.tests_passed == 2, result


def test_large_inputs_and_outputs(run_one: RunOne) -> None:
    text = "0123456 " * (1 << 18)
    assert run_one("print(input())", cases((text, text)), timeout=20.0).passed


def test_inputs_are_isolated(run_one: RunOne) -> None:
    count = "import os\nprint(len([f for f in os.listdir('.') if f == 'seen']))\nopen('seen', 'w')"
    assert run_one(count, cases(("", "0"), ("", "0"), ("", "0"))).passed


@pytest.mark.parametrize(
    ("candidate", "tests"),
    [
        ("def f(a, b): return a + b", cases(([1, 2], 3), ([3, 4], [7]), fn_name="f")),
        ("def f(a): return a, a", cases(([1], [1, 1]), ([2], [[2, 2]]), fn_name="f")),
        ("class Solution:\n    def f(self, a): return {1: a}", cases(([["x"]], {"1": ["x"]}), fn_name="f")),
        ("print('x')\ndef f(a): return a[::-1]", cases((["ab"], "ba"), fn_name="f")),
        ("def f(n): return n ** 300", cases(([10**9], 10**2700), fn_name="f")),
        ("def f(n): return [n ** 3000]", cases(([10**9], [10**27000]), fn_name="f")),
        ("from decimal import Decimal\ndef f(n): return Decimal(n) / 2", cases(([8], 4), ([1], 0.5), fn_name="f")),
        ("from fractions import Fraction\ndef f(n): return [Fraction(n, 2)]", cases(([8], [4]), fn_name="f")),
    ],
)
def test_call(run_one: RunOne, candidate: str, tests: dict[str, Any]) -> None:
    result = run_one(candidate, tests)
    assert (result.status, result.tests_passed) == ("passed", len(tests["inputs"])), result


def forging(data: str) -> str:
    """Return a candidate that replaces the encoded answer by the bytes of an expression."""
    return f"import sys\ndef f(a):\n    sys._getframe(1).f_globals['plain_data'].encode = lambda value: {data}"


LIAR = "class Liar(int):\n    __eq__ = lambda *a: True\n    __hash__ = int.__hash__\ndef f(a): return Liar(a)"


@pytest.mark.parametrize(
    ("candidate", "error_type"),
    [
        ("def f(a): return a + 1", "AssertionError"),
        (LIAR, "AssertionError"),
        ("def f(a): return object()", "TypeError"),
        ("def f(a):\n    x = []\n    x.append(x)\n    return x", "TypeError"),
        ("def f(a): return a ** 20000", "AssertionError"),
        ("def f(a): return [a ** 20000]", "AssertionError"),
        ("from decimal import Decimal\ndef f(a): return Decimal('1e999999999')", "AssertionError"),
        (
            forging("b'{\"set\":[' + b','.join(b'{\"int\":\"%x\"}' % (i << 61) for i in range(90000)) + b']}'"),
            "AssertionError",
        ),
        (forging("b'[' + b'[],' * 5_000_000 + b'1]'"), "AssertionError"),
        (forging("b'{\"int\":5}'"), "AssertionError"),
        ("def g(a): return a", "NameError"),
        ("import os\ndef f(a):\n    os.write(5, b'3')\n    os._exit(0)", None),
    ],
)
def test_wrong_call(run_one: RunOne, candidate: str, error_type: str | None) -> None:
    result = run_one(candidate, cases(([2], 3 if candidate is LIAR else 2), fn_name="f"))
    assert (result.status, result.error_type) == ("failed", error_type), result


@pytest.mark.parametrize(
    ("candidate", "expected", "message"),
    [
        ("def f(a): return a + 1", 2, "returned 3, not 2"),
        ("def f(a): return a ** 20000", 2, "returned <integer of 20001 bits>, not 2"),
        ("def f(a): return a", 2**20000, "returned 2, not <integer of 20001 bits>"),
        ("def f(a): return {'a': (a, {a})}", [], "returned {'a': (2, {2})}, not []"),
    ],
    ids=range(4),
)
def test_wrong_call_is_shown(run_one: RunOne, candidate: str, expected: Any, message: str) -> None:
    assert message in run_one(candidate, cases(([2], expected), fn_name="f")).message


def test_an_expected_value_that_cannot_be_compared(executor: CodeExecutor) -> None:
    with pytest.raises(TypeError, match=r"has outputs\[1\] that cannot be compared .*'object'"):
        executor.run([("def f(a): return a", cases(([2], 2), ([3], object()), fn_name="f"))])


@pytest.mark.parametrize("path", APPS, ids=lambda path: f"{path.parts[-3]}-{path.parts[-2]}")
@pytest.mark.parametrize("level", ["namespace"], indirect=True)
def test_apps(executor: CodeExecutor, path: Path) -> None:
    tests = json.loads((path.parent / "input_output.json").read_text())
    few = {"inputs": tests["inputs"][:20], "outputs": tests["outputs"][:20]}
    solutions = json.loads(path.read_text())[:4]
    assert any(result.passed for result in executor.run([(text, few) for text in solutions], timeout=20.0))


def test_apps_is_available() -> None:
    if not APPS:
        pytest.skip("the optional ../shared/data/apps is absent")
    assert len(APPS) == 10
