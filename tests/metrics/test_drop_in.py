"""Compatibility of the metrics with `evaluate`: other containers, `combine`, and calls of code_eval."""

import warnings
from typing import Any

import datasets
import evaluate
import numpy as np
import pandas as pd
import pytest

from tests.metrics.test_computing import ADD, SUBTRACT, TEST, fake  # noqa: F401
from trl_akd.metrics import load

TASKS = [["good", "bad"], ["bad", "bad"]]
TESTS = ["a", "b"]


def ragged(tasks: list[list[str]]) -> np.ndarray:
    found = np.empty(len(tasks), dtype=object)
    found[:] = [np.array(task) for task in tasks]
    return found


CONTAINERS: dict[str, Any] = {
    "tuples": (tuple(map(tuple, TASKS)), tuple(TESTS)),
    "array": (np.array(TASKS), np.array(TESTS)),
    "object_array": (np.array(TASKS, dtype=object), np.array(TESTS, dtype=object)),
    "array_of_arrays": (ragged(TASKS), np.array(TESTS)),
    "list_of_arrays": ([np.array(task) for task in TASKS], TESTS),
    "series": (pd.Series(TASKS), pd.Series(TESTS)),
    "columns": tuple(datasets.Dataset.from_dict({"p": TASKS, "r": TESTS})[name] for name in ("p", "r")),
}


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(name: str) -> None:
    predictions, references = CONTAINERS[name]
    found = load("pass_at_k").compute(predictions=predictions, references=references, k=[1, 2])
    assert (found["pass@1"], found["pass@2"]) == (0.25, 0.5)
    metric = load("pass_at_k")
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute(k=[1, 2]) == found


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("k", [1, (1,), [1, 1], np.int64(1), np.array(1), np.array([1]), range(1, 2), pd.Series([1])])
def test_kinds_of_k(k: Any) -> None:
    found = load("pass_at_k").compute(predictions=TASKS, references=TESTS, k=k)
    assert found["pass@1"] == 0.25 and "pass@2" not in found


@pytest.mark.usefixtures("fake")
def test_k_above_the_samples_is_left_out_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"k above 2, .* are left out: 10, 100\."):
        found = load("pass_at_k").compute(
            predictions=[*TASKS, ["good"] * 100], references=[*TESTS, "c"], k=[1, 10, 100]
        )
    assert [key for key in found if key.startswith("pass@") and "_" not in key] == ["pass@1"]


def test_inputs_and_outputs_in_arrays() -> None:
    tests = {"inputs": np.array(["1 2", "3 4"]), "outputs": np.array(["3", "7"])}
    programs = np.array([["print(sum(map(int, input().split())))", "print(input())"]])
    metric = load("pass_at_k")
    assert (
        metric.compute(predictions=programs, references=np.array([tests]), allow_code_execution=True)["pass@1"] == 0.5
    )


def test_a_call_written_for_code_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    found = load("pass_at_k").compute(
        references=[TEST], predictions=[[SUBTRACT, ADD]], k=[1, 2], num_workers=1, timeout=3.0
    )
    assert (found["pass@1"], found["pass@2"]) == (0.5, 1.0)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    "k", [True, 1.0, np.float64(1), "1", None, [None], [1, "2"], 0, [-1], [1.5], [[1, 2]], (k for k in [1])]
)
def test_k_that_is_no_whole_number(k: Any) -> None:
    with pytest.raises(ValueError, match=r"^k is .*; give a whole number of at least 1"):
        load("pass_at_k").compute(predictions=TASKS, references=TESTS, k=k)


def arguments(*rows: Any) -> np.ndarray:
    found = np.empty(len(rows), dtype=object)
    found[:] = rows
    return found


@pytest.mark.parametrize(
    "tests",
    [
        {"inputs": [np.array([2, 3])], "outputs": [np.int64(5)], "fn_name": np.str_("add")},
        {"inputs": arguments(np.array([2, 3]), [1, 1]), "outputs": np.array([5, 2]), "fn_name": "add"},
        {"inputs": pd.Series([[np.int32(2), 3.0]]), "outputs": ((5,),), "fn_name": "add"},
        {"inputs": datasets.Dataset.from_dict({"i": [[2, 3]]})["i"], "outputs": [5], "fn_name": "add"},
    ],
)
def test_arrays_within_inputs_and_outputs(tests: dict[str, Any]) -> None:
    found = load("pass_at_k").compute(predictions=[[ADD]], references=[tests], allow_code_execution=True)
    assert found["pass@1"] == 1.0


