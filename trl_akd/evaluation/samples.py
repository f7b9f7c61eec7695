"""Samples: programs that a model generated, in a file that survives interruption and that other tools read."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from ..files import replace_text
from ..ledger import Ledger, read_json_lines
from .benchmarks import Benchmark
from .formats import optional_text
from .problems import Problem

__all__ = ["Sample", "SampleFile", "Samples", "read_samples", "write_sample_file"]


@dataclass(frozen=True, slots=True)
class Sample:
    """A program for a problem.

    Args:
        task_id (`str`):
            Identifier of the problem.
        solution (`str`):
            Whole program that the tests run.
        completion (`str`):
            Generated text.
        sample (`int`):
            Number of the sample among those of its problem, from 0.
        finish_reason (`str`, *optional*):
            `stop` or `length`.
        mean_logprob (`float`, *optional*):
            Mean log-probability of the generated tokens, in nats.
        num_tokens (`int`, *optional*):
            Number of generated tokens.
    """

    task_id: str
    solution: str
    completion: str = ""
    sample: int = 0
    finish_reason: str | None = None
    mean_logprob: float | None = None
    num_tokens: int | None = None

    @property
    def truncated(self) -> bool:
        """Whether generation was cut off at the length limit."""
        return self.finish_reason == "length"

    @property
    def empty(self) -> bool:
        """Whether the completion is empty or, for samples of other tools, the program is blank."""
        return not (self.solution if self.finish_reason is None else self.completion).strip()


def read_samples(path: Path, benchmark: Benchmark, program: Callable[[Problem, str], str]) -> dict[str, list[Sample]]:
    """Read samples in the format of this package, of HumanEval (`completion`) or of EvalPlus (`solution`).

    Args:
        path (`Path`):
            JSON Lines, plain or gzipped, with `task_id` and `solution`, the whole program, or `completion`. Or a
            folder: with `samples.jsonl`, with other such files, or as of EvalPlus, with a folder per problem
            (`HumanEval_0`) that holds its programs (`0.py`).
        benchmark (`Benchmark`):
            Benchmark of the samples; samples of problems that its limit excludes are ignored.
        program (`Callable`):
            Returns the program for a problem and a completion.

    Returns:
        `dict`: The samples of each problem, in the order of the problems and of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is malformed, lacks a program or names an unknown problem, or a problem has no sample.
    """
    by_id = {problem.task_id: problem for problem in benchmark.problems}
    found: dict[str, list[Sample]] = {task_id: [] for task_id in by_id}
    for row, where in _rows(path):
        task_id = _task_id(row, where, {*by_id, *benchmark.left_out})
        if task_id in by_id:
            found[task_id].append(_foreign_sample(row, where, by_id[task_id], len(found[task_id]), program))
    missing = [task_id for task_id, samples in found.items() if not samples]
    if missing:
        raise ValueError(
            f"{path} has no sample for {len(missing)} of {len(found)} problems, such as {missing[0]!r}; add them, or "
            "evaluate fewer problems with limit."
        )
    return found


def write_sample_file(folder: Path, samples: Sequence[Sample]) -> None:
    """Write `samples.jsonl`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "samples.jsonl", "".join(f"{json.dumps(asdict(sample))}\n" for sample in samples))


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    if not path.is_dir():
        return read_json_lines(path)
    files = [path / "samples.jsonl"]
    if not files[0].is_file():
        files = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")])
    if files:
        return chain.from_iterable(map(read_json_lines, files))
    programs = sorted(path.glob("*/*.py"), key=lambda file: (file.parent.name, len(file.stem), file.stem))
    if not programs:
        raise FileNotFoundError(
            f"There are neither .jsonl files nor */*.py in the folder {str(path)!r}; give the folder of the samples."
        )
    return (({"task_id": file.parent.name, "solution": _program_text(file)}, str(file)) for file in programs)


def _program_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error}); save it as UTF-8.") from error


