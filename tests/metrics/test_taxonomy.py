"""Labels of real programs, and sums that hold for any results."""

import json
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_akd.execution import CodeExecutor, ExecutionResult
from trl_akd.metrics.taxonomy import CAUSES, OWN_CAUSES, ErrorLabel, classify, error_table

ROWS = {(kind, cause) for table in (CAUSES, OWN_CAUSES) for kind, causes in table.items() for cause in causes}


def run(program: str, test: str = "") -> ExecutionResult:
    """Run a program of this file, and return a result like that of the executor."""
    names: dict[str, object] = {}
    stage, origin = "compile", "candidate"
    try:
        code = compile(program, "<candidate>", "exec")
        stage = "load"
        exec(code, names)
        stage, origin = "test", "test"
        exec(compile(test, "<test>", "exec"), names)
    except Exception as error:
        frame = error.__traceback__
        line = None
        while frame is not None:
            filename = frame.tb_frame.f_code.co_filename
            if filename in ("<candidate>", "<test>"):
                origin, line = filename.strip("<>"), frame.tb_lineno
            frame = frame.tb_next
        source = program if origin == "candidate" else test
        return ExecutionResult(
            "failed",
            error_type=type(error).__name__,
            message=str(error),
            error_bases=tuple(base.__name__ for base in type(error).__mro__[1:]),
            stage=stage,  # type: ignore[arg-type]
            origin=origin,  # type: ignore[arg-type]
            line=line,
            raised=line is not None and source.splitlines()[line - 1].strip().startswith("raise"),
            missing=getattr(error, "name", None),
            ending="exception",
        )
    return ExecutionResult("passed", tests_passed=1)


def label(program: str, test: str = "f(1)", entry_point: str | None = "f", truncated: bool = False) -> str:
    found = classify(run(program, test), program, entry_point, truncated)
    assert found.complete is False
    return f"{found.error_type}/{found.cause}"


def test_the_paper_has_14_types_and_19_causes() -> None:
    assert len(CAUSES) == 14
    assert len(list(chain(*CAUSES.values()))) == 19
    assert len(set(chain(*CAUSES.values(), *OWN_CAUSES.values()))) == 19 + 6


def test_correct_and_wrong_programs_are_complete() -> None:
    correct = classify(run("f = lambda x: x", "assert f(1) == 1"), "f = lambda x: x", "f")
    assert correct == ErrorLabel(None, None, True)
    assert correct.correct
    wrong = classify(run("def f(x): return x + 1", "assert f(1) == 1"), "def f(x): return x + 1", "f")
    assert wrong == ErrorLabel("wrong_answer", "wrong_answer", True)
    assert not wrong.correct


