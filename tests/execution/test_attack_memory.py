"""Attacks on the memory limit: all processes of a program together hold little more than allowed."""

import os
import signal
import threading
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from tests.execution.conftest import HONEST
from tests.execution.machine_state import (
    commands,
    descendants,
    eventually,
    generations,
    linux_only,
    user_namespaces_work,
)
from tests.execution.memory_bombs import BOMBS, program
from trl_akd.execution import CodeExecutor, ExecutionResult, worker
from trl_akd.execution.zygote import cgroup

pytestmark = linux_only

MEMORY_MB = 128
MOST = 1.5
LATE_MIB = {"control group": 0, "watching": 256}  # allowance between two checks on a busy machine
QUICK = (
    "blocks in children",
    "dropped shared mapping in children",
    "mostly unmapped in children",
    "streams in children",
    "pipes in children",
)


class Meter:
    """Control group around this process and its descendants, which measures their memory from outside."""

    def __init__(self, folder: Path, version: int) -> None:
        names = {1: ("memory.usage_in_bytes", "memory.max_usage_in_bytes"), 2: ("memory.current", "memory.peak")}
        self._now, self._peak = (folder / name for name in names[version])
        self._before = 0

    def reset(self) -> None:
        try:
            self._peak.write_text("0")
        except OSError:
            pytest.skip("this kernel cannot forget a peak")
        self._before = int(self._now.read_text())

    def held(self) -> float:
        """Return the maximum memory in MiB since `reset`."""
        return (int(self._peak.read_text()) - self._before) / 2**20


@pytest.fixture(scope="module")
def meter() -> Iterator[Meter]:
    mounts, memberships = (Path(f"/proc/self/{name}").read_text() for name in ("mountinfo", "cgroup"))
    parent, version = next(cgroup.parents(mounts, memberships), ("", 0))
    group = cgroup.make_group()
    if group is None:
        pytest.skip("no memory group can be made here to measure with")
    limit = cgroup.MemoryLimit(group.name, group.hand_over())
    limit.enter()
    try:
        yield Meter(Path(parent, group.name), version)
    finally:
        limit.leave()
        group.remove()


