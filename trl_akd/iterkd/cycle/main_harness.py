"""Harness that runs a program as a main program inside the sandbox.

`main_programs` sends the text of this file together with the program; nothing here runs in the caller's process. The
harness records requests for resources that are not available, so that a later failure is not attributed to the
program.
"""

import _thread
import atexit
import importlib
import importlib.abc
import io
import linecache
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

FILE = "<candidate>"
GAVE_UP = 113
"""Exit status of a program that waits, or computes for long after it requested a missing resource."""

_WATCH_INTERVAL = 0.05  # seconds
_MAX_WAIT = 1.0  # seconds of wall time
_MAX_TIME_AFTER_REQUEST = 0.3  # seconds of processor time
_MIN_LOAD, _MIN_LOAD_AFTER_REQUEST = 0.02, 0.25  # processor time per wall time of a program that does not wait
_MAX_CALLERS = 3
_SOCKET_FAMILIES = (2, 10, 30)  # AF_INET, and AF_INET6 on Linux and macOS
_STANDARD_INPUT = (0, "/dev/stdin", "/proc/self/fd/0", "/dev/fd/0", "/dev/tty")
_EXTERNAL_MODULES = ("_tkinter", "_curses", "termios", "sqlite3", "webbrowser", "locale")
_NOT_DATA = {"candidate.py"}  # files in the working folder that belong to the sandbox
_PATTERN = re.compile(r"[*?\[]")

# Audit events: requests whatever their arguments, and those whose first argument is a path.
_REQUESTS = (
    *("builtins.input", "subprocess.Popen", "os.system", "webbrowser.open"),
    *("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"),
)
_READS = (
    *("os.chdir", "shutil.copyfile", "shutil.copytree", "shutil.move", "shutil.rmtree"),
    "shutil.unpack_archive",
)
_CHANGES = ("os.rename", "os.remove", "os.rmdir")  # with descriptors of folders, or -1
_LISTS = ("os.listdir", "os.scandir", "glob.glob", "pathlib.Path.glob", "pathlib.Path.rglob")


class ResourceMissing(BaseException):
    """The program failed after it requested a resource that is not available."""


class NotCompiled(BaseException):
    """The program does not compile."""


def run_as_main(source: str, bound: frozenset[str]) -> None:
    """Run a program as `python program.py` would, without arguments and with empty standard input.

    Args:
        source (`str`):
            Text of the program.
        bound (`frozenset[str]`):
            Names that the program binds in any scope.

    Raises:
        NotCompiled: If the program does not compile; the message is the class name of the exception.
        ResourceMissing: If it fails because input, arguments, files and the like are missing; the message is the same.
    """
    try:
        code = compile(source, FILE, "exec", dont_inherit=True)
    except Exception as error:
        raise NotCompiled(type(error).__name__) from None
    linecache.cache[FILE] = (len(source), None, source.splitlines(keepends=True), FILE)
    module = ModuleType("__main__")
    module.__dict__.update(__file__=FILE, __builtins__=__builtins__)
    sys.modules["__main__"] = module
    requests = MissingResources()
    _record_requests(requests)
    _thread.start_new_thread(_watch, (requests,))
    try:
        try:
            exec(code, module.__dict__)
        finally:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
    except SystemExit as error:
        if not _is_failure(error):
            return
        if requests.any:
            raise ResourceMissing("SystemExit") from None
        raise
    except BaseException as error:
        if _is_never_defined(error, bound) or not (requests.any or _is_external(error)):
            raise
        raise ResourceMissing(type(error).__name__) from None


class MissingResources:
    """Record of requests for resources that are not available."""

    def __init__(self) -> None:
        self.any = False
        self.since: float | None = None  # processor time of the first request other than for arguments

    def record(self) -> None:
        """Record a request."""
        self.any = True
        if self.since is None:
            self.since = time.process_time()


class EmptyInput(io.RawIOBase):
    """Empty standard input that records read requests."""

    def __init__(self, requests: MissingResources) -> None:
        self._requests = requests

    def readable(self) -> bool:
        """Return `True`."""
        return True

    def fileno(self) -> int:
        """Return 0."""
        return 0

    def readinto(self, buffer: Any) -> int:
        """Return 0, the end of the input."""
        self._requests.record()
        return 0


class EmptyArguments(list[str]):
    """Command line without arguments that records access to anything but the program's name."""

    def __init__(self, requests: MissingResources) -> None:
        super().__init__([FILE])
        self._requests = requests

    def _record(self) -> None:
        if not any(name.partition(".")[0] == "unittest" for name in _callers()):
            self._requests.any = True

    def __getitem__(self, index: Any) -> Any:
        if index != 0:
            self._record()
        return super().__getitem__(index)

    def __len__(self) -> int:
        self._record()
        return super().__len__()

    def __iter__(self) -> Any:
        self._record()
        return super().__iter__()


class LastFinder(importlib.abc.MetaPathFinder):
    """Last finder of modules, which records those that no other finder has found."""

    def __init__(self, requests: MissingResources) -> None:
        self._requests = requests

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        """Return no module."""
        if "." not in name or name.partition(".")[0] not in sys.stdlib_module_names:
            self._requests.record()


