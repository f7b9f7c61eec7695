"""A copy of the built-in names, to undo the changes of a candidate."""

import builtins
import ctypes
import sys
from typing import Any

_FIRST_WITHOUT_VERSIONS = (3, 13)


class BuiltinNames:
    """Copy of the names in `builtins` and their values.

    Copying and restoring them touches all built-in objects, for which a forked process copies 85 pages of memory, a
    tenth of the time of a small program. Therefore a copy is made before the fork, and `restore` does nothing if
    nothing has changed. CPython up to 3.12 gives a dictionary a new version at each change (`ma_version_tag`, see
    PEP 509); elsewhere, the names are assumed to have changed.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = dict(builtins.__dict__)
        self._version = _version_of(builtins.__dict__)
        self._copied = None if self._version is None else self._version.value

    def have_changed(self) -> bool:
        """Whether the names may have changed since they were copied."""
        return self._version is None or self._version.value != self._copied

    def restore(self) -> None:
        """Undo all changes of the names."""
        if self.have_changed():
            builtins.__dict__.clear()
            builtins.__dict__.update(self._values)


def current() -> BuiltinNames:
    """Return a copy of the built-in names, if possible the latest one."""
    global _latest
    if _latest.have_changed():
        _latest = BuiltinNames()
    return _latest


def _version_of(dictionary: dict[str, Any]) -> ctypes.c_uint64 | None:
    if sys.implementation.name != "cpython" or sys.version_info >= _FIRST_WITHOUT_VERSIONS:
        return None
    # PyDictObject: the object's head, the number of items, the version.
    return ctypes.c_uint64.from_address(id(dictionary) + object.__basicsize__ + ctypes.sizeof(ctypes.c_ssize_t))


_latest = BuiltinNames()
