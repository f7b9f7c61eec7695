"""Where recipes and accelerate configurations are: given by path, or among those that come with the package."""

from difflib import get_close_matches
from pathlib import Path

__all__ = ["RECIPES", "find_accelerate_config", "find_recipe"]

RECIPES = (Path(__file__).parents[1] / "recipes").resolve()
"""Folder of the recipes that come with the package; in a checkout, the `recipes` at its top."""


def find_recipe(name: str) -> Path:
    """Return the file called `name`, or the recipe of that name that comes with the package.

    Raises:
        FileNotFoundError: If there is neither.

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
        raise FileNotFoundError(f"`--config` is {name!r}, which is a folder; name a YAML file in it.")
    names = [f"recipes/{recipe.relative_to(RECIPES)}" for recipe in RECIPES.glob("*/*/*.yaml")]
    raise FileNotFoundError(
        f"`--config` is {name!r}, but there is no such file;{_closest(name, names)} check the path."
    )


def find_accelerate_config(name: str) -> Path:
    """Return the file called `name`, or the accelerate configuration of that name that comes with the package.

    Raises:
        FileNotFoundError: If there is neither.

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
