"""Which level of isolation is to be had here, and what a helper must be told to enter it."""

import errno
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from .result import Isolation
from .worker import PACKAGE_FOLDER, HelperError, PackageError, Worker, interpreter

__all__ = ["IsolationError", "first_worker", "start_worker"]

_STRONGEST_FIRST: tuple[Isolation, ...] = ("namespace", "bwrap")
_SHORTAGES: dict[int | None, str] = {
    errno.EMFILE: "raise the limit on open files (`ulimit -n`), or close some",
    errno.ENFILE: "close files, as the machine has no more to give",
    errno.EAGAIN: "raise the limit on processes (`ulimit -u`), or end some",
    errno.ENOMEM: "free memory, or raise the limit on it (`ulimit -v`)",
}
_NO_FOLDER: dict[int | None, str] = dict.fromkeys(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT, errno.EACCES),
    "set TMPDIR to a folder that can be written to and has room",
)
_HINTS = {
    "/proc/sys/kernel/unprivileged_userns_clone": "0",
    "/proc/sys/user/max_user_namespaces": "0",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
}


class IsolationError(RuntimeError):
    """The wanted level of isolation cannot be had here."""


def first_worker(isolation: str, packages: Sequence[str]) -> tuple[Isolation, dict[str, Any], Worker]:
    """Start a helper at the wanted level, or for `auto` at the strongest that works here.

    Args:
        isolation (`str`): `auto`, `namespace`, `bwrap` or `process`.
        packages (`Sequence[str]`): importable packages that programs may use beside the standard library.

    Returns:
        The level, the settings to start further helpers with, and a helper that is ready.

    Raises:
        IsolationError: If the level cannot be had; `auto` never steps down to `process`.
        ImportError: If a package is not found, or a sandbox cannot import it.
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
            settings = _settings(level, folders, [*_python_folders(), *sources])
        except FileNotFoundError as error:
            reasons.append(f"{level}: {error}")
            continue
        worker = start_worker(settings)
        try:
            worker.wait_until_ready()
            return level, settings, worker
        except PackageError as error:
            worker.stop()
            raise ImportError(
                f"packages names {error.package!r}, which a sandbox cannot import ({error}); name what it needs too."
            ) from None
        except HelperError as error:
            worker.stop()
            if error.errno in _SHORTAGES:
                raise IsolationError(_explain_shortage(error, error.errno)) from error
            reasons.append(f"{level}: {error}")
    raise IsolationError(_explain(isolation, reasons))


def start_worker(settings: dict[str, Any]) -> Worker:
    """Start a helper.

    Raises:
        IsolationError: If this machine has no room for one, whatever the level.
    """
    try:
        return Worker(settings)
    except OSError as error:
        if error.errno == errno.EACCES and error.filename == interpreter():
            raise IsolationError(
                f"No helper process can be started: this user may not run {error.filename}; use a Python that it may."
            ) from error
        raise IsolationError(_explain_shortage(error, error.errno)) from error


def _explain_shortage(error: Exception, number: int | None) -> str:
    remedy = {**_SHORTAGES, **_NO_FOLDER}.get(number, "see what the machine is short of")
    return f"No helper process can be started ({error}): {remedy}."


def _settings(level: Isolation, folders: dict[str, str], sources: list[str]) -> dict[str, Any]:
    """Return what is told to a helper, and `command`, what to start it with."""
    settings: dict[str, Any] = {"level": level, "sources": sources, "packages": folders, "command": []}
    settings["own_folder"] = None
    if level == "bwrap":
        from . import bubblewrap  # not where there is no Linux

        settings["command"] = bubblewrap.command(sources, own=os.path.join(PACKAGE_FOLDER, "zygote"))
        settings["own_folder"] = bubblewrap.OWN_FOLDER
        settings["writable"] = bubblewrap.WRITABLE
    return settings


def _explain(isolation: str, reasons: list[str]) -> str:
    hints = [f"{path} is {value}" for path, value in _HINTS.items() if _reads(path) == value]
    remedy = "" if isolation == "process" else ' Where a weaker sandbox will do, ask for it: isolation="process".'
    causes = "; ".join([*reasons, *hints])
    return f"isolation={isolation!r} cannot be had here ({causes}).{remedy}"


def _reads(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _python_folders() -> list[str]:
    """List what the interpreter needs to run and to import its standard library, wherever it is installed."""
    prefixes = {sys.base_prefix, sys.base_exec_prefix}
    folders = [os.path.join(prefix, name) for prefix in prefixes for name in ("bin", "lib", "lib64")]
    folders.append(os.path.dirname(os.__file__))
    return [folder for folder in folders if os.path.isdir(folder)]


def _find_packages(packages: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return each package's folder, and the paths to show for it: its own and that of the libraries it came with."""
    if isinstance(packages, str) or not isinstance(packages, Iterable):
        raise TypeError(f"packages is {packages!r}; give a list of names of packages.")
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
