"""Values of the metrics on hand-made results and real programs, and their errors."""

import gzip
import json
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import evaluate
import pytest

import trl_akd.metrics
from trl_akd.execution import ExecutionResult
from trl_akd.metrics import load
from trl_akd.metrics.verdicts import UntestedProgramsError

FOLDER = Path(trl_akd.metrics.__file__).parent
NAMES = ["accuracy_loss", "code_errors", "pass_at_k"]
HUMANEVAL = Path(__file__).parents[3] / "shared" / "data" / "humaneval" / "HumanEval.jsonl.gz"
ADD, SUBTRACT = "def add(a, b): return a + b", "def add(a, b): return a - b"
TEST = "assert add(2, 3) == 5"


class FakeExecutor:
    """Mock executor; `results` maps a program to its result."""

    isolation = "process"
    results: ClassVar[dict[str, ExecutionResult]] = {}
    seen: ClassVar[list[tuple[str, Any]]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.arguments = args, kwargs
        type(self).seen = []

    def __enter__(self) -> "FakeExecutor":
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def run(self, pairs: list[tuple[str, Any]]) -> list[ExecutionResult]:
        type(self).seen = pairs
        return [self.results.get(program, PASSED if program == "good" else FAILED) for program, _ in pairs]


PASSED = ExecutionResult("passed", tests_passed=1, isolation="process")
FAILED = ExecutionResult("failed", error_type="AssertionError", ending="exception", isolation="process")
UNJUDGED = ExecutionResult("infra_error", message="no processes left", isolation="process")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeExecutor]:
    monkeypatch.setattr(FakeExecutor, "results", {"lost": UNJUDGED})
    for name in ("pass_at_k", "code_errors"):
        monkeypatch.setattr(import_module(f"trl_akd.metrics.{name}.{name}"), "CodeExecutor", FakeExecutor)
    return FakeExecutor


def test_pass_at_k(fake: type[FakeExecutor]) -> None:
    found = load("pass_at_k").compute(
        predictions=[["good", "bad"], ["bad", "bad"], ["good", "good"]], references=["a", "b", "c"], k=[2, 1]
    )
    assert fake.seen == [("good", "a"), ("bad", "a"), ("bad", "b"), ("bad", "b"), ("good", "c"), ("good", "c")]
    assert list(found) == [
        *(f"pass@{k}{suffix}" for k in (1, 2) for suffix in ("", "_low", "_high", "_tasks")),
        *("num_tasks", "num_samples", "timed_out", "infra_errors", "isolation", "strict"),
    ]
    assert (found["pass@1"], found["pass@2"]) == pytest.approx((0.5, 2 / 3))
    assert found["pass@1_low"] < 0.5 < found["pass@1_high"]
    assert (found["num_tasks"], found["num_samples"], found["isolation"]) == (3, 6, "process")
    assert json.loads(json.dumps(found)) == found


def test_pass_at_k_in_detail(fake: type[FakeExecutor]) -> None:
    found = load("pass_at_k").compute(predictions=[["good", "bad"]], references=["a"], k=2, details=True)
    (task,) = found["details"]
    assert (task["num_samples"], task["num_correct"], task["pass@2"]) == (2, 1, 1.0)
    assert [result["status"] for result in task["results"]] == ["passed", "failed"]
    assert json.loads(json.dumps(found))["details"][0]["pass@2"] == 1.0


def test_too_few_samples_are_an_error_before_anything_runs(fake: type[FakeExecutor]) -> None:
    fake.seen = []
    with pytest.raises(ValueError, match=r"Task '1' has fewer samples \(1\) than k=2"):
        load("pass_at_k").compute(predictions=[["good", "good"], ["good"]], references=["a", "b"], k=2)
    assert not fake.seen


@pytest.mark.parametrize(
    ("k", "complaint"), [([], "k is empty"), (0, "k is 0"), ([1, "2"], "k is '2'; give"), (True, "k is True")]
)
def test_wrong_k(fake: type[FakeExecutor], k: Any, complaint: str) -> None:
    with pytest.raises((ValueError, TypeError), match=complaint):
        load("pass_at_k").compute(predictions=[["good"]], references=["a"], k=k)


def test_programs_without_a_verdict_are_excluded(fake: type[FakeExecutor]) -> None:
    predictions = [["good", "lost"], *[["good", "bad"]] * 49]
    found = load("pass_at_k").compute(predictions=predictions, references=["a"] * 50, k=[1, 2])
    assert found["infra_errors"] == 1
    assert found["pass@1"] == pytest.approx((1 + 49 * 0.5) / 50)
    assert (found["pass@1_tasks"], found["pass@2_tasks"], found["num_tasks"]) == (50, 49, 50)
    table = load("code_errors").compute(predictions=predictions, references=["a"] * 50)
    assert (table["judged"], table["infra_errors"]) == (99, 1)


