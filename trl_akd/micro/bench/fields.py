"""Checks of the fields of an experiment's configuration, whose values a recipe gives as mappings."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, get_args, get_origin

__all__ = [
    "build",
    "check_counts",
    "check_distinct",
    "check_name",
    "check_names",
    "check_required",
    "is_report",
    "read_mapping",
]

_OF_PAGES = ("page", "introduction")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VALID_NAME = "give letters, digits, '.', '_' and '-', with a letter or digit first"


def is_report(config: Any) -> bool:
    """Return whether a configuration only makes the page of finished results.

    Raises:
        ValueError: If it also has settings of runs, or a page but no results.
    """
    if config.report is None:
        for name in _OF_PAGES:
            value = getattr(config, name, None)
            if value is not None:
                raise ValueError(f"`{name}` is {value!r}, which has no effect without `report`; leave it out.")
        return False
    for item in fields(config):
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if item.name not in ("report", *_OF_PAGES) and getattr(config, item.name) not in (default, {}):
            raise ValueError(f"`{item.name}` has no effect with `report`; leave it out.")
    return True


def check_required(config: Any, names: Sequence[str]) -> None:
    """Raise a ValueError if a field is empty."""
    for name in names:
        if not getattr(config, name):
            reason = "; write down what you expect before anything runs" if name == "predictions" else ""
            raise ValueError(f"`{name}` is not set{reason or '; give it in a recipe'}.")


def check_counts(config: Any, names: Sequence[str]) -> None:
    """Raise a ValueError if a field is a number below 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` is {value}; give an integer of at least 1.")


def check_distinct(name: str, values: Sequence[Any]) -> None:
    """Raise a ValueError if values occur twice or, for `seeds`, are not integers."""
    for value in values if name == "seeds" else ():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"`seeds` has {value!r}; give integers.")
    if len(set(values)) < len(values):
        raise ValueError(f"`{name}` is {values}, which names one twice; give each once.")


def check_name(where: str, name: Any) -> None:
    """Raise a ValueError if a name cannot be that of a file or a row."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{where} {name!r}; {_VALID_NAME}.")


def read_mapping(name: str, value: Any) -> dict[str, Any]:
    """Return the mapping in a field, which may be given as JSON; `None` is an empty one.

    Raises:
        ValueError: If it is something else, or a key is not a name.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"`{name}` is not JSON ({error}); give a mapping, in a recipe or as JSON.") from error
    if not isinstance(value, dict):
        raise ValueError(f"`{name}` is {value!r}; give a mapping from names to settings.")
    for key in value:
        check_name(f"`{name}` has the name", key)
    return value


def build(kind: Any, entry: Any, where: str) -> Any:
    """Return a dataclass made of a mapping from its fields to values."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} the settings are {entry!r}; give a mapping.")
    known = {item.name: item for item in fields(kind)}
    for key in entry:
        if key not in known:
            raise ValueError(f"{where} `{key}` is unknown; choose from {', '.join(known)}.")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    for key, value in values.items():
        if not _fits(value, known[key].type):
            raise ValueError(f"{where} `{key}` is {entry[key]!r}; give {_describe(known[key].type)}.")
    for key, item in known.items():
        if key not in values and item.default is MISSING:
            raise ValueError(f"{where} `{key}` is missing; add it.")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from error


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of an annotated type, where an integer is a number and a truth value is none."""
    arguments = get_args(kind)
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in arguments)
    if get_origin(kind) is tuple:
        kinds = arguments[:1] * len(value) if isinstance(value, tuple) and arguments[-1] is ... else arguments
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    """Return an annotated type in words."""
    if isinstance(kind, UnionType):
        return _describe(get_args(kind)[0])
    if get_origin(kind) is tuple:
        return "a list of names" if get_args(kind)[0] is str else "a list of two numbers"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a name"}[kind]


def check_names(where: str, names: Collection[Any], known: Collection[Any]) -> None:
    """Raise a ValueError if a name is unknown."""
    for name in names:
        if name not in known:
            raise ValueError(f"`{where}` has {name!r}, which is not one of {', '.join(map(str, known))}.")
