"""An evaluation of many samples: what is in memory, and files that equal those written from memory."""

import errno
import gc
import json
import multiprocessing
import os
import random
import signal
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.evaluation.conftest import write_lines
from trl_akd.evaluation import samples as samples_module
from trl_akd.evaluation import verdicts as verdicts_module
from trl_akd.evaluation.benchmarks import Benchmark
from trl_akd.evaluation.problems import Problem
from trl_akd.evaluation.results import summarize, write_eval_results
from trl_akd.evaluation.samples import Sample, SampleCounts, SampleFile, Samples, read_samples
from trl_akd.evaluation.verdicts import Verdict, VerdictFile, Verdicts, run_samples
from trl_akd.execution import ExecutionResult
from trl_akd.ledger import replace_text

OUTCOMES = [
    ExecutionResult("passed"),
    ExecutionResult("failed", "AssertionError", "wrong \ud800", ("Exception",), "test", "test", ending="exception"),
    ExecutionResult("failed", "NameError", "name 'é'", ("Exception",), "test", missing="é", ending="exception"),
    ExecutionResult("timed_out", ending="deadline", seconds=1.25),
]


class Executor:
    """An executor whose outcome depends on the program, and whose results arrive in another order."""

    def __init__(self, watch=lambda: None) -> None:
        self.watch = watch
        self.programs: list[str] = []

    def stream(self, pairs, fail_fast=False):
        waiting = []
        for index, (program, _) in enumerate(pairs):
            self.programs.append(program)
            self.watch()
            waiting.append((index, OUTCOMES[len(program) % len(OUTCOMES)]))
            if len(waiting) == 3:
                random.Random(index).shuffle(waiting)
                while waiting:
                    yield waiting.pop()
        yield from waiting


def make(tasks: int, each: int, prefix: str = "") -> tuple[Benchmark, list[Sample]]:
    problems = tuple(Problem(f"{prefix}{number}", "", "assert f()", entry_point="f") for number in range(tasks))
    source = random.Random(0)
    samples = [
        Sample(problem.task_id, "é\n" * source.randint(1, 6), "c" * 50, number)
        for problem in problems
        for number in range(each)
    ]
    return Benchmark("letters", problems, "letters.jsonl", fingerprint="f"), samples


def stored(folder: Path, samples: list[Sample]) -> SampleFile:
    with SampleFile(folder, {}) as file:
        file.append(samples)
    return file


def alive(kind: type) -> int:
    return sum(type(found) is kind for found in gc.get_objects())


def judge(folder: Path, benchmark: Benchmark, file: SampleFile, executor: Executor) -> Verdicts:
    ids = [problem.task_id for problem in benchmark.problems]
    with VerdictFile(folder / "verdicts.jsonl", {}) as kept:
        return kept.run(benchmark.problems, file.first(ids, 100), executor, progress=False)


def results(benchmark: Benchmark, verdicts, all_tests: bool = False) -> dict:
    return summarize(benchmark, verdicts, [1, 2], all_tests=all_tests) | {"model": {"name": "m"}}


@pytest.mark.parametrize("tasks", [4, 64])
def test_samples_and_verdicts_in_memory(tmp_path: Path, tasks: int):
    gc.collect()
    gc.freeze()  # not to search what other tests have made
    benchmark, samples = make(tasks, 4)
    stored(tmp_path, samples)
    del samples
    most = {Sample: 0, Verdict: 0, ExecutionResult: 0}
    few = {Sample: 12, Verdict: 8, ExecutionResult: 8 + len(OUTCOMES)}

    def watch() -> None:
        kinds = Counter(map(type, gc.get_objects()))
        most.update({kind: max(most[kind], kinds[kind]) for kind in most})

    def watched(verdicts):
        for verdict in verdicts:
            watch()
            yield verdict

    for _ in range(2):
        with SampleFile(tmp_path, {}) as file:
            verdicts = judge(tmp_path, benchmark, file, Executor(watch))
    found = results(benchmark, watched(verdicts))
    write_eval_results(tmp_path, found | {"base": found["metrics"]}, watched(verdicts), verdicts)
    assert all(0 < most[kind] <= few[kind] for kind in most), most
    assert len(verdicts) == 4 * tasks and alive(Sample) == 0


