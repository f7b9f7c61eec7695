"""Environment of the caller: it does not affect programs, and errors about shortages name a remedy."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.execution.conftest import HONEST, RunOne
from tests.execution.machine_state import ROOT, descendants, eventually, linux_only
from trl_akd.execution import CodeExecutor, IsolationError

pytestmark = [linux_only, pytest.mark.lengthy]

CALLER = """
import json, sys
from trl_akd.execution import CodeExecutor, IsolationError
try:
    with CodeExecutor(1, isolation=sys.argv[1], timeout=10, allow_code_execution=True) as executor:
        results = executor.run([tuple(program) for program in json.loads(sys.argv[2])])
    print(json.dumps([[result.status, result.message] for result in results]))
except IsolationError as error:
    print(json.dumps(str(error)))
"""
PROGRAMS = [
    HONEST,
    (
        "import threading\nthreads = [threading.Thread(target=print) for _ in range(16)]\n"
        "for thread in threads: thread.start()\nfor thread in threads: thread.join()",
        "",
    ),
    ("import subprocess, sys", "assert subprocess.check_output([sys.executable, '-c', 'print(1)']) == b'1\\n'"),
    (
        "import os, signal\ndef handlers():\n    return {signal.getsignal(s) for s in (17, 15, 1, 10, 14, 20)}",
        "assert handlers() == {signal.SIG_DFL} and not signal.pthread_sigmask(signal.SIG_BLOCK, [])",
    ),
    ("import os\nopen('x', 'w').close()", "assert oct(os.stat('x').st_mode) == '0o100644'"),
    ("import os\nif os.fork() == 0: os._exit(7)", "assert os.waitstatus_to_exitcode(os.wait()[1]) == 7"),
    ("block = bytearray(100 << 20)\nopen('x', 'wb').write(bytes(1 << 20))", ""),
    ("import resource", "assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)"),
    ("1 / 0", ""),
]
ODD = {
    "signals ignored": "trap '' CHLD TERM HUP USR1 ALRM TSTP INT QUIT",
    "a large stack": "ulimit -s 524288",
    "no limit on the stack": "ulimit -S -s unlimited",
    "soft limits": "ulimit -S -n 64; ulimit -S -f 1; ulimit -S -v 400000; ulimit -S -d 50000; umask 777",
    "few open files": "ulimit -n 40",
    "no standard streams": "exec 0<&-",
    "no temporary folder": "export TMPDIR=/nonexistent HOME=/nonexistent",
}


def called(before: str, level: str) -> list[list[str]] | str:
    """Return the output of a caller in an unusual environment."""
    command = f'{before}; exec "$@"'
    words = ["bash", "-c", command, "bash", sys.executable, "-c", CALLER, level, json.dumps(PROGRAMS)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: list[list[str]] | str = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("odd", ODD)
def test_caller_environment_does_not_affect_verdicts(level: str, odd: str) -> None:
    results = called(ODD[odd], level)
    assert [status for status, _ in results] == ["passed"] * (len(PROGRAMS) - 1) + ["failed"], results


@pytest.mark.parametrize("count", [6, 10, 16, 20])
def test_low_limit_on_open_files(level: str, count: int) -> None:
    script = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({count}, {count}))\n{CALLER}"
    words = [sys.executable, "-c", script, level, json.dumps(PROGRAMS[:1])]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if done.returncode:
        assert "Too many open files" in done.stderr  # Python itself fails to start
        return
    found = json.loads(done.stdout)
    if isinstance(found, str):
        assert "ulimit -n" in found and "isolation=" not in found.partition("(")[0], found
    else:
        [(status, message)] = found
        assert status == "passed" or "Too many open files" in message


def test_start_without_enough_open_files_leaves_nothing(level: str) -> None:
    script = """
import os, resource, sys, tempfile
from tests.execution.machine_state import Footprint
from trl_akd.execution import CodeExecutor, IsolationError
tempfile.gettempdir()  # whose search would fail for another reason
before, (soft, hard) = Footprint.now(), resource.getrlimit(resource.RLIMIT_NOFILE)
for more in range(60):
    resource.setrlimit(resource.RLIMIT_NOFILE, (before.descriptors - 1 + more, hard))
    try:
        CodeExecutor(1, isolation=sys.argv[1], allow_code_execution=True).close()
        break
    except IsolationError as error:
        assert "ulimit -n" in str(error), error
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert Footprint.now() == before, (more, before, Footprint.now())
print(more)
"""
    done = subprocess.run([sys.executable, "-c", script, level], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 5 < int(done.stdout) < 59


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_full_temporary_folder(level: str, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(error, os.strerror(error), "/tmp")

    for name in ("TemporaryFile", "NamedTemporaryFile", "mkdtemp", "mkstemp", "gettempdir"):
        monkeypatch.setattr(tempfile, name, refuse)
    if level == "process":
        with pytest.raises(IsolationError, match="TMPDIR"):
            CodeExecutor(1, isolation=level, allow_code_execution=True)
        return
    with CodeExecutor(1, isolation=level, allow_code_execution=True) as executor:
        assert executor.run([HONEST])[0].passed


def test_folder_that_cannot_be_created(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    with pytest.raises(IsolationError, match="TMPDIR") as caught:
        CodeExecutor(1, isolation="process", allow_code_execution=True)
    assert "weaker" not in str(caught.value)


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_caller_killed_while_a_helper_starts(delay: float, tmp_path: Path) -> None:
    script = "import sys\nfrom trl_akd.execution import CodeExecutor\nprint(flush=True)\n" + (
        "CodeExecutor(1, isolation='process', allow_code_execution=True)\ninput()\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment, **pipes) as caller:  # type: ignore[call-overload]
        assert caller.stdout
        caller.stdout.readline()
        time.sleep(delay)
        family = descendants(caller.pid)
        os.kill(caller.pid, signal.SIGKILL)
    assert eventually(lambda: not [row for row in family if os.path.exists(f"/proc/{row.pid}")])
    assert eventually(lambda: not [*filter(_is_left_by_helper, tmp_path.iterdir())]), list(tmp_path.iterdir())


def _is_left_by_helper(path: Path) -> bool:
    """Return whether an entry is not a file with which `tempfile` probes a folder; a killed caller may leave one."""
    return not (path.is_file() and not path.is_symlink() and re.fullmatch("[a-z0-9_]{8}", path.name))


@pytest.mark.parametrize("level", ["process"], indirect=True)
@pytest.mark.parametrize(
    "hoard",
    [
        "import os, time\nos.mkdir('deep')\nfor number in range(100):\n"
        "    with open(f'deep/{number}', 'wb') as file: file.write(bytes(8 << 20))\n    time.sleep(0.02)\n",
        "import os, time\nfor number in range(1000000):\n    os.symlink('x', f'{number}')\n",
    ],
    ids=["bytes", "number"],
)
def test_quota_of_files_at_level_process(run_one: RunOne, hoard: str) -> None:
    result = run_one(hoard + "time.sleep(60)\n", timeout=20.0)
    assert (result.status, result.error_type) == ("failed", "OSError")
    assert result.message.endswith("files that are allowed")
