"""The plan head: training, saving, loading, and generation of plans."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, T5ForConditionalGeneration

from tests import tiny
from trl_akd import DataCollatorForCodePLAN
from trl_akd.codeplan.objective import codeplan_loss
from trl_akd.codeplan.plan_head import (
    PLAN_HEAD_FILE,
    PlanHeadGenerator,
    add_plan_head,
    adopt_plan_head,
    find_plan_head,
    load_plan_head,
    plan_head_of,
    save_plan_head,
    writing_plans,
)
from trl_akd.generation import TransformersGenerator

from . import world

FAMILIES = ["llama", "llama_tied", "qwen2", "codegen", "gpt_bigcode"]


def family(name):
    return (world.t5(), world.roberta_tokenizer()) if name == "t5" else (tiny.model(name), tiny.tokenizer())


def lora(**settings):
    return LoraConfig(**{"r": 2, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **settings})


def separate_plan_head(model):
    """Add a plan head that differs from the LM head."""
    head = add_plan_head(model)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(9)))
    return head


@pytest.mark.parametrize("name", [*FAMILIES, "t5"])
def test_initial_plan_head_is_an_untied_copy(name):
    model, _ = family(name)
    head = add_plan_head(model)
    assert torch.equal(head.weight, model.get_output_embeddings().weight)
    assert head.weight.requires_grad
    before = model.get_input_embeddings().weight.detach().clone()
    with torch.no_grad():
        head.weight.zero_()
    assert torch.equal(model.get_input_embeddings().weight, before)
    model.tie_weights()
    assert not head.weight.any()


def test_bias_is_copied():
    head = add_plan_head(tiny.model("codegen"))
    assert head.bias is not None and head.bias.requires_grad


@pytest.mark.parametrize("name", [*FAMILIES, "t5"])
def test_only_plans_use_the_plan_head(name):
    model, tokenizer = family(name)
    usual = TransformersGenerator(model, tokenizer)
    prompts = ["[GEN_PLAN] a", "[GEN_PLAN] of b"]
    programs = usual.generate(prompts, max_new_tokens=8)
    separate_plan_head(model)
    plans = PlanHeadGenerator(usual, model).generate(prompts, max_new_tokens=8)
    assert [row[0].text for row in plans] != [row[0].text for row in programs]
    assert usual.generate(prompts, max_new_tokens=8) == programs
    lone, _ = family(name)  # the same body with the plan head's weight as its only head
    lone.get_output_embeddings().weight = torch.nn.Parameter(plan_head_of(model).weight.detach().clone())
    expected = TransformersGenerator(lone, tokenizer).generate(prompts, max_new_tokens=8)
    assert [row[0].text for row in plans] == [row[0].text for row in expected]


def test_lm_head_is_restored_after_an_error():
    model = tiny.model()
    add_plan_head(model)
    with pytest.raises(RuntimeError), writing_plans(model):
        raise RuntimeError
    assert model.get_output_embeddings() is not plan_head_of(model)


def test_plan_head_of_a_peft_model():
    model = get_peft_model(tiny.model(), lora(modules_to_save=["lm_head"]))
    head = separate_plan_head(model)
    inputs = {"input_ids": torch.arange(4)[None]}
    expected = model.get_base_model().model(**inputs).last_hidden_state @ head.weight.T
    with writing_plans(model):
        torch.testing.assert_close(model(**inputs).logits, expected)


def test_generator_of_another_model():
    model, other = tiny.model(), tiny.model()
    add_plan_head(model)
    with pytest.raises(ValueError, match="`generator` has another model than `model`"):
        PlanHeadGenerator(TransformersGenerator(other, tiny.tokenizer()), model)
    adapted = get_peft_model(model, lora())
    PlanHeadGenerator(TransformersGenerator(adapted, tiny.tokenizer()), model)


def test_embeddings_resized_after_adding_the_plan_head(trainer):
    model = tiny.model()
    add_plan_head(model)
    model.resize_token_embeddings(400)
    with pytest.raises(ValueError, match=r"shape \[320, 32\], but the LM head \[400, 32\]: .* resized"):
        trainer(model)


# With an adapter


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (lora(), r"the plan head is frozen.*call `adopt_plan_head\(model\)`"),
        (lora(target_modules="all-linear"), "the plan head has a PEFT adapter"),
        (lora(modules_to_save=["plan_head"]), "the plan head has a PEFT adapter"),
    ],
)
def test_loss_with_an_adapter_that_leaves_the_plan_head_out(adapter, message):
    model = tiny.model()
    add_plan_head(model)
    adapted = get_peft_model(model, adapter)
    batch = DataCollatorForCodePLAN(tiny.tokenizer(), max_length=256)(list(world.problems(2)))
    with pytest.raises(ValueError, match=message):
        codeplan_loss(adapted, batch)
    with torch.no_grad():
        assert codeplan_loss(adapted, batch) > 0


@pytest.mark.parametrize("order", ["before", "after"])
def test_custom_loop_with_an_adapter(tmp_path: Path, order):
    base = tmp_path / "base"
    tiny.model().save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    if order == "before":
        add_plan_head(model)
    model = get_peft_model(model, lora())
    head = adopt_plan_head(model) if order == "before" else add_plan_head(model)
    before = head.weight.detach().clone()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    codeplan_loss(model, DataCollatorForCodePLAN(tiny.tokenizer(), max_length=256)(list(world.problems(2)))).backward()
    optimizer.step()
    assert not torch.equal(head.weight, before)
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(load_file(find_plan_head(str(tmp_path / "adapter")))["weight"], head.weight)


@pytest.mark.parametrize(
    ("dtype", "frozen", "expected"),
    [
        (torch.bfloat16, "adapter", torch.float32),
        (torch.float16, "adapter", torch.float32),
        (torch.bfloat16, "backbone", torch.float32),
        (torch.bfloat16, "nothing", torch.bfloat16),
        (torch.float32, "adapter", torch.float32),
        (torch.float64, "adapter", torch.float64),
    ],
)
@pytest.mark.parametrize("name", ["llama_tied", "t5"])
def test_dtype_beside_frozen_weights(name, dtype, frozen, expected):
    model = family(name)[0].to(dtype)
    if frozen == "adapter":
        model = get_peft_model(model, lora(target_modules=["q_proj" if name != "t5" else "q"]))
    elif frozen == "backbone":
        model.requires_grad_(False)
    assert add_plan_head(model).weight.dtype == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_updates_beside_a_half_precision_backbone(trainer, tmp_path: Path, dtype):
    """The head's updates are not rounded away, and it generates, is saved, loaded, merged and trained further."""
    base = tmp_path / "base"
    tiny.model().to(dtype).save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    settings = {"learning_rate": 2e-5, "bf16": dtype == torch.bfloat16}
    made = trainer(str(base), peft_config=lora(), model_init_kwargs={"dtype": dtype}, **settings)
    head = plan_head_of(made.model)
    before = head.weight.detach().clone()
    made.train()
    assert (head.weight != before).float().mean() > 0.9
    programs = TransformersGenerator(made.model, tiny.tokenizer())
    plans = PlanHeadGenerator(programs, made.model).generate(["[GEN_PLAN] a"], max_new_tokens=4)
    adapter = str(tmp_path / "adapter")
    made.save_model(adapter)
    assert torch.equal(load_file(find_plan_head(adapter))["weight"], head.weight)
    further = trainer(adapter, model_init_kwargs={"dtype": dtype}, **settings)
    assert torch.equal(plan_head_of(further.model).weight, head.weight)
    merged = made.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=dtype)
    load_plan_head(again, str(tmp_path / "merged"))
    assert plan_head_of(again).weight.dtype == dtype
    found = PlanHeadGenerator(TransformersGenerator(again, tiny.tokenizer()), again)
    assert len(found.generate(["[GEN_PLAN] a"], max_new_tokens=4)) == len(plans) == 1


