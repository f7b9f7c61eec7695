r"""`trl-akd recipes`: list, print and copy the recipes, accelerate configurations and scripts of the package.

```bash
trl-akd recipes list starcoder
trl-akd recipes show recipes/starcoder-7b-to-1b/akd/config_full.yaml
trl-akd recipes copy recipes/starcoder-7b-to-1b/akd/config_full.yaml my_recipe.yaml
accelerate launch --config_file "$(trl-akd recipes path zero3)" --num_processes 8 \
    -m trl_akd.cli.akd --config recipes/starcoder-7b-to-1b/akd/config_full.yaml
```

A name may leave out the folder `recipes` and the suffix `.yaml`. `--config` and `--accelerate_config` take the same
names in any folder; a local file with that path takes precedence.
"""

import argparse
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from ..yaml_files import read_yaml
from .errors import run, user_errors
from .help import Formatter, description, examples

__all__ = [
    "RECIPES",
    "Recipe",
    "find_accelerate_config",
    "find_recipe",
    "main",
    "make_parser",
    "read_recipe",
    "read_values",
    "shipped_files",
]

_PACKAGE = Path(__file__).resolve().parents[1]
RECIPES = next(folder / "recipes" for folder in (_PACKAGE, _PACKAGE.parent) if (folder / "recipes").is_dir())
"""Folder of the recipes: in the installed package or, in a checkout, beside it."""

_CONFIGS = "accelerate_configs"
_TITLES = {
    "recipe": "Recipes, for --config:",
    "accelerate_config": "Accelerate configurations, for --accelerate_config:",
    "other": "Other files:",
}
_SECRET = re.compile(r"(?:^|_)(?:KEY|PASSWORD|SECRET|TOKEN)$", re.IGNORECASE)


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
    if (shipped := _shipped(name)) is not None:
        return shipped
    if path.is_dir() or _is_shipped_folder(name):
        raise FileNotFoundError(f"`{option}` is {name!r}, which is a folder; name a YAML file in it.")
    names = [f"recipes/{recipe}" for recipe in _names() if not recipe.startswith(_CONFIGS)]
    raise FileNotFoundError(
        f"`{option}` is {name!r}, but there is no such file;{_closest(name, names)} check the path, or see "
        "`trl-akd recipes list`."
    )


def read_recipe(name: str | None) -> Recipe:
    """Read the recipe that `find_recipe` finds, and set the environment variables in its `env`.

    Without `name` the recipe is empty. Call this before torch is imported, which reads some variables at import.

    Raises:
        FileNotFoundError: If there is no such recipe.
        ValueError: If it is not a YAML mapping, or sets a key, such as HF_TOKEN, or no text in its `env`.
    """
    if name is None:
        return Recipe()
    path = find_recipe(name)
    values = read_values(path)
    environment = values.pop("env", {})
    if not isinstance(environment, dict):
        raise ValueError(f"`env` in {path} is {environment!r}; give a mapping from variables to values.")
    for variable in filter(_SECRET.search, map(str, environment)):
        raise ValueError(
            f"`env` in {path} sets {variable}, which looks like a key; set it in the shell instead, since recipes are "
            "copied and published."
        )
    for variable, value in environment.items():
        if value is None or isinstance(value, list | dict):
            raise ValueError(
                f"`env` in {path} sets {variable} to {value!r}; give a text, such as '' for an empty one."
            )
    os.environ.update({str(variable): str(value) for variable, value in environment.items()})
    return Recipe(path, values)


def read_values(path: Path) -> dict[str, Any]:
    """Return the content of a recipe, with `env`.

    Raises:
        ValueError: If it is not a YAML mapping, or repeats a key.
    """
    values = read_yaml(path)
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
    if (shipped := _shipped(name, _CONFIGS)) is not None:
        return shipped
    names = list(shipped_files()["accelerate_config"])
    raise FileNotFoundError(
        f"`--accelerate_config` is {name!r}, which is neither a file nor one of {', '.join(names)};"
        f"{_closest(name, names)} check the name."
    )


