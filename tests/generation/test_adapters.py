"""Which models are adapters, of which base models, and what is loaded for them: the same as in transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import huggingface_hub.hf_api
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.hub.fixtures import hub
from tests.hub.loopback import Hub
from trl_akd.generation.loading import find_base_model, load_model, path_in_repository

__all__ = ["hub"]

LOCAL = {
    "adapter": ("adapter", {}, "base"),
    "full model": ("full", {}, None),
    "both": ("both", {}, None),
    "adapter in a subfolder": ("repository", {"subfolder": "adapter"}, "base"),
    "full model in a subfolder": ("repository", {"subfolder": "full"}, None),
    "both in a subfolder": ("repository", {"subfolder": "both"}, None),
    "full model above an adapter": ("full_above", {}, None),
    "adapter below a full model": ("full_above", {"subfolder": "adapter"}, "base"),
    "adapter above a full model": ("adapter_above", {}, "base"),
    "full model below an adapter": ("adapter_above", {"subfolder": "full"}, None),
}
ON_THE_HUB = {
    name: (folder, source, "base" if name.startswith("both") else base)
    for name, (folder, source, base) in LOCAL.items()
}
# transformers searches a subfolder for one of the files and the folder above it for the other.
NOT_IN_TRANSFORMERS = {
    "adapter in a subfolder",
    "both in a subfolder",
    "adapter below a full model",
    "full model below an adapter",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with a base model, an adapter of it, another model, and both of the latter."""
    home = tmp_path_factory.mktemp("models")
    for name in ("base", "full"):
        torch.manual_seed(len(name))
        model = tiny.model()
        with torch.no_grad():
            model.get_input_embeddings().weight.normal_()
        model.save_pretrained(home / name)
    save_adapter(home / "adapter", home / "base")
    shutil.copytree(home / "full", home / "both")
    shutil.copytree(home / "adapter", home / "both", dirs_exist_ok=True)
    for name in ("adapter", "full", "both"):
        shutil.copytree(home / name, home / "repository" / name)
    shutil.copytree(home / "full", home / "full_above")
    shutil.copytree(home / "adapter", home / "full_above" / "adapter")
    shutil.copytree(home / "adapter", home / "adapter_above")
    shutil.copytree(home / "full", home / "adapter_above" / "full")
    (home / "empty").mkdir()
    return home


def save_adapter(folder: Path, base: Path, **settings: Any) -> None:
    options = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), options).save_pretrained(folder)
    written = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**written, **settings}))


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put folders into the cache of the Hub, as revisions of a repository, and return the cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def published(name: str, cache: str = "cache", **revisions: Path) -> Path:
        repository = tmp_path / cache / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        for number, (revision, folder) in enumerate(revisions.items(), start=1):
            (repository / "refs" / revision).write_text(f"{number:040x}")
            shutil.copytree(folder, repository / "snapshots" / f"{number:040x}")
        return tmp_path / cache

    return published


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(6)[None]).logits


def check(name: str, source: dict[str, Any], base: Path | None, expected: Any) -> None:
    found = find_base_model(name, source)
    assert (None if found is None else found[0]) == (None if base is None else str(base))
    loaded = load_model(name, source)
    assert hasattr(loaded, "peft_config") == hasattr(expected, "peft_config")
    torch.testing.assert_close(logits(loaded), logits(expected))


@pytest.mark.parametrize("case", LOCAL)
def test_folders(home: Path, case: str):
    folder, source, base = LOCAL[case]
    name = str(home / folder)
    if case in NOT_IN_TRANSFORMERS:
        with pytest.raises((OSError, ValueError)):
            AutoModelForCausalLM.from_pretrained(name, **source)
    expected = AutoModelForCausalLM.from_pretrained(path_in_repository(name, source))
    check(name, source, base and home / base, expected)


@pytest.mark.parametrize("case", ON_THE_HUB)
def test_repositories_on_the_hub(home: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, case: str):
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.endpoint)  # for PEFT
    folder, source, base = ON_THE_HUB[case]
    files = (path for path in (home / folder).rglob("*") if path.is_file())
    hub.add("me/x", {path.relative_to(home / folder).as_posix(): path.read_bytes() for path in files})
    if case in NOT_IN_TRANSFORMERS:
        with pytest.raises((OSError, ValueError)):
            AutoModelForCausalLM.from_pretrained("me/x", **source)
        expected = AutoModelForCausalLM.from_pretrained(home / ("full" if base is None else "adapter"))
    else:
        expected = AutoModelForCausalLM.from_pretrained("me/x", **source)
    check("me/x", source, base and home / base, expected)


@pytest.mark.parametrize(("revision", "folder", "base"), [("v1", "full", None), ("v2", "adapter", "base")])
def test_revisions(home: Path, publish: Any, revision: str, folder: str, base: str | None):
    publish("me/x", v1=home / "full", v2=home / "adapter")
    expected = AutoModelForCausalLM.from_pretrained("me/x", revision=revision)
    check("me/x", {"revision": revision}, base and home / base, expected)


def test_the_revision_of_the_base_model_is_that_in_the_configuration(home: Path, publish: Any, tmp_path: Path):
    """transformers takes that of the adapter."""
    save_adapter(tmp_path / "adapter", home / "base", base_model_name_or_path="me/base", revision="v2")
    publish("me/base", v1=home / "full", v2=home / "base")
    publish("me/x", v1=tmp_path / "adapter")
    assert find_base_model("me/x", {"revision": "v1"}) == ("me/base", {"revision": "v2"})
    loaded = load_model("me/x", {"revision": "v1"})
    base = AutoModelForCausalLM.from_pretrained(home / "base")
    assert torch.equal(loaded.get_input_embeddings().weight, base.get_input_embeddings().weight)


@pytest.mark.parametrize(("folder", "base"), [("adapter", "base"), ("full", None)])
def test_another_cache(home: Path, publish: Any, folder: str, base: str | None):
    """transformers searches for adapters in the default cache, too."""
    publish("me/x", main=home / "adapter" if base is None else home / "full")
    source = {"cache_dir": str(publish("me/x", "other", main=home / folder))}
    check("me/x", source, base and home / base, AutoModelForCausalLM.from_pretrained(home / folder))


@pytest.mark.parametrize(
    ("name", "source"),
    [("missing", {}), ("empty", {}), ("full", {"subfolder": "missing"}), ("adapter", {"subfolder": "missing"})],
    ids=str,
)
def test_nothing_there(home: Path, name: str, source: dict[str, Any]):
    with pytest.raises((OSError, ValueError)) as expected:
        AutoModelForCausalLM.from_pretrained(str(home / name), **source)
    with pytest.raises((OSError, ValueError)) as found:
        load_model(str(home / name), source)
    assert isinstance(found.value, type(expected.value))


def test_no_such_revision(home: Path, publish: Any):
    publish("me/x", main=home / "adapter")
    with pytest.raises(OSError, match="couldn't find them"):
        load_model("me/x", {"revision": "v9"})
