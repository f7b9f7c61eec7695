"""How long a run has taken, however often it was killed and started again."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..generation.budget import Budget

__all__ = ["keeping_seconds", "kept_seconds"]

_INTERVAL = 10.0  # seconds between two writes, which are what a kill can lose


def kept_seconds(path: Path) -> float:
    """Return the seconds that were kept in a file; 0 where there is none.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        return float(json.loads(path.read_text())["seconds"]) if path.exists() else 0.0
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); delete it to count `max_seconds` anew.") from error


@contextmanager
def keeping_seconds(path: Path, budget: Budget) -> Iterator[None]:
    """Write the seconds of a budget to a file every few seconds inside the context, and at its end."""
    ended = threading.Event()

    def keep() -> None:
        while True:
            is_last = ended.wait(_INTERVAL)
            scratch = path.with_suffix(".tmp")
            scratch.write_text(json.dumps({"seconds": round(budget.seconds, 1)}) + "\n")
            os.replace(scratch, path)
            if is_last:
                return

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
