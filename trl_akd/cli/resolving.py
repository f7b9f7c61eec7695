"""Check a recipe as its command does, without running it."""

from argparse import Namespace
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from ..bench.runs import Command
from ..hub.files import CONSENT
from .methods import Method, find_methods, load_method
from .parsing import RecipeParser
from .recipes import Recipe, find_accelerate_config, find_recipe, read_values

__all__ = ["resolve"]

_EVALUATE = "evaluate"
_LAUNCH = "accelerate_config"
_WITHOUT_EFFECT = (
    *("output_dir", "seed", "report_to", "run_name", "disable_tqdm", "push_to_hub", "save_total_limit", "workers"),
    *("log_level", "log_level_replica", "log_on_each_node", CONSENT),
)
_WITHOUT_EFFECT_PREFIXES = ("hub_", "logging_")
_SUBJECT = "model_name_or_path"  # of an evaluation, which is known after training


def resolve(command: str, recipe: str | None, values: Mapping[str, Any]) -> tuple[Command, Mapping[str, Any]]:
    """Check a recipe of a training method or of `trl-akd evaluate`.

    Args:
        command (`str`):
            `evaluate`, or the name of a method.
        recipe (`str`, *optional*):
            File of the recipe.
        values (`Mapping`):
            Values that replace those of the recipe. `None` removes one, and `accelerate_config` is that flag.

    Returns:
        `tuple`: The command, and the value of every field.

    Raises:
        ValueError: If there is no such method, or it refuses the values.
        FileNotFoundError: If a file does not exist.
    """
    path = None if recipe is None else find_recipe(recipe, "recipe")
    given = {} if path is None else read_values(path)
    given = {key: value for key, value in {**given, **values}.items() if value is not None or key not in values}
    launch = given.pop(_LAUNCH, None)
    method = None if command == _EVALUATE else _method(command)
    parser = _parser(command)
    fields = {key: value for key, value in given.items() if key != "env"}
    if method is None:
        fields.setdefault(_SUBJECT, "student")
    parsed = parser.values(Recipe(Path("the recipe"), fields))
    _check(parser, parsed, method)
    flags = () if launch is None else ("--accelerate_config", str(find_accelerate_config(str(launch))))
    settings = _settings(vars(parsed), _defaults(command))
    if method is None and _SUBJECT not in given:
        del settings[_SUBJECT]
    settings |= {key: value for key, value in (("env", given.get("env")), (_LAUNCH, launch)) if value is not None}
    if hasattr(parsed, CONSENT):
        flags = (*flags, f"--{CONSENT}")
    continues = method is None or method.continues
    return Command(command, given, settings, flags, continues), vars(parsed)


def _method(name: str) -> Method:
    if name not in find_methods():
        raise ValueError(f"{name!r} is not a training method; choose one of {', '.join(find_methods())}.")
    return load_method(name)


@cache
def _parser(command: str) -> RecipeParser:
    if command == _EVALUATE:
        types = import_module(".evaluate", __package__)._argument_types()
    else:
        types = load_method(command).argument_types()
    return RecipeParser(types, prog=f"trl-akd {command}")


@cache
def _defaults(command: str) -> dict[str, Any]:
    return vars(_parser(command).values(Recipe()))


def _check(parser: RecipeParser, values: Namespace, method: Method | None) -> None:
    """Make the command's dataclasses, which check their values; on a machine without an accelerator, for its CPU."""
    import torch

    if method is None:
        from ..evaluation.benchmarks import local_copy
        from ..evaluation.plan_sampling import PlanningSampler

        local_copy(values.benchmark, values.benchmark_path)
        config, planning = parser.dataclasses(values)
        if planning.plan_sampling:
            PlanningSampler(config, planning).check_settings()
        return
    on_cpu = {} if torch.accelerator.is_available() else {"use_cpu": True}
    method.check(*parser.dataclasses(Namespace(**{**vars(values), **on_cpu})))


def _settings(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ from their defaults and may change the result."""
    return {
        name: value
        for name, value in values.items()
        if value != defaults[name] and name not in _WITHOUT_EFFECT and not name.startswith(_WITHOUT_EFFECT_PREFIXES)
    }
