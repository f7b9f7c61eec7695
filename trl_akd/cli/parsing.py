"""Parse a recipe and flags into dataclasses with TRL's parser; errors suggest the name that was probably meant."""

import re
import warnings
from argparse import SUPPRESS, Action, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from datetime import date
from difflib import get_close_matches
from enum import Enum
from inspect import cleandoc, get_annotations
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from trl import TrlParser

from ..deprecation import current_names, renamed_fields
from ..generation.loading import read_json_object
from .help import FieldFormatter
from .launching import is_launch_flag
from .library_options import check_library_options
from .recipes import Recipe

__all__ = ["RecipeParser", "field_descriptions", "read_options"]

# In a docstring without its indentation: the section of the arguments, one argument, and a link with its text.
_ARGUMENTS = re.compile(r"^(?:Args|Parameters):\n((?:(?:    .*)?\n)*)", re.M)
_ARGUMENT = re.compile(r"^    (\w+) \(.*?\): *(.*\n(?:(?:     .*)?\n)*)", re.M)
_LINK = re.compile(r"\[(`[^`]+`)\]|\[([^]]+)\]\(\S+\)")

_FREQUENT_FIELDS = (
    *("model_name_or_path", "output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "learning_rate", "bf16", "use_cpu", "use_peft", "lora_r", "eval_strategy"),
    *("save_strategy", "resume_from_checkpoint", "report_to", "push_to_hub", "hub_model_id", "seed"),
)
"""Fields of other packages that the help shows without `all`."""
_FREQUENT = "frequently used fields of TRL and transformers"

_OPTIONS = ("config", "accelerate_config")
"""Flags with a value that are not fields of a recipe."""
_KEYS = {"api_key", "hub_token", "token", "use_auth_token"}
_FILE_FIELDS = {"accelerator_config", "deepspeed", "fsdp_config"}
"""Fields that take a JSON object or the path of a file with one."""


_MORE_TYPES = {
    "device_map": (int, dict),
    "fsdp": (bool, list),
    "resume_from_checkpoint": (bool,),
    "teacher_device": (int,),
}
"""Further types of fields that are declared as text."""


class _Options(ArgumentParser):
    """Flags that are not fields of a recipe."""

    def __init__(self, *, one_process: bool = False) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        options = self.add_argument_group("options")
        options.add_argument(
            "--config",
            metavar="RECIPE",
            help="Recipe: a YAML file with any of the fields below, or the name of one that `trl-akd recipes` lists.",
        )
        if not one_process:
            options.add_argument(
                "--accelerate_config",
                "--accelerate-config",
                metavar="NAME|PATH",
                help="Run through accelerate's launcher with this configuration, such as ddp, zero2, zero3 or "
                "zero3_cpu. Its own flags may follow, such as --num_processes 8.",
            )
        options.add_argument(
            "-h",
            "--help",
            nargs="?",
            choices=["all"],
            default=SUPPRESS,
            metavar="all",
            help="Show this help; with `all`, also every field of TRL and transformers.",
        )

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}.")