class Samples:
    """Samples in memory, by `task_id`.

    Args:
        samples (`Mapping[str, Sequence[Sample]]`, *optional*):
            Existing samples.
    """

    def __init__(self, samples: Mapping[str, Sequence[Sample]] = MappingProxyType({})) -> None:
        self.by_task = {task_id: list(several) for task_id, several in samples.items()}

    def __getitem__(self, task_id: str) -> list[Sample]:
        return self.by_task.setdefault(task_id, [])

    def append(self, samples: Sequence[Sample]) -> None:
        """Add samples."""
        for sample in samples:
            self[sample.task_id].append(sample)


class SampleFile(Samples):
    """Samples in a file, to which new ones are appended.

    The settings of their generation are in `generation.json` beside it; samples with other settings are refused.
    The file is a [`Ledger`]: one process at a time holds it, and it survives interruption.

    Args:
        folder (`Path`):
            Folder of `samples.jsonl`, created if necessary.
        settings (`Mapping`):
            JSON values that all samples in the file share.

    Raises:
        ValueError: If the file was made with other settings, or a line of it is malformed.
        BlockingIOError: If another process holds it.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._ledger = Ledger(
            folder / "samples.jsonl", settings, sidecar=folder / "generation.json", option="output_dir"
        )
        try:
            super().__init__(self._read())
        except BaseException:
            self._ledger.close()
            raise

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self._ledger.path

    @property
    def facts(self) -> Mapping[str, Any]:
        """Settings, and facts that were noted beside them."""
        return self._ledger.facts

    def append(self, samples: Sequence[Sample]) -> None:
        """Add samples, and return once they are on disk.

        Raises:
            OSError: If the disk is full; samples written before are kept.
        """
        self._ledger.append([asdict(sample) for sample in samples])
        super().append(samples)

    def note(self, **facts: Any) -> None:
        """Store facts about the samples beside their settings; they are not compared."""
        self._ledger.note(**facts)

    def close(self) -> None:
        """Release the file."""
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> defaultdict[str, list[Sample]]:
        samples: defaultdict[str, list[Sample]] = defaultdict(list)
        for row, where in self._ledger.read():
            try:
                sample = Sample(**row)
                sample.solution.strip(), sample.completion.strip()
            except (TypeError, AttributeError) as error:
                raise ValueError(f"{where} is no sample of this package; give another output_dir.") from error
            samples[sample.task_id].append(sample)
        return samples


def _foreign_sample(
    row: Mapping[str, Any], where: str, problem: Problem, number: int, program: Callable[[Problem, str], str]
) -> Sample:
    solution, completion = optional_text(row, "solution", where), optional_text(row, "completion", where)
    if not {"solution", "completion"} & {name for name, value in row.items() if value is not None}:
        raise ValueError(
            f"{where} has neither `solution` nor `completion`; give the whole program or the prompt's continuation."
        )
    if row.get("solution") is None:
        solution = program(problem, completion or "")
    return Sample(
        problem.task_id, solution or "", completion or "", number, optional_text(row, "finish_reason", where)
    )


def _task_id(row: Mapping[str, Any], where: str, known: set[str]) -> str:
    """Return the problem's identifier in the benchmark; EvalPlus writes MBPP's 11 as `Mbpp/11` or `Mbpp_11`."""
    if "task_id" not in row:
        raise ValueError(f"{where} has no `task_id`; give the problem that the program is for.")
    task_id = str(row["task_id"])
    for written in (task_id, "/".join(task_id.rsplit("_", 1))):
        for spelling in (written, written.removeprefix("Mbpp/"), f"Mbpp/{written}"):
            if spelling in known:
                return spelling
    raise ValueError(
        f"{where} is for the problem {task_id!r}, which is not among the {len(known)} of the benchmark (such as "
        f"{min(known)!r}); choose the benchmark that the samples were written for."
    )