INCOMPLETE = [
    ("def f(x): return x.no", "f(1)", "AttributeError/missing_attribute"),
    ("def f(x):\nreturn x", "f(1)", "IndentationError/bad_indentation"),
    ("def f(x):\n    if x:\n\treturn x", "f(1)", "IndentationError/bad_indentation"),  # TabError, a subclass
    ("def f(x): return [x][x]", "f(1)", "IndexError/index_out_of_range"),
    ("def f(x): return {}[x]", "f(1)", "KeyError/missing_key"),
    ("import no_such_module", "f(1)", "ModuleNotFoundError/missing_module"),
    ("def f(x): raise NotImplementedError", "f(1)", "NotImplementedError/not_implemented"),
    ("def f(x): return f(x)", "f(1)", "RecursionError/endless_recursion"),
    ("def f(x): raise TimeoutError", "f(1)", "TimeoutError/raised_timeout"),
    ("def f(x): return x + ''", "f(1)", "TypeError/wrong_type"),
    ("def f(x): return 1", "len(f(1))", "TypeError/wrong_type"),
    ("def f(x):\n    y += x", "f(1)", "UnboundLocalError/read_before_assignment"),
    ("def f(x): return sqrt(x)", "f(1)", "NameError/missing_import"),
    ("def f(x: List[int]): return x", "f(1)", "NameError/missing_import"),
    ("def f(x): return math.sqrt(x)", "f(1)", "NameError/missing_import"),
    ("def f(x): return helper(x)", "f(1)", "NameError/missing_content"),
    ("def g(x): return x", "f(1)", "NameError/wrong_function_name"),
    ("class S:\n    def g(self): pass", "f(1)", "NameError/wrong_function_name"),
    ("def g(x): return f(x)", "g(1)", "NameError/wrong_function_name"),
    ("x = 1", "f(1)", "NameError/missing_content"),
    ("", "f(1)", "NameError/missing_content"),
    ("def f(x): return x", "helper(1)", "other_exception/other_exception"),
    ("def f(x): return x", "assert math.isclose(f(1), 1)", "other_exception/other_exception"),
    ("def f(x): return x", "import no_such_module\nf(1)", "other_exception/other_exception"),
    ("def f(x): return x", "from math import no_such_name\nf(1)", "other_exception/other_exception"),
    ("def f(x): return x", "import math\nmath.no_such_name(f(1))", "other_exception/other_exception"),
    ("def f(x): return x", "def check():\n    n += f(1)\ncheck()", "other_exception/other_exception"),
    ("import math\ndef f(x): return math.no_such_name", "f(1)", "AttributeError/missing_attribute"),
    ("def f(x): return x", "f(1).no_such_name", "AttributeError/missing_attribute"),
    ("def f(x):\n    from math import no_such_name", "f(1)", "other_exception/other_exception"),
    ("def f(x): import no_such_module", "f(1)", "ModuleNotFoundError/missing_module"),
    ("def f(x): return (x", "f(1)", "SyntaxError/unbalanced_delimiters"),
    ("def f(x): return x)", "f(1)", "SyntaxError/unbalanced_delimiters"),
    ("def f(x): return [x)", "f(1)", "SyntaxError/unbalanced_delimiters"),
    ("def f(x): return 'x", "f(1)", "SyntaxError/unbalanced_delimiters"),
    ("def f(x): return '''x", "f(1)", "SyntaxError/unbalanced_delimiters"),
    ("Here is the function:", "f(1)", "SyntaxError/other_syntax"),
    ("def f(x):\n    raise ValueError('no')", "f(1)", "ValueError/intentional_raise"),
    ("def f(x):\n    raise ValueError('empty sequence')", "f(1)", "ValueError/intentional_raise"),
    ("def f(x): return max([])", "f(1)", "ValueError/empty_sequence"),
    ("def f(x): return int('x')", "f(1)", "ValueError/bad_value"),
    ("import json\ndef f(x): return json.loads('x')", "f(1)", "ValueError/bad_value"),
    ("class Own(KeyError): pass\ndef f(x): raise Own", "f(1)", "KeyError/missing_key"),
    ("def f(x): return 1 / 0", "f(1)", "other_exception/other_exception"),
    ("def f(x): raise RuntimeError", "f(1)", "other_exception/other_exception"),
    ("def f(x): open('/no/such/file')", "f(1)", "other_exception/other_exception"),
]


@pytest.mark.parametrize(("program", "test", "expected"), INCOMPLETE)
def test_incomplete_programs(program: str, test: str, expected: str) -> None:
    assert label(program, test) == expected


def test_the_executor_reports_what_labels_need() -> None:
    with CodeExecutor(allow_code_execution=True) as executor:
        results = executor.run([(program, test) for program, test, _ in INCOMPLETE])
    for (program, test, expected), result in zip(INCOMPLETE, results, strict=True):
        found = classify(result, program, "f")
        assert (f"{found.error_type}/{found.cause}", found.complete) == (expected, False), (program, test, result)


def test_truncation_explains_broken_syntax_alone() -> None:
    assert label("def f(x): return (x", truncated=True) == "SyntaxError/overflow"
    assert label("def f(x): return x x", truncated=True) == "SyntaxError/overflow"
    assert label("def f(x): return y", truncated=True) == "NameError/missing_content"
    assert label("def f(x): return x", "f(", truncated=True) == "SyntaxError/unbalanced_delimiters"  # not its fault


