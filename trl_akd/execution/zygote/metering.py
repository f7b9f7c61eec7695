"""Measurements of a program's processes, from Linux's /proc: processor time, time spent waiting for a core, memory."""

import os
import re
from collections.abc import Iterable, Iterator

BACKSTOP = 4
LONGEST_WAIT = 5
AVAILABLE = os.path.exists("/proc/self/stat")

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SHARED_MAPPING = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ..(.)s \S+ (\S+) (\d+) +(?:/dev/zero|/memfd:|/SYSV)", re.M)


def longest_run(timeout: float) -> float:
    """Return the seconds of wall-clock time after which a program ends whatever the machine's load."""
    return timeout * BACKSTOP * LONGEST_WAIT


def cpu_seconds(processes: Iterable[int]) -> float:
    """Sum the processor time of live processes and of the children that they have waited for, to a clock tick each."""
    ticks = 0
    for pid in processes:
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS


def seconds_without_core(processes: Iterable[int]) -> float:
    """Sum the time for which processes could have run but found no core free; 0 where the kernel does not count it."""
    nanoseconds = 0
    for pid in processes:
        fields = _read(f"/proc/{pid}/schedstat").split()
        nanoseconds += int(fields[1]) if len(fields) > 1 else 0
    return nanoseconds / 1e9


def memory_bytes(processes: Iterable[int], enough: int) -> int:
    """Measure the memory that processes hold together and no file on a disk backs.

    Pages that several processes share count once, and a shared mapping counts whole, as its pages stay when their
    owner drops them.

    Args:
        enough (`int`): below this many bytes, a cheaper upper bound may be returned in place of the exact number.
    """
    pids = list(processes)
    bound = sum(_statm(pid)[0] for pid in pids)
    if bound <= enough:
        return bound
    mapped: dict[bytes, int] = {}
    for pid in pids:
        for inode, size in _shared_mappings(pid):
            mapped[inode] = max(size, mapped.get(inode, 0))
    shared = sum(mapped.values())
    resident = sum(_statm(pid)[1] for pid in pids)
    if resident + shared <= enough:
        return resident + shared
    return shared + sum(map(_proportional_share, pids))


def _statm(pid: int) -> tuple[int, int]:
    """Return bytes of address space and of resident pages."""
    fields = _read(f"/proc/{pid}/statm").split()
    return (int(fields[0]) * _PAGE, int(fields[1]) * _PAGE) if fields else (0, 0)


def _shared_mappings(pid: int) -> Iterator[tuple[bytes, int]]:
    for start, end, _, device, inode in _SHARED_MAPPING.findall(_read(f"/proc/{pid}/maps")):
        yield device + inode, int(end, 16) - int(start, 16)


def _proportional_share(pid: int) -> int:
    """Return bytes of anonymous memory, each page divided by the number of processes that share it."""
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss_Anon:"):
            return int(line.split()[1]) << 10
    return 0


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""  # the process has just ended
