"""Fixture `hub`, for the tests of all packages."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
from transformers.utils import hub as transformers_hub

from tests.hub.loopback import Hub, serve
from trl_akd.hub import upload

__all__ = ["TOKEN", "hub"]

TOKEN = "hf_" + "secret" * 6


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The loopback server, as the endpoint of `huggingface_hub` in this process, with a token in the environment."""
    with serve() as found:
        cache = tmp_path_factory.mktemp("hub_cache")
        for name, value in {
            "ENDPOINT": found.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": found.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(cache),
            "HF_TOKEN_PATH": str(cache / "token"),
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setattr(transformers_hub, "_hf_api", None)
        monkeypatch.setattr(upload, "_SECONDS", 0.01)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
