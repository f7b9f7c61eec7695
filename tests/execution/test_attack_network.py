"""Attacks on network, sockets and other processes, which levels other than `process` prevent."""

import os
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.execution.conftest import GUARD, HONEST, RunOne
from tests.execution.machine_state import CONTAINED, linux_only
from trl_akd.execution import CodeExecutor

pytestmark = [linux_only, pytest.mark.parametrize("level", CONTAINED, indirect=True)]

ESCAPED = "raise RuntimeError('escaped')\n"
ABSTRACT = f"\0trl-akd-{uuid.uuid4().hex}"


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[dict[str, socket.socket]]:
    """Create sockets of this process that programs must not reach."""
    opened = {
        "tcp": socket.create_server(("127.0.0.1", 0)),
        "any": socket.create_server(("0.0.0.0", 0)),
        "udp": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "abstract": socket.socket(socket.AF_UNIX),
        "path": socket.socket(socket.AF_UNIX),
    }
    opened["udp"].bind(("127.0.0.1", 0))
    opened["abstract"].bind(ABSTRACT)
    opened["path"].bind(str(tmp_path / "socket"))
    for kind, listener in opened.items():
        if kind != "udp":
            listener.listen()
        listener.setblocking(False)
    yield opened
    for listener in opened.values():
        listener.close()


@pytest.mark.parametrize("kind", ["tcp", "any", "udp", "abstract", "path"])
def test_no_listener_is_reachable(run_one: RunOne, listeners: dict[str, socket.socket], kind: str) -> None:
    address = listeners[kind].getsockname()
    family, sort = listeners[kind].family, listeners[kind].type
    result = run_one(
        f"import socket\nplug = socket.socket({int(family)}, {int(sort)})\nplug.settimeout(1)\n"
        f"plug.connect({address!r})\nplug.send(b'secret')\n" + ("" if kind == "udp" else ESCAPED)
    )
    assert result.status == "failed"
    assert "escaped" not in result.message
    with pytest.raises(BlockingIOError):
        listeners[kind].recv(10) if kind == "udp" else listeners[kind].accept()


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('93.184.216.34', 80), timeout=2)",
        "socket.create_connection(('example.org', 80), timeout=2)",
        "socket.getaddrinfo('example.org', 80)",
        "socket.create_connection(('169.254.169.254', 80), timeout=2)",
        "socket.create_connection(('2606:2800:220:1::1', 80), timeout=2)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "urllib.request.urlopen('http://example.org', timeout=2)",
    ],
)
def test_no_route_to_the_network(run_one: RunOne, attempt: str) -> None:
    result = run_one(f"import socket, urllib.request\n{attempt}\n{ESCAPED}", timeout=10.0)
    assert result.status == "failed"
    assert "escaped" not in result.message


def test_no_interface_but_loopback(run_one: RunOne) -> None:
    candidate = """
names = {line.partition(":")[0].strip() for line in open("/proc/net/dev").read().splitlines()[2:]}
assert names <= {"lo"}, names
assert len(open("/proc/net/tcp").read().splitlines()) == 1
"""
    result = run_one(candidate, "")
    assert result.passed, result


def test_programs_cannot_connect_to_each_other(executor: CodeExecutor, check_cleanup: None) -> None:
    listen = (
        f"import socket, time\ns = socket.socket(socket.AF_UNIX)\ns.bind({ABSTRACT!r})\ns.listen()\ntime.sleep(0.6)\n"
    )
    call = f"import socket, time\ntime.sleep(0.2)\nsocket.socket(socket.AF_UNIX).connect({ABSTRACT!r})\n"
    first, second = executor.run([(listen, ""), (call, "")])
    if executor.isolation == "namespace":  # Two workers, two networks.
        assert (first.status, second.status) == ("passed", "failed")


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        yield sleeper
        sleeper.kill()


def test_signals_to_other_processes_fail(run_one: RunOne, bystander: subprocess.Popen[bytes]) -> None:
    pids = {bystander.pid, os.getpid(), os.getppid(), -os.getpgrp()} - {1}  # 1 is the program's own
    candidate = f"""
reached = []
for pid in {pids}:
    for reach in (lambda: os.kill(pid, 9), lambda: os.pidfd_open(abs(pid)), lambda: os.getsid(abs(pid))):
        try:
            reach()
            reached.append(pid)
        except OSError: pass
assert not reached, f"escaped: {{reached}}"
os.kill(-1, 9)
"""
    result = run_one(GUARD + candidate)
    assert result.status == "failed"
    assert "escaped" not in result.message
    assert bystander.poll() is None


def test_processes_of_the_machine_are_hidden(run_one: RunOne, bystander: subprocess.Popen[bytes]) -> None:
    candidate = f"""
import os
pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
assert len(pids) < 10, pids
assert not os.path.exists("/proc/{bystander.pid}") and not os.path.exists("/proc/{os.getpid()}")
"""
    assert run_one(candidate + HONEST[0]).status == "passed"


def test_no_terminal_and_no_input(run_one: RunOne) -> None:
    candidate = f"""
import os, sys
assert sys.stdin.read() == "" and os.read(0, 1) == b""
assert not any(os.isatty(fd) for fd in range(3))
assert os.getsid(0) != {os.getsid(0)}
try: os.open("/dev/tty", os.O_RDWR)
except OSError: pass
else: raise RuntimeError("a terminal")
"""
    result = run_one(candidate, "")
    assert (result.status, result.message) == ("passed", "")


def test_host_name_cannot_be_changed(run_one: RunOne) -> None:
    before = socket.gethostname()
    run_one("import socket\nsocket.sethostname('other')\n")
    run_one("import ctypes\nctypes.CDLL(None).setdomainname(b'other', 5)\n")
    assert socket.gethostname() == before
