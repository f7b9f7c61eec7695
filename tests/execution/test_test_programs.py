"""Test programs run as main programs, followed by the tests that they define for a test runner."""

import re
import time
from collections.abc import Iterable, Iterator

import pytest

from tests.execution.machine_state import linux_only
from trl_akd.execution import CodeExecutor
from trl_akd.execution.test_cases import run_cases
from trl_akd.execution.test_discovery import discover_tests

pytestmark = linux_only

RIGHT = "def solve(x):\n    return 2 * x\n"
WRONG = "def solve(x):\n    return None\n"
# A correct program with failing tests of its own, and errors if it runs as the main program.
WITH_OWN_TESTS = (
    f"{RIGHT}import unittest\nclass TestOwn(unittest.TestCase):\n    def test_own(self):\n        assert False\n"
    "def test_own():\n    assert False\ndef load_tests(*_):\n    raise OSError\n"
    "if __name__ == '__main__':\n    1 / 0\n"
)
CASE = "class T(unittest.TestCase):\n    def test_it(self):\n        self.assertEqual(solve(2), 4)\n"

PROGRAMS = {
    "guard": "if __name__ == '__main__':\n    assert solve(2) == 4\n",
    "guarded main": "def main():\n    assert solve(2) == 4\nif __name__ == '__main__':\n    main()\n",
    "exit status of main": "import sys\ndef main():\n    assert solve(2) == 4\nif __name__ == '__main__':\n"
    "    sys.exit(main())\n",
    "exit status of a comparison": "from sys import exit as leave\nleave(0 if solve(2) == 4 else 1)\n",
    "raised exit": "assert solve(2) == 4\nraise SystemExit\n",
    "built-in exit": "if solve(2) != 4:\n    exit(3)\nexit()\n",
    "unittest.main": f"import unittest\n{CASE}unittest.main()\n",
    "guarded unittest.main": f"import unittest as u, unittest\n{CASE}if __name__ == '__main__':\n    u.main()\n",
    "unittest.main without exit": f"import unittest\n{CASE}unittest.main(argv=[''], exit=False)\n",
    "a runner's result that nobody looks at": f"import unittest\n{CASE}"
    "unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T))\n",
    "TestCase": f"import unittest\n{CASE}",
    "TestCase with set-up": "from unittest import TestCase\nclass TestIt(TestCase):\n    def setUp(self):\n"
    "        self.x = 2\n    def test_it(self):\n        with self.subTest(1): assert solve(self.x) == 4\n",
    "asynchronous TestCase": "import unittest\nclass T(unittest.IsolatedAsyncioTestCase):\n"
    "    async def test_it(self):\n        assert solve(2) == 4\n",
    "a TestCase that fails of itself": "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n"
    "        class Inner(unittest.TestCase):\n            def test_inner(self):\n                assert False\n"
    "        found = unittest.TestResult()\n        Inner('test_inner').run(found)\n"
    "        assert len(found.failures) == 1 and solve(2) == 4\n",
    "test function": "def test_it():\n    assert solve(2) == 4\n",
    "test function with defaults": "def test_it(x=2):\n    assert solve(x) == 4\n",
    "asynchronous test function": "async def test_it():\n    assert solve(2) == 4\n",
    "test class": "class TestIt(object):\n    def test_it(self):\n        assert solve(2) == 4\n",
    "test function called once": "calls = []\ndef test_it():\n    calls.append(1)\n"
    "    assert solve(2) == 4 and len(calls) == 1\nif __name__ == '__main__':\n    test_it()\n",
    "test functions looked up": "calls = []\ndef test_it():\n    calls.append(1)\n"
    "    assert solve(2) == 4 and len(calls) == 1\n"
    "for name, value in list(globals().items()):\n    if name.startswith('test_i'):\n        value()\n",
}

FORGERIES = {
    "exit": "import os\ndef solve(x): os._exit(0)\n",
    "sys.exit": "import sys\ndef solve(x): sys.exit(0)\n",
    "sys.exit itself": "import sys, functools\nsolve = functools.partial(sys.exit, 0)\n",
    "SystemExit": "def solve(x): raise SystemExit\n",
    "skipped": "import unittest\ndef solve(x): raise unittest.SkipTest\n",
    "no tests": "def load_tests(loader, tests, pattern):\n    return loader.suiteClass()\n",
    "skipped module": "import unittest\ndef setUpModule(): raise unittest.SkipTest\n",
    "interrupted": "def solve(x): raise KeyboardInterrupt\n",
    "runs the tests": "import unittest\ndef solve(x): unittest.main(argv=[''])\n",
    "false unittest": "import sys, types\nfalse = types.ModuleType('unittest')\nfalse.TestCase = object\n"
    "false.main = lambda *a, **k: None\nsys.modules['unittest'] = false\n",
    "not main": "__name__ = 'imported'\nimport sys\nsys.modules['__main__'] = sys\n",
    "main": "import sys\nif __name__ == '__main__': sys.exit(0)\n",
}


