"""The rows of LiveCodeBench as problems, with its packed private tests."""

import base64
import binascii
import json
import pickletools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..execution import check_tests
from .columns import Row, UntestableError, optional_text, task_id, text
from .problems import Problem

__all__ = ["read_livecodebench"]

_TEXTS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_BESIDE_TEXT = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}
_MAX_TESTS_BYTES = 1 << 30  # unpacked private tests of one problem; the largest published ones take some 100 MB


def read_livecodebench(row: Row, where: str) -> Problem:
    """Read one row of LiveCodeBench's code generation, as published in `livecodebench/code_generation_lite`.

    Public and private tests together judge a program, as in the benchmark's own harness.

    Args:
        row (`Mapping`):
            `question_id`, `question_content`, `public_test_cases`, `private_test_cases` and, where there are any,
            `starter_code`, `metadata` with the `func_name` to call, and `difficulty`.
        where (`str`):
            Name of the row for messages.

    Raises:
        UntestableError: If the problem has no tests.
        ValueError: If a value is missing or of another type, or the packed tests hold anything but text.
    """
    question, starter = text(row, "question_content", where), optional_text(row, "starter_code", where)
    function = _function(row, where)
    public = _test_cases(row, "public_test_cases", where)
    everything = [*public, *_test_cases(row, "private_test_cases", where)]
    if not everything:
        raise UntestableError(f"{where} has neither public nor private test cases; give some.")
    if starter:
        asked = f"Complete this code:\n\n```python\n{starter.rstrip()}\n```"
    else:
        asked = "Read standard input and write standard output."
    return Problem(
        task_id=task_id(row, where, "question_id", "task_id"),
        prompt=f"### Question\n{question.strip()}\n\n{asked}\n\n### Answer\n",
        tests=_inputs_and_outputs(everything, function, where),
        instruction=f"Solve this problem in Python. {asked}\n\n{question.strip()}",
        entry_point=function,
        public_tests=_inputs_and_outputs(public, function, where) if public else None,
        stop=("\n###",),
        difficulty=optional_text(row, "difficulty", where),
    )


def _function(row: Row, where: str) -> str | None:
    metadata = row.get("metadata") or {}
    if isinstance(metadata, str):
        metadata = _from_json(metadata, "metadata", where)
    if not isinstance(metadata, Mapping):
        raise ValueError(f"`metadata` in {where} is {metadata!r:.80}; give a JSON object.")
    return optional_text(metadata, "func_name", f"`metadata` of {where}")


def _test_cases(row: Row, column: str, where: str) -> Sequence[Mapping[str, Any]]:
    """Return the tests of a column: a list, its JSON, or its JSON pickled, compressed and in base 64."""
    value = row[column]
    if isinstance(value, str):
        packed = value.lstrip()[:1] not in ("[", "")
        value = _from_json(_unpack(value, column, where) if packed else value or "[]", column, where)
    if not isinstance(value, list) or not all(
        isinstance(case, Mapping) and isinstance(case.get("input"), str) and isinstance(case.get("output"), str)
        for case in value
    ):
        raise ValueError(f"`{column}` in {where} is {value!r:.80}; give a list of objects with `input` and `output`.")
    return value


def _inputs_and_outputs(cases: Sequence[Mapping[str, Any]], function: str | None, where: str) -> dict[str, Any]:
    tests: dict[str, Any] = {"harness": "livecodebench"}
    if function is None:
        tests |= {"inputs": [case["input"] for case in cases], "outputs": [case["output"] for case in cases]}
    else:
        tests |= {
            "inputs": [
                [_from_json(line, "input", f"a test of {where}") for line in case["input"].split("\n")]
                for case in cases
            ],
            "outputs": [_from_json(case["output"], "output", f"a test of {where}") for case in cases],
            "fn_name": function,
        }
    check_tests(tests, where)
    return tests


def _unpack(value: str, column: str, where: str) -> str:
    """Return the text in a pickle that is compressed and in base 64, without running anything that it asks for."""
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(value, validate=True), _MAX_TESTS_BYTES)
        if inflate.unconsumed_tail:
            raise ValueError(f"it unpacks to more than {_MAX_TESTS_BYTES >> 20} MiB")
        return _pickled_text(data)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ValueError(
            f"`{column}` in {where} cannot be unpacked ({error}); give a JSON list of tests, or the packed text that "
            "LiveCodeBench publishes."
        ) from error


def _pickled_text(data: bytes) -> str:
    """Return the text that a pickle holds, read from its instructions; none of them is carried out."""
    texts: list[str] = []
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name in _TEXTS:
            texts.append(str(argument))
        elif instruction.name not in _BESIDE_TEXT:
            raise ValueError(f"its pickle holds more than a text: {instruction.name} {argument or ''}".rstrip())
    if len(texts) != 1:
        raise ValueError(f"its pickle holds {len(texts)} texts instead of one")
    return texts[0]


def _from_json(value: str, column: str, where: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{column}` in {where} is {value!r:.80}, which is not JSON ({error}).") from error
