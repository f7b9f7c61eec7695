import json
import math
from pathlib import Path

import pytest

from trl_akd.evaluation.benchmarks import Benchmark
from trl_akd.evaluation.problems import Problem
from trl_akd.evaluation.report import (
    compare,
    comparison_table,
    error_counts,
    plot_errors,
    results_table,
    warnings_about,
)
from trl_akd.evaluation.results import read_results, summarize, write_results
from trl_akd.evaluation.samples import Sample
from trl_akd.evaluation.verdicts import Verdict, write_verdicts
from trl_akd.execution import ExecutionResult
from trl_akd.metrics.taxonomy import classify

PASSED = ExecutionResult("passed", tests_passed=1)
WRONG = ExecutionResult("failed", "AssertionError", stage="test", origin="test", ending="exception")
NAME_ERROR = ExecutionResult("failed", "NameError", "name 'x' is not defined", missing="x", ending="exception")
LATE = ExecutionResult("timed_out", ending="deadline")
UNJUDGED = ExecutionResult("infra_error", message="helper died")


def verdict(task: str, result: ExecutionResult, sample: int = 0, **facts) -> Verdict:
    facts = {"completion": "x", "finish_reason": "stop", **facts}
    program = "def f():\n    return g()"
    return Verdict(Sample(task, program, sample=sample, **facts), result, classify(result, program, "f"))


def benchmark(tasks: str = "abc", **facts) -> Benchmark:
    problems = tuple(Problem(task, "", "", **facts) for task in tasks)
    return Benchmark("letters", problems, "letters.jsonl", fingerprint=tasks)


def run(outcomes: dict[str, list[ExecutionResult]], k=(1,), **facts) -> dict:
    verdicts = [verdict(task, result, i) for task, several in outcomes.items() for i, result in enumerate(several)]
    found = summarize(benchmark("".join(outcomes), **facts), verdicts, k)
    return {**found, "execution": {"timeout": 3.0}}


def test_pass_at_k_over_tasks():
    results = run({"a": [PASSED, WRONG], "b": [WRONG, LATE], "c": [PASSED, PASSED]}, k=(1, 2))
    assert math.isclose(results["metrics"]["pass@1"], 0.5)
    assert math.isclose(results["metrics"]["pass@2"], 2 / 3)
    assert results["metrics"]["pass@1_low"] < 0.5 < results["metrics"]["pass@1_high"]
    assert results["tasks"] == {
        "a": {"samples": 2, "correct": 1},
        "b": {"samples": 2, "correct": 0},
        "c": {"samples": 2, "correct": 2},
    }
    assert "pass@1" in json.dumps(results)


def test_programs_without_a_verdict_are_excluded():
    tasks = {chr(97 + i): [PASSED] * 10 for i in range(20)}
    tasks["a"] = [PASSED] * 8 + [WRONG, UNJUDGED]
    tasks["b"] = [PASSED] * 9 + [UNJUDGED]
    results = run(tasks, k=(1, 10))
    assert results["metrics"]["pass@1"] == pytest.approx((18 + 1 + 8 / 9) / 20)
    assert (results["metrics"]["pass@10"], results["metrics"]["pass@10_tasks"]) == (1.0, 18)
    assert results["samples"]["infra_error"] == results["errors"]["infra_errors"] == 2


def test_too_many_programs_without_a_verdict_are_an_error():
    with pytest.raises(RuntimeError, match=r"1 of 2 programs could not be run.*helper died"):
        run({"a": [UNJUDGED], "b": [PASSED]})
    with pytest.raises(
        RuntimeError, match=r"16 of 17 .*\(test of the problem 'a', .* of the problem 'e' and 3 more\)"
    ):
        run({name: [UNJUDGED] * 2 for name in "abcdefgh"} | {"i": [PASSED]})


def test_invalid_test_is_not_a_failure_of_the_model():
    broken = ExecutionResult("failed", "SyntaxError", "'(' was never closed", stage="compile", origin="test")
    with pytest.raises(ValueError, match="test of the problem 'b' is not a Python program"):
        run({"a": [PASSED], "b": [broken]})


def test_too_few_samples_are_an_error():
    with pytest.raises(RuntimeError, match="No task has k=3"):
        run({"a": [PASSED, WRONG], "b": [WRONG]}, k=(3,))


