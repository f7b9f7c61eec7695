"""Levels `process` and `bwrap`: a session, a folder and limits per program, and a search for its descendants.

At level `bwrap` all of this happens inside the sandbox that bubblewrap creates for the worker.
"""

import contextlib
import errno
import itertools
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

from . import confinement, filesystem, linux
from .cgroup import MemoryLimit

_KILL_SECONDS = 5.0
_COUNT_SECONDS = 0.5
_MEASURE_SECONDS = 0.2
_LISTS_CHILDREN = os.path.exists("/proc/thread-self/children")
_WRITABLE = ("/dev/null", "/dev/zero", "/dev/full", "/dev/shm")
_READABLE = ("/proc", "/dev", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts")


class ProcessLevel:
    """Start programs as ordinary processes, as user `nobody` if the helper is root.

    Args:
        settings (`dict`): First message of the caller; `sources` are the paths that may be read besides the system's,
            and `folder` is the path to create for the programs' folders.
        memory (`MemoryLimit`, *optional*): Control group of this process.

    Raises:
        OSError: If the access of programs to files cannot be restricted, or the folder cannot be created.
    """

    def __init__(self, settings: dict[str, Any], memory: MemoryLimit | None) -> None:
        self.memory = memory
        self._readable = [*filesystem.SYSTEM, *filesystem.ETC_FILES, *_READABLE, *settings["sources"]]
        self._scratch = ""
        self._next_measurement = 0.0
        self._numbers = itertools.count()
        self._runs_as_nobody = linux.can_switch_to_nobody()
        # If Python is in root's home, closed to user `nobody`, programs keep the capability to read all files.
        reads_as_nobody = not self._runs_as_nobody or _nobody_can_enter(os.path.dirname(os.__file__))
        self._kept_capabilities = 0 if reads_as_nobody else linux.CAP_DAC_READ_SEARCH
        if self._kept_capabilities and not confinement.landlock_available():
            raise OSError(
                errno.EACCES,
                "programs would keep root's right to read every file, as only root may read the folder of this Python "
                "and the kernel has no Landlock; run as an ordinary user, or with a Python that everyone may read",
            )
        self._user = linux.NOBODY if self._runs_as_nobody else os.getuid()
        self._threads, self._counted_at = 0, -math.inf
        self.set_up: list[linux.Call] = [("set-up", self._set_up, ())]
        self.drop_privileges: list[linux.Call] = [("loss of privileges", self._drop_privileges, ())]
        self._folder = settings["folder"]
        if self._folder is not None:
            _make_folder(self._folder)
        linux.become_subreaper()
        linux.set_dumpable(False)

    def make_scratch(self) -> str:
        """Create the folder of one program."""
        folder = os.path.join(self._folder, str(next(self._numbers)))
        os.mkdir(folder, 0o700)
        if self._runs_as_nobody:
            os.chown(folder, linux.NOBODY, linux.NOBODY)
        return folder

    def remove_scratch(self) -> None:
        """Remove the folder of the program."""
        remove_tree(self._scratch)

    def scratch_usage(self) -> tuple[int, int]:
        """Return the size and number of the files in the program's folder, or zeros if measured recently."""
        if time.monotonic() < self._next_measurement:
            return 0, 0
        start = time.monotonic()
        used = _tree_use(self._scratch)
        self._next_measurement = time.monotonic() + max(_MEASURE_SECONDS, 10 * (time.monotonic() - start))
        return used

    def scratch_memory_bytes(self, child: int) -> int:
        """Return 0, as the files are on disk."""
        return 0

    def fork(self) -> int:
        """Create the program's folder, and fork its process."""
        self._scratch = self.make_scratch()
        self._next_measurement = 0.0
        return os.fork()

    def _set_up(self) -> None:
        """Enter the program's folder."""
        linux.set_dumpable(True)
        confinement.raise_oom_score()
        linux.die_with_parent(signal.SIGKILL)
        os.chdir(self._scratch)
        os.environ.update(HOME=self._scratch, TMPDIR=self._scratch)

    def process_limit(self) -> int:
        """Return the limit on processes, which includes all other processes of the same user."""
        if time.monotonic() - self._counted_at > _COUNT_SECONDS:
            self._threads, self._counted_at = _threads_of(self._user), time.monotonic()
        return self._threads + confinement.PROCESSES

    def _drop_privileges(self) -> None:
        """Drop root's privileges, and access to all files except those that programs need."""
        linux.drop_bounding_capabilities(self._kept_capabilities)
        if self._runs_as_nobody:
            linux.switch_user(linux.NOBODY, linux.NOBODY, self._kept_capabilities)
        linux.set_no_new_privileges()
        confinement.restrict_file_access(self._readable, [self._scratch, *_WRITABLE])
        linux.limit_capabilities(self._kept_capabilities)
        linux.set_dumpable(True)

    def processes(self) -> Iterator[int]:
        """List the program's processes: all descendants of this process."""
        return (pid for pid, _ in _descendants())

    def destroy(self, child: int) -> None:
        """Kill descendants in all sessions until none is left, then remove the program's folder.

        Process groups are killed at once, so no fork inside one escapes; a chain of forks in new groups may.
        """
        give_up = time.monotonic() + _KILL_SECONDS
        while time.monotonic() < give_up:
            for pid, group in _descendants():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                if group != os.getpgrp():
                    with contextlib.suppress(OSError):
                        os.killpg(group, signal.SIGKILL)
            if not _reap():
                break
        self.remove_scratch()

    def close(self) -> None:
        """Remove the folder of all programs."""
        if self._folder is not None:
            remove_tree(self._folder)


class BubblewrapLevel(ProcessLevel):
    """Start programs as `ProcessLevel` does, inside bubblewrap's sandbox, of which they may read all files.

    Args:
        settings (`dict`): First message of the caller; `writable` are the folders that programs may change.
    """

    def __init__(self, settings: dict[str, Any], memory: MemoryLimit | None) -> None:
        super().__init__(settings, memory)
        self._readable = ["/"]
        self._writable: list[str] = settings["writable"]
        self._kept = settings["sources"]
        for folder in self._writable:
            os.chmod(folder, 0o1777)

    def make_scratch(self) -> str:
        """Return the scratch folder, which all programs use in turn."""
        return filesystem.SCRATCH

    def scratch_memory_bytes(self, child: int) -> int:
        """Return the bytes used in the writable file systems."""
        return sum(map(filesystem.used_bytes, self._writable))

    def remove_scratch(self) -> None:
        """Empty the writable folders."""
        for folder in self._writable:
            empty_folder(folder, kept=self._kept)


def _make_folder(path: str) -> None:
    try:
        os.mkdir(path, 0o711)
    except OSError as error:
        reason = f"{error.strerror}; set TMPDIR to a writable folder with free space"
        raise OSError(error.errno, reason, path) from error


def remove_tree(folder: str) -> None:
    """Remove a folder of any depth, with any file modes."""
    os.chmod(folder, 0o700)
    empty_folder(folder)
    os.rmdir(folder)


def empty_folder(folder: str, kept: Sequence[str] = ()) -> None:
    """Remove the content of a folder, except `kept` paths; inner folders are first moved up to keep paths short."""
    numbers = itertools.count()
    inner: list[str] = []
    for current in itertools.chain([folder], inner):  # grows
        with os.scandir(current) as listed:
            entries = list(listed)
        for entry in entries:
            if any(f"{path}/".startswith(f"{entry.path}/") for path in kept):
                continue
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, 0o700)
                name = next(name for name in map(str, numbers) if not os.path.lexists(os.path.join(folder, name)))
                inner.append(os.path.join(folder, name))
                os.rename(entry.path, inner[-1])
            else:
                os.unlink(entry.path)
    for current in inner:
        os.rmdir(current)


