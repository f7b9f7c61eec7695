"""Level `namespace`: Linux namespaces, created by system calls, as root or as an ordinary user.

A helper enters the namespaces that are slow to create once per worker; the others are created per program:

| namespace | per worker                                      | per program                           |
|-----------|-------------------------------------------------|---------------------------------------|
| user      | no privileges outside; no nested namespaces     |                                       |
| mount     | read-only root with allowed paths only          | private /tmp and /proc                |
| pid       | the helper is pid 1, so all end with it         | a reaper is pid 1, so all end with it |
| net, uts  | no network device is up; private host name      |                                       |
| ipc       | empty, and kept empty by the system-call filter | on architectures without a filter     |
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from . import confinement, filesystem, linux
from .cgroup import MemoryLimit

_HELPER = 1  # process id of the helper in the worker's pid namespace
_WORKER = (
    linux.CLONE_NEWUSER
    | linux.CLONE_NEWNS
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWIPC
)


class NamespaceLevel:
    """Enter the worker's namespaces, and start each program in its own ones.

    Args:
        settings (`dict`): First message of the caller; `sources` are the paths to show besides the system's.

    Raises:
        OSError: If a step fails, with its name. This process can then only report the error.
    """

    def __init__(self, settings: dict[str, Any], memory: MemoryLimit | None) -> None:
        self.memory = memory
        self._runs_as_nobody = linux.can_switch_to_nobody()
        _enter_worker_namespaces(maps_all=self._runs_as_nobody)
        _continue_as_pid_1()
        self._user, self._group = (linux.NOBODY, linux.NOBODY) if self._runs_as_nobody else (os.getuid(), os.getgid())
        sources = sorted({*settings["sources"], *map(os.path.realpath, settings["sources"])})
        writable_proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
        filesystem.enter_private_root(sources, self._user, self._group)
        with open("/proc/sys/user/max_user_namespaces", "w") as file:
            file.write("0")
        filesystem.remount_read_only()
        linux.drop_bounding_capabilities()
        linux.set_no_new_privileges()
        linux.set_dumpable(False)  # the reapers of programs share this memory
        # Message queues and System V segments outlive processes, so where no filter forbids them, each program has an
        # IPC namespace. Freeing one takes the kernel milliseconds, and all workers share a lock for that.
        namespaces = linux.CLONE_NEWNS | (linux.CLONE_NEWIPC if not confinement.HAS_SYSCALL_FILTER else 0)
        self._pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self.set_up: list[linux.Call] = []
        linux.set_dumpable(True, later=self.set_up)  # the helper's memory contains no secrets
        self.set_up.append(("oom_score_adj", confinement.raise_oom_score, (confinement.MAX_OOM_SCORE, writable_proc)))
        linux.unshare(namespaces, later=self.set_up)
        self.set_up += filesystem.prepare_program_folders(sources)
        self.drop_privileges: list[linux.Call] = []
        if self._runs_as_nobody:
            linux.switch_user(self._user, self._group, later=self.drop_privileges)
        linux.limit_capabilities(later=self.drop_privileges)
        linux.set_dumpable(True, later=self.drop_privileges)

    def fork(self) -> int:
        """Create a pid namespace with a reaper as pid 1, and fork the program's process into it."""
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

    def process_limit(self) -> int:
        """Return the limit on processes, which are counted per user namespace."""
        return confinement.PROCESSES

    def processes(self) -> Iterator[int]:
        """List the program's processes: all visible ones except the helper and the reaper."""
        return (int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) not in (1, self._reaper))

    def scratch_usage(self) -> tuple[int, int]:
        """Return zeros, as the file system of the program's folder has limits."""
        return 0, 0

    def scratch_memory_bytes(self, child: int) -> int:
        """Return the bytes used in the file system of the program's folder."""
        return filesystem.used_bytes(f"/proc/{child}/root{filesystem.SCRATCH}")

    def destroy(self, child: int) -> None:
        """Kill the program's reaper, upon which the kernel kills its processes, and reap all children.

        The reaper ends only after the last process of its namespace has been reaped.
        """
        os.kill(self._reaper, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)

    def close(self) -> None:
        """Do nothing, as all namespaces end with the helper."""


def _enter_worker_namespaces(maps_all: bool) -> None:
    if not maps_all:
        user, group = os.geteuid(), os.getegid()
        linux.unshare(_WORKER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
        return
    # Mapping all ids needs privileges outside the new namespace, so a process outside writes the maps.
    maps = {}
    for kind in ("uid", "gid"):
        maps[kind] = "\n".join(f"{first} {first} {count}" for first, count in linux.mapped_ids(kind))

    def write_maps(pid: int) -> None:
        for kind, text in maps.items():
            _write(f"/proc/{pid}/{kind}_map", text)

    _enter_then_call_from_outside(lambda: linux.unshare(_WORKER), write_maps)


def _enter_then_call_from_outside(enter: Callable[[], None], task: Callable[[int], None]) -> None:
    """Call `enter` in this process, then `task` with this process's id in a child forked before `enter`."""
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
        enter()
        os.write(writer, b"1")
    finally:
        os.close(writer)
        _, status = os.waitpid(child, 0)
    if errno := os.waitstatus_to_exitcode(status):
        raise OSError(errno, os.strerror(errno), "writing uid_map or gid_map")


def _continue_as_pid_1() -> None:
    """Fork, and continue in the child as pid 1 of the new pid namespace; the parent waits for its end."""
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
