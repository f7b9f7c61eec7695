import ast
import builtins

import pytest

from trl_akd.execution import CodeExecutor, ExecutionResult
from trl_akd.iterkd.cycle.main_programs import Outcome, lacks_resources, run_main_programs
from trl_akd.iterkd.cycle.records import Fault, Pair, Question
from trl_akd.iterkd.cycle.verification import verify

from .labeled_programs import PROGRAMS

pytestmark = pytest.mark.lengthy


@pytest.fixture(scope="module")
def executor():
    with CodeExecutor(2, allow_code_execution=True) as found:
        yield found


@pytest.fixture(scope="module")
def outcomes(executor) -> dict[str, Outcome]:
    programs = [program for _, program in PROGRAMS]
    return dict(zip(programs, run_main_programs(executor.run, programs), strict=True))


def test_labeled_programs_get_their_verdicts(outcomes):
    wrong = [(program, outcomes[program], due) for due, program in PROGRAMS if outcomes[program].verdict != due]
    assert not wrong


def test_missing_resources_decide_neither_faults_nor_correct_answers(outcomes):
    """The programs as correct and faulty answers, with the outcomes of their execution."""

    def run(jobs):
        return [next(result for text, result in results if repr(text) in job) for job, _ in jobs]

    right = "print('right')\n"
    results = [(right, ExecutionResult("passed"))]
    results += [(f"{program}\n", _result(outcomes[program])) for _, program in PROGRAMS]
    for due, program in PROGRAMS:
        question, answer = Question("q", f"Write this. {program}"), f"```python\n{program}\n```"
        as_fault = verify([Pair(question, right, (Fault(answer, None),))], run=run)
        as_right = verify([Pair(question, answer, ())], run=run)
        assert bool(as_fault.pairs) is (due == "fail"), (program, as_fault)
        dropped = {"pass": {}, "fail": {"correct/wrong": 1}, "unknown": {"correct/unverified": 1}}[due]
        assert as_right.dropped == dropped, program


def _result(outcome: Outcome) -> ExecutionResult:
    if outcome.verdict == "pass":
        return ExecutionResult("passed")
    missing = outcome.verdict == "unknown"
    return ExecutionResult("failed", "ResourceMissing" if missing else "ValueError", outcome.error_type or "")


DEFINITIONS = (
    ("def add(a, b=1, *rest, c=None, **named):\n    return a + undefined", True),
    ('"""Programs."""\n\nasync def wait():\n    await nothing\n\ndef run(): pass', True),
    ("def one():\n    def two(x: undefined): ...\n    return two", True),
    ("def add(a, b=undefined):\n    return a", False),
    ("def add(a: undefined):\n    return a", False),
    ("def add(a) -> undefined:\n    return a", False),
    ("def add(*a: undefined):\n    return a", False),
    ("def add(*, a=undefined):\n    return a", False),
    ("@undefined\ndef add(a):\n    return a", False),
    ("def add(a):\n    break", False),
    ("def add(a):\n    global a", False),
    ("def add(a)\n    return a", False),
    ("class Add:\n    x = undefined", False),
    ("def add(a):\n    return a\n\nadd()", False),
)


def test_programs_that_evaluate_nothing_pass_if_they_compile(executor):
    """They have the outcome of the same program with a statement, which runs as a main program."""
    programs = [program for program, _ in DEFINITIONS]
    passes = [passes for _, passes in DEFINITIONS]
    ran: list[str] = []

    def run(jobs):
        ran.extend(job for job, _ in jobs)
        return executor.run(jobs)

    outcomes = run_main_programs(run, programs)
    assert outcomes == run_main_programs(executor.run, [f"{program}\n_ = 0\n" for program in programs])
    assert [outcome.verdict == "pass" for outcome in outcomes] == passes
    together, *alone = ran
    assert all(repr(program) in together for program, passing in DEFINITIONS if passing)
    assert len(alone) == len(programs), "one of the programs that evaluate nothing does not compile"
    ran.clear()
    right = [program for program, passing in DEFINITIONS if passing]
    assert run_main_programs(run, [*right, None]) == [Outcome("pass")] * len(right) + [Outcome("unknown")]
    assert len(ran) == 1


