"""Execution of an experiment's runs: each in its own process, and a row of a file.

A run is identified by a hash of all settings that its result depends on, so that an interrupted experiment continues,
and one with more runs executes only the new ones.
"""

import gc
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from transformers.utils import logging

from .. import __version__
from ..ledger import Ledger, replace_text

__all__ = [
    "ExperimentRun",
    "PlannedRun",
    "check_distinct_runs",
    "commit",
    "digest",
    "execute_all",
    "find_start",
    "peak_memory_mb",
    "results_text",
    "rounded",
    "run_experiment",
]

RUNS, LOG, STARTS = "runs.jsonl", "log.txt", "starts"


class PlannedRun(Protocol):
    """Interface of a run in the plan and in the results."""

    @property
    def key(self) -> str:
        """Hash of all settings that the result depends on."""

    @property
    def name(self) -> str:
        """Name for messages."""

    @property
    def place(self) -> dict[str, Any]:
        """Place in the results, such as rule and seed."""

    def summary(self, row: Mapping[str, Any]) -> str:
        """Return the row in a few words."""


class ExperimentRun(PlannedRun, Protocol):
    """Interface of a run that is sent to the process that executes it."""

    @property
    def start_key(self) -> str:
        """Name of the pre-trained student in the folder of starts."""

    def execute(self, starts: Path) -> dict[str, Any]:
        """Return the row of the run; the pre-trained student is saved in `starts` if it is not there."""


_Planned = TypeVar("_Planned", bound=PlannedRun)
_Run = TypeVar("_Run", bound=ExperimentRun)


def check_distinct_runs(runs: Sequence[PlannedRun], fields: Mapping[str, str]) -> None:
    """Check that runs with different names have different settings.

    Args:
        runs (`Sequence[PlannedRun]`):
            All runs of the experiment.
        fields (`Mapping`):
            Fields of the configuration that name the settings, by their key in the place of a run, such as
            `{"rule": "rules"}`.

    Raises:
        ValueError: If two runs have equal settings, so that one of them would be the other under a second name.
    """
    found: dict[str, PlannedRun] = {}
    for run in runs:
        other = found.setdefault(run.key, run)
        for key, field in fields.items():
            first, second = other.place[key], run.place[key]
            if first != second:
                raise ValueError(f"`{field}` has {first!r} and {second!r}, which are equal; leave one of them out.")


def run_experiment(
    runs: Sequence[_Planned],
    folder: Path,
    execute: Callable[[Sequence[_Planned]], Iterator[tuple[_Planned, dict[str, Any] | None, str]]],
    *,
    asked: Mapping[str, Any],
    content: Mapping[str, Any],
    name: str = "results",
) -> Path:
    """Execute the runs that are missing, and return the file of the results.

    Args:
        runs (`Sequence[PlannedRun]`):
            All runs of the experiment. Runs with equal keys are executed once.
        folder (`Path`):
            Folder of the runs and of the results.
        execute (`Callable`):
            Function that yields each of the runs that it is given with its row, or with `None` and the reason of its
            failure.
        asked (`Mapping`):
            Predictions and the like, which are recorded before the first run.
        content (`Mapping`):
            Further fields of the results.
        name (`str`, *optional*, defaults to `"results"`):
            Name of the results. Results with different names share runs that are equal.

    Raises:
        ValueError: If something else was recorded for these results.
        BlockingIOError: If another process writes to the folder.
        RuntimeError: If runs failed; others are kept.
    """
    with Ledger(folder / RUNS, option="output_dir") as ledger:
        rows = {row["key"]: row for row, _ in ledger.read()}
        num_finished = sum(run.key in rows for run in runs)
        first = {run.key: run for run in reversed(runs)}
        missing = [run for run in runs if run.key not in rows and run is first[run.key]]
        finished_before = _record(asked, folder / f"{name}.predictions.json", num_finished)
        print(f"{len(runs)} runs, {num_finished} of them finished before. Output of the runs: {folder / LOG}")
        failures, made_by = [], commit()
        began = time.monotonic()
        for number, (run, row, failure) in enumerate(execute(missing), start=1):
            if row is None:
                failures.append(f"{run.name}: {' '.join(failure.split())}")
                print(f"failed: {failures[-1]}", file=sys.stderr)
                continue
            rows[run.key] = {**row, "commit": made_by}
            ledger.append([rows[run.key]])
            seconds = time.monotonic() - began
            print(f"{number}/{len(missing)} ({seconds:.0f} s)  {run.name}: {run.summary(row)}", flush=True)
        results = folder / f"{name}.json"
        replace_text(results, results_text({**content, **asked, "finished_before": finished_before}, runs, rows))
    if failures:
        raise RuntimeError(
            f"{len(failures)} of {len(missing)} runs failed, the first of them {failures[0]}; see {folder / LOG}, and "
            "run the command again."
        )
    return results


