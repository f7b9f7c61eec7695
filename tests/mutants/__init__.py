"""Mutation testing: small faults introduced into the package, each of which `make test` must detect."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["ROOT", "Mutant", "read_mutants"]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault: a piece of text of one file, its replacement, and the tests that detect it.

    Args:
        name (`str`):
            Name in reports.
        file (`str`):
            File, relative to the root of the repository.
        find (`str`):
            Text that occurs once in the file.
        replace (`str`):
            The faulty text.
        tests (`tuple[str, ...]`):
            Arguments of pytest: test files or single tests of `make test`, the one most likely to fail first.
    """

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]

    def apply(self, root: Path) -> None:
        """Write the fault into the copy of the repository at `root`.

        Raises:
            ValueError: If the text to replace does not occur exactly once.
        """
        path = root / self.file
        text = path.read_text()
        if text.count(self.find) != 1:
            raise ValueError(
                f"{self.name!r}: {self.find!r} occurs {text.count(self.find)} times in {self.file}, not once; "
                "adapt tests/mutants/mutants.yaml"
            )
        path.write_text(text.replace(self.find, self.replace))


def read_mutants() -> list[Mutant]:
    """Return the mutants of `mutants.yaml`."""
    entries: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "mutants.yaml").read_text())
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]
