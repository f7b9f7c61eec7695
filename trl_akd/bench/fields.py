"""Configuration that all experiments share, and checks of fields whose values a recipe gives as mappings."""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from types import UnionType
from typing import Any, ClassVar, get_args, get_origin

from ..metrics.statistics import PairedMean

__all__ = [
    "Bounds",
    "ExperimentConfig",
    "WorldExperimentConfig",
    "build",
    "check_counts",
    "check_distinct",
    "check_name",
    "check_names",
]

_OF_PAGES = ("page", "introduction")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VALID_NAME = "give letters, digits, '.', '_' and '-', with a letter or digit first"


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Predicted bounds of a mean over seeds, of which at least one is given.

    Args:
        at_least (`float`, *optional*), at_most (`float`, *optional*): the bounds.
    """

    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.at_least, self.at_most) if bound is not None]
        if not bounds:
            raise ValueError("there is no bound; give `at_least` or `at_most`.")
        if not all(map(math.isfinite, bounds)) or bounds != sorted(bounds):
            raise ValueError(
                f"the bounds are at least {self.at_least} and at most {self.at_most}, between which there is no "
                "number; give finite numbers, the lower one as `at_least`."
            )

    def verdict(self, found: PairedMean) -> str:
        """Return `"right"` if the whole interval lies inside the bounds, `"wrong"` if outside, and else `"open"`."""
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        if low <= found.low and found.high <= high:
            return "right"
        return "wrong" if found.high < low or found.low > high else "open"

    def describe_bounds(self) -> str:
        """Return the bounds in words."""
        bounds = (("least", self.at_least), ("most", self.at_most))
        return ", ".join(f"at {end} {bound:g}" for end, bound in bounds if bound is not None)


@dataclass
class ExperimentConfig:
    """
    Configuration that all experiments share.

    Args:
        output_dir (`str`):
            Folder of the runs (`runs.jsonl`), of pre-trained students and of the results.
        name (`str`, *optional*, defaults to `"results"`):
            Name of the results in that folder: `<name>.json`, and `<name>.predictions.json`. Recipes with different
            names share the runs that are equal.
        seeds (`list[int]`, *optional*, defaults to `[0]`):
            Seeds. Runs of the same seed are compared in pairs.
        predictions (`dict`, *optional*):
            Predictions by name, recorded before the first run; others are then refused for this `name`.
        report (`list[str]`, *optional*):
            Write the page of these files of results instead of running anything.
        page (`str`, *optional*):
            File of the page, with the suffix .md, by default beside the first results. Figures are written to a
            folder beside it with its name.
        introduction (`str`, *optional*):
            Markdown file whose text comes first on the page.
    """

    mappings: ClassVar[tuple[str, ...]] = ("predictions",)
    """Fields that are mappings."""
    required: ClassVar[tuple[str, ...]] = ("seeds", "predictions")
    """Fields that must not be empty."""

    output_dir: str = "outputs/bench"
    name: str = "results"
    seeds: list[int] = field(default_factory=lambda: [0])
    predictions: dict[str, Any] | str | None = None
    report: list[str] | None = None
    page: str | None = None
    introduction: str | None = None

    def __post_init__(self) -> None:
        for name in self.mappings:
            setattr(self, name, _read_mapping(name, getattr(self, name)))
        if self.report is not None:
            self._check_report()
            return
        for name in _OF_PAGES:
            value = getattr(self, name)
            if value is not None:
                raise ValueError(f"`{name}` is {value!r}, which has no effect without `report`; leave it out.")
        for name in self.required:
            if not getattr(self, name):
                reason = "write down what you expect before anything runs"
                raise ValueError(f"`{name}` is not set; {reason if name == 'predictions' else 'give it in a recipe'}.")
        check_name("`name` is", self.name)
        check_distinct("seeds", self.seeds)
        self.check_runs()

    def check_runs(self) -> None:
        """Check the fields of one experiment, unless only the page of finished results is made.

        Raises:
            ValueError: If a value is refused.
        """

    def mapping(self, name: str) -> dict[str, Any]:
        """Return the value of a field that is a mapping."""
        value = getattr(self, name)
        assert isinstance(value, dict)
        return value

    def build_each(self, name: str, kind: Any) -> dict[str, Any]:
        """Return the entries of a mapping as dataclasses of a kind; an empty entry has the defaults."""
        return {
            key: build(kind, {} if entry is None else entry, f"`{name}` has {key!r}, in which")
            for key, entry in self.mapping(name).items()
        }

    def _check_report(self) -> None:
        for item in fields(self):
            default = item.default if item.default_factory is MISSING else item.default_factory()
            if item.name not in ("report", *_OF_PAGES) and getattr(self, item.name) not in (default, {}):
                raise ValueError(f"`{item.name}` has no effect with `report`; leave it out.")


@dataclass
class WorldExperimentConfig(ExperimentConfig):
    """
    Configuration that experiments in worlds of generated programs share.

    Args:
        seeds (`list[int]`, *optional*, defaults to `[0]`):
            Seeds. World, data and initial weights are a function of the seed, so that runs are compared in pairs.
        num_tasks (`int`, *optional*, defaults to `100`):
            Number of held-out tasks.
        workers (`int`, *optional*):
            Number of runs at the same time. Defaults to the number of cores.
    """

    num_tasks: int = 100
    workers: int | None = None

    def check_runs(self) -> None:
        """Check the size of the evaluation, and the number of runs at the same time.

        Raises:
            ValueError: If a value is refused.
        """
        check_counts(self, ("num_tasks", "workers"))


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


def _read_mapping(name: str, value: Any) -> dict[str, Any]:
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
