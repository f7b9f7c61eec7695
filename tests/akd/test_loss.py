"""The trainer's loss against the paper's equation on full logits."""

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaForCausalLM

from tests import tiny
from trl_akd.losses import divergences

FAMILIES = ["llama", "llama_tied", "qwen2", "codegen", "gpt_bigcode"]


def batch_of(trainer):
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def by_hand(trainer, batch, beta, normalization="sequence", temperature=1.0, ce_weight=0.0, rule="akd", knobs=None):
    """Eq. 9 with loops over samples, from the models' own logits."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    student, teacher = trainer.model(**inputs).logits, trainer.teacher.model(**inputs).logits
    shared = min(student.shape[-1], teacher.shape[-1])
    samples = []
    for row, labels in enumerate(batch["labels"]):
        tokens = []
        for position in range(1, len(labels)):
            if labels[position] != -100:
                q, p = student[row, position - 1, :shared], teacher[row, position - 1, :shared]
                knobs = {"beta": beta} if knobs is None else knobs
                divergence = divergences.get(rule)(q, p, temperature=temperature, **knobs)
                tokens.append(divergence - ce_weight * torch.log_softmax(q, -1)[labels[position]])
        samples.append(torch.stack(tokens))
    if normalization == "sequence":
        return torch.stack([tokens.mean() for tokens in samples]).mean()
    return torch.cat(samples).mean()


@pytest.mark.parametrize("student", FAMILIES)
@pytest.mark.parametrize("teacher", ["llama", "gpt_bigcode"])
def test_every_family_of_the_recipes(trainer, student, teacher):
    made = trainer(tiny.model(student, seed=3), tiny.model(teacher, hidden=40, seed=4))
    batch = batch_of(made)
    loss = made.compute_loss(made.model, dict(batch))
    expected = by_hand(made, batch, made.adaptive_beta.value)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert_same_gradients(made, loss, expected)


def assert_same_gradients(trainer, loss, expected):
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, parameters)
    wanted = torch.autograd.grad(expected, parameters)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"normalization": "token"},
        {"kd_temperature": 2.0},
        {"ce_weight": 0.7},
        {"ce_weight": 0.7, "kd_temperature": 0.5, "normalization": "token"},
        {"loss_chunk_size": 3},
        {"beta_strategy": "fixed", "beta": 0.0},
        {"beta_strategy": "fixed", "beta": 1.0},
        {"gradient_checkpointing": True},
        {"divergence": "jsd", "divergence_kwargs": {"beta": 0.2}, "kd_temperature": 2.0, "ce_weight": 0.7},
        {"divergence": "skew_kl"},
        {"divergence": "reverse_kl", "normalization": "token"},
    ],
    ids=lambda settings: "-".join(map(str, settings)),
)
def test_settings_reach_the_loss(trainer, settings):
    made = trainer(**settings)
    made.model.train()  # evaluation mixes by a constant
    batch = batch_of(made)
    loss = made.compute_loss(made.model, dict(batch))
    expected = by_hand(
        made,
        batch,
        made.adaptive_beta.value,
        settings.get("normalization", "sequence"),
        settings.get("kd_temperature", 1.0),
        settings.get("ce_weight", 0.0),
        settings.get("divergence", "akd"),
        settings.get("divergence_kwargs", {} if "divergence" in settings else None),
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert_same_gradients(made, loss, expected)


@pytest.mark.parametrize(("student_size", "teacher_size"), [(320, 352), (352, 320)])
def test_padded_vocabularies_of_different_size(trainer, student_size, teacher_size):
    made = trainer(tiny.model(vocabulary=student_size, seed=3), tiny.model("qwen2", vocabulary=teacher_size, seed=4))
    batch = batch_of(made)
    loss = made.compute_loss(made.model, dict(batch))
    expected = by_hand(made, batch, made.adaptive_beta.value)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert_same_gradients(made, loss, expected)


def test_scaled_and_capped_logits(trainer):
    from transformers import (
        CohereConfig,
        CohereForCausalLM,
        Gemma2Config,
        Gemma2ForCausalLM,
        GraniteConfig,
        GraniteForCausalLM,
    )

    size = {
        "vocab_size": 320, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 256, "eos_token_id": 257,
        "bos_token_id": None,
    }  # fmt: skip
    students = [
        Gemma2ForCausalLM(Gemma2Config(**size, head_dim=16, final_logit_softcapping=2.0)),
        CohereForCausalLM(CohereConfig(**size, logit_scale=3.0)),
        GraniteForCausalLM(GraniteConfig(**size, logits_scaling=0.25)),
    ]
    for student in students:
        made = trainer(student)
        batch = batch_of(made)
        loss = made.compute_loss(made.model, dict(batch))
        assert loss.item() == pytest.approx(by_hand(made, batch, made.adaptive_beta.value).item(), rel=1e-4)


def test_unknown_transformation_of_the_logits_is_refused(trainer):
    class Transformed(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 3 + 1
            return output

    made = trainer(Transformed(tiny.model().config))
    with pytest.raises(ValueError, match=r"student \(Transformed\).*does not reproduce"):
        made.compute_loss(made.model, batch_of(made))


def test_prompt_and_padding_have_no_influence(trainer):
    made = trainer()
    batch = batch_of(made)
    hidden = {}

    def nudge(module, args, output):
        states = output.last_hidden_state
        states.retain_grad()
        hidden["states"] = states

    handle = made.model.model.register_forward_hook(nudge)
    made._student_is_verified = True
    made.compute_loss(made.model, dict(batch)).backward()
    handle.remove()
    moved = hidden["states"].grad[:, :-1].abs().sum(-1) > 0
    assert torch.equal(moved, batch["labels"][:, 1:] != -100)


def test_lora_student_and_its_self_teacher(trainer):
    made = trainer(peft_config=LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    batch = batch_of(made)
    loss = made.compute_loss(made.model, dict(batch))
    assert loss.item() == pytest.approx(by_hand(made, batch, made.adaptive_beta.value).item(), rel=1e-4)
    loss.backward()
    assert {name for name, p in made.model.named_parameters() if p.grad is not None} == {
        name for name, p in made.model.named_parameters() if "lora" in name
    }


def test_divergence_from_the_self_teacher_starts_at_zero_and_grows(pair, config):
    from trl_akd import AKDTrainer

    made = AKDTrainer(
        model=pair[0],
        args=config(ce_weight=1.0, max_steps=3),
        train_dataset=tiny.rows(8),
        peft_config=LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    made.train()
    divergence = [log["kd/forward_kl"] for log in made.state.log_history if "kd/forward_kl" in log]
    assert divergence[0] == pytest.approx(0.0, abs=1e-6)
    assert divergence[-1] > 0


def test_lm_head_in_modules_to_save_is_trained(trainer):
    peft = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    made = trainer(peft_config=peft)
    batch = batch_of(made)
    loss = made.compute_loss(made.model, dict(batch))
    assert loss.item() == pytest.approx(by_hand(made, batch, made.adaptive_beta.value).item(), rel=1e-4)
    loss.backward()
    assert any("lm_head" in name and p.grad is not None for name, p in made.model.named_parameters())


def test_self_teacher_uses_the_original_lm_head(pair, config):
    from trl_akd import AKDTrainer

    peft = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    made = AKDTrainer(model=pair[0], args=config(), train_dataset=tiny.rows(8), peft_config=peft)
    batch = batch_of(made)
    with torch.no_grad():
        made.model.get_output_embeddings().modules_to_save["default"].weight.mul_(2.0)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad(), made.model.disable_adapter():
        expected = made.model(**inputs).logits
    with made.teacher.forward(inputs):
        signal = made.teacher.signal(made.model)
    torch.testing.assert_close(signal.head.logits(signal.hidden), expected)


def test_adapter_of_the_lm_head_is_refused(trainer):
    with pytest.raises(ValueError, match="lm_head"):
        trainer(peft_config=LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")).train()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("student", ["llama", "codegen", "gpt_bigcode"])
def test_packed_equals_unpacked(trainer, student, attention):
    losses, gradients = [], []
    for packing in (False, True):
        net = tiny.model(student, seed=3)
        if attention not in ("eager", net.config._attn_implementation):
            pytest.skip(f"{student} has no {attention} attention")
        net.set_attn_implementation(attention)
        made = trainer(
            net, packing=packing, max_length=96, per_device_train_batch_size=8, train_dataset=tiny.rows(8, seed=5)
        )
        loss = made.compute_loss(made.model, batch_of(made))
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in made.model.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


def test_packing_with_attention_between_samples_is_refused(trainer):
    student = tiny.model()
    original = student.model.forward

    def ignore_positions(*args, position_ids=None, **kwargs):
        return original(*args, **kwargs)

    student.model.forward = ignore_positions
    made = trainer(student, packing=True)
    with pytest.raises(ValueError, match="`packing` is on, but the student"):
        made.compute_loss(made.model, batch_of(made))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_is_not_negative_in_half_precision(trainer, dtype):
    twin = tiny.model(seed=4).to(dtype)
    student = tiny.model(seed=4).to(dtype)
    with torch.no_grad():
        student.model.norm.weight += 0.001
    made = trainer(student, twin)
    loss = made.compute_loss(made.model, batch_of(made))
    assert loss.dtype == torch.float32
    assert 0 <= loss.item() < 1e-2


def test_mixed_precision(trainer):
    exact = trainer()
    mixed = trainer(bf16=True)
    batch = batch_of(exact)
    loss = mixed.compute_loss(mixed.model, dict(batch))
    assert loss.item() == pytest.approx(exact.compute_loss(exact.model, dict(batch)).item(), rel=0.05)
    assert loss.item() != exact.compute_loss(exact.model, dict(batch)).item()
