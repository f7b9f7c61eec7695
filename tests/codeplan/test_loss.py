"""The trainer's loss against the paper's equation on the models' own logits."""

import pytest
import torch
from peft import LoraConfig

from tests import tiny
from trl_akd.codeplan.encoding import Task
from trl_akd.codeplan.plan_head import plan_head_of, writing_plans
from trl_akd.losses.divergences import forward_kl, reverse_kl

from . import world

FAMILIES = ["llama", "llama_tied", "qwen2", "codegen", "gpt_bigcode"]


def batch_of(trainer):
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def untie(trainer):
    """Change the plan head so that it differs from the LM head."""
    head = plan_head_of(trainer.model)
    if head is not None:
        with torch.no_grad():
            head.weight.add_(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(5)))


def by_hand(trainer, batch, weights, normalization="sequence"):
    """(1 - lambda) L_code + lambda L_plan with loops over rows, each task with its own head."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    shift = 1
    if trainer.model.config.is_encoder_decoder:
        start = torch.zeros_like(batch["labels"][:, :1])
        shifted = torch.cat([start, batch["labels"][:, :-1].clamp(min=0)], 1)
        inputs["decoder_input_ids"], shift = shifted, 0
    code = trainer.model(**inputs).logits
    plan = code
    if trainer.args.plan_head == "separate":
        with writing_plans(trainer.model):
            plan = trainer.model(**inputs).logits
    teacher = trainer.teacher.model(**inputs).logits if trainer.args.uses_teacher else code
    losses = {task: [] for task in Task}
    for row, task in enumerate(batch["task_ids"].tolist()):
        logits = plan[row] if task == Task.PLAN else code[row]
        objective = trainer.args.plan_objective if task == Task.PLAN else trainer.args.code_objective
        tokens = []
        for position in range(shift, batch["labels"].shape[1]):
            label = batch["labels"][row, position]
            if label == -100:
                continue
            q, p = logits[position - shift], teacher[row, position - shift]
            if objective == "ce":
                tokens.append(-torch.log_softmax(q, -1)[label])
            else:
                beta = trainer.adaptive_beta.value
                tokens.append((1 - beta) * forward_kl(q, p) + beta * reverse_kl(q, p))
        losses[Task(task)].append(torch.stack(tokens))
    total = 0.0
    for task, weight in weights.items():
        rows = losses[task]
        mean = torch.cat(rows).mean() if normalization == "token" else torch.stack([row.mean() for row in rows]).mean()
        total = total + weight * mean
    return total


def assert_same_gradients(trainer, loss, expected):
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, parameters)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs, rtol=1e-3, atol=1e-5)


def check(made, weights, **options):
    untie(made)
    batch = batch_of(made)
    loss = made.compute_loss(made.model, dict(batch))
    expected = by_hand(made, batch, weights, **options)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert_same_gradients(made, loss, expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plan_head", ["separate", "shared"])
def test_every_causal_family(trainer, family, plan_head):
    made = trainer(tiny.model(family), plan_weight=0.3, plan_head=plan_head)
    check(made, {Task.CODE: 0.7, Task.PLAN: 0.3})


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("plan_head", ["separate", "shared"])
def test_encoder_decoders(trainer, scaled, plan_head):
    tokenizer = world.roberta_tokenizer()
    made = trainer(world.t5(scaled=scaled), processing_class=tokenizer, plan_weight=0.3, plan_head=plan_head)
    check(made, {Task.CODE: 0.7, Task.PLAN: 0.3})


@pytest.mark.parametrize("code_objective", ["ce", "akd"])
@pytest.mark.parametrize("plan_objective", ["ce", "akd"])
@pytest.mark.parametrize("plan_head", ["separate", "shared"])
def test_objectives(trainer, code_objective, plan_objective, plan_head):
    teacher = None if code_objective == plan_objective == "ce" else tiny.model("qwen2", hidden=48, seed=3)
    made = trainer(None, teacher, code_objective=code_objective, plan_objective=plan_objective, plan_head=plan_head)
    check(made, {Task.CODE: 0.5, Task.PLAN: 0.5})


def test_encoder_decoder_teacher(trainer):
    made = trainer(
        world.t5(),
        world.t5(1, hidden=48),
        processing_class=world.roberta_tokenizer(),
        code_objective="akd",
        plan_objective="akd",
    )
    check(made, {Task.CODE: 0.5, Task.PLAN: 0.5})


@pytest.mark.parametrize("plan_weight", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("normalization", ["sequence", "token"])
def test_lambda(trainer, plan_weight, normalization):
    made = trainer(plan_weight=plan_weight, normalization=normalization)
    check(made, {Task.CODE: 1 - plan_weight, Task.PLAN: plan_weight}, normalization=normalization)


def test_guided_task(trainer):
    made = trainer(guided_weight=0.4, plan_weight=0.2)
    check(made, {Task.CODE: 0.8, Task.PLAN: 0.2, Task.GUIDED: 0.4})


def test_lora_trains_all_weights_of_the_plan_head(trainer):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    made = trainer(peft_config=lora)
    trained = {name for name, parameter in made.model.named_parameters() if parameter.requires_grad}
    assert any("plan_head" in name for name in trained)
    assert all("plan_head" in name or "lora_" in name for name in trained)
    check(made, {Task.CODE: 0.5, Task.PLAN: 0.5})


def test_student_without_adapter_as_teacher(trainer):
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    made = trainer(peft_config=lora, plan_objective="akd")
    batch = batch_of(made)
    loss = made.compute_loss(made.model, dict(batch))
    assert torch.isfinite(loss)
    made.train()


def test_cross_entropy_computes_no_teacher(trainer, monkeypatch):
    from trl_akd.losses import fused_linear

    made = trainer()
    monkeypatch.setattr(fused_linear, "divergence_and_gradient_", None)
    made.train()
    assert made.teacher_model is None


def test_encoder_decoder_loss_is_that_of_transformers(trainer):
    """With one example per task and lambda 0 or 1, the loss equals that of the model."""
    for task, settings in (
        (Task.CODE, {"plan_weight": 0.0}),
        (Task.PLAN, {"plan_weight": 1.0, "plan_head": "shared"}),
    ):
        made = trainer(
            world.t5(), processing_class=world.roberta_tokenizer(), per_device_train_batch_size=1, **settings
        )
        batch = batch_of(made)
        row = batch["task_ids"] == task
        own = made.model(
            input_ids=batch["input_ids"][row], attention_mask=batch["attention_mask"][row], labels=batch["labels"][row]
        )
        assert made.compute_loss(made.model, dict(batch)).item() == pytest.approx(own.loss.item(), rel=1e-5)
