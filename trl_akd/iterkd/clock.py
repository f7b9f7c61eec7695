"""How long a run has taken, however often it was killed and started again."""

import json
import os
import threading
from pathlib import Path
from typing import Any, Self

from ..generation.budget import Budget

__all__ = ["Clock"]

_INTERVAL = 10.0  # seconds between two writes, which are what a kill can lose


class Clock:
    """Write down the seconds of a run's budget while it lasts.

    Args:
        path (`Path`):
            JSON file of the seconds, made where it is missing.

    Attributes:
        seconds (`float`): what the file had at first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.seconds = float(json.loads(path.read_text())["seconds"]) if path.exists() else 0.0

    def follow(self, budget: Budget) -> None:
        """Begin to write down the seconds of a budget."""

        def write() -> None:
            while True:
                ended = self._ended.wait(_INTERVAL)
                scratch = self._path.with_suffix(".tmp")
                scratch.write_text(json.dumps({"seconds": round(budget.seconds, 1)}) + "\n")
                os.replace(scratch, self._path)
                if ended:
                    return

        self._thread = threading.Thread(target=write, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
