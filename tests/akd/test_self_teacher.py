"""The student without its adapter as the teacher: it is the base model, or the trainer refuses it."""

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoHaConfig, LoraConfig, OFTConfig, VeraConfig, get_peft_model

from tests import tiny
from trl_akd import AKDTrainer
from trl_akd.teachers import SelfTeacher


def lora(**options):
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **options})


def lora_gpt(**options):
    return lora(target_modules=["c_attn"], fan_in_fan_out=True, **options)


@pytest.fixture
def make(config):
    """Create a trainer without a teacher model, of a student with or without an adapter."""

    def created(student, peft_config=None, teacher_model=None, **settings):
        return AKDTrainer(
            student,
            teacher_model,
            config(**{"divergence": "forward_kl", "ce_weight": 1.0, "learning_rate": 0.05, **settings}),
            train_dataset=tiny.rows(8),
            eval_dataset=tiny.rows(4, seed=1),
            processing_class=tiny.tokenizer(),
            peft_config=peft_config,
        )

    return created


def unfrozen(*parts: str):
    """A student with an adapter, of which the base parameters that contain one of `parts` are trained as well."""
    student = get_peft_model(tiny.model("qwen2"), lora())
    for name, parameter in student.named_parameters():
        if any(part in name for part in parts):
            parameter.requires_grad_(True)
    return student