@pytest.fixture(params=[False, True], ids=["shared", "strict"])
def by_mode(level: str, request: pytest.FixtureRequest) -> Iterator[CodeExecutor]:
    with CodeExecutor(2, 10.0, isolation=level, strict=request.param, allow_code_execution=True) as executor:
        yield executor


def test_all_tests_count(by_mode: CodeExecutor) -> None:
    candidates = (RIGHT, WITH_OWN_TESTS, WRONG)
    results = iter(by_mode.run([(candidate, test) for test in PROGRAMS.values() for candidate in candidates]))
    found = {name: [next(results) for _ in candidates] for name in PROGRAMS}
    misjudged = {
        name: three
        for name, three in found.items()
        if [result.status for result in three] != ["passed", "passed", "failed"] or three[2].origin != "test"
    }
    assert not misjudged
    assert {name for name, three in found.items() if three[2].error_type != "AssertionError"} == {
        "exit status of a comparison",
        "built-in exit",
    }
    assert found["guarded unittest.main"][2].line == 4


def assert_no_pass(executor: CodeExecutor, names: Iterable[str]) -> None:
    pairs = {
        (way, name): (attack if "solve" in attack else WRONG + attack, PROGRAMS[name])
        for way, attack in FORGERIES.items()
        for name in names
    }
    results = dict(zip(pairs, executor.run(list(pairs.values())), strict=True))
    assert not {pair: result for pair, result in results.items() if result.status != "failed"}


def test_no_test_is_forged(by_mode: CodeExecutor) -> None:
    assert_no_pass(by_mode, ["exit status of a comparison", "unittest.main", "TestCase", "test function"])


@pytest.mark.slow
def test_no_test_of_any_kind_is_forged(by_mode: CodeExecutor) -> None:
    assert_no_pass(by_mode, PROGRAMS)


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ("def test_it(x):\n    assert solve(x) == 4", r"test_it in the test takes x, which only pytest can supply"),
        ("def test_it(*, x, y=1):\n    assert solve(x) == 4", "test_it in the test takes x, "),
        ("class TestIt:\n    def test_it(self, x):\n        assert solve(x)", "test_it in the test takes x, "),
        (
            "class TestIt:\n    def setup_method(self): 0\n    def test_it(self): assert 0",
            "setup_method in the test",
        ),
        ("def setup_function(): pass\ndef test_it(): assert solve(2) == 4", "setup_function in the test"),
        ("import pytest\n@pytest.mark.skip\ndef test_it(): assert 0", "test_it in the test has a pytest mark"),
        ("import unittest\nunittest.main()", "calls unittest.main.. and defines no TestCase"),
        ("from unittest import main as run\ndef f(): pass\nrun()", "calls unittest.main.. and defines no TestCase"),
        ("import pytest\nassert solve(2) == 4\npytest.main()", "calls pytest.main.. and defines no test function"),
        ("import pytest\nassert solve(2) == 4", "imports pytest, which packages does not name; add it and"),
        (
            "import os, pytest as p\ndef test_it(): assert solve(2) == 4",
            "imports pytest, which packages does not name",
        ),
        ("from pytest import raises\nassert solve(2) == 4", "imports pytest, which packages"),
        (
            "METADATA = {\n    'author': 'jt'\n}\n\n\ndef check(candidate):\n    assert candidate(2)\n",
            r"the test defines check and calls nothing, .* entry_point",
        ),
        (
            '"""Tests."""\nfrom math import inf\nasync def check(f):\n    assert f(2) == 4  # twice',
            "defines check and",
        ),
        ("class Checker:\n    def check(self):\n        assert solve(2) == 4", "defines Checker and calls nothing"),
        ("def main():\n    test_it()\ndef test_it():\n    assert solve(2) == 4", "defines main and calls nothing"),
    ],
)
def test_unrunnable_tests_are_infra_errors(test: str, reason: str) -> None:
    with CodeExecutor(1, allow_code_execution=True) as executor:
        unknown, right = executor.run([(RIGHT, test), (RIGHT, "assert solve(2) == 4")])
    assert unknown.status == "infra_error" and right.passed
    assert re.search(reason, unknown.message)


