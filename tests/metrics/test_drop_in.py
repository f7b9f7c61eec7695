"""The metrics used as `evaluate`'s own are: other containers, `combine`, and calls written for code_eval."""

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
