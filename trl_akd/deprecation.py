"""Old names of configuration fields, still accepted with a warning."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

__all__ = ["current_names", "rename_fields", "renamed_fields"]

Config = TypeVar("Config")


def rename_fields(**renamed: str) -> Callable[[type[Config]], type[Config]]:
    """Let a dataclass take the old names of its fields as keyword arguments, with a `FutureWarning`.

    Recipes and flags are read by the same names, see [`current_names`].

    Args:
        **renamed (`str`):
            Current name of a field by its old name.

    Example:

    ```python
    >>> from dataclasses import dataclass
    >>> @rename_fields(n_plans="num_plans")
    ... @dataclass
    ... class Config:
    ...     num_plans: int = 1
    >>> import warnings
    >>> with warnings.catch_warnings(action="ignore"):
    ...     Config(n_plans=3).num_plans
    3

    ```
    """

    def decorate(kind: type[Config]) -> type[Config]:
        initialize: Any = kind.__init__

        @functools.wraps(initialize)
        def __init__(self: Config, *args: Any, **kwargs: Any) -> None:
            initialize(self, *args, **current_names(kwargs, renamed))

        kind.__init__ = __init__  # type: ignore[method-assign, assignment]
        kind._renamed_fields = {**renamed_fields(kind), **renamed}  # type: ignore[attr-defined]
        return kind

    return decorate


def renamed_fields(kind: type) -> Mapping[str, str]:
    """Return the current names of a dataclass's fields by their old names."""
    found: Mapping[str, str] = getattr(kind, "_renamed_fields", {})
    return found


def current_names(values: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Return values by the current names of their fields, and warn of each old one.

    Raises:
        ValueError: If a field is given by both names.
    """
    for old in values.keys() & renamed.keys():
        new = renamed[old]
        if new in values:
            raise ValueError(f"`{old}` is the old name of `{new}`, and both are given; leave out `{old}`.")
        warnings.warn(f"`{old}` is now called `{new}`; the old name will be removed.", FutureWarning, stacklevel=3)
    return {renamed.get(name, name): value for name, value in values.items()}
