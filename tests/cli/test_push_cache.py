"""Teacher caches as datasets on the Hub, with the real client and a local server in place of the Hub."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import DatasetCard
from huggingface_hub.errors import LocalEntryNotFoundError

from tests.hub.fixtures import TOKEN, hub
from tests.hub.loopback import DROP, Hub
from trl_akd.cli import main
from trl_akd.hub import upload
from trl_akd.hub.upload import HubError
from trl_akd.teachers import CachedTeacher
from trl_akd.teachers.cache_files import CachedRow, Manifest, read_manifest, write_manifest, write_shard
from trl_akd.teachers.sparse_codec import SparseCodec

__all__ = ["hub"]

ERROR = {"teacher": 1.0, "cache": 0.9, "gradient_error": 0.1}
MEASURED = {"tokens": 2, "forward_kl": ERROR, "reverse_kl": ERROR}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def make_cache(folder: Path, shards: int = 1, **fields: Any) -> Path:
    """Write a sparse cache of two targets per shard."""
    folder.mkdir(parents=True)
    known: dict[str, Any] = {
        "kind": "sparse", "dtype": "packed", "top_k": 1, "temperature": 2.0, "vocabulary_size": 9, "hidden_size": None,
        "teacher": "org/teacher", "teacher_revision": "v1", "teacher_weights": None, "tokenizer": "t", "rows": shards,
        "tokens": 2 * shards, "rows_digest": "r", "shards": shards, "measured": MEASURED,
    }  # fmt: skip
    manifest = Manifest(**{**known, **fields})
    write_manifest(folder, manifest)
    for number in range(shards):
        ids = np.array([number, 2, 3], dtype=np.int32)
        packed = torch.zeros(2, SparseCodec(9, 1).bytes_per_token, dtype=torch.uint8)
        write_shard(folder, manifest, number, [CachedRow.from_labels(ids, ids)], {"packed": packed})
    return folder


def push(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Push a cache as `me/cache`, and return the error, or an empty text."""
    status = main(["push", str(folder), "--hub_dataset_id", "me/cache"])
    error = capsys.readouterr().err
    assert (status == 2) == ("trl-akd: " in error), error
    return error.strip().splitlines()[-1] if status else ""


def final_loss(run: Path) -> float:
    return float(json.loads((run / "trainer_state.json").read_text())["log_history"][-1]["train_loss"])


