"""Verdicts on disk: which are stored, which programs run again, and an evaluation that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.evaluation.conftest import ROOT, write_lines
from trl_akd.evaluation.evaluation_config import EvaluationConfig
from trl_akd.evaluation.problems import Problem
from trl_akd.evaluation.runner import Evaluation, evaluate
from trl_akd.evaluation.samples import Sample
from trl_akd.evaluation.verdicts import VerdictFile
from trl_akd.execution import CodeExecutor, ExecutionResult

PROBLEMS = [Problem(str(n), "", f"assert f({n}) == {n + 1}", entry_point="f") for n in range(4)]
SAMPLES = {problem.task_id: [Sample(problem.task_id, "def f(x): return x + 1")] for problem in PROBLEMS}


class Counting:
    """An executor that counts programs, and may fail after some."""

    isolation = "process"

    def __init__(self, fails_after: int | None = None, status: str = "passed") -> None:
        self.ran: list[str] = []
        self.fails_after, self.status = fails_after, status

    def stream(self, pairs, fail_fast=False):
        for index, (_, tests) in enumerate(pairs):
            if index == self.fails_after:
                raise KeyboardInterrupt
            self.ran.append(tests)
            yield index, ExecutionResult(self.status, isolation="process")


def run(path: Path, executor: Counting, limits=None, problems=PROBLEMS, samples=SAMPLES):
    with VerdictFile(path, limits or {"timeout": 1.0}) as file:
        return file.run(problems, samples, executor, progress=False)


def test_execution_resumes(tmp_path: Path):
    path = tmp_path / "verdicts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(path, Counting(fails_after=3))
    path.write_text(path.read_text() + '{"key": "torn')
    again = Counting()
    verdicts = run(path, again)
    assert again.ran == [PROBLEMS[3].tests]
    assert [verdict.sample.task_id for verdict in verdicts] == ["0", "1", "2", "3"]
    assert [json.loads(line)["task_id"] for line in path.read_text().splitlines()] == ["0", "1", "2", "3"]
    last = Counting()
    assert list(run(path, last)) == list(verdicts) and not last.ran


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        ({}, 0),
        ({"limits": {"timeout": 2.0}}, 4),
        ({"limits": {"timeout": 1.0, "strict": True}}, 4),
        ({"samples": {**SAMPLES, "2": [Sample("2", "def f(x): return 3")]}}, 1),
        ({"samples": {**SAMPLES, "2": [*SAMPLES["2"], Sample("2", "def f(x): return 3", sample=1)]}}, 1),
        ({"problems": [*PROBLEMS[:3], Problem("3", "", "assert f(5) == 6")]}, 1),
    ],
)
def test_programs_that_run_again(change: dict, runs: int, tmp_path: Path):
    run(tmp_path / "verdicts.jsonl", Counting())
    executor = Counting()
    run(tmp_path / "verdicts.jsonl", executor, **change)
    assert len(executor.ran) == runs


def test_a_program_that_could_not_be_run_is_run_again(tmp_path: Path):
    path = tmp_path / "verdicts.jsonl"
    run(path, Counting(status="infra_error"))
    assert len(path.read_text().splitlines()) == 4, "they are listed"
    executor = Counting()
    assert all(verdict.result.passed for verdict in run(path, executor)) and len(executor.ran) == 4


@pytest.mark.parametrize("line", ['{"key": "x"}', '{"task_id": "0", "status": "passed"}', '{"key": "x", "status": 3}'])
def test_lines_of_another_version_are_ignored(line: str, tmp_path: Path):
    path = tmp_path / "verdicts.jsonl"
    path.write_text(f"{line}\n")
    executor = Counting()
    run(path, executor)
    assert len(executor.ran) == 4 and len(path.read_text().splitlines()) == 4


def test_one_process_at_a_time(tmp_path: Path):
    with VerdictFile(tmp_path / "verdicts.jsonl", {}), pytest.raises(BlockingIOError, match="output_dir"):
        VerdictFile(tmp_path / "verdicts.jsonl", {})


def configuration(folder: Path, **settings) -> EvaluationConfig:
    common = {"benchmark": str(folder / "many.jsonl"), "samples": str(folder / "samples.jsonl")}
    return EvaluationConfig(
        **{**common, "output_dir": str(folder / "out"), "allow_code_execution": True, "workers": 1, **settings}
    )


def write_benchmark(folder: Path, count: int, program: str) -> None:
    write_lines(folder / "many.jsonl", [{"task_id": n, "prompt": "x", "test": f"assert f({n})"} for n in range(count)])
    write_lines(folder / "samples.jsonl", [{"task_id": n, "solution": program} for n in range(count)])


def times(evaluation: Evaluation) -> list[float]:
    return [verdict.result.seconds for verdict in evaluation.verdicts]


@pytest.mark.end_to_end
def test_killed_evaluation_continues(tmp_path: Path):
    write_benchmark(tmp_path, 40, "import time\ntime.sleep(0.05)\ndef f(x): return True")
    code = (
        "import sys; from pathlib import Path; from tests.evaluation.test_verdicts import *; "
        "evaluate(configuration(Path(sys.argv[1])))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    path = tmp_path / "out" / "verdicts.jsonl"
    while not (path.exists() and path.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {row["key"]: row["seconds"] for row in map(json.loads, path.read_text().splitlines())}
    assert 0 < len(kept) < 40
    evaluation = evaluate(configuration(tmp_path))
    assert evaluation.results["metrics"]["pass@1"] == 1.0
    assert set(kept.values()) <= set(times(evaluation)), "these did not run again"


def test_changed_limits_run_programs_again(tmp_path: Path):
    write_benchmark(tmp_path, 2, "def f(x): return True")
    first = times(evaluate(configuration(tmp_path)))
    assert times(evaluate(configuration(tmp_path))) == first
    for changed in ({"program_timeout": 5.0}, {"memory_mb": 300}, {"strict": True}, {"packages": ["json"]}):
        again = times(evaluate(configuration(tmp_path, **changed)))
        assert not set(first) & set(again), changed
        first = again


def test_an_executor_that_runs_nothing_stores_nothing(tmp_path: Path):
    with CodeExecutor(1, allow_code_execution=True) as executor, VerdictFile(tmp_path / "v.jsonl", {}) as file:
        assert list(file.run([], {}, executor, progress=False)) == []
    assert (tmp_path / "v.jsonl").read_text() == ""
