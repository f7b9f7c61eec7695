"""Model cards of trainers: metadata, equation and the curve of β."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig

from tests import tiny
from trl_akd.akd.model_card import objective
from trl_akd.hub.model_card import read_prompt_format


def test_card_of_an_adapter(trainer, tmp_path: Path):
    made = trainer(peft_config=LoraConfig(target_modules=["q_proj"]), output_dir=str(tmp_path / "adapter"))
    made.create_model_card()
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert card.data.library_name == "peft" and "AutoPeftModelForCausalLM" in card.text


def test_equation_and_curve_of_beta(trainer, tmp_path: Path):
    made = trainer(output_dir=str(tmp_path), logging_steps=1, max_steps=3)
    made.create_model_card()
    assert not (tmp_path / "beta.svg").exists(), "nothing was logged yet"
    made.train()
    made.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert r"$$(1-\beta)\,\mathrm{KL}(p\,\|\,q) + \beta\,\mathrm{KL}(q\,\|\,p)$$" in text
    assert "drawn from the initial values in each epoch" in text and "](beta.svg)" in text
    values = [log["kd/beta"] for log in made.state.log_history if "kd/beta" in log]
    assert f"From {values[0]:.3f} at step 1 to {values[-1]:.3f} at step 3." in text
    lines = ElementTree.parse(tmp_path / "beta.svg").findall("{http://www.w3.org/2000/svg}polyline")
    assert max(len(line.get("points", "").split()) for line in lines) == 3


def test_definition_of_another_divergence(trainer, tmp_path: Path):
    made = trainer(output_dir=str(tmp_path), divergence="taid", logging_steps=1, max_steps=2)
    made.train()
    made.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert "minimizes the divergence `taid` ([source](https://huggingface.co/papers/2501.16937)):" in text
    assert "> `p_t = softmax((1 - t) student_logits + t teacher_logits)`" in text and "Args" not in text
    assert "![t, by optimizer step](beta.svg)" in text


def test_settings_of_the_training(trainer, tmp_path: Path):
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "seed": 7, "learning_rate": 2e-4}
    rows = Dataset.from_list([{"instruction": "Add 1 and 2.", "output": "3"}] * 4)
    made = trainer(
        train_dataset=rows,
        output_dir=str(tmp_path),
        max_steps=2,
        lr_scheduler_type="cosine",
        max_length=256,
        **settings,
    )
    made.create_model_card()
    assert "Optimizer steps" not in (tmp_path / "README.md").read_text(), "it was not trained"
    made.train()
    made.create_model_card()
    text = (tmp_path / "README.md").read_text()
    for row in (
        "| Prompt template | `alpaca` |",
        "| Optimizer steps | `2` |",
        "| Rows per optimizer step | `2` |",
        "| Learning rate | `0.0002 (cosine)` |",
        "| Seed | `7` |",
    ):
        assert row in text, row


ASKED = "Write a Python function that doubles a number."
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ '<assistant>' if add_generation_prompt }}"
QUESTION, ANSWER = {"role": "user", "content": ASKED}, {"role": "assistant", "content": "f"}
FORMATS: dict[str, tuple[dict[str, Any], str | None, str | None]] = {
    "alpaca": ({"instruction": ASKED, "output": "f"}, "template", "alpaca"),
    "starcoder": ({"instruction": ASKED, "output": "f"}, "template", "starcoder"),
    "messages": ({"messages": [QUESTION, ANSWER]}, "chat", None),
    "chat": ({"prompt": [QUESTION], "completion": [ANSWER]}, "chat", None),
    "plain": ({"prompt": f"{ASKED}\n", "completion": "f"}, "completion", None),
    "tokenized": ({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, None, None),
}
IN_WORDS = {"chat": "chat template of the tokenizer", "completion": "none"}


@pytest.mark.parametrize(("name", "adapter"), [*((name, False) for name in FORMATS), ("chat", True)])
def test_the_example_of_the_card_gives_a_prompt_as_in_training(name: str, adapter: bool, trainer, tmp_path: Path):
    row, style, template = FORMATS[name]
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = CHAT
    made = trainer(
        output_dir=str(tmp_path / "student"),
        train_dataset=Dataset.from_list([row] * 2),
        processing_class=tokenizer,
        max_length=256,
        lmbda=0.5,  # so that the prompts are kept
        **({"prompt_template": template} if template else {}),
        **({"peft_config": LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")} if adapter else {}),
    )
    made.save_model()
    made.create_model_card()
    text = (tmp_path / "student" / "README.md").read_text()
    program = re.findall(r"```python\n(.*?)```", text.partition("## Use")[2], re.DOTALL)[0]
    found: dict[str, Any] = {}
    exec(compile(re.sub(r"max_new_tokens=\d+", "max_new_tokens=2", program), "card", "exec"), found)
    if style is not None:
        assert found["inputs"]["input_ids"][0].tolist() == made.train_dataset[0]["prompt_ids"]
    assert ("| Prompt template |" in text) == (style is not None)
    if style is not None:
        assert f"| Prompt template | `{template or IN_WORDS[style]}` |" in text
        assert (read := read_prompt_format(str(tmp_path / "student"))) and (read.style, read.template) == (
            style,
            template,
        )
    assert found["output"].shape[1] > found["inputs"]["input_ids"].shape[1]


def test_the_card_of_a_run_from_python(trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    made = trainer(output_dir=str(tmp_path / "run"), max_steps=1)
    made.train()
    made.create_model_card(dataset_name="org/rows")
    text = (tmp_path / "run" / "README.md").read_text()
    for row in ("| Data | `org/rows` |", "| Training rows | `8` |", "| Optimizer steps | `1` |", "| Seed | `42` |"):
        assert row in text, row
    assert "Git commit" not in text, "the working directory is in no repository"
    made.provenance.commit = "c0ffee-dirty"
    made.create_model_card()
    assert "| Git commit | `c0ffee-dirty` |" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"beta_regularizer": "eq16"}, "beta_regularization"),
        ({"beta_regularization": 0.0}, "beta_regularizer"),
        ({}, None),
    ],
)
def test_settings_of_beta_without_effect_are_left_out(settings: dict[str, Any], missing: str | None, config):
    names = {"beta_regularization", "beta_regularizer"} - {missing}
    assert {name for name in objective(config(**settings)) if "regulari" in name} == names


AKD = "AKD (adaptive knowledge distillation)"


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({}, AKD),
        ({"beta_strategy": "m1"}, AKD),
        ({"beta_strategy": "m2"}, AKD),
        (
            {"beta_strategy": "fixed", "beta": 0.0},
            "KD (knowledge distillation by a constant mix of forward and reverse KL)",
        ),
        (
            {"beta_strategy": "random_epoch"},
            "KD (knowledge distillation by a mix of forward and reverse KL, random in each epoch)",
        ),
        (
            {"beta_strategy": "linear"},
            "KD (knowledge distillation by a mix of forward and reverse KL that changes linearly)",
        ),
        ({"divergence": "forward_kl"}, "KD (knowledge distillation by the divergence forward_kl)"),
        ({"divergence": "adaptive_alpha"}, "KD (knowledge distillation by the divergence adaptive_alpha)"),
    ],
)
def test_the_method_follows_the_divergence(settings: dict, method: str, trainer, tmp_path: Path):
    trainer(output_dir=str(tmp_path), **settings).create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert f"distilled with {method} by" in card.text and f"| Method | {method} |" in card.text
    assert json.loads((tmp_path / "run.json").read_text())["method"] == method
    assert ("akd" in card.data.tags, "knowledge-distillation" in card.data.tags) == (method == AKD, True)
    assert method == AKD or "AKD" not in card.text
