"""A filter of system calls, as a classic BPF program.

It denies calls that hold memory which no limit counts (memfd, System V segments, key rings, queues of file events,
pages moved into pipes), that make processes children of the helper, that access the network, and those with a large
attack surface that Python programs do not need. It is a deny-list, so that ordinary programs are not affected.
"""

import struct

SHARED_MAPPING_BYTES = 8 << 20  # maximum size of a shared mapping without a control group

_ENOSYS = 38
_ENOMEM = 12
_EPERM = 1
_RETURN_ALLOW = 0x7FFF0000
_RETURN_ERRNO = 0x00050000

_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_GREATER_OR_EQUAL, _JUMP_IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_OFFSET_OF_NUMBER, _OFFSET_OF_MACHINE = 0, 4
_OFFSETS_OF_ARGUMENTS = range(16, 64, 8)  # of their lower halves
_X32_BIT = 0x40000000

# Linux: include/uapi/linux/audit.h
_AUDIT_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Numbers of system calls on x86_64 and aarch64, which are the same from 424 on.
_DENIED = {
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "ptrace": (101, 117),
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "acct": (163, 89),
    "mount": (165, 40),
    "umount2": (166, 39),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "inotify_init": (253, None),
    "unshare": (272, 97),
    "vmsplice": (278, 75),
    "inotify_init1": (294, 26),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "memfd_create": (319, 279),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442),
    "memfd_secret": (447, 447),
}
_CLONE = (56, 220)
_SOCKET = (41, 198)
_SETSOCKOPT = (54, 208)
_MMAP = (9, 222)
_PRCTL = (157, 167)
_PR_SET_THP_DISABLE = 41
_CLONE3 = 435
_NEW_NAMESPACES = 0x7E020000
_CLONE_PARENT = 0x00008000  # makes a process a child of the helper, which would have to reap it
_AF_UNIX = 1
_SOL_SOCKET = 1
_BUFFER_SIZES = (7, 8, 32, 33)  # SO_SNDBUF, SO_RCVBUF, and both with FORCE
_MAP_SHARED = 1


def assemble_filter(machine: str, *, memory_is_counted: bool = True) -> bytes | None:
    """Assemble the filter, or return None for an architecture whose system call numbers are unknown.

    Calls by another ABI (i386 and x32 on x86_64) are all refused, as their numbers differ. Requests to change the size
    of a socket's buffer succeed without effect.

    Args:
        machine (`str`): Architecture, as in `os.uname`.
        memory_is_counted (`bool`, *optional*, defaults to `True`): Whether a control group counts shared memory. If
            not, shared mappings are limited in size, and huge pages stay disabled.
    """
    if machine not in _AUDIT_MACHINES:
        return None
    column = list(_AUDIT_MACHINES).index(machine)
    allow = _instruction(_RETURN, value=_RETURN_ALLOW)
    refuse = _instruction(_RETURN, value=_RETURN_ERRNO | _EPERM)
    no_memory = _instruction(_RETURN, value=_RETURN_ERRNO | _ENOMEM)
    pretend_unknown = _instruction(_RETURN, value=_RETURN_ERRNO | _ENOSYS)
    pretend_success = _instruction(_RETURN, value=_RETURN_ERRNO)
    rules = [
        _instruction(_LOAD, value=_OFFSET_OF_MACHINE),
        *_unless(_JUMP_IF_EQUAL, _AUDIT_MACHINES[machine], pretend_unknown),
        _instruction(_LOAD, value=_OFFSET_OF_NUMBER),
        *_when(_JUMP_IF_GREATER_OR_EQUAL, _X32_BIT, pretend_unknown),
        # A filter cannot read the flags of clone3; if it seems to be missing, C libraries use clone.
        *_when(_JUMP_IF_EQUAL, _CLONE3, pretend_unknown),
        *_when(
            _JUMP_IF_EQUAL,
            _CLONE[column],
            _argument(0),
            *_when(_JUMP_IF_ANY_BIT, _NEW_NAMESPACES | _CLONE_PARENT, refuse),
            allow,
        ),
        *_when(_JUMP_IF_EQUAL, _SOCKET[column], _argument(0), *_when(_JUMP_IF_EQUAL, _AF_UNIX, allow), refuse),
        *_when(
            _JUMP_IF_EQUAL,
            _SETSOCKOPT[column],
            _argument(1),
            *_unless(_JUMP_IF_EQUAL, _SOL_SOCKET, allow),
            _argument(2),
            *[part for name in _BUFFER_SIZES for part in _when(_JUMP_IF_EQUAL, name, pretend_success)],
            allow,
        ),
    ]
    if not memory_is_counted:
        rules += _when(
            _JUMP_IF_EQUAL,
            _MMAP[column],
            _argument(3),
            *_unless(_JUMP_IF_ANY_BIT, _MAP_SHARED, allow),
            _argument(1, upper_half=True),
            *_unless(_JUMP_IF_EQUAL, 0, no_memory),
            _argument(1),
            *_when(_JUMP_IF_GREATER_OR_EQUAL, SHARED_MAPPING_BYTES + 1, no_memory),
            allow,
        )
        rules += _when(
            _JUMP_IF_EQUAL,
            _PRCTL[column],
            _argument(0),
            *_when(_JUMP_IF_EQUAL, _PR_SET_THP_DISABLE, refuse),
            allow,
        )
    denied = sorted(number for numbers in _DENIED.values() if (number := numbers[column]) is not None)
    return b"".join([*rules, *_search(denied, refuse, allow)])


def _search(numbers: list[int], found: bytes, missing: bytes) -> list[bytes]:
    """Return a binary search for the call's number, which the kernel also runs for every call when it installs one."""
    if len(numbers) <= 2:
        return [*[part for number in numbers for part in _when(_JUMP_IF_EQUAL, number, found)], missing]
    lower, upper = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
    return [
        *_when(_JUMP_IF_GREATER_OR_EQUAL, upper[0], *_search(upper, found, missing)),
        *_search(lower, found, missing),
    ]


def _argument(position: int, upper_half: bool = False) -> bytes:
    return _instruction(_LOAD, value=_OFFSETS_OF_ARGUMENTS[position] + 4 * upper_half)


def _when(test: int, value: int, *then: bytes) -> list[bytes]:
    return [_instruction(test, if_false=len(then), value=value), *then]


def _unless(test: int, value: int, *then: bytes) -> list[bytes]:
    return [_instruction(test, if_true=len(then), value=value), *then]


def _instruction(code: int, if_true: int = 0, if_false: int = 0, value: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
