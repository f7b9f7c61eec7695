"""What the kernel is told about a program's process before it runs a line of the program."""

import math
import os
import resource
import sys
from functools import lru_cache

from . import linux, seccomp

FILE_BYTES = 64 << 20
PROCESSES = 128
SCRATCH_BYTES = 64 << 20
SCRATCH_FILES = 4096
_OPEN_FILES = {True: 256, False: 128}  # where a control group counts the kernel's memory, and where none does
_STACK_BYTES = 64 << 20
_ROOM_TO_REPORT = 16 << 20

FILTERS_CALLS = seccomp.deny_list(os.uname().machine) is not None
_DENY_LISTS = {counted: seccomp.deny_list(os.uname().machine, memory_is_counted=counted) for counted in (False, True)}
_CORES = os.cpu_count() or 1
_FIRST_VICTIM = 1000


@lru_cache(maxsize=8)
def limits(memory_bytes: int, timeout: float, processes: int, memory_is_counted: bool) -> list[tuple[int, int, int]]:
    """Return resource limits as kind, soft limit and hard limit, each at most the one already in force.

    Args:
        memory_bytes (`int`): address space of each process; a little more, above the soft limit, is for reporting.
        timeout (`float`): limit in seconds on the processor time of all processes together.
        processes (`int`): processes and threads at once.
        memory_is_counted (`bool`): whether a control group counts what sockets and pipes hold.
    """
    return [
        _lowered(resource.RLIMIT_AS, memory_bytes, memory_bytes + _ROOM_TO_REPORT),
        _lowered(resource.RLIMIT_CPU, math.ceil(timeout) + 1),
        _lowered(resource.RLIMIT_FSIZE, FILE_BYTES),
        _lowered(resource.RLIMIT_NOFILE, _OPEN_FILES[memory_is_counted]),
        _lowered(resource.RLIMIT_NPROC, processes),
        _lowered(resource.RLIMIT_STACK, _STACK_BYTES),
        _lowered(resource.RLIMIT_CORE, 0),
    ]


def set_limits(wanted: list[tuple[int, int, int]]) -> None:
    """Set resource limits for this process and those that it forks."""
    for kind, soft, hard in wanted:
        try:
            resource.setrlimit(kind, (soft, hard))
        except (OSError, ValueError):
            if sys.platform == "linux":  # macOS knows some of these limits by name only
                raise


def leave_room_to_report() -> None:
    """Raise the limit on memory to the hard one, for the process's own last words."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def forbid_system_calls(memory_is_counted: bool) -> None:
    """Refuse the system calls that no honest program misses, where their numbers are known.

    Args:
        memory_is_counted (`bool`): whether a control group counts the memory that processes share; else mappings of
            it are kept small, and there are no huge pages.
    """
    if not memory_is_counted:
        linux.disable_huge_pages()
    instructions = _DENY_LISTS[memory_is_counted]
    if instructions is not None:
        linux.install_filter(instructions)


def offer_for_killing(score: int = _FIRST_VICTIM, proc: int | None = None) -> None:
    """Have the kernel end this process before others, should the machine run out of memory.

    Args:
        score (`int`, *optional*, defaults to `1000`): as in /proc/self/oom_score_adj; never lowered.
        proc (`int`, *optional*): descriptor of a /proc that can be written to.
    """
    path = "/proc/self/oom_score_adj" if proc is None else "self/oom_score_adj"
    try:
        file = os.open(path, os.O_RDWR, dir_fd=proc)
    except FileNotFoundError:
        return  # no Linux
    try:
        if score == _FIRST_VICTIM or int(os.read(file, 16)) < score:
            os.write(file, str(score).encode())
    finally:
        os.close(file)


def _lowered(kind: int, soft: int, hard: int | None = None) -> tuple[int, int, int]:
    _, ceiling = resource.getrlimit(kind)
    hard = soft if hard is None else hard
    if ceiling != resource.RLIM_INFINITY:
        hard = min(hard, ceiling)
    return kind, min(soft, hard), hard