def read_options(argv: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Split `--config`, `--accelerate_config` and `--help` from the other flags.

    Example:

    ```python
    >>> options, flags = read_options(["--config=recipe.yaml", "--seed", "1"])
    >>> options.config, flags
    ('recipe.yaml', ['--seed', '1'])

    ```
    """
    return _Options().parse_known_args(argv)


class RecipeParser(TrlParser):
    """Parser of a command's recipe and flags; unknown keys and flags are errors.

    Args:
        dataclass_types (`Iterable[type]`):
            Dataclasses whose fields a recipe may set.
        prog (`str`):
            Command, for the help text.
        description (`str`, *optional*, defaults to `""`):
            Beginning of the help text.
        epilog (`str`, *optional*, defaults to `""`):
            End of the help text.
        one_process (`bool`, *optional*, defaults to `False`):
            Whether to leave out `--accelerate_config`.
    """

    def __init__(
        self,
        dataclass_types: Iterable[Any],
        prog: str,
        *,
        description: str = "",
        epilog: str = "",
        one_process: bool = False,
    ) -> None:
        launching = "" if one_process else " [--accelerate_config NAME|PATH]"
        super().__init__(
            dataclass_types,
            prog=prog,
            usage=f"{prog} [--config RECIPE]{launching} [--field value ...]",
            description=description,
            epilog=epilog,
            formatter_class=FieldFormatter,
            parents=[_Options(one_process=one_process)],
            allow_abbrev=False,
            add_help=False,
        )
        self._owners: dict[str, type] = {}
        texts: dict[str, str] = {}
        for kind in self.dataclass_types:
            self._owners |= {name: base for base in reversed(kind.__mro__) for name in get_annotations(base)}
            for name, (owner, text) in _descriptions(kind).items():
                self._owners[name], texts[name] = owner, text
        for action in self._actions:
            action.help = texts.get(action.dest, action.help)
            if action.dest == "help" and not any(map(_is_foreign, self._owners.values())):
                action.help = "Show this help."
            if getattr(action.type, "__name__", None) == "dict":  # which takes no text
                action.type = _optional_text
        self._types = {
            name: _types(hint) for kind in self.dataclass_types for name, hint in get_type_hints(kind).items()
        }
        self._renamed = {old: new for kind in self.dataclass_types for old, new in renamed_fields(kind).items()}

    def error(self, message: str) -> NoReturn:
        """Raise an error instead of printing hundreds of lines of usage."""
        raise ValueError(f"{message}.")

    def format_help(self, *, every_field: bool = True) -> str:
        """Return the help text, by default with the fields that only TRL and transformers describe."""
        own = [base.__name__ for kind in self.dataclass_types for base in kind.__mro__ if not _is_foreign(base)]
        sections: dict[str, list[Action]] = {title: [] for title in ("options", *own, _FREQUENT)}
        rest: dict[str, list[Action]] = {}
        for action in self._actions:
            owner = self._owners.get(action.dest)
            if owner is None:
                sections["options"].append(action)
            elif action.const is False:
                continue  # `--no_field` is `--field false`
            elif not _is_foreign(owner):
                sections[owner.__name__].append(action)
            elif action.dest in _FREQUENT_FIELDS:
                sections[_FREQUENT].append(action)
            else:
                rest.setdefault(owner.__module__.partition(".")[0], []).append(action)
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        if every_field:
            sections |= {f"other fields of {package}": actions for package, actions in rest.items()}
        for title, actions in sections.items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        if rest and not every_field:
            number, packages = sum(map(len, rest.values())), " and ".join(rest)
            formatter.add_text(f"`{self.prog} --help all` also shows the {number} other fields of {packages}.")
        formatter.add_text(self.epilog)
        return str(formatter.format_help())

    def values(self, recipe: Recipe, flags: Sequence[str] = ()) -> Namespace:
        """Return the value of every field, from the flags, the recipe or the default, in this order of priority.

        Raises:
            ValueError: If a key or a flag is unknown, or a value has the wrong type; the message names it.
        """
        recipe = replace(recipe, values=current_names(recipe.values, self._renamed))
        values: Namespace
        values, unknown = self.parse_known_args(self._current_flags(flags), Namespace(**self._converted(recipe)))
        if unknown:
            raise ValueError(self._unknown_flag(unknown[0]))
        for name, value in vars(values).items():
            if isinstance(value, list):
                setattr(values, name, [item.value if isinstance(item, Enum) else item for item in value])
        self._read_json_objects(values)
        _refuse_keys(values)
        for option in _OPTIONS:
            vars(values).pop(option, None)
        return values

    def dataclasses(self, values: Namespace) -> tuple[Any, ...]:
        """Return one instance of each dataclass.

        Raises:
            ValueError: If a dataclass, or a library that gets a mapping, refuses its values.
        """
        check_library_options(values, self.dataclass_types)
        with warnings.catch_warnings():
            # TRL sets the deprecated name itself, and reads no other.
            warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
            return tuple(
                kind(**{entry.name: getattr(values, entry.name) for entry in fields(kind) if entry.init})
                for kind in self.dataclass_types
            )

    def _current_flags(self, flags: Sequence[str]) -> list[str]:
        """Return flags by the current names of their fields."""
        renamed = {f"--{old}": f"--{new}" for old, new in self._renamed.items()}
        renamed |= {old.replace("_", "-"): new for old, new in renamed.items()}
        names = [flag.partition("=")[0] for flag in flags]
        given = {name[2:].replace("-", "_"): None for name in names if name.startswith("--")}
        current_names(given, self._renamed)  # warns, and refuses a field that is given by both names
        return [renamed.get(name, name) + flag[len(name) :] for name, flag in zip(names, flags, strict=True)]

    def _read_json_objects(self, values: Namespace) -> None:
        """Read fields that take a JSON object.

        Strings are checked, but kept if the field accepts strings, because `TrainingArguments` decodes them and also
        converts the strings in them, such as `"true"`.
        """
        for kind in self.dataclass_types:
            for name in (entry.name for entry in fields(kind) if entry.init):
                types, value = self._types[name], getattr(values, name)
                is_path = name in _FILE_FIELDS and isinstance(value, str) and not value.startswith("{")
                if dict not in types or is_path:
                    continue
                found = read_json_object(name, value)
                if found is None or str not in types:
                    setattr(values, name, found)

    def _converted(self, recipe: Recipe) -> dict[str, Any]:
        # A field that is on by default has a second action, `--no_<field>`, which takes no value from a recipe.
        actions = {action.dest: action for action in reversed(self._actions) if action.dest != "help"}
        for option in _OPTIONS:
            actions.pop(option, None)
            if option in recipe.values:
                raise ValueError(f"{recipe.path} sets `{option}`; give it as the flag `--{option}` instead.")
        for key in recipe.values:
            if key not in actions:
                raise ValueError(f"{recipe.path} has the unknown key `{key}`{_suggestion(str(key), actions)}.")
        return {
            key: _convert(actions[key], self._types[key], value, f"`{key}` in {recipe.path}")
            for key, value in recipe.values.items()
        }

    def _unknown_flag(self, flag: str) -> str:
        if not flag.startswith("-"):
            return f"{flag!r} does not belong to a flag; give it as `--field {flag}`"
        name = flag.partition("=")[0]
        if is_launch_flag(name) and "--accelerate_config" in self._option_string_actions:
            return (
                f"the flag `{name}` is for accelerate's launcher; give `--accelerate_config` too, such as ddp or zero3"
            )
        known = {spelling.lstrip("-").replace("-", "_") for spelling in self._option_string_actions}
        suggestion = _suggestion(name.lstrip("-").replace("-", "_"), known, "--")
        return f"the flag `{name}` is unknown{suggestion or f'; `{self.prog} --help all` lists all flags'}"


def field_descriptions(kind: type) -> dict[str, str]:
    """Return the help text of each field of a dataclass, from its docstring and those of its bases.

    Example:

    ```python
    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Sampling:
    ...     '''Sampling of completions.
    ...
    ...     Args:
    ...         temperature (`float`, *optional*, defaults to `1.0`):
    ...             Temperature. With 0, the most likely
    ...             token is taken.
    ...     '''
    ...
    ...     temperature: float = 1.0
    >>> field_descriptions(Sampling)
    {'temperature': 'Temperature. With 0, the most likely token is taken.'}

    ```
    """
    return {name: text for name, (_, text) in _descriptions(kind).items()}


def _descriptions(kind: type) -> dict[str, tuple[type, str]]:
    """Return the class that describes each field, and its description."""
    found: dict[str, tuple[type, str]] = {}
    for base in reversed(kind.__mro__):
        section = _ARGUMENTS.search(cleandoc(base.__doc__ or "") + "\n")
        for name, text in _ARGUMENT.findall(section[1] if section else ""):
            found[name] = base, _LINK.sub(r"\1\2", " ".join(text.split())).replace("%", "%%")
    return found


def _is_foreign(owner: type) -> bool:
    return owner.__module__.partition(".")[0] in ("builtins", "transformers", "trl")


def _refuse_keys(values: Namespace) -> None:
    """Raise a ValueError if a field has a key: recipes are published, and other users see the flags of a process."""
    given = ["hub_token"] if getattr(values, "hub_token", None) else []
    for name, value in vars(values).items():
        found = read_json_object(name, value) if isinstance(value, str) and value.startswith("{") else value
        given += [f"{name}.{key}" for key in found if key in _KEYS] if isinstance(found, dict) else []
    if given:
        raise ValueError(
            f"`{given[0]}` is set, but keys are read from the environment only; leave it out, and set HF_TOKEN (or "
            "run `hf auth login`) for the Hub, or the variable that `api_key_env` names for a server."
        )


def _optional_text(text: str) -> str | None:
    return None if text.lower() in ("none", "null") else text


def _types(hint: Any) -> set[Any]:
    """Return the types of a field's values, without the types of their elements."""
    return {get_origin(option) or option for option in get_args(hint) or (hint,)}


def _convert(action: Action, types: set[Any], value: Any, where: str) -> Any:
    """Convert a value of a recipe for a field of these types as the flag of `action` converts its text."""
    if action.choices is not None:
        return _choose(list(action.choices), value, where)
    if value is None and action.type in (int, float):
        raise ValueError(f"{where} is empty; give it a value or take the key out.")
    if action.nargs == "+" and value is not None:
        return [_convert_one(action.type, item, where) for item in (value if isinstance(value, list) else [value])]
    if not isinstance(value, str) and (dict in types or type(value) in {*types, *_MORE_TYPES.get(action.dest, ())}):
        return value  # objects are checked by `_read_json_objects`
    return _convert_one(action.type, value, where)


def _convert_one(convert: Any, value: Any, where: str) -> Any:
    kind = convert.__name__
    if kind == "str":
        return _text(value, where)
    try:
        if isinstance(value, str):
            return convert(value)
        if kind == "string_to_bool" and value is not None:
            return value if isinstance(value, bool) else convert(str(value))
        return value if value is None or kind not in ("int", "float") else _number(kind, value)
    except (ValueError, ArgumentTypeError):
        expected = {"int": "a whole number", "float": "a number", "string_to_bool": "true or false"}
        raise ValueError(f"{where} is {value!r}; give {expected.get(kind, kind)}.") from None


def _text(value: Any, where: str) -> str | None:
    """Return a text, or the text of a number; the text of other values in the recipe is not known."""
    if isinstance(value, bool | date):
        kind = "a boolean" if isinstance(value, bool) else "a date"
        raise ValueError(f"{where} is {value}, which YAML reads as {kind}; put it in quotes.")
    if not (value is None or isinstance(value, str | int | float)):
        raise ValueError(f"{where} is {value!r}; give a text.")
    return None if value is None else str(value)


def _number(kind: str, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (kind == "int" and value % 1):
        raise ValueError
    return int(value) if kind == "int" else float(value)


def _choose(choices: list[Any], value: Any, where: str) -> Any:
    if value is False and "no" in choices:
        return "no"  # YAML reads an unquoted no as false
    if value is not None and value not in choices:
        remedy = _suggestion(str(value), map(str, choices)) or f"; choose one of {', '.join(map(str, choices))}"
        raise ValueError(f"{where} is {value!r}{remedy}.")
    return value


def _suggestion(name: str, known: Iterable[str], prefix: str = "") -> str:
    close = [f"`{prefix}{match}`" for match in get_close_matches(name, list(known))]
    return f"; did you mean {' or '.join(close)}?" if close else ""
