"""CodePLANTrainer through its public interface."""

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from tests import tiny
from trl_akd import CodePLANConfig, CodePLANTrainer, DataCollatorForCodePLAN
from trl_akd.codeplan.plan_head import PlanHeadGenerator, plan_head_of
from trl_akd.data.templates import render
from trl_akd.generation import TransformersGenerator

from . import world


def logs(trainer, key):
    return [log[key] for log in trainer.state.log_history if key in log]


@pytest.mark.parametrize("schedule", ["weighted", "alternate"])
@pytest.mark.parametrize("family", ["llama_tied", "t5"])
def test_both_losses_fall(trainer, schedule, family):
    given = {"processing_class": world.roberta_tokenizer()} if family == "t5" else {}
    model = world.t5() if family == "t5" else tiny.model(family)
    made = trainer(model, schedule=schedule, max_steps=24, learning_rate=3e-3, lr_scheduler_type="constant", **given)
    made.train()
    for key in ("codeplan/code_loss", "codeplan/plan_loss"):
        series = logs(made, key)
        assert sum(series[-4:]) < 0.8 * sum(series[:4]), key


@pytest.mark.parametrize("family", ["llama_tied", "t5"])
def test_a_student_learns_to_plan_and_to_code(trainer, family):
    """The student generates what it was trained on: the plan with the plan head, the program with the LM head."""
    rows = [
        {"problem": "A", "solution": "return 1", "plan": "1. One."},
        {"problem": "B", "solution": "print(2)", "plan": "1. Two."},
    ]
    tokenizer = world.roberta_tokenizer() if family == "t5" else tiny.tokenizer()
    made = trainer(
        world.t5() if family == "t5" else tiny.model(family),
        train_dataset=Dataset.from_list(rows * 2),
        processing_class=tokenizer,
        max_steps=100,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
    )
    made.train()
    programs = TransformersGenerator(made.model, tokenizer)
    plans = PlanHeadGenerator(programs, made.model)
    for row in rows:
        [[program]] = programs.generate([render("codeplan_code", row["problem"])], max_new_tokens=16)
        [[plan]] = plans.generate([render("codeplan_plan", row["problem"])], max_new_tokens=16)
        assert (program.text, plan.text) == (row["solution"], row["plan"])


def test_the_loss_is_made_of_the_tasks(trainer):
    made = trainer(max_steps=3, plan_weight=0.3)
    made.train()
    for loss, code, plan in zip(
        *(logs(made, key) for key in ("loss", "codeplan/code_loss", "codeplan/plan_loss")), strict=True
    ):
        assert loss == pytest.approx(0.7 * code + 0.3 * plan, rel=1e-5)
    assert all(math.isfinite(value) for value in logs(made, "entropy"))
    assert logs(made, "num_tokens") == sorted(logs(made, "num_tokens"))
    assert not logs(made, "kd/beta") and not logs(made, "kd/forward_kl")


def test_tasks_learned_from_a_teacher_lead_beta(trainer):
    made = trainer(None, tiny.model("qwen2", hidden=48, seed=3), plan_objective="akd", max_steps=3)
    made.train()
    beta, kl, rkl = (logs(made, key) for key in ("kd/beta", "kd/forward_kl", "kd/reverse_kl"))
    assert beta[0] != beta[1]
    for b, forward, reverse, loss in zip(beta, kl, rkl, logs(made, "codeplan/plan_loss"), strict=True):
        assert loss == pytest.approx((1 - b) * forward + b * reverse)


# Schedules


def first_gradient(trainer, problems, **settings):
    """Gradients of the student in the first optimizer step, by name."""
    made = trainer(train_dataset=problems, max_steps=1, max_grad_norm=1e9, learning_rate=1.0, optim="sgd",
                   lr_scheduler_type="constant", seed=1, **settings)  # fmt: skip
    before = {name: value.detach().clone() for name, value in made.model.named_parameters()}
    made.train()
    return {name: before[name] - value.detach() for name, value in made.model.named_parameters()}


