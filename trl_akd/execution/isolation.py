"""Choice of the isolation level, and the settings with which helpers enter it."""

import errno
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from .launching import PACKAGE_FOLDER, Launcher, interpreter
from .result import Isolation
from .worker import HelperError, PackageError, Worker

__all__ = ["IsolationError", "start_first_worker", "start_worker"]

_STRONGEST_FIRST: tuple[Isolation, ...] = ("namespace", "bwrap")
_SHORTAGE_REMEDIES: dict[int | None, str] = {
    errno.EMFILE: "raise the limit on open files (`ulimit -n`), or close some",
    errno.ENFILE: "close files: the machine has reached its limit on open files",
    errno.EAGAIN: "raise the limit on processes (`ulimit -u`), or end some",
    errno.ENOMEM: "free memory, or raise the limit on it (`ulimit -v`)",
}
_FOLDER_REMEDIES: dict[int | None, str] = dict.fromkeys(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT, errno.EACCES),
    "set TMPDIR to a writable folder with free space",
)
_BLOCKING_SETTINGS = {
    "/proc/sys/kernel/unprivileged_userns_clone": "0",
    "/proc/sys/user/max_user_namespaces": "0",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
}

_BWRAP_CODE_FOLDER = "/etc/trl_akd"
# Capabilities of a helper that runs as root: it switches programs to nobody, ends them, and removes their files.
_BWRAP_ROOT_KEEPS = ("SETUID", "SETGID", "SETPCAP", "KILL", "CHOWN", "FOWNER", "DAC_OVERRIDE", "DAC_READ_SEARCH")


class IsolationError(RuntimeError):
    """The requested isolation level is not available on this machine."""


def start_first_worker(isolation: str, packages: Sequence[str]) -> tuple[Isolation, Launcher, Worker]:
    """Start a helper at the requested level, or for `auto` at the strongest level that works.

    Returns:
        The level, the launcher of further helpers, and a helper that is ready.

    Raises:
        IsolationError: If the level is not available; `auto` never falls back to `process`.
        ImportError: If a package is not installed, or cannot be imported in the sandbox.
    """
    choices = ("auto", *get_args(Isolation))
    if isolation not in choices:
        raise ValueError(f"isolation is {isolation!r}; choose one of {', '.join(choices)}.")
    if not hasattr(os, "fork"):
        raise IsolationError(f"Programs run on Linux and macOS, and this is {sys.platform}; on Windows, use WSL.")
    folders, sources = _find_packages(packages)
    reasons = []
    for level in _STRONGEST_FIRST if isolation == "auto" else (cast(Isolation, isolation),):
        try:
            settings = _helper_settings(level, folders, [*_python_folders(), *sources])
        except FileNotFoundError as error:
            reasons.append(f"{level}: {error}")
            continue
        launcher = Launcher(settings)
        try:
            return level, launcher, _start_ready_worker(launcher)
        except HelperError as error:
            if isinstance(error, PackageError):
                raise ImportError(
                    f"packages names {error.package!r}, which cannot be imported in the sandbox ({error}); "
                    "also name the packages that it depends on."
                ) from None
            if error.errno in _SHORTAGE_REMEDIES:
                raise IsolationError(_explain_shortage(error, error.errno)) from error
            reasons.append(f"{level}: {error}")
    raise IsolationError(_explain_unavailable(isolation, reasons))


def _start_ready_worker(launcher: Launcher) -> Worker:
    try:
        worker = start_worker(launcher)
        try:
            worker.wait_until_ready()
        except BaseException:
            worker.stop()
            raise
    except BaseException:
        launcher.stop()
        raise
    return worker


def start_worker(launcher: Launcher) -> Worker:
    """Start a worker.

    Raises:
        IsolationError: If the machine has too few file descriptors or processes, or too little memory, to start it.
    """
    try:
        return Worker(launcher)
    except OSError as error:
        if error.errno == errno.EACCES and error.filename == interpreter():
            raise IsolationError(
                f"No helper process can be started: this user may not run {error.filename}; use another Python."
            ) from error
        raise IsolationError(_explain_shortage(error, error.errno)) from error


