"""Model cards of trainers: metadata, equation and the curve of β."""

from pathlib import Path
from xml.etree import ElementTree

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
