"""`torch_compile` compiles the student's backbone and has no other effect.

Backend `eager` traces and splits graphs as every backend does, and needs no compiler of C++.
"""

import os

import pytest
import torch
from torch._dynamo.utils import counters

from tests import tiny


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Remove environment variables, by which transformers passes the settings to accelerate."""
    before = dict(os.environ)
    torch._dynamo.reset()
    counters.clear()
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    torch._dynamo.reset()


def losses(made) -> list[float]:
    made.train()
    return [log["loss"] for log in made.state.log_history if "loss" in log]


def lora():
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"pad_to_multiple_of": 64}),
        ("qwen2", {"pad_to_multiple_of": 64, "adapter": True, "self_teacher": True, "gradient_checkpointing": True}),
        pytest.param("llama", {}, marks=pytest.mark.slow),
        pytest.param("llama", {"packing": True}, marks=pytest.mark.slow),
        pytest.param("llama", {"lmbda": 0.5, "max_new_tokens": 4}, marks=pytest.mark.slow),
        pytest.param("gpt_bigcode", {}, marks=pytest.mark.slow),
        pytest.param("llama", {"adapter": True}, marks=pytest.mark.slow),
    ],
)
def test_compiled_student_has_the_same_losses(pair, config, family, settings):
    from trl_akd import AKDTrainer

    settings = dict(settings)
    adapter, alone = settings.pop("adapter", False), settings.pop("self_teacher", False)

    def make(**compilation):
        return AKDTrainer(
            tiny.model(family, seed=1),
            None if alone else pair[1],
            config(max_steps=2, **settings, **compilation),
            train_dataset=tiny.rows(12),
            processing_class=tiny.tokenizer(),
            peft_config=lora() if adapter else None,
        )

    plain = make()
    expected = losses(plain)
    assert counters["frames"]["ok"] == 0
    compiled = make(torch_compile=True, torch_compile_backend="eager")
    found = losses(compiled)
    assert counters["stats"]["unique_graphs"] > 0 and counters["frames"]["ok"] > 0
    assert counters["stats"]["calls_captured"] > 20  # the layers' operations, not the embedding alone
    assert found == pytest.approx(expected, rel=1e-4)
    for name, weight in plain.model.state_dict().items():
        assert torch.allclose(weight, compiled.model.state_dict()[name], atol=1e-5), name


def test_generation_is_not_compiled(trainer):
    made = trainer(torch_compile=True, torch_compile_backend="eager", lmbda=1.0, max_new_tokens=8)
    made._train_batch_size, made.model_wrapped = 4, made.model
    made.get_batch_samples(iter(made.get_train_dataloader()), 2, torch.device("cpu"))
    assert counters["frames"]["total"] == 0


@pytest.mark.slow
def test_evaluation_and_metrics_from_logits(trainer):
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction.predictions.shape)
        return {}

    results = [
        trainer(eval_dataset=tiny.rows(4, seed=1), compute_metrics=compute_metrics, **settings).evaluate()
        for settings in ({}, {"torch_compile": True, "torch_compile_backend": "eager"})
    ]
    assert results[1]["eval_loss"] == pytest.approx(results[0]["eval_loss"], rel=1e-5)
    assert seen[0] == seen[1]


@pytest.mark.slow
def test_compilation_does_not_change_the_saved_student(trainer, tmp_path):
    from transformers import AutoModelForCausalLM

    made = trainer(
        torch_compile=True,
        torch_compile_backend="eager",
        output_dir=str(tmp_path),
        save_strategy="steps",
        save_steps=1,
    )
    made.train()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in made.model.state_dict().items())
    again = trainer(torch_compile=True, torch_compile_backend="eager", output_dir=str(tmp_path), max_steps=3)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
