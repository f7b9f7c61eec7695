"""Run the mutants: `make mutants`, or `python -m tests.mutants NAME ...` for some of them.

Each mutant is written into a copy of the repository, where its tests must fail. A mutant that survives, and tests that
cannot be run, end the command with exit status 1.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import ROOT, Mutant, read_mutants

_TESTS_FAILED = 1  # pytest's exit status; all others but 0 mean that tests could not be run
_LIMIT = 600.0  # seconds


def run(mutant: Mutant) -> str:
    """Return `killed`, `survived`, or the reason why the tests could not be run."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / ROOT.name
        ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", "outputs", "site")
        shutil.copytree(ROOT, copy, ignore=ignored)
        mutant.apply(copy)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests]
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        try:
            finished = subprocess.run(
                command, cwd=copy, env=environment, capture_output=True, text=True, timeout=_LIMIT
            )
        except subprocess.TimeoutExpired:
            return "killed"
    if finished.returncode in (0, _TESTS_FAILED):
        return "killed" if finished.returncode else "survived"
    return f"pytest ended with exit status {finished.returncode}:\n{finished.stdout[-2000:]}{finished.stderr[-2000:]}"


def main(names: list[str]) -> int:
    """Run the named mutants, or all; return the exit status."""
    mutants = [mutant for mutant in read_mutants() if not names or mutant.name in names]
    if unknown := set(names) - {mutant.name for mutant in mutants}:
        print(f"no such mutants: {', '.join(sorted(unknown))}; see tests/mutants/mutants.yaml")
        return 1
    started = time.monotonic()
    outcomes = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, outcome in zip(mutants, pool.map(run, mutants), strict=True):
            print(f"{mutant.name}: {outcome}", flush=True)
            outcomes.append(outcome)
    killed = outcomes.count("killed")
    print(f"{killed} of {len(mutants)} mutants killed in {time.monotonic() - started:.0f} s")
    return 0 if killed == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
