"""Seconds and requests of a run, which its ledger does not tell, however often it was killed and started again."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ..generation.budget import Budget

__all__ = ["Spending", "keeping_spending", "kept_spending"]

_INTERVAL = 10.0  # seconds between two writes, which are what a kill can lose


@dataclass(frozen=True)
class Spending:
    """Hold the seconds of a run and the requests that it has sent, those without an answer included."""

    seconds: float = 0.0
    requests: int = 0


def kept_spending(path: Path) -> Spending:
    """Return the spending that was kept in a file; none where there is no file.

    Raises:
        ValueError: If the file is damaged.
    """
    if not path.exists():
        return Spending()
    try:
        kept = json.loads(path.read_text())
        return Spending(float(kept["seconds"]), int(kept["requests"]))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); delete it to count `max_seconds`, and requests without an answer, anew."
        ) from error


@contextmanager
def keeping_spending(path: Path, budget: Budget) -> Iterator[None]:
    """Write the spending of a budget to a file every few seconds inside the context, and at its end."""
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(_INTERVAL):
            with suppress(OSError):  # which the write at the end reports
                write()

    def write() -> None:
        scratch = path.with_suffix(".tmp")
        spending = Spending(round(budget.seconds, 1), budget.spent.requests)
        scratch.write_text(json.dumps(asdict(spending)) + "\n")
        os.replace(scratch, path)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write()
