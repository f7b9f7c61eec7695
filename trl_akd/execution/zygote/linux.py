"""System calls that Python 3.11 does not provide; each raises an OSError that names the failed step.

Functions with an argument `later` can prepare their call instead of making it: each step of Python in a forked process
copies the pages of memory that it touches, so a process converts arguments before the fork, and its child makes the
calls.
"""

import ctypes
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NoReturn, TypeAlias

# Step, function and arguments. The function raises an OSError or returns -1 and sets `errno`.
Call: TypeAlias = tuple[str, Callable[..., Any], tuple[Any, ...]]

NOBODY = 65534

_SIGCHLD = int(signal.SIGCHLD)
_SIG_DFL, _SIG_IGN = ctypes.c_void_p(0), ctypes.c_void_p(1)

_CLONE_VM = 0x00000100
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

CAP_DAC_READ_SEARCH = 1 << 2

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_RELATIME = 0x200000

_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_KEEPCAPS = 8
_PR_SET_THP_DISABLE = 41
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_HEADER = struct.pack("2I", 0x20080522, 0)  # version 3, this process
_LAST_POSSIBLE_CAPABILITY = 63
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)
if sys.platform == "linux":
    _libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)  # variadic, but reads all arguments
_reaper_stack = ctypes.create_string_buffer(16 << 10)


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def make(calls: Iterable[Call]) -> None:
    """Make prepared calls."""
    for step, function, arguments in calls:
        if function(*arguments) == -1:
            _fail(step)


def unshare(flags: int, later: list[Call] | None = None) -> None:
    """Move this process into new namespaces."""
    step = "creating a user namespace" if flags & CLONE_NEWUSER else "creating namespaces"
    _make_or_prepare((step, _libc.unshare, (flags,)), later)


def setns(fd: int, flags: int) -> None:
    """Enter the namespace of a descriptor."""
    make([("setns", _libc.setns, (fd, flags))])


def start_reaper() -> int:
    """Start a process that only waits and whose children leave no zombies; return its id.

    It shares this process's memory and runs none of its code, so it is cheap. As the first process of a pid namespace
    it adopts orphans, and all other processes end with it.
    """
    _libc.signal(_SIGCHLD, _SIG_IGN)  # inherited; twenty times as fast as signal.signal
    try:
        stack_top = ctypes.addressof(_reaper_stack) + len(_reaper_stack) & ~0xF
        wait = ctypes.cast(_libc.pause, ctypes.c_void_p)
        pid = _libc.clone(wait, ctypes.c_void_p(stack_top), _CLONE_VM | _SIGCHLD, None)
        _check(pid, "clone")
    finally:
        _libc.signal(_SIGCHLD, _SIG_DFL)
    return int(pid)


def mount(
    source: str,
    target: str,
    kind: str | None = None,
    flags: int = 0,
    options: str = "",
    later: list[Call] | None = None,
) -> None:
    """Mount a file system, bind a path, or change the flags of a mount."""
    arguments = (os.fsencode(source), os.fsencode(target), kind and kind.encode(), ctypes.c_ulong(flags))
    _make_or_prepare((f"mount {target}", _libc.mount, (*arguments, options.encode())), later)


def pivot_root_here() -> None:
    """Make the current folder, which must be a mount point, the root, and unmount the old root."""
    machine = os.uname().machine
    if machine not in _PIVOT_ROOT:
        raise OSError(None, f"the number of pivot_root is unknown on {machine}")
    syscall("pivot_root", _PIVOT_ROOT[machine], b".", b".")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount the old root")
    os.chdir("/")


def syscall(step: str, number: int, *arguments: Any) -> int:
    """Make a system call by its number."""
    result = try_syscall(number, *arguments)
    _check(result, step)
    return result


def try_syscall(number: int, *arguments: Any) -> int:
    """Make a system call by its number; return -1 if it fails or does not exist."""
    if sys.platform != "linux":
        return -1
    return int(_libc.syscall(ctypes.c_long(number), *map(_wide, arguments)))


def die_with_parent(number: int, later: list[Call] | None = None) -> None:
    """Request a signal when the thread that forked this process ends; a change of user cancels the request."""
    _prctl(_PR_SET_PDEATHSIG, number, step="PR_SET_PDEATHSIG", later=later)


