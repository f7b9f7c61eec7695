"""The ledger of a run: completions, judgements and program results on disk, shared by all processes."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accelerate import Accelerator
from accelerate.utils import gather_object

from ...distributed import is_main_process, picklable_error, run_on_main_and_broadcast
from ...execution import ExecutionResult, Tests
from ...execution.result import HARNESS_VERSION
from ...generation import TextGenerator
from ...generation.protocol import Usage
from ...generation.recorded import CompletionStore, RecordedGenerator, read_completion
from ...generation.wrappers import ProgressBar
from ...hub import REPOSITORY
from ...hub.datasets import DatasetContent
from ...hub.private import public_path
from ...ledger import Ledger, read_json_lines
from ...progress import Progress
from ..judge.judges import Judge
from ..judge.rubric import Judgement, Unjudged, read_judgement
from .records import Runner

__all__ = ["CycleLedger", "ResultCache", "ledger_content", "read_items"]

_FILES = ("completions", "verdicts", "items")


class CycleLedger:
    """Ledger of a run: three append-only files in one folder.

    | file | content of a line |
    |---|---|
    | `completions.jsonl` | prompt and completions of a model, with stage, cycle, version of the prompts, and usage |
    | `verdicts.jsonl` | result of a program, or judgement of a scoring model |
    | `items.jsonl` | question, pair, feedback on an answer, or report of a cycle |

    The main process writes, and all processes share the content. Recorded results are not requested or computed again.
    `settings` are JSON values on which all lines depend. With `progress`, the main process shows that of each stage.

    Raises:
        ValueError: If the folder belongs to a run with other settings, or a line is damaged.
        BlockingIOError: If another run uses the folder.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], accelerator: Accelerator, *, progress: bool = True
    ) -> None:
        self._accelerator = accelerator
        self._progress = progress and is_main_process(accelerator)
        self._files = ExitStack()
        self._ledgers: dict[str, Ledger] = {}
        try:
            run_on_main_and_broadcast(accelerator, lambda: self._open(folder, settings))
            self._completions = CompletionStore(self._ledgers.get("completions"), accelerator)
            self._cache = ResultCache(self._ledgers.get("verdicts"), accelerator, progress=self._progress)
            self._items: dict[tuple[str, str], dict[str, Any]] = run_on_main_and_broadcast(accelerator, self._read)
            self._kinds = {kind for kind, _ in self._items}
        except BaseException:
            self.close()
            raise

    def recorded(
        self, generator: TextGenerator, author: str, *, retry_refused: bool = False, **facts: Any
    ) -> TextGenerator:
        """Return a generator that records its completions, with further facts, and shows progress."""
        recorded = RecordedGenerator(generator, self._completions, name=author, retry_refused=retry_refused)
        title = f"{author.capitalize()} writes"
        return ProgressBar(recorded.noting(**facts), title, shown=self._progress)

    def recorded_runner(self, run: Runner) -> Runner:
        """Return a runner that runs each program with the same tests and version of their execution once.

        Errors of the sandbox are recorded as well, as a resumed run could otherwise differ from an uninterrupted one.
        """

        def compute(jobs: list[tuple[str, Tests]]) -> list[dict[str, Any]]:
            return [{**asdict(result), "seconds": 0.0} for result in run(jobs)]  # the time is not reproducible

        def recorded(programs: Sequence[tuple[str, Tests]]) -> list[ExecutionResult]:
            keys = [_digest("run", HARNESS_VERSION, program, tests) for program, tests in programs]
            values = self._cache.get_or_compute(keys, programs, compute, "Running programs", "program")
            return [ExecutionResult(**{**value, "error_bases": tuple(value["error_bases"])}) for value in values]

        return recorded

    def recorded_judge(self, judge: Judge, name: str) -> Judge:
        """Return a judge that records its judgements under a name; the given one is independent on each process."""
        return _RecordedJudge(judge, self._cache, name)

    def usage(self, authors: Sequence[str]) -> dict[str, Usage]:
        """Return the usage of the recorded completions, by model."""
        return run_on_main_and_broadcast(self._accelerator, lambda: self._usage(authors))

    def has(self, kind: str, *, cycle: int) -> bool:
        """Return whether any item of a kind is recorded."""
        return f"{kind}/{cycle}" in self._kinds

    def note(self, kind: str, items: Iterable[Mapping[str, Any]], *, cycle: int, may_differ: bool = False) -> None:
        """Record items of a stage, JSON values with an `id`; those that are recorded already must be equal.

        With `may_differ`, an item that differs is recorded again, and the last one counts.

        Raises:
            ValueError: If an item differs from the recorded one, for example because a program changed.
        """
        new = []
        for item in items:
            row = json.loads(json.dumps({"kind": kind, "cycle": cycle, **item}))
            key = (f"{kind}/{cycle}", row["id"])
            if self._items.get(key) == row:
                continue
            if key in self._items and not may_differ:
                raise ValueError(
                    f"the {kind} {row['id']!r} of cycle {cycle} differs from the one in the ledger, because the "
                    "data, the programs or the version of trl_akd have changed since; give another output_dir."
                )
            self._items[key] = row
            self._kinds.add(key[0])
            new.append(row)
        if new:
            run_on_main_and_broadcast(self._accelerator, lambda: self._ledgers["items"].append(new))

    def _usage(self, authors: Sequence[str]) -> dict[str, Usage]:
        usage = dict.fromkeys(authors, Usage())
        for row, _ in self._ledgers["completions"].read():
            if row["name"] in usage:
                usage[row["name"]] += _usage_of(row)
        return usage

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, folder: Path, settings: Mapping[str, Any]) -> None:
        for name in _FILES:
            ledger = Ledger(folder / f"{name}.jsonl", settings, option="output_dir")
            self._ledgers[name] = self._files.enter_context(ledger)

    def _read(self) -> dict[tuple[str, str], dict[str, Any]]:
        items = {}
        for row, where in self._ledgers["items"].read():
            if not {"kind", "cycle", "id"} <= set(row):
                raise ValueError(f"{where} is not an item of a cycle; give another output_dir.")
            items[(f"{row['kind']}/{row['cycle']}", row["id"])] = row
        return items