def test_errors_add_up():
    errors = run({"a": [PASSED], "b": [NAME_ERROR], "c": [LATE], "d": [WRONG]})["errors"]
    rows = sum(count for name, count in errors.items() if "/" in name)
    assert rows == errors["incomplete"] == 2
    assert errors["complete"] + errors["incomplete"] == errors["judged"] == 4
    assert error_counts({"errors": errors}) == {"passed": 1, "wrong answer": 1, "NameError": 1, "timeout": 1}


def test_scores_by_difficulty():
    problems = (Problem("a", "", "", difficulty="easy"), Problem("b", "", "", difficulty="hard"))
    found = summarize(Benchmark("x", problems, "x", "x"), [verdict("a", PASSED), verdict("b", WRONG)], [1])
    assert {level: values["pass@1"] for level, values in found["difficulties"].items()} == {"easy": 1.0, "hard": 0.0}
    assert "easy" in results_table("m", found)


def test_round_trip(tmp_path: Path):
    verdicts = [verdict("a", PASSED), verdict("b", NAME_ERROR)]
    results = summarize(benchmark("ab"), verdicts, [1])
    write_results(tmp_path / "new", results)
    write_verdicts(tmp_path / "new", verdicts)
    found = read_results(tmp_path / "new")
    assert found["versions"]["trl_akd"] and found["metrics"] == results["metrics"]
    lines = [json.loads(line) for line in (tmp_path / "new" / "verdicts.jsonl").read_text().splitlines()]
    assert [line["label"]["error_type"] for line in lines] == [None, "NameError"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"benchmark": {}, "metrics": 3, "tasks": {}}'])
def test_invalid_results_files(content: str, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="run `trl-akd evaluate` into it first"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match="was not written by `trl-akd evaluate`"):
        read_results(tmp_path)


def test_warnings():
    verdicts = [verdict("a", WRONG, completion=" "), verdict("b", WRONG, finish_reason="length")]
    texts = warnings_about(summarize(benchmark("ab"), verdicts, [1]))
    assert texts[0].startswith("1 of 2 completions are empty; check prompt_style")
    assert texts[1].startswith("1 of 2 completions were cut off")
    assert warnings_about(run({"a": [PASSED]})) == []


def test_the_figure_is_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    plot_errors(run({"a": [PASSED], "b": [NAME_ERROR]}), tmp_path / "errors.png")
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")
    plot_errors(run({"a": [PASSED]}), tmp_path / "no_errors.png")


# Comparison


def scores(passes: str) -> dict:
    return run({chr(97 + i): [PASSED if c == "1" else WRONG] for i, c in enumerate(passes)})


def test_comparison():
    rows = compare({"teacher": scores("11111111"), "student": scores("10000000"), "after": scores("11110000")})
    assert [row["pass@1"] for row in rows] == [1.0, 0.125, 0.5]
    assert [row["accuracy_loss"] for row in rows] == [0.0, 0.875, 0.5]
    assert [row["p_first"] for row in rows] == [None, 2 / 2**7, 2 / 2**4]
    assert [row["p_above"] for row in rows] == [None, 2 / 2**7, 2 / 2**3]
    table = comparison_table(rows)
    assert "| student |  0.125 |" in table and "87.5%" in table
    assert len({len(line) for line in table.splitlines()}) == 1


def test_accuracy_loss_needs_a_teacher_that_solves_a_problem():
    rows = compare({"teacher": scores("00"), "student": scores("01")})
    assert [row["accuracy_loss"] for row in rows] == [None, None]


def test_different_problems_are_refused():
    with pytest.raises(ValueError, match="compare results on the same problems"):
        compare({"teacher": scores("11"), "student": scores("111")})


def test_other_execution_settings_are_refused():
    later = {**scores("11"), "execution": {"timeout": 10.0}}
    with pytest.raises(ValueError, match=r"evaluated with timeout=10\.0 and teacher with 3\.0"):
        compare({"teacher": scores("11"), "student": later})


def test_a_k_that_was_not_measured():
    with pytest.raises(ValueError, match="teacher has no pass@10; evaluate it with `--k 10`"):
        compare({"teacher": scores("11"), "student": scores("11")}, k=10)
