"""Functions that the quickstarts of all methods share: announce a stage, run a recipe, print the next command."""

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .parsing import read_recipe

__all__ = ["EVALUATION", "RESULTS", "next_command", "run_recipe", "stage"]

RESULTS = "results.json"
_WIDTH = 112  # of a printed command
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


def next_command(command: str, recipe: str | None = None, *flags: str, **overrides: Path | str | float) -> str:
    r"""Return a command for the user to type next, over several lines where it is long.

    Args:
        command (`str`): name of the command.
        recipe (`str`, *optional*): its recipe.
        flags (`str`): flags without a value.
        overrides: fields and their values; those that the recipe gives already are left out.

    Example:

    ```python
    >>> print(next_command("akd", "recipes/micro/akd/config.yaml", beta=0, output_dir="outputs/quickstart/kd"))
      trl-akd akd --config recipes/micro/akd/config.yaml --beta 0 --output_dir outputs/quickstart/kd

    ```
    """
    given = {} if recipe is None else read_recipe(recipe).values
    parts = [f"trl-akd {command}", *([] if recipe is None else [f"--config {recipe}"])]
    parts += [
        f"--{name} {shlex.quote(str(value))}"
        for name, value in overrides.items()
        if name not in given or str(given[name]) != str(value)
    ]
    lines = [""]
    for part in [*parts, *flags]:
        if lines[-1] and len(lines[-1]) + len(part) > _WIDTH:
            lines.append("   ")
        lines[-1] += f" {part}"
    return " \\\n".join(f" {line}" for line in lines)
