"""On unsupported systems, executors raise one clear error, and the rest of the package works."""

import subprocess
import sys

from tests.execution.machine_state import ROOT

WITHOUT_POSIX = """
import ctypes, os, signal, socket, subprocess, sys, tempfile  # before their dependencies are removed
sys.modules.update(resource=None, fcntl=None, pwd=None, grp=None)
for name in ("fork", "uname", "sysconf", "pidfd_open", "memfd_create", "setsid", "sched_getaffinity", "O_DIRECTORY"):
    if hasattr(os, name):
        delattr(os, name)
del signal.SIGCHLD, signal.SIGKILL, socket.AF_UNIX, os.environ["HOME"]
ctypes.CDLL = None
sys.platform = "win32"
from trl_akd.execution import CodeExecutor, ExecutionResult, IsolationError, check_tests
import trl_akd.evaluation, trl_akd.metrics
check_tests("assert True", "tests")
for level in ("auto", "namespace", "bwrap", "process"):
    try:
        CodeExecutor(isolation=level, allow_code_execution=True)
    except IsolationError as error:
        print(error)
"""


def test_error_on_a_system_without_fork() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_POSIX], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines == ["Programs run on Linux and macOS, and this is win32; on Windows, use WSL."] * 4
