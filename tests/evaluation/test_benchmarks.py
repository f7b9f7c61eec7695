import gzip
import json
from pathlib import Path

import pytest

from tests.evaluation.conftest import ROWS, data, write_lines
from trl_akd.evaluation.benchmarks import load_benchmark
from trl_akd.evaluation.formats import UntestableError, read_problem

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def add(a, b):\n    """Add."""\n',
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}
MBPP = {
    "task_id": 11,
    "text": "Add two numbers.",
    "code": "def helper(x):\r\n  return x\r\ndef plus(a, b):\r\n  return a + b",
    "test_setup_code": "import math",
    "test_list": ["assert math.isclose(plus(1, 2), 3)", "assert plus(0, 0) == 0"],
}
APPS = {
    "problem_id": 7,
    "question": "Print the sum.",
    "input_output": json.dumps({"inputs": ["1 2\n"], "outputs": ["3\n"]}),
    "difficulty": "interview",
}


def test_humaneval_calls_check_with_the_entry_point():
    problem = read_problem(HUMANEVAL, "line 1")
    assert problem.tests.endswith("\ncheck(add)\n")
    assert (problem.code_prompt, problem.entry_point) == (HUMANEVAL["prompt"], "add")
    assert "\ndef " in problem.stop
    assert "def add(a, b)" in problem.instruction


def test_mbpp_shows_its_tests_and_sets_them_up():
    problem = read_problem(MBPP, "line 1")
    assert problem.task_id == "11"
    assert problem.prompt.startswith('"""\nAdd two numbers.\nassert math')
    assert problem.tests.startswith("import math\nassert math")
    assert problem.entry_point == "plus", "neither math.isclose nor the helper, which no test calls"
    assert problem.public_tests == problem.tests


def test_mbpp_without_a_reference_takes_the_name_that_tests_call():
    row = {**MBPP, "test_list": ["assert set(plus(1)) == {1}"]}
    del row["code"]
    assert read_problem(row, "line 1").entry_point == "plus"


def test_mbpp_plus_prompts_have_no_tests():
    row = {**MBPP, "prompt": MBPP["text"], "test_imports": ["import re"], "test": "assert plus(5, 5) == 10"}
    del row["text"]
    problem = read_problem(row, "line 1")
    assert problem.tests == "import math\nimport re\nassert plus(5, 5) == 10\n"
    assert (
        problem.public_tests == problem.base_tests == "\n".join(["import math", "import re", *MBPP["test_list"], ""])
    )
    assert "plus(5, 5)" not in problem.prompt + str(problem.public_tests)


def test_sanitized_mbpp_takes_its_test_split(tmp_path: Path):
    row = {
        "source_file": "Benchmark.pdf",
        "prompt": "Add two numbers.",
        "code": MBPP["code"],
        "test_imports": ["import math"],
    }
    rows = [{**row, "task_id": number, "test_list": MBPP["test_list"]} for number in (2, 11, 510, 511)]
    first, last = load_benchmark("mbpp_sanitized", write_lines(tmp_path / "sanitized.jsonl", rows)).problems
    assert (first.task_id, last.task_id, first.tests) == ("11", "510", read_problem(MBPP, "line 1").tests)


def test_apps_reads_cases_and_asks_for_a_script():
    problem = read_problem(APPS, "line 1")
    assert problem.tests == {"inputs": ["1 2\n"], "outputs": ["3\n"]}
    assert "Standard Input" in problem.prompt and "standard output" in problem.instruction
    assert (problem.task_id, problem.difficulty, problem.code_prompt) == ("7", "interview", "")


def test_apps_with_a_function_asks_for_it():
    cases = {"fn_name": "f", "inputs": [[1]], "outputs": [1]}
    problem = read_problem({**APPS, "input_output": cases, "starter_code": "def f(x):"}, "line 1")
    assert problem.entry_point == "f"
    assert "Call-Based" in problem.prompt and "def f(x):" in problem.prompt


CASES = {"inputs": [[2]], "outputs": [4], "fn_name": "f"}


