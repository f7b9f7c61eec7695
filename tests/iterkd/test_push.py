"""Uploads to the Hub, which is replaced by a local server."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_dataset
from transformers import trainer as transformers_trainer
from transformers.utils import hub as transformers_hub

from tests import tiny
from tests.iterkd import cycle_world
from tests.iterkd.test_run_settings import lora
from trl_akd import AKDConfig, AKDTrainer
from trl_akd.iterkd.cycle.ledger import upload_ledger
from trl_akd.iterkd.iterkd_config import IterKDConfig
from trl_akd.iterkd.iterkd_trainer import IterKDTrainer

pytestmark = pytest.mark.lengthy

TOKEN = "hf_" + "secret" * 4


class Hub:
    """Mock of `HfApi` that keeps the uploaded files."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.uploads: list[tuple[str, dict[str, bytes]]] = []

    def create_repo(self, repo_id: str, **settings: Any) -> "Hub":
        self.repo_id = repo_id
        self.repositories[repo_id] = settings
        return self

    def upload_folder(self, *, repo_id: str, folder_path: Any, **settings: Any) -> str:
        folder = Path(folder_path)
        ignored = settings.get("ignore_patterns") or []
        assert not ignored, "everything in the folder is meant to be uploaded"
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.uploads.append((repo_id, files))
        return "done"

    def create_commit(self, *, repo_id: str, operations: Any, **settings: Any) -> None:
        files = {}
        for operation in operations:
            content = operation.path_or_fileobj
            files[operation.path_in_repo] = content if isinstance(content, bytes) else Path(content).read_bytes()
        self.uploads.append((repo_id, files))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()
    for module in (transformers_trainer, transformers_hub):
        monkeypatch.setattr(module, "hf_api", lambda: found)
    yield found


TOKENIZER = {"special_tokens_map.json", "chat_template.jinja"}  # which versions save or not
STUDENT = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
           "tokenizer_config.json"}  # fmt: skip


@pytest.mark.parametrize(("adapted", "with_ledger"), [(False, True), (True, False)])
def test_a_push_of_cycles(hub: Hub, tmp_path: Path, adapted: bool, with_ledger: bool):
    cycle_world.prepare(tmp_path)
    hub_settings = {"push_to_hub": True, "hub_model_id": "me/student", "hub_token": TOKEN, "save_steps": 1}
    settings = cycle_world.settings(
        tmp_path, tmp_path / "run", **hub_settings, push_ledger_to_hub=with_ledger, keep_unverified=True, max_steps=2
    )
    trainer = IterKDTrainer(
        str(tmp_path / "model"),
        args=IterKDConfig(**settings),
        train_dataset=Dataset.from_list(cycle_world.questions(4)),
        text_teacher=cycle_world.RuleTeacher(),
        peft_config=lora() if adapted else None,
    )
    trainer.train()
    assert not hub.uploads, "nothing is pushed between cycles"
    (tmp_path / "run" / "private.txt").write_text("mine")
    trainer.push_to_hub()
    name, files = hub.uploads[0]
    weights = {"adapter_config.json", "adapter_model.safetensors"} if adapted else set()
    base = {"config.json", "generation_config.json", "model.safetensors"} if adapted else set()
    assert (
        name == "me/student"
        and set(files) - {"special_tokens_map.json", "chat_template.jinja"} == (STUDENT | weights) - base
    )
    saved = "adapter_model.safetensors" if adapted else "model.safetensors"
    assert files[saved] == (tmp_path / "run" / "cycle-1" / "student" / saved).read_bytes()
    assert hub.repositories["me/student"]["token"] == TOKEN
    assert not (tmp_path / "run" / ".upload").exists()
    if with_ledger:
        [(ledger, rows)] = hub.uploads[1:]
        assert ledger == "me/student-ledger" and hub.repositories[ledger]["private"] is True
        assert set(rows) == {"README.md", "completions.jsonl", "items.jsonl"}, (
            "no program ran, so there are no verdicts"
        )
        assert rows["items.jsonl"] == (tmp_path / "run" / "ledger" / "items.jsonl").read_bytes()
        assert re.search(rb"config_name: items\n  data_files: items.jsonl", rows["README.md"])
    else:
        assert len(hub.uploads) == 1
    everything = b"".join(content for _, files in hub.uploads for content in files.values())
    kept = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert TOKEN.encode() not in everything and TOKEN.encode() not in kept


def test_a_pushed_ledger_loads_as_a_dataset(hub: Hub, tmp_path: Path):
    (tmp_path / "ledger").mkdir()
    for name in ("completions", "items"):
        (tmp_path / "ledger" / f"{name}.jsonl").write_text(json.dumps({"kind": name}) + "\n")
    (tmp_path / "ledger" / "completions.settings.json").write_text("{}")
    upload_ledger(tmp_path / "ledger", "me/student", token=None, private=True)
    [(_, files)] = hub.uploads
    for name, content in files.items():
        (tmp_path / "pushed").mkdir(exist_ok=True)
        (tmp_path / "pushed" / name).write_bytes(content)
    assert load_dataset(str(tmp_path / "pushed"), "items", split="train")[0] == {"kind": "items"}
    assert set(files) == {"README.md", "completions.jsonl", "items.jsonl"}


def test_a_push_of_akd(hub: Hub, tmp_path: Path):
    student, teacher = tiny.save_pair(tmp_path)
    args = AKDConfig(
        output_dir=str(tmp_path / "run"),
        hub_token=TOKEN,
        hub_model_id="me/akd",
        push_to_hub=True,
        hub_strategy="end",
        max_steps=1,
        save_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        max_length=64,
    )
    rows = Dataset.from_list([{"prompt": "x = ", "completion": str(number)} for number in range(8)])
    trainer = AKDTrainer(student, teacher, args=args, train_dataset=rows)
    trainer.train()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    trainer.push_to_hub()
    [(name, files)] = hub.uploads
    assert name == "me/akd" and set(files) - TOKENIZER == STUDENT
    saved = torch.load(tmp_path / "run" / "checkpoint-1" / "training_args.bin", weights_only=False)
    assert saved.hub_token is None and args.hub_token == TOKEN