def test_without_an_entry_point_the_test_says_what_is_missing() -> None:
    assert label("def g(x): return x", "f(1)", entry_point=None) == "NameError/wrong_function_name"
    assert label("x = 1", "f(1)", entry_point=None) == "NameError/missing_content"
    assert label("def f(x): return x", "math.sqrt(f(1))", entry_point=None) == "other_exception/other_exception"


@pytest.mark.parametrize(
    "body",
    [
        "pass",
        "...",
        '"""Say it."""',
        '"""Say it."""\n    pass',
        "return",
        "return None",
        "return 0",
        "return -1",
        "return ''",
        "return []",
        "return {'a': (1, 2)}",
        "return set()",
        "import math\n    return 0",
        "raise NotImplementedError",
        "raise NotImplementedError('later')",
    ],
)
@pytest.mark.parametrize("entry_point", ["f", None])
@pytest.mark.parametrize("head", ["def f(x):", "async def f(x):"])
def test_stubs(head: str, body: str, entry_point: str | None) -> None:
    failed = ExecutionResult("failed", error_type="AssertionError", ending="exception", origin="test")
    program = f"from typing import List\n{head}\n    {body}\n"
    assert classify(failed, program, entry_point) == ErrorLabel("AssertionError", "stub", False)


@pytest.mark.parametrize(
    ("program", "entry_point"),
    [
        ("def f(x): return x", "f"),
        ("def f(x): return None or x", "f"),
        ("def f(x):\n    x += 1\n    return 0", "f"),
        ("def f(x): print(x)", "f"),
        ("def f(x): raise ValueError", "f"),
        ("def f(x): pass\ndef f(x): return x", "f"),  # the last one counts
        ("class Solution:\n    def f(self, x): return x", "f"),
        ("def helper(): pass\ndef f(x): return x", "f"),
        ("f = lambda x: 0", "f"),
        ("def helper(): pass\ndef f(x): return x", None),
        ("print(input())", None),
        ("def f(x): pass", "g"),
        ("def f(x): pass\n#" + "x" * 100_000, "f"),  # too long to be parsed
        ("def f(x): pass\n\0", "f"),
        ("def f(x): pass\n'\ud800'", "f"),
        ("(" * 5000 + ")" * 5000, None),
        ("def f(x): return " + "-" * 5000 + "1", "f"),
    ],
)
def test_programs_that_are_not_stubs(program: str, entry_point: str | None) -> None:
    failed = ExecutionResult("failed", error_type="AssertionError", ending="exception", origin="test")
    assert classify(failed, program, entry_point).error_type == "wrong_answer"


@pytest.mark.parametrize(
    "program", ["", "# nothing", "pass", '"""Nothing."""', "import os", "def f(): pass\nclass A: ..."]
)
def test_a_program_that_does_nothing_is_a_stub(program: str) -> None:
    failed = ExecutionResult("failed", error_type="AssertionError", ending="exception", origin="test")
    assert classify(failed, program).cause == "stub"


def test_method_of_a_class_may_be_a_stub() -> None:
    failed = ExecutionResult("failed", error_type="AssertionError", ending="exception", origin="test")
    assert classify(failed, "class Solution:\n    def f(self, x):\n        pass\nx = 1", "f").cause == "stub"


def test_invalid_escapes_in_programs_do_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    failed = ExecutionResult("failed", error_type="AssertionError", ending="exception", origin="test")
    classify(failed, "def f(x): return '\\d'", "f")
    assert not recwarn


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (ExecutionResult("timed_out", ending="deadline"), "timeout"),
        (ExecutionResult("failed", ending="signal", signal=11), "crash"),
        (ExecutionResult("failed", ending="exit", error_type="SystemExit", exit_code=0), "early_exit"),
        (ExecutionResult("failed", ending="exit", exit_code=0), "early_exit"),
        (ExecutionResult("failed", ending="memory", error_type="MemoryError"), "memory"),
        (ExecutionResult("failed", ending="exception"), "other_exception"),
    ],
)
def test_endings_without_a_row_in_the_paper(result: ExecutionResult, expected: str) -> None:
    assert classify(result, "def f(x): pass", "f") == ErrorLabel(expected, expected, False)


