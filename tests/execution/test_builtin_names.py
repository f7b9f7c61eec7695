"""The copy of the built-in names that undoes the changes of a candidate."""

import builtins
import sys
from collections.abc import Callable

import pytest

from trl_akd.execution.zygote.builtin_names import BuiltinNames, current

NAMES = builtins.__dict__


def replace_all() -> None:
    values = dict(NAMES)
    NAMES.clear()
    NAMES.update(values)


def change_in_code() -> None:
    exec("import builtins\nbuiltins.len = max\ndel builtins.len")


CHANGES: dict[str, Callable[[], object]] = {
    "replace": lambda: setattr(builtins, "len", lambda value: 3),
    "replace in the dictionary": lambda: NAMES.__setitem__("len", max),
    "replace and put back": lambda: (len_ := NAMES.pop("len"), NAMES.update(len=len_)),
    "delete": lambda: delattr(builtins, "len"),
    "add": lambda: setattr(builtins, "added", 1),
    "setdefault": lambda: NAMES.setdefault("added", 1),
    "pop": lambda: NAMES.pop("len"),
    "popitem": lambda: NAMES.popitem(),
    "update": lambda: NAMES.update(len=max, added=2),
    "in place": lambda: NAMES.__ior__({"len": max}),
    "clear and fill": replace_all,
    "by code": change_in_code,
}
EQUAL_TO_BEFORE = {"replace and put back", "clear and fill"}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_undone(change: str) -> None:
    names, before = BuiltinNames(), dict(NAMES)
    try:
        CHANGES[change]()
        changed, after = names.have_changed(), dict(NAMES)
    finally:
        names.restore()
        restored = dict(NAMES)
        NAMES.update(before)
    assert changed
    assert (after == before) == (change in EQUAL_TO_BEFORE)
    assert restored == before and list(map(id, restored.values())) == list(map(id, before.values()))


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="dictionaries have no version")
def test_copies_are_kept_while_nothing_changes() -> None:
    names = current()
    assert [len([1]), max(2, 3), "len" in NAMES, NAMES["len"]] == [1, 3, True, len]
    assert not names.have_changed() and current() is names
    try:
        builtins.added = 1  # type: ignore[attr-defined]
        other = current()
    finally:
        del builtins.added  # type: ignore[attr-defined]
    assert other is not names and other.have_changed() and not current().have_changed()
