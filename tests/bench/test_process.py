"""Commands end with the process that started them, and failures have the last lines of their output."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trl_akd.bench.process import run_command

SLEEPS = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
DRIVER = "import sys; from pathlib import Path; from trl_akd.bench.process import run_command; "
DRIVER += "run_command(sys.argv[2:], Path(sys.argv[1]))"


def test_output_is_appended(tmp_path: Path):
    log = tmp_path / "log.txt"
    for word in ("one", "two"):
        run_command([sys.executable, "-c", f"print('{word}')"], log)
    assert log.read_text() == "one\ntwo\n"


def test_failure_has_the_last_lines(tmp_path: Path):
    log = tmp_path / "log.txt"
    log.write_text("of another command\n")
    script = "import sys; print('a\\nb\\nc'); print('d', file=sys.stderr); sys.exit(3)"
    with pytest.raises(RuntimeError, match=r"^it ended with status 3: b / c / d$"):
        run_command([sys.executable, "-c", script], log)
    with pytest.raises(RuntimeError, match=r"^it ended with status 1: no output$"):
        run_command([sys.executable, "-c", "raise SystemExit(1)"], log)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=str)
def test_command_ends_with_its_starter(number: signal.Signals, tmp_path: Path):
    pid_file = tmp_path / "pid"
    command = [sys.executable, "-c", SLEEPS, str(pid_file)]
    starter = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "log.txt"), *command],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not pid_file.exists() or not pid_file.read_text():
        assert starter.poll() is None
        time.sleep(0.05)
    starter.send_signal(number)
    starter.wait()
    pid = int(pid_file.read_text())
    while is_running(pid):  # the test's own time limit ends a wait in vain
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return b"\nState:\tZ" not in Path(f"/proc/{pid}/status").read_bytes() if sys.platform == "linux" else True
