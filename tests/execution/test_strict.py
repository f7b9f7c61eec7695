"""Strict mode: programs whose functions take and return plain data have the same verdicts."""

from collections.abc import Iterator

import pytest

from tests.execution.machine_state import linux_only
from trl_akd.execution import CodeExecutor, ExecutionResult

pytestmark = linux_only


@pytest.fixture(scope="module")
def strict(level: str) -> Iterator[CodeExecutor]:
    with CodeExecutor(1, timeout=10, isolation=level, strict=True, allow_code_execution=True) as executor:
        yield executor


def run_one(strict: CodeExecutor, candidate: str, test: str) -> ExecutionResult:
    [result] = strict.run([(candidate, test)])
    assert result.strict
    return result


PLAIN = [
    "None",
    "True",
    "-1",
    "10**5000",
    "0.1",
    "float('inf')",
    "1+2j",
    "'ä\\ud800\\0'",
    "b'\\xff'",
    "bytearray(b'x')",
    "[1, [2, ()]]",
    "(1, (2,), [])",
    "{1, 'a', (2, 3)}",
    "frozenset({frozenset()})",
    "{(1, 2): {'a': None}, None: [], 1.5: b''}",
    "{'tuple': [1], 'dict': []}",
    "[Decimal('-0.10'), Decimal('1e999999'), Decimal('Infinity')]",
    "{Fraction(-1, 3): Fraction(2 ** 70)}",
]


@pytest.mark.parametrize("value", PLAIN)
def test_plain_data_is_passed_both_ways(strict: CodeExecutor, value: str) -> None:
    numbers = "from decimal import Decimal\nfrom fractions import Fraction\n"
    test = f"{numbers}value = {value}\ngot = same(value)\nassert got == value == CONSTANT and type(got) is type(value)"
    result = run_one(strict, f"{numbers}CONSTANT = {value}\ndef same(x): return x", test)
    assert result.passed, result


@pytest.mark.parametrize(
    ("candidate", "test"),
    [
        ("def f(a, *, b=1): return a + b", "assert f(1) == 2 and f(a=1, b=3) == 4 and f.__name__ == 'f'"),
        ("def f(x): x.append(1)", "x = []\nf(x)\nf(x)\nassert x == [1, 1]"),
        (
            "def f(x): x[0][0].clear()",
            "inner = [5]\nx = [[inner]]\nf(x)\nassert x == [[[]]] and x[0][0] is inner == []",
        ),
        ("def f(d): d['b'] = d.pop('a')", "d = {'a': 1}\nf(d)\nassert d == {'b': 1}"),
        ("def f(s): s.add(2)", "s = {1}\nf(s)\nassert s == {1, 2}"),
        ("def f(x): del x[1:]", "x = [1, 2, 3]\nf(x)\nassert x == [1]"),
        ("import math\ndef f(): return 1", "assert math.isclose(f(), 1)"),
        ("from collections import Counter\ndef f(s): return Counter(s)", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("def _g(x): return x\ndef f(x): return _g(x)", "assert f(1) == 1"),
        ("def sum(a, b): return a + b", "assert sum(1, 2) == 3"),
        ("state = []\ndef f():\n    state.append(1)\n    return len(state)", "assert [f(), f(), f()] == [1, 2, 3]"),
        ("f = lambda x: x * 2", "assert list(map(f, [1, 2])) == [2, 4]"),
        ("import functools\n@functools.cache\ndef f(n): return n", "assert f(3) == 3"),
        ("async def f(): return 1\nimport asyncio\ndef g(): return asyncio.run(f())", "assert g() == 1"),
        (
            "import threading\ndef f():\n    t = threading.Thread(target=int)\n    t.start()\n    t.join()",
            "f()",
        ),
        ("def f(): print('x')", "f()"),
    ],
)
def test_correct_program(strict: CodeExecutor, candidate: str, test: str) -> None:
    result = run_one(strict, candidate, test)
    assert result.passed, result


@pytest.mark.parametrize(
    ("error", "caught"),
    [
        ("ValueError('no')", "ValueError"),
        ("KeyError('k')", "KeyError"),
        ("UnicodeDecodeError('utf-8', b'', 0, 1, 'x')", "ValueError"),
        ("type('Own', (Exception,), {})('no')", "RuntimeError"),
        ("StopIteration()", "StopIteration"),
    ],
)
def test_exceptions_are_passed(strict: CodeExecutor, error: str, caught: str) -> None:
    test = f"try: f()\nexcept {caught} as error: assert type(error).__name__ in {error!r}\nelse: raise AssertionError"
    result = run_one(strict, f"def f():\n    raise {error}", test)
    assert result.passed, result


def test_errors_keep_their_position(strict: CodeExecutor) -> None:
    result = run_one(strict, "def f(n):\n    if n: raise IndexError('far')\n    return n", "f(0)\nf(1)")
    assert (result.error_type, result.message, result.origin, result.line) == ("IndexError", "far", "candidate", 2)
    assert result.raised and result.stage == "test"
    result = run_one(strict, "x = {}\nx['k']", "")
    assert (result.error_type, result.missing, result.stage, result.line) == ("KeyError", "'k'", "load", 2)
    result = run_one(strict, "x = (", "")
    assert (result.error_type, result.stage, result.origin) == ("SyntaxError", "compile", "candidate")
    result = run_one(strict, "x = 1", "assert x == 2")
    assert (result.error_type, result.stage, result.origin) == ("AssertionError", "test", "test")


@pytest.mark.parametrize(
    ("candidate", "test", "message"),
    [
        ("def f(): return object()", "f()", "f returned or changed a value of type 'object'"),
        ("def f(): return (x for x in ())", "f()", "type 'generator'"),
        ("def f(g): return g()", "f(lambda: 1)", "type 'function'"),
        ("class A: pass", "A()", "A is a class"),
    ],
)
def test_unsupported_values_raise(strict: CodeExecutor, candidate: str, test: str, message: str) -> None:
    result = run_one(strict, candidate, test)
    assert (result.status, result.error_type) == ("failed", "TypeError")
    assert message in result.message


@pytest.mark.parametrize(
    ("body", "ending", "number"),
    [
        ("os._exit(0)", "exit", 0),
        ("os._exit(7)", "exit", 7),
        ("os.kill(os.getpid(), 9)", "signal", 9),
        ("os.abort()", "signal", 6),
    ],
)
def test_exit_of_the_candidate_ends_the_test(strict: CodeExecutor, body: str, ending: str, number: int) -> None:
    test = "try: f()\nexcept BaseException: pass\n"
    result = run_one(strict, f"import os\ndef f(): {body}", test)
    assert (result.status, result.ending) == ("failed", ending), result
    assert number == (result.exit_code if ending == "exit" else result.signal)