def test_verdicts_equal_those_in_memory(tmp_path: Path):
    benchmark, samples = make(7, 3)
    in_memory = Samples()
    in_memory.append(samples)
    expected = run_samples(benchmark.problems, in_memory.by_task, Executor(), progress=False)
    verdicts = judge(tmp_path, benchmark, stored(tmp_path, samples), Executor())
    again = judge(tmp_path, benchmark, SampleFile(tmp_path, {}), Executor())
    for found in (verdicts, again):
        assert list(found) == expected and len(found) == 21
        assert [found[number] for number in range(-21, 21)] == expected * 2
        assert found[5:1:-2] == expected[5:1:-2]
        assert all(first == second for first, second in zip(found, found, strict=True)), "two readers at once"
        with pytest.raises(IndexError):
            found[21]
    rows = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [{name: row[name] for name in row if name != "key"} for row in rows] == [
        json.loads(json.dumps(verdict.as_dict())) for verdict in expected
    ]
    for all_tests in (False, True):
        assert results(benchmark, verdicts, all_tests) == results(benchmark, expected, all_tests)


def test_the_same_program_of_several_samples(tmp_path: Path):
    benchmark, _ = make(3, 0)
    samples = [Sample(str(task), "pass", sample=number) for task in range(3) for number in range(2)]
    for ran in (6, 0):
        executor = Executor()
        verdicts = judge(tmp_path, benchmark, stored(tmp_path / str(ran), samples), executor)
        assert len(executor.programs) == ran
        assert [(verdict.sample.task_id, verdict.sample.sample) for verdict in verdicts] == [
            (sample.task_id, sample.sample) for sample in samples
        ]
        rows = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
        assert [(row["task_id"], row["sample"]) for row in rows] == [(s.task_id, s.sample) for s in samples]


def test_keys_with_equal_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verdicts_module, "hash", lambda key: 7, raising=False)
    benchmark, samples = make(5, 3)
    first = list(judge(tmp_path, benchmark, stored(tmp_path, samples), Executor()))
    executor = Executor()
    assert list(judge(tmp_path, benchmark, SampleFile(tmp_path, {}), executor)) == first
    assert executor.programs == []


def _fail_to_rewrite(folder: Path, kill: bool) -> None:
    """Judge samples, and fail while the file of verdicts is rewritten."""

    def replace_half(path: Path, lines) -> None:
        def half():
            for number, line in enumerate(lines):
                if number == 3:
                    fail()
                yield line

        replace_text(path, half())

    def fail() -> None:
        if kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, "No space left on device")

    benchmark, _ = make(5, 3)
    verdicts_module.replace_text = replace_half
    try:
        judge(folder, benchmark, SampleFile(folder, {}), Executor())
    except OSError:
        sys.exit(3)


@pytest.mark.parametrize("kill", [True, False])
def test_verdicts_are_kept_when_their_file_cannot_be_rewritten(tmp_path: Path, kill: bool):
    benchmark, samples = make(5, 3)
    expected = run_samples(benchmark.problems, stored(tmp_path, samples).by_task, Executor(), progress=False)
    process = multiprocessing.get_context("fork").Process(target=_fail_to_rewrite, args=(tmp_path, kill))
    process.start()
    process.join()
    assert process.exitcode == (-signal.SIGKILL if kill else 3)
    executor = Executor()
    assert list(judge(tmp_path, benchmark, SampleFile(tmp_path, {}), executor)) == expected
    assert executor.programs == [] and not list(tmp_path.glob("*.tmp"))


def test_verdicts_remain_after_another_evaluation(tmp_path: Path):
    benchmark, samples = make(3, 2)
    verdicts = judge(tmp_path, benchmark, stored(tmp_path, samples), Executor())
    expected = list(verdicts)
    fewer, _ = make(1, 2)
    judge(tmp_path, fewer, SampleFile(tmp_path, {}), Executor())
    assert len((tmp_path / "verdicts.jsonl").read_text().splitlines()) == 2
    assert list(verdicts) == expected and verdicts[-1] == expected[-1]


