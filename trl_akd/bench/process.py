"""Commands in separate processes, which end with the process that started them.

`python -m trl_akd.bench.process COMMAND ...` runs a command until it ends or standard input is closed. The operating
system closes it when the process at its other end is gone, for any reason.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

__all__ = ["run_command"]

_SECONDS_TO_END = 60  # for accelerate's launcher to end its processes
_LINES = 3


def run_command(command: Sequence[str], log: Path) -> None:
    """Run a command whose output is appended to a log.

    If this process is interrupted or killed, the command is ended.

    Args:
        command (`Sequence[str]`):
            Program and arguments.
        log (`Path`):
            The log.

    Raises:
        RuntimeError: If the command fails, with the last lines of its output.
    """
    with open(log, "ab") as output:
        start = output.tell()
        watcher = [sys.executable, "-m", __name__, *command]
        process = subprocess.Popen(
            watcher, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait()
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
    if status:
        with open(log, "rb") as output:
            output.seek(start)
            lines = [line.strip() for line in output.read().decode(errors="replace").splitlines()]
        ending = " / ".join([line for line in lines if line][-_LINES:]) or "no output"
        raise RuntimeError(f"it ended with status {status}: {ending}")


def _main(command: Sequence[str]) -> int:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
    return process.wait()


def _end_with_input(process: "subprocess.Popen[bytes]") -> None:
    while os.read(0, 1):  # sys.stdin would hold a lock that the end of the interpreter waits for
        pass
    _signal_group(process, signal.SIGTERM)
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        _signal_group(process, signal.SIGKILL)


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    if process.poll() is None:
        os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