def set_dumpable(dumpable: bool, later: list[Call] | None = None) -> None:
    """Set whether processes of the same user may trace this process and read its memory."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable), step="PR_SET_DUMPABLE", later=later)


def disable_huge_pages(later: list[Call] | None = None) -> None:
    """Disable huge pages for this process and its future children, as each stays whole while a part is mapped."""
    _prctl(_PR_SET_THP_DISABLE, 1, step="PR_SET_THP_DISABLE", later=later)


def become_subreaper() -> None:
    """Adopt descendants whose parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, step="PR_SET_CHILD_SUBREAPER")


def set_no_new_privileges() -> None:
    """Prevent this process and its descendants from gaining privileges by exec."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, step="PR_SET_NO_NEW_PRIVS")


def drop_bounding_capabilities(kept: int = 0) -> None:
    """Prevent exec from restoring capabilities other than those of a mask, even for user 0; needs CAP_SETPCAP."""
    if sys.platform != "linux":
        return
    for capability in range(_LAST_POSSIBLE_CAPABILITY + 1):
        if not kept >> capability & 1:
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def mapped_ids(kind: str) -> list[tuple[int, int]]:
    """List the ranges of ids (`uid` or `gid`) in this user namespace, as first id and length."""
    try:
        with open(f"/proc/self/{kind}_map") as lines:
            return [(int(first), int(count)) for first, _, count in map(str.split, lines)]
    except FileNotFoundError:
        return [(0, 1 << 32)]


def can_switch_to_nobody() -> bool:
    """Return whether this process is root and user `nobody` exists; containers with a single user have none."""
    return os.geteuid() == 0 and any(first <= NOBODY < first + count for first, count in mapped_ids("uid"))


def switch_user(user: int, group: int, kept_capabilities: int = 0, later: list[Call] | None = None) -> None:
    """Become another user without supplementary groups; keep a mask of capabilities, also across exec."""
    _make_or_prepare(("setgroups", os.setgroups, ([],)), later)
    _make_or_prepare(("setresgid", os.setresgid, (group, group, group)), later)
    _prctl(_PR_SET_KEEPCAPS, int(kept_capabilities != 0), step="PR_SET_KEEPCAPS", later=later)
    _make_or_prepare(("setresuid", os.setresuid, (user, user, user)), later)
    if kept_capabilities:
        limit_capabilities(kept_capabilities, later)
        for capability in range(_LAST_POSSIBLE_CAPABILITY + 1):
            if kept_capabilities >> capability & 1:
                _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, step="PR_CAP_AMBIENT", later=later)


def limit_capabilities(kept: int = 0, later: list[Call] | None = None) -> None:
    """Drop all capabilities except those of a mask."""
    if sys.platform != "linux":
        return
    low, high = kept & 0xFFFFFFFF, kept >> 32
    # Effective, permitted, inheritable; the same for the upper half.
    masks = struct.pack("6I", low, low, low, high, high, high)
    _make_or_prepare(("capset", _libc.capset, (_CAPABILITY_HEADER, masks)), later)


def install_filter(instructions: bytes, later: list[Call] | None = None) -> None:
    """Filter the system calls of this process and its descendants by a program of 8-byte BPF instructions."""
    address = ctypes.addressof(_filter_program(instructions))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, address, step="PR_SET_SECCOMP", later=later)


@cache  # also keeps the program in memory, as the kernel reads it by its address
def _filter_program(instructions: bytes) -> _FilterProgram:
    return _FilterProgram(len(instructions) // 8, instructions)


def _prctl(option: int, first: int, second: int = 0, *, step: str, later: list[Call] | None = None) -> None:
    if sys.platform == "linux":  # level `process` does without it on other systems
        _make_or_prepare((step, _libc.prctl, (option, first, second, 0, 0)), later)


def _make_or_prepare(call: Call, later: list[Call] | None) -> None:
    if later is None:
        make([call])
    else:
        later.append(call)


def _wide(argument: Any) -> Any:
    """Convert integers to 64 bits, which ctypes does not do for variadic functions."""
    return ctypes.c_ulong(argument) if isinstance(argument, int) else argument


def _check(result: int, step: str) -> None:
    if result == -1:
        _fail(step)


def _fail(step: str) -> NoReturn:
    errno = ctypes.get_errno()
    raise OSError(errno, os.strerror(errno), step)
