"""Harness that runs a program as a main program inside the sandbox.

`main_programs` sends the text of this file ahead of the program; nothing here runs in the caller's process. The
harness records resources that the program requests and cannot have, so that a later failure is not attributed to the
program.
"""

import _thread
import atexit
import importlib
import importlib.abc
import io
import linecache
import os
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

FILE = "<candidate>"
GAVE_UP = 113
"""Exit status of a program that waits, or continues for long without a resource that it requested."""

_WATCH_SECONDS = 0.05
_WAIT_SECONDS = 1.0
_LACK_SECONDS = 0.3
_BUSY_SHARE, _BUSY_SHARE_AFTER_LACK = 0.02, 0.25
_CALLERS = 3
_SOCKET_FAMILIES = (2, 10, 30)  # AF_INET, and AF_INET6 on Linux and macOS
_STANDARD_INPUT = (0, "/dev/stdin", "/proc/self/fd/0", "/dev/fd/0", "/dev/tty")
_OUTSIDE = ("_tkinter", "_curses", "termios", "sqlite3", "webbrowser")


class SurroundingsMissing(BaseException):
    """The program failed after it requested a resource that is not available."""


class NotCompiled(BaseException):
    """Python refuses to compile the program."""


def run_as_main(source: str, bound: frozenset[str]) -> None:
    """Run a program as `python program.py` would, without arguments and with empty standard input.

    Args:
        source (`str`): the program's text.
        bound (`frozenset[str]`): all names that the program binds anywhere.

    Raises:
        NotCompiled: If Python refuses to compile it; the text is the exception's class.
        SurroundingsMissing: If it fails for lack of input, arguments, files and the like; likewise.
    """
    try:
        code = compile(source, FILE, "exec", dont_inherit=True)
    except Exception as error:
        raise NotCompiled(type(error).__name__) from None
    linecache.cache[FILE] = (len(source), None, source.splitlines(keepends=True), FILE)
    module = ModuleType("__main__")
    module.__dict__.update(__file__=FILE, __builtins__=__builtins__)
    sys.modules["__main__"] = module
    wants = Wants()
    _take_away(wants)
    _thread.start_new_thread(_watch, (wants,))
    try:
        try:
            exec(code, module.__dict__)
        finally:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
    except SystemExit as error:
        if not _is_failure(error):
            return
        if wants.any:
            raise SurroundingsMissing("SystemExit") from None
        raise
    except BaseException as error:
        if _never_defined(error, bound) or not (wants.any or _comes_from_outside(error)):
            raise
        raise SurroundingsMissing(type(error).__name__) from None


class Wants:
    """Record of requests for resources that are not available."""

    def __init__(self) -> None:
        self.any = False
        self.since: float | None = None  # processor time of the first lack, command-line arguments excepted

    def note(self) -> None:
        """Record a request."""
        self.any = True
        if self.since is None:
            self.since = time.process_time()


class NoInput(io.RawIOBase):
    """Empty standard input that records being read."""

    def __init__(self, wants: Wants) -> None:
        self._wants = wants

    def readable(self) -> bool:
        """Return `True`."""
        return True

    def fileno(self) -> int:
        """Return 0."""
        return 0

    def readinto(self, buffer: Any) -> int:
        """Return the end of the input."""
        self._wants.note()
        return 0


class NoArguments(list[str]):
    """Command line without arguments that records access beyond the program's name."""

    def __init__(self, wants: Wants) -> None:
        super().__init__([FILE])
        self._wants = wants

    def _note(self) -> None:
        if not any(name.partition(".")[0] == "unittest" for name in _callers()):
            self._wants.any = True

    def __getitem__(self, index: Any) -> Any:
        if index != 0:
            self._note()
        return super().__getitem__(index)

    def __len__(self) -> int:
        self._note()
        return super().__len__()

    def __iter__(self) -> Any:
        self._note()
        return super().__iter__()


class LastFinder(importlib.abc.MetaPathFinder):
    """Finder that records modules that no other finder has."""

    def __init__(self, wants: Wants) -> None:
        self._wants = wants

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        """Find nothing."""
        if "." not in name or name.partition(".")[0] not in sys.stdlib_module_names:
            self._wants.note()


def _take_away(wants: Wants) -> None:
    """Replace input, arguments, environment and finders by recording ones."""
    sys.stdin = io.TextIOWrapper(io.BufferedReader(NoInput(wants)), encoding="utf-8")
    sys.argv = NoArguments(wants)
    sys.meta_path.append(LastFinder(wants))
    read, stat = os.read, os.stat

    def read_noting(fd: int, count: int) -> bytes:
        if fd == 0:
            wants.note()
            return b""
        return read(fd, count)

    def stat_noting(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        try:
            return stat(path, *arguments, **options)
        except OSError:
            if "__main__" in _callers():
                wants.note()
            raise

    os.read, os.stat = read_noting, stat_noting
    _note_variables(wants, type(os.environ))
    sys.addaudithook(_audit(wants, os.path.lexists))


def _note_variables(wants: Wants, kind: Any) -> None:
    """Record missing environment variables that the program itself reads without a default."""
    get_item = kind.__getitem__

    def get_item_noting(self: Any, key: str) -> Any:
        try:
            return get_item(self, key)
        except KeyError:
            if "__main__" in _callers():
                wants.note()
            raise

    def get(self: Any, key: str, default: Any = None) -> Any:
        if key in self:
            return get_item(self, key)
        if default is None and "__main__" in _callers():
            wants.note()
        return default

    kind.__getitem__, kind.get = get_item_noting, get


def _audit(wants: Wants, exists: Callable[[Any], bool]) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that records requests for external resources."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path = arguments[0]
            if path in _STANDARD_INPUT or (isinstance(path, str | bytes) and not exists(path)):
                wants.note()
        elif event == "socket.__new__":
            if arguments[1] in _SOCKET_FAMILIES:
                wants.note()
        elif event in ("builtins.input", "socket.getaddrinfo", "subprocess.Popen", "os.system", "webbrowser.open"):
            wants.note()

    return hook


def _watch(wants: Wants) -> None:
    """End the program if it waits, or continues for long after a missing resource."""
    clock, spent = time.monotonic(), time.process_time()
    while True:
        time.sleep(_WATCH_SECONDS)
        now, used = time.monotonic(), time.process_time()
        if wants.since is not None and used - wants.since > _LACK_SECONDS:
            os._exit(GAVE_UP)
        if now - clock >= _WAIT_SECONDS:
            share = _BUSY_SHARE if wants.since is None else _BUSY_SHARE_AFTER_LACK
            if used - spent < share * (now - clock):
                os._exit(GAVE_UP)
            clock, spent = now, used


def _is_failure(error: SystemExit) -> bool:
    return error.code is not None and error.code != 0


def _never_defined(error: BaseException, bound: frozenset[str]) -> bool:
    """Return whether an undefined name could not have been defined by any input."""
    return type(error) is NameError and error.name is not None and error.name not in bound


def _comes_from_outside(error: BaseException) -> bool:
    """Return whether an error comes from the system and not from a line of the program."""
    if isinstance(error, ImportError) and "relative import" in str(error):
        return True
    if isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):
        return (error.name or "").startswith("_")  # a part of Python that this build lacks
    return isinstance(error, OSError | EOFError) or type(error).__module__ in _OUTSIDE


def _callers() -> list[str]:
    """Return the module names of at most three frames above the caller's, nearest first."""
    names: list[str] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and len(names) < _CALLERS:
        names.append(str(frame.f_globals.get("__name__")))
        frame = frame.f_back
    return names