@pytest.mark.parametrize("name", ["pass_at_k", "code_errors"])
def test_too_many_programs_without_a_verdict_are_an_error(fake: type[FakeExecutor], name: str) -> None:
    message = r"2 of 100 programs could not be run \(test references\[0\]\).*no processes left"
    with pytest.raises(UntestedProgramsError, match=message):
        load(name).compute(predictions=[["good"] * 98 + ["lost"] * 2], references=["a"])


def test_no_task_left_for_k(fake: type[FakeExecutor]) -> None:
    with pytest.raises(UntestedProgramsError, match="No task has k=100 programs that could be run"):
        load("pass_at_k").compute(predictions=[["good"] * 99 + ["lost"]], references=["a"], k=100)


@pytest.mark.parametrize("name", ["pass_at_k", "code_errors"])
def test_broken_test_is_not_a_failure_of_the_model(fake: type[FakeExecutor], name: str) -> None:
    fake.results["bad"] = ExecutionResult(
        "failed", error_type="SyntaxError", message="'(' was never closed", stage="compile", origin="test"
    )
    with pytest.raises(ValueError, match=r"references\[1\] is not a Python program \('\(' was never closed\)"):
        load(name).compute(predictions=[["good"], ["bad"]], references=["a", "("])


@pytest.mark.parametrize(
    ("predictions", "references", "complaint"),
    [
        (None, ["a"], "predictions is NoneType"),
        ([["good"]], None, "references is NoneType"),
        ("good", ["a"], "predictions is str"),
        (iter([["good"]]), ["a"], "predictions is list_iterator"),
        (["good"], ["a"], r"predictions\[0\] is str; give each task a list"),
        ([["good"], [None]], ["a", "b"], r"predictions\[1\]\[0\] is NoneType"),
        ([["good", 3]], ["a"], r"predictions\[0\]\[1\] is int"),
        ([["good", b"x"]], ["a"], r"predictions\[0\]\[1\] is bytes"),
        ([["good"]], [1], r"references\[0\] is int"),
        ([["good"]], [{"inputs": [""]}], r"references\[0\] has no outputs"),
        ([["good"]], ["{}"], r"references\[0\] has no inputs and no outputs"),
        ([["good"]], ["a", "b"], "1 predictions and 2 references"),
    ],
)
@pytest.mark.parametrize("name", ["pass_at_k", "code_errors"])
def test_wrong_input(fake: type[FakeExecutor], name: str, predictions: Any, references: Any, complaint: str) -> None:
    metric = load(name)
    with pytest.raises((TypeError, ValueError), match=complaint):
        metric.compute(predictions=predictions, references=references)
    assert metric.compute(predictions=[["good"]], references=["a"])  # and nothing of it is left over


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_compute(fake: type[FakeExecutor], name: str) -> None:
    for arguments in ({}, {"predictions": [], "references": []}):
        with pytest.raises(ValueError, match="There is nothing to compute"):
            load(name).compute(**arguments)


def test_unknown_argument(fake: type[FakeExecutor]) -> None:
    with pytest.raises(TypeError, match="pass_at_k has no option 'time_out'; choose from"):
        load("pass_at_k").compute(predictions=[["good"]], references=["a"], time_out=1)


def test_batches_add_up(fake: type[FakeExecutor]) -> None:
    metric = load("pass_at_k")
    metric.add_batch(predictions=[["good"]], references=["a"])
    metric.add_batch(predictions=[], references=[])
    metric.add(prediction=["bad"], reference="b")
    with pytest.raises(TypeError, match=r"predictions\[3\]\[0\] is int"):
        metric.add_batch(predictions=[["good"], [1]], references=["c", "d"])
    metric.add_batch(predictions=[["bad"], ["bad", "good"]], references=["c", "d"])
    assert len(metric) == 4
    found = metric.compute()
    assert [test for _, test in fake.seen] == ["a", "b", "c", "d", "d"]
    assert found["pass@1"] == pytest.approx(1.5 / 4)


def test_texts_are_unchanged(fake: type[FakeExecutor]) -> None:
    programs = ["", "a\0b", "\ud800", "é" * 100_000, "(" * 10_000, '"x"', "\\ud800", "\r\n"]
    tests = [
        "",
        "{",
        "[1][0]",
        '{"inputs": ["\ud800"], "outputs": [[1, "a"]], "fn_name": "f"}',
        {"inputs": ["1"], "outputs": ["2"]},
    ]
    load("pass_at_k").compute(predictions=[programs] * len(tests), references=tests)
    assert [program for program, _ in fake.seen] == programs * len(tests)
    found = [fake.seen[index * len(programs)][1] for index in range(len(tests))]
    assert found == [*tests[:3], {"inputs": ["\ud800"], "outputs": [[1, "a"]], "fn_name": "f"}, tests[4]]