SUPPORTED = {
    "lora": ("llama", lora()),
    "gaussian": ("llama", lora(init_lora_weights="gaussian")),
    "orthogonal": ("llama", lora(init_lora_weights="orthogonal")),
    "random": ("llama", lora(init_lora_weights=False)),
    "dora": ("llama", lora(use_dora=True)),
    "bias of a model without biases": ("llama", lora(bias="all")),
    "saved modules": ("llama", lora(modules_to_save=["lm_head", "embed_tokens", "norm"])),
    "saved tied embeddings": ("llama_tied", lora(modules_to_save=["embed_tokens"])),
    "adapter of tied embeddings": ("llama_tied", lora(target_modules=["q_proj", "embed_tokens"])),
    "token indices": ("llama", lora(trainable_token_indices=[5, 6])),
    "token indices of tied embeddings": ("llama_tied", lora(trainable_token_indices=[5, 6])),
    "gpt": ("gpt_bigcode", lora_gpt()),
    "ia3": ("llama", IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "vera": ("llama", VeraConfig(target_modules=["q_proj", "o_proj"], r=8)),
    "loha": ("llama", LoHaConfig(target_modules=["q_proj"], r=4)),
    "oft": ("llama", OFTConfig(target_modules=["q_proj"], r=0, oft_block_size=4)),
    "layer norms": ("llama", LNTuningConfig()),
}


@pytest.mark.parametrize("kind", SUPPORTED)
def test_the_teacher_is_the_base_model_throughout_training(make, kind):
    family, adapter = SUPPORTED[kind]
    expected = make(tiny.model(family), teacher_model=tiny.model(family)).evaluate()["eval_kd/teacher_nll"]
    made = make(tiny.model(family), adapter)
    before = made.evaluate()
    made.train()
    after = made.evaluate()
    assert before["eval_kd/teacher_nll"] == after["eval_kd/teacher_nll"] == pytest.approx(expected, rel=1e-6)
    assert after["eval_kd/student_nll"] != before["eval_kd/student_nll"]


REFUSED = {
    "all biases": (lambda: tiny.model("gpt_bigcode"), lora_gpt(bias="all"), "`bias` is 'all'.*set bias='none'"),
    "biases of adapted layers": (lambda: tiny.model("gpt_bigcode"), lora_gpt(bias="lora_only"), "is 'lora_only'"),
    "biases of VeRA": (
        lambda: tiny.model("qwen2"),
        VeraConfig(target_modules=["q_proj"], r=8, bias="vera_only"),
        "`bias` is 'vera_only'",
    ),
    "biases of a student with an adapter": (
        lambda: get_peft_model(tiny.model("qwen2"), lora(bias="all")),
        None,
        "`bias` is 'all', so 6 of its parameters are trained, such as '.*bias'",
    ),
    "unfrozen norms": (lambda: unfrozen("norm"), None, "5 of its parameters .*norm.*freeze them"),
    "unfrozen embeddings": (lambda: unfrozen("embed_tokens"), None, "1 of its parameters"),
    "unfrozen head": (lambda: unfrozen("lm_head"), None, "1 of its parameters"),
    "unfrozen adapted weights": (lambda: unfrozen("base_layer.weight"), None, "4 of its parameters"),
    "layer replication": (
        lambda: tiny.model(),
        lora(layer_replication=[(0, 2), (1, 2)]),
        r"`layer_replication` is \[\(0, 2\), \(1, 2\)\]",
    ),
    "inactive adapter": (lambda: with_inactive(lora(init_lora_weights="pissa")), None, "is 'pissa'"),
    **{
        name: (lambda: tiny.model(), lora(init_lora_weights=name), f"`init_lora_weights` is '{name}'")
        for name in ("pissa", "pissa_niter_4", "olora", "OLoRA")
    },
}


def with_inactive(other: LoraConfig):
    student = get_peft_model(tiny.model(), lora())
    student.add_adapter("other", other)
    return student


@pytest.mark.parametrize("kind", REFUSED)
def test_a_teacher_that_is_not_the_base_model_is_refused(make, kind):
    student, adapter, message = REFUSED[kind]
    with pytest.raises(ValueError, match=rf"not the base model: .*{message}.* give the base model as `teacher_model`"):
        make(student(), adapter)


@pytest.mark.parametrize("initialization", ["corda", "loftq", "lora_ga"])
def test_initializations_that_need_data_or_further_packages(make, initialization):
    student = get_peft_model(tiny.model(), lora())
    student.peft_config["default"].init_lora_weights = initialization
    with pytest.raises(ValueError, match=f"`init_lora_weights` is '{initialization}', which rewrites its weights"):
        make(student)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("options", [{"bias": "all"}, {"init_lora_weights": "pissa"}], ids=str)
def test_these_adapters_with_the_base_model_as_the_teacher(make, tmp_path, options, named):
    base = tiny.model("qwen2")
    base.save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    given = (str(tmp_path / "base"),) * 2 if named else (base, tiny.model("qwen2"))
    made = make(given[0], lora(**options), teacher_model=given[1])
    before = made.evaluate()
    made.train()
    assert before["eval_kd/forward_kl"] == pytest.approx(0.0, abs=1e-5)
    assert made.evaluate()["eval_kd/teacher_nll"] == before["eval_kd/teacher_nll"]


def test_the_check_leaves_no_trace(make):
    student = get_peft_model(tiny.model("llama_tied"), lora(modules_to_save=["norm"]))
    first = next(parameter for parameter in student.parameters() if parameter.requires_grad)
    first.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in student.parameters()]
    made = make(student)
    assert [parameter.requires_grad for parameter in made.model.parameters()] == flags


def test_an_adapter_that_cannot_be_disabled(make):
    student = tiny.model()
    student.add_adapter(lora())
    with pytest.raises(ValueError, match=r"LlamaForCausalLM, whose adapter cannot be disabled.*`peft.get_peft_model`"):
        make(student)


def test_a_given_self_teacher_is_checked(make):
    with pytest.raises(ValueError, match="`bias` is 'all'"):
        make(tiny.model("qwen2"), lora(bias="all"), teacher_model=SelfTeacher())
    with pytest.raises(ValueError, match="whose adapter cannot be disabled"):
        make(tiny.model("qwen2"), teacher_model=SelfTeacher())


def test_quantities_of_the_student_are_its_own(make):
    """The teacher's forward pass leaves the adapter enabled."""
    made = make(tiny.model(), lora(init_lora_weights=False))
    inputs = {"input_ids": torch.arange(5)[None]}
    before = made.model(**inputs).logits
    made.evaluate()
    assert torch.equal(made.model(**inputs).logits, before)