@pytest.mark.parametrize("plan_weight", [0.5, 0.2])
def test_alternation_equals_weighting_for_equal_problems(trainer, plan_weight):
    """One step of two alternating micro-batches equals one step of both tasks if the examples are the same."""
    same = Dataset.from_list([{"problem": "p", "solution": "return 1", "plan": "1. Return one."}] * 8)
    weighted = first_gradient(trainer, same, plan_weight=plan_weight, per_device_train_batch_size=4)
    alternate = first_gradient(
        trainer, same, plan_weight=plan_weight, per_device_train_batch_size=4, schedule="alternate",
        gradient_accumulation_steps=2,
    )  # fmt: skip
    for name, gradient in weighted.items():
        torch.testing.assert_close(alternate[name], gradient, msg=name)


def test_alternation_equals_weighting_in_expectation(trainer):
    """The mean gradient over all splits of four problems into two for code and two for plans is equal."""
    problems = world.problems(4).map(lambda row: {"solutions": row["solutions"][:1], "plans": row["plans"][:1]})
    made = trainer(train_dataset=problems, schedule="alternate", gradient_accumulation_steps=2)
    rows = list(made.train_dataset)

    def gradient(batches):
        batches, items = made.get_batch_samples(iter(batches), len(batches), torch.device("cpu"))
        made.model.zero_grad()
        for batch in batches:
            made.compute_loss(made.model, batch, num_items_in_batch=items).backward()
        return {name: value.grad.clone() for name, value in made.model.named_parameters()}

    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    turns = [
        gradient([made.data_collator([rows[i] for i in pair]), made.data_collator([rows[i] for i in rest])])
        for pair in pairs
        for rest in [sorted({0, 1, 2, 3} - set(pair))]
    ]
    made.args.schedule = "weighted"
    both = gradient([made.data_collator(rows)])
    for name, expected in both.items():
        mean = torch.stack([turn[name] for turn in turns]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-6, msg=name)


def test_alternation_continues_over_steps_of_one_micro_batch(trainer):
    made = trainer(schedule="alternate", max_steps=4)
    made.train()
    assert [log["step"] for log in made.state.log_history if "codeplan/code_loss" in log] == [1, 3]
    assert [log["step"] for log in made.state.log_history if "codeplan/plan_loss" in log] == [2, 4]


# Evaluation


@pytest.mark.parametrize("settings", [{}, {"normalization": "token"}, {"schedule": "alternate"}])
def test_evaluation_does_not_depend_on_the_batch_size(trainer, settings):
    results = [
        trainer(eval_dataset=world.problems(6, seed=1), per_device_eval_batch_size=size, plan_weight=0.3, **settings)
        .evaluate()
        for size in (1, 3, 6)
    ]  # fmt: skip
    for key in ("eval_loss", "eval_codeplan/code_loss", "eval_codeplan/plan_loss"):
        assert [result[key] for result in results] == pytest.approx([results[0][key]] * 3, rel=1e-5)
    first = results[0]
    assert first["eval_loss"] == pytest.approx(
        0.7 * first["eval_codeplan/code_loss"] + 0.3 * first["eval_codeplan/plan_loss"]
    )


@pytest.mark.parametrize("name", ["eval", "train", "held_out"])
@pytest.mark.parametrize("own_collator", [False, True])
def test_evaluations_are_comparable(trainer, own_collator, name):
    """Evaluation uses the same solutions and plans for any epoch, dataset name and collator."""
    problems = world.problems(6, seed=1)
    given = {"data_collator": DataCollatorForCodePLAN(tiny.tokenizer(), max_length=256)} if own_collator else {}
    made = trainer(eval_dataset=problems if name == "eval" else {name: problems}, max_steps=-1, num_train_epochs=3,
                   learning_rate=0.0, eval_strategy="epoch", **given)  # fmt: skip
    made.train()
    judged = logs(made, "eval_loss" if name == "eval" else f"eval_{name}_loss")
    assert len(judged) == 3 and len(set(judged)) == 1
    assert len(set(logs(made, "loss"))) == 6, "training draws in each epoch"


