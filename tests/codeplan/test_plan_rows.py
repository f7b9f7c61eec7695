"""Problems and solutions from datasets in different formats."""

import json
import re
from pathlib import Path

import pytest

from tests import tiny
from tests.codeplan.scripted import data
from trl_akd.cli.plans import read_rows
from trl_akd.codeplan.encoding import ProblemEncoder
from trl_akd.codeplan.plan_checks import check_rows
from trl_akd.evaluation.benchmarks import load_benchmark


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize("given", [{"solutions": ["a", "b"]}, {"solutions": '["a", "b"]'}])
def test_plain_rows(tmp_path: Path, given: dict):
    path = write(tmp_path / "rows.jsonl", {"id": "1", "problem": "P", **given})
    assert read_rows(path) == [{"id": "1", "problem": "P", "solutions": ["a", "b"]}]


def test_one_solution(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", {"id": 1, "problem": "P", "solution": "a"})
    assert read_rows(path) == [{"id": 1, "problem": "P", "solutions": ["a"]}]


def test_rows_of_both_kinds(tmp_path: Path):
    rows = [{"id": 1, "problem": "P", "solution": "a"}, {"id": 2, "problem": "Q", "solutions": ["b", "c"]}]
    assert [row["solutions"] for row in read_rows(write(tmp_path / "rows.jsonl", *rows))] == [["a"], ["b", "c"]]


@pytest.mark.parametrize(
    ("cases", "asked"),
    [
        ({"inputs": ["1"], "outputs": ["2"]}, "Read standard input"),
        ({"inputs": [[1]], "outputs": [2], "fn_name": "f"}, "Define `f`."),
        (None, "Read standard input"),
        ("", "Read standard input"),
        ("not JSON", "Read standard input"),
        ({"inputs": [], "outputs": []}, "Read standard input"),
        ({"inputs": ["1"], "outputs": []}, "Read standard input"),
        ({"inputs": [], "outputs": [], "fn_name": "f"}, "Define `f`."),
        ('{"inputs": [[' + "1" * 5000 + ']], "outputs": [2], "fn_name": "f"}', "Define `f`."),
    ],
)
def test_apps_as_a_table(tmp_path: Path, cases: dict | str | None, asked: str):
    """Unusable tests do not matter, since a plan needs none."""
    tests = json.dumps(cases) if isinstance(cases, dict) else cases
    row = {"problem_id": 7, "question": "Q\n", "solutions": '["a"]', "input_output": tests}
    [found] = read_rows(write(tmp_path / "apps.jsonl", {**row, "starter_code": "def f():"}))
    assert (found["id"], found["solutions"]) == ("7", ["a"])
    assert asked in found["problem"] and found["problem"].endswith("Q\ndef f():")


def test_real_apps_and_mbpp():
    apps = read_rows(data("apps/train"))
    assert [row["id"] for row in apps] == ["0003", "0018", "0030", "0034", "0060"]
    assert [len(row["solutions"]) for row in apps] == [17, 38, 19, 21, 20]
    assert all("Read standard input" in row["problem"] for row in apps)
    mbpp = read_rows(data("mbpp/mbpp.jsonl"), split="train[600:]", limit=3)
    assert [row["id"] for row in mbpp] == ["601", "602", "603"]
    assert "assert max_chain_length(" in mbpp[0]["problem"] and "def max_chain_length(" in mbpp[0]["solutions"][0]
    assert "\r" not in mbpp[0]["solutions"][0]
    check_rows(apps + mbpp, need_solutions=True)


def test_limit_of_a_folder():
    assert len(read_rows(data("apps/train"), limit=2)) == 2


@pytest.mark.parametrize("setting", [{"split": "train[:1]"}, {"split": "test"}, {"revision": "main"}])
def test_a_folder_of_apps_has_no_splits_and_revisions(setting: dict):
    [(name, value)] = setting.items()
    with pytest.raises(ValueError, match=rf"`dataset_{name}` is '{re.escape(value)}', but .* has no {name}s"):
        read_rows(data("apps/train"), **setting)


@pytest.mark.parametrize("name", ["question.txt", "solutions.json", "starter_code.py"])
def test_files_of_a_folder_in_another_encoding(tmp_path: Path, name: str):
    home = tmp_path / "0001"
    home.mkdir()
    (home / "question.txt").write_text("Q")
    (home / name).write_bytes('["é"]'.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"0001/{name} is not UTF-8"):
        read_rows(tmp_path)


def test_mbpp_without_a_solution(tmp_path: Path):
    row = {"task_id": 1, "text": "Double.", "test_list": ["assert f(1) == 2"]}
    found = read_rows(write(tmp_path / "mbpp.jsonl", {**row, "code": None}, {**row, "code": "a\r\nb"}))
    assert [row["solutions"] for row in found] == [[], ["a\nb"]]
    check_rows(found[:1], need_solutions=False)
    with pytest.raises(ValueError, match="row '1' has no solutions to reason back from"):
        check_rows(found[:1], need_solutions=True)
    with pytest.raises(ValueError, match=r"`code` in .*, row 0 is 3; give a text"):
        read_rows(write(tmp_path / "mbpp.jsonl", {**row, "code": 3}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "P"}, "row 0 has no `id`"),
        ({"id": 1}, "row 0 has no `problem`"),
        ({"id": 1, "problem": "P"}, "row 0 has no `solutions`"),
        ({"id": 1, "problem": " ", "solutions": ["a"]}, "`problem` of row '1' is ' '; give a text"),
        ({"id": 1, "problem": "P", "solutions": []}, "row '1' has no solutions to reason back from"),
        ({"id": 1, "problem": "P", "solutions": ["a", " "]}, r"`solutions` of row '1' is \['a', ' '\]"),
        ({"id": 1, "problem": "P", "solutions": "a"}, "`solutions` of row '1' is 'a'; give a list"),
        ({"id": 1, "problem": "P", "solutions": None}, "`solutions` of row '1' is None; give a list"),
    ],
)
def test_rows_without_a_problem_or_solution(row: dict, message: str):
    with pytest.raises(ValueError, match=message):
        check_rows([row], need_solutions=True)