def _tree_use(folder: str) -> tuple[int, int]:
    """Return the bytes on disk and the number of the files below a folder; stop above the limits."""
    total = count = 0
    inner = [folder]
    for current in inner:  # grows
        with contextlib.suppress(OSError), os.scandir(current) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    count += 1
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        inner.append(entry.path)
                if total > confinement.SCRATCH_BYTES or count > confinement.SCRATCH_FILES:
                    return total, count
    return total, count


def _descendants() -> list[tuple[int, int]]:
    """Return the process id and group of all descendants except zombies."""
    if _LISTS_CHILDREN:
        found = _live_children(os.getpid())
        for pid, _ in found:  # grows
            found += _live_children(pid)
        return found
    children: dict[int, list[tuple[int, int]]] = {}
    for pid, parent, group in _all_processes():
        children.setdefault(parent, []).append((pid, group))
    found = children.get(os.getpid(), [])
    for pid, _ in found:  # grows
        found += children.get(pid, [])
    return found


def _live_children(parent: int) -> list[tuple[int, int]]:
    found = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{parent}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{thread}/children", "rb") as file:
                for pid in map(int, file.read().split()):
                    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stat:
                        state, _, group, *_ = stat.read().rpartition(b")")[2].split()
                        if state != b"Z":
                            found.append((pid, int(group)))
    return found


def _all_processes() -> Iterator[tuple[int, int, int]]:
    """Yield the id, parent id and group of all processes except zombies."""
    if not os.path.isdir("/proc/self"):
        import subprocess  # not needed on Linux; see `channel.make_file`

        table = subprocess.run(["ps", "-axo", "pid=,ppid=,pgid="], capture_output=True, text=True, check=True).stdout
        for line in table.splitlines():
            pid, parent, group = map(int, line.split())
            yield pid, parent, group
        return
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                state, parent_text, group_text, *_ = file.read().rpartition(b")")[2].split()
                if state != b"Z":
                    yield int(name), int(parent_text), int(group_text)


def _reap() -> bool:
    """Reap ended children; return whether any are left."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return False
    time.sleep(0.0005)
    return True


def _threads_of(user: int) -> int:
    """Count the threads of a user, which the limit on processes includes."""
    threads = 0
    for task in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if task.isdecimal():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{task}").st_uid == user:
                    threads += len(os.listdir(f"/proc/{task}/task"))
    return threads


def _nobody_can_enter(folder: str) -> bool:
    child = os.fork()
    if child == 0:
        try:
            linux.switch_user(linux.NOBODY, linux.NOBODY)
            os.stat(os.path.join(folder, "."))
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return status == 0
