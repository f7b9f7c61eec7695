"""Processor time of a program's processes, and their memory where no control group counts it, from Linux's /proc."""

import os
import re
from collections.abc import Iterable

from . import seccomp

IDLE_FACTOR = 4  # idle seconds allowed per second of the time limit
_WALL_FACTOR = 40
AVAILABLE = os.path.exists("/proc/self/stat")

_TICKS, _PAGE = map(os.sysconf, ("SC_CLK_TCK", "SC_PAGE_SIZE")) if hasattr(os, "sysconf") else (1, 1)
_SHARED_MAPPING = re.compile(rb"^\S+ \S\S\Ss \S+ (\S+ \d+) +(?:/dev/zero|/memfd:|/SYSV)", re.M)
_MAX_MAPS_BYTES = 1 << 18
_MAX_TABLE_BYTES = 16 << 20
_UNCOUNTED_DESCRIPTORS = 16
_SOCKET_BYTES = 208 << 10  # Linux's default buffer size, which the system-call filter makes fixed
_PIPE_BYTES = 64 << 10


def max_wall_seconds(timeout: float) -> float:
    """Return the limit in seconds on the wall-clock time of a program."""
    return timeout * _WALL_FACTOR


def cpu_usage(processes: Iterable[int]) -> tuple[float, bool]:
    """Measure the processor time of live processes and of the children that they have waited for.

    Returns:
        Seconds, exact to one clock tick per process; and whether one of the processes is running or runnable.
    """
    ticks, runnable = 0, False
    for pid in processes:
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        if not fields:
            continue
        ticks += sum(map(int, fields[11:15]))
        runnable = runnable or fields[0] == b"R" or (int(fields[17]) > 1 and _has_runnable_thread(pid))
    return ticks / _TICKS, runnable


def _has_runnable_thread(pid: int) -> bool:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    return any(_read(f"/proc/{pid}/task/{thread}/stat").rpartition(b")")[2][1:2] == b"R" for thread in threads)


def memory_bytes(processes: Iterable[int], enough: int) -> int:
    """Estimate the total anonymous memory of several processes, if there is no control group.

    Pages that several processes share count once. Memory that the kernel holds for them counts at its maximum: shared
    mappings, whose pages remain when their owner drops or unmaps them; sockets; pipes; tables of mappings.

    Args:
        enough (`int`): Threshold in bytes below which a cheaper upper bound may be returned.
    """
    pids = list(processes)
    kept = 0
    mappings: set[bytes] = set()
    for pid in pids:
        lines = _read(f"/proc/{pid}/maps", _MAX_MAPS_BYTES)
        kept += _MAX_TABLE_BYTES if len(lines) == _MAX_MAPS_BYTES else 0
        mappings.update(_SHARED_MAPPING.findall(lines))
    kept += len(mappings) * seccomp.SHARED_MAPPING_BYTES + _queue_bytes(pids)
    resident = (
        sum(int(fields[1]) for fields in (_read(f"/proc/{pid}/statm").split() for pid in pids) if fields) * _PAGE
    )
    return kept + (resident if resident + kept <= enough else sum(map(_proportional_share, pids)))


def _queue_bytes(pids: list[int]) -> int:
    """Return the capacity in bytes of the sockets and pipes of processes with more than a few descriptors."""
    queues: set[str] = set()
    for pid in pids:
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for descriptor in descriptors if len(descriptors) > _UNCOUNTED_DESCRIPTORS else ():
            try:
                queues.add(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
            except OSError:
                continue
    return sum(_SOCKET_BYTES * name.startswith("socket:") + _PIPE_BYTES * name.startswith("pipe:") for name in queues)


def _proportional_share(pid: int) -> int:
    """Return the bytes of anonymous memory, each page divided by the number of processes that share it."""
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss_Anon:"):
            return int(line.split()[1]) << 10
    return 0


def _read(path: str, limit: int = 1 << 20) -> bytes:
    """Read a file of /proc, which returns about a page at a time; return no bytes if the process has ended."""
    parts, length = [], 0
    try:
        with open(path, "rb", buffering=0) as file:
            while length < limit and (part := file.read(limit - length)):
                parts.append(part)
                length += len(part)
    except OSError:
        pass
    return b"".join(parts)