def _usage_of(row: Mapping[str, Any]) -> Usage:
    """Return the usage of a record of completions; without reported usage, a prompt counts as one request."""
    reported = [usage for value in row["completions"] if (usage := read_completion(value).usage) is not None]
    if not reported:
        return Usage(1, 0, row["num_tokens"] or 0, estimated=True)
    used = sum(reported, Usage())
    return Usage(max(1, used.requests), used.prompt_tokens, used.completion_tokens, used.estimated)


_CHUNK = 64  # results that each process computes between two writes


class ResultCache:
    """Cache of JSON values by key, in a ledger, which is `None` on processes other than the main one.

    All processes request the same keys. Missing values are distributed over the processes, computed in chunks,
    gathered, and written by the main process before the next chunk. An error on any process is raised on all.

    Raises:
        ValueError: If a line of the ledger is not such a record.

    Example:

    ```python
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, Ledger(Path(folder) / "cache.jsonl", {}) as ledger:
    ...     cache = ResultCache(ledger, Accelerator())
    ...     double = lambda jobs: [2 * job for job in jobs]
    ...     cache.get_or_compute(["one", "two"], [1, 2], double), cache.get_or_compute(["two"], [None], double)
    ([2, 4], [4])

    ```
    """

    def __init__(self, ledger: Ledger | None, accelerator: Accelerator, *, progress: bool = False) -> None:
        self._progress = progress
        self._ledger = ledger
        self._accelerator = accelerator
        self._known: dict[str, Any] = run_on_main_and_broadcast(accelerator, self._read)

    def get_or_compute(
        self,
        keys: Sequence[str],
        jobs: Sequence[Any],
        compute: Callable[[list[Any]], list[Any]],
        stage: str = "Computing",
        unit: str = "value",
    ) -> list[Any]:
        """Return the values of keys; `compute` returns the missing ones from their jobs, in order.

        `stage` and `unit` name what is computed in the display of the progress.
        """
        missing = {key: job for key, job in zip(keys, jobs, strict=True) if key not in self._known}
        missing_keys = list(missing)
        size = _CHUNK * self._accelerator.num_processes
        with Progress(len(missing_keys), stage, unit, shown=self._progress) as progress:
            for start in range(0, len(missing_keys), size):
                chunk = {key: missing[key] for key in missing_keys[start : start + size]}
                self._record(self._distribute(chunk, compute))
                progress.update(len(chunk))
        return [self._known[key] for key in keys]

    def _distribute(self, jobs: Mapping[str, Any], compute: Callable[[list[Any]], list[Any]]) -> dict[str, Any]:
        """Compute the values of this process, and return those of all."""
        rank, ranks = self._accelerator.process_index, self._accelerator.num_processes
        own = list(jobs.values())[rank::ranks]
        try:
            outcome: tuple[list[Any], Exception | None] = (compute(own) if own else [], None)
        except Exception as error:
            outcome = ([], picklable_error(error))
        values: dict[str, Any] = {}
        for other, (computed, failure) in enumerate(gather_object([outcome]) if ranks > 1 else [outcome]):
            if failure is not None:
                raise failure
            values |= zip(list(jobs)[other::ranks], computed, strict=True)
        return {key: values[key] for key in jobs}

    def _record(self, values: Mapping[str, Any]) -> None:
        run_on_main_and_broadcast(self._accelerator, lambda: self._append(values))
        self._known |= values

    def _append(self, values: Mapping[str, Any]) -> None:
        assert self._ledger is not None, "the main process needs a ledger"
        self._ledger.append([{"key": key, "value": value} for key, value in values.items()])

    def _read(self) -> dict[str, Any]:
        assert self._ledger is not None, "the main process needs a ledger"
        known = {}
        for row, where in self._ledger.read():
            if "key" not in row or "value" not in row:
                raise ValueError(f"{where} is not a recorded result; give another output_dir.")
            known[row["key"]] = row["value"]
        return known


