"""A memory control group for a worker's programs, of version 2 or 1, wherever this user may make one.

The caller makes the group. The helper goes into it after it has loaded all it needs, so that what is counted is what
programs use; its children are born there.
"""

import contextlib
import errno
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_PREFIX = "trl_akd-"
_OCTAL = re.compile(r"\\(\d{3})")
_PROCESSES = "cgroup.procs"
_MIN_EXTRA_BYTES = 16 << 20
MAX_LEFT_OVER_BYTES = 8 << 20
_REMOVAL_SECONDS = 2.0
_STALE_SECONDS = 300.0  # a helper goes into its group sooner


@dataclass(frozen=True)
class _Version:
    limit: str
    swap: tuple[str, str]  # file and text that keep memory from moving to swap, where it would not count
    events: str
    used: str


_VERSIONS = {
    2: _Version("memory.max", ("memory.swap.max", "0"), "memory.events", "memory.current"),
    1: _Version("memory.limit_in_bytes", ("memory.swappiness", "0"), "memory.oom_control", "memory.usage_in_bytes"),
}


class MemoryGroup:
    """A group, as its maker sees it.

    Args:
        parent (`str`): folder of the group above.
        version (`int`): of the hierarchy: 2 or 1.

    Raises:
        OSError: If the group cannot be made, or would limit nothing.
    """

    def __init__(self, parent: str, version: int) -> None:
        self.name = f"{_PREFIX}{os.urandom(16).hex()}"
        self._path = os.path.join(parent, self.name)
        names = _VERSIONS[version]
        self._files: list[int] = []
        os.mkdir(self._path)
        try:
            self._files.append(os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            for path in (f"{parent}/{_PROCESSES}", f"{self._path}/{_PROCESSES}", f"{self._path}/{names.limit}"):
                self._files.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
            for name in (names.events, names.used, "memory.stat"):
                self._files.append(os.open(f"{self._path}/{name}", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            self.remove()
            raise
        try:
            with open(f"{self._path}/{names.swap[0]}", "w") as file:
                file.write(names.swap[1])
        except OSError:
            pass  # this kernel counts no swap

    def hand_over(self) -> list[int]:
        """Return the descriptors that `MemoryLimit` works with, opened here as a sandbox has no such files."""
        return self._files

    def close_files(self) -> None:
        """Close those descriptors."""
        while self._files:
            os.close(self._files.pop())

    def exists(self) -> bool:
        """Tell whether the group is still there."""
        return os.path.isdir(self._path)

    def remove(self) -> None:
        """End what runs in the group, as programs do whose helper was killed, and remove it, unless that is done."""
        self.close_files()
        give_up = time.monotonic() + _REMOVAL_SECONDS
        while time.monotonic() < give_up:
            try:
                os.rmdir(self._path)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    return
                self._kill_members()
                time.sleep(0.005)  # they may take a moment to leave
            else:
                return

    def _kill_members(self) -> None:
        for pid in map(int, _read(f"{self._path}/{_PROCESSES}").split()):
            if pid not in (0, os.getpid()):  # 0 stands for those of another pid namespace
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


class MemoryLimit:
    """The group of this process's programs, as the helper sees it.

    Args:
        name (`str`): the group's.
        files (`list[int]`): from `MemoryGroup.hand_over`.
    """

    def __init__(self, name: str, files: list[int]) -> None:
        self._name = name
        self._parent, self._parent_procs, self._own_procs, self._limit, self._events, self._used, self._stat = files
        self._allowed = 0
        self._kills = self._count_kills()

    def enter(self) -> None:
        """Move this process into the group."""
        os.write(self._own_procs, b"0")

    def allow(self, memory_bytes: int) -> None:
        """Limit the group for the next program: to its memory and a quarter more, for files and the kernel's tables.

        A single process meets the limit on its address space first, and gets a MemoryError.
        """
        if memory_bytes != self._allowed:
            os.write(self._limit, str(memory_bytes + max(memory_bytes // 4, _MIN_EXTRA_BYTES)).encode())
            self._allowed = memory_bytes
        self._kills = self._count_kills()

    def exceeded(self) -> bool:
        """Tell whether the kernel has ended a process since the last `allow`, for want of memory in the group."""
        return self._count_kills() > self._kills

    def left_over_bytes(self) -> int:
        """Return what earlier programs have left in shared file systems, as /dev/shm, and next ones would pay for."""
        used = int(os.pread(self._used, 32, 0))
        return _value(self._stat, b"shmem") if used > MAX_LEFT_OVER_BYTES else 0

    def leave(self) -> None:
        """Go back to the group above, and remove this one."""
        try:
            os.write(self._parent_procs, b"0")
            os.rmdir(self._name, dir_fd=self._parent)
        except OSError:
            pass  # the caller will, or whoever makes the next group

    def _count_kills(self) -> int:
        return _value(self._events, b"oom_kill")


def make_group() -> MemoryGroup | None:
    """Make a group below this process's own, or None where that is not to be had."""
    for parent, version in parents(_read("/proc/self/mountinfo"), _read("/proc/self/cgroup")):
        _remove_stale(parent)
        try:
            return MemoryGroup(parent, version)
        except OSError:
            continue
    return None


def parents(mounts: str, memberships: str, read: Callable[[str], str] | None = None) -> Iterator[tuple[str, int]]:
    """Yield folders whose subgroups can limit memory, nearest first, and the version of their hierarchy.

    Args:
        mounts (`str`): as /proc/self/mountinfo.
        memberships (`str`): as /proc/self/cgroup.
        read (`Callable`, *optional*): reads a file of a group.
    """
    read = _read if read is None else read
    own = {}
    for line in memberships.splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path
    for line in mounts.splitlines():
        fields, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, where = (_OCTAL.sub(lambda code: chr(int(code[1], 8)), field) for field in fields.split()[3:5])
        if kind == "cgroup2" and "" in own:
            below = _below(root, own[""])
            # A group with processes has no subgroups with limits, so the nearest above that has some is wanted.
            for depth in range(len(below), -1, -1):
                folder = os.path.join(where, *below[:depth])
                if "memory" in read(os.path.join(folder, "cgroup.subtree_control")).split():
                    yield folder, 2
        elif kind == "cgroup" and "memory" in options.split(","):
            member = next((path for names, path in own.items() if "memory" in names.split(",")), root)
            yield os.path.join(where, *_below(root, member)), 1


def _value(file: int, wanted: bytes) -> int:
    for line in os.pread(file, 1 << 14, 0).splitlines():
        name, _, value = line.partition(b" ")
        if name == wanted:
            return int(value)
    return 0


def _below(root: str, path: str) -> list[str]:
    """Return the parts of a group's path below a mount's root; none if it lies elsewhere."""
    relative = os.path.relpath(path, root).split("/")
    return [] if relative[0] in ("..", ".") else relative


def _remove_stale(parent: str) -> None:
    """Remove groups that were left when caller and helper were killed together; those with processes resist."""
    try:
        paths = [os.path.join(parent, name) for name in os.listdir(parent) if name.startswith(_PREFIX)]
    except OSError:
        return
    for path in paths:
        try:
            if time.time() - os.stat(path).st_mtime > _STALE_SECONDS:
                os.rmdir(path)
        except OSError:
            pass


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
