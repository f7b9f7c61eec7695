"""Test cases of a program: the processes to run for them, and the comparison of outputs.

Outputs are compared in the caller's process, as plain data, so a program cannot influence the comparison.
"""

import ast
import json
import math
import re
from collections.abc import Callable, Container, Generator, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from io import StringIO
from itertools import starmap, zip_longest
from types import MappingProxyType
from typing import Any, TypeAlias

from .returned_values import describe_difference, shorten
from .test_discovery import discover_tests
from .worker import OUTPUT_BYTES, Case
from .zygote import plain_data

__all__ = ["CaseRun", "Tests", "check_tests", "decode_tests", "run_cases", "same_output"]

Tests: TypeAlias = str | Mapping[str, Any]
CaseRun: TypeAlias = Generator[Case, dict[str, Any], dict[str, Any]]

_APPS_PREAMBLE = """\
import collections, fractions, heapq, itertools, math, random, sys, time
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from functools import lru_cache
from heapq import *
from itertools import accumulate, combinations, permutations, product
from math import ceil, cos, exp, fabs, floor, gcd, log, log2, sin, sqrt, tan
from typing import List, Tuple
stdin, stdout = sys.stdin, sys.stdout
try:
    import numpy as np
except ImportError:
    pass
"""
_LIVECODEBENCH_MODULES = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
).split()
_LIVECODEBENCH_PREAMBLE = "\n".join(
    [
        *(f"from {module} import *" for module in (*_LIVECODEBENCH_MODULES, "builtins", "typing")),
        f"import {', '.join(_LIVECODEBENCH_MODULES)}",
        "sys.setrecursionlimit(50000)\n",
    ]
)
_TOLERANCE = 1e-6
_INTEGER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True)
class _Harness:
    """Rules of a benchmark's harness for tests by inputs and outputs.

    Args:
        preamble (`str`):
            Imports that run before the program, as in hendrycks/apps, `eval/testing_util.py`, and LiveCodeBench,
            `lcb_runner/evaluation/testing_util.py`.
        same_output (`Callable`):
            Comparison of the printed with the expected text.
        unwraps (`bool`):
            Whether an expected list of one value also accepts that value.
    """

    preamble: str
    same_output: Callable[[str, str], bool]
    unwraps: bool


def decode_tests(tests: Any) -> Any:
    """Return inputs and outputs that are given as text, in JSON or as a Python literal; return other tests unchanged.

    Raises:
        ValueError: If the JSON contains integers of more than 4,300 digits, which Python does not parse, or is nested
            too deeply, or a literal has values that JSON lacks, such as sets.
    """
    if not isinstance(tests, str) or tests.lstrip()[:1] not in ("{", "["):
        return tests
    try:
        return json.loads(tests)
    except json.JSONDecodeError:
        pass
    except RecursionError as error:
        raise ValueError(f"the text {tests!r:.80} is nested too deeply; give a test program, or flat JSON") from error
    try:
        literal = ast.literal_eval(tests.strip())
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return tests
    try:
        return json.loads(json.dumps(literal))
    except TypeError as error:
        raise ValueError(f"the text {tests!r:.80} has values that JSON lacks ({error}); give JSON") from error


def check_tests(tests: object, where: str) -> None:
    """Raise a TypeError or ValueError unless `tests` is a test program or a mapping of inputs and outputs."""
    if isinstance(tests, str):
        return
    if not isinstance(tests, Mapping):
        raise TypeError(
            f"{where} has tests of type {type(tests).__name__}; give a test program (str), or inputs and outputs."
        )
    inputs, outputs, function = tests.get("inputs"), tests.get("outputs"), tests.get("fn_name")
    if not isinstance(inputs, list | tuple) or not isinstance(outputs, list | tuple):
        raise TypeError(f"{where} has tests without the lists 'inputs' and 'outputs'; give both.")
    if len(inputs) != len(outputs) or not inputs:
        raise ValueError(f"{where} has {len(inputs)} inputs and {len(outputs)} outputs; give one output per input.")
    if function is not None and not isinstance(function, str):
        raise TypeError(f"{where} has fn_name={function!r}; give the name of a function or leave it out.")
    if (harness := tests.get("harness", "apps")) not in tuple(_HARNESSES):
        raise ValueError(f"{where} has harness={harness!r}; choose one of {', '.join(_HARNESSES)}, or leave it out.")
    for value in inputs if function is not None else ():
        if not isinstance(value, list | tuple | str | Mapping):
            raise TypeError(
                f"{where} has inputs of type {type(value).__name__} for calls of {function!r}; give each call a "
                "list of its arguments."
            )
    for number, value in enumerate(outputs if function is not None else ()):
        try:
            plain_data.encode(value)
        except TypeError as error:
            raise TypeError(
                f"{where} has outputs[{number}] that cannot be compared ({error}); give numbers, strings and lists."
            ) from error
    for kind, values in (("inputs", inputs), ("outputs", outputs)):
        for value in values if function is None else ():
            if not isinstance(value, str) and not _is_lines(value):
                raise TypeError(f"{where} has {kind} of type {type(value).__name__}; give strings or lists of lines.")


