"""Base classes of the metrics, and workarounds for `evaluate`.

- Arrow tables cast values silently: the programs `["a", 3]` become `'"a"'` and `'3'`. Every value is therefore checked
  first.
- Arrow refuses strings with lone surrogates, which models generate, and tests of different types. Programs and tests
  are therefore stored as JSON in ASCII.
- When a computation fails, `evaluate` leaves a locked file, for which the next computation waits a second. A single
  process therefore keeps its values in memory, whatever `keep_in_memory` says; several processes exchange them by
  files.
"""

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

import datasets
import evaluate

from trl_akd.execution import CodeExecutor, ExecutionResult, check_tests, decode_tests
from trl_akd.metrics.verdicts import check_verdicts

__all__ = [
    "LocalMetric",
    "ProgramMetric",
    "as_list",
    "number_of_workers",
    "plain_number",
    "run_programs",
    "values_of_k",
]

# Arguments that only some metrics of programs take; `evaluate.combine` gives each metric the arguments of all.
_NOT_SHARED = frozenset({"k", "confidence", "entry_points", "truncated"})


class LocalMetric(evaluate.Metric, ABC):
    """Metric that checks each value before `evaluate` casts it, and leaves no files."""

    @abstractmethod  # evaluate.load takes the first class of a module that is a metric and not abstract
    def _info(self) -> evaluate.MetricInfo: ...

    @abstractmethod
    def _encode(self, where: str, prediction: Any, reference: Any) -> tuple[Any, Any]:
        """Check a prediction and its reference, and return the values to store; `where` is their name in messages."""

    def add_batch(self, *, predictions: Sequence[Any] | None = None, references: Sequence[Any] | None = None) -> None:
        """Add predictions and their references for `compute`."""
        predictions, references = _listed("predictions", predictions), _listed("references", references)
        if len(predictions) != len(references):
            raise ValueError(
                f"There are {len(predictions)} predictions and {len(references)} references; give one reference each."
            )
        rows = [
            self._encode(f"[{index}]", *row)
            for index, row in enumerate(zip(predictions, references, strict=True), start=len(self))
        ]
        if rows:
            encoded_predictions, encoded_references = map(list, zip(*rows, strict=True))
            super().add_batch(predictions=encoded_predictions, references=encoded_references)

    def add(
        self, *, prediction: Any = None, reference: Any = None, predictions: Any = None, references: Any = None
    ) -> None:
        """Add a prediction and its reference; `evaluate.combine` passes the plural names."""
        if predictions is not None:
            prediction = _only_one("prediction", prediction, predictions)
        if references is not None:
            reference = _only_one("reference", reference, references)
        self.add_batch(predictions=[prediction], references=[reference])

    def _init_writer(self, timeout: int = 1) -> None:
        self.keep_in_memory = self.num_process == 1
        super()._init_writer(timeout)

    def _finalize(self) -> None:
        if self.writer is None:
            raise ValueError(
                "There is nothing to compute; give predictions and references, or call `add_batch` first."
            )
        super()._finalize()


class ProgramMetric(LocalMetric):
    """Metric of programs, with any number of programs and one test per task."""

    def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, Any] | None:
        """Run the programs and compute the metric.

        Options of the other metrics of programs are ignored, so that metrics combined by `evaluate.combine` can be
        computed with the options of each. Any other unknown option is an error.
        """
        taken = inspect.signature(self._compute).parameters
        unknown = options.keys() - taken - _NOT_SHARED
        if unknown:
            raise TypeError(
                f"{self.name} has no option {', '.join(map(repr, sorted(unknown)))}; choose from {', '.join(taken)}."
            )
        own = {name: plain_number(value) for name, value in options.items() if name in taken}
        found: dict[str, Any] | None = super().compute(predictions=predictions, references=references, **own)
        return found

    @property
    def _features(self) -> datasets.Features:
        text = datasets.Value("string")
        return datasets.Features({"predictions": datasets.Sequence(text), "references": text})

    def _encode(self, where: str, prediction: Any, reference: Any) -> tuple[list[str], str]:
        programs = as_list(prediction)
        if programs is None:
            raise TypeError(
                f"predictions{where} is {type(prediction).__name__}; give each task a list of programs, even of one."
            )
        for index, program in enumerate(programs):
            if not isinstance(program, str):
                raise TypeError(f"predictions{where}[{index}] is {type(program).__name__}; give the program's text.")
        if not isinstance(reference, str | Mapping):
            raise TypeError(
                f"references{where} is {type(reference).__name__}; give a test program's text or inputs and outputs."
            )
        return [json.dumps(program) for program in programs], _encode_tests(f"references{where}", reference)


