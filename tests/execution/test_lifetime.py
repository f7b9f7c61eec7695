"""Life cycle of executors: end of the caller, threads, forks, failed helpers, and cleanup."""

import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import pytest

from tests.execution.conftest import HONEST
from tests.execution.machine_state import (
    ROOT,
    Footprint,
    Process,
    alive,
    commands,
    descendants,
    eventually,
    generations,
    linux_only,
    resident_kib,
)
from trl_akd.execution import CodeExecutor, IsolationError, launching

pytestmark = [linux_only, pytest.mark.lengthy]

TOKEN = f"5151.{os.getpid()}"
NAP = ("import time\ntime.sleep(0.1)\n" + HONEST[0], HONEST[1])
CLINGING = f"""
import os, signal
for number in set(signal.Signals) - {{signal.SIGKILL, signal.SIGSTOP}}:
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 256)
    os.execvp("sleep", ["sleep", "{TOKEN}"])
open("{TOKEN}", "w").close()
os.execvp("sleep", ["sleep", "{TOKEN}"])
"""


def make(level: str, workers: int = 2, timeout: float = 10.0) -> CodeExecutor:
    return CodeExecutor(workers, timeout=timeout, isolation=level, allow_code_execution=True)


@contextmanager
def start(level: str, body: str) -> Iterator[subprocess.Popen[str]]:
    """Start another process with an `executor` and `HONEST`, a program that passes."""
    script = f"""
import gc, os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
from trl_akd.execution import CodeExecutor
HONEST = {HONEST!r}
executor = CodeExecutor(2, timeout=10, isolation={level!r}, allow_code_execution=True)
def statuses(count=4):
    return " ".join(result.status for result in executor.run([HONEST] * count))
{body}
"""
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **pipes) as caller:
        try:
            yield caller
        finally:
            caller.kill()  # else the exit of a failed test would wait for it


def output(level: str, body: str) -> list[str]:
    with start(level, body) as caller:
        out, err = caller.communicate(timeout=60)
    assert caller.returncode == 0, err
    return out.splitlines()


@pytest.mark.parametrize("group", [False, True], ids=["caller", "group"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_death_of_the_caller(level: str, number: signal.Signals, group: bool) -> None:
    with start(level, f"executor.run([({CLINGING!r}, '')] * 4, timeout=300)") as caller:
        assert eventually(lambda: len(commands(TOKEN)) >= 6, 20)
        family = descendants(caller.pid)
        (os.killpg if group else os.kill)(caller.pid, number)
        _, err = caller.communicate(timeout=20)
    assert caller.returncode != 0
    assert number != signal.SIGINT or "KeyboardInterrupt" in err
    assert eventually(lambda: not commands(TOKEN))
    assert eventually(lambda: not any(map(alive, family)))
    if number == signal.SIGINT:
        assert not list(Path(tempfile.gettempdir()).glob(f"*/{TOKEN}"))


@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit(3)",
        "os._exit(0)",
        "1 / 0",
        "os.kill(os.getpid(), 9)",
        "executor.close()",
        "del executor",
        "os.abort()",
    ],
)
def test_abrupt_exit_of_the_caller(level: str, end: str) -> None:
    with start(level, f"print(statuses(), flush=True)\ninput()\n{end}\n") as caller:
        assert caller.stdout and caller.stdout.readline() == "passed passed passed passed\n"
        family = descendants(caller.pid)
        assert family
        caller.communicate("go\n", timeout=20)
    assert eventually(lambda: not any(map(alive, family)))


def test_end_while_another_thread_runs(level: str) -> None:
    body = (
        f"threading.Thread(target=executor.run, args=([({CLINGING!r}, '')] * 2, 300), daemon=True).start()\ninput()\n"
    )
    with start(level, body) as caller:
        assert eventually(lambda: len(commands(TOKEN)) >= 6, 20)
        caller.communicate("go\n", timeout=20)
    assert eventually(lambda: not commands(TOKEN))


