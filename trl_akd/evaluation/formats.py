"""Readers of the rows of HumanEval, MBPP, APPS, LiveCodeBench and plain JSON Lines."""

import ast
import base64
import binascii
import builtins
import json
import pickletools
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from ..execution import Tests, check_tests, decode_tests
from ..generation.python_ast import defines, parse
from .problems import Problem

__all__ = [
    "Row",
    "UntestableError",
    "cases",
    "optional_text",
    "read_livecodebench",
    "read_problem",
    "task_id",
    "tests",
    "text",
    "texts",
]

Row: TypeAlias = Mapping[str, Any]


class UntestableError(ValueError):
    """A problem has no usable tests."""


def task_id(row: Row, where: str, *names: str) -> str:
    """Return the identifier in the first of these columns that exists."""
    value = next((row[name] for name in names if name in row), None)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ValueError(f"`{names[0]}` in {where} is {value!r}; give every problem a unique name or number.")
    return str(value)


def text(row: Row, column: str, where: str) -> str:
    """Return a non-blank string."""
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"`{column}` in {where} is {value!r:.80}; give a text.")
    return value


def optional_text(row: Row, column: str, where: str) -> str | None:
    """Return a string, or `None` if it is missing or blank."""
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"`{column}` in {where} is {value!r:.80}; give a text, or leave it out.")
    return value if value is not None and value.strip() else None


def texts(row: Row, column: str, where: str) -> tuple[str, ...]:
    """Return a list of strings, which is empty if the column is missing."""
    value = row.get(column)
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
        raise ValueError(f"`{column}` in {where} is {value!r:.80}; give a list of texts, or leave it out.")
    return tuple(value)


def tests(row: Row, column: str, where: str) -> Tests:
    """Return a test program, or `{"inputs", "outputs"}`, optionally with `"fn_name"`, from a mapping or its JSON.

    Raises:
        UntestableError: If there are none, or they contain integers of more than 4,300 digits, which Python does not
        parse. ValueError: If they are malformed.
    """
    value = row[column]
    if not value or (isinstance(value, str) and not value.strip()):
        raise UntestableError(f"`{column}` in {where} is {value!r}; give a test program, or inputs and outputs.")
    try:
        found: Tests = decode_tests(value)
        if found == {} or (isinstance(found, Mapping) and not found.get("inputs", True)):
            raise UntestableError(f"`{column}` in {where} has no inputs; give some.")
        check_tests(found, f"`{column}` in {where}")
    except UntestableError:
        raise
    except (ValueError, TypeError) as error:
        kind = UntestableError if "integer string conversion" in str(error) else ValueError
        raise kind(
            f"`{column}` in {where} is {value!r:.80}; give a test program, or a mapping with as many `inputs` as "
            f"`outputs` ({error})."
        ) from error
    return found


def cases(row: Row, column: str, where: str) -> dict[str, Any]:
    """Return inputs and outputs, as [`tests`] does, but no test program."""
    found = tests(row, column, where)
    if isinstance(found, str):
        raise ValueError(
            f"`{column}` in {where} is {found!r:.80}; give a mapping of `inputs` and `outputs`, or its JSON."
        )
    return dict(found)


# A function body ends at unindented code, as for Codex (arXiv 2107.03374, section 2.3). Solutions of MBPP may define
# several functions, so they end at tests and prose.
_FUNCTION_ENDS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\nassert ", "\n@", "\n```")
_PROGRAM_ENDS = ('\n"""', "\nassert ", "\nprint(", "\nif __name__", "\n```")
_ANSWER_ENDS = ("\nQUESTION:", "\nANSWER:", "\n---", "\n```")


def read_problem(row: Row, where: str) -> Problem:
    """Read a row of any supported format.

    | columns | format |
    |---|---|
    | `task_id`, `prompt`, `entry_point`, `test` with a function `check` | HumanEval, HumanEval+ |
    | `task_id`, `text` or `prompt`, `test_list` | MBPP, MBPP+ |
    | `question`, `input_output` | APPS |
    | `question_content`, `public_test_cases`, `private_test_cases` | LiveCodeBench |
    | `task_id`, `prompt`, `test` | plain: the test is run after prompt and completion |

    Raises:
        UntestableError: If the problem has no usable tests.
        ValueError: If the columns match no format, or a value is missing or of another type.
    """
    for columns, read in _FORMATS.items():
        if all(column in row for column in columns):
            return read(row, where)
    raise ValueError(
        f"{where} has the columns {', '.join(map(str, row)) or 'none'}; give task_id, prompt and test, or those of "
        "HumanEval (with entry_point), MBPP (task_id, text, test_list), APPS (question, input_output) or "
        "LiveCodeBench (question_content, public_test_cases, private_test_cases)."
    )


def _humaneval(row: Row, where: str) -> Problem:
    if "def check(" not in str(row["test"]):
        return _plain(row, where)
    prompt, entry_point = text(row, "prompt", where), text(row, "entry_point", where)
    return Problem(
        task_id=task_id(row, where, "task_id"),
        prompt=prompt,
        tests=f"{text(row, 'test', where)}\ncheck({entry_point})\n",
        instruction=f"Complete the following Python function.\n\n```python\n{prompt.strip()}\n```",
        code_prompt=prompt,
        entry_point=entry_point,
        stop=_FUNCTION_ENDS,
    )