def test_ids_are_unique():
    row = {"id": 1, "problem": "P", "solutions": ["a"]}
    with pytest.raises(ValueError, match="`id` '1' occurs twice"):
        check_rows([row, {**row, "id": "1"}], need_solutions=True)


def test_forward_reasoning_needs_no_solution():
    check_rows([{"id": 1, "problem": "P", "solutions": []}, {"id": 2, "problem": "P"}], need_solutions=False)


@pytest.mark.parametrize(
    ("row", "message"),
    [({"text": "x"}, "has the columns text; give rows"), ({"id": 1, "problem": "P", "solutions": "x"}, "give a list")],
)
def test_files_that_do_not_fit(tmp_path: Path, row: dict, message: str):
    with pytest.raises(ValueError, match=message):
        read_rows(write(tmp_path / "rows.jsonl", row))


def test_problems_have_the_wording_of_evaluations():
    for name, path in (("apps", "apps/test"), ("mbpp", "mbpp/mbpp.jsonl")):
        problems = load_benchmark(name, data(path), limit=5).problems
        rows = {row["id"]: row["problem"] for row in read_rows(data(path), limit=20)}
        assert [rows[problem.task_id] for problem in problems] == [problem.instruction for problem in problems]


def test_rows_with_plans_can_be_trained_on():
    encode = ProblemEncoder(tiny.tokenizer(), max_length=4096)
    for row in read_rows(data("apps/train"), limit=2):
        encoded = encode({**row, "plans": ["1. Read.\n2. Print."]}, index=0)
        assert len(encoded["solutions"]) == len(row["solutions"]) and len(encoded["plans"]) == 1