def _explain_shortage(error: Exception, number: int | None) -> str:
    remedy = {**_SHORTAGE_REMEDIES, **_FOLDER_REMEDIES}.get(number, "check the machine's resources")
    return f"No helper process can be started ({error}): {remedy}."


def _explain_unavailable(isolation: str, reasons: list[str]) -> str:
    blocking = [f"{path} is {value}" for path, value in _BLOCKING_SETTINGS.items() if _read(path) == value]
    remedy = "" if isolation == "process" else ' If a weaker sandbox is enough, pass isolation="process".'
    return f"isolation={isolation!r} is not available here ({'; '.join([*reasons, *blocking])}).{remedy}"


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _helper_settings(level: Isolation, folders: dict[str, str], sources: list[str]) -> dict[str, Any]:
    """Return the first message to a helper; `command` is the prefix of the command line that starts it."""
    settings = {"level": level, "sources": sources, "packages": folders, "command": [], "own_folder": None}
    return settings | (_bwrap_settings(sources) if level == "bwrap" else {})


def _bwrap_settings(sources: Iterable[str]) -> dict[str, Any]:
    """Return the settings of level `bwrap`, which runs the helper inside bubblewrap's sandbox.

    It is for machines on which ordinary users may not create namespaces, but bubblewrap may, because it is setuid or
    has an AppArmor profile.

    Raises:
        FileNotFoundError: If bubblewrap is not installed.
    """
    from .zygote import confinement, filesystem  # missing modules of Unix must not break the import of this one

    program = shutil.which("bwrap")
    if program is None:
        raise FileNotFoundError("bubblewrap is not installed: there is no bwrap on the PATH")
    writable = (filesystem.SCRATCH, "/dev/shm")
    line = [program, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if os.geteuid() == 0:
        line += ["--cap-drop", "ALL", *(word for name in _BWRAP_ROOT_KEEPS for word in ("--cap-add", f"CAP_{name}"))]
    else:
        line += ["--unshare-user"]
    line += ["--proc", "/proc", "--dev", "/dev"]
    for folder in writable:
        line += ["--size", str(confinement.SCRATCH_BYTES), "--tmpfs", folder]
    for path in filesystem.SYSTEM:
        if os.path.islink(path):
            line += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            line += ["--ro-bind", path, path]
    for path in filesystem.ETC_FILES:
        line += ["--ro-bind-try", path, path]
    for path in sorted({*sources, *map(os.path.realpath, sources)}):
        line += ["--ro-bind", path, path]
    line += ["--ro-bind", os.path.join(PACKAGE_FOLDER, "zygote"), f"{_BWRAP_CODE_FOLDER}/zygote"]
    line += ["--chdir", filesystem.SCRATCH, "--"]
    return {"command": line, "own_folder": _BWRAP_CODE_FOLDER, "writable": writable}


def _python_folders() -> list[str]:
    """List the folders that the interpreter and its standard library are installed in."""
    prefixes = {sys.base_prefix, sys.base_exec_prefix}
    folders = [os.path.join(prefix, name) for prefix in prefixes for name in ("bin", "lib", "lib64")]
    folders.append(os.path.dirname(os.__file__))
    return [folder for folder in folders if os.path.isdir(folder)]


def _find_packages(packages: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the folder of each package, and the paths to show for it, with the shared libraries of its wheel."""
    if isinstance(packages, str) or not isinstance(packages, Iterable):
        raise TypeError(f"packages is {packages!r}; give a list of package names.")
    folders: dict[str, str] = {}
    paths = []
    for name in packages:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"packages names {name!r}; give names of top-level packages.")
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"packages names {name!r}, which is not installed; install it or leave it out.")
        found = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        folders[name] = str(found.parent)
        libraries = found.with_name(f"{name}.libs")
        paths += [str(path) for path in (found, libraries) if path.exists()]
    return folders, paths