def test_predictions_are_comparable(trainer):
    made = trainer(learning_rate=0.0, max_steps=-1, num_train_epochs=2)
    before = made.predict(made.train_dataset).metrics["test_loss"]
    made.train()
    assert made.predict(made.train_dataset).metrics["test_loss"] == before


def test_logits_of_an_encoder_decoder(trainer):
    seen = []
    made = trainer(world.t5(), processing_class=world.roberta_tokenizer(), eval_dataset=world.problems(4, seed=1))
    made.compute_metrics = lambda prediction: seen.append(prediction.predictions[0].shape) or {"one": 1.0}
    assert made.evaluate()["eval_one"] == 1.0
    assert seen[0][-1] == world.VOCABULARY


# Data


def test_problems_that_are_too_long_are_dropped_and_counted(trainer, caplog):
    problems = Dataset.from_list(
        [
            {"problem": "p", "solution": "x" * 300, "plans": ["1. a", "1. " + "b" * 300]},
            {"problem": "p" * 300, "solution": "x", "plans": ["1. a"]},
            {"problem": "p", "solution": "x", "plans": ["1. " + "c" * 300]},
        ]
    )
    with caplog.at_level("WARNING"):
        made = trainer(train_dataset=problems, max_length=128)
    assert made.train_dataset["index"] == [0]
    assert "Kept 1 of 3 problems" in caplog.text
    assert "truncated 1 solutions and dropped 1 plans" in caplog.text


def test_all_problems_too_long(trainer):
    with pytest.raises(ValueError, match=r"Every row of the train dataset is too long\. The first: A prompt of row 0"):
        trainer(train_dataset=world.problems(3), max_length=16)


def test_one_solution_and_one_plan_per_row(trainer):
    rows = [{"problem": "p", "solution": "x", "plan": "1. a", "id": 3, "difficulty": None}] * 4
    trainer(train_dataset=Dataset.from_list(rows)).train()


@pytest.mark.parametrize("column", ["problem", "solutions", "plans"])
def test_a_missing_column(trainer, column):
    with pytest.raises(ValueError, match=f"but neither '{column.removesuffix('s')}' nor"):
        trainer(train_dataset=world.problems(3).remove_columns(column))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "p", "solutions": ["x"], "plans": []}, "Row 1 has no plan that is not empty"),
        ({"problem": "p", "solutions": ["", " "], "plans": ["1."]}, "Row 1 has no solution that is not empty"),
    ],
)
def test_bad_rows_are_named_before_training(trainer, row, message):
    good = {"problem": "p", "solutions": ["x"], "plans": ["1. a"]}
    with pytest.raises(ValueError, match=message):
        trainer(train_dataset=Dataset.from_list([good, row]))


@pytest.mark.parametrize("name", ["train", "eval"])
def test_no_rows(trainer, name):
    empty = world.problems(2).select([])
    with pytest.raises(ValueError, match=f"the {name} dataset is empty"):
        trainer(**{f"{name}_dataset": empty})


def test_streams(trainer):
    with pytest.raises(ValueError, match=r"the train dataset is a IterableDataset.*set streaming=False"):
        trainer(train_dataset=world.problems(2).to_iterable_dataset())


# Collators


