"""Student and teacher must be language models; other objects are refused before the data is prepared."""

from copy import copy, deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, T5Config, T5ForConditionalGeneration

from tests import tiny
from trl_akd.akd.validation import _check_shared_parameters


class Around(nn.Module):
    """A module that wraps a language model and has its configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.model("qwen2", seed=2)
        self.config = self.inner.config


def encoder_decoder() -> PreTrainedModel:
    config = T5Config(
        vocab_size=tiny.VOCABULARY, d_model=32, d_ff=32, num_layers=1, num_heads=2, d_kv=16, decoder_start_token_id=256
    )
    return T5ForConditionalGeneration(config)


NO_LANGUAGE_MODELS = {
    "module": lambda: nn.Linear(2, 2),
    "module with a configuration": Around,
    "backbone": lambda: tiny.model("qwen2").base_model,
    "classifier": lambda: AutoModelForSequenceClassification.from_config(tiny.model("qwen2").config),
    "class": lambda: type(tiny.model("qwen2")),
    "dictionary": lambda: {"model": "qwen2"},
}


@pytest.mark.parametrize("role", ["model", "teacher_model"])
@pytest.mark.parametrize("kind", sorted(NO_LANGUAGE_MODELS))
def test_no_language_model(trainer, role, kind):
    with pytest.raises(ValueError, match=rf"`{role}` is a \w+, which is not a language model .*; give one with an LM"):
        trainer(**{role: NO_LANGUAGE_MODELS[kind]()})


@pytest.mark.parametrize("role", ["model", "teacher_model"])
def test_a_compiled_model(trainer, role):
    with pytest.raises(ValueError, match=f"`{role}` is already compiled; pass the original model"):
        trainer(**{role: torch.compile(tiny.model("qwen2"))})


@pytest.mark.parametrize("role", ["model", "teacher_model"])
@pytest.mark.parametrize("named", [False, True])
def test_an_encoder_decoder(trainer, tmp_path, role, named):
    given = encoder_decoder()
    if named:
        given.save_pretrained(tmp_path / "t5")
        tiny.tokenizer().save_pretrained(tmp_path / "t5")
        given = str(tmp_path / "t5")
    with pytest.raises(ValueError, match=rf"`{role}` is an encoder-decoder \(t5\).*; give "):
        trainer(**{role: given})


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu0", 1.5])
def test_missing_device(trainer, device):
    with pytest.raises(ValueError, match=rf"`teacher_device` is {device!r}, which cannot be used \(.*; give a device"):
        trainer(teacher_device=device)


def adapted(model: PreTrainedModel):
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))


def with_embeddings_of(teacher: PreTrainedModel) -> PreTrainedModel:
    student = tiny.model("llama", seed=1)
    student.set_input_embeddings(teacher.get_input_embeddings())
    return student


SHARING = {
    "adapter of the teacher": lambda model: (adapted(model), model),
    "teacher with an adapter of the student": lambda model: (model, adapted(model)),
    "two adapters of one model": lambda model: (adapted(model), adapted(model)),
    "base model of the student": lambda model: ((student := adapted(model)), student.get_base_model()),
    "frozen adapter": lambda model: (model, adapted(model).requires_grad_(False)),
    "shallow copy": lambda model: (model, copy(model)),
    "embeddings": lambda model: (with_embeddings_of(model), model),
    "parameters without values": lambda model: (adapted(model.to("meta")), model),
}


@pytest.mark.parametrize("kind", SHARING)
@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
def test_parameters_in_common(trainer, kind):
    student, teacher = SHARING[kind](tiny.model("llama"))
    before = [parameter.requires_grad for parameter in student.parameters()]
    with pytest.raises(
        ValueError, match=r"share \d+ parameters, such as '.*weight'.*; load the teacher separately, or"
    ):
        trainer(student, teacher)
    assert [parameter.requires_grad for parameter in student.parameters()] == before


@pytest.mark.parametrize("family", ["llama", "llama_tied"])
def test_a_teacher_with_equal_parameters_of_its_own(trainer, family):
    base = tiny.model(family)
    made = trainer(adapted(base), deepcopy(base), teacher_tokenizer=tiny.tokenizer())
    made.train()
    assert {parameter.requires_grad for parameter in made.teacher.model.parameters()} == {False}


def test_parameters_without_values_are_not_shared():
    """Offloaded parameters are on the meta device, and have no address to compare."""
    student, teacher = (tiny.model("llama").to("meta") for _ in range(2))
    _check_shared_parameters(student, teacher)
