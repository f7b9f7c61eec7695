"""LiveCodeBench: columns, packed tests, and verdicts on programs that its harness accepts."""

import base64
import contextlib
import json
import os
import pickle
import random
import tracemalloc
import zlib
from pathlib import Path

import pytest

from tests.evaluation.conftest import write_lines
from trl_akd.evaluation.benchmarks import load_benchmark
from trl_akd.evaluation.evaluation_config import EvaluationConfig
from trl_akd.evaluation.formats import _pickled_text, read_problem
from trl_akd.evaluation.runner import evaluate


def packed(value: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def cases(*pairs: tuple[str, str], kind: str = "stdin") -> str:
    return json.dumps([{"input": given, "output": wanted, "testtype": kind} for given, wanted in pairs])


SCRIPT = {
    "question_id": "abc301_a",
    "question_content": "Print the sum of two numbers.",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": cases(("1 2\n", "3")),
    "private_test_cases": packed(cases(("2 2\n", "4\n"), ("-1 1\n", "0"))),
    "metadata": "{}",
}
FUNCTION = {
    "question_id": "2727",
    "question_content": "Return the numbers above a bound, in order.",
    "starter_code": "class Solution:\n    def above(self, nums: List[int], bound: int) -> List[int]:\n        ",
    "difficulty": "medium",
    "public_test_cases": cases(("[3, 1, 2]\n1", "[2, 3]"), kind="functional"),
    "private_test_cases": cases(("[5]\n9", "[]"), kind="functional"),
    "metadata": json.dumps({"func_name": "above"}),
}
RIGHT = {
    "abc301_a": "print(sum(map(int, input().split())))",
    "2727": FUNCTION["starter_code"] + "return tuple(sorted(n for n in nums if n > bound))",
}


def test_a_row_of_a_script():
    problem = read_problem(SCRIPT, "line 1")
    assert problem.tests == {
        "harness": "livecodebench",
        "inputs": ["1 2\n", "2 2\n", "-1 1\n"],
        "outputs": ["3", "4\n", "0"],
    }
    assert problem.public_tests["inputs"] == ["1 2\n"]
    assert (problem.task_id, problem.entry_point, problem.difficulty) == ("abc301_a", None, "easy")
    assert "standard input" in problem.instruction


def test_a_row_of_a_function():
    problem = read_problem(FUNCTION, "line 1")
    assert problem.tests["inputs"] == [[[3, 1, 2], 1], [[5], 9]] and problem.tests["outputs"] == [[2, 3], []]
    assert problem.entry_point == problem.tests["fn_name"] == "above"
    assert "def above(self" in problem.prompt and "def above(self" in problem.instruction


class Exploit:
    def __reduce__(self):
        return os.system, ("touch /tmp/unpickled",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"private_test_cases": packed(Exploit())},
            "cannot be unpacked .its pickle contains more than a string: STACK_GLOBAL",
        ),
        ({"private_test_cases": packed([1])}, "its pickle contains more than a string: EMPTY_LIST"),
        ({"private_test_cases": "[" * 100_000}, "`private_test_cases` in line 1 is '.*, which is not JSON"),
        (
            {"private_test_cases": packed("not JSON")},
            "`private_test_cases` in line 1 is 'not JSON', which is not JSON",
        ),
        ({"private_test_cases": "eJwr"}, "`private_test_cases` in line 1 cannot be unpacked"),
        ({"private_test_cases": "%%%"}, "`private_test_cases` in line 1 cannot be unpacked"),
        ({"private_test_cases": base64.b64encode(b"plain").decode()}, "cannot be unpacked"),
        ({"public_test_cases": '[{"input": "1"}]'}, "give a list of objects with `input` and `output`"),
        ({"public_test_cases": 5}, "`public_test_cases` in line 1 is 5"),
        ({"public_test_cases": "[]", "private_test_cases": "[]"}, "line 1 has neither public nor private test cases"),
        ({"metadata": "[1]"}, r"`metadata` in line 1 is \[1\]; give a JSON object"),
        ({"metadata": {"func_name": 3}}, "`func_name` in `metadata` of line 1 is 3"),
        ({"metadata": {"func_name": "f"}}, "`input` in a test of line 1 is '1 2', which is not JSON"),
        ({"question_content": ""}, "`question_content` in line 1 is ''"),
    ],
)
def test_malformed_rows(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        read_problem({**SCRIPT, **change}, "line 1")
    assert not Path("/tmp/unpickled").exists()


def test_damaged_pickles_are_refused_or_read():
    """A corrupted pickle gives a string or a ValueError, with little memory."""
    draw = random.Random(0)
    for protocol in (0, 1, 2, 4, 5):
        whole = pickle.dumps(cases(("1", "é\ud83d")), protocol)
        assert _pickled_text(whole) == pickle.loads(whole)
        for _ in range(400):
            data = bytearray(whole)
            for _ in range(draw.randint(1, 4)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            with contextlib.suppress(ValueError):
                assert isinstance(_pickled_text(bytes(data)), str)


@pytest.mark.parametrize(
    "data",
    [
        b"X\x01\x00\x00\x00ar\x00\x00\x00\x10.",  # asks for room for 2^28 values
        b"]X\x01\x00\x00\x00aX\x01\x00\x00\x00bs.",
        b"X\x01\x00\x00\x00aX\x01\x00\x00\x00ba.",
        b"X\x01\x00\x00\x00a)R.",
        b"(ios\nsystem\n.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"Pabc\n.",
        b"",
    ],
)
def test_hostile_pickles(data: bytes):
    value = base64.b64encode(zlib.compress(data)).decode()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="`private_test_cases` in line 1"):
            read_problem({**SCRIPT, "private_test_cases": value}, "line 1")
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_tests_of_excessive_size(monkeypatch):
    monkeypatch.setattr("trl_akd.evaluation.formats._MAX_TESTS_BYTES", 1000)
    with pytest.raises(ValueError, match="unpacks to more than"):
        read_problem({**SCRIPT, "private_test_cases": packed("1" * 100_000)}, "line 1")


def test_files_on_the_hub(tmp_path: Path, monkeypatch):
    asked = []

    def download(dataset, file, **_):
        asked.append((dataset, file))
        row = {**SCRIPT, "question_id": file}
        return str(write_lines(tmp_path / file, [row]))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    benchmark = load_benchmark("livecodebench")
    assert [file for _, file in asked] == ["test.jsonl", *(f"test{n}.jsonl" for n in range(2, 7))]
    assert len(benchmark.problems) == 6 and benchmark.strict and benchmark.packages == ("numpy",)


def test_a_folder_of_files(tmp_path: Path):
    for number in (1, 2):
        write_lines(tmp_path / f"test{number}.jsonl", [{**SCRIPT, "question_id": f"q{number}"}])
    assert [problem.task_id for problem in load_benchmark("livecodebench", tmp_path).problems] == ["q1", "q2"]


def test_programs_accepted_by_its_harness(tmp_path: Path):
    benchmark = write_lines(tmp_path / "test6.jsonl", [SCRIPT, FUNCTION])
    wrong = {"abc301_a": RIGHT["abc301_a"].replace("sum", "max"), "2727": RIGHT["2727"].replace(">", "<")}
    rows = [{"task_id": task, "solution": text} for found in (RIGHT, wrong) for task, text in found.items()]
    samples = write_lines(tmp_path / "samples.jsonl", rows)
    evaluation = evaluate(
        EvaluationConfig(
            samples=str(samples),
            benchmark="livecodebench",
            benchmark_path=str(benchmark),
            output_dir=str(tmp_path / "out"),
            allow_code_execution=True,
            workers=1,
        )
    )
    assert evaluation.results["tasks"] == {task: {"samples": 2, "correct": 1} for task in RIGHT}
    assert evaluation.results["execution"]["strict"]
