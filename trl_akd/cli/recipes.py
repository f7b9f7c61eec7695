"""Find and read recipes; find accelerate configurations. Both are given by path or by the name of a shipped file."""

import os
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

__all__ = ["RECIPES", "Recipe", "find_accelerate_config", "find_recipe", "read_recipe", "read_values"]

RECIPES = (Path(__file__).parents[1] / "recipes").resolve()
"""Folder of the recipes of the package; in a checkout, `recipes` at its top."""


@dataclass(frozen=True)
class Recipe:
    """Keys and values of a recipe, without `env`, and its path; `None` if a command has flags alone."""

    path: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)


def find_recipe(name: str, option: str = "--config") -> Path:
    """Return the file `name`, or the recipe of the package with that name; `option` is named in errors.

    Raises:
        FileNotFoundError: If neither exists.

    Example:

    ```python
    >>> find_recipe("recipes/starcoder-7b-to-1b/akd/config_full.yaml").name
    'config_full.yaml'

    ```
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = RECIPES / name.removeprefix("recipes/")
    if shipped.is_file():
        return shipped
    if path.is_dir():
        raise FileNotFoundError(f"`{option}` is {name!r}, which is a folder; name a YAML file in it.")
    names = [f"recipes/{recipe.relative_to(RECIPES)}" for recipe in RECIPES.glob("*/*/*.yaml")]
    raise FileNotFoundError(
        f"`{option}` is {name!r}, but there is no such file;{_closest(name, names)} check the path."
    )


def read_recipe(name: str | None) -> Recipe:
    """Read the recipe that `find_recipe` finds, and set the environment variables in its `env`.

    Without `name` the recipe is empty. Call this before torch is imported, which reads some variables at import.

    Raises:
        FileNotFoundError: If there is no such recipe.
        ValueError: If it is not a YAML mapping.
    """
    if name is None:
        return Recipe()
    path = find_recipe(name)
    values = read_values(path)
    environment = values.pop("env", {})
    if not isinstance(environment, dict):
        raise ValueError(f"`env` in {path} is {environment!r}; give a mapping from variables to values.")
    os.environ.update({str(variable): str(value) for variable, value in environment.items()})
    return Recipe(path, values)


def read_values(path: Path) -> dict[str, Any]:
    """Return the content of a recipe, with `env`.

    Raises:
        ValueError: If it is not a YAML mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a mapping; a recipe consists of lines `key: value`.")
    return values


def find_accelerate_config(name: str) -> Path:
    """Return the file `name`, or the accelerate configuration of the package with that name.

    Raises:
        FileNotFoundError: If neither exists.

    Example:

    ```python
    >>> find_accelerate_config("zero3").name
    'zero3.yaml'

    ```
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    folder = RECIPES / "accelerate_configs"
    if (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    names = sorted(config.stem for config in folder.glob("*.yaml"))
    raise FileNotFoundError(
        f"`--accelerate_config` is {name!r}, which is neither a file nor one of {', '.join(names)};"
        f"{_closest(name, names)} check the name."
    )


def _closest(name: str, names: list[str]) -> str:
    close = get_close_matches(name, names, n=1)
    return f" did you mean {close[0]!r}? If not," if close else ""