def _record_requests(requests: MissingResources) -> None:
    """Replace input, arguments, environment and finders by objects that record requests."""
    sys.stdin = io.TextIOWrapper(io.BufferedReader(EmptyInput(requests)), encoding="utf-8")
    sys.argv = EmptyArguments(requests)
    sys.meta_path.append(LastFinder(requests))
    read, stat = os.read, os.stat

    def recording_read(fd: int, count: int) -> bytes:
        if fd == 0:
            requests.record()
            return b""
        return read(fd, count)

    def recording_stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        try:
            return stat(path, *arguments, **options)
        except OSError:
            callers = _callers()
            if "__main__" in callers and "os" not in callers:  # `os.makedirs` checks what it creates
                requests.record()
            raise

    which = shutil.which

    def recording_which(*arguments: Any, **options: Any) -> Any:
        found = which(*arguments, **options)
        if found is None:
            requests.record()
        return found

    os.read, os.stat, shutil.which = recording_read, recording_stat, recording_which
    _record_variables(requests, type(os.environ))
    sys.addaudithook(_audit(requests, os.path.lexists))


def _record_variables(requests: MissingResources, kind: Any) -> None:
    """Record missing environment variables that the program itself reads without a default."""
    get_item = kind.__getitem__

    def recording_get_item(self: Any, key: str) -> Any:
        try:
            return get_item(self, key)
        except KeyError:
            if "__main__" in _callers():
                requests.record()
            raise

    def get(self: Any, key: str, default: Any = None) -> Any:
        if key in self:
            return get_item(self, key)
        if default is None and "__main__" in _callers():
            requests.record()
        return default

    kind.__getitem__, kind.get = recording_get_item, get


def _audit(requests: MissingResources, exists: Callable[[Any], bool]) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that records requests for external resources."""

    start, listdir = os.getcwd(), os.listdir
    looking = False  # in a folder, which is an event as well

    def is_missing(path: Any, *, may_be_created: bool = False) -> bool:
        """Return whether a path does not exist, or its folder if the file may be created."""
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # a file descriptor
        return not exists(os.path.dirname(os.path.abspath(path)) if may_be_created else path)

    def has_no_data(folder: Any) -> bool:
        """Return whether a folder is the working folder at the start, and has no files but the sandbox's."""
        is_start = not isinstance(folder, int) and os.path.abspath(os.fsdecode(folder)) == start
        return is_start and _NOT_DATA.issuperset(listdir(start))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal looking
        if event == "open":
            path, mode, flags = arguments
            by_descriptor = mode is None and not os.path.isabs(path)  # may be relative to an open folder
            missing = not by_descriptor and is_missing(path, may_be_created=bool(flags & os.O_CREAT))
            missing = missing or path in _STANDARD_INPUT
        elif event in _LISTS and not looking:
            folder = _folder(event, arguments[0])
            looking = True
            missing = is_missing(folder) or ("__main__" in _callers() and has_no_data(folder))
            looking = False
        elif event in _CHANGES:
            missing = not any(isinstance(fd, int) and fd >= 0 for fd in arguments) and is_missing(arguments[0])
        elif event == "sqlite3.connect":
            missing = is_missing(arguments[0], may_be_created=True)
        elif event == "socket.__new__":
            missing = arguments[1] in _SOCKET_FAMILIES
        else:
            missing = event in _REQUESTS or (event in _READS and is_missing(arguments[0]))
        if missing:
            requests.record()

    return hook


def _folder(event: str, path: Any) -> Any:
    """Return the folder that is listed, or that contains everything that can match a pattern."""
    if event == "glob.glob":
        return os.path.dirname(_PATTERN.split(os.fsdecode(path))[0]) or "."
    return "." if path is None else path


def _watch(requests: MissingResources) -> None:
    """End the program if it waits, or computes for long after it requested a missing resource."""
    wall_start, processor_start = time.monotonic(), time.process_time()
    while True:
        time.sleep(_WATCH_INTERVAL)
        wall, processor = time.monotonic(), time.process_time()
        if requests.since is not None and processor - requests.since > _MAX_TIME_AFTER_REQUEST:
            os._exit(GAVE_UP)
        if wall - wall_start >= _MAX_WAIT:
            load = _MIN_LOAD if requests.since is None else _MIN_LOAD_AFTER_REQUEST
            if processor - processor_start < load * (wall - wall_start):
                os._exit(GAVE_UP)
            wall_start, processor_start = wall, processor


def _is_failure(error: SystemExit) -> bool:
    return error.code is not None and error.code != 0


def _is_never_defined(error: BaseException, bound: frozenset[str]) -> bool:
    """Return whether an undefined name is not defined anywhere in the program."""
    return type(error) is NameError and error.name is not None and error.name not in bound


def _is_external(error: BaseException) -> bool:
    """Return whether an error comes from the system and not from the program itself."""
    if isinstance(error, ImportError) and "relative import" in str(error):
        return True
    if isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):
        return (error.name or "").startswith("_")  # a part of Python that this build lacks
    return isinstance(error, OSError | EOFError) or type(error).__module__ in _EXTERNAL_MODULES


def _callers() -> list[str]:
    """Return the module names of at most three frames above the caller, nearest first."""
    names: list[str] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and len(names) < _MAX_CALLERS:
        names.append(str(frame.f_globals.get("__name__")))
        frame = frame.f_back
    return names
