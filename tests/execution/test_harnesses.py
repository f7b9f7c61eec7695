"""Verdicts on inputs and outputs compared with those of the harnesses of APPS and LiveCodeBench, reimplemented here.

The oracle runs programs in this process, as those harnesses do, and returns whether an output is `same`, `different`
or only `loose`: accepted only by the most lenient rules of APPS (lines and words in any order, numbers rounded to
three decimals), which the executor does not have.
"""

import builtins
import contextlib
import io
import itertools
import json
import math
import signal
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from trl_akd.execution import CodeExecutor
from trl_akd.metrics.taxonomy import classify

ROOT = Path(__file__).parents[2]
APPS = ROOT.parent / "shared" / "data" / "apps"
SECONDS = 1.0


class TooLateError(BaseException):
    """Limit the processor time of the oracle."""


@contextlib.contextmanager
def deadline():
    def stop(*_):
        raise TooLateError

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def names_of_apps() -> dict:
    """Return the names that APPS's harness imports before a program."""
    import collections
    import fractions
    import functools
    import heapq
    import random
    import time
    import typing

    found = {module.__name__: module for module in (sys, time, itertools, collections, math, fractions, random, heapq)}
    given = {
        itertools: "accumulate product permutations combinations",
        collections: "Counter OrderedDict deque defaultdict ChainMap",
        functools: "lru_cache",
        math: "sqrt sin cos tan ceil fabs floor gcd exp log log2",
        typing: "List Tuple",
        heapq: " ".join(heapq.__all__),
    }
    found |= {name: getattr(module, name) for module, names in given.items() for name in names.split()}
    return found | {"np": np, "__name__": "tmp_sol"}


def run_script(program: str, given: str) -> list[str]:
    """Return the lines that a script prints as the body of a function, as in APPS's harness."""
    body = [line if line.startswith(("import ", "from ")) else f"\t{line}" for line in program.split("\n")]
    start = next(i for i, line in enumerate(body) if line.startswith("\t"))
    rest = [line if line.startswith("\t") else f"\t{line}" for line in body[start:]]
    namespace = names_of_apps()
    exec("\n".join([*body[:start], "stdin = sys.stdin", "stdout = sys.stdout", "def code():", *rest]), namespace)
    printed, lines = io.StringIO(), iter(given.split("\n"))
    stdin = io.StringIO(given)
    stdin.readline, stdin.readlines, stdin.read = (
        lambda *_: next(lines),
        lambda *_: given.split("\n"),
        lambda *_: given,
    )
    with (
        contextlib.redirect_stdout(printed),
        mock.patch.object(builtins, "open", mock.mock_open(read_data=given)),
        mock.patch.object(sys, "stdin", stdin),
        contextlib.suppress(SystemExit),
    ):
        namespace["code"]()
    return printed.getvalue().splitlines()


def compare_script(printed: list[str], wanted: str) -> str:
    texts = {"\n".join(printed).strip(), "\n".join(line.strip() for line in printed).strip()}
    if wanted.strip() in texts:
        return "same"
    right = [line.strip() for line in wanted.split("\n") if line]
    left = [line for line in printed if line]
    if right in (left, printed):
        return "same"
    with contextlib.suppress(ValueError):
        numbers = [float(line) for line in left], [float(line) for line in right]
        if len(left) == len(right) and np.allclose(*numbers):
            close = np.allclose(*numbers, rtol=1e-6, atol=0) and not all(map(str.isdigit, left + right))
            return "same" if close else "loose"
    words = {frozenset(line.split()) for line in left if line.split()}, {frozenset(line.split()) for line in right}
    if words[0] == words[1]:
        return "loose"
    with contextlib.suppress(ValueError):
        rounded = [{frozenset(round(float(word), 3) for word in line) for line in side} for side in words]
        return "loose" if rounded[0] == rounded[1] else "different"
    return "different"


