"""Progress of a long stage: a bar in a terminal or notebook, and elsewhere, such as in a log, a line at intervals."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from tqdm.auto import tqdm

__all__ = ["Progress", "dataset_bars"]

_INTERVAL = 30.0  # seconds between two lines of a log


class Progress:
    """Show how much of a stage is done, and the time left.

    Args:
        total (`int`):
            Number of items.
        description (`str`):
            Name of the stage, such as `"Running programs"`.
        unit (`str`):
            Name of an item.
        units (`str`, *optional*):
            Plural of the name, by default with an “s”.
        initial (`int`, *optional*, defaults to `0`):
            Number of items that were done before.
        shown (`bool`, *optional*, defaults to `True`):
            Whether anything is shown; set it on the main process only.

    Example:

    ```python
    >>> with Progress(2, "Running programs", "program") as progress:
    ...     for _ in range(2):
    ...         progress.update()

    ```
    """

    def __init__(
        self,
        total: int,
        description: str,
        unit: str,
        units: str | None = None,
        *,
        initial: int = 0,
        shown: bool = True,
    ) -> None:
        self._total = total
        self._done = self._initial = initial
        self._description = description
        self._units = units or f"{unit}s"
        shown = shown and initial < total
        self._bar: Any = None
        if shown and _draws_bars():
            self._bar = tqdm(total=total, initial=initial, desc=description, unit=unit)
        self._logs = shown and self._bar is None
        self._began = self._written = time.monotonic()
        self._last = 0  # number in the last line

    def update(self, count: int = 1) -> None:
        """Count items as done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._logs and time.monotonic() - self._written >= _INTERVAL:
            self._write_line()

    def close(self) -> None:
        """End the bar, or the lines if there were any."""
        if self._bar is not None:
            self._bar.close()
        elif self._logs and self._done > self._last > 0:
            self._write_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write_line(self) -> None:
        self._written, self._last = time.monotonic(), self._done
        seconds, done = self._written - self._began, self._done - self._initial
        line = f"{self._description}: {self._done:,} of {self._total:,} {self._units} in {_duration(seconds)}"
        if 0 < done and self._done < self._total:
            line += f", {_duration(seconds / done * (self._total - self._done))} left"
        print(line, file=sys.stderr, flush=True)


@contextmanager
def dataset_bars(*, shown: bool) -> Iterator[None]:
    """Show or hide the progress bars of `datasets`, such as those of tokenization, within the context."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _draws_bars() -> bool:
    in_notebook = any("notebook" in kind.__module__ for kind in tqdm.__mro__)
    return in_notebook or (sys.stderr is not None and sys.stderr.isatty())


def _duration(seconds: float) -> str:
    return str(tqdm.format_interval(seconds))
