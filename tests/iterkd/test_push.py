"""Uploads of trainers to a local server in place of the Hub."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset

from tests import tiny
from tests.hub.fixtures import TOKEN, hub
from tests.hub.loopback import Hub
from tests.iterkd import cycle_world
from tests.iterkd.test_run_settings import lora
from trl_akd import AKDConfig, AKDTrainer
from trl_akd.iterkd.iterkd_config import IterKDConfig
from trl_akd.iterkd.iterkd_trainer import IterKDTrainer

__all__ = ["hub"]

pytestmark = pytest.mark.lengthy

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
    assert not hub.files("me/student"), "nothing is pushed between cycles"
    (tmp_path / "run" / "private.txt").write_text("mine")
    trainer.push_to_hub()
    files = hub.files("me/student")
    weights = {"adapter_config.json", "adapter_model.safetensors"} if adapted else set()
    base = {"config.json", "generation_config.json", "model.safetensors"} if adapted else set()
    assert set(files) - TOKENIZER == (STUDENT | weights) - base
    saved = "adapter_model.safetensors" if adapted else "model.safetensors"
    assert files[saved] == (tmp_path / "run" / "cycle-1" / "student" / saved).read_bytes()
    assert {token for _, path, token in hub.requests if "/large/" not in path} == {f"Bearer {TOKEN}"}
    assert not (tmp_path / "run" / ".upload").exists()
    if with_ledger:
        assert hub.repositories["dataset", "me/student-ledger"].private is True
        texts = hub.files("me/student-ledger", kind="dataset")
        names = {"README.md", "completions.parquet", "feedback.parquet", "pairs.parquet", "questions.parquet"}
        assert set(texts) == names, "no program ran, so there are no verdicts"
        for name, content in texts.items():
            (tmp_path / "pushed").mkdir(exist_ok=True)
            (tmp_path / "pushed" / name).write_bytes(content)
        pairs = load_dataset(str(tmp_path / "pushed"), split="train")
        items = [json.loads(line) for line in (tmp_path / "run" / "ledger" / "items.jsonl").read_text().splitlines()]
        expected = [row for row in items if row["kind"] == "pair"]
        assert [(row["cycle"], row["id"], row["correct"]) for row in pairs] == [
            (row["cycle"], row["id"], row["correct"]) for row in expected
        ]
        feedback = load_dataset(str(tmp_path / "pushed"), "feedback", split="train")
        assert len(feedback) == sum(row["kind"] == "feedback" for row in items)
    else:
        assert len(hub.repositories) == 1
    kept = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert TOKEN.encode() not in hub.received and TOKEN.encode() not in kept
    assert str(tmp_path).encode() not in hub.received


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
    files = hub.files("me/akd")
    assert set(files) - TOKENIZER == STUDENT and str(tmp_path).encode() not in hub.received
    saved = torch.load(tmp_path / "run" / "checkpoint-1" / "training_args.bin", weights_only=False)
    assert saved.hub_token is None and args.hub_token == TOKEN