@pytest.mark.parametrize("schedule", ["weighted", "alternate"])
def test_custom_collator(trainer, schedule):
    collator = DataCollatorForCodePLAN(tiny.tokenizer(), plan_weight=0.3, schedule=schedule, max_length=128)
    settings = {"plan_weight": 0.3, "schedule": schedule, "gradient_accumulation_steps": 2, "max_length": 128}
    own, usual = trainer(data_collator=collator, **settings), trainer(**settings)
    for made in (own, usual):
        made.train()
    assert logs(own, "num_tokens")[-1] > 0
    assert len(logs(own, "codeplan/plan_loss")) == len(logs(usual, "codeplan/plan_loss")) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"plan_weight": 0.3},
        {"schedule": "alternate"},
        {"normalization": "token"},
        {"max_length": 128},
        {"max_target_length": 64, "max_length": 256},
    ],
)
def test_a_collator_that_contradicts_the_configuration(trainer, settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` is .* in the configuration but .* in "):
        trainer(data_collator=DataCollatorForCodePLAN(tiny.tokenizer(), **settings))


def test_collator_adapts_to_the_model(trainer):
    tokenizer = world.roberta_tokenizer()
    made = trainer(
        world.t5(), processing_class=tokenizer, data_collator=DataCollatorForCodePLAN(tokenizer, max_length=256)
    )
    assert made.data_collator.is_encoder_decoder
    made.train()


# Rows that were tokenized before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 64}, "tokenized row 0 has a prompt or plan that max_length=64 does not allow"),
        ({"max_target_length": 8}, "does not allow, and prompts and plans are never truncated"),
        ({"guided_weight": 0.5}, r"tokenized row 0 has 0 guided prompts for \d plans: .* guided_weight=0"),
    ],
)
def test_rows_tokenized_with_other_settings(trainer, settings, message):
    rows = trainer().train_dataset
    trainer(train_dataset=rows, max_length=400).train()
    with pytest.raises(ValueError, match=message):
        trainer(train_dataset=rows, **settings)
    with pytest.raises(ValueError, match=message):
        DataCollatorForCodePLAN(tiny.tokenizer(), **settings)([rows[0]])


# Models


def test_unused_teacher(trainer):
    with pytest.raises(ValueError, match="`teacher_model` is given, but no objective uses a teacher"):
        trainer(None, tiny.model("qwen2"))


def test_missing_teacher(trainer):
    with pytest.raises(ValueError, match="`teacher_model_name_or_path` is not set"):
        trainer(plan_objective="akd")


def test_tokens_that_the_teacher_lacks(trainer):
    teacher = tiny.model("qwen2", vocabulary=257)  # all but EOS
    with pytest.raises(ValueError, match="id 257, but student and teacher share only the ids below 257"):
        trainer(tiny.model(), teacher, plan_objective="akd")


def test_nan_is_an_error(trainer):
    student = tiny.model()
    with torch.no_grad():
        student.model.embed_tokens.weight[:] = float("inf")
    with pytest.raises(FloatingPointError, match="student's logits are not finite at step 0"):
        trainer(student).train()


def test_models_by_name(config, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world.t5().save_pretrained(tmp_path / "t5")
    world.roberta_tokenizer().save_pretrained(tmp_path / "t5")
    made = CodePLANTrainer(str(tmp_path / "t5"), train_dataset=world.problems(4))
    assert isinstance(made.args, CodePLANConfig)
    assert made.args.output_dir.endswith("t5-CodePLAN")
    assert made.data_collator.is_encoder_decoder and plan_head_of(made.model) is not None


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"bf16": True}, {"dataloader_num_workers": 1}])
@pytest.mark.parametrize("family", ["llama_tied", "t5"])
def test_training_variants(trainer, settings, family):
    given = {"processing_class": world.roberta_tokenizer()} if family == "t5" else {}
    made = trainer(world.t5() if family == "t5" else tiny.model(family), **settings, **given)
    made.train()
    assert len(logs(made, "loss")) == 2


def test_the_card_names_the_method_and_no_teacher(trainer, tmp_path: Path):
    made = trainer(world.t5(), processing_class=world.roberta_tokenizer(), output_dir=str(tmp_path / "mine"))
    made.create_model_card()
    card = (tmp_path / "mine" / "README.md").read_text()
    for part in ("CodePLAN", "plan_weight", "`separate`", "AutoModelForSeq2SeqLM"):
        assert part in card, part
    assert "Teacher" not in card and "beta_strategy" not in card and "AutoModelForCausalLM" not in card
