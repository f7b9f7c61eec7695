"""Results that are worked out once: kept by key, shared out over the ranks, found again by a run that begins anew."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from ..distributed import picklable_error, run_on_main_and_broadcast
from ..execution import ExecutionResult, Tests
from ..ledger import Ledger
from .judges import Judge
from .judging import Judgement, Unjudged, read_judgement
from .records import Runner

__all__ = ["Memo", "RecordedJudge", "recorded_runner"]

_CHUNK = 64  # results that every rank works out between two writes


class Memo:
    """Remember JSON values by key, in a ledger.

    All ranks ask for the same; what is not known is shared out, worked out a chunk at a time, gathered, and written by
    the main process before the next chunk begins. An error on any rank is raised on all.

    Args:
        ledger ([`Ledger`], *optional*):
            Where values are kept; `None` on processes other than the main one.
        accelerator (`Accelerator`):
            That of the run.

    Raises:
        ValueError: If a line of the ledger is no such record.

    Example:

    ```python
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, Ledger(Path(folder) / "memo.jsonl", {}) as ledger:
    ...     memo = Memo(ledger, Accelerator())
    ...     double = lambda jobs: [2 * job for job in jobs]
    ...     memo.recall(["one", "two"], [1, 2], double), memo.recall(["two"], [None], double)
    ([2, 4], [4])

    ```
    """

    def __init__(self, ledger: Ledger | None, accelerator: Accelerator) -> None:
        self._ledger = ledger
        self._accelerator = accelerator
        self._known: dict[str, Any] = run_on_main_and_broadcast(accelerator, self._read)

    def recall(self, keys: Sequence[str], jobs: Sequence[Any], work: Callable[[list[Any]], list[Any]]) -> list[Any]:
        """Return the values of keys; `work` turns the jobs of those that are not known into values, in order."""
        missing = {key: job for key, job in zip(keys, jobs, strict=True) if key not in self._known}
        wanted = list(missing)
        size = _CHUNK * self._accelerator.num_processes
        for start in range(0, len(wanted), size):
            chunk = wanted[start : start + size]
            self._keep(self._shared_out({key: missing[key] for key in chunk}, work))
        return [self._known[key] for key in keys]

    def _shared_out(self, jobs: Mapping[str, Any], work: Callable[[list[Any]], list[Any]]) -> dict[str, Any]:
        """Work out this rank's part, and return those of all."""
        rank, ranks = self._accelerator.process_index, self._accelerator.num_processes
        own = list(jobs)[rank::ranks]
        try:
            outcome: tuple[list[Any], Exception | None] = (work([jobs[key] for key in own]) if own else [], None)
        except Exception as error:
            outcome = ([], picklable_error(error))
        found: dict[str, Any] = {}
        for turn, (values, failure) in enumerate(gather_object([outcome]) if ranks > 1 else [outcome]):
            if failure is not None:
                raise failure
            found |= zip(list(jobs)[turn::ranks], values, strict=True)
        return {key: found[key] for key in jobs}

    def _keep(self, values: Mapping[str, Any]) -> None:
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
                raise ValueError(f"{where} is no result that was kept; give another output_dir.")
            known[row["key"]] = row["value"]
        return known


def recorded_runner(run: Runner, memo: Memo) -> Runner:
    """Return a runner that runs each program with the same tests once, and remembers the verdict.

    Infrastructure errors are remembered as well, or a run that was resumed might end otherwise than an unbroken one.
    """

    def work(jobs: list[tuple[str, Tests]]) -> list[dict[str, Any]]:
        return [{**asdict(result), "seconds": 0.0} for result in run(jobs)]  # time is no part of a verdict

    def remember(programs: Sequence[tuple[str, Tests]]) -> list[ExecutionResult]:
        keys = [_digest("run", program, tests) for program, tests in programs]
        found = memo.recall(keys, programs, work)
        return [ExecutionResult(**{**value, "error_bases": tuple(value["error_bases"])}) for value in found]

    return remember


class RecordedJudge:
    """Ask a judge about each answer once, and remember what it said.

    Args:
        judge ([`Judge`]):
            Who judges, by itself on every rank.
        memo ([`Memo`]):
            Where judgements are kept.
        name (`str`):
            Tells judges apart.
    """

    def __init__(self, judge: Judge, memo: Memo, name: str) -> None:
        self._judge = judge
        self._memo = memo
        self._name = name

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Judgement | Unjudged]:
        """Judge answers, as [`Judge`] says."""

        def work(jobs: list[tuple[str, str]]) -> list[dict[str, Any]]:
            return [asdict(judgement) for judgement in self._judge.judge(jobs)]

        keys = [_digest("judge", self._name, *pair) for pair in pairs]
        return list(map(read_judgement, self._memo.recall(keys, pairs, work)))


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