def shipped_files() -> dict[str, dict[str, Path]]:
    """Return the files of the package, by kind and name.

    Kinds are `"recipe"`, `"accelerate_config"` and `"other"`; names are those that `trl-akd recipes list` shows.

    Example:

    ```python
    >>> shipped_files()["accelerate_config"]["zero3"].name
    'zero3.yaml'

    ```
    """
    files: dict[str, dict[str, Path]] = {kind: {} for kind in _TITLES}
    for name in _names():
        path = RECIPES / name
        if name.startswith(_CONFIGS):
            files["accelerate_config"][path.stem] = path
        else:
            files["recipe" if path.suffix == ".yaml" else "other"][f"recipes/{name}"] = path
    return files


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = _Parser(
        prog="trl-akd recipes",
        description=description(str(__doc__)),
        epilog=examples(str(__doc__)),
        formatter_class=Formatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", dest="action")
    listing = actions.add_parser("list", help="list names and descriptions: all, or those that contain a text")
    listing.add_argument("text", nargs="?", default="", metavar="TEXT", help="text in a name or description")
    for action, text in {"show": "print a file", "path": "print the path of a file, for other programs"}.items():
        actions.add_parser(action, help=text).add_argument("name", metavar="NAME", help="name of the file")
    copy = actions.add_parser("copy", help="copy a file to TO, a file or folder (default: the working directory)")
    copy.add_argument("name", metavar="NAME", help="name of the file")
    copy.add_argument("to", nargs="?", default=".", metavar="TO", help="new file, or folder")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with `argv`, by default the arguments of the process.

    Raises:
        UserError: If there is no file with a name, or a copy would replace a file.
    """
    parser = make_parser()
    with user_errors():
        options = parser.parse_args(argv)
        match options.action:
            case "list":
                print(_list(options.text))
            case "show":
                print(_find(options.name).read_text(encoding="utf-8"), end="")
            case "path":
                print(_find(options.name))
            case "copy":
                print(f"Copied to {_copy(_find(options.name), Path(options.to).expanduser())}.")
            case _:
                parser.print_help()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise an error instead of printing the usage."""
        raise ValueError(f"{message}; `trl-akd recipes --help` shows the actions.")


def _names() -> list[str]:
    """Return the paths of all shipped files relative to the folder of the recipes."""
    files = (path.relative_to(RECIPES) for path in RECIPES.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in files if path.name != "README.md")


def _shipped(name: str, *folders: str) -> Path | None:
    """Return the shipped file with that name, in the folder of the recipes or in one of its `folders`, or `None`."""
    names = [name.removeprefix("recipes/"), *(f"{folder}/{name}" for folder in folders)]
    known = _names()
    return next((RECIPES / found for each in names for found in (each, f"{each}.yaml") if found in known), None)


def _is_shipped_folder(name: str) -> bool:
    folder = f"{name.removeprefix('recipes/').rstrip('/')}/"
    return any(known.startswith(folder) for known in _names())


def _find(name: str) -> Path:
    """Return the shipped file with that name, of any kind.

    Raises:
        FileNotFoundError: If there is none.
    """
    if (shipped := _shipped(name, _CONFIGS)) is not None:
        return shipped
    if _is_shipped_folder(name):
        raise FileNotFoundError(f"{name!r} is a folder; `trl-akd recipes list {name}` lists its files.")
    names = [*(f"recipes/{known}" for known in _names()), *shipped_files()["accelerate_config"]]
    raise FileNotFoundError(
        f"the package has no file {name!r};{_closest(name, names)} `trl-akd recipes list` lists all names."
    )


def _list(text: str) -> str:
    """Return names and descriptions of the files whose name or description contains `text`."""
    sections = []
    for kind, files in shipped_files().items():
        summaries = {name: _summary(path) for name, path in files.items()}
        entries = [
            f"  {name}\n      {summaries[name]}"
            for name, path in files.items()
            if text.lower() in f"recipes/{path.relative_to(RECIPES).as_posix()} {summaries[name]}".lower()
        ]
        sections += ["\n".join([_TITLES[kind], *entries])] if entries else []
    if not sections:
        raise ValueError(f"no name or description contains {text!r}; `trl-akd recipes list` lists all.")
    return "\n\n".join(sections)


def _summary(path: Path) -> str:
    """Return the first sentence of the comment at the beginning of a file."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#!")]
    words = []
    for line in lines:
        if not re.match(r"# \S", line):
            break
        words.append(line[2:])
    return " ".join(words).partition(". ")[0].removesuffix(".")


def _copy(source: Path, target: Path) -> Path:
    """Copy a file to a new file, or into a folder under its own name, and return the new path.

    Raises:
        FileExistsError: If the file exists.
    """
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise FileExistsError(f"{str(target)!r} exists; give another name as the last argument.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


def _closest(name: str, names: list[str]) -> str:
    close = get_close_matches(name, names, n=1)
    return f" did you mean {close[0]!r}? If not," if close else ""


if __name__ == "__main__":
    raise SystemExit(run(main))
