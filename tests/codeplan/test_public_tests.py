"""Public test programs split into cases, whose fractions are consistent with the whole program."""

import gzip
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.codeplan.scripted import data
from trl_akd.codeplan.public_tests import pass_fractions, split_tests
from trl_akd.evaluation.formats import read_problem
from trl_akd.execution import CodeExecutor, ExecutionResult

CHECK = """METADATA = {"author": "x"}

def helper(x):
    return x

def check(candidate):
    assert True, "prints if it fails"
    limit = helper(2)
    assert candidate(1) == limit
    for x in range(3):
        assert candidate(x) == 2 * x
    assert candidate(-1) == -2, "negative"

check(double)
"""


@pytest.fixture(scope="module")
def executor():
    with CodeExecutor(allow_code_execution=True) as running:
        yield running


@pytest.mark.parametrize(
    ("test", "cases"),
    [
        ("assert f(1) == 1", 1),
        ("assert f(1) == 1\nassert f(2) == 2\nassert f(3) == 3", 3),
        ("import math\nx = 3\nassert f(x) == 3\nx = 4\nassert f(x) == 4", 2),
        ("assert f(1); assert f(2)", 2),
        ("for x in range(3):\n    assert f(x)\nassert f(7)", 4),
        ("for x in range(300):\n    assert f(x)\nassert f(7)", 2),
        ("for x in inputs():\n    assert f(x)\nassert f(7)", 2),
        ("for x in [*inputs()]:\n    assert f(x)\nassert f(7)", 2),
        ("xs = [1, 2]\nxs.append(3)\nfor x in xs:\n    assert f(x)\nassert f(7)", 2),
        ("xs = [1, 2]\nxs = xs[1:]\nfor x in xs:\n    assert f(x)\nassert f(7)", 2),
        ("for x in [1, 2]:\n    assert f(x)\nelse:\n    assert f(3)", 1),
        ("while f(1):\n    assert f(2)\nassert f(7)", 2),
        ("def twice(x):\n    return 2 * x\nassert f(twice(1))\nassert f(twice(2))", 2),
        ("if True: assert f(1)\nassert f(2)", 2),
        ("if f(0):\n    assert f(1)\n    assert f(2)\nassert f(3)", 2),
        ("for k, v in {1: 2, **inputs()}.items():\n    assert f(k)\nassert f(7)", 2),
        ("for k in {'a', 'b'}:\n    assert f(k)\nassert f(7)", 2),
        ("def test_one():\n    assert f(1)\n    assert f(2)\ntest_one()\ntest_one()", 2),
        ("try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass\nassert f(1)", 2),
        ("try:\n    import numpy\nexcept ImportError:\n    raise\nassert f(1)\nassert f(2)", 2),
        (CHECK, 5),
        ("def check(g):\n    assert g(1)\n    assert g(2)\ncheck(f)\ncheck(h)", 2),
        ("def one():\n    assert f(1)\ndef two():\n    assert f(2)\n    assert f(3)\none()\ntwo()", 3),
        ("def one():\n    assert f(1)\n    assert f(2)", 1),
        (
            "def check(g):\n    def inner():\n        assert g(1)\n    inner()\n    assert g(2)\n    assert g(3)\n"
            "check(f)",
            2,
        ),
        ("assert True\nassert f(1)", 1),
        ("assert 1 ==", 1),
        ("", 1),
        ("import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(f(1), 1)", 1),
        ("x = " + "(" * 50 + "1" + ")" * 50 + "\nassert f(x)\nassert f(1)", 2),
    ],
)
def test_cases(test: str, cases: int):
    parts = split_tests(test)
    assert len(parts) == cases
    if cases == 1:
        assert parts == [test]
        return
    for part in parts:
        compile(part, "part", "exec")


def test_each_case_keeps_all_other_statements():
    first, *loop, last = split_tests(CHECK)
    for part in (first, *loop, last):
        assert "METADATA" in part and "limit = helper(2)" in part and part.endswith("check(double)")
    assert "candidate(1) == limit" in first and "range(3)" not in first and "negative" not in first
    for number, part in enumerate(loop):
        assert f"range(3))[{number}:{number + 1}]" in part and "limit\n" not in part.split("helper(2)")[1]
    assert "negative" in last


PROGRAMS = {
    "right": "def double(x):\n    return 2 * x",
    "positive": "def double(x):\n    return 2 * abs(x)",
    "constant": "def double(x):\n    return 2",
    "wrong": "def double(x):\n    return None",
    "broken": "def double(x:",
    "hangs": "def double(x):\n    while x < 0: pass\n    return 2 * x",
    "exits": "def double(x):\n    if x == 2: raise SystemExit(0)\n    return 2 * x",
    "other": "def triple(x):\n    return 3 * x",
}