@pytest.mark.parametrize(
    ("tests", "complaint"),
    [
        ({"inputs": [[{1}]], "outputs": [1], "fn_name": "f"}, r"references\[1\] is not JSON .*type set"),
        ({"inputs": [[b"1"]], "outputs": [1], "fn_name": "f"}, r"references\[1\] is not JSON .*type bytes"),
        ({"inputs": [1], "outputs": [2]}, r"references\[1\] has inputs of type int; give strings or lists of lines"),
        ({"inputs": [1], "outputs": [2], "fn_name": "f"}, r"references\[1\] has inputs of type int for calls of 'f'"),
        ({"inputs": [["1"]], "outputs": [], "fn_name": "f"}, r"references\[1\] has 1 inputs and 0 outputs"),
        ({"inputs": ["1"], "outputs": ["1"], "harness": "x"}, r"references\[1\] has harness='x'; choose one of"),
    ],
)
def test_tests_that_are_refused_before_anything_runs(tests: dict[str, Any], complaint: str) -> None:
    metric = load("code_errors")
    metric.add(prediction=[ADD], reference=TEST)
    with pytest.raises((TypeError, ValueError), match=complaint):
        metric.add(prediction=[ADD], reference=tests)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"entry_points": "f"}, "entry_points is str; give a list with one entry per task"),
        ({"entry_points": ["f"]}, "entry_points has 1 entries for 2 tasks"),
        ({"truncated": [True, False]}, r"truncated\[0\] is bool; give a list with one entry per program"),
        ({"truncated": [[True], [False]]}, r"truncated\[0\] has 1 entries for 2 programs"),
        ({"entrypoints": ["f", "g"]}, "code_errors has no option 'entrypoints'; choose from .*entry_points"),
    ],
)
def test_options_of_code_errors_that_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises((TypeError, ValueError), match=complaint):
        load("code_errors").compute(predictions=TASKS, references=TESTS, **options)


@pytest.mark.parametrize("name", ["pass_at_k", "code_errors"])
def test_workers_under_both_names(name: str) -> None:
    with pytest.raises(ValueError, match="workers is 1 and num_workers is 2; give one of them"):
        load(name).compute(predictions=[[ADD]], references=[TEST], workers=1, num_workers=2)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("way", ["compute", "add", "add_batch"])
def test_combined(way: str) -> None:
    both = evaluate.combine({"score": load("pass_at_k"), "errors": load("code_errors")})
    if way == "compute":
        found = both.compute(predictions=TASKS, references=TESTS)
    elif way == "add_batch":
        both.add_batch(predictions=np.array(TASKS), references=TESTS)
        found = both.compute()
    else:
        for task, test in zip(TASKS, TESTS, strict=True):
            both.add(predictions=task, references=test)
        found = both.compute()
    assert (found["pass@1"], found["correct"], found["score_strict"]) == (0.25, 1, False)


@pytest.mark.usefixtures("fake")
def test_combined_metrics_take_the_options_of_each() -> None:
    both = evaluate.combine([load("pass_at_k"), load("code_errors")])
    options = {"k": [1, 2], "confidence": 0.9, "entry_points": np.array(["f", "f"]), "truncated": [[True, False]] * 2}
    found = both.compute(predictions=TASKS, references=TESTS, **options)
    alone = load("pass_at_k").compute(predictions=TASKS, references=TESTS, k=[1, 2], confidence=0.9)
    assert {key: value for key, value in found.items() if key.startswith("pass@")} == {
        key: value for key, value in alone.items() if key.startswith("pass@")
    }
    with pytest.raises(TypeError, match="has no option 'K'"):
        both.compute(predictions=TASKS, references=TESTS, K=1)


def test_combined_with_a_metric_of_numbers() -> None:
    losses = evaluate.combine([load("accuracy_loss")])
    losses.add(predictions=20.0, references=40.0)
    assert losses.compute()["accuracy_loss"] == 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load("accuracy_loss").compute(predictions=np.array([20, 30]), references=np.array([40.0, 40.0]))
    assert found["per_item"] == [0.5, 0.25]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            {"prediction": ["good"], "predictions": ["bad"], "reference": "a"},
            "prediction and predictions are both given",
        ),
        ({"prediction": ["good"], "reference": "a", "references": "b"}, "reference and references are both given"),
        ({"predictions": "good", "references": "a"}, r"predictions\[0\] is str; give each task a list of programs"),
        ({"predictions": 3, "references": "a"}, r"predictions\[0\] is int; give each task a list"),
        ({"predictions": [3], "references": "a"}, r"predictions\[0\]\[0\] is int; give the program's text"),
        ({"predictions": np.array([1.5]), "references": "a"}, r"predictions\[0\]\[0\] is float"),
        ({"predictions": ["good"]}, r"references\[0\] is NoneType"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises((TypeError, ValueError), match=complaint):
        load("pass_at_k").add(**arguments)