@pytest.mark.parametrize("column", ["test", "public_test"])
@pytest.mark.parametrize("tests", [json.dumps(CASES), str(CASES), CASES])
def test_inputs_and_outputs_of_custom_files_may_be_text(column: str, tests: str | dict):
    problem = read_problem({"task_id": 1, "prompt": "def f(x):\n", "test": "pass", column: tests}, "line 1")
    assert (problem.public_tests if column == "public_test" else problem.tests) == CASES


@pytest.mark.parametrize("row", [{"task_id": 1, "prompt": "def f(x):\n", "test": ""}, {**APPS, "input_output": ""}])
def test_long_integers_and_no_tests_are_untestable(row: dict):
    column = "test" if "test" in row else "input_output"
    for tests in (" ", {}, "{}", "{'inputs': [], 'outputs': []}", '{"inputs": [[' + "9" * 5000 + '], "outputs": [1]}'):
        with pytest.raises(UntestableError, match=f"`{column}` in line 1"):
            read_problem({**row, column: tests}, "line 1")


@pytest.mark.parametrize(
    "prompt",
    [
        "Add two numbers, please.",
        "\u7f16\u5199\u51fd\u6570double\u8fd4\u56de\u53c2\u6570\u7684\u4e24\u500d",
        "Task: double",
        "double",
        "double(x)",
        "return double",
        "Sort, reverse",
        "Double\nTriple",
        "42",
        "x in y",
    ],
)
def test_prose_prompts_are_not_part_of_the_program(prompt: str):
    assert read_problem({"task_id": 1, "prompt": prompt, "test": "pass"}, "line 1").code_prompt == ""


@pytest.mark.parametrize(
    "prompt",
    [
        "# Add.\n",
        "def f(x):\n",
        "def f(\n    x,\n):\n    # Double.\n",
        "class Stack:\n",
        '"""Add two numbers."""\n',
        "import math\n",
        "from math import *\nlimit: int\n",
        "LIMIT = 10\n",
        "@cache\ndef f(x):",
        "for x in range(3):\n",
    ],
)
def test_code_prompts_are_part_of_the_program(prompt: str):
    assert read_problem({"task_id": 1, "prompt": prompt, "test": "pass"}, "line 1").code_prompt == prompt


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": 1}, "line 1 has the columns a; give task_id, prompt and test"),
        ({**HUMANEVAL, "task_id": None}, "`task_id` in line 1 is None"),
        ({**HUMANEVAL, "task_id": ""}, "`task_id` in line 1 is ''"),
        ({**HUMANEVAL, "prompt": " "}, "`prompt` in line 1 is ' '; give a text"),
        ({**HUMANEVAL, "test": 3}, "`test` in line 1 is 3"),
        ({**MBPP, "test_list": []}, "`test_list` in line 1 is empty; give a list of assert statements"),
        ({**MBPP, "test_list": "assert"}, "`test_list` in line 1 is 'assert'; give a list of texts"),
        ({**HUMANEVAL, "test": "assert 1", "entry_point": 5}, "`entry_point` in line 1 is 5"),
        ({**APPS, "difficulty": [1]}, r"`difficulty` in line 1 is \[1\]"),
        ({**APPS, "input_output": {"inputs": [1], "outputs": ["1"]}}, "give strings or lists of lines"),
        ({**APPS, "input_output": {"inputs": "ab", "outputs": "ab"}}, "without the lists 'inputs' and 'outputs'"),
        ({**APPS, "input_output": {"inputs": [[1]], "outputs": [1], "fn_name": 3}}, "fn_name=3"),
        ({"task_id": 1, "prompt": "x", "test": "y", "stop": "end"}, "`stop` in line 1 is 'end'; give a list of texts"),
        ({"task_id": 1, "prompt": "x", "test": "y", "instruction": 5}, "`instruction` in line 1 is 5"),
        ({**APPS, "input_output": "{"}, "`input_output` in line 1 is '{'"),
        ({"task_id": 1, "prompt": "x", "test": '["assert 1"]'}, "`test` in line 1 is '.\"assert 1\".'; .* type list"),
        ({"task_id": 1, "prompt": "x", "test": "y", "public_test": '{"inputs": ["1"]}'}, "`public_test` in line 1"),
        ({**APPS, "input_output": {"inputs": ["1"], "outputs": []}}, "1 inputs and 0 outputs"),
    ],
)
def test_malformed_rows(row: dict, message: str):
    with pytest.raises(ValueError, match=message):
        read_problem(row, "line 1")


