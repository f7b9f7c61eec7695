"""Downloads of datasets from the Hub, with errors in one sentence."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import WeakFileLock

from .. import __version__
from .upload import HubError, first_line, hub_api, retried

__all__ = ["download_dataset"]


def download_dataset(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Download files of a dataset into the cache of `huggingface_hub`, or find them there.

    An interrupted download continues. Of several processes on one machine, one downloads and the others wait.

    Args:
        repository (`str`):
            Name of the dataset.
        revision (`str`, *optional*):
            Branch, tag or commit. Defaults to the main branch.
        patterns (`Sequence[str]`):
            Patterns of the names of the files.

    Returns:
        `Path`: Folder with the files.

    Raises:
        HubError: If the dataset or the revision does not exist, or the files cannot be downloaded.
    """

    def download() -> Path:
        with _lock(repository):
            return Path(
                snapshot_download(
                    repository,
                    repo_type="dataset",
                    revision=revision,
                    allow_patterns=list(patterns),
                    library_name="trl_akd",
                    library_version=__version__,
                )
            )

    try:
        folder: Path = retried(download)
        return folder
    except (OSError, HTTPError, ValueError) as error:
        raise HubError(_reason(repository, revision, error)) from error


def _lock(repository: str) -> AbstractContextManager[Any]:
    """Return a lock for downloads of a dataset, or none if the cache can only be read, as one that users share."""
    path = Path(constants.HF_HUB_CACHE) / ".locks" / f"{repository.replace('/', '--')}.trl_akd.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o664)
    except OSError:
        return nullcontext()
    lock: AbstractContextManager[Any] = WeakFileLock(path)
    return lock


def _reason(repository: str, revision: str | None, error: BaseException) -> str:
    """Return a sentence about an error with a remedy."""
    again = "start again, which continues the download"
    if isinstance(error, RevisionNotFoundError):
        return f"The dataset {repository!r} on the Hub has no branch, tag or commit {revision!r}; check the revision."
    if isinstance(error, GatedRepoError):
        page = f"{hub_api().endpoint}/datasets/{repository}"
        return (
            f"The dataset {repository!r} on the Hub is gated; accept its terms at {page}, and log in with "
            "`hf auth login` or set HF_TOKEN."
        )
    if isinstance(error, RepositoryNotFoundError) or getattr(
        getattr(error, "response", None), "status_code", None
    ) in (401, 403):
        return (
            f"The Hub has no dataset {repository!r} that your token may read; check the name, or log in with "
            "`hf auth login` or set HF_TOKEN."
        )
    if isinstance(error, OfflineModeIsEnabled) or constants.is_offline_mode():
        return (
            f"The dataset {repository!r} is not in the cache of this machine, and HF_HUB_OFFLINE is set; unset it, or "
            "download the dataset first."
        )
    if isinstance(error, (LocalEntryNotFoundError, HfHubHTTPError, HTTPError)):
        cause = first_line(error.__cause__ or error)
        return (
            f"The dataset {repository!r} could not be downloaded from the Hub ({cause}); check the connection and "
            f"{again}."
        )
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return (
        f"The dataset {repository!r} could not be saved in {constants.HF_HUB_CACHE} ({reason}); free some space, or "
        f"set HF_HOME to a folder on another disk, and {again}."
    )
