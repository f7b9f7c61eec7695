"""Attacks on privileges, which levels other than `process` prevent."""

import os

import pytest

from tests.execution.conftest import GUARD, RunOne
from tests.execution.machine_state import CONTAINED, linux_only

pytestmark = [linux_only, pytest.mark.parametrize("level", CONTAINED, indirect=True)]


READ_SEARCH = 1 << 2


def test_no_capability(run_one: RunOne, level: str) -> None:
    kept = READ_SEARCH if level == "bwrap" and os.geteuid() == 0 else 0  # for a Python that only root can read
    candidate = (
        f"""
import subprocess
kept = {kept}
"""
        + """
for text in (open("/proc/self/status").read(), subprocess.check_output(["cat", "/proc/self/status"], text=True)):
    status = dict(line.split(":", 1) for line in text.splitlines())
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert not int(status[name], 16) & ~kept, status
    assert status["NoNewPrivs"].strip() == "1"
"""
    )
    result = run_one(candidate, "")
    assert result.passed, result


@pytest.mark.parametrize(
    "attempt",
    [
        "os.setuid(0)",
        "os.setresuid(0, 0, 0)",
        "os.setgid(0)",
        "os.setgroups([0])",
        "os.chroot('.')",
        "os.chown('.', 0, 0)",
        "os.mknod('disk', 0o60666, os.makedev(254, 0))",
        "os.nice(-5)",
        "os.setpriority(os.PRIO_PROCESS, 0, -20)",
        "socket.sethostname('mine')",
        "time.clock_settime(time.CLOCK_REALTIME, time.time())",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (2 ** 20, 2 ** 20))",
        "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "resource.setrlimit(resource.RLIMIT_NPROC, (-1, -1))",
        "call('unshare', 0x10000000)",
        "call('unshare', 0x00020000)",
        "call('unshare', 0x40000000)",
        "call('setns', os.open('/proc/1/ns/mnt', os.O_RDONLY), 0)",
        "call('setns', os.open('/proc/1/ns/net', os.O_RDONLY), 0)",
        "call('mount', b'none', b'/tmp', b'tmpfs', 0, None)",
        "call('mount', None, b'/', None, 32, None)",
        "call('umount2', b'/proc', 2)",
        "call('umount2', b'/tmp', 2)",
        "call('swapon', b'/tmp', 0)",
        "call('ptrace', 16, 1, 0, 0)",
        "subprocess.run(['unshare', '-Ur', 'true'], check=True)",
        "subprocess.run(['su', '-c', 'true'], check=True, stdin=0)",
        "subprocess.run(['mount', '-t', 'tmpfs', 'none', '/tmp'], check=True)",
    ],
)
def test_privileged_call(run_one: RunOne, attempt: str) -> None:
    setup = """
import ctypes, os, resource, socket, subprocess, time
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
"""
    result = run_one(f"{GUARD}{setup}{attempt}\nraise RuntimeError('escaped')\n", "")
    assert result.status == "failed"
    assert "escaped" not in result.message, result


def test_user_is_not_root(run_one: RunOne) -> None:
    assert run_one("import os\nassert 0 not in (*os.getresuid(), *os.getresgid(), *os.getgroups())\n", "").passed


def test_temporary_folders_exist(run_one: RunOne) -> None:
    candidate = """
import os, tempfile
assert os.access(os.getcwd(), os.W_OK) and os.access("/dev/shm", os.W_OK)
with tempfile.TemporaryFile() as file:
    file.write(b"x")
"""
    assert run_one(candidate, "").passed