def test_custom_file(benchmark_file: Path):
    benchmark = load_benchmark(str(benchmark_file), limit=2)
    assert (benchmark.name, [p.task_id for p in benchmark.problems]) == ("three", ["double", "negate"])
    assert benchmark.left_out == {"one"}
    assert benchmark.fingerprint == load_benchmark(str(benchmark_file)).fingerprint, "a limit changes no problem"


def test_gzip(tmp_path: Path):
    path = tmp_path / "three.jsonl.gz"
    path.write_bytes(gzip.compress("".join(f"{json.dumps(row)}\n" for row in ROWS).encode()))
    assert len(load_benchmark(str(path)).problems) == 3


def test_fingerprint_depends_on_the_tests(tmp_path: Path, benchmark_file: Path):
    other = write_lines(tmp_path / "other.jsonl", [*ROWS[:2], {**ROWS[2], "test": "assert one() == 2"}])
    assert load_benchmark(str(other)).fingerprint != load_benchmark(str(benchmark_file)).fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"task_id": 1}\n{"task_id": \n', "line 2 is not JSON"),
        (b"[1, 2]\n", "line 1 is .*; give one JSON object per line"),
        (b"\xff\xfe\n", "line 1 is not JSON"),
        (b"", "has no problems"),
        (b"\n\n", "has no problems"),
    ],
)
def test_malformed_files(content: bytes, message: str, tmp_path: Path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    if b"task_id" in content:
        message = "line 1 has the columns task_id"  # lines are read one after another
    with pytest.raises(ValueError, match=message):
        load_benchmark(str(path))


def test_a_task_id_that_occurs_twice(tmp_path: Path):
    with pytest.raises(ValueError, match="task_id 'one' occurs twice"):
        load_benchmark(str(write_lines(tmp_path / "twice.jsonl", [ROWS[2], ROWS[2]])))


@pytest.mark.parametrize("cases", ["", "{}", '{"inputs": [], "outputs": []}', '{"inputs": [[' + "9" * 5000 + "]]}"])
def test_apps_without_usable_tests_are_skipped_with_a_warning(cases: str, tmp_path: Path):
    rows = [{**APPS, "problem_id": 1}, {**APPS, "id": 2, "input_output": cases}]
    with pytest.warns(UserWarning, match="Left out 1 problems without usable tests, the first: `input_output`"):
        benchmark = load_benchmark("apps", write_lines(tmp_path / "apps.jsonl", rows))
    assert [problem.task_id for problem in benchmark.problems] == ["1"]


def test_names(tmp_path: Path, benchmark_file: Path):
    with pytest.raises(ValueError, match="benchmark 'humanevl' is unknown; did you mean 'humaneval'"):
        load_benchmark("humanevl")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_benchmark(str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match="leave benchmark_path="):
        load_benchmark(str(benchmark_file), benchmark_file)
    with pytest.raises(ValueError, match="limit=0 leaves no problem"):
        load_benchmark(str(benchmark_file), limit=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"question\.txt"):
        load_benchmark("apps", tmp_path / "empty")


def test_humaneval():
    benchmark = load_benchmark("humaneval", data("humaneval/HumanEval.jsonl.gz"))
    assert len(benchmark.problems) == 164
    assert all(problem.code_prompt and problem.entry_point for problem in benchmark.problems)


def test_mbpp():
    benchmark = load_benchmark("mbpp", data("mbpp/mbpp.jsonl"))
    assert [problem.task_id for problem in benchmark.problems] == list(map(str, range(11, 511)))
    assert all(problem.entry_point for problem in benchmark.problems)


def test_apps():
    problems = load_benchmark("apps", data("apps/test")).problems
    assert [problem.task_id for problem in problems] == ["0000", "0001", "0002", "0003", "0004"]
    assert all(problem.public_tests for problem in problems)
    assert {problem.difficulty for problem in problems} == {"interview"}