def test_programs_without_a_verdict_are_excluded() -> None:
    unjudged = classify(ExecutionResult("infra_error"), "def f(x): pass", "f")
    assert unjudged == ErrorLabel("infra_error", "infra_error", None)
    assert not unjudged.correct
    table = error_table([unjudged, ErrorLabel(None, None, True)])
    assert (table.judged, table.infra_errors, table.correct_among_complete) == (1, 1, 1.0)


# Table 13: correct, complete, incomplete, and correct among complete in per cent.
TABLE_13 = {
    "student": (92, 343, 321, 26.8),
    "KD": (151, 584, 80, 25.9),
    "RKD": (124, 571, 93, 21.7),
    "SeqKD": (161, 547, 117, 29.4),
    "MiniLLM": (120, 406, 258, 29.6),
    "teacher": (208, 467, 197, 44.5),
    "AKD": (186, 560, 104, 33.2),
}


@pytest.mark.parametrize("model", TABLE_13)
def test_table_13_adds_up(model: str) -> None:
    correct, complete, incomplete, share = TABLE_13[model]
    labels = [ErrorLabel(None, None, True)] * correct
    labels += [ErrorLabel("wrong_answer", "wrong_answer", True)] * (complete - correct)
    labels += [ErrorLabel("TypeError", "wrong_type", False)] * (incomplete - 30)
    labels += [ErrorLabel("AssertionError", "stub", False)] * 30
    table = error_table(labels)
    assert (table.correct, table.complete, table.incomplete, table.judged) == (correct, complete, incomplete, 664)
    assert round(100 * table.correct_among_complete, 1) == share
    assert table.by_type()["AssertionError"] == 30


def test_table_as_dict_is_json_with_every_row() -> None:
    found = error_table([]).as_dict()
    assert json.loads(json.dumps(found)) == found
    assert {tuple(key.split("/")) for key in found if "/" in key} == ROWS
    assert not any(found.values())


def test_table_refuses_a_label_without_a_row() -> None:
    with pytest.raises(ValueError, match=r"labels holds ErrorLabel.*no row"):
        error_table([ErrorLabel("ZeroDivisionError", "zero", False)])


exceptions = st.sampled_from([*CAUSES, "TabError", "ZeroDivisionError", "MemoryError", "SystemExit", "Own", ""])
results = st.builds(
    ExecutionResult,
    status=st.sampled_from(["passed", "failed", "timed_out", "infra_error"]),
    error_type=st.none() | exceptions,
    message=st.text(max_size=30) | st.sampled_from(["'(' was never closed", "max() arg is an empty sequence"]),
    error_bases=st.lists(exceptions, max_size=3).map(tuple),
    stage=st.sampled_from([None, "compile", "load", "test"]),
    origin=st.sampled_from([None, "candidate", "test"]),
    raised=st.booleans(),
    missing=st.none() | st.sampled_from(["f", "math", "helper"]),
    ending=st.sampled_from([None, "exception", "exit", "signal", "deadline", "memory"]),
)
programs = st.text(max_size=40) | st.sampled_from(["def f(x): pass", "def f(x): return x", "def g(): 1", "(", "\0"])


@given(st.lists(st.tuples(results, programs, st.sampled_from([None, "f"]), st.booleans()), max_size=30))
def test_any_results_add_up(samples: list[tuple[ExecutionResult, str, str | None, bool]]) -> None:
    labels = [classify(*sample) for sample in samples]
    table = error_table(labels)
    judged = [result for result, *_ in samples if result.status != "infra_error"]
    assert set(table.rows) == ROWS
    assert table.correct == sum(result.passed for result in judged)
    assert table.incomplete == sum(table.rows.values()) == sum(table.by_type().values())
    assert table.incomplete == sum(found.complete is False for found in labels)
    assert table.complete + table.incomplete == table.judged == len(judged)
    assert table.infra_errors == len(samples) - len(judged)
    assert table.correct <= table.complete
    assert 0 <= table.correct_among_complete <= 1
