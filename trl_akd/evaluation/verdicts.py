"""Execution of samples, and verdicts on disk, so that an interrupted evaluation resumes."""

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, get_args

from .. import __version__
from ..execution import CodeExecutor, ExecutionResult
from ..execution.result import Status
from ..ledger import Ledger, write_json_lines
from ..metrics.taxonomy import ErrorLabel, classify
from ..progress import Progress
from .problems import Problem
from .samples import Sample

__all__ = ["VERDICTS", "Verdict", "VerdictFile", "label", "run_samples", "write_verdicts"]

VERDICTS = "verdicts.jsonl"
_SECONDS_BETWEEN_WRITES = 0.5  # a synchronous write takes longer than most programs

_HARNESS = 2  # version of the execution of tests; increased when verdicts change


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict on a sample.

    Args:
        sample (`Sample`):
            Program.
        result (`ExecutionResult`):
            Result of running it.
        label (`ErrorLabel`):
            Label of the result in the error taxonomy.
    """

    sample: Sample
    result: ExecutionResult
    label: ErrorLabel

    def as_dict(self) -> dict[str, Any]:
        """Return a row of `verdicts.jsonl`, without the program, which is in `samples.jsonl`."""
        return {
            "task_id": self.sample.task_id,
            "sample": self.sample.sample,
            **asdict(self.result),
            "label": asdict(self.label),
        }


def write_verdicts(folder: Path, verdicts: Sequence[Verdict]) -> None:
    """Write `verdicts.jsonl` atomically."""
    write_json_lines(folder / VERDICTS, (verdict.as_dict() for verdict in verdicts))


class VerdictFile:
    """Cache of verdicts in `verdicts.jsonl`.

    The key of a verdict is a digest of the program, its tests, the limits and the versions of Python and this package.
    Infrastructure errors (`infra_error`) are not cached. After `finish`, the file contains only the verdicts of this
    evaluation, in the order of the problems.

    Args:
        path (`Path`):
            Path of the file, created with its folder if necessary.
        limits (`Mapping`):
            JSON values that verdicts depend on, such as time limit, memory limit and level of isolation.

    Raises:
        BlockingIOError: If another process has locked the file.
        ValueError: If a line is not a JSON object.
    """

    def __init__(self, path: Path, limits: Mapping[str, Any]) -> None:
        environment = {**limits, "python": platform.python_version(), "trl_akd": __version__, "harness": _HARNESS}
        self._environment = json.dumps(environment, sort_keys=True)
        self._tests: dict[str, str] = {}
        self._waiting: list[dict[str, Any]] = []
        self._ledger = Ledger(path, option="output_dir")
        try:
            self._kept = {row["key"]: row for row, _ in self._ledger.read() if "key" in row}
        except BaseException:
            self._ledger.close()
            raise
        self._written = time.monotonic()

    def find(self, problem: Problem, sample: Sample) -> ExecutionResult | None:
        """Return the stored result of a program, or `None` if it must be run."""
        return _result(self._kept.get(self._key(problem, sample), {}))

    def add(self, problem: Problem, verdict: Verdict) -> None:
        """Store a verdict; the file is written at most twice per second."""
        if verdict.result.status == "infra_error":
            return
        self._waiting.append(self._row(problem, verdict))
        if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self._write()

    def finish(self, problems: Sequence[Problem], verdicts: Sequence[Verdict]) -> None:
        """Rewrite the file with the verdicts of this evaluation only, in their order, and close it."""
        by_id = {problem.task_id: problem for problem in problems}
        rows = [self._row(by_id[verdict.sample.task_id], verdict) for verdict in verdicts]
        self.close()
        write_json_lines(self._ledger.path, rows)

    def close(self) -> None:
        """Write pending verdicts and release the file."""
        try:
            self._write()
        finally:
            self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self) -> None:
        rows, self._waiting = self._waiting, []
        if rows:
            self._ledger.append(rows)
            self._kept |= {row["key"]: row for row in rows}
        self._written = time.monotonic()

    def _row(self, problem: Problem, verdict: Verdict) -> dict[str, Any]:
        judged = verdict.result.status != "infra_error"
        key = {"key": self._key(problem, verdict.sample)} if judged else {}
        return {**key, **verdict.as_dict()}

    def _key(self, problem: Problem, sample: Sample) -> str:
        if problem.task_id not in self._tests:
            self._tests[problem.task_id] = _digest(json.dumps(problem.tests, sort_keys=True))
        return _digest(f"{self._environment}{self._tests[problem.task_id]}{sample.solution}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _result(row: Mapping[str, Any]) -> ExecutionResult | None:
    """Return the result in a line, or `None` if another version wrote it."""
    names = [field.name for field in fields(ExecutionResult)]
    if not all(name in row for name in names) or row["status"] not in get_args(Status):
        return None
    return ExecutionResult(**{**{name: row[name] for name in names}, "error_bases": tuple(row["error_bases"])})


def run_samples(
    problems: Sequence[Problem],
    samples: Mapping[str, Sequence[Sample]],
    executor: CodeExecutor,
    *,
    file: VerdictFile | None = None,
    fail_fast: bool = True,
    progress: bool = True,
) -> list[Verdict]:
    """Run all samples of all problems.

    Returns:
        `list[Verdict]`: In the order of the problems and of their samples.
    """
    asked = [(problem, sample) for problem in problems for sample in samples[problem.task_id]]
    verdicts: dict[int, Verdict] = {}
    to_run: list[int] = []
    for index, (problem, sample) in enumerate(asked):
        kept = None if file is None else file.find(problem, sample)
        if kept is None:
            to_run.append(index)
        else:
            verdicts[index] = Verdict(sample, kept, label(kept, problem, sample))
    pairs = ((asked[index][1].solution, asked[index][0].tests) for index in to_run)
    with Progress(len(asked), "Running programs", "program", initial=len(verdicts), shown=progress) as bar:
        for number, result in executor.stream(pairs, fail_fast=fail_fast):
            problem, sample = asked[to_run[number]]
            verdict = Verdict(sample, result, label(result, problem, sample))
            verdicts[to_run[number]] = verdict
            if file is not None:
                file.add(problem, verdict)
            bar.update()
    return [verdicts[index] for index in range(len(asked))]


def label(result: ExecutionResult, problem: Problem, sample: Sample) -> ErrorLabel:
    """Return the label of a sample's result."""
    return classify(result, sample.solution, problem.entry_point, truncated=sample.truncated)
