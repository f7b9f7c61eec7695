"""Uploads to the Hub, with retries, and errors in one sentence."""

import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from .. import __version__
from .files import Files
from .private import check_no_secrets
from .scores import FewerProblemsError, read_card

__all__ = [
    "HubError",
    "first_line",
    "full_name",
    "hub_api",
    "repeat_command",
    "request",
    "retried",
    "update_card",
    "upload",
]

CARD = "README.md"
_ATTEMPTS = 5
_FILES_PER_COMMIT = 100
_SECONDS = 1.0  # before the first retry, doubled before each further one
_EXAMPLE = "me/student"
_XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")
_XET_TOKEN = "/xet-write-token/"


class HubError(OSError):
    """A request to the Hub failed, for a reason that the message states with a remedy."""


def hub_api() -> HfApi:
    """Return a client of the Hub, which is `HF_ENDPOINT` in the environment."""
    return HfApi(library_name="trl_akd", library_version=__version__)


def full_name(repository: str, kept: str, token: str | None = None) -> str:
    """Return the name of a repository with its namespace, by default that of the token's user.

    Raises:
        HubError: If the user of the token cannot be read; `kept` is as in `upload`.
    """
    if "/" in repository:
        return repository
    return f"{request(lambda: hub_api().whoami(token=token)['name'], repository, kept)}/{repository}"


def upload(
    repository: str,
    files: Files,
    *,
    message: str,
    kept: str,
    repo_type: str = "model",
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    replaces: Callable[[str], bool] = lambda name: False,
) -> Any:
    """Create a repository unless it exists, and upload files.

    Up to 100 files are one commit, so that either all of them arrive or none. More files are several commits. The
    last files arrive with the last one, and an earlier version of them is deleted with the first one. An upload that
    is started again sends no file twice. Requests that fail because of the connection or the server are repeated.

    Args:
        repository (`str`):
            Name on the Hub; without a namespace, that of the token's user.
        files (`Files`):
            The files.
        message (`str`):
            Commit message.
        kept (`str`):
            Sentence about what is kept and how to repeat the upload, for errors.
        repo_type (`str`, *optional*, defaults to `"model"`):
            `"model"` or `"dataset"`.
        token (`str`, *optional*):
            Token. Defaults to `HF_TOKEN` or the one that `hf auth login` saved.
        private (`bool`, *optional*):
            Whether a new repository is private. Has no effect on an existing one.
        revision (`str`, *optional*):
            Branch, created unless it exists. Defaults to the main branch.
        replaces (`Callable`, *optional*):
            Returns whether an existing file with a name is deleted, unless it is uploaded again.

    Returns:
        `CommitInfo`.

    Raises:
        ValueError: If a file contains a secret; nothing is uploaded.
        HubError: If the upload fails.
    """
    check_no_secrets(files, token)
    api = hub_api()
    with _hub_errors(repository, kept):
        name = retried(
            lambda: api.create_repo(repository, repo_type=repo_type, private=private, token=token, exist_ok=True)
        ).repo_id
        where = {"repo_type": repo_type, "token": token, "revision": revision}
        if revision is not None:
            retried(lambda: api.create_branch(name, branch=revision, repo_type=repo_type, token=token, exist_ok=True))
        existing = _existing(lambda: api.list_repo_files(name, **where))
        names = list(files)
        parts = [names[start : start + _FILES_PER_COMMIT] for start in range(0, len(names), _FILES_PER_COMMIT)]
        replaced = {old for old in existing if old not in files and replaces(old)}
        if len(parts) > 1:
            replaced.update(set(existing).intersection(parts[-1]))

        def commit(part: Sequence[str], deleted: Iterable[str], suffix: str) -> Any:
            additions = [CommitOperationAdd(path, files[path]) for path in part]
            deletions = [CommitOperationDelete(old) for old in deleted]
            return api.create_commit(name, [*additions, *deletions], commit_message=message + suffix, **where)

        for number, part in enumerate(parts):
            suffix = f" ({number + 1} of {len(parts)})" if len(parts) > 1 else ""
            deleted = sorted(replaced) if number == 0 else ()
            committed = retried(partial(commit, part, deleted, suffix))
        return committed


def update_card(
    repository: str, change: Callable[[ModelCard], None], *, message: str, kept: str, revision: str | None = None
) -> Any:
    """Change the model card of a repository in one commit, which fails if the repository has changed meanwhile.

    Args:
        repository (`str`):
            Name of a model on the Hub.
        change (`Callable`):
            Function that changes the card; an empty one if the repository has none.
        message (`str`):
            Commit message.
        kept (`str`):
            Sentence about what is kept and how to repeat the update, for errors.
        revision (`str`, *optional*):
            Branch. Defaults to the main branch.

    Returns:
        `CommitInfo`.

    Raises:
        HubError: If the card cannot be read or changed.
    """
    api = hub_api()

    def update() -> Any:
        head = api.model_info(repository, revision=revision).sha
        try:
            card = read_card(Path(api.hf_hub_download(repository, CARD, revision=head)))
        except EntryNotFoundError:
            card = ModelCard(f"---\n---\n\n# {repository.rpartition('/')[2]}\n")
        change(card)
        content = f"{str(card).rstrip()}\n".encode()
        check_no_secrets({CARD: content})
        return api.create_commit(
            repository,
            [CommitOperationAdd(CARD, content)],
            commit_message=message,
            revision=revision,
            parent_commit=head,
        )

    return request(update, repository, kept)