def test_failed_computation_leaves_no_files(fake: type[FakeExecutor], tmp_path: Path) -> None:
    metric = evaluate.load(str(FOLDER / "pass_at_k"), cache_dir=str(tmp_path))
    with pytest.raises(TypeError):
        metric.compute(predictions=[["good"]], references=["a"], time_out=1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"entry_points": ["f", "g"]}, "entry_points has 2 entries for 1 tasks"),
        ({"truncated": [[True], [True]]}, "truncated has 2 entries for 1 tasks"),
        ({"truncated": [[True]]}, r"truncated\[0\] has 1 entries for 2 programs"),
    ],
)
def test_code_errors_of_wrong_shape(fake: type[FakeExecutor], arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        load("code_errors").compute(predictions=[["good", "bad"]], references=["a"], **arguments)


def test_code_errors_uses_entry_points_and_truncation(fake: type[FakeExecutor]) -> None:
    fake.results["("] = ExecutionResult("failed", error_type="SyntaxError", stage="compile", origin="candidate")
    stub = "x = 1\ndef f(): pass"
    found = load("code_errors").compute(
        predictions=[["(", "(", stub], [stub]],
        references=["a", "b"],
        entry_points=["f", None],
        truncated=[[True, False, False], [False]],
        details=True,
    )
    assert [[label["cause"] for label in task] for task in found["details"]] == [
        ["overflow", "other_syntax", "stub"],
        ["wrong_answer"],
    ]
    assert (found["complete"], found["incomplete"], found["isolation"]) == (1, 3, "process")


def test_accuracy_loss_names_the_item() -> None:
    metric = load("accuracy_loss")
    with pytest.raises(ValueError, match=r"predictions\[1\] or references\[1\] .* teacher is 0"):
        metric.compute(predictions=[1, 1], references=[2, 0])
    with pytest.raises(ValueError, match=r"predictions\[0\] .* model is 'a'"):
        metric.compute(predictions=["a"], references=[2])
    assert metric.compute(predictions=[1, 3], references=[2, 4]) == {
        "accuracy_loss": 0.375,
        "per_item": [0.5, 0.25],
    }


def test_consent_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    for name in ("pass_at_k", "code_errors"):
        with pytest.raises(PermissionError, match="HF_ALLOW_CODE_EVAL"):
            load(name).compute(predictions=[[ADD]], references=[TEST])


def test_real_programs() -> None:
    programs = [
        ADD,
        SUBTRACT,
        "def add(a, b):\n    while True: pass",
        "def add(a, b): return a + no",
        "raise SystemExit(0)",
    ]
    found = load("pass_at_k").compute(
        predictions=[programs], references=[TEST], k=[1, 5], timeout=1, allow_code_execution=True
    )
    assert (found["pass@1"], found["pass@5"], found["timed_out"], found["infra_errors"]) == (0.2, 1.0, 1, 0)
    table = load("code_errors").compute(
        predictions=[programs], references=[TEST], timeout=1, allow_code_execution=True
    )
    counts = {row: count for row, count in table.items() if "/" in row and count}
    assert counts == {"NameError/missing_content": 1, "early_exit/early_exit": 1, "timeout/timeout": 1}
    assert (table["correct"], table["wrong_answer"], table["incomplete"]) == (1, 1, 3)


def test_real_scripts() -> None:
    tests = json.dumps({"inputs": ["2 3\n", "1 1\n"], "outputs": ["5\n", "2\n"]})
    script = "print(sum(map(int, input().split())))"
    found = load("pass_at_k").compute(
        predictions=[[script, "print(5)"]], references=[tests], allow_code_execution=True, details=True
    )
    assert found["pass@1"] == 0.5
    assert [result["tests_passed"] for result in found["details"][0]["results"]] == [2, 1]


def test_humaneval() -> None:
    if not HUMANEVAL.is_file():
        pytest.skip("the optional ../shared/data/humaneval/HumanEval.jsonl.gz is absent")
    problems = [json.loads(line) for line in gzip.open(HUMANEVAL, "rt")]
    arguments: dict[str, Any] = {
        "references": [f"{problem['test']}\ncheck({problem['entry_point']})" for problem in problems],
        "allow_code_execution": True,
        "timeout": 10,
    }
    solutions = [[problem["prompt"] + problem["canonical_solution"]] for problem in problems]
    found = load("pass_at_k").compute(predictions=solutions, **arguments)
    assert (found["pass@1"], found["num_tasks"], found["infra_errors"]) == (1.0, 164, 0)
    stubs = [[problem["prompt"] + "    pass"] for problem in problems]
    names = [problem["entry_point"] for problem in problems]
    table = load("code_errors").compute(predictions=stubs, entry_points=names, **arguments)
    counts = {row: count for row, count in table.items() if "/" in row and count}
    assert counts.keys() <= {"AssertionError/stub", "TypeError/wrong_type", "AttributeError/missing_attribute"}
    assert sum(counts.values()) == table["incomplete"] == table["judged"] == 164