def run_programs(
    executor: CodeExecutor, predictions: Sequence[Sequence[str]], references: Sequence[str]
) -> tuple[list[list[str]], list[list[ExecutionResult]]]:
    """Run the programs of each task against its test.

    Args:
        executor ([`CodeExecutor`]): Sandbox of the programs.
        predictions (`Sequence[Sequence[str]]`), references (`Sequence[str]`): as encoded by [`ProgramMetric`].

    Returns:
        `tuple`: The programs of each task, and their results.

    Raises:
        ValueError: If a test is not a Python program.
        UntestedProgramsError: If more than 1 % of the programs have infrastructure errors.
    """
    programs = [[json.loads(program) for program in task] for task in predictions]
    tests = [json.loads(reference) for reference in references]
    pairs = [(program, test) for task, test in zip(programs, tests, strict=True) for program in task]
    stream = iter(executor.run(pairs))
    results = [list(islice(stream, len(task))) for task in programs]
    check_verdicts((f"references[{index}]", result) for index, task in enumerate(results) for result in task)
    return programs, results


def as_list(values: Any) -> list[Any] | None:
    """Return the items of a list, tuple, array, series or column of a dataset, and `None` for anything else.

    Example:
        ```python
        >>> import numpy as np
        >>> as_list(np.array([1, 10])), as_list("ab")
        ([1, 10], None)

        ```
    """
    for convert in ("tolist", "to_pylist"):  # NumPy, pandas and torch; Arrow: items become Python's own
        if hasattr(values, convert):
            values = getattr(values, convert)()
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sized) or not isinstance(values, Iterable):
        return None
    return list(values)


def plain_number(value: Any) -> Any:
    """Convert a NumPy number to a Python number; return other values unchanged."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def values_of_k(k: Any) -> list[int]:
    """Return the sorted values of k, given one or several.

    Raises:
        ValueError: If there is none, or one is not a whole number of at least 1.
    """
    values = as_list(k)
    if values is None:
        values = [k]
    if not values:
        raise ValueError("k is empty; give at least one number of programs to try.")
    for value in map(plain_number, values):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"k is {value!r}; give a whole number of at least 1, or a list of such numbers.")
    return sorted(set(map(plain_number, values)))


def number_of_workers(workers: int | None, num_workers: int | None) -> int | None:
    """Return the number of programs to run concurrently, given as `workers` or `num_workers`."""
    if workers is not None and num_workers is not None:
        raise ValueError(f"workers is {workers} and num_workers is {num_workers}; give one of them.")
    return num_workers if workers is None else workers


def _listed(name: str, column: Any) -> list[Any]:
    values = as_list(column)
    if values is None:
        raise TypeError(f"{name} is {type(column).__name__}; give a list.")
    return values


def _only_one(name: str, singular: Any, plural: Any) -> Any:
    if singular is not None:
        raise ValueError(f"{name} and {name}s are both given; give one of them.")
    return plural


def _encode_tests(where: str, reference: str | Mapping[str, Any]) -> str:
    """Encode a test program, or inputs and outputs as in APPS or their JSON, as JSON."""
    tests = decode_tests(reference)
    if not isinstance(tests, Mapping):
        check_tests(tests, where)
        return json.dumps(tests)
    missing = {"inputs", "outputs"} - tests.keys()
    if missing:
        raise ValueError(f"{where} has no {' and no '.join(sorted(missing))}; give both, as in APPS.")
    try:
        encoded = json.dumps(dict(tests), default=_as_json)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{where} is not JSON ({error}); give numbers, texts, lists and dicts of them.") from error
    check_tests(json.loads(encoded), where)
    return encoded


def _as_json(value: Any) -> Any:
    """Convert a NumPy array or number, a series or a column to plain Python values."""
    number = plain_number(value)
    plain = number if number is not value else as_list(value)
    if plain is None or isinstance(value, set | frozenset):  # a set has no order
        raise TypeError(f"it holds a value of type {type(value).__name__}")
    return plain