@pytest.mark.lengthy
def test_training_from_a_pushed_cache(
    hub: Hub, settings: dict[str, Any], recipe: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, kind = tmp_path / "cache", ["--cache_kind", "sparse", "--cache_top_k", "8"]
    settings |= {"kd_temperature": 2.0}
    assert main(["cache", "--config", recipe(settings), "--output_dir", str(folder), *kind]) == 0
    local = {**settings, "teacher_cache": str(folder), "output_dir": str(tmp_path / "local")}
    assert main(["akd", "--config", recipe(local)]) == 0
    assert push(folder, capsys) == ""
    files = hub.files("me/cache", kind="dataset")
    assert set(files) == {"README.md", "manifest.json", "shard-00000-of-00001.safetensors"}
    assert str(tmp_path).encode() not in hub.received and TOKEN.encode() not in hub.received

    card = DatasetCard(files["README.md"].decode())
    assert card.data.to_dict()["viewer"] is False and "teacher-cache" in card.data.tags
    assert "at temperature 2" in card.text and "license and terms of use" in card.text
    snippet = re.findall(r"```yaml\n(.*?)```", card.text, re.DOTALL)
    fields = yaml.safe_load(snippet[0])
    assert fields == {"teacher_cache": "me/cache", "kd_temperature": 2.0, "max_length": 256} | (
        {"prompt_template": fields["prompt_template"]} if "prompt_template" in fields else {}
    )
    del settings["teacher_model_name_or_path"], settings["kd_temperature"], settings["max_length"]
    shutil.move(folder, tmp_path / "elsewhere")
    head = hub.repositories["dataset", "me/cache"].head
    pushed = {**settings, **fields, "teacher_cache_revision": head, "output_dir": str(tmp_path / "pushed")}
    assert main(["akd", "--config", recipe(pushed)]) == 0
    assert final_loss(tmp_path / "pushed") == final_loss(tmp_path / "local")
    assert main(["akd", "--config", recipe({**pushed, "output_dir": str(tmp_path / "dry")}), "--dry_run"]) == 0

    capsys.readouterr()
    assert main(["cache", "inspect", "me/cache"]) == 0
    printed = capsys.readouterr().out
    assert main(["cache", "inspect", str(tmp_path / "elsewhere")]) == 0
    known = capsys.readouterr().out.splitlines()[2:]  # without the folder and the path of the teacher
    assert [line for line in known if str(tmp_path) not in line] == [
        line for line in printed.splitlines()[2:] if "rows.json" not in line
    ]


@pytest.mark.parametrize(
    ("fields", "teacher"),
    [
        ({}, "org/teacher"),
        ({"teacher": "/home/me/models/big", "teacher_weights": "abc"}, "big"),
        ({"teacher": "outputs/big", "teacher_weights": "abc"}, "big"),
        ({"teacher": "~/big", "teacher_weights": "abc"}, "big"),
        ({"teacher": "/models/on-a-server"}, "on-a-server"),
    ],
)
def test_a_pushed_manifest_has_no_paths_and_fits_its_shards(hub: Hub, tmp_path: Path, capsys, fields, teacher):
    data = {"dataset_name": "/home/me/rows.jsonl", "max_length": 64, "eos_token": "</s>"}
    folder = make_cache(tmp_path / "cache", data=data, **fields)
    assert push(folder, capsys) == ""
    assert b"/home/me" not in hub.received and b"~/" not in hub.received
    cached = CachedTeacher("me/cache")
    assert cached.manifest.teacher == teacher and cached.manifest.identity == read_manifest(folder).identity
    assert cached.manifest.data == {"dataset_name": "rows.jsonl", "max_length": 64, "eos_token": "</s>"}
    assert push(cached.folder, capsys) == "", "a downloaded cache can be pushed again"
    assert CachedTeacher("me/cache").manifest == cached.manifest


def test_many_files_are_several_commits_with_the_manifest_in_the_last(hub: Hub, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(upload, "_FILES_PER_COMMIT", 3)
    assert push(make_cache(tmp_path / "old", 9, teacher="org/old"), capsys) == ""
    assert hub.repositories["dataset", "me/cache"].commits == 4
    hub.files("me/cache", kind="dataset")["LICENSE"] = b"mine"
    folder = make_cache(tmp_path / "cache", 5)
    send, commits = hub.fail, hub.repositories["dataset", "me/cache"].commits
    monkeypatch.setattr(upload, "_FILES_PER_COMMIT", 4)
    create_commit = upload.HfApi.create_commit

    def fail_second(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "(2 of 2)" in kwargs["commit_message"]:
            send("POST .*/commit/", 403)
        return create_commit(self, *args, **kwargs)

    monkeypatch.setattr(upload.HfApi, "create_commit", fail_second)
    error = push(folder, capsys)
    assert "The token may not write to 'me/cache'" in error and f"trl-akd push {folder}" in error
    assert hub.repositories["dataset", "me/cache"].commits == commits + 1
    with pytest.raises(ValueError, match=r"a dataset on the Hub without manifest.json: .* its upload was interrupted"):
        CachedTeacher("me/cache")
    monkeypatch.setattr(upload.HfApi, "create_commit", create_commit)
    assert push(folder, capsys) == ""
    shards = {f"shard-{number:05d}-of-00005.safetensors" for number in range(5)}
    assert set(hub.files("me/cache", kind="dataset")) == {"README.md", "manifest.json", "LICENSE", *shards}
    assert CachedTeacher("me/cache").manifest.rows == 5


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: write_manifest(folder, Manifest(**{**vars(read_manifest(folder)), "measured": None})),
         "is a teacher cache that is not complete; run the same `trl-akd cache` command again"),
        (lambda folder: next(folder.glob("shard-00001*")).unlink(), "has 1 of 2 shards; copy the whole cache"),
        (lambda folder: next(folder.glob("shard-00001*")).write_bytes(b"x"), "is damaged or truncated"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").unlink(), "has neither config.json nor"),
    ],
    ids=["not measured", "missing shard", "damaged shard", "damaged manifest", "no manifest"],
)  # fmt: skip
def test_an_incomplete_cache_is_not_pushed(hub: Hub, tmp_path: Path, capsys, damage, complaint):
    folder = make_cache(tmp_path / "cache", 2)
    damage(folder)
    assert main(["push", str(folder)]) == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1] and not hub.repositories