def compare_call(returned, wanted) -> bool:
    returned = list(returned) if isinstance(returned, tuple) else returned
    accepted = [wanted, *(wanted[:1] if isinstance(wanted, list) else [])]
    if any(returned == value for value in accepted):
        return True
    listed = isinstance(returned, list) and returned and isinstance(returned[0], tuple)
    return bool(listed and [list(item) for item in returned] == wanted[0])


def whole_keys(value):
    """Convert the keys of a dict back to integers, as APPS's harness does for a dict alone in its list."""
    with contextlib.suppress(ValueError, AttributeError, IndexError, TypeError, KeyError):
        if isinstance(value, dict):
            return [{int(key): item for key, item in value.items()}]
        return [{int(key): item for key, item in value[0].items()}]
    return value


def oracle(program: str, tests: dict) -> list[str]:
    found = []
    for given, wanted in zip(tests["inputs"], tests["outputs"], strict=True):
        try:
            with deadline():
                if "fn_name" in tests:
                    namespace = names_of_apps()
                    exec(program, namespace)
                    owner = namespace["Solution"]() if "class Solution" in program else None
                    function = getattr(owner, tests["fn_name"]) if owner else namespace[tests["fn_name"]]
                    same = compare_call(function(*whole_keys(json.loads(json.dumps(given)))), whole_keys(wanted))
                    found.append("same" if same else "different")
                else:
                    lines = ["\n".join(side) if isinstance(side, list) else side for side in (given, wanted)]
                    found.append(compare_script(run_script(program, lines[0]), lines[1]))
        except (Exception, TooLateError):
            found.append("different")
    return found


def mutants(program: str) -> list[str]:
    """Yield variants of a program with one changed operator, bound, digit or output."""
    changes = [
        ("<", ">"),
        (" + ", " - "),
        ("min(", "max("),
        ("//", "%"),
        ("1", "2"),
        ("print(", "print(end=' '); print("),
        ("print(", "print(0); print("),
        ("input()", "input().undefined"),
    ]
    return [program.replace(old, new, 1) for old, new in changes if old in program]