def _mbpp(row: Row, where: str) -> Problem:
    asserts = texts(row, "test_list", where)
    if not asserts:
        raise ValueError(f"`test_list` in {where} is empty; give a list of assert statements.")
    description = text(row, "text" if "text" in row else "prompt", where).strip()
    hidden = optional_text(row, "test", where)
    setup = [optional_text(row, "test_setup_code", where) or "", *texts(row, "test_imports", where)]
    shown = "\n".join(asserts)
    base = _test_program([*setup, shown])
    program = _test_program([*setup, hidden]) if hidden else base
    prompt = f'"""\n{description}\n{shown}\n"""\n'
    return Problem(
        task_id=task_id(row, where, "task_id"),
        prompt=prompt,
        tests=program,
        instruction=f"{description}\n\nYour code must pass these tests:\n\n```python\n{shown}\n```",
        code_prompt=prompt,
        entry_point=_called(asserts, optional_text(row, "code", where)),
        base_tests=base if hidden else None,
        public_tests=base,
        stop=_PROGRAM_ENDS,
    )


def _test_program(parts: Sequence[str]) -> str:
    return "\n".join(parts).replace("\r\n", "\n").strip() + "\n"


def _apps(row: Row, where: str) -> Problem:
    question, starter = text(row, "question", where), optional_text(row, "starter_code", where) or ""
    hidden = cases(row, "input_output", where)
    function = hidden.get("fn_name")
    convention = "Use Call-Based format" if function else "Use Standard Input format"
    task = f"{question.strip()}\n{starter}"
    asked = f"Define `{function}`." if function else "Read standard input and write standard output."
    return Problem(
        task_id=task_id(row, where, "task_id", "problem_id", "id"),
        prompt=f"\nQUESTION:\n{task}\n{convention}\n\nANSWER:\n",
        tests=hidden,
        instruction=f"Solve this problem in Python. {asked}\n\n{task.strip()}",
        entry_point=function,
        public_tests=cases(row, "example_input_output", where) if row.get("example_input_output") else None,
        stop=_ANSWER_ENDS,
        difficulty=optional_text(row, "difficulty", where),
    )


def _plain(row: Row, where: str) -> Problem:
    prompt = text(row, "prompt", where)
    return Problem(
        task_id=task_id(row, where, "task_id"),
        prompt=prompt,
        tests=tests(row, "test", where),
        instruction=optional_text(row, "instruction", where) or prompt.strip(),
        code_prompt=prompt if _is_code(prompt) else "",
        entry_point=optional_text(row, "entry_point", where),
        public_tests=tests(row, "public_test", where) if row.get("public_test") else None,
        stop=texts(row, "stop", where),
        difficulty=optional_text(row, "difficulty", where),
    )


def _called(asserts: Sequence[str], solution: str | None) -> str | None:
    """Return the first function called in asserts that the solution defines or, if none, that is not a builtin."""
    called = [
        node.func.id
        for node in ast.walk(parse("\n".join(asserts)) or ast.parse(""))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    reference = (solution or "").replace("\r", "")
    known = [name for name in called if defines(reference, name)]
    return next(iter(known or (name for name in called if not hasattr(builtins, name))), None)


_MAY_BE_WORDS = (
    ast.Expr,
    ast.Return,
    ast.Raise,
    ast.Assert,
    ast.Delete,
    ast.Pass,
    ast.Break,
    ast.Continue,
    ast.Global,
)


def _is_code(prompt: str) -> bool:
    """Return whether a prompt, alone or with a body, parses as code and is more than words such as `Task: double`."""
    trees = filter(None, (parse(f"{prompt}{body}") for body in ("", "\n    pass\n")))
    return any(not tree.body or not all(map(_may_be_words, tree.body)) for tree in trees)


def _may_be_words(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return not isinstance(node.value.value, str)
    return isinstance(node, _MAY_BE_WORDS) or (isinstance(node, ast.AnnAssign) and node.value is None)


_TEXTS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_BESIDE_TEXT = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}
_MAX_TESTS_BYTES = 1 << 30  # of the private tests of a problem; the largest published ones have about 100 MB


def read_livecodebench(row: Row, where: str) -> Problem:
    """Read a row of LiveCodeBench, as published in `livecodebench/code_generation_lite`.

    A program must pass public and private tests, as in the benchmark's harness.

    Raises:
        UntestableError: If the problem has no tests.
        ValueError: If a value is missing or of another type, or the packed tests contain anything but text.
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
    """Return the tests in a column: a list, its JSON, or the JSON pickled, compressed and encoded in base64."""
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
    """Return the string in a pickle that is compressed and encoded in base64, without unpickling."""
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
    """Return the string in a pickle by reading its instructions without executing them."""
    texts: list[str] = []
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name in _TEXTS:
            texts.append(str(argument))
        elif instruction.name not in _BESIDE_TEXT:
            raise ValueError(f"its pickle contains more than a string: {instruction.name} {argument or ''}".rstrip())
    if len(texts) != 1:
        raise ValueError(f"its pickle contains {len(texts)} strings instead of one")
    return texts[0]


def _from_json(value: str, column: str, where: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{column}` in {where} is {value!r:.80}, which is not JSON ({error}).") from error


_FORMATS: Mapping[tuple[str, ...], Callable[[Row, str], Problem]] = MappingProxyType(
    {
        ("task_id", "prompt", "entry_point", "test"): _humaneval,
        ("task_id", "text", "test_list"): _mbpp,
        ("task_id", "prompt", "test_list"): _mbpp,
        ("question", "input_output"): _apps,
        ("question_content", "public_test_cases", "private_test_cases"): read_livecodebench,
        ("task_id", "prompt", "test"): _plain,
    }
)