@pytest.mark.parametrize("prefix", ["", "mbpp-like/"])
@pytest.mark.parametrize("name", ["letters", "mbpp"])
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize(
    "kept",
    [
        None,
        "{",
        "[]",
        {"eval_loss": 1.5, "eval": {"x": ["old"]}},
        {"nested": {"eval": {"kept": 1}}, "eval": {}, "last": "  }"},
        {"eval": {"only": {"eval": {"a": 1}}}},
    ],
)
def test_eval_results_equal_those_written_at_once(tmp_path: Path, prefix, name, with_base, kept):
    benchmark, samples = make(3, 2, prefix)
    verdicts = [Verdict(sample, OUTCOMES[n % 4], verdicts_module.label(OUTCOMES[n % 4], benchmark.problems[0], sample))
                for n, sample in enumerate(samples)]  # fmt: skip
    base = verdicts[::-1] if with_base else []
    found = results(benchmark, verdicts)
    found["benchmark"]["name"] = name
    found |= {"base": found["metrics"]} if with_base else {}
    path, known = tmp_path / "eval_results.json", kept if isinstance(kept, dict) else {}
    for indent in (2, 1, 4, None):
        if kept is not None:
            path.write_text(kept if isinstance(kept, str) else json.dumps(kept, indent=indent) + "\n")
        for _ in range(2):
            write_eval_results(tmp_path, found, iter(verdicts), base)
            written = json.loads(path.read_text())
            assert path.read_text() == json.dumps(written, indent=2) + "\n"
            assert written | known | {"eval": 0} == written | {"eval": 0}, "the other keys are kept"
            rows = [row for several in written["eval"].values() for row in several]
            assert [row["solution"] for row in rows] == [sample.solution for sample in samples]
            statuses = [
                {"passed": "pass", "failed": "fail", "timed_out": "timeout"}[v.result.status] for v in verdicts
            ]
            assert [row["plus_status" if with_base else "base_status"] for row in rows] == statuses
            assert all((row["plus_status"] is None) == (not with_base) for row in rows)
            ids = [f"Mbpp/{n}" if name == "mbpp" and not prefix else f"{prefix}{n}" for n in range(3)]
            assert list(written["eval"]) == ids and all(row["task_id"] in ids for row in rows)


def test_samples_of_other_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    benchmark, samples = make(50, 2)
    path = write_lines(tmp_path / "samples.jsonl", map(asdict, samples))
    known = []
    task_id = samples_module._task_id

    def watch(row, where, ids):
        known.append(id(ids))
        return task_id(row, where, ids)

    monkeypatch.setattr(samples_module, "_task_id", watch)
    del samples
    found = read_samples(path, benchmark, lambda problem, text: text)
    assert alive(Sample) <= 1, "they are read when they are needed"
    assert len(known) == 100 and len(set(known)) == 1, "the identifiers are not collected again for each row"
    assert {task: found.count(task) for task in found} == {task: len(found[task]) for task in found}
    assert [sample for several in found.values() for sample in several] == make(50, 2)[1]


def test_counts_of_samples(tmp_path: Path):
    _, samples = make(2, 3)
    counts, in_memory = SampleCounts({"0": 1}), Samples()
    for store in (counts, in_memory):
        store.append(samples)
    with SampleFile(tmp_path, {}) as file:
        file.append(samples[:4])
        file.append(samples[4:])
        assert [store.count("1") for store in (counts, in_memory, file)] == [3, 3, 3]
        assert [store.count("0") for store in (counts, in_memory, file)] == [4, 3, 3]
        assert file.count("2") == in_memory.count("2") == counts.count("2") == 0
        assert dict(file.by_task) == in_memory.by_task and list(in_memory.by_task) == ["0", "1"]
        assert [len(several) for several in file.first(["1", "0"], 2).values()] == [2, 2]
