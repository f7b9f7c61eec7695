"""Model cards of trainers: metadata, equation and the curve of β."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig


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


def test_a_template_that_no_row_used_is_not_on_the_card(trainer, tmp_path: Path):
    rows = Dataset.from_list([{"prompt": "add(1, 2) is", "completion": " 3"}] * 4)
    trainer(output_dir=str(tmp_path), train_dataset=rows).create_model_card()
    assert "Prompt template" not in (tmp_path / "README.md").read_text()


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