CALLS = {
    "class_with_list": (
        "class Solution:\n    def largest(self, numbers: List[int], k: int) -> List[int]:\n"
        "        return nlargest(k, numbers)",
        {"inputs": [[[3, 1, 2], 2], [[1], 1]], "outputs": [[[3, 2]], [[1]]], "fn_name": "largest"},
    ),
    "annotations_first": (
        '"""Count."""\nfrom __future__ import annotations\ndef count(text: str) -> Tuple[int, int]:\n'
        "    return len(Counter(text)), len(text)",
        {"inputs": [["aab"], [""]], "outputs": [[[2, 3]], [[0, 0]]], "fn_name": "count"},
    ),
    "whole_keys": (
        "def total(prices):\n    return {n + 1: sqrt(prices[n]) for n in sorted(prices)}",
        {"inputs": [[{"1": 4, "2": 9}], [{"7": 1}]], "outputs": [{"2": 2.0, "3": 3.0}, [{"8": 1.0}]],
         "fn_name": "total"},
    ),
    "numpy": (
        "def spread(numbers):\n    return np.max(numbers) - np.min(numbers)",
        {"inputs": [[[1, 5]], [[2.5, 2.0]]], "outputs": [4, [0.5]], "fn_name": "spread"},
    ),
    "tuples": (
        "def pairs(n):\n    return list(combinations(range(1, n), 2))",
        {"inputs": [[4], [2]], "outputs": [[[[1, 2], [1, 3], [2, 3]]], [[]]], "fn_name": "pairs"},
    ),
    "cached_recursion": (
        "@lru_cache(None)\ndef ways(n):\n    return 1 if n < 2 else ways(n - 1) + ways(n - 2)",
        {"inputs": [[30], [1]], "outputs": [[1346269], 1], "fn_name": "ways"},
    ),
    "a_wrong_order": (
        "def order(numbers):\n    return sorted(numbers)[::-1]",
        {"inputs": [[[1, 2]], [[3]]], "outputs": [[[1, 2]], [[3]]], "fn_name": "order"},
    ),
    "a_missing_function": ("def other(x):\n    return x", {"inputs": [[1]], "outputs": [1], "fn_name": "order"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def executor():
    with CodeExecutor(1, SECONDS, packages=["numpy"], allow_code_execution=True) as made:
        yield made


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str, executor: CodeExecutor):
    program, tests = CALLS[name]
    for candidate in (program, *mutants(program)):
        wanted = oracle(candidate, tests)
        (result,) = executor.run([(candidate, tests)])
        assert result.tests_passed == wanted.count("same"), (candidate, wanted, result)


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["test/0000", "test/0001", "test/0002", "test/0003", "test/0004", "train"])
def test_apps_problems(name: str, executor: CodeExecutor):
    """Compare verdicts on three reference solutions per problem and their mutants."""
    folders = sorted(APPS.glob("train/*")) if name == "train" else [APPS / name]
    if not folders or not folders[0].exists():
        pytest.skip("needs ../shared/data/apps")
    verdicts = {"same": 0, "different": 0, "loose": 0}
    for folder in folders:
        tests = json.loads((folder / "input_output.json").read_text())
        tests = {side: tests[side][:3] for side in ("inputs", "outputs")}
        solutions = [
            program
            for program in json.loads((folder / "solutions.json").read_text())
            if "__name__" not in program  # APPS's harness does not run the main block
        ][:3]
        programs = [text for program in solutions for text in (program, *mutants(program)[:2])]
        for program, result in zip(programs, executor.run([(text, tests) for text in programs]), strict=True):
            wanted = oracle(program, tests)
            for verdict in wanted:
                verdicts[verdict] += 1
            assert result.tests_passed == wanted.count("same"), (program, wanted, result)
    assert verdicts["same"] and verdicts["different"]


SCRIPTS = [
    "print(gcd(*map(int, input().split())))",
    "n, m = map(int, stdin.readline().split())\nprint(gcd(n, m))",
    "from functools import reduce\nprint(reduce(gcd, map(int, sys.stdin.read().split())))",
    "class Heap:\n    pass\nheap = []\nheappush(heap, gcd(*map(int, input().split())))\nprint(*heap)",
    "x: List[int] = [int(word) for word in input().split()]\nwhile x[1]:\n    x = [x[1], x[0] % x[1]]\nprint(x[0])",
]


@pytest.mark.parametrize("program", SCRIPTS)
def test_scripts_have_the_imports_and_correct_error_lines(program: str, executor: CodeExecutor):
    tests = {"inputs": ["12 18\n", "7 5\n"], "outputs": ["6\n", "1\n"]}
    passed, failed, bare = executor.run(
        [(program, tests), (f"{program}\n1 / 0", tests), (program, {**tests, "harness": "none"})]
    )
    assert passed.passed
    assert (failed.error_type, failed.line) == ("ZeroDivisionError", program.count("\n") + 2)
    assert bare.error_type == "NameError"


def test_imports_of_livecodebench(executor: CodeExecutor):
    program = (
        "class Solution:\n    def f(self, a: Optional[List[int]]) -> Dict[str, int]:\n"
        "        assert getrecursionlimit() == 50000 and datetime.datetime and sub(3, 2) == 1 and findall('a', 'ab')\n"
        "        return {digits[bisect_left(a, 2)]: pow(2, 3, 5) + reduce(mul, a) + len(deepcopy(a))}"
    )
    tests = {"inputs": [[[1, 2]]], "outputs": [{"1": 3 + 2 + 2}], "fn_name": "f"}
    (bare, given) = executor.run([(program, tests), (program, {**tests, "harness": "livecodebench"})])
    assert bare.error_type == "NameError" and given.passed, given


@pytest.mark.parametrize(
    ("printed", "wanted", "apps", "livecodebench"),
    [
        ("1 2\n3", " 1 2 \n3\n\n", True, True),
        ("1\n\n2", "1\n2", True, False),
        ("1.0", "1", True, True),
        ("0.30000001", "0.3", True, False),
        ("1e2 7", "100 7.00", True, True),
        ("a 1.0", "a 1", True, False),
        ("1 2", "1\n2", False, False),
        ("2 1", "1 2", False, False),
    ],
)
def test_outputs_by_harness(printed: str, wanted: str, apps: bool, livecodebench: bool, executor: CodeExecutor):
    tests = {"inputs": [""], "outputs": [wanted]}
    program = f"print({printed!r})"
    found = executor.run([(program, tests), (program, {**tests, "harness": "livecodebench"})])
    assert [result.passed for result in found] == [apps, livecodebench]


def test_wrapped_values_by_harness(executor: CodeExecutor):
    tests = {"inputs": [[3]], "outputs": [[3]], "fn_name": "f"}
    programs = ["def f(x):\n    return x", "def f(x):\n    return (x,)"]
    found = executor.run(
        [(text, {**tests, "harness": name}) for name in ("apps", "livecodebench") for text in programs]
    )
    assert [result.passed for result in found] == [True, True, False, True]


def test_unknown_harness(executor: CodeExecutor):
    with pytest.raises(ValueError, match="harness=3; choose one of apps, livecodebench, none"):
        executor.run([("print(1)", {"inputs": [""], "outputs": ["1"], "harness": 3})])


@pytest.mark.parametrize(
    "program", ["def g(x):\n    return x", "class Solution:\n    def g(self, x):\n        return x"]
)
def test_missing_function_is_a_name_error(program: str, executor: CodeExecutor):
    (result,) = executor.run([(program, {"inputs": [[1]], "outputs": [1], "fn_name": "f"})])
    assert (result.error_type, result.missing) == ("NameError", "f")
    assert classify(result, program, "f").cause == "wrong_function_name"


@pytest.mark.parametrize("harness", ["apps", "livecodebench"])
@pytest.mark.parametrize(
    ("name", "arguments", "value", "own"),
    [
        ("sqrt", [4], 2.0, "def sqrt(x):\n    return x ** 0.5"),
        ("gcd", [4, 6], 2, "def gcd(a, b):\n    return gcd(b, a % b) if b else a"),
        ("floor", [1.5], 1, "from math import floor"),
        ("ceil", [1.5], 2, "import math\nceil = math.ceil"),
        ("sum", [[1, 2]], 3, "def sum(values):\n    return values[0] + values[1]"),
        ("sorted", [[2, 1]], [1, 2], "class Solution:\n    def sorted(self, values):\n        return sorted(values)"),
        ("product", [2, 3], 6, "if True:\n    product = lambda a, b: a * b"),
    ],
)
def test_function_must_be_defined_by_the_candidate(
    name: str, arguments: list, value: object, own: str, harness: str, executor: CodeExecutor
):
    """Imports of the harness and built-ins are not accepted."""
    tests = {"inputs": [arguments], "outputs": [value], "fn_name": name, "harness": harness}
    others = [
        "",
        "x = 1",
        f"def other(*a):\n    return {name}(*a)",
        "class Solution:\n    pass",
        f"[{name} for {name} in ()]",
    ]
    found, *missing = executor.run([(program, tests) for program in (own, *others)])
    assert found.passed, found
    assert {(result.error_type, result.missing) for result in missing} == {("NameError", name)}


@pytest.mark.parametrize("value", [3, None, True, 0.5])
def test_arguments_that_are_not_a_list(value: object, executor: CodeExecutor):
    tests = {"inputs": [value], "outputs": [3], "fn_name": "f"}
    with pytest.raises(
        TypeError, match=r"programs\[1\] has inputs of type .* for calls of 'f'; give each call a list"
    ):
        executor.run([("", "pass"), ("def f(x):\n    return x", tests)])


def test_arguments_that_are_not_json(executor: CodeExecutor):
    tests = {"inputs": [[1], [{2}]], "outputs": [1, 2], "fn_name": "f"}
    with pytest.raises(TypeError, match=r"inputs\[1\] cannot be sent as JSON .*set"):
        executor.run([("def f(x):\n    return x", tests)])
