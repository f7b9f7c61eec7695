"""pass@k against the number of plans."""

from itertools import combinations
from pathlib import Path

import pytest

from trl_akd.codeplan.plan_curve import pass_at_k_by_plans, plot_plan_curve, top_k_by_plans
from trl_akd.codeplan.plan_sampling import PlanChoice, PlanSamplingResult, PlanScore
from trl_akd.execution import ExecutionResult

STATUS = {"+": "passed", "-": "failed", "?": "infra_error"}


def result(name: str, **verdicts: str) -> PlanSamplingResult:
    """`result("a", n0="+-")`: without a plan the first of two programs passes."""
    choices = {
        int(number[1:]): PlanChoice(0, (), ("",) * len(marks), tuple(ExecutionResult(STATUS[mark]) for mark in marks))
        for number, marks in verdicts.items()
    }
    return PlanSamplingResult(name, (PlanScore("", None, None),) * max(choices), choices)


RESULTS = [result("a", n0="--+-", n1="++--", n2="+++-"), result("b", n0="----", n1="---+", n2="--++")]


def test_against_counting_subsets():
    curve = pass_at_k_by_plans(RESULTS, k=[1, 2, 3])
    assert list(curve) == [0, 1, 2]
    for number, metrics in curve.items():
        for k in (1, 2, 3):
            solved = [
                any(verdict.passed for verdict in subset)
                for each in RESULTS
                for subset in combinations(each.choices[number].verdicts, k)
            ]
            assert metrics[f"pass@{k}"].value == pytest.approx(sum(solved) / len(solved))
            assert metrics[f"pass@{k}"].low <= metrics[f"pass@{k}"].value <= metrics[f"pass@{k}"].high


def test_only_top_k_depends_on_the_order():
    tops = top_k_by_plans(RESULTS, k=[1, 2])
    assert {number: (m["top@1"].value, m["top@2"].value) for number, m in tops.items()} == {
        0: (0.0, 0.0),
        1: (0.5, 0.5),
        2: (0.5, 0.5),
    }


def test_programs_that_were_not_run_are_excluded():
    curve = pass_at_k_by_plans([result("a", n1="+?-?")])
    assert curve[1]["pass@1"].value == 0.5
    with pytest.raises(ValueError, match="a"):
        pass_at_k_by_plans([result("a", n1="+?")], k=[2])


def test_curve_needs_hidden_tests():
    bare = PlanSamplingResult("a", (PlanScore("", None, None),), {1: PlanChoice(0, (), ("",), ())})
    with pytest.raises(ValueError, match="problem 'a' has no results of `hidden_tests`"):
        pass_at_k_by_plans([bare])


def test_a_figure(tmp_path: Path):
    pytest.importorskip("matplotlib")
    curve = pass_at_k_by_plans(RESULTS, k=[1, 2])
    plot_plan_curve({"all problems": curve, "easy": curve}, tmp_path / "plans.png")
    assert (tmp_path / "plans.png").read_bytes().startswith(b"\x89PNG")