def request(call: Callable[[], Any], repository: str, kept: str) -> Any:
    """Return the result of a request about a repository, which is repeated if the connection or the server fails.

    Raises:
        HubError: If it fails in the end, with the sentence `kept` about what is not lost.
    """
    with _hub_errors(repository, kept):
        return retried(call)


@contextmanager
def _hub_errors(repository: str, kept: str) -> Iterator[None]:
    try:
        yield
    except (HubError, FewerProblemsError):
        raise
    except (OSError, RuntimeError, ValueError, HTTPError) as error:
        raise HubError(f"{_reason(repository, error)} {kept}".rstrip()) from error


def _existing(list_files: Callable[[], list[str]]) -> list[str]:
    """Return the files of a repository, or none if it has no commit yet."""
    try:
        found: list[str] = retried(list_files)
    except HfHubHTTPError as error:
        if _status(error) != 404:
            raise
        return []
    return found


def retried(request: Callable[[], Any]) -> Any:
    """Return the result of a request, which is repeated if the connection or the server fails."""
    for attempt in range(_ATTEMPTS):
        try:
            return request()
        except Exception as error:
            if attempt + 1 == _ATTEMPTS or not _is_transient(error):
                raise
            time.sleep(_SECONDS * 2**attempt)
    return None


def _is_transient(error: BaseException) -> bool:
    """Return whether a request may succeed when it is repeated."""
    if isinstance(error, (OfflineModeIsEnabled, LocalTokenNotFoundError)):
        return False
    status = _status(error)
    if status is not None:
        return status == 429 or status >= 500
    names = {kind.__name__ for kind in type(error).__mro__}  # of httpx or httpx2, which the client may use
    if isinstance(error, (ConnectionError, TimeoutError)) or "TransportError" in names:
        return True
    return error.__cause__ is not None and _is_transient(error.__cause__)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error; errors of Xet's client contain it only in their text."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and (found := _XET_STATUS.search(str(error))):
        status = int(found[1])
    return status


def _reason(repository: str, error: BaseException) -> str:
    """Return a sentence about an error with a remedy."""
    status = _status(error)
    if isinstance(error, HFValidationError):
        return f"{repository!r} is not a name on the Hub; give one such as {_EXAMPLE!r}."
    if isinstance(error, OfflineModeIsEnabled):
        return "The Hub was not contacted, because HF_HUB_OFFLINE is set in the environment; unset it."
    if isinstance(error, LocalTokenNotFoundError) or (status == 401 and get_token() is None):
        return f"{repository!r} cannot be uploaded without a token; run `hf auth login`, or set HF_TOKEN."
    if status == 401:
        return f"The Hub does not accept the token for {repository!r}; run `hf auth login`, or set HF_TOKEN."
    if status == 403:
        return (
            f"The token may not write to {repository!r}; create one with write access at "
            "https://huggingface.co/settings/tokens and set HF_TOKEN, or choose another repository."
        )
    if status == 404 and _XET_TOKEN in str(error):
        return f"The Hub ({hub_api().endpoint}) has no Xet storage; set HF_HUB_DISABLE_XET=1 in the environment."
    if status == 404:
        return f"{repository!r}, its namespace or its branch does not exist on the Hub; check the name and the token."
    if _is_transient(error):
        return (
            f"The Hub ({hub_api().endpoint}) could not be reached, or failed, {_ATTEMPTS} times in a row "
            f"({first_line(error)}); check the connection."
        )
    return f"The upload to {repository!r} failed ({first_line(error)})."


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    message = getattr(error, "server_message", None) or str(error)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def repeat_command(folder: Path | str, **flags: Any) -> str:
    """Return a sentence that says where files are and how to upload them again, under a valid name.

    Args:
        folder (`Path` or `str`):
            Folder of the files.
        **flags:
            Fields of `trl-akd push`; those that are `None` are left out.

    Example:

    ```python
    >>> print(repeat_command("run", hub_model_id="me/student", private=True, revision=None))
    Nothing is lost: the files are in 'run', and `trl-akd push run --hub_model_id me/student --private` uploads them.

    ```
    """
    words = [str(folder)]
    for name, value in flags.items():
        if name in ("hub_model_id", "hub_dataset_id") and value is not None:
            value = _valid_name(value)
        if value is not None:
            words += [f"--{name}", *([] if value is True else [str(value).lower() if value is False else str(value)])]
    return f"Nothing is lost: the files are in {str(folder)!r}, and `trl-akd push {shlex.join(words)}` uploads them."


def _valid_name(repository: str) -> str:
    try:
        validate_repo_id(repository)
    except HFValidationError:
        return _EXAMPLE
    return repository
