"""Base and plus scores, the test-case average, and `eval_results.json` in the formats of other tools."""

import json
from pathlib import Path

import pytest

from tests.evaluation.conftest import data, write_lines
from trl_akd.cli import main
from trl_akd.evaluation.benchmarks import load_benchmark
from trl_akd.evaluation.evaluation_config import EvaluationConfig
from trl_akd.evaluation.report import results_table
from trl_akd.evaluation.runner import Evaluation, evaluate

BASE = "def check(candidate):\n    assert candidate(1) == 1\n"
PLUS = "def check(candidate):\n    for n in (1, 2, 3):\n        assert candidate(n) == n\n"
PROMPT = "def same(x):\n"
PROGRAMS = ["return x", "return 1", "return 0"]


def rows(test: str) -> list[dict]:
    common = {"prompt": PROMPT, "entry_point": "same", "test": test}
    return [{**common, "task_id": f"HumanEval/{n}"} for n in range(2)]


def samples(folder: Path, task_ids: list[str], programs: list[str]) -> Path:
    lines = [{"task_id": task, "solution": PROMPT + "    " + text} for task in task_ids for text in programs]
    return write_lines(folder / "samples.jsonl", lines)


def judged(folder: Path, **settings) -> Evaluation:
    common = {"output_dir": str(folder / "out"), "allow_code_execution": True, "workers": 1, "program_timeout": 5.0}
    return evaluate(EvaluationConfig(**{**common, **settings}))


@pytest.fixture
def humaneval_plus(tmp_path: Path) -> Evaluation:
    return judged(
        tmp_path,
        benchmark="humaneval_plus",
        benchmark_path=str(write_lines(tmp_path / "plus.jsonl", rows(PLUS))),
        benchmark_base_path=str(write_lines(tmp_path / "base.jsonl", rows(BASE))),
        samples=str(samples(tmp_path, ["HumanEval/0", "HumanEval/1"], PROGRAMS)),
        k=[1, 3],
    )


def test_humaneval_plus(humaneval_plus: Evaluation):
    results = humaneval_plus.results
    assert results["base"]["pass@1"] == pytest.approx(2 / 3) and results["metrics"]["pass@1"] == pytest.approx(1 / 3)
    table = results_table("student", results).splitlines()
    assert "humaneval_plus" in table[2] and "0.333" in table[2]
    assert "base tests" in table[3] and "0.667" in table[3]


def test_eval_results_as_evalplus_reads_them(humaneval_plus: Evaluation):
    """The keys used by `evalplus.evaluate` and its scripts, and its rule that plus includes base."""
    found = json.loads((humaneval_plus.folder / "eval_results.json").read_text())
    assert set(found) >= {"date", "hash", "eval", "pass_at_k"}
    for results in found["eval"].values():
        statuses = [(row["base_status"], row["plus_status"]) for row in results]
        assert statuses == [("pass", "pass"), ("pass", "fail"), ("fail", "fail")]
        assert [row["solution"] for row in results] == [PROMPT + "    " + text for text in PROGRAMS]
    total = [len(results) for results in found["eval"].values()]
    correct = [
        sum(row["base_status"] == row["plus_status"] == "pass" for row in results)
        for results in found["eval"].values()
    ]
    assert found["pass_at_k"]["plus"]["pass@1"] == pytest.approx(sum(correct) / sum(total))
    assert found["pass_at_k"]["base"] == {"pass@1": pytest.approx(2 / 3), "pass@3": 1.0}


def test_eval_results_as_lm_eval_reads_them(humaneval_plus: Evaluation):
    found = json.loads((humaneval_plus.folder / "eval_results.json").read_text())
    scores = found["results"]["humaneval_plus"]
    assert scores["alias"] == "humaneval_plus" and scores["pass@1,none"] == pytest.approx(1 / 3)
    assert 0 < scores["pass@1_stderr,none"] < 0.5
    assert found["n-samples"]["humaneval_plus"] == {"original": 2, "effective": 2}


def test_a_local_copy_without_its_base_has_no_base_score(tmp_path: Path):
    evaluation = judged(
        tmp_path,
        benchmark="humaneval_plus",
        benchmark_path=str(write_lines(tmp_path / "plus.jsonl", rows(PLUS))),
        samples=str(samples(tmp_path, ["HumanEval/0", "HumanEval/1"], PROGRAMS[:1])),
    )
    assert "base" not in evaluation.results
    found = json.loads((evaluation.folder / "eval_results.json").read_text())
    assert found["eval"]["HumanEval/0"][0]["plus_status"] is None and found["pass_at_k"] == {"base": {"pass@1": 1.0}}