HOSTILE = [
    "import os\nos._exit(0)\n",
    "import os\nos.kill(os.getpid(), 9)\n",
    "raise ValueError('x' * 10 ** 6)\n",
    "x = bytearray(2 ** 32)\n",
    "import os\nos.closerange(0, 256)\n",
    "import os\nif os.fork() == 0:\n    os.setsid()\n    import time\n    time.sleep(100)\n",
    "import os\nos.execv('/bin/true', ['true'])\n",
    "import tempfile\ntempfile.mkdtemp()\n",
    "import os\nwhile True: os.write(1, b'x' * 4096)\n",
    "import threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()\n",
    "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n",
    "(" * 1000,
    """
import array, os, socket
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
for fd in range(3, 64):
    try: socket.socket(fileno=os.dup(fd)).sendmsg([b"x"] * 9, rights)
    except OSError: pass
""",
]


def descriptors_of_helpers() -> int:
    count = 0
    for row in descendants():
        with suppress(OSError):
            count += len(os.listdir(f"/proc/{row.pid}/fd"))
    return count


def test_no_resources_accumulate(level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gc.collect()
    before = Footprint.now()
    with make(level) as executor:

        def run() -> None:
            hostile = executor.run([(text, HONEST[1]) for text in HOSTILE], timeout=0.2)
            assert "passed" not in [result.status for result in hostile]
            assert {result.status for result in executor.run([HONEST] * 47)} == {"passed"}

        run()
        during, held = Footprint.now(), descriptors_of_helpers()
        for _ in range(4):
            run()
        assert eventually(lambda: Footprint.now().within(during)), (during, Footprint.now())
        assert eventually(lambda: descriptors_of_helpers() <= held)
        family = descendants()
    assert eventually(lambda: Footprint.now() == before), (before, Footprint.now())
    assert not [row for row in family - descendants() if alive(row)]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "count", [pytest.param(200, id="some"), pytest.param(20_000, id="many", marks=pytest.mark.slow)]
)
def test_memory_of_the_caller_does_not_grow(level: str, count: int) -> None:
    with make(level) as executor:

        def run(programs: int) -> None:
            tiny = ((f"def solve(x):\n    return x + {n}\n", f"assert solve(1) == {n + 1}\n") for n in range(programs))
            seen = bytearray(programs)
            for index, result in executor.stream(tiny):
                assert result.status == "passed"
                seen[index] += 1
            assert seen == b"\x01" * programs

        run(60)
        gc.collect()
        footprint, resident = Footprint.now(), resident_kib()
        run(count)
        gc.collect()
        assert resident_kib() - resident < 4096
        assert eventually(lambda: Footprint.now().within(footprint))


