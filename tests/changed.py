"""Print the tests of the packages that were changed, for `make check`: `python -m tests.changed [BASE]`.

A file counts as changed if it is not tracked, or differs from the commit BASE: by default the one where the branch
left `origin/main`, or `HEAD` where there is no such branch. Where nothing was changed, the tests of the losses and of
β are printed.
"""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ALWAYS = ("tests/test_architecture.py", "tests/test_public_api.py")
DEFAULT = ("tests/losses", "tests/test_beta.py")


def tests_of(path: str) -> set[str]:
    """Return the test folders and files of a changed file, as paths relative to the root."""
    parts = Path(path).parts
    match parts:
        case ("trl_akd", module):
            found = {f"tests/test_{Path(module).stem}.py"}
        case ("trl_akd", package, *_):
            found = {f"tests/{package}"}
        case ("tests", name) if name.startswith("test_"):
            found = {path}
        case ("tests", package, name) if name.startswith("test_"):
            found = {path}
        case ("tests", package, _, *_):
            found = {f"tests/{package}"}
        case ("pyproject.toml" | "constraints-lowest.txt" | "CITATION.cff",) | (".github", *_):
            found = {"tests/test_packaging.py"}
        case ("recipes", *_):
            found = {"tests/test_recipes.py", "tests/test_commands.py"}
        case ("docs", *_) | ("README.md",) | ("CHANGELOG.md",):
            found = {"tests/test_docs.py", "tests/test_commands.py"}
        case _:
            found = set()
    return {test for test in found if (ROOT / test).exists()}


def changed_files(base: str | None = None) -> list[str]:
    """Return the files that differ from `base` or are not tracked, relative to the root."""
    if base is None:
        found = subprocess.run(["git", "merge-base", "origin/main", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        base = found.stdout.strip() or "HEAD"
    changed = _git("diff", "--name-only", base)
    return changed + _git("ls-files", "--others", "--exclude-standard")


def select(files: Iterable[str]) -> list[str]:
    """Return the tests to run for changed files, each once."""
    found = set().union(*map(tests_of, files))
    folders = {test for test in found if not test.endswith(".py")}
    kept = {test for test in found if test in folders or str(Path(test).parent) not in folders}
    return sorted({*ALWAYS, *(kept or DEFAULT)})


def _git(*arguments: str) -> list[str]:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()


if __name__ == "__main__":
    print(*select(changed_files(*sys.argv[1:2])))
