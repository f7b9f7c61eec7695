"""Random mutations of real programs: each gets one result, whose fields are consistent."""

import ast
import gzip
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.execution.machine_state import BWRAP, DATA, LINUX, Footprint, eventually
from trl_akd.execution import CodeExecutor, ExecutionResult
from trl_akd.execution.test_discovery import discover_tests

pytestmark = pytest.mark.parametrize(
    "level", ["namespace", BWRAP, pytest.param("process", marks=pytest.mark.slow)], indirect=True
)

Program = tuple[str, str]

CLOSE = """
from typing import List

def close(numbers: List[float], threshold: float) -> bool:
    for i, left in enumerate(numbers):
        for right in numbers[i + 1:]:
            if abs(left - right) < threshold:
                return True
    return False
"""
COUNTER = """
import math

def gcd_all(*values):
    out = 0
    for value in values:
        out = math.gcd(out, value)
    return out

class Counter:
    def __init__(self):
        self.seen = {}

    def add(self, key):
        self.seen[key] = self.seen.get(key, 0) + 1
        return self.seen[key]
"""
PARSE = """
def parse(text):
    '''Split "a=1;b=2".'''
    try:
        return {key: int(value) for key, value in (part.split("=") for part in text.split(";"))}
    except ValueError as error:
        raise KeyError(f"bad {text!r}") from error
"""
LATER = """
from dataclasses import dataclass
from functools import lru_cache

@dataclass
class Point:
    x: int
    y: int = 0

@lru_cache(None)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

async def later():
    return fib(20)
"""
BUILT_IN: list[Program] = [
    (CLOSE, "assert close([1.0, 2.8, 3.0, 4.0], 0.3)\nassert not close([1.0, 2.0, 3.0], 0.5)\n"),
    (COUNTER, "assert gcd_all(12, 18, 30) == 6\nc = Counter()\nc.add('a')\nassert c.add('a') == 2\n"),
    (
        PARSE,
        "assert parse('a=1;b=2') == {'a': 1, 'b': 2}\ntry: parse('a')\nexcept KeyError as e: assert 'bad' in str(e)\n",
    ),
    (LATER, "import asyncio\nassert Point(1) == Point(1, 0)\nassert asyncio.run(later()) == 6765\n"),
]


@cache
def corpus() -> list[Program]:
    """Return programs with their tests: HumanEval and MBPP if available, and those above."""
    programs = list(BUILT_IN)
    human_eval, mbpp = DATA / "humaneval" / "HumanEval.jsonl.gz", DATA / "mbpp" / "mbpp.jsonl"
    if human_eval.is_file():
        for row in map(json.loads, gzip.decompress(human_eval.read_bytes()).splitlines()):
            test = f"{row['test']}\ncheck({row['entry_point']})\n"
            programs.append((row["prompt"] + row["canonical_solution"], test))
    if mbpp.is_file():
        for row in map(json.loads, mbpp.read_text().splitlines()[10:510:3]):
            programs.append((row["code"], "\n".join([row["test_setup_code"], *row["test_list"]])))
    return programs


NOISE = [
    "\0",
    "\ud800",
    "\udcff",
    "\x1b[31m",
    "\r",
    "\x0c",
    "\u202e",
    "\ufeff",
    "é",
    "\U0001d4b3",
    "\t",
    " ",
    "\\",
    '"""',
    "'",
    "#",
]
NOISE += [
    "(" * 300,
    "[" * 50 + "]" * 50,
    "-" * 2000,
    "if 1:\n" * 120,
    "raise ",
    "return\n",
    "assert 0\n",
    "lambda: ",
    "\n\n",
]
NOISE += [
    "import nothing\n",
    "exit()\n",
    "raise SystemExit\n",
    "raise KeyboardInterrupt\n",
    "1 / 0\n",
    "yield ",
    "await ",
]
NOISE += [
    "def f(): f()\nf()\n",
    "import os; os._exit(0)\n",
    "import os; os.abort()\n",
    "print('x' * 10 ** 6)\n",
    "x = " * 99,
]