def test_a_base_of_a_benchmark_without_one(tmp_path: Path):
    with pytest.raises(ValueError, match="benchmark_base_path='base' has no effect on 'humaneval'; leave it out"):
        load_benchmark("humaneval", write_lines(tmp_path / "h.jsonl", rows(BASE)), base_path="base")


def test_mbpp_plus_has_its_base_tests_in_its_rows(tmp_path: Path):
    row = {"task_id": 2, "prompt": "Same.", "test_list": ["assert same(1) == 1"], "test_imports": [], "code": PROMPT}
    benchmark = write_lines(tmp_path / "plus.jsonl", [{**row, "test": "for n in (1, 2):\n    assert same(n) == n"}])
    evaluation = judged(
        tmp_path,
        benchmark="mbpp_plus",
        benchmark_path=str(benchmark),
        samples=str(samples(tmp_path, ["Mbpp/2"], PROGRAMS)),
    )
    assert evaluation.results["base"]["pass@1"] == pytest.approx(2 / 3)
    assert evaluation.results["metrics"]["pass@1"] == pytest.approx(1 / 3)
    found = json.loads((evaluation.folder / "eval_results.json").read_text())
    assert [row["plus_status"] for row in found["eval"]["Mbpp/2"]] == ["pass", "fail", "fail"]


def test_results_of_a_trainer_are_kept(tmp_path: Path, benchmark_file: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "eval_results.json").write_text('{"eval_loss": 1.5}')
    lines = [{"task_id": task, "solution": ""} for task in ("double", "negate", "one")]
    judged(tmp_path, benchmark=str(benchmark_file), samples=str(write_lines(tmp_path / "samples.jsonl", lines)))
    found = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert found["eval_loss"] == 1.5 and found["pass_at_k"] == {"base": {"pass@1": 0.0}}


def test_the_test_case_average(tmp_path: Path):
    """APPS's harness averages the fraction of tests passed over problems; programs that do not compile pass none."""
    tests = {"inputs": ["0", "1", "2", "3"], "outputs": ["0", "1", "2", "0"]}
    apps = [{"problem_id": n, "question": "Same?", "input_output": json.dumps(tests)} for n in range(2)]
    benchmark = write_lines(tmp_path / "apps.jsonl", apps)
    programs = {0: ["print(1 / 0 if input() == '0' else 1)", "def"], 1: ["print(input())", "print(0)"]}
    lines = [{"task_id": task, "solution": text} for task, texts in programs.items() for text in texts]
    asked = {"benchmark": "apps", "benchmark_path": str(benchmark)}
    asked["samples"] = str(write_lines(tmp_path / "samples.jsonl", lines))
    assert "test_case_average" not in judged(tmp_path, **asked).results["metrics"]
    metrics = judged(tmp_path, **asked, all_tests=True).results["metrics"]
    assert metrics["test_case_average"] == pytest.approx(((1 / 4 + 0) / 2 + (3 / 4 + 2 / 4) / 2) / 2)
    assert metrics["pass@1"] == 0.0


def test_strict_by_default_where_all_reference_solutions_pass(tmp_path: Path):
    path = data("humaneval/HumanEval.jsonl.gz")
    benchmark = load_benchmark("humaneval", path, limit=3)
    lines = [{"task_id": problem.task_id, "completion": "    return 0"} for problem in benchmark.problems]
    flags = ["--benchmark", "humaneval", "--benchmark_path", str(path), "--limit", "3", "--allow_code_execution"]
    flags += ["--samples", str(write_lines(tmp_path / "samples.jsonl", lines))]
    for given, strict in (([], True), (["--strict"], True), (["--strict", "false"], False)):
        folder = tmp_path / "-".join(["out", *given])
        assert main(["evaluate", *flags, "--output_dir", str(folder), *given]) == 0
        assert json.loads((folder / "results.json").read_text())["execution"]["strict"] is strict
        lines = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
        assert {line["strict"] for line in lines} == {strict}


CHEATS = [
    "class Same:\n    def __eq__(self, other): return True\ndef same(x): return Same()",
    "import os, hashlib\nn = os.read(6, 16)\nos.write(6, b'P' + hashlib.sha256(b'P' + n).digest())\n"
    "def same(x): return 0",
    "import math\nmath.isclose = lambda *a, **k: True\ndef same(x): return None",
]


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheating_programs_fail_by_default(cheat: str, tmp_path: Path):
    lines = [{"task_id": f"HumanEval/{n}", "solution": cheat} for n in range(2)]
    test = "import math\n" + PLUS.replace("== n", "== n and math.isclose(candidate(n), n)")
    evaluation = judged(
        tmp_path,
        benchmark="humaneval",
        benchmark_path=str(write_lines(tmp_path / "humaneval.jsonl", rows(test))),
        samples=str(write_lines(tmp_path / "samples.jsonl", lines)),
    )
    assert evaluation.results["metrics"]["pass@1"] == 0.0
