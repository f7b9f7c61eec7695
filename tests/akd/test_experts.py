"""Load-balancing loss of students that are mixtures of experts."""

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig

from tests import tiny
from trl_akd import AKDConfig, AKDTrainer

SIZES = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "decoder_sparse_step": 1,
    "eos_token_id": 257,
    "bos_token_id": None,
    "pad_token_id": 256,
    "tie_word_embeddings": False,
}


def experts(kind, **settings):
    torch.manual_seed(0)
    count = {"num_local_experts": 4} if kind is MixtralConfig else {"num_experts": 4}
    return AutoModelForCausalLM.from_config(kind(**SIZES, **count, **settings))


@pytest.fixture
def make(pair, config):
    def made(kind=MixtralConfig, model=None, **settings):
        return AKDTrainer(
            model or experts(kind),
            pair[1],
            config(**settings),
            train_dataset=tiny.rows(8),
            eval_dataset=tiny.rows(4, seed=1),
            processing_class=tiny.tokenizer(),
        )

    return made


@pytest.mark.parametrize("kind", [MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig])
@pytest.mark.parametrize("training", [True, False])
def test_router_loss_of_the_model_is_added(make, kind, training):
    made = make(kind, router_aux_loss_coef=0.5)
    assert made.aux_loss_enabled
    batch = made.data_collator([made.train_dataset[index] for index in range(3)])
    made.model.train(training)
    expected = made.model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_router_logits=True
    ).aux_loss
    with_it = made.compute_loss(made.model, batch)
    made.aux_loss_enabled = False
    without = made.compute_loss(made.model, batch)
    assert float(with_it - without) == pytest.approx(0.5 * float(expected), rel=1e-5)
    gradients = torch.autograd.grad(with_it - without, list(made.model.parameters()), allow_unused=True)
    own = torch.autograd.grad(0.5 * expected, list(made.model.parameters()), allow_unused=True)
    for found, wanted in zip(gradients, own, strict=True):
        assert torch.allclose(
            torch.zeros(()) if found is None else found, torch.zeros(()) if wanted is None else wanted, atol=1e-6
        )


def test_it_is_averaged_over_accumulation_and_logged(make):
    whole = make(per_device_train_batch_size=4, max_steps=1, router_aux_loss_coef=1.0, logging_steps=1)
    split = make(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=1,
        router_aux_loss_coef=1.0,
        logging_steps=1,
    )
    for made in (whole, split):
        made.train()
        log = made.state.log_history[0]
        mix = (1 - log["kd/beta"]) * log["kd/forward_kl"] + log["kd/beta"] * log["kd/reverse_kl"]
        assert log["loss"] == pytest.approx(mix + log["aux_loss"], rel=2e-3)
        assert 1.5 < log["aux_loss"] < 4.0  # 2 where the experts of a token share the load alike
    results = whole.evaluate()
    assert results["eval_loss"] < 1.5 < whole.state.log_history[-1]["eval_aux_loss"]


def test_coefficient_defaults_to_that_of_the_model(make):
    assert make().router_aux_loss_coef == 0.001
    off = make(router_aux_loss_coef=0.0)
    assert not off.aux_loss_enabled
    off.train()
    assert all("aux_loss" not in log for log in off.state.log_history)


@pytest.mark.skipif(AKDConfig.router_aux_loss_coef is not None, reason="TRL before 1.14 ignores the coefficient")
def test_a_dense_student_has_none(make):
    with pytest.raises(ValueError, match=r"`router_aux_loss_coef` is set to 0.1 but LlamaForCausalLM"):
        make(model=tiny.model(), router_aux_loss_coef=0.1)


def test_an_encoder_decoder_of_experts_is_refused(pair, config):
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    sizes = {"vocab_size": 320, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_experts": 2}
    layers = {"num_layers": 2, "num_decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    model = SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(**sizes, **layers))
    with pytest.raises(ValueError, match=r"SwitchTransformersConfig.*set router_aux_loss_coef=0|encoder-decoder"):
        AKDTrainer(model, pair[1], config(), train_dataset=tiny.rows(4), processing_class=tiny.tokenizer())
