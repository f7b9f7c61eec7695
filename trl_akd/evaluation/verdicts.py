"""Execution of samples, and verdicts on disk, so that an interrupted evaluation resumes."""

import hashlib
import json
import platform
import time
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any, Self, get_args, overload

import numpy as np

from .. import __version__
from ..execution import CodeExecutor, ExecutionResult, Tests
from ..execution.result import HARNESS_VERSION, Status
from ..ledger import Ledger, read_json_line, replace_text, write_json_lines
from ..metrics.taxonomy import ErrorLabel, classify
from ..progress import Progress
from .problems import Problem
from .samples import Sample

__all__ = ["VERDICTS", "Verdict", "VerdictFile", "Verdicts", "label", "run_samples", "write_verdicts"]

VERDICTS = "verdicts.jsonl"
_SECONDS_BETWEEN_WRITES = 0.5  # a synchronous write takes longer than most programs


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


def write_verdicts(folder: Path, verdicts: Iterable[Verdict]) -> None:
    """Write `verdicts.jsonl` atomically."""
    write_json_lines(folder / VERDICTS, (verdict.as_dict() for verdict in verdicts))


class Verdicts(Sequence[Verdict]):
    """Verdicts and their samples in files, from which they are read when they are needed.

    The memory needed is eight bytes per verdict and a few per problem.

    Args:
        path (`Path`):
            File with one line per verdict; it may be replaced afterwards.
        positions (`array`):
            Positions of the lines.
        problems (`Sequence[Problem]`), samples (`Mapping[str, Sequence[Sample]]`), counts (`Sequence[int]`):
            Problems, their samples and the numbers of these, in the order of the lines.
    """

    def __init__(
        self,
        path: Path,
        positions: "array[int]",
        problems: Sequence[Problem],
        samples: Mapping[str, Sequence[Sample]],
        counts: Sequence[int],
    ) -> None:
        self._file = open(path, "rb")
        weakref.finalize(self, self._file.close)
        self._positions = positions
        self._problems = problems
        self._samples = samples
        self._ends = array("q", accumulate(counts))

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Verdict]:
        samples = (sample for problem in self._problems for sample in self._samples[problem.task_id])
        for sample, position in zip(samples, self._positions, strict=True):
            yield self._read(sample, position)

    @overload
    def __getitem__(self, index: int) -> Verdict: ...

    @overload
    def __getitem__(self, index: slice) -> list[Verdict]: ...

    def __getitem__(self, index: int | slice) -> Verdict | list[Verdict]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        index = range(len(self))[index]
        number = bisect_right(self._ends, index)
        first = self._ends[number - 1] if number else 0
        sample = self._samples[self._problems[number].task_id][index - first]
        return self._read(sample, self._positions[index])

    def _read(self, sample: Sample, position: int) -> Verdict:
        row = read_json_line(self._file, position)
        result = _result(row)
        assert result is not None
        return Verdict(sample, result, ErrorLabel(**row["label"]))


