"""The program in the model card of a planning student runs."""

import re
from pathlib import Path

import pytest
from peft import LoraConfig

from tests import tiny
from trl_akd.codeplan.plan_head import PlanHeadGenerator

from . import world


def example(folder: Path) -> str:
    section = (folder / "README.md").read_text().split("## Planning")[1].split("\n## ")[0]
    [block] = re.findall(r"```python\n(.*?)```", section, re.S)
    return block


@pytest.mark.parametrize("kind", ["separate", "shared", "adapter", "t5"])
def test_the_card_s_program_runs(trainer, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch):
    given = {"plan_head": "shared"} if kind == "shared" else {}
    model, tokenizer = tiny.model(max_position_embeddings=512), tiny.tokenizer()
    if kind == "t5":
        model, tokenizer = world.t5(), world.roberta_tokenizer()
    if kind == "adapter":
        model.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        model = str(tmp_path / "base")
        given["peft_config"] = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    folder = tmp_path / "student"
    made = trainer(model, output_dir=str(folder), processing_class=tokenizer, **given)
    made.train()
    made.save_model()
    made.create_model_card()
    through: list[object] = []
    usual = PlanHeadGenerator.stream
    monkeypatch.setattr(
        PlanHeadGenerator, "stream", lambda self, *a, **k: (through.append(self), usual(self, *a, **k))[1]
    )
    block = example(folder)
    capsys.readouterr()
    exec(compile(block, "card", "exec"), {})
    assert len(through) == (0 if kind == "shared" else 1)
    assert capsys.readouterr().out.count("\n") >= 2
