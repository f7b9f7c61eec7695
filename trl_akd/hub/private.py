"""Removal of absolute paths, and checks for secrets, before publication."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub import get_token

__all__ = ["check_no_secrets", "make_redactor", "public_path", "public_settings"]

_SECRET_SETTING = re.compile(
    r"secret|passw|credential|authorization|(?:^|_)key$|^token$|(?:hub|hf|api|auth|access|bearer|session)_?token$",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(r"secret|passw|credential|(?:token|key)$", re.IGNORECASE)
_MIN_SECRET = 8  # shorter values occur in texts by chance


def public_path(name: str) -> str:
    """Return the last part of an absolute path, and other names unchanged.

    Example:

    ```python
    >>> public_path("/home/me/models/student"), public_path("org/student"), public_path("~/rows.jsonl")
    ('student', 'org/student', 'rows.jsonl')

    ```
    """
    if name.startswith(("/", "~")):
        return PurePosixPath(name).name or name
    windows = PureWindowsPath(name)
    return windows.name if windows.is_absolute() and windows.name else name


def public_settings(value: Any) -> Any:
    """Return settings as JSON values without secrets, credentials in addresses and absolute paths.

    Example:

    ```python
    >>> public_settings({"output_dir": "/home/me/run", "hub_token": "hf_x", "base_url": "https://me:x@host/v1"})
    {'output_dir': 'run', 'base_url': 'https://host/v1'}

    ```
    """
    if isinstance(value, Mapping):
        return {str(key): public_settings(each) for key, each in value.items() if not _SECRET_SETTING.search(str(key))}
    if isinstance(value, (list, tuple)):
        return [public_settings(each) for each in value]
    if isinstance(value, str):
        return _without_credentials(value) if "://" in value else public_path(value)
    return value if isinstance(value, (bool, int, float, type(None))) else str(value)


def check_no_secrets(files: Mapping[str, Path | bytes], token: str | None = None) -> None:
    """Check that files to upload contain neither the Hub's token nor a secret of the environment.

    Args:
        files (`Mapping[str, Path | bytes]`):
            Files by their names in the repository. Tensors are not searched.
        token (`str`, *optional*):
            Token of the upload.

    Raises:
        ValueError: If a file contains one; the message has the file and the variable, not the value.
    """
    secrets = dict(_secrets(token))
    for name, content in files.items():
        if name.endswith(".safetensors") or not secrets:
            continue
        text = content if isinstance(content, bytes) else content.read_bytes()
        for origin, value in secrets.items():
            if value.encode() in text:
                raise ValueError(
                    f"{name} contains the value of {origin}, and nothing was uploaded; remove it from the file."
                )


def make_redactor(*folders: Path) -> Callable[[str], str]:
    """Return a function that removes secrets and the places of folders from a text.

    Secrets are the Hub's token and those of the environment. Of a path, what follows the folder is kept; the home
    directory, the working directory and the Python environment are removed in addition to the given folders.

    Args:
        *folders (`Path`):
            Further folders whose place is removed.
    """
    secrets = dict(_secrets(None))
    places = {folder.expanduser().resolve() for folder in (Path.home(), Path.cwd(), Path(sys.prefix), *folders)}
    found = sorted((str(place) for place in places if place.name), key=len, reverse=True)
    pattern = re.compile(rf"(?:(?<=//)|(?<![\w.~/-]))(?:{'|'.join(map(re.escape, found))})(?:/(?=[\w.])|(?![\w.-]))")

    def redact(text: str) -> str:
        for origin, value in secrets.items():
            text = text.replace(value, f"[removed: {origin}]")
        return pattern.sub("", text) if found else text

    return redact


def _secrets(token: str | None) -> Iterator[tuple[str, str]]:
    for origin, value in (("the Hub token", token), ("the Hub token", get_token())):
        if value and len(value) >= _MIN_SECRET:
            yield origin, value
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.search(name) and len(value) >= _MIN_SECRET and not os.path.exists(value):
            yield f"the environment variable {name}", value


def _without_credentials(address: str) -> str:
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="")) if "@" in address else address