def test_writing_plans_without_a_plan_head():
    with pytest.raises(ValueError, match="has no plan head; load it"), writing_plans(tiny.model()):
        pass


# On disk


@pytest.mark.parametrize("name", [*FAMILIES, "t5"])
def test_plan_head_file(name, tmp_path: Path):
    model, _ = family(name)
    head = separate_plan_head(model)
    model.save_pretrained(tmp_path)
    assert not any("plan_head" in key for key in load_file(tmp_path / "model.safetensors"))
    kind = T5ForConditionalGeneration if name == "t5" else AutoModelForCausalLM
    again, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"]
    load_plan_head(again, str(tmp_path))
    assert torch.equal(plan_head_of(again).weight, head.weight)
    assert torch.equal(again.get_output_embeddings().weight, model.get_output_embeddings().weight)


def test_saving_without_a_plan_head_removes_an_old_file(tmp_path: Path):
    model = tiny.model()
    add_plan_head(model)
    save_plan_head(model, tmp_path)
    save_plan_head(tiny.model(), tmp_path)
    assert find_plan_head(str(tmp_path)) is None


def test_errors_of_loading(tmp_path: Path):
    with pytest.raises(ValueError, match=r"'separate'.*has no plan_head\.safetensors"):
        load_plan_head(tiny.model(), str(tmp_path))
    save_file({"weight": torch.zeros(3, 3)}, tmp_path / PLAN_HEAD_FILE)
    with pytest.raises(ValueError, match=r"has the tensors .*\[3, 3\].*but the model's LM head"):
        load_plan_head(tiny.model(), str(tmp_path))