def run_cases(candidate: str, tests: Tests, *, packages: Container[str], strict: bool, fail_fast: bool) -> CaseRun:
    """Yield the cases to run, receive the outcome of each, and return the fields of the program's result."""
    if isinstance(tests, str):
        discovered = discover_tests(tests)
        reason = discovered.unrunnable
        if reason is None and discovered.imports_pytest and "pytest" not in packages:
            reason = "the test imports pytest, which packages does not name; add it and the packages it depends on"
        if reason is not None:
            return {"status": "infra_error", "message": reason, "tests_total": 1}
        outcome = yield Case(candidate, "strict" if strict else "test", tests, discovered=discovered)
        return {**outcome, "tests_passed": int(outcome["status"] == "passed"), "tests_total": 1}
    function, harness = tests.get("fn_name"), _HARNESSES[tests.get("harness", "apps")]
    first_failure: dict[str, Any] | None = None
    passed, seconds = 0, 0.0
    for number, (given, expected) in enumerate(zip(tests["inputs"], tests["outputs"], strict=True), 1):
        if function is None:
            outcome = yield Case(candidate, "script", _as_text(given), preamble=harness.preamble)
        else:
            outcome = yield Case(candidate, "call", _encode_arguments(given, number), function, harness.preamble)
        seconds += outcome.get("seconds", 0.0)
        outcome = _check_outcome(outcome, expected, number, function, harness)
        if outcome["status"] == "infra_error":
            first_failure = outcome
            break
        if outcome["status"] == "passed":
            passed += 1
        elif first_failure is None:
            first_failure = outcome
            if fail_fast:
                break
    result = first_failure or {"status": "passed"}
    return {**result, "seconds": seconds, "tests_passed": passed, "tests_total": len(tests["inputs"])}


def same_output(printed: str, expected: str) -> bool:
    r"""Compare the output of a script with the expected output.

    Lines are compared word by word, and blank lines are ignored. Numbers may differ by 1e-6, relative or absolute,
    unless both are integers. Two harnesses differ: APPS's compares lines of one number by `numpy.allclose` (1e-5
    relative, 1e-8 absolute; integers too), and also accepts lines and words in any order and numbers rounded to three
    decimals; LiveCodeBench's compares numbers exactly and counts blank lines.

    Example:
        ```python
        >>> same_output("1 2 \n0.3333333", "1 2\n0.33333333\n\n")
        True
        >>> same_output("2\n1\n", "1\n2\n")
        False

        ```
    """
    return all(starmap(_same_words, zip_longest(_lines_with_text(printed), _lines_with_text(expected), fillvalue="")))


def _lines_with_text(text: str) -> Iterator[str]:
    return filter(None, map(str.strip, StringIO(text)))


def _same_words(printed: str, expected: str) -> bool:
    if printed == expected:
        return True
    words = expected.split()
    found = printed.split(maxsplit=len(words))
    return len(found) == len(words) and all(map(_same_word, found, words))


def _same_lines(printed: str, expected: str) -> bool:
    """Compare as LiveCodeBench's harness does: line by line, numbers exactly."""
    left, right = (map(str.strip, StringIO(text.strip() + "\n")) for text in (printed, expected))
    return all(starmap(_same_line, zip_longest(left, right)))


def _same_line(printed: str | None, expected: str | None) -> bool:
    if printed == expected:
        return True
    if printed is None or expected is None:
        return False
    words = expected.split()
    try:
        return list(map(Decimal, printed.split(maxsplit=len(words)))) == list(map(Decimal, words))
    except InvalidOperation:
        return False


_HARNESSES: Mapping[str, _Harness] = MappingProxyType(
    {
        "apps": _Harness(_APPS_PREAMBLE, same_output, unwraps=True),
        "livecodebench": _Harness(_LIVECODEBENCH_PREAMBLE, _same_lines, unwraps=False),
        "none": _Harness("", same_output, unwraps=True),
    }
)


def _check_outcome(
    outcome: dict[str, Any], expected: Any, number: int, function: str | None, harness: _Harness
) -> dict[str, Any]:
    """Turn the outcome of a process that reached its end into a pass or a failure."""
    data: bytes = outcome.pop("output", b"")
    if function is None and outcome.get("ending") == "exit" and outcome.get("exit_code") == 0:
        outcome = {"status": "passed", "seconds": outcome["seconds"]}  # os._exit(0): its output decides
    if outcome["status"] != "passed":
        return outcome
    if len(data) > OUTPUT_BYTES:
        return _failure(outcome, f"case {number}: the output is longer than {OUTPUT_BYTES >> 20} MiB")
    if function is None:
        printed, expected_text = data.decode(errors="replace"), _as_text(expected)
        if harness.same_output(printed, expected_text):
            return outcome
        return _failure(outcome, f"case {number}: printed {shorten(printed)}, not {shorten(expected_text)}")
    difference = describe_difference(data, expected, unwraps=harness.unwraps)
    return outcome if difference is None else _failure(outcome, f"case {number}: {difference}")


def _failure(outcome: dict[str, Any], message: str) -> dict[str, Any]:
    return {
        "status": "failed",
        "error_type": "AssertionError",
        "error_bases": ["Exception", "BaseException", "object"],
        "message": message,
        "stage": "test",
        "origin": "test",
        "ending": "exception",
        "seconds": outcome.get("seconds", 0.0),
    }


def _same_word(left: str, right: str) -> bool:
    if left == right:
        return True
    if _INTEGER.fullmatch(left) and _INTEGER.fullmatch(right):
        return left.lstrip("+") == right.lstrip("+")
    try:
        numbers = float(left), float(right)
    except ValueError:
        return False
    return all(map(math.isfinite, numbers)) and math.isclose(*numbers, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _as_text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "\n".join(value)


def _encode_arguments(value: Any, number: int) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"inputs[{number - 1}] cannot be sent as JSON ({error}); give numbers, strings and lists."
        ) from error


def _is_lines(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(line, str) for line in value)