def fractions(executor: CodeExecutor, test: Any, programs: list[str]) -> list[float | None]:
    return pass_fractions(programs, test, lambda pairs: executor.run(pairs, timeout=1.0))


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        (
            "assert double(1) == 2\nassert double(2) == 4\nassert double(-1) == -2",
            {
                "right": 1,
                "positive": 2 / 3,
                "constant": 1 / 3,
                "wrong": 0,
                "broken": 0,
                "hangs": 2 / 3,
                "exits": 2 / 3,
            },
        ),
        (CHECK, {"right": 1, "positive": 4 / 5, "constant": 2 / 5, "wrong": 0, "hangs": 4 / 5, "other": 0}),
        ({"inputs": ["1", "2"], "outputs": ["2", "4"]}, {"broken": 0}),
    ],
)
def test_fractions(executor: CodeExecutor, test: Any, expected: dict[str, float]):
    found = fractions(executor, test, [PROGRAMS[name] for name in expected])
    assert dict(zip(expected, found, strict=True)) == pytest.approx(expected)


FORMS = {
    "a loop over a list": "for a, b in [(1, 2), (2, 4), (-1, -2)]:\n    assert double(a) == b",
    "a loop over a variable": "rows = ((1, 2), (2, 4), (-1, -2))\nfor a, b in rows:\n    assert double(a) == b",
    "a loop over a range": "for a in range(-1, 2):\n    assert double(a) == 2 * a",
    "inputs and results": (
        "def assertion(out, exp):\n    assert out == exp\n"
        "def check(candidate):\n    inputs = [[1], [2], [-1]]\n    results = [2, 4, -2]\n"
        "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n        assertion(candidate(*inp), exp)\n"
        "check(double)"
    ),
    "a helper": "def eq(x, y):\n    assert x == y\neq(double(1), 2)\neq(double(2), 4)\neq(double(-1), -2)",
    "a helper in a function": (
        "def eq(x, y):\n    assert x == y\n"
        "def check(f):\n    eq(f(1), 2)\n    eq(f(2), 4)\n    eq(f(-1), -2)\ncheck(double)"
    ),
    "functions of a function": (
        "def one():\n    assert double(1) == 2\n"
        "def two():\n    assert double(2) == 4\n    assert double(-1) == -2\n"
        "def main():\n    one()\n    two()\nmain()"
    ),
    "async": (
        "import asyncio\n"
        "async def more():\n    assert double(-1) == -2\n"
        "async def main():\n    assert double(1) == 2\n    assert double(2) == 4\n    await more()\n"
        "asyncio.run(main())"
    ),
    "an error that is caught": (
        "assert double(1) == 2\nassert double(2) == 4\n"
        "try:\n    result = double(-1)\nexcept TypeError:\n    assert False\nelse:\n    assert result == -2"
    ),
    "a sum that is read later": (
        "total = 0\nfor a in (1, 2):\n    total += double(a)\n    assert double(a) == 2 * a\n"
        "assert total == 6\nassert double(-1) == -2"
    ),
    "a list that is read later": (
        "seen = []\nwith open(__import__('os').devnull) as file:\n    seen.append(double(1))\n    assert seen == [2]\n"
        "assert seen[0] == 2\nassert double(-1) == -2"
    ),
    "a loop over a dict": "for a, b in {1: 2, 2: 4, -1: -2}.items():\n    assert double(a) == b",
    "a loop over the keys of a variable": "d = {1: 0, 2: 0, -1: 0}\nfor a in d.keys():\n    assert double(a) == 2 * a",
    "test functions": (
        "def test_one():\n    assert double(1) == 2\n"
        "def test_more():\n    assert double(2) == 4\n    assert double(-1) == -2"
    ),
    "a test class": (
        "class TestDouble:\n    def test_one(self):\n        assert double(1) == 2\n"
        "    def test_more(self):\n        assert double(2) == 4\n        assert double(-1) == -2"
    ),
    "unittest": (
        "import unittest\nclass Doubles(unittest.TestCase):\n"
        "    def setUp(self):\n        self.one = 1\n"
        "    def test_one(self):\n        self.assertEqual(double(self.one), 2)\n"
        "    def test_more(self):\n        for a in (2, -1):\n            self.assertEqual(double(a), 2 * a)\n"
        "if __name__ == '__main__':\n    unittest.main()"
    ),
    "an error that unittest expects": (
        "from unittest import TestCase\nclass Doubles(TestCase):\n"
        "    def test(self):\n        self.assertEqual(double(1), 2)\n        self.assertEqual(double(-1), -2)\n"
        "        with self.assertRaises(ZeroDivisionError):\n            1 // (double(2) - 4)"
    ),
    "the main block": (
        "if __name__ == '__main__':\n    assert double(1) == 2\n    assert double(2) == 4\n    assert double(-1) == -2"
    ),
    "a function of the main block": (
        "def main():\n    assert double(1) == 2\n    assert double(2) == 4\n    assert double(-1) == -2\n"
        "if __name__ == '__main__':\n    main()"
    ),
    "an if that is always true": (
        "if True:\n    assert double(1) == 2\n    assert double(2) == 4\nassert double(-1) == -2"
    ),
    "assertions that set a name": (
        "assert (a := double(1)) == 2\nassert (b := double(a)) == 4\nassert double(b - 5) == -2 and b == 4"
    ),
    "loops that share a name": (
        "for a in [1]:\n    out = double(a)\n    assert out == 2\n"
        "for a in [2, -1]:\n    out = double(a)\n    assert out == 2 * a"
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_two_of_three_cases_in_any_form(executor: CodeExecutor, form: str):
    found = fractions(executor, FORMS[form], [PROGRAMS["right"], PROGRAMS["positive"], PROGRAMS["wrong"]])
    assert found == pytest.approx([1, 2 / 3, 0])


def test_cases_that_depend_on_one_another(executor: CodeExecutor):
    """Cases that fail together but pass separately do not all count."""
    counting = "calls = 0\ndef double(x):\n    global calls\n    calls += 1\n    return 2 * x if calls == 1 else 0"
    test = "assert double(1) == 2\nassert double(2) == 4\nassert double(3) == 6"
    assert fractions(executor, test, [counting]) == pytest.approx([2 / 3])


class Table:
    """Mock execution by a table of the assertions that hold for each program."""

    def __init__(self, holds: dict[str, list[bool]]) -> None:
        self.holds = holds

    def __call__(self, pairs):
        results = []
        for program, test in pairs:
            passed = all(self.holds[program][int(number)] for number in re.findall(r"ok\((\d+)\)", test))
            results.append(ExecutionResult("passed" if passed else "failed", tests_passed=int(passed), tests_total=1))
        return results


@settings(max_examples=100)
@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=4)
    )
)
def test_fraction_is_one_if_and_only_if_the_test_program_passes(holds: list[list[bool]]):
    test = "\n".join(f"assert ok({number})" for number in range(len(holds[0])))
    programs = [f"program {number}" for number in range(len(holds))]
    run = Table(dict(zip(programs, holds, strict=True)))
    found = pass_fractions(programs, test, run)
    for fraction, held in zip(found, holds, strict=True):
        assert (fraction == 1.0) == all(held)
        assert fraction == pytest.approx(sum(held) / len(held))