def mutate_once(text: str, other: str, draw: random.Random) -> str:
    """Delete, repeat, swap or replace lines or characters, insert another program, or add noise."""
    lines = text.splitlines(keepends=True) or [""]
    i, j = (draw.randrange(len(lines)) for _ in range(2))
    a, b = sorted(draw.randrange(len(text) + 1) for _ in range(2))
    b = min(b, a + 30)
    kind = draw.randrange(10)
    if kind == 0:
        del lines[i]
    elif kind == 1:
        lines.insert(j, lines[i])
    elif kind == 2:
        lines[i], lines[j] = lines[j], lines[i]
    elif kind == 3:
        lines[i] = draw.choice([" ", "\t", "    "]) + lines[i]
    elif kind == 4:
        lines = lines[:i] + other.splitlines(keepends=True)[j:]
    elif kind == 5:
        return text[:a] + text[b:]
    elif kind == 6:
        return text[:a] + text[a:b] * 2 + text[b:]
    elif kind == 7:
        return (
            text[:a] + bytes(draw.randrange(256) for _ in range(b - a)).decode("utf-8", "surrogateescape") + text[b:]
        )
    elif kind == 8:
        return text[:a] + draw.choice(NOISE) + text[a:]
    else:
        return text[:a] + "".join(draw.sample(text[a:b], b - a)) + text[b:]
    return "".join(lines)


@st.composite
def mutants(draw: st.DrawFn) -> Program:
    source = draw(st.randoms(use_true_random=False))
    (candidate, test), (other, _) = source.choice(corpus()), source.choice(corpus())
    for _ in range(draw(st.integers(1, 4))):
        candidate = mutate_once(candidate, other, source)
    if draw(st.integers(0, 4)) == 0:
        test = mutate_once(test, other, source)
    return candidate, test


def check(result: ExecutionResult, program: Program, isolation: str) -> None:
    """Check that the fields of a result are consistent."""
    if reason := discover_tests(program[1]).unrunnable:  # a test whose calls were removed
        assert (result.status, result.message) == ("infra_error", reason)
        return
    assert result.status in ("passed", "failed", "timed_out")
    assert (result.isolation, result.strict) == (isolation, False)
    assert result.passed == (result.status == "passed")
    assert math.isfinite(result.seconds) and result.seconds >= 0
    assert (result.tests_passed, result.tests_total) == (int(result.passed), 1)
    facts = (result.error_type, result.stage, result.origin, result.line, result.missing, result.ending)
    if result.passed:
        assert facts == (None,) * 6 and (result.message, result.error_bases, result.raised) == ("", (), False)
        assert (result.signal, result.exit_code) == (None, None)
    elif result.status == "timed_out":
        assert (result.ending, result.error_type) == ("deadline", None)
    else:
        assert result.ending in ("exception", "exit", "signal", "memory")
        assert (result.ending == "signal") == (result.signal is not None)
        assert result.ending != "exception" or result.error_type
        assert result.error_type not in ("SystemExit",) or result.ending == "exit"
        assert result.exit_code is None or result.ending == "exit"
    if result.stage == "compile":
        assert {*result.error_bases, result.error_type} & {
            "SyntaxError",
            "ValueError",
            "MemoryError",
            "RecursionError",
        }
    if result.error_type and result.ending == "exception":
        assert result.error_bases[-1:] in (("BaseException",), ("object",)) or result.error_type == "BaseException"
    if result.line is not None:
        assert result.origin is not None
        text = program[0] if result.origin == "candidate" else program[1]
        assert 1 <= result.line <= len(text.splitlines()) + 1
    assert result.origin is None or result.stage
    for text in (result.message, result.error_type or "", result.missing or "", *result.error_bases):
        assert len(text) <= 1000 and text.replace("\n", "").isprintable()
    json.dumps(asdict(result), ensure_ascii=False).encode()


@pytest.fixture(scope="module")
def fuzzed(level: str) -> CodeExecutor:
    return CodeExecutor(2, timeout=1.0, memory_mb=256, isolation=level, allow_code_execution=True)


@pytest.fixture(scope="module", autouse=True)
def unchanged(fuzzed: CodeExecutor) -> Iterator[None]:
    """Check that the examples left no process, descriptor or file."""
    assert [result.status for result in fuzzed.run([("import time\ntime.sleep(0.1)\n", "")] * 4)] == ["passed"] * 4
    before, folder = Footprint.now() if LINUX else None, set(os.listdir())
    yield
    assert not before or eventually(lambda: Footprint.now().within(before)), (before, Footprint.now())
    assert set(os.listdir()) == folder
    fuzzed.close()


def throw(executor: CodeExecutor, batch: list[Program]) -> None:
    results = executor.run(batch)
    assert len(results) == len(batch)
    for program, result in zip(batch, results, strict=True):
        check(result, program, executor.isolation)