def test_pytest_is_required_only_for_unconditional_imports() -> None:
    optional = "try:\n    import pytest\nexcept ImportError:\n    pass\ndef test_it():\n    assert solve(2) == 4\n"
    with CodeExecutor(1, allow_code_execution=True) as executor:
        right, wrong = executor.run([(RIGHT, optional), (WRONG, optional)])
    assert right.passed and wrong.status == "failed"
    case = next(run_cases(RIGHT, "import pytest", packages={"pytest"}, strict=False, fail_fast=False))
    assert case.text == "import pytest"


@pytest.mark.parametrize(
    "test",
    [
        "",
        "# nothing",
        "import math",
        "METADATA = {}",
        "def check(f):\n    assert f(2) == 4\ncheck(solve)",
        "def check(f):\n    assert f(2) == 4\ncheck(\n    solve\n)",
        "def check(f):\n    assert f(2) == 4\nif True:\n    check(solve)",
        "def check(f):\n    assert f(2) == 4\nchecked = check(solve)",
        "def check(f):\n    assert f(2) == 4\nchecked = [check(f) for f in [solve]]",
        "def check(f):\n    assert f(2) == 4\n@check\ndef wrapped(x): return solve(x)",
        "def f(): pass\nx = solve",
        "class T:\n    assert solve(2) == 4",
        "from math import inf\nclass T(Base):\n    def test(self): pass",
        "def f(): pass\ndef test_it():\n    assert solve(2) == 4",
        "try:\n    def f(): pass\nfinally:\n    solve(2)",
        "def f(:",
    ],
)
def test_tests_that_may_test_something_run(test: str) -> None:
    assert discover_tests(test).unrunnable is None


@pytest.mark.parametrize("line", ["\n", " \n", "\n\r", "def ", "class", "x\n", "'\n", "#\n"], ids=repr)
def test_long_tests_cost_the_caller_little(line: str) -> None:
    start = time.process_time()
    discover_tests(line * 30_000)
    discover_tests(line * 30_000 + "\nassert solve(2) == 4")
    assert time.process_time() - start < 10.0  # once 60 s


@pytest.mark.parametrize(
    ("test", "functions"),
    [
        ("assert f() == 1", ()),
        ("def check(f):\n    assert f()\ncheck(f)", ()),
        ("try:\n    def test_a(): pass\nexcept ValueError:\n    def test_b(): pass", ("test_a", "test_b")),
        ("def test_a(): pass\ndef test_a(): pass", ("test_a",)),
        ("def outer():\n    def test_a(): pass\n    test_a()\nouter()", ()),
        ("for test in [test_a]:\n    test()\ndef test_a(): pass", ()),
        ("class TestData:\n    pass", ()),
        ("def test_a(:", ()),
        ("def test_a(): pass\n" + "(" * 5000, ()),
    ],
)
def test_discovered_functions(test: str, functions: tuple[str, ...]) -> None:
    assert discover_tests(test).functions == functions


_FAMILY = (
    "import unittest\nclass Base(unittest.TestCase):\n    function = None\n    def test_it(self):\n"
    "        self.assertEqual(self.function(2), 4)\nclass Derived(Base):\n    function = staticmethod(solve)\n"
)
_TWO = (
    "import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        pass\n    def test_b(self):\n"
    "        self.assertEqual(solve(2), 4)\nif __name__ == '__main__':\n    unittest.main()\n"
)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "test",
    [
        pytest.param(
            f"{_FAMILY}unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(Derived))\n",
            id="a suite without the base",
        ),
        pytest.param(
            f"{_FAMILY}def load_tests(loader, tests, pattern):\n    return loader.loadTestsFromTestCase(Derived)\n"
            "unittest.main()\n",
            id="load_tests",
        ),
        pytest.param(
            "def test_it():\n    assert solve(2) == 4\nif __name__ == '__main__':\n    import pytest\n"
            "    pytest.main([__file__])\n",
            id="pytest under the main guard alone",
        ),
        pytest.param(
            "def test_helper(value):\n    return value\nassert solve(2) == 4\n", id="a helper named like a test"
        ),
    ],
)
def test_what_the_author_selects_is_run(test: str, strict: bool, level: str):
    with CodeExecutor(1, isolation=level, strict=strict, allow_code_execution=True) as executor:
        right, wrong = executor.run([(RIGHT, test), (WRONG, test)])
    assert (right.status, wrong.status) == ("passed", "failed"), (right, wrong)


@pytest.mark.parametrize("arguments", [["x", "T.test_a"], ["x", "-k", "nothing"], ["x", "--help"]])
def test_arguments_that_a_candidate_sets_select_nothing(arguments: list[str], level: str):
    with CodeExecutor(1, isolation=level, allow_code_execution=True) as executor:
        [result] = executor.run([(f"import sys\nsys.argv = {arguments}\n{WRONG}", _TWO)])
    assert result.status == "failed"