def test_programs_that_could_not_be_run():
    def broken(pairs):
        return [ExecutionResult("infra_error", tests_passed=0, tests_total=1) for _ in pairs]

    assert pass_fractions(["a", "b"], "assert f(1)\nassert f(2)", broken) == [None, None]


def test_many_cases_are_split_in_little_time():
    """Parsing the test again for each case would take minutes."""
    asserts = [f"assert f({number}) == {number}" for number in range(2000)]
    assert split_tests("\n".join(asserts)) == asserts


def test_real_tests_split_and_their_solutions_pass_every_case(executor: CodeExecutor):
    """The reference solutions of HumanEval and MBPP pass each case separately, so cases are complete."""
    rows = [json.loads(line) for line in gzip.open(data("humaneval/HumanEval.jsonl.gz"), "rt")][::8]
    mbpp = [json.loads(line) for line in data("mbpp/mbpp.jsonl").open()][10:500:25]
    pairs, split = [], 0
    for row in [*rows, *mbpp]:
        problem = read_problem(row, "row")
        program = row["code"] if "code" in row else row["prompt"] + row["canonical_solution"]
        cases = split_tests(problem.tests)
        split += len(cases) > 1
        pairs += [(program, case) for case in cases]
    assert split >= 0.9 * (len(rows) + len(mbpp))
    results = executor.run(pairs, timeout=10.0)
    assert [pair for pair, result in zip(pairs, results, strict=True) if not result.passed] == []
