"""What a run of IterKD has asked, run and decided, on disk: a run that begins anew replays it to the same state."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accelerate import Accelerator

from ..distributed import is_main_process, run_on_main_and_broadcast
from ..generation import TextGenerator
from ..generation.protocol import Usage
from ..generation.recorded import RecordedGenerator, read_completion
from ..generation.wrappers import ProgressBar
from ..ledger import Ledger
from .judges import Judge
from .memo import Memo, RecordedJudge, recorded_runner
from .records import Runner

__all__ = ["CycleLedger"]

_FILES = ("completions", "verdicts", "items")


class CycleLedger:
    """Hold the ledgers of a run: three files that only grow, in one folder.

    | file | a line is |
    |---|---|
    | `completions.jsonl` | what a model was asked, by author, stage, cycle and version of the prompts, and its cost |
    | `verdicts.jsonl` | how a program ran, or what a scoring model said of an answer |
    | `items.jsonl` | a question, a pair, the feedback on an answer, or a cycle's report |

    The main process writes, all processes know. Nothing that is there is asked, run or written again.

    Args:
        folder (`Path`):
            The folder.
        settings (`Mapping`):
            JSON values that all lines depend on.
        accelerator (`Accelerator`):
            That of the run.

    Raises:
        ValueError: If the folder is of a run with other settings, or a line is damaged.
        BlockingIOError: If another run holds it.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._files = ExitStack()
        self._ledgers: dict[str, Ledger] = {}
        try:
            run_on_main_and_broadcast(accelerator, lambda: self._open(folder, settings))
            self._memo = Memo(self._ledgers.get("verdicts"), accelerator)
            self._items: dict[tuple[str, str], dict[str, Any]] = run_on_main_and_broadcast(accelerator, self._read)
        except BaseException:
            self.close()
            raise

    def recorded(
        self, generator: TextGenerator, author: str, *, retry_refused: bool = False, **facts: Any
    ) -> TextGenerator:
        """Return a generator whose completions are kept, with facts beside each, and whose progress is shown."""
        recorded = RecordedGenerator(
            generator,
            self._ledgers.get("completions"),
            name=author,
            accelerator=self._accelerator,
            retry_refused=retry_refused,
        )
        title = f"{author.capitalize()} writes"
        return ProgressBar(recorded.noting(**facts), title, shown=is_main_process(self._accelerator))

    def recorded_runner(self, run: Runner) -> Runner:
        """Return a runner whose verdicts are kept."""
        return recorded_runner(run, self._memo)

    def recorded_judge(self, judge: Judge, name: str) -> Judge:
        """Return a judge whose judgements are kept."""
        return RecordedJudge(judge, self._memo, name)

    def usage(self, authors: Sequence[str]) -> dict[str, Usage]:
        """Return what the recorded completions have cost, by those who wrote them."""
        return run_on_main_and_broadcast(self._accelerator, lambda: self._usage(authors))

    def has(self, kind: str, *, cycle: int) -> bool:
        """Tell whether there is any item of a kind."""
        return any(kept == f"{kind}/{cycle}" for kept, _ in self._items)

    def note(self, kind: str, items: Iterable[Mapping[str, Any]], *, cycle: int, may_differ: bool = False) -> None:
        """Keep what a stage came to, one line per `id`; what a replay finds there already must be the same.

        Args:
            kind (`str`):
                What the items are.
            items (`Iterable[Mapping]`):
                JSON values, each with an `id`.
            cycle (`int`):
                Number of the cycle.
            may_differ (`bool`, *optional*, defaults to `False`):
                Keep a new line where an item differs; the last one counts.

        Raises:
            ValueError: If it is not, as when a program was changed between two parts of a run.
        """
        new = []
        for item in items:
            row = json.loads(json.dumps({"kind": kind, "cycle": cycle, **item}))
            key = (f"{kind}/{cycle}", row["id"])
            if self._items.setdefault(key, row) is row:
                new.append(row)
            elif self._items[key] != row and may_differ:
                self._items[key] = row
                new.append(row)
            elif self._items[key] != row:
                raise ValueError(
                    f"the ledger has the {kind} {row['id']!r} of cycle {cycle} otherwise than it comes out now: the "
                    "data or the programs have changed since; give another output_dir."
                )
        if new:
            run_on_main_and_broadcast(self._accelerator, lambda: self._ledgers["items"].append(new))

    def _usage(self, authors: Sequence[str]) -> dict[str, Usage]:
        usage = dict.fromkeys(authors, Usage())
        for row, _ in self._ledgers["completions"].read():
            if row["name"] in usage:
                usage[row["name"]] += _usage_of(row)
        return usage

    def close(self) -> None:
        """Release the files."""
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
        found = {}
        for row, where in self._ledgers["items"].read():
            if not {"kind", "cycle", "id"} <= set(row):
                raise ValueError(f"{where} is no item of a cycle; give another output_dir.")
            found[(f"{row['kind']}/{row['cycle']}", row["id"])] = row
        return found


def _usage_of(row: Mapping[str, Any]) -> Usage:
    """Return what a record of completions has cost; of a generator that does not tell, a prompt is a request."""
    told = [usage for value in row["completions"] if (usage := read_completion(value).usage) is not None]
    if not told:
        return Usage(1, 0, row["num_tokens"] or 0, estimated=True)
    used = sum(told, Usage())
    return Usage(max(1, used.requests), used.prompt_tokens, used.completion_tokens, used.estimated)
