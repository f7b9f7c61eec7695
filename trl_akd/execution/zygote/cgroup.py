"""A memory control group (version 2 or 1) for the programs of one worker, where this user may create one.

The caller creates the group. The helper enters it after all its imports, so that only the memory of programs counts;
they inherit the group.
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
_STALE_SECONDS = 300.0  # helpers enter their groups sooner


@dataclass(frozen=True)
class _Version:
    join: str
    limit: str
    swap: tuple[str, str]  # file and content that disable swap, which does not count
    events: str
    used: str


_VERSIONS = {
    2: _Version(_PROCESSES, "memory.max", ("memory.swap.max", "0"), "memory.events", "memory.current"),
    # `tasks` moves the main thread alone, to which the memory belongs; for whole processes the kernel waits 14 ms.
    1: _Version(
        "tasks",
        "memory.limit_in_bytes",
        ("memory.swappiness", "0"),
        "memory.oom_control",
        "memory.usage_in_bytes",
    ),
}


class MemoryGroup:
    """A control group, from the caller's side.

    Args:
        parent (`str`): Folder of the parent group.
        version (`int`): Version of the hierarchy, 2 or 1.

    Raises:
        OSError: If the group cannot be created, or cannot limit memory.
    """

    def __init__(self, parent: str, version: int) -> None:
        self.name = f"{_PREFIX}{os.urandom(16).hex()}"
        self.path = os.path.join(parent, self.name)
        names = _VERSIONS[version]
        self._files: list[int] = []
        os.mkdir(self.path)
        try:
            self._files.append(os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            for path in (f"{parent}/{names.join}", f"{self.path}/{names.join}", f"{self.path}/{names.limit}"):
                self._files.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
            for name in (names.events, names.used, "memory.stat"):
                self._files.append(os.open(f"{self.path}/{name}", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            self.remove()
            raise
        try:
            with open(f"{self.path}/{names.swap[0]}", "w") as file:
                file.write(names.swap[1])
        except OSError:
            pass  # this kernel does not count swap

    def hand_over(self) -> list[int]:
        """Return the descriptors for `MemoryLimit`, as the files are not visible in a sandbox."""
        return self._files

    def close_files(self) -> None:
        """Close those descriptors."""
        while self._files:
            os.close(self._files.pop())

    def remove(self) -> None:
        """Kill the processes in the group, which remain if a helper was killed, and remove the group if it exists."""
        self.close_files()
        give_up = time.monotonic() + _REMOVAL_SECONDS
        while time.monotonic() < give_up:
            try:
                os.rmdir(self.path)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    return
                self._kill_members()
                time.sleep(0.005)  # they may take a moment to leave
            else:
                return

    def _kill_members(self) -> None:
        for pid in map(int, _read(f"{self.path}/{_PROCESSES}").split()):
            if pid not in (0, os.getpid()):  # 0 stands for those of another pid namespace
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


class MemoryLimit:
    """A control group, from the helper's side.

    Args:
        name (`str`): Name of the group.
        files (`list[int]`): Descriptors from `MemoryGroup.hand_over`.
    """

    def __init__(self, name: str, files: list[int]) -> None:
        self._name = name
        self._parent, self._join_parent, self._join, self._limit, self._events, self._used, self._stat = files
        self._allowed = 0
        self._kills = self._count_kills()

    def enter(self) -> None:
        """Move this process into the group."""
        os.write(self._join, b"0")

    def allow(self, memory_bytes: int) -> None:
        """Limit the group for the next program to its memory and a quarter more, for files and the kernel's tables.

        A single process reaches the limit on its address space first, and gets a MemoryError.
        """
        if memory_bytes != self._allowed:
            os.write(self._limit, str(memory_bytes + max(memory_bytes // 4, _MIN_EXTRA_BYTES)).encode())
            self._allowed = memory_bytes
        self._kills = self._count_kills()

    def exceeded(self) -> bool:
        """Whether the kernel has killed a process for lack of memory in the group since the last `allow`."""
        return self._count_kills() > self._kills

    def left_over_bytes(self) -> int:
        """Return the bytes that earlier programs left in shared file systems such as /dev/shm, which still count."""
        used = int(os.pread(self._used, 32, 0))
        return _value(self._stat, b"shmem") if used > MAX_LEFT_OVER_BYTES else 0

    def leave(self) -> None:
        """Move this process to the parent group, and remove the group."""
        try:
            os.write(self._join_parent, b"0")
            os.rmdir(self._name, dir_fd=self._parent)
        except OSError:
            pass  # the caller removes it, or the next `make_group`

    def _count_kills(self) -> int:
        return _value(self._events, b"oom_kill")


def make_group() -> MemoryGroup | None:
    """Create a group below that of this process; return None if that is not possible."""
    for parent, version in parents(_read("/proc/self/mountinfo"), _read("/proc/self/cgroup")):
        _remove_stale(parent)
        try:
            return MemoryGroup(parent, version)
        except OSError:
            continue
    return None


def parents(mounts: str, memberships: str, read: Callable[[str], str] | None = None) -> Iterator[tuple[str, int]]:
    """Yield the folders of groups whose subgroups can limit memory, nearest first, and their hierarchy's version.

    Args:
        mounts (`str`): Content of /proc/self/mountinfo.
        memberships (`str`): Content of /proc/self/cgroup.
        read (`Callable`, *optional*): Function that reads a file of a group, or returns an empty string.
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
            # A group with processes has no subgroups with limits, so the nearest parent may be further up.
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
    """Return the parts of a group's path below a mount's root, or none if it is elsewhere."""
    relative = os.path.relpath(path, root).split("/")
    return [] if relative[0] in ("..", ".") else relative


def _remove_stale(parent: str) -> None:
    """Remove old groups whose caller and helper were killed together; groups with processes cannot be removed."""
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
