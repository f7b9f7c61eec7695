"""Files of a saved student that belong in its repository, without paths of this machine."""

import json
import re
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from ..yaml_files import read_yaml
from .private import public_path

__all__ = [
    "ADAPTER_CONFIG",
    "CONFIG",
    "CONSENT",
    "Files",
    "belongs",
    "find_adapter_base",
    "is_adapter",
    "is_replaced",
    "publishable",
    "student_files",
    "with_adapter_base",
]

Files: TypeAlias = Mapping[str, Path | bytes]
"""Files of a repository by name: paths, or contents."""

CONSENT = "allow_code_execution"
"""Setting that allows programs to run, which no published recipe contains."""

ADAPTER_CONFIG, CONFIG = "adapter_config.json", "config.json"
_BELONGS = re.compile(
    r"(?:adapter_)?config\.json|generation_config\.json"
    r"|(?:adapter_)?model(?:-\d+-of-\d+)?\.safetensors(?:\.index\.json)?|plan_head\.safetensors"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\.jinja|additional_chat_templates/[\w-]+\.jinja"
    r"|vocab(?:\.json|\.txt|\.bpe)?|merges\.txt|[\w.-]+\.(?:model|bpe|spm|tiktoken)|(?:pre)?processor_config\.json"
    r"|README\.md|recipe\.yaml|beta\.svg"
)
_SUPERSEDED = re.compile(r"pytorch_model(?:-\d+-of-\d+)?\.bin(?:\.index\.json)?|adapter_model\.bin")
_PATH_FIELD = re.compile(r"path|file|dir|folder")
_WITH_PATHS = ("config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json")
_RECIPE = "recipe.yaml"
_PICKLES = re.compile(r"(?:pytorch|adapter)_model.*\.bin")


def student_files(folder: Path) -> dict[str, Path | bytes]:
    """Return the files of a student, its tokenizer and its card in a folder; other files are left out.

    Configurations are rewritten without absolute paths, and the recipe without the consent to run programs.

    Raises:
        ValueError: If the folder has no model, or its weights are not in safetensors.
    """
    paths = {str(path.relative_to(folder).as_posix()): path for path in sorted(folder.rglob("*")) if path.is_file()}
    modules = {name for name in paths if name.endswith(".py") and "/" not in name} if _has_modules(paths) else set()
    files = {name: path for name, path in paths.items() if belongs(name) or name in modules}
    if not {CONFIG, ADAPTER_CONFIG} & files.keys():
        raise ValueError(
            f"{str(folder)!r} has neither {CONFIG} nor {ADAPTER_CONFIG}; give the folder of a trained student, the "
            "`output_dir` of its training."
        )
    if not any(name.endswith(".safetensors") and "model" in name for name in files):
        pickled = next(filter(_PICKLES.fullmatch, paths), None)
        found = f"{pickled}, a pickle, which is not uploaded" if pickled else "no weights"
        raise ValueError(
            f"{str(folder)!r} has {found}; save the model by `save_pretrained`, which writes safetensors."
        )
    return {name: publishable(path) if "/" not in name else path for name, path in files.items()}


def publishable(path: Path) -> Path | bytes:
    """Return what to publish of a file: its path or, if it must be changed, its new content.

    Absolute paths in configurations are shortened. The consent to run programs is removed from a recipe.
    """
    if path.name in _WITH_PATHS:
        return _rewritten(path)
    return _without_consent(path) if path.name == _RECIPE else path


def belongs(name: str) -> bool:
    """Return whether a file of this name belongs in a student's repository.

    Example:

    ```python
    >>> belongs("model-00001-of-00002.safetensors"), belongs("optimizer.pt"), belongs("checkpoint-5/config.json")
    (True, False, False)

    ```
    """
    return _BELONGS.fullmatch(name) is not None


def is_replaced(name: str) -> bool:
    """Return whether a file of this name, from an earlier upload, belongs to the model that a new upload replaces."""
    return name != "README.md" and (belongs(name) or _SUPERSEDED.fullmatch(name) is not None)


def is_adapter(files: Files) -> bool:
    """Return whether the files are those of a PEFT adapter rather than of a whole model."""
    return ADAPTER_CONFIG in files


def find_adapter_base(files: Files) -> str | None:
    """Return the name or path of an adapter's base model, or `None`."""
    name = _read(files[ADAPTER_CONFIG]).get("base_model_name_or_path") if is_adapter(files) else None
    return str(name) if name else None


def with_adapter_base(files: Files, name: str) -> dict[str, Path | bytes]:
    """Return files in which the adapter's base model has another name."""
    config = _read(files[ADAPTER_CONFIG]) | {"base_model_name_or_path": name}
    return {**files, ADAPTER_CONFIG: _as_json(config)}


def _has_modules(paths: Mapping[str, Path]) -> bool:
    """Return whether a model or tokenizer loads code from its repository."""
    return any("auto_map" in _read(paths[name]) for name in ("config.json", "tokenizer_config.json") if name in paths)


def _rewritten(path: Path) -> Path | bytes:
    """Return a configuration without absolute paths, or its path if it has none."""
    config = _read(path)
    public = _public(config)
    return path if public == config else _as_json(public)


def _without_consent(recipe: Path) -> Path | bytes:
    """Return a recipe without the consent, or its path if it has none. Comments at the beginning are kept."""
    try:
        values = read_yaml(recipe)
    except ValueError:
        return recipe  # which no command reads either
    if not isinstance(values, dict) or CONSENT not in values:
        return recipe
    lines = recipe.read_text(encoding="utf-8").splitlines(keepends=True)
    comments = "".join(takewhile(lambda line: line.startswith("#") or line.isspace(), lines))
    del values[CONSENT]
    return (comments + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)).encode()


def _public(value: Any, key: str = "") -> Any:
    """Return a JSON value without absolute paths: texts that are the value of a path's field, or that exist here."""
    if isinstance(value, dict):
        return {name: _public(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_public(each, key) for each in value]
    if not isinstance(value, str) or "\n" in value or not Path(value).is_absolute() or not Path(value).name:
        return value
    return public_path(value) if _PATH_FIELD.search(key) or Path(value).exists() else value


def _read(content: Path | bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(content if isinstance(content, bytes) else content.read_bytes()))
    except (ValueError, TypeError) as error:
        name = "adapter_config.json" if isinstance(content, bytes) else str(content)
        raise ValueError(f"{name} is not a JSON object ({error}); save the model again.") from error


def _as_json(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
