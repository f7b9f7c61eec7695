"""What the quickstarts of all methods share: stages that are announced, and commands run by their recipes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["EVALUATION", "RESULTS", "run_recipe", "stage"]

RESULTS = "results.json"
EVALUATION = "evaluation"


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Announce a stage, and tell how long it took."""
    print(f"\n[{title}]", flush=True)
    began = time.monotonic()
    yield
    print(f"[{time.monotonic() - began:.0f} s]", flush=True)


def run_recipe(command: Callable[[list[str]], None], recipe: str, **overrides: Path | str | float | bool) -> None:
    """Run a command in this process by a recipe, with fields of it replaced."""
    flags = [text for name, value in overrides.items() for text in (f"--{name}", str(value))]
    command(["--config", recipe, *flags])