class _RecordedJudge:
    """Judge that caches its judgements under a name."""

    def __init__(self, judge: Judge, cache: ResultCache, name: str) -> None:
        self._judge = judge
        self._cache = cache
        self._name = name

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Judgement | Unjudged]:
        """Judge answers, see [`Judge`]."""

        def compute(jobs: list[tuple[str, str]]) -> list[dict[str, Any]]:
            return [asdict(judgement) for judgement in self._judge.judge(jobs)]

        keys = [_digest("judge", self._name, *pair) for pair in pairs]
        return list(map(read_judgement, self._cache.get_or_compute(keys, pairs, compute, "Judging", "answer")))


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


_DESCRIPTIONS = {
    "pairs": "correct answers and faults that the student was trained on",
    "questions": "questions of each cycle",
    "feedback": "answers of the student, and how they were judged",
    "completions": "all prompts and completions of teacher, judge and student",
    "verdicts": "results of programs",
}
_ITEMS = {"pairs": "pair", "questions": "question", "feedback": "feedback"}


def ledger_content(folder: Path, student: str) -> DatasetContent:
    """Return the texts of a run's ledger as a dataset, without the settings, which contain local paths.

    Args:
        folder (`Path`):
            Folder of the ledger.
        student (`str`):
            Name of the student.

    Raises:
        FileNotFoundError: If there is no ledger.
    """
    items = read_items(folder)
    tables: dict[str, list[dict[str, Any]]] = {
        name: [_without_kind(row) for row in items if row["kind"] == kind] for name, kind in _ITEMS.items()
    }
    for name in ("completions", "verdicts"):
        path = folder / f"{name}.jsonl"
        tables[name] = [row for row, _ in read_json_lines(path)] if path.is_file() else []
    content = "\n".join(f"- `{name}`: {_DESCRIPTIONS[name]}" for name, rows in tables.items() if rows)
    return DatasetContent(
        title=f"Texts of the training of {student.rpartition('/')[2]} with IterKD",
        description="Questions, answers and faults of a run of IterKD, with `trl-akd iterkd` of "
        f"[trl_akd]({REPOSITORY}).\n\n{content}",
        tables=tables,
        facts={"Student": public_path(student)},
    )


def read_items(folder: Path) -> list[dict[str, Any]]:
    """Return the items in the ledger of a run: `kind`, `cycle`, `id` and the fields of that kind.

    Args:
        folder (`Path`):
            Folder of the ledger.

    Raises:
        FileNotFoundError: If there is no ledger.
        ValueError: If a line is malformed.
    """
    rows = (row for row, _ in read_json_lines(folder / "items.jsonl", interrupted=True))
    return list({(row["kind"], row["cycle"], row["id"]): row for row in rows}.values())  # the last one counts


def _without_kind(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "kind"}
