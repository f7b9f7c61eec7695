"""The helper ("zygote") process of one worker: sets up its sandbox once, then forks one process per program.

It is started by exec, or forked by a process that was (see `fork_server`). So it is small, and shares only a socket
with its caller.
"""

import gc
import importlib
import os
import resource
import signal
import site
import socket
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from . import channel, confinement, fork_server, namespaces, processes, program, supervisor, warm_up
from .cgroup import MemoryLimit

_LEVELS: dict[str, Callable[[dict[str, Any], MemoryLimit | None], supervisor.Level]] = {
    "namespace": namespaces.NamespaceLevel,
    "bwrap": processes.BubblewrapLevel,
    "process": processes.ProcessLevel,
}
_OOM_SCORE = 500
_STACK_BYTES = 8 << 20
_SCRIPT = "candidate.py"


def main(socket_fd: int, code_fd: int | None) -> None:
    """Serve the caller at the other end of a socket until it disconnects, as the fork server or as a helper.

    Args:
        socket_fd (`int`): Descriptor of the socket.
        code_fd (`int`, *optional*): Descriptor of the folder of this code, to be closed.
    """
    reset_inherited_state()
    if code_fd is not None:
        os.close(code_fd)
    caller = socket.socket(fileno=socket_fd)
    try:
        caller = _move_beyond_descriptors_of_programs(caller)
        _prepare_interpreter()
    except OSError as error:
        fork_server.send_error(caller, error)
        return
    try:
        message, files = channel.receive(caller)
        if message.get("forks"):
            caller = fork_server.serve(caller, watched=files)
            message, files = channel.receive(caller)
    except (EOFError, ConnectionError):
        return
    _run_helper(caller, message, files)
    os._exit(0)  # ends the interpreter without its finalization, which takes milliseconds


def _run_helper(caller: socket.socket, settings: dict[str, Any], files: list[int]) -> None:
    group = [files.pop() for _ in range(settings["group_files"])][::-1]
    memory = MemoryLimit(settings["group"], group) if group else None
    try:
        _serve_all(settings, memory, caller, files)
    except (EOFError, ConnectionError, supervisor.CallerDisconnected):
        pass
    finally:
        if memory is not None:
            memory.leave()


def _move_beyond_descriptors_of_programs(caller: socket.socket) -> socket.socket:
    """Move a socket to a descriptor with a number that programs do not use, and take all numbers that they use.

    The descriptors of this process can then be copied to those numbers in any order.
    """
    while (fd := os.open(os.devnull, os.O_RDONLY)) <= program.LAST_FD:
        pass
    os.dup2(caller.fileno(), fd, inheritable=False)
    old = caller.detach()
    if old <= program.LAST_FD:
        os.dup2(0, old, inheritable=False)
    else:
        os.close(old)
    return socket.socket(fileno=fd)


def reset_inherited_state() -> None:
    """Reset the signals, file mode mask, resource limits and OOM score inherited from the caller.

    The stack size takes effect when a process starts, so this process executes itself again if it is not the default.
    """
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        try:
            signal.signal(number, signal.SIG_DFL)
        except OSError:
            pass  # reserved by the C library
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    stack, hard = resource.getrlimit(resource.RLIMIT_STACK)
    default = _STACK_BYTES if hard == resource.RLIM_INFINITY else min(_STACK_BYTES, hard)
    if stack != default and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_STACK, (default, hard))
        os.execv(sys.executable, sys.orig_argv)
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
        _, hard = resource.getrlimit(kind)
        try:
            resource.setrlimit(kind, (hard, hard))
        except (OSError, ValueError):
            pass  # macOS
    confinement.raise_oom_score(_OOM_SCORE)


class PackageFinder:
    """Importer of the packages that programs may use, and of no others in the same folders.

    Args:
        folders (`dict[str, str]`): Parent folder of each top-level package, by name.
    """

    def __init__(self, folders: dict[str, str]) -> None:
        self._folders = folders

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a top-level package; the import system finds its submodules."""
        if path is None and name in self._folders:
            return PathFinder.find_spec(name, [self._folders[name]], target)
        return None


def _serve_all(settings: dict[str, Any], memory: MemoryLimit | None, caller: socket.socket, files: list[int]) -> None:
    try:
        level = _LEVELS[settings["level"]](settings, memory)
    except Exception as error:
        fork_server.send_error(caller, error)
        return
    try:
        if not _import_packages(settings["packages"], caller):
            return
        if memory is not None:
            memory.enter()
        channel.send(caller, {"ready": True})
        while True:
            request, texts = channel.receive(caller, watched=files)
            job = supervisor.Job(files=texts, **request)
            if job.preamble:
                warm_up.import_modules_of(job.preamble)
            channel.send(caller, supervisor.run(level, job, [caller.fileno(), *files]))
    finally:
        level.close()


def _prepare_interpreter() -> None:
    """Import modules that programs use, and run trivial programs, without any access to the caller's data."""
    del sys.path[0]  # the folder of this code
    os.environ.pop("LD_BIND_NOW", None)  # has taken effect, and is not for processes that programs start
    sys.argv[:] = [_SCRIPT]
    sys.orig_argv[:] = [sys.executable, _SCRIPT]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for add_builtins in (site.setquit, site.setcopyright, site.sethelper):  # missing without `site`
        add_builtins()
    warm_up.import_common_modules()
    gc.freeze()  # makes the reports of failures fast, which collect garbage
    warm_up.run_trivial_programs()
    warm_up.freeze_objects()
    gc.enable()


def _import_packages(folders: dict[str, str], caller: socket.socket) -> bool:
    """Import the packages that programs may use; return whether all could be imported."""
    sys.meta_path.append(PackageFinder(folders))
    for name in folders:
        try:
            importlib.import_module(name)
        except Exception as error:
            channel.send(caller, {"error": fork_server.describe(error), "package": name})
            return False
    if folders:
        warm_up.freeze_objects()
    return True
