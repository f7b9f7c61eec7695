"""Level `namespace`: kernel namespaces, by system calls alone, for root and for ordinary users.

A helper enters once what is costly to build, its *worker's* namespaces, and each program gets what must be its own:

| namespace | worker's: once                                | program's: each time               |
|-----------|-----------------------------------------------|------------------------------------|
| user      | nobody's rights outside; no further ones      |                                    |
| mount     | white-listed root, read-only                  | its /tmp and /proc on top of that  |
| pid       | the helper is pid 1: with it dies everything  | a reaper is pid 1: ditto           |
| net, uts  | no device is up; a host name of its own       |                                    |
| ipc       | empty, and a filter keeps it so               | where no filter is known           |
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from . import confinement, filesystem, linux
from .cgroup import MemoryLimit

_HELPER = 1  # its process id in the worker's pid namespace
_WORKER = (
    linux.CLONE_NEWUSER
    | linux.CLONE_NEWNS
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWIPC
)


class NamespaceLevel:
    """Go into the worker's namespaces for good, then start each program in some of its own.

    Args:
        settings (`dict`): the caller's first message; `sources` are the paths to show besides the system's.

    Raises:
        OSError: naming the step that failed. This process is then good for nothing but saying so.
    """

    def __init__(self, settings: dict[str, Any], memory: MemoryLimit | None) -> None:
        self.memory = memory
        self._runs_as_nobody = linux.can_switch_to_nobody()
        _enter_worker_namespaces(maps_all=self._runs_as_nobody)
        _continue_as_pid_1()
        self._user, self._group = (linux.NOBODY, linux.NOBODY) if self._runs_as_nobody else (os.getuid(), os.getgid())
        self._sources = sorted({*settings["sources"], *map(os.path.realpath, settings["sources"])})
        self._writable_proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
        filesystem.enter_private_root(self._sources, self._user, self._group)
        with open("/proc/sys/user/max_user_namespaces", "w") as file:
            file.write("0")
        filesystem.remount_read_only()
        linux.drop_bounding_capabilities()
        linux.set_no_new_privileges()
        linux.set_dumpable(False)  # a program's reaper shares this memory
        # Message queues and System V's segments outlive processes. Where no filter refuses to make them, each program
        # has a namespace for them; freeing one takes the kernel milliseconds, one after the other for all workers.
        self._program = linux.CLONE_NEWNS | (linux.CLONE_NEWIPC if not confinement.HAS_SYSCALL_FILTER else 0)
        self._pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def fork(self) -> int:
        """Make a pid namespace with a reaper as pid 1, and fork the program's process into it."""
        linux.unshare(linux.CLONE_NEWPID)
        try:
            self._reaper = linux.start_reaper()
            try:
                child = os.fork()
            except OSError:
                os.kill(self._reaper, signal.SIGKILL)
                os.waitpid(self._reaper, 0)
                raise
        finally:
            if os.getpid() == _HELPER:
                linux.setns(self._pid_namespace, linux.CLONE_NEWPID)
        return child

    def set_up(self) -> None:
        """Give the program what is its own; called in its process."""
        linux.set_dumpable(True)  # a copy of the helper's memory, in which there is no secret
        confinement.raise_oom_score(proc=self._writable_proc)
        linux.unshare(self._program)
        filesystem.mount_program_folders(self._sources)

    def process_limit(self) -> int:
        """Return the limit on the processes of the program's user, which is counted in its user namespace."""
        return confinement.PROCESSES

    def drop_privileges(self) -> None:
        """Give up what a helper may do and a program may not."""
        if self._runs_as_nobody:
            linux.switch_user(self._user, self._group)
        linux.limit_capabilities()
        linux.set_dumpable(True)

    def processes(self) -> Iterator[int]:
        """List the program's processes: all that the helper sees but itself and the reaper."""
        return (int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) not in (1, self._reaper))

    def scratch_usage(self) -> tuple[int, int]:
        """Return zeros: the file system of the program's folder has its limits."""
        return 0, 0

    def scratch_memory_bytes(self, child: int) -> int:
        """Measure the file system of the program's folder."""
        return filesystem.used_bytes(f"/proc/{child}/root{filesystem.SCRATCH}")

    def destroy(self, child: int) -> None:
        """Kill a program's reaper, with which the kernel kills the rest, and reap all children of this process.

        The reaper does not end before the last process of its namespace is reaped, whoever its parent is.
        """
        os.kill(self._reaper, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)

    def close(self) -> None:
        """Do nothing: all of it goes with the helper."""


def _enter_worker_namespaces(maps_all: bool) -> None:
    if not maps_all:
        user, group = os.geteuid(), os.getegid()
        linux.unshare(_WORKER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
        return
    # To map more than itself takes rights outside the new namespace, so a process that stays behind does it.
    maps = {}
    for kind in ("uid", "gid"):
        maps[kind] = "\n".join(f"{first} {first} {count}" for first, count in linux.mapped_ids(kind))

    def write_maps(pid: int) -> None:
        for kind, text in maps.items():
            _write(f"/proc/{pid}/{kind}_map", text)

    _while_left_behind(write_maps, lambda: linux.unshare(_WORKER))


def _while_left_behind(task: Callable[[int], None], step: Callable[[], None]) -> None:
    """Do `step` here, then `task`, given this process's id, in a child that was forked before."""
    own = os.getpid()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        errno = 0
        try:
            os.close(writer)
            if os.read(reader, 1):
                task(own)
        except OSError as error:
            errno = error.errno or 1
        finally:
            os._exit(errno)
    os.close(reader)
    try:
        step()
        os.write(writer, b"1")
    finally:
        os.close(writer)
        _, status = os.waitpid(child, 0)
    if errno := os.waitstatus_to_exitcode(status):
        raise OSError(errno, os.strerror(errno), "writing uid_map or gid_map")


def _continue_as_pid_1() -> None:
    """Fork: the child goes on, as pid 1 of the new pid namespace; the parent waits for its end."""
    child = os.fork()
    if child:
        _wait_and_exit(child)
    linux.die_with_parent(signal.SIGKILL)


def _wait_and_exit(child: int) -> NoReturn:
    os.closerange(0, 1024)
    _, status = os.waitpid(child, 0)
    os._exit(0 if status == 0 else 1)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