class VerdictFile:
    """Cache of verdicts in `verdicts.jsonl`.

    The key of a verdict is a digest of the program, its tests, the limits and the versions of Python, this package and
    its execution of tests. Infrastructure errors (`infra_error`) have no key, so that their programs are run again.
    After `run`, the file contains only the verdicts of this evaluation, in the order of the problems.

    The memory needed is 16 bytes per line in the file, and eight per verdict.

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
        versions = {"python": platform.python_version(), "trl_akd": __version__, "harness": HARNESS_VERSION}
        self._environment = json.dumps({**limits, **versions}, sort_keys=True)
        self._tests: dict[str, str] = {}
        self._positions: array[int] = array("q")
        self._waiting: list[tuple[int, dict[str, Any]]] = []
        with ExitStack() as stack:
            self._ledger = stack.enter_context(Ledger(path, option="output_dir"))
            self._reader = stack.enter_context(open(path, "rb"))
            self._kept = _KeyIndex((row.get("key"), position) for row, _, position in self._ledger.locate())
            self._files = stack.pop_all()
        self._size = path.stat().st_size
        self._written = time.monotonic()

    def run(
        self,
        problems: Sequence[Problem],
        samples: Mapping[str, Sequence[Sample]],
        executor: CodeExecutor,
        *,
        fail_fast: bool = True,
        progress: bool = True,
    ) -> Verdicts:
        """Run all samples without a verdict, and rewrite the file with the verdicts of this evaluation only.

        The file is written at most twice per second. The samples of a few problems at a time are in memory. It can be
        called once.

        Returns:
            [`Verdicts`]: In the order of the problems and of their samples.
        """
        counts = array("q")
        for problem in problems:
            found = [self._find(problem, sample) for sample in samples[problem.task_id]]
            counts.append(len(found))
            self._positions.extend(found)

        def missing() -> Iterator[tuple[int, Problem, Sample]]:
            for problem, start, stop in _bounds(problems, counts):
                if _MISSING in self._positions[start:stop]:
                    for index, sample in enumerate(samples[problem.task_id], start):
                        if self._positions[index] == _MISSING:
                            yield index, problem, sample

        total, known = len(self._positions), len(self._positions) - self._positions.count(_MISSING)
        with Progress(total, "Running programs", "program", initial=known, shown=progress) as bar:
            for index, problem, verdict in _execute(missing(), executor, fail_fast):
                self._waiting.append((index, self._row(problem, verdict)))
                if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
                    self._write()
                bar.update()
        self._write()
        positions: array[int] = array("q")
        replace_text(self._ledger.path, self._lines(problems, samples, counts, positions))
        return Verdicts(self._ledger.path, positions, problems, samples, counts)

    def close(self) -> None:
        """Write pending verdicts and release the file."""
        with self._files:
            self._write()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _find(self, problem: Problem, sample: Sample) -> int:
        """Return the position of the stored verdict on a program."""
        key = self._key(problem, sample)
        for position in self._kept.find(key):
            row = read_json_line(self._reader, position)
            if row["key"] == key:
                return _MISSING if _result(row) is None else position
        return _MISSING

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            for (index, _), position in zip(waiting, self._ledger.append([row for _, row in waiting]), strict=True):
                self._positions[index] = position
        self._written = time.monotonic()

    def _lines(
        self,
        problems: Sequence[Problem],
        samples: Mapping[str, Sequence[Sample]],
        counts: Sequence[int],
        positions: "array[int]",
    ) -> Iterator[str]:
        """Yield the lines of all verdicts, and add their positions."""
        end = 0
        for problem, start, stop in _bounds(problems, counts):
            rows = [read_json_line(self._reader, position) for position in self._positions[start:stop]]
            if any(position < self._size for position in self._positions[start:stop]):
                # Lines of an earlier run may be of another sample with the same program.
                rows = [self._relabelled(problem, *pair) for pair in zip(samples[problem.task_id], rows, strict=True)]
            for row in rows:
                line = f"{json.dumps(row)}\n"
                positions.append(end)
                end += len(line)
                yield line

    def _relabelled(self, problem: Problem, sample: Sample, row: Mapping[str, Any]) -> dict[str, Any]:
        result = _result(row)
        assert result is not None
        return self._row(problem, Verdict(sample, result, label(result, problem, sample)))

    def _row(self, problem: Problem, verdict: Verdict) -> dict[str, Any]:
        judged = verdict.result.status != "infra_error"
        key = {"key": self._key(problem, verdict.sample)} if judged else {}
        return {**key, **verdict.as_dict()}

    def _key(self, problem: Problem, sample: Sample) -> str:
        if problem.task_id not in self._tests:
            self._tests[problem.task_id] = _digest(json.dumps(problem.tests, sort_keys=True))
        return _digest(f"{self._environment}{self._tests[problem.task_id]}{sample.solution}")


_MISSING = -1  # position of a verdict that is not in the file


class _KeyIndex:
    """Positions of lines by key, in 16 bytes per line: the hash of the key, which several keys may share."""

    def __init__(self, keys: Iterable[tuple[Any, int]]) -> None:
        hashes, positions = array("q"), array("q")
        for key, position in keys:
            if isinstance(key, str):
                hashes.append(hash(key))
                positions.append(position)
        order = np.argsort(np.array(hashes, dtype=np.int64), kind="stable")
        self._hashes = np.array(hashes, dtype=np.int64)[order]
        self._positions = np.array(positions, dtype=np.int64)[order]

    def find(self, key: str) -> Iterator[int]:
        """Yield the positions of the lines whose key may be this one, the last line first."""
        number = int(np.searchsorted(self._hashes, hash(key), side="right"))
        while number and self._hashes[number - 1] == hash(key):
            number -= 1
            yield int(self._positions[number])


def _bounds(problems: Sequence[Problem], counts: Sequence[int]) -> Iterator[tuple[Problem, int, int]]:
    """Yield each problem with the bounds of its samples among those of all problems."""
    start = 0
    for problem, count in zip(problems, counts, strict=True):
        yield problem, start, start + count
        start += count


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _result(row: Mapping[str, Any]) -> ExecutionResult | None:
    """Return the result in a line, or `None` if another version wrote it."""
    if not all(name in row for name in _RESULT) or row["status"] not in get_args(Status):
        return None
    return ExecutionResult(**{**{name: row[name] for name in _RESULT}, "error_bases": tuple(row["error_bases"])})


_RESULT = [field.name for field in fields(ExecutionResult)]


def run_samples(
    problems: Sequence[Problem],
    samples: Mapping[str, Sequence[Sample]],
    executor: CodeExecutor,
    *,
    fail_fast: bool = True,
    progress: bool = True,
) -> list[Verdict]:
    """Run all samples of all problems, and keep the verdicts in memory; see [`VerdictFile`] for many samples.

    Returns:
        `list[Verdict]`: In the order of the problems and of their samples.
    """
    asked = [(problem, sample) for problem in problems for sample in samples[problem.task_id]]
    verdicts: dict[int, Verdict] = {}
    with Progress(len(asked), "Running programs", "program", shown=progress) as bar:
        for index, _, verdict in _execute(((index, *pair) for index, pair in enumerate(asked)), executor, fail_fast):
            verdicts[index] = verdict
            bar.update()
    return [verdicts[index] for index in range(len(asked))]


def _execute(
    asked: Iterable[tuple[int, Problem, Sample]], executor: CodeExecutor, fail_fast: bool
) -> Iterator[tuple[int, Problem, Verdict]]:
    """Yield the verdicts in the order in which programs end."""
    running: dict[int, tuple[int, Problem, Sample]] = {}

    def programs() -> Iterator[tuple[str, Tests]]:
        for number, (index, problem, sample) in enumerate(asked):
            running[number] = index, problem, sample
            yield sample.solution, problem.tests

    for number, result in executor.stream(programs(), fail_fast=fail_fast):
        index, problem, sample = running.pop(number)
        yield index, problem, Verdict(sample, result, label(result, problem, sample))


def label(result: ExecutionResult, problem: Problem, sample: Sample) -> ErrorLabel:
    """Return the label of a sample's result."""
    return classify(result, sample.solution, problem.entry_point, truncated=sample.truncated)
