"""Runs of IterKD that are killed: a process that has imported everything forks each, and kills it from outside.

`python -m tests.iterkd.doomed` reads requests, one JSON object a line, and answers each when its run has ended. A run
counts its doings: prompts asked, lines kept, steps trained, files written, renamed and removed. Some milliseconds
after the one that the request names, wherever it is by then, it gets SIGKILL.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import traceback
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


class Doings:
    """Count what a run does, and tell of the one that it shall die after."""

    def __init__(self, folder: Path, fatal: int, tell: int) -> None:
        self.count = 0
        self._folder = str(folder)
        self._fatal = fatal
        self._tell = tell
        sys.addaudithook(self._hear)
        self._hear_ledgers()

    def note(self, doing: str) -> None:
        self.count += 1
        if self.count == self._fatal:
            os.write(self._tell, doing.encode())

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "shutil.rmtree"):
            path, writes = str(arguments[0]), event != "open" or bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
            if writes and path.startswith(self._folder):
                self.note("train" if "/checkpoint-" in path else "student" if "/student" in path else "file")

    def _hear_ledgers(self) -> None:
        append = Ledger.append

        def heard(ledger: Ledger, rows: Any) -> None:
            self.note("ledger")
            append(ledger, rows)

        Ledger.append = heard  # type: ignore[method-assign]


class Steps(TrainerCallback):
    def __init__(self, doings: Doings) -> None:
        self._doings = doings

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._doings.note("train")


def _run(request: dict[str, Any], tell: int) -> None:
    folder, output_dir = Path(request["folder"]), Path(request["output_dir"])
    doings = Doings(output_dir, request["fatal"], tell)
    asked = open(folder / f"{output_dir.name}.asked", "a")

    def ask(prompt: str) -> None:
        doings.note("ask")
        print(json.dumps([request["attempt"], prompt]), file=asked, flush=True)

    teacher = cycle_world.RuleTeacher(ask, pause=0.002)
    with CodeExecutor(allow_code_execution=True, workers=1) as executor:
        cycle_world.trainer(folder, output_dir, teacher, executor, callbacks=[Steps(doings)]).train()
    (folder / f"{output_dir.name}.count").write_text(str(doings.count))


def _fork(request: dict[str, Any]) -> dict[str, Any]:
    """Run a request in a child, and kill it when it says so; return its status and what it was doing."""
    hear, tell = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(hear)
            os.dup2(2, 1)  # the answers' stream is not for progress
            _run(request, tell)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(tell)
    with open(hear, "rb", buffering=0) as heard:
        doing = heard.read(100).decode()
        if doing:
            time.sleep(request["delay"])
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    return {"status": os.waitstatus_to_exitcode(status), "doing": doing}


def main() -> None:
    torch.set_num_threads(1)
    gc.freeze()  # or every collection of each run goes through all that was imported
    for line in sys.stdin:
        print(json.dumps(_fork(json.loads(line))), flush=True)


class Forge:
    """Send requests to the process that forks."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process = process
        self._folder = folder

    def run(self, output_dir: Path, *, fatal: int = 0, delay: float = 0.0, attempt: int = 0) -> dict[str, Any]:
        request = {"folder": str(self._folder), "output_dir": str(output_dir)}
        request |= {"fatal": fatal, "delay": delay, "attempt": attempt}
        assert self._process.stdin and self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def forging(folder: Path) -> Iterator[Forge]:
    """Start the process that forks; what the runs say goes to `log` in the folder."""
    cycle_world.prepare(folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    with (
        open(folder / "log", "w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "tests.iterkd.doomed"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        yield Forge(process, folder)


if __name__ == "__main__":
    main()
