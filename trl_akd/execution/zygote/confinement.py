"""Limits that a program's process sets for itself before it runs the program: resources, system calls, files.

Landlock restricts the files of a process and its descendants (Linux 5.13), and keeps signals inside (Linux 6.12).
Source: Documentation/userspace-api/landlock.rst of Linux.
"""

import contextlib
import ctypes
import math
import os
import resource
import stat
import struct
import sys
from collections.abc import Iterable
from functools import lru_cache

from . import linux, seccomp

FILE_BYTES = 64 << 20
PROCESSES = 128
SCRATCH_BYTES = 64 << 20
SCRATCH_FILES = 4096
_OPEN_FILES = {True: 256, False: 128}  # with and without a control group that counts kernel memory
_STACK_BYTES = 64 << 20
_REPORT_BYTES = 16 << 20

_SYSCALL_FILTERS = {
    counted: seccomp.assemble_filter(os.uname().machine, memory_is_counted=counted) for counted in (False, True)
}
HAS_SYSCALL_FILTER = _SYSCALL_FILTERS[True] is not None
MAX_OOM_SCORE = 1000

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_GET_VERSION = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_RIGHTS_BY_VERSION = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}  # all; refer; truncate; device ioctl
_TRUNCATE = _RIGHTS_BY_VERSION[3]
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE

_NET_VERSION, _ALL_TCP = 4, 0b11
_SCOPE_VERSION, _ALL_SCOPES = 6, 0b11  # abstract sockets, signals


@lru_cache(maxsize=8)
def resource_limits(memory_bytes: int, timeout: float, processes: int, memory_is_counted: bool) -> list[linux.Call]:
    """Prepare resource limits, none above the current hard limit.

    Args:
        memory_bytes (`int`): Address space of each process; the hard limit leaves some more for reporting.
        timeout (`float`): Limit in seconds on the processor time of all processes together.
        processes (`int`): Maximum number of processes and threads.
        memory_is_counted (`bool`): Whether a control group counts the memory of sockets and pipes.
    """
    return [
        _lowered(resource.RLIMIT_AS, memory_bytes, memory_bytes + _REPORT_BYTES),
        _lowered(resource.RLIMIT_CPU, math.ceil(timeout) + 1),
        _lowered(resource.RLIMIT_FSIZE, FILE_BYTES),
        _lowered(resource.RLIMIT_NOFILE, _OPEN_FILES[memory_is_counted]),
        _lowered(resource.RLIMIT_NPROC, processes),
        _lowered(resource.RLIMIT_STACK, _STACK_BYTES, resource.RLIM_INFINITY),  # programs may raise it for recursion
        _lowered(resource.RLIMIT_CORE, 0),
    ]


def raise_memory_limit() -> None:
    """Raise the limit on memory to the hard limit, so that the process can report a MemoryError."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def install_syscall_filter(memory_is_counted: bool, later: list[linux.Call] | None = None) -> None:
    """Install the filter of system calls, on architectures that have one.

    Args:
        memory_is_counted (`bool`): Whether a control group counts shared memory. If not, shared mappings are limited
            in size, and huge pages are disabled.
        later (`list[linux.Call]`, *optional*): List to add the calls to, instead of making them.
    """
    if not memory_is_counted:
        linux.disable_huge_pages(later)
    instructions = _SYSCALL_FILTERS[memory_is_counted]
    if instructions is not None:
        linux.install_filter(instructions, later)


def raise_oom_score(score: int = MAX_OOM_SCORE, proc: int | None = None) -> None:
    """Make the kernel prefer this process when it kills processes for lack of memory.

    Args:
        score (`int`, *optional*, defaults to `1000`): Minimum value of /proc/self/oom_score_adj.
        proc (`int`, *optional*): Descriptor of a writable /proc.
    """
    path = "/proc/self/oom_score_adj" if proc is None else "self/oom_score_adj"
    try:
        file = os.open(path, os.O_RDWR, dir_fd=proc)
    except FileNotFoundError:
        return  # not Linux
    try:
        if score == MAX_OOM_SCORE or int(os.read(file, 16)) < score:
            os.write(file, str(score).encode())
    finally:
        os.close(file)


def landlock_available() -> bool:
    """Return whether the kernel supports Landlock."""
    return _landlock_version() >= 1


def restrict_file_access(readable: Iterable[str], writable: Iterable[str]) -> bool:
    """Restrict this process to the files below some paths by Landlock; return whether the kernel supports that.

    Args:
        readable (`Iterable[str]`): Paths that may be read and executed.
        writable (`Iterable[str]`): Paths that may also be changed.
    """
    version = _landlock_version()
    if version < 1:
        return False
    handled = sum(rights for since, rights in _RIGHTS_BY_VERSION.items() if since <= version)
    fields = [handled]
    if version >= _NET_VERSION:
        fields.append(_ALL_TCP)
    if version >= _SCOPE_VERSION:
        fields.append(_ALL_SCOPES)
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    rules = linux.syscall("landlock_create_ruleset", _CREATE_RULESET, attributes, len(attributes), 0)
    for paths, rights in ((readable, _READ), (writable, handled)):
        for path in paths:
            _allow_path(rules, path, rights & handled)
    linux.syscall("landlock_restrict_self", _RESTRICT_SELF, rules, 0)
    os.close(rules)
    return True


def _landlock_version() -> int:
    return linux.try_syscall(_CREATE_RULESET, None, 0, _GET_VERSION)


def _allow_path(rules: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # the path does not exist
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        rights &= _FILE_RIGHTS
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, fd))
    linux.syscall("landlock_add_rule", _ADD_RULE, rules, _PATH_BENEATH, rule, 0)
    os.close(fd)


def _lowered(kind: int, soft: int, hard: int | None = None) -> linux.Call:
    _, ceiling = resource.getrlimit(kind)
    limits = [limit for limit in (soft if hard is None else hard, ceiling) if limit != resource.RLIM_INFINITY]
    hard = min(limits, default=resource.RLIM_INFINITY)
    set_limit = resource.setrlimit if sys.platform == "linux" else _set_limit_if_possible
    return "setrlimit", set_limit, (kind, (min([soft, *limits]), hard))


def _set_limit_if_possible(kind: int, limits: tuple[int, int]) -> None:
    with contextlib.suppress(OSError, ValueError):  # macOS does not implement all limits
        resource.setrlimit(kind, limits)