def test_programs_that_evaluate_nothing_are_compiled_in_groups():
    ran: list[str] = []

    def run(jobs):
        ran.extend(job for job, _ in jobs)
        return [ExecutionResult("failed" if "'def f7()" in job else "passed") for job, _ in jobs]

    outcomes = run_main_programs(run, [f"def f{number}(): pass" for number in range(150)])
    assert outcomes == [Outcome("pass")] * 7 + [Outcome("fail")] + [Outcome("pass")] * 142
    assert len(ran) == 3 + 64


def nested_finally(depth: int) -> str:
    lines = [f"{' ' * level}{word}" for level in range(1, depth + 1) for word in ("try: x()", "finally:")]
    return "\n".join(["def f():", *lines, f"{' ' * (depth + 1)}x()"])


@pytest.mark.parametrize(
    "attack",
    [
        nested_finally(18),
        "async " + nested_finally(18),
        "def f():\n try: " + "return 1;" * 4000 + "\n finally: " + "x();" * 4000,
    ],
)
def test_programs_are_not_compiled_by_the_caller(executor, monkeypatch, attack: str):
    """Python copies the body of each `finally`, so that compilation takes exponential time and memory."""
    original = builtins.compile

    def compile_trees_only(source, file, mode, flags=0, *arguments, **options):
        assert flags & ast.PyCF_ONLY_AST, "compiled by the caller"
        return original(source, file, mode, flags, *arguments, **options)

    monkeypatch.setattr(builtins, "compile", compile_trees_only)
    innocent = "def one():\n    return 1"
    outcomes = run_main_programs(
        lambda jobs: executor.run(jobs, timeout=0.3, memory_mb=128), [innocent, attack, innocent]
    )
    assert outcomes[0] == outcomes[2] == Outcome("pass")
    assert outcomes[1].verdict == "fail"


def test_errors_of_the_sandbox_and_no_programs():
    [outcome] = run_main_programs(lambda programs: [ExecutionResult("infra_error")], ["x = 1"])
    assert outcome == Outcome("unknown")
    assert run_main_programs(lambda programs: pytest.fail("nothing to run"), []) == []


@pytest.mark.parametrize(
    ("program", "unknown"),
    [
        ("import numpy as np\n\ndef f(x):\n    return x", True),
        ("def f(x):\n    import scipy\n    return x", True),
        ("def f(x):\n    return x\n\nprint(f(input()))", True),
        ("import sys\n\ndef f(x):\n    return x\n\nsys.exit(0)", True),
        ("def f(x):\n    return x\n\nexit()", True),
        ("def f(x):\n    return x\n\nopen('data.csv')", True),
        ("def f(x):\n    return open('words.txt').read()", True),
        ("import argparse\np = argparse.ArgumentParser()\np.add_argument('file')\nargs = p.parse_args()", True),
        ("from urllib.request import urlopen\n\ndef f(x):\n    return urlopen('http://a.b').read()", True),
        ("def f(x):\n    return y", False),
        ("def f(x):\n    return x + 1", False),
        ("import json.nothing\n\ndef f(x):\n    return x", False),
        ("def f(x):\n    raise FileNotFoundError(x)", False),
        ("def f(x):\n    exit()", False),
        ("def f(x):\n    return str(x) + x", False),
    ],
)
def test_missing_resources_decide_no_tests(executor, program: str, unknown: bool):
    tests = "assert f(1) == 1"
    [result] = executor.run([(program, tests)])
    assert not result.passed and lacks_resources(result, tests) is unknown


def test_a_script_that_reads_beyond_its_input_is_wrong(executor):
    tests = {"inputs": ["1\n"], "outputs": ["1\n"]}
    lacking, wrong = executor.run([("import numpy", tests), ("input(); input()", tests)])
    assert lacks_resources(lacking, tests) and not lacks_resources(wrong, tests)
