"""Processes, descriptors, threads and files of this machine, which programs must not leave behind or affect."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
BWRAP = pytest.param("bwrap", marks=pytest.mark.slow)
LEVELS = ("namespace", BWRAP, "process")
CONTAINED = ("namespace", BWRAP)  # Levels with more guarantees than `process`.

LINUX = sys.platform.startswith("linux")
linux_only = pytest.mark.skipif(not LINUX, reason="looks through Linux's /proc")


class Process(NamedTuple):
    """One process of /proc; `started` distinguishes it from a later process with the same id."""

    pid: int
    parent: int
    state: str
    started: int


def process(pid: int) -> Process | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return Process(pid, int(fields[1]), fields[0], int(fields[19]))


def descendants(ancestor: int | None = None) -> set[Process]:
    """Return all descendants of a process, including zombies."""
    family: set[Process] = set()
    waiting = children(ancestor or os.getpid())
    while waiting:
        row = process(waiting.pop())
        if row and row not in family:
            family.add(row)
            waiting += children(row.pid)
    return family


def children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        texts = [Path(f"/proc/{pid}/task/{thread}/children").read_text() for thread in threads]
    except OSError:
        return []
    return [int(child) for text in texts for child in text.split()]


def generations(ours: set[Process]) -> list[list[Process]]:
    """Return the new descendants of this process by their distance: fork servers, helpers, and what they started."""
    left, parents = descendants() - ours, {os.getpid()}
    found: list[list[Process]] = []
    while parents:
        found.append([row for row in left if row.parent in parents])
        parents = {row.pid for row in found[-1]}
    return found[:-1]


def alive(row: Process) -> bool:
    now = process(row.pid)
    return now is not None and now.started == row.started and now.state != "Z"


def commands(needle: str) -> list[int]:
    """Return the processes whose command line contains a text."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if needle.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.01)
    return True


def resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


class Footprint(NamedTuple):
    """Numbers of descriptors, threads, descendants and zombies of this process."""

    descriptors: int
    threads: int
    descendants: int
    zombies: int

    @classmethod
    def now(cls) -> "Footprint":
        family = descendants()
        zombies = sum(row.state == "Z" for row in family)
        return cls(len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), len(family), zombies)

    def union(self, other: "Footprint") -> "Footprint":
        return Footprint(*map(max, self, other))

    def within(self, other: "Footprint") -> bool:
        return all(mine <= theirs for mine, theirs in zip(self, other, strict=True))


def user_namespaces_work() -> bool:
    probe = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x10000000) != 0)"
    return subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
