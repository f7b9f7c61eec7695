"""Errors that the user can mend: shown as one sentence, without a traceback."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["STOPPED", "StoppedEarly", "UserError", "run", "user_errors"]

# While a run is set up, these name a wrong value, a missing file or a missing package. During training, the same types
# may as well come from a fault in the program, and the traceback is wanted.
SETUP_ERRORS = (ValueError, OSError, ImportError)


STOPPED = 3


class StoppedEarly(Exception):
    """A budget ended a run, which has said so and can go on when it is started again."""


class UserError(Exception):
    """An error whose message says what to change."""


@contextmanager
def user_errors(kinds: tuple[type[Exception], ...] = SETUP_ERRORS) -> Iterator[None]:
    """Turn errors of these kinds into `UserError`."""
    try:
        yield
    except kinds as error:
        raise UserError(str(error)) from error


def run(command: Callable[[list[str] | None], None], argv: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    It is 0 where all is done, 2 after a `UserError`, 3 where a budget ended the run, and 130 after an interrupt.

    With `TRL_AKD_DEBUG=1` in the environment a `UserError` keeps its traceback.
    """
    try:
        command(argv)
    except KeyboardInterrupt:
        return 130
    except StoppedEarly:
        return STOPPED
    except UserError as error:
        if os.environ.get("TRL_AKD_DEBUG") == "1":
            raise
        print(f"trl-akd{_rank()}: {error}", file=sys.stderr)
        return 2
    return 0


def _rank() -> str:
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return f" (process {os.environ['RANK']})" if several else ""
