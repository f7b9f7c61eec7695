"""The helper ("zygote") of one worker: goes into its surroundings once, then forks a process for each program.

Started by exec, so that it is small, and knows nothing of its caller but one socket.
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

from . import channel, confinement, namespaces, processes, supervisor
from .cgroup import MemoryLimit

_PRELOADED = (
    "__future__ abc array base64 bisect calendar cmath collections collections.abc contextlib copy dataclasses "
    "datetime decimal enum fractions functools heapq io itertools json math numbers operator random re "
    "statistics string struct textwrap threading time traceback types typing"
).split()

_LEVELS: dict[str, Callable[[dict[str, Any], MemoryLimit | None], supervisor.Level]] = {
    "namespace": namespaces.NamespaceLevel,
    "bwrap": processes.BubblewrapLevel,
    "process": processes.ProcessLevel,
}
_OOM_SCORE = 500
_STACK_BYTES = 8 << 20
_SCRIPT = "candidate.py"


def main(socket_fd: int, code_fd: int | None) -> None:
    """Serve the caller at the other end of a socket until it hangs up.

    Args:
        socket_fd (`int`): the socket.
        code_fd (`int`, *optional*): the folder of this code, no longer needed.
    """
    reset_inherited_state()
    if code_fd is not None:
        os.close(code_fd)
    caller = socket.socket(fileno=socket_fd)
    settings, files = channel.receive(caller)
    group = [files.pop() for _ in range(settings["group_files"])][::-1]
    memory = MemoryLimit(settings["group"], group) if group else None
    try:
        _serve_all(settings, memory, caller, files)
    except (EOFError, ConnectionError, supervisor.CallerDisconnected):
        pass
    finally:
        if memory is not None:
            memory.leave()


def reset_inherited_state() -> None:
    """Undo what the caller's own surroundings would do to programs: signals, limits, modes of files, memory's end.

    The stack's size, by which threads get theirs, counts when a process starts: where it is not the usual one, this
    process starts once more.
    """
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        try:
            signal.signal(number, signal.SIG_DFL)
        except OSError:
            pass  # kept by the C library for itself
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    stack, most = resource.getrlimit(resource.RLIMIT_STACK)
    usual = _STACK_BYTES if most == resource.RLIM_INFINITY else min(_STACK_BYTES, most)
    if stack != usual and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_STACK, (usual, most))
        os.execv(sys.executable, sys.orig_argv)
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
        _, most = resource.getrlimit(kind)
        try:
            resource.setrlimit(kind, (most, most))
        except (OSError, ValueError):
            pass  # macOS
    confinement.raise_oom_score(_OOM_SCORE)


class PackageFinder:
    """Find the packages that programs may use beside the standard library, and no others in their folders.

    Args:
        folders (`dict[str, str]`): where each top-level package lies, by name.
    """

    def __init__(self, folders: dict[str, str]) -> None:
        self._folders = folders

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Look for a top-level package in its own folder; the import system finds what is inside."""
        if path is None and name in self._folders:
            return PathFinder.find_spec(name, [self._folders[name]], target)
        return None


def _serve_all(settings: dict[str, Any], memory: MemoryLimit | None, caller: socket.socket, files: list[int]) -> None:
    try:
        level = _LEVELS[settings["level"]](settings, memory)
    except Exception as error:
        channel.send(caller, {"error": _describe(error), "errno": getattr(error, "errno", None)})
        return
    try:
        if not _load(settings, caller):
            return
        if memory is not None:
            memory.enter()
        channel.send(caller, {"ready": True})
        while True:
            request, texts = channel.receive(caller)
            job = supervisor.Job(files=texts, **request)
            channel.send(caller, supervisor.run(level, job, [caller.fileno(), *files]))
    finally:
        level.close()


def _load(settings: dict[str, Any], caller: socket.socket) -> bool:
    """Import what programs are likely to need; tell whether all packages could be imported."""
    sys.meta_path.append(PackageFinder(settings["packages"]))
    del sys.path[0]  # the folder of this code
    sys.argv[:] = [_SCRIPT]
    sys.orig_argv[:] = [sys.executable, _SCRIPT]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for add_builtins in (site.setquit, site.setcopyright, site.sethelper):  # which a start without `site` lacks
        add_builtins()
    for name in _PRELOADED:
        importlib.import_module(name)
    for name in settings["packages"]:
        try:
            importlib.import_module(name)
        except Exception as error:
            channel.send(caller, {"error": _describe(error), "package": name})
            return False
    gc.collect()
    gc.freeze()
    return True


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