@pytest.mark.parametrize("peft", [False, True])
def test_training_saves_and_resumes_the_plan_head(trainer, tmp_path: Path, peft):
    adapter = lora() if peft else None
    base = tmp_path / "base"
    tiny.model("llama_tied").save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    made = trainer(str(base), peft_config=adapter)
    made.train()
    made.save_model(str(tmp_path / "trained"))
    trained = plan_head_of(made.model).weight
    assert not torch.equal(trained, made.model.get_output_embeddings().weight)
    saved = load_file(tmp_path / "trained" / PLAN_HEAD_FILE)
    assert torch.equal(saved["weight"], trained)
    if peft:
        student = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "trained")
        load_plan_head(student, str(tmp_path / "trained"))
        assert torch.equal(plan_head_of(student).weight, trained)
    else:
        further = trainer(str(tmp_path / "trained"))
        assert torch.equal(plan_head_of(further.model).weight, trained)


def test_shared_with_a_plan_head_file_is_refused(trainer, tmp_path: Path):
    made = trainer(output_dir=str(tmp_path))
    made.save_model(str(tmp_path / "trained"))
    with pytest.raises(ValueError, match=r"`plan_head` is 'shared', but .* contains a plan_head\.safetensors"):
        trainer(str(tmp_path / "trained"), plan_head="shared")


def test_shared_with_a_plan_head_is_refused(trainer):
    model = tiny.model()
    add_plan_head(model)
    with pytest.raises(ValueError, match="`plan_head` is 'shared', but the student has a plan head"):
        trainer(model, plan_head="shared")


@pytest.mark.parametrize("peft", [False, True])
def test_resumed_run_equals_the_uninterrupted_run(trainer, tmp_path: Path, peft):
    def make(folder: str):
        adapter = lora() if peft else None
        return trainer(
            tiny.model("llama_tied"), peft_config=adapter, output_dir=str(tmp_path / folder), max_steps=-1,
            num_train_epochs=3, save_strategy="steps", save_steps=1, per_device_train_batch_size=2,
            schedule="alternate", gradient_accumulation_steps=1,
        )  # fmt: skip

    unbroken = make("unbroken")
    unbroken.train()
    resumed = make("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "unbroken" / "checkpoint-5"))
    for (name, found), expected in zip(resumed.model.named_parameters(), unbroken.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


def test_resume_from_a_checkpoint_without_it(trainer, tmp_path: Path):
    trainer(plan_head="shared", save_strategy="steps", save_steps=1, output_dir=str(tmp_path)).train()
    with pytest.raises(ValueError, match="trained with plan_head='shared', or not by CodePLAN"):
        trainer(output_dir=str(tmp_path), max_steps=3).train(resume_from_checkpoint=True)


def test_best_model_has_its_plan_head(trainer, tmp_path: Path):
    made = trainer(
        eval_dataset=world.problems(4, seed=1), eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, max_steps=4, load_best_model_at_end=True, metric_for_best_model="codeplan/plan_loss",
        greater_is_better=True, output_dir=str(tmp_path),
    )  # fmt: skip
    made.train()
    best = Path(made.state.best_model_checkpoint)
    assert best.name == "checkpoint-1", "the worst plan loss is the first"
    assert torch.equal(plan_head_of(made.model).weight, load_file(best / PLAN_HEAD_FILE)["weight"])
