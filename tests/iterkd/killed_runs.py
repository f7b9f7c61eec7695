"""Runs of IterKD that are killed: a process that has imported everything forks one process per run, and kills it.

`python -m tests.iterkd.killed_runs` reads requests, one JSON object per line, and answers each when its run has ended.
A run counts its events by kind: prompts sent, lines written, steps trained, files of students and other files written,
renamed and removed. Some milliseconds after the event that the request names, the run gets SIGKILL.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.figure  # noqa: F401  imported here once, not by each run
import torch
from transformers import TrainerCallback

from tests.iterkd import cycle_world
from trl_akd.execution import CodeExecutor
from trl_akd.ledger import Ledger

ROOT = Path(__file__).parents[2]


class Progress:
    """Count the events of a run by kind, and report the one after which it is to be killed."""

    def __init__(self, folder: Path, fatal: tuple[str, int] | None, report: int) -> None:
        self.counts: Counter[str] = Counter()
        self._folder = str(folder)
        self._fatal = fatal
        self._report = report
        sys.addaudithook(self._audit)
        self._watch_ledgers()

    def note(self, event: str) -> None:
        self.counts[event] += 1
        if self._fatal == (event, self.counts[event]):
            os.write(self._report, event.encode())

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "shutil.rmtree"):
            path, writes = str(arguments[0]), event != "open" or bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
            if writes and path.startswith(self._folder):
                self.note("train" if "/checkpoint-" in path else "student" if "/student" in path else "file")

    def _watch_ledgers(self) -> None:
        append = Ledger.append

        def noted(ledger: Ledger, rows: Any) -> list[int]:
            self.note("ledger")
            return append(ledger, rows)

        Ledger.append = noted  # type: ignore[method-assign]


class Steps(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._progress.note("train")


def _run(request: dict[str, Any], report: int) -> None:
    folder, output_dir = Path(request["folder"]), Path(request["output_dir"])
    fatal = request["fatal"]
    progress = Progress(output_dir, None if fatal is None else tuple(fatal), report)
    prompts = open(folder / f"{output_dir.name}.prompts", "a")

    def ask(prompt: str) -> None:
        progress.note("ask")
        print(json.dumps([request["attempt"], prompt]), file=prompts, flush=True)

    teacher = cycle_world.RuleTeacher(ask, pause=0.002)
    with CodeExecutor(allow_code_execution=True, workers=1) as executor:
        cycle_world.trainer(folder, output_dir, teacher, executor, callbacks=[Steps(progress)]).train()
    (folder / f"{output_dir.name}.count").write_text(json.dumps(progress.counts))


def _fork(request: dict[str, Any]) -> dict[str, Any]:
    """Run a request in a child process, and kill it after the event; return its status and the event."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            os.dup2(2, 1)  # standard output is for the answers
            _run(request, writer)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb", buffering=0) as pipe:
        event = pipe.read(100).decode()
        if event:
            time.sleep(request["delay"])
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    return {"status": os.waitstatus_to_exitcode(status), "event": event}


def main() -> None:
    torch.set_num_threads(1)
    gc.freeze()  # so that the runs do not collect the imported objects
    for line in sys.stdin:
        print(json.dumps(_fork(json.loads(line))), flush=True)


class RunServer:
    """Client of the process that forks."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process = process
        self._folder = folder

    def run(
        self, output_dir: Path, *, fatal: tuple[str, int] | None = None, delay: float = 0.0, attempt: int = 0
    ) -> dict[str, Any]:
        request = {"folder": str(self._folder), "output_dir": str(output_dir)}
        request |= {"fatal": fatal, "delay": delay, "attempt": attempt}
        assert self._process.stdin and self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def serving_runs(folder: Path) -> Iterator[RunServer]:
    """Start the process that forks; the output of its runs goes to `log` in the folder."""
    cycle_world.prepare(folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    with (
        open(folder / "log", "w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "tests.iterkd.killed_runs"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        yield RunServer(process, folder)


if __name__ == "__main__":
    main()