class TestConcurrency:
    """Threads, executors, processes and forks work independently."""

    def test_from_a_thread_that_ended(self, level: str) -> None:
        made: list[CodeExecutor] = []

        def begin() -> None:
            made.append(make(level))
            assert made[0].run([HONEST])[0].passed

        thread = threading.Thread(target=begin)
        thread.start()
        thread.join()
        time.sleep(0.2)
        with made[0] as executor:
            assert [result.status for result in executor.run([NAP] * 6)] == ["passed"] * 6

    def test_one_executor_from_many_threads(self, executor: CodeExecutor) -> None:
        wrong: list[str] = []

        def call(name: int) -> None:
            for start in range(0, 15, 5):
                batch = [(f"raise ValueError('{name}-{n}')\n", "") for n in range(start, start + 5)]
                messages = [result.message for result in executor.run(batch)]
                wrong.extend(set(messages) ^ {f"{name}-{n}" for n in range(start, start + 5)})

        threads = [threading.Thread(target=call, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_two_executors_at_once(self, level: str) -> None:
        with make(level) as first, make(level) as second:
            one, two = first.stream([NAP] * 6), second.stream([NAP] * 6)
            for (_, left), (_, right) in zip(one, two, strict=True):
                assert left.passed and right.passed
            first.close()
            assert second.run([HONEST])[0].passed

    def test_two_callers_at_once(self, level: str) -> None:
        body = "for _ in range(10):\n    print(statuses(), flush=True)\n"
        with start(level, body) as first, start(level, body) as second:
            for caller in (first, second):
                out, err = caller.communicate(timeout=60)
                assert out == "passed passed passed passed\n" * 10, err

    @pytest.mark.parametrize("leave", ["sys.exit(0)", "os._exit(0)", "executor.close(); os._exit(0)"])
    def test_fork_of_the_caller(self, level: str, leave: str) -> None:
        body = f"""
print(statuses(), flush=True)
if os.fork() == 0:
    try:
        assert statuses() == "passed passed passed passed"
    except Exception:
        pass
    gc.collect()
    {leave}
assert os.wait()[1] == 0
print(statuses(), flush=True)
"""
        assert output(level, body) == ["passed passed passed passed"] * 2

    def test_caller_killed_while_its_fork_lives(self, level: str) -> None:
        """The fork has copies of all sockets, as a worker process of a data loader would."""
        body = """
statuses()
if fork := os.fork():
    print(fork, flush=True)
time.sleep(100)
"""
        with start(level, body) as caller:
            assert caller.stdout
            fork = int(caller.stdout.readline())
            family = descendants(caller.pid)
            caller.kill()
            try:
                assert eventually(lambda: [row.pid for row in family if alive(row)] == [fork])
            finally:
                os.kill(fork, signal.SIGKILL)

    def test_fork_while_running(self, level: str) -> None:
        body = """
thread = threading.Thread(target=lambda: print(statuses(40), flush=True))
thread.start()
for _ in range(10):
    if os.fork() == 0:
        os._exit(0)
    os.wait()
thread.join()
"""
        assert output(level, body) == [" ".join(["passed"] * 40)]


def kill_all(rows: Iterable[Process]) -> None:
    for row in rows:
        with suppress(ProcessLookupError):
            os.kill(row.pid, signal.SIGKILL)


@pytest.mark.parametrize("victim", ["fork server", "one helper", "every process"])
def test_killed_helper(level: str, victim: str) -> None:
    others = descendants()
    with make(level) as executor:
        assert executor.run([HONEST])[0].passed

        def kill() -> None:
            servers, helpers, *inner = generations(others)
            # Helpers before programs, which they would report as failed.
            rows = {"fork server": servers, "one helper": helpers[:1]}.get(victim)
            kill_all([*servers, *helpers, *chain(*inner)] if rows is None else rows)

        timer = threading.Timer(0.35, kill)
        timer.start()
        results = executor.run([NAP] * 16)
        timer.join()
        assert [result.status for result in results] == ["passed"] * 16
    assert eventually(lambda: not descendants() - others)


def test_ended_fork_server_is_replaced() -> None:
    others, before = descendants(), Footprint.now()
    with make("process") as executor:
        assert executor.run([HONEST])[0].passed
        family = descendants() - others
        servers, [helper] = generations(others)
        kill_all(servers)
        assert [result.status for result in executor.run([NAP] * 6)] == ["passed"] * 6
        [server], [other] = generations(others)  # the first helper goes on, without its parent
        assert server not in servers and alive(helper)
        family.update([server, other])
    assert not any(map(alive, family))
    assert Footprint.now() == before


def test_helpers_that_always_fail(level: str) -> None:
    others = descendants()
    with make(level) as executor:
        assert executor.run([HONEST])[0].passed
        stop = threading.Event()

        def kill() -> None:
            while not stop.wait(0.05):
                kill_all(chain(*generations(others)))

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            results = executor.run([("import time\ntime.sleep(1)\n", "")] * 3)
        finally:
            stop.set()
            killer.join()
        for result in results:
            assert (result.status, result.error_type, result.passed) == ("infra_error", None, False)
            assert result.message
        assert executor.run([HONEST])[0].passed


@pytest.mark.slow
@pytest.mark.parametrize("generation", [0, 1], ids=["fork server", "one helper"])
def test_stopped_helper(level: str, generation: int) -> None:
    others = descendants()
    with make(level, timeout=0.5) as executor:
        assert executor.run([HONEST])[0].passed
        os.kill(generations(others)[generation][0].pid, signal.SIGSTOP)
        results = executor.run([HONEST] * 4)
        assert {result.status for result in results} <= {"passed", "infra_error"}
    assert eventually(lambda: not descendants() - others)


class TestClose:
    """Executors can be closed at any time and repeatedly."""

    def test_twice(self, level: str) -> None:
        executor = make(level)
        executor.close()
        executor.close()
        with make(level) as executor:
            executor.close()

    def test_by_another_thread(self, level: str) -> None:
        others, before = descendants(), Footprint.now()
        executor = make(level)
        closer = threading.Timer(0.3, executor.close)
        closer.start()
        with pytest.raises(RuntimeError, match="closed"):
            executor.run([NAP] * 1000)
        closer.join()
        assert not descendants() - others
        assert Footprint.now().within(before)

    def test_use_after(self, level: str) -> None:
        executor = make(level)
        executor.run([HONEST])
        executor.close()
        with pytest.raises((RuntimeError, ValueError), match="closed"):
            executor.run([HONEST])
        with pytest.raises((RuntimeError, ValueError), match="closed"):
            list(executor.stream([HONEST]))

    def test_garbage_collected(self, level: str) -> None:
        before = Footprint.now()
        executor = make(level)
        executor.run([HONEST])
        del executor
        gc.collect()
        assert eventually(lambda: Footprint.now().within(before))

    def test_exception_in_the_block(self, level: str) -> None:
        others = descendants()
        with pytest.raises(KeyError), make(level) as executor:
            executor.run([HONEST])
            raise KeyError(uuid.uuid4())
        assert eventually(lambda: not descendants() - others)


@pytest.mark.parametrize("forked", [True, False], ids=["fork server", "one by one"])
def test_start_of_helpers(forked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Helpers are forks of one process, but on systems without descriptors of processes each is started alone."""
    if not forked:
        monkeypatch.delattr(os, "pidfd_open")
    others = descendants()
    with make("process") as executor:
        assert [result.status for result in executor.run([NAP] * 4)] == ["passed"] * 4
        assert list(map(len, generations(others))) == ([1, 2] if forked else [2])
    assert not descendants() - others


def test_descriptors_are_not_inherited(level: str) -> None:
    def inheritable() -> set[int]:
        found = set()
        for fd in map(int, os.listdir("/proc/self/fd")):
            with suppress(OSError):  # that of the folder, which is closed by now
                if os.get_inheritable(fd):
                    found.add(fd)
        return found

    before = inheritable()
    with make(level) as executor:
        executor.run([HONEST] * 4)
        assert inheritable() == before


def test_fork_server_that_cannot_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = "import os\ndef refuse():\n    raise BlockingIOError(11, 'too many processes')\nos.fork = refuse\n"
    monkeypatch.setattr(launching, "_START_CODE", refuse + launching._START_CODE)
    before = Footprint.now()
    with pytest.raises(IsolationError, match=r"too many processes.*ulimit -u"):
        make("process")
    assert Footprint.now() == before


def test_fork_server_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_START_CODE", "raise SystemExit('no interpreter')\n")
    before = Footprint.now()
    with pytest.raises(IsolationError, match="the fork server does not answer: no interpreter"):
        make("process")
    assert Footprint.now() == before


def test_process_that_the_caller_has_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may have its id by then, and must not be killed."""
    process = subprocess.Popen(["true"])
    os.waitpid(process.pid, 0)
    monkeypatch.setattr(os, "pidfd_open", lambda pid: pytest.fail(f"looked for process {pid}"))
    launching.end_process(process)