@pytest.mark.parametrize(
    ("name", "revision", "failures", "complaint"),
    [
        ("me/other", None, (), "`teacher_cache` is 'me/other', which is not a folder. The Hub has no dataset"),
        ("me/cache", "v9", (), "The dataset 'me/cache' on the Hub has no branch, tag or commit 'v9'"),
        ("me/cache", None, (("GET /api", [DROP] * 9),), "could not be downloaded from the Hub"),
        ("me/cache", None, (("GET /api", [500] * 9),), "could not be downloaded from the Hub"),
        ("me/cache", None, (("GET .*/resolve/", [403] * 9),), "The Hub has no dataset 'me/cache' that your token may"),
        ("me/rows", None, (), "a dataset on the Hub without manifest.json"),
        ("me/damaged", None, (), "manifest.json is damaged"),
    ],
)  # fmt: skip
def test_caches_that_cannot_be_downloaded(hub: Hub, tmp_path: Path, capsys, name, revision, failures, complaint):
    assert push(make_cache(tmp_path / "cache"), capsys) == ""
    hub.add("me/rows", {"rows.parquet": b""}, kind="dataset")
    hub.add("me/damaged", {"manifest.json": b'{"format": 1, "kind": "hidden", "dtype": "load"}'}, kind="dataset")
    for pattern, outcomes in failures:
        hub.fail(pattern, *outcomes)
    assert main(["cache", "inspect", name, *(["--revision", revision] if revision else [])]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert complaint in error[-1], error


def test_a_lost_connection_during_a_download(hub: Hub, tmp_path: Path, capsys):
    assert push(make_cache(tmp_path / "cache", 3), capsys) == ""
    hub.fail("GET .*/resolve/.*shard-00001", DROP, 500, DROP)
    assert CachedTeacher("me/cache").manifest.rows == 3


def test_downloaded_files_are_read_where_nothing_can_be_written(hub: Hub, tmp_path: Path, capsys):
    assert push(make_cache(tmp_path / "cache", 2), capsys) == ""
    locks = CachedTeacher("me/cache").folder.parents[2] / ".locks"
    shutil.rmtree(locks)
    locks.write_text("in place of a folder that this user cannot write to, which does not stop root")
    assert CachedTeacher("me/cache").manifest.rows == 2


def test_a_revision_of_a_folder(tmp_path: Path):
    with pytest.raises(ValueError, match=r"`teacher_cache_revision` is 'v1', but `teacher_cache` is the folder"):
        CachedTeacher(make_cache(tmp_path / "cache"), "v1")


def test_an_error_without_a_message(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    def time_out(*args: Any, **kwargs: Any) -> str:
        raise LocalEntryNotFoundError("not found") from TimeoutError()

    monkeypatch.setattr("trl_akd.hub.download.snapshot_download", time_out)
    with pytest.raises(HubError, match=r"could not be downloaded from the Hub \(TimeoutError\)"):
        CachedTeacher("me/cache")


def test_the_card_of_a_cache_names_the_namespace_of_the_user(hub: Hub, tmp_path: Path):
    assert main(["push", str(make_cache(tmp_path / "cache"))]) == 0
    card = hub.files("me/cache", kind="dataset")["README.md"]
    assert b"teacher_cache: me/cache" in card and b"trl-akd cache inspect me/cache" in card