def _record(asked: Mapping[str, Any], path: Path, num_finished: int) -> int:
    """Record predictions and the like, and return the number of runs that were finished when they were recorded.

    Raises:
        ValueError: If others were recorded for the same results.
    """
    if not path.exists():
        replace_text(path, json.dumps({**asked, "finished_before": num_finished}, indent=2) + "\n")
    recorded = json.loads(path.read_text())
    for name, value in asked.items():
        if recorded[name] != value:
            raise ValueError(
                f"`{name}` differs from what {path} recorded before the runs; restore it, or give another `name`, "
                "with which the page says how many runs were finished before."
            )
    return int(recorded["finished_before"])


def results_text(content: Mapping[str, Any], runs: Sequence[PlannedRun], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the results as JSON: what was asked, and the planned and the finished runs in the order of the plan.

    Each run has its place in the plan, whatever it was called when it was executed.
    """
    finished = [
        {key: value for key, value in {**rows[run.key], **run.place}.items() if key != "settings"}
        for run in runs
        if run.key in rows
    ]
    fields = {**content, "planned": [run.place for run in runs], "runs": finished}
    # One line per run, so that committed results are small and have readable changes.
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {_lines(value)}" for name, value in fields.items()) + "\n}\n"


def _lines(value: Any) -> str:
    """Return JSON in which each item of a list of objects has its line."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
    return json.dumps(value)


def find_start(folder: Path, save: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """Return the facts about a pre-trained student, which is made and saved if its folder is not there.

    Args:
        folder (`Path`):
            Folder of the student.
        save (`Callable`):
            Makes the student, saves it to a folder, and returns facts about it.
    """
    if not folder.exists():
        scratch = folder.with_name(f"{folder.name}.{os.getpid()}")
        facts = {**save(scratch), "commit": commit()}
        (scratch / "start.json").write_text(json.dumps(facts))
        try:
            scratch.rename(folder)
        except OSError:
            shutil.rmtree(scratch)
            if not folder.exists():  # no other process was faster
                raise
    found: dict[str, Any] = json.loads((folder / "start.json").read_text())
    return found


def execute_all(
    runs: Sequence[_Run], folder: Path, workers: int | None = None
) -> Iterator[tuple[_Run, dict[str, Any] | None, str]]:
    """Yield each run with its row, or with `None` and the reason of its failure.

    A run whose student must be pre-trained first goes before the others that start from it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = workers or cores
    (folder / STARTS).mkdir(parents=True, exist_ok=True)
    for unfinished in (folder / STARTS).glob("*.*"):  # of an experiment that was killed
        shutil.rmtree(unfinished)
    context = multiprocessing.get_context("forkserver")
    # DeepSpeed is imported by accelerate when a trainer begins; without it, its name is passed over.
    modules = {type(run).__module__ for run in runs}
    context.set_forkserver_preload([*sorted(modules), "deepspeed"])
    waiting, active = list(runs), dict[Any, tuple[_Run, Any]]()
    try:
        while waiting or active:
            while len(active) < workers and (run := _next(waiting, active, folder / STARTS)) is not None:
                waiting.remove(run)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(run, folder, sender), daemon=True)
                process.start()
                sender.close()
                active[receiver] = run, process
            for receiver in cast(list[Connection], wait(list(active))):
                run, process = active.pop(receiver)
                try:
                    row, failure = receiver.recv()
                except EOFError:
                    row, failure = None, ""
                receiver.close()
                process.join()
                yield run, row, failure or f"its process ended with status {process.exitcode}"
    finally:
        for _, process in active.values():
            process.kill()
            process.join()


def _next(waiting: Sequence[_Run], active: Mapping[Any, tuple[_Run, Any]], starts: Path) -> _Run | None:
    """Return the first run whose start is there, or is not being made."""
    being_made = {run.start_key for run, _ in active.values() if not (starts / run.start_key).exists()}
    return next((run for run in waiting if run.start_key not in being_made), None)


def _child(run: ExperimentRun, folder: Path, sender: Connection) -> None:
    """Execute a run in a separate process, whose output goes to the log, and which ends when its parent does."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    gc.freeze()  # the trainer collects garbage, and there are many objects of imported modules
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    print(f"== {run.name}", flush=True)
    try:
        sender.send((run.execute(folder / STARTS), ""))
    except Exception as error:
        sender.send((None, f"{type(error).__name__}: {error}"))
        raise


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def rounded(value: Any) -> Any:
    """Return JSON values with numbers of at most six decimals."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def _with_float_numbers(value: Any) -> Any:
    """Return JSON values in which equal numbers, such as 1 and 1.0, are written alike."""
    if isinstance(value, Mapping):
        return {key: _with_float_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_float_numbers(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def digest(settings: Mapping[str, Any]) -> str:
    """Return a hash of settings, JSON values."""
    text = json.dumps(_with_float_numbers(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def peak_memory_mb() -> int:
    """Return the peak memory of this process in MiB."""
    import resource  # which Windows does not have

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def commit() -> str:
    """Return the commit of a checkout, with `+` if files of the package differ from it, or the package's version."""
    package = Path(__file__).parents[1]
    git = ["git", "-C", str(package)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", str(package)], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return f"version {__version__}"
    return head.strip()[:12] + ("+" if changed.strip() else "")