def budget(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


BATCHES = st.lists(mutants(), min_size=1, max_size=10)


@budget(25)
@given(batch=BATCHES)
def test_mutants(fuzzed: CodeExecutor, batch: list[Program]) -> None:
    throw(fuzzed, batch)


@pytest.mark.slow
@budget(1500)
@given(batch=BATCHES)
def test_many_mutants(fuzzed: CodeExecutor, batch: list[Program]) -> None:
    throw(fuzzed, batch)


@budget(30)
@given(candidate=st.text(max_size=200), test=st.text(max_size=40))
def test_any_text(fuzzed: CodeExecutor, candidate: str, test: str) -> None:
    throw(fuzzed, [(candidate, test), (candidate, ""), ("", test)])


@budget(30)
@given(data=st.binary(max_size=200))
def test_any_bytes(fuzzed: CodeExecutor, data: bytes) -> None:
    throw(fuzzed, [(data.decode("utf-8", "surrogateescape"), ""), (data.decode("latin-1"), "")])


def test_references_pass(fuzzed: CodeExecutor) -> None:
    sample = corpus()[:4] + random.Random(0).sample(corpus()[4:168], 40) if len(corpus()) > 4 else corpus()
    for program, result in zip(sample, fuzzed.run(sample, timeout=10.0), strict=True):
        assert result.passed, (program[0], result)


ORACLE = """
import sys, types
candidate, test = open(sys.argv[1]).read(), open(sys.argv[2]).read()
module = sys.modules["candidate"] = types.ModuleType("candidate")
try:
    exec(compile(candidate, "<candidate>", "exec", dont_inherit=True), vars(module))
    exec(compile(test, "<test>", "exec", dont_inherit=True), vars(module))
except BaseException as error:
    print("\\n" + type(error).__name__)
else:
    print("\\npassed")
"""
HARMLESS = {"math", "typing", "collections", "itertools", "functools", "heapq", "re", "string", "operator", "bisect"}
HARMLESS |= {"dataclasses", "asyncio", "hashlib", "cmath", "copy", "statistics", "fractions", "decimal"}
DOUBTFUL = ("open(", "exec(", "eval(", "input(", "__", "random", "exit(", "time", "sys", "os.")


def harmless(candidate: str) -> bool:
    """Whether a mutant of a reference solution is safe without a sandbox, as it only computes."""
    try:
        tree = ast.parse(candidate)
    except (SyntaxError, ValueError):
        return True
    modules = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in modules} <= HARMLESS and not any(word in candidate for word in DOUBTFUL)


def oracle(program: Program, folder: Path) -> str | None:
    """Return the class name of the exception in a plain interpreter, `passed`, or None after the time limit."""
    for name, text in zip(("candidate", "test"), program, strict=True):
        (folder / name).write_text(text, newline="")
    command = [sys.executable, "-I", "-c", ORACLE, folder / "candidate", folder / "test"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.rstrip("\n").rpartition("\n")[2] if done.returncode == 0 else None


def compare_with_oracle(executor: CodeExecutor, folder: Path, count: int) -> None:
    draw = random.Random(count)
    batch: list[Program] = []
    while len(batch) < count:
        (candidate, test), (other, _) = draw.choice(corpus()), draw.choice(corpus())
        for _ in range(draw.randrange(3)):
            candidate = mutate_once(candidate, other, draw)
        if harmless(candidate) and candidate.isascii() and "\0" not in candidate and "\r" not in candidate:
            batch.append((candidate, test))
    seen: set[str] = set()
    for program, result in zip(batch, executor.run(batch, timeout=2.0), strict=True):
        expected = oracle(program, folder) if result.status != "timed_out" else None
        if expected:
            assert (result.error_type or result.status) == expected, (program[0], result)
            seen.add(expected)
    assert {"passed", "AssertionError", "SyntaxError"} <= seen or len(corpus()) == len(BUILT_IN)  # without data


def test_verdicts_are_those_of_a_plain_interpreter(fuzzed: CodeExecutor, tmp_path: Path) -> None:
    compare_with_oracle(fuzzed, tmp_path, 40)


@pytest.mark.slow
def test_many_verdicts_are_those_of_a_plain_interpreter(fuzzed: CodeExecutor, tmp_path: Path) -> None:
    compare_with_oracle(fuzzed, tmp_path, 4000)


def test_same_verdict_twice(fuzzed: CodeExecutor) -> None:
    draw = random.Random(7)
    batch = [(mutate_once(candidate, "", draw), test) for candidate, test in corpus()[:60]]

    def verdicts() -> list[tuple[str | None, ...]]:
        return [
            (result.status, result.error_type, result.stage, result.origin, result.missing, result.ending)
            for result in fuzzed.run(batch, timeout=2.0)
        ]

    assert verdicts() == verdicts()