@pytest.fixture(params=["control group", "watching"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "watching":
        monkeypatch.setattr(worker, "make_group", lambda: None)
    return str(request.param)


def check(meter: Meter, way: str, bombs: tuple[str, ...], level: str, memory_mb: int = MEMORY_MB) -> None:
    with CodeExecutor(1, timeout=5.0, memory_mb=memory_mb, isolation=level, allow_code_execution=True) as executor:
        assert executor.run([HONEST])[0].passed
        for bomb in bombs:
            meter.reset()
            [result] = executor.run([(program(bomb), "")])
            assert meter.held() <= MOST * memory_mb + LATE_MIB[way], (bomb, result)
            assert result.status != "infra_error", (bomb, result)
            assert executor.run([HONEST])[0].passed, bomb


def test_memory_held(meter: Meter, way: str) -> None:
    if not user_namespaces_work():
        pytest.skip("this machine forbids user namespaces")
    check(meter, way, QUICK, "namespace")


@pytest.mark.slow
@pytest.mark.parametrize("memory_mb", [64, 128, 512])
def test_memory_held_by_every_bomb(meter: Meter, way: str, level: str, memory_mb: int) -> None:
    check(meter, way, tuple(BOMBS), level, memory_mb)


@pytest.mark.parametrize("level", ["process"], indirect=True)
def test_no_process_outlives_a_killed_helper(level: str) -> None:
    if (group := cgroup.make_group()) is None:
        pytest.skip("no memory group can be made here")
    group.remove()
    mark = f"1000.{os.getpid()}"
    leave = (
        f"import os, subprocess, time\nif os.fork() == 0:\n    os.setsid()\n    subprocess.run(['sleep', '{mark}'])\n"
    )
    results: list[ExecutionResult] = []
    others = descendants()
    with CodeExecutor(1, timeout=60.0, isolation=level, allow_code_execution=True) as executor:
        running = threading.Thread(target=lambda: results.extend(executor.run([(leave + "time.sleep(1000)\n", "")])))
        running.start()
        while running.is_alive():  # a program is run twice
            if commands(mark):
                for helper in chain(*generations(others)[1:2]):
                    os.kill(helper.pid, signal.SIGKILL)
            running.join(0.05)
    assert [result.status for result in results] == ["infra_error"]
    assert eventually(lambda: not commands(mark))


def test_shared_pages_count_once(way: str, level: str) -> None:
    """Pages that children only read count once, as in a pool of processes."""
    candidate = (
        "import multiprocessing\nblock = bytearray(b'1') * (60 << 20)\ndef f(x): return block[x]\n"
        "def g():\n    with multiprocessing.Pool(4) as pool: return pool.map(f, range(8))\n"
    )
    with CodeExecutor(1, timeout=10.0, memory_mb=MEMORY_MB, isolation=level, allow_code_execution=True) as executor:
        [result] = executor.run([(candidate, "assert g() == [49] * 8")])
    assert result.passed, result


@pytest.mark.parametrize("level", ["process"], indirect=True)
def test_leftover_shared_memory_does_not_count_for_the_next_program(level: str) -> None:
    if (group := cgroup.make_group()) is None:
        pytest.skip("no memory group can be made here")
    group.remove()
    name = f"trl_akd-test-{os.getpid()}-"
    leave = f"for n in range(5):\n    open(f'/dev/shm/{name}{{n}}', 'wb').write(bytes(20 << 20))\n"
    needs_most = ("block = bytearray(b'1') * (100 << 20)\n", "")
    try:
        with CodeExecutor(1, memory_mb=MEMORY_MB, isolation=level, allow_code_execution=True) as executor:
            results = executor.run([needs_most, (leave, ""), needs_most, needs_most])
        assert [result.status for result in results] == ["passed"] * 4, results
    finally:
        for path in Path("/dev/shm").glob(f"{name}*"):
            path.unlink()


def test_oom_scores(level: str) -> None:
    look = "raise ValueError(open('/proc/self/oom_score_adj').read().strip())\n"
    before = Path("/proc/self/oom_score_adj").read_text()
    with CodeExecutor(1, isolation=level, allow_code_execution=True) as executor:
        assert executor.run([(look, "")])[0].message == "1000"
    assert Path("/proc/self/oom_score_adj").read_text() == before


MOUNTS = """\
30 25 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
"""


@pytest.mark.parametrize(
    ("mounts", "memberships", "with_memory", "expected"),
    [
        (MOUNTS, "4:memory:/a/b\n0::/c\n", (), [("/sys/fs/cgroup/memory/a/b", 1)]),
        (MOUNTS, "4:cpu,cpuacct:/a\n3:memory:/\n0::/\n", (), [("/sys/fs/cgroup/memory", 1)]),
        (
            "31 30 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "0::/user.slice/user@1000.service/app.slice/x.scope\n",
            ("user.slice/user@1000.service/app.slice", "user.slice"),
            [
                ("/sys/fs/cgroup/user.slice/user@1000.service/app.slice", 2),
                ("/sys/fs/cgroup/user.slice", 2),
            ],
        ),
        ("31 30 0:27 /box /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/box\n", ("",), [("/sys/fs/cgroup", 2)]),
        ("31 30 0:27 /box /cg rw - cgroup2 cgroup2 rw\n", "0::/elsewhere/deep\n", ("deep",), []),
        ("31 30 0:27 / /with\\040space rw - cgroup2 cgroup2 rw\n", "0::/\n", ("",), [("/with space", 2)]),
        ("31 30 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/a\n", (), []),
        ("", "0::/\n", (), []),
        (MOUNTS, "", (), [("/sys/fs/cgroup/memory", 1)]),
    ],
)
def test_parents_of_memory_groups(
    mounts: str, memberships: str, with_memory: tuple[str, ...], expected: list[tuple[str, int]]
) -> None:
    def read(path: str) -> str:
        where = mounts.split()[4].replace("\\040", " ")
        has = any(
            os.path.normpath(path) == os.path.join(where, name, "cgroup.subtree_control") for name in with_memory
        )
        return "cpu memory pids\n" if has else "cpu pids\n"

    assert list(cgroup.parents(mounts, memberships, read)) == expected


def test_unused_groups_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    first = cgroup.make_group()
    if first is None:
        pytest.skip("no memory group can be made here")
    first.close_files()
    monkeypatch.setattr(cgroup, "_STALE_SECONDS", -1.0)
    second = cgroup.make_group()
    assert second is not None
    assert not os.path.exists(first.path)
    second.remove()
    assert not os.path.exists(second.path)
