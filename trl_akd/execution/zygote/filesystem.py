"""The file system that programs see: read-only allowed folders of the machine, and private /tmp and /proc."""

import os
import re
from collections.abc import Iterable

from . import confinement, linux

SCRATCH = "/tmp"

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
ETC_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "shm": SCRATCH,
}
_OCTAL = re.compile(r"\\(\d{3})")
_FLAGS = {
    "ro": linux.MS_RDONLY,
    "nosuid": linux.MS_NOSUID,
    "nodev": linux.MS_NODEV,
    "noexec": linux.MS_NOEXEC,
    "noatime": linux.MS_NOATIME,
    "nodiratime": linux.MS_NODIRATIME,
    "relatime": linux.MS_RELATIME,
}


def enter_private_root(extra: Iterable[str], user: int, group: int) -> None:
    """Build a root folder of allowed paths, with its own /proc, and make it the root of this mount namespace.

    Args:
        extra (`Iterable[str]`): Paths to show besides the system's, such as those of Python and of packages.
        user, group (`int`): Ids of the programs' user, for /etc/passwd.
    """
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    links, opened = _open_sources(extra)
    new_root = SCRATCH  # a folder that always exists; paths inside it were opened before it is covered
    linux.mount("tmpfs", new_root, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=4m,mode=755")
    os.chdir(new_root)
    for path, target in links.items():
        os.symlink(target, path.lstrip("/"))
    for path, fd in opened.items():
        _bind(fd, path.lstrip("/"))
        os.close(fd)
    _write_settings(user, group)
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, f"dev/{name}")
    for folder in ("proc", SCRATCH.lstrip("/")):
        os.makedirs(folder, exist_ok=True)
    linux.mount("proc", "proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    linux.pivot_root_here()


def remount_read_only() -> None:
    """Make all mounts read-only and nosuid, and all except devices nodev."""
    with open("/proc/self/mountinfo") as lines:
        fields = [line.split() for line in lines]
    for _, _, _, _, where, options, *_ in fields:
        path = _OCTAL.sub(lambda code: chr(int(code[1], 8)), where)
        kept = [_FLAGS.get(option, 0) for option in options.split(",")]
        wanted = linux.MS_RDONLY | linux.MS_NOSUID | (0 if path.startswith("/dev/") else linux.MS_NODEV)
        linux.mount("none", path, flags=linux.MS_REMOUNT | linux.MS_BIND | wanted | sum(set(kept)) & ~wanted)


def prepare_program_folders(extra: Iterable[str]) -> list[linux.Call]:
    """Prepare the mounts of a private /proc and scratch folder, in which paths of `extra` stay visible."""
    calls: list[linux.Call] = []
    flags = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("proc", "/proc", "proc", flags | linux.MS_NOEXEC | linux.MS_RDONLY, later=calls)
    options = f"size={confinement.SCRATCH_BYTES},nr_inodes={confinement.SCRATCH_FILES},mode=1777"
    linux.mount("tmpfs", SCRATCH, "tmpfs", flags, options, later=calls)
    if covered := [path for path in extra if path.startswith(f"{SCRATCH}/")]:
        calls = [("mount", _mount_around, (covered, calls))]
    return [*calls, ("chdir", os.chdir, (SCRATCH,))]


def _mount_around(covered: list[str], mounts: list[linux.Call]) -> None:
    """Make prepared mounts, and show paths again that they cover."""
    opened = {path: os.open(path, os.O_PATH) for path in covered}
    linux.make(mounts)
    for path, fd in opened.items():
        _bind(fd, path)
        os.close(fd)


def used_bytes(folder: str) -> int:
    """Return the bytes used in a folder's file system, or 0 if the folder no longer exists."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return 0
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def _open_sources(extra: Iterable[str]) -> tuple[dict[str, str], dict[str, int]]:
    """Return symbolic links to copy and descriptors of paths to bind, by path, parents first."""
    links = {path: os.readlink(path) for path in SYSTEM if os.path.islink(path)}
    devices = [f"/dev/{name}" for name in _DEVICES]
    wanted = {path for path in (*SYSTEM, *ETC_FILES, *devices) if path not in links and os.path.exists(path)}
    wanted.update(extra)
    opened: dict[str, int] = {}
    for path in sorted(wanted):
        if not any(path.startswith(f"{shown}/") for shown in (*opened, *links)):
            opened[path] = os.open(path, os.O_PATH)
    return links, opened


def _bind(fd: int, target: str) -> None:
    source = f"/proc/self/fd/{fd}"
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    linux.mount(source, target, flags=linux.MS_BIND | linux.MS_REC)


def _write_settings(user: int, group: int) -> None:
    os.makedirs("etc", exist_ok=True)
    names = {0: "root", user: "program"}
    groups = {0: "root", group: "program"}
    texts = {
        "passwd": [f"{name}:x:{number}:{group}::{SCRATCH}:/bin/sh" for number, name in names.items()],
        "group": [f"{name}:x:{number}:" for number, name in groups.items()],
        "hosts": ["127.0.0.1 localhost", "::1 localhost"],
        "nsswitch.conf": ["passwd: files", "group: files", "hosts: files"],
    }
    for name, lines in texts.items():
        with open(f"etc/{name}", "w") as file:
            file.write("\n".join([*lines, ""]))
