"""AKDTrainer through its public interface."""

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from tests import tiny
from trl_akd import AKDConfig, AKDTrainer
from trl_akd.akd.metrics import METRICS, not_finite


def logs(trainer, key):
    return [log[key] for log in trainer.state.log_history if key in log]


def test_training_lowers_the_divergences_and_does_not_change_the_teacher(trainer):
    made = trainer(max_steps=30, learning_rate=3e-3, beta_strategy="fixed", beta=0.5)
    before = {name: value.clone() for name, value in made.teacher.model.state_dict().items()}
    made.train()
    for key in ("loss", "kd/forward_kl", "kd/reverse_kl"):
        series = logs(made, key)
        assert sum(series[-5:]) < 0.7 * sum(series[:5]), key
    assert not made.teacher.model.training
    assert all(torch.equal(value, before[name]) for name, value in made.teacher.model.state_dict().items())


def test_documented_metrics_are_logged(trainer):
    made = trainer(eval_dataset=tiny.rows(6, seed=1), eval_strategy="steps", eval_steps=1)
    made.train()
    for key in ("kd/forward_kl", "kd/reverse_kl", "entropy", "kd/teacher_nll", "kd/student_nll"):
        assert all(math.isfinite(value) for value in logs(made, key)), key
        assert len(logs(made, key)) == 2, key
        assert len(logs(made, f"eval_{key}")) == 2, key
    assert len(logs(made, "kd/beta")) == 2
    assert logs(made, "num_tokens") == sorted(logs(made, "num_tokens"))


def test_logged_loss_is_the_mix_of_the_logged_divergences(trainer):
    made = trainer(max_steps=3)
    made.train()
    for loss, beta, kl, rkl in zip(
        *(logs(made, key) for key in ("loss", "kd/beta", "kd/forward_kl", "kd/reverse_kl")), strict=True
    ):
        assert loss == pytest.approx((1 - beta) * kl + beta * rkl, rel=2e-3)


@pytest.mark.parametrize("settings", [{}, {"normalization": "token", "ce_weight": 0.5}, {"packing": True}])
def test_evaluation_does_not_depend_on_the_batch_size(trainer, settings):
    results = [
        trainer(eval_dataset=tiny.rows(6, seed=1), per_device_eval_batch_size=size, **settings).evaluate()
        for size in (1, 3, 6)
    ]
    for key in ("eval_loss", "eval_kd/forward_kl", "eval_kd/teacher_nll"):
        assert [result[key] for result in results] == pytest.approx([results[0][key]] * 3, rel=1e-5)


def test_best_checkpoint_by_loss(trainer):
    made = trainer(
        eval_dataset=tiny.rows(4, seed=1),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    made.train()
    assert made.state.best_metric is not None


def test_metrics_from_logits(trainer):
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction.predictions.shape)
        return {"one": 1.0}

    made = trainer(eval_dataset=tiny.rows(4, seed=1), compute_metrics=compute_metrics)
    assert made.evaluate()["eval_one"] == 1.0
    assert seen[0][-1] == tiny.VOCABULARY


def test_beta_is_redrawn_in_each_epoch(trainer):
    made = trainer(max_steps=-1, num_train_epochs=4, seed=1, data_seed=0)
    made.train()
    starts = logs(made, "kd/beta")[::2]
    assert len(starts) == 4
    assert set(starts) <= {0.1, 0.6}
    assert len(set(starts)) == 2


def test_optional_arguments(pair, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made = AKDTrainer(model=pair[0], teacher_model=pair[1], train_dataset=tiny.rows(4))
    assert isinstance(made.args, AKDConfig)
    assert made.args.output_dir.endswith("student-AKD")


def test_teacher_comes_from_the_configuration(pair, config):
    args = config(teacher_model_name_or_path=pair[1], teacher_model_init_kwargs={"attn_implementation": "eager"})
    made = AKDTrainer(model=pair[0], args=args, train_dataset=tiny.rows(4))
    assert made.teacher.model.config._attn_implementation == "eager"
    assert made.teacher_model is made.teacher.engine


@pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
def test_teacher_in_another_precision(trainer, dtype):
    made = trainer(teacher_model_init_kwargs={"dtype": dtype})
    made.train()
    assert all(loss > 0 for loss in logs(made, "loss"))


def test_teacher_on_a_separate_device(trainer):
    made = trainer(teacher_device="cpu")
    made.train()
    assert made.teacher.engine.device.type == "cpu"


@pytest.mark.parametrize("columns", ["messages", "alpaca", "tokenized"])
def test_data_formats(trainer, columns, pair):
    if columns == "messages":
        rows = [[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y = 1"}]] * 4
        data = Dataset.from_dict({"messages": rows})
    elif columns == "alpaca":
        data = Dataset.from_dict({"instruction": ["add"] * 4, "input": ["", "1 2", "", "3"], "output": ["+"] * 4})
    else:
        data = Dataset.from_dict({"input_ids": [[1, 2, 3, 257]] * 4, "labels": [[-100, -100, 3, 257]] * 4})
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    made = trainer(train_dataset=data, max_length=400, processing_class=tokenizer, teacher_tokenizer=tiny.tokenizer())
    made.train()
    assert len(logs(made, "loss")) == 2


def test_collator_of_trl(trainer):
    from trl.experimental.utils import DataCollatorForChatML

    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    data = Dataset.from_dict(
        {"messages": [[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y = 1"}]] * 4}
    )
    for lmbda in (0.0, 1.0):
        made = trainer(
            train_dataset=data,
            processing_class=tokenizer,
            teacher_tokenizer=tiny.tokenizer(),
            data_collator=DataCollatorForChatML(tokenizer=tokenizer, max_length=64),
            lmbda=lmbda,
            max_new_tokens=4,
        )
        made.train()
        assert len(logs(made, "loss")) == 2


# Generated text


@pytest.mark.parametrize("settings", [{"lmbda": 1.0}, {"seq_kd": True}, {"lmbda": 0.5, "seq_kd": True}])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_text_is_generated(trainer, settings, checkpointing):
    made = trainer(**settings, max_new_tokens=6, gradient_checkpointing=checkpointing, gradient_accumulation_steps=2)
    made.train()
    assert len(logs(made, "loss")) == 2
    assert made.model.is_gradient_checkpointing == checkpointing


def test_divisor_is_counted_after_generation(trainer):
    for normalization in ("token", "sequence"):
        made = trainer(lmbda=1.0, max_new_tokens=5, normalization=normalization, gradient_accumulation_steps=2)
        made._train_batch_size = 4
        made.model_wrapped = made.model
        dataloader = iter(made.get_train_dataloader())
        batches, items = made.get_batch_samples(dataloader, 2, torch.device("cpu"))
        targets = [(batch["labels"][:, 1:] != -100).sum(1) for batch in batches]
        expected = torch.cat(targets).sum() if normalization == "token" else len(torch.cat(targets))
        assert items == expected
        assert all(length <= 5 for length in torch.cat(targets))


def test_generated_rows_keep_the_prompt_and_stop_once(trainer, monkeypatch):
    """All prompts get the same answer, with a stop token that is the pad token as well."""
    made = trainer(lmbda=1.0)
    batch = next(iter(made.get_train_dataloader()))

    def generate(self, input_ids, **options):
        return torch.cat([input_ids, torch.tensor([5, 257, 257, 257]).repeat(len(input_ids), 1)], 1)

    monkeypatch.setattr(type(made.model), "generate", generate)
    [found] = made._complete([batch])
    for ids, labels, prompt, mask in zip(
        found["input_ids"], found["labels"], batch["prompts"], batch["prompt_attention_mask"], strict=True
    ):
        words = prompt[mask.bool()].tolist()
        assert ids[: len(words) + 2].tolist() == [*words, 5, 257]
        assert labels[: len(words) + 2].tolist() == [-100] * len(words) + [5, 257]
        assert (labels[len(words) + 2 :] == -100).all()


def test_generation_uses_the_cache_and_stops_at_the_eos_of_either_model(trainer, monkeypatch):
    teacher = tiny.model("qwen2")
    teacher.generation_config.eos_token_id = [11, 12]
    made = trainer(None, teacher, lmbda=1.0, gradient_checkpointing=True, max_new_tokens=4)
    seen = []
    original = type(made.model).generate

    def spy(self, *args, generation_config=None, **kwargs):
        seen.append(generation_config)
        return original(self, *args, generation_config=generation_config, **kwargs)

    monkeypatch.setattr(type(made.model), "generate", spy)
    made.train()
    assert seen[0].use_cache is True
    assert set(seen[0].eos_token_id) == {11, 12, 257}


def test_only_shared_ids_are_sampled(trainer):
    made = trainer(tiny.model(vocabulary=400), tiny.model("qwen2"), lmbda=1.0, max_new_tokens=64, max_length=64)
    made._train_batch_size, made.model_wrapped = 4, made.model
    batches, _ = made.get_batch_samples(iter(made.get_train_dataloader()), 2, torch.device("cpu"))
    assert max(batch["input_ids"].max() for batch in batches) < 320


def test_sampling_ignores_the_models_generation_config(trainer):
    from trl_akd.generation.decoding import unwrapped_for_generation

    made = trainer(lmbda=1.0)
    habit = made.model.generation_config
    habit.repetition_penalty = 3.0
    with unwrapped_for_generation(made.model, made.accelerator):
        assert made.model.generation_config.repetition_penalty is None
    assert made.model.generation_config is habit


def test_on_policy_decisions_agree_and_match_lmbda():
    from trl_akd.akd.on_policy import is_on_policy

    coins = [is_on_policy(0.3, seed=0, step=step, micro_batch=0) for step in range(2000)]
    assert coins == [is_on_policy(0.3, seed=0, step=step, micro_batch=0) for step in range(2000)]
    assert 0.27 < sum(coins) / 2000 < 0.33


# Bad input


@pytest.mark.parametrize("accumulation", [1, 2])
def test_nan_teacher_is_an_error_before_the_student_changes(trainer, accumulation):
    teacher = tiny.model("qwen2", seed=2)
    with torch.no_grad():
        teacher.get_output_embeddings().weight[3] = float("nan")
    made = trainer(
        None, teacher, processing_class=tiny.tokenizer(), gradient_accumulation_steps=accumulation, max_steps=1
    )
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="teacher's logits are not finite at step 0"):
        made.train()
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())


def test_nan_student_is_an_error_before_it_changes(trainer):
    student = tiny.model()
    with torch.no_grad():
        student.model.embed_tokens.weight[:] = float("inf")
    made = trainer(student)
    with pytest.raises(FloatingPointError, match="student's logits are not finite at step 0"):
        made.train()


def test_error_names_a_divergence_that_overflows(trainer):
    made = trainer(divergence="abkd", divergence_kwargs={"alpha": -30, "beta": -30})
    with pytest.raises(FloatingPointError, match=r"the divergence 'abkd' .*'alpha': -30.* is not finite at step 0"):
        made.train()


@pytest.mark.parametrize(
    ("infinite", "named"),
    [
        (("divergence",), "the divergence 'abkd' with divergence_kwargs={'alpha': 1, 'beta': -1}"),
        (("divergence", "forward_kl", "reverse_kl"), "the divergence 'abkd'"),
        (("divergence", "student_nll"), "the student's logits"),
        (("divergence", "student_entropy", "forward_kl"), "the student's logits"),
        (("divergence", "student_nll", "teacher_nll"), "the teacher's logits"),
        ((), "the student's logits"),
    ],
)
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_the_cause_of_a_loss_that_is_not_finite(infinite, named, value):
    args = AKDConfig("run", divergence="abkd", divergence_kwargs={"alpha": 1, "beta": -1})
    sums = torch.zeros(2, len(METRICS) + 1)
    for name in infinite:
        sums[1, list(METRICS).index(name)] = value
    assert str(not_finite(sums, 7, args)).startswith(f"{named}")


@pytest.mark.parametrize("name", ["formatting_func", "compute_loss_func"])
def test_arguments_without_effect_are_refused(pair, config, name):
    with pytest.raises(ValueError, match=f"`{name}` is given"):
        AKDTrainer(pair[0], pair[1], config(), train_dataset=tiny.rows(4), **{name: print})


def test_same_folder_with_another_spelling(pair, config):
    with pytest.raises(ValueError, match="student and teacher are the same model"):
        AKDTrainer(pair[0], pair[0] + "/.", config(), train_dataset=tiny.rows(4))


def test_missing_teacher(pair, config):
    with pytest.raises(ValueError, match="`teacher_model_name_or_path` is not set"):
        AKDTrainer(model=pair[0], args=config(), train_dataset=tiny.rows(4))


def test_same_model_twice(pair, config):
    with pytest.raises(ValueError, match="student and teacher are the same model"):
        AKDTrainer(model=pair[0], teacher_model=pair[0], args=config(), train_dataset=tiny.rows(4))
    one = tiny.model()
    with pytest.raises(ValueError, match="student and teacher are the same model"):
        AKDTrainer(model=one, teacher_model=one, args=config(), train_dataset=tiny.rows(4))


def test_seq_kd_without_a_teacher(pair, config):
    from peft import LoraConfig

    with pytest.raises(ValueError, match="`seq_kd` is on"):
        AKDTrainer(
            model=pair[0],
            args=config(seq_kd=True),
            train_dataset=tiny.rows(4),
            peft_config=LoraConfig(task_type="CAUSAL_LM"),
        )


def test_init_kwargs_for_a_loaded_teacher(trainer):
    with pytest.raises(ValueError, match="`teacher_model_init_kwargs` is set"):
        trainer(
            None, tiny.model("qwen2"), teacher_model_init_kwargs={"dtype": "auto"}, processing_class=tiny.tokenizer()
        )


def test_error_names_the_first_different_token(trainer):
    other = tiny.tokenizer()
    state = other.backend_tokenizer.to_str().replace('"A":', '"@@":').replace('"B":', '"A":').replace('"@@":', '"B":')
    swapped = type(other)(
        tokenizer_object=type(other.backend_tokenizer).from_str(state), pad_token="<pad>", eos_token="<|endoftext|>"
    )
    with pytest.raises(ValueError, match="'A'"):
        trainer(teacher_tokenizer=swapped)


@pytest.mark.parametrize("name", ["train", "eval"])
def test_empty_dataset(name):
    empty = Dataset.from_dict({"prompt": [], "completion": []})
    given = {"train_dataset": tiny.rows(4), "eval_dataset": tiny.rows(4), f"{name}_dataset": empty}
    with pytest.raises(ValueError, match=f"the {name} dataset is empty"):
        AKDTrainer(model=tiny.model(), teacher_model=tiny.model("qwen2"), processing_class=tiny.tokenizer(), **given)


def test_missing_column(trainer):
    with pytest.raises(ValueError, match="completion"):
        trainer(train_dataset=Dataset.from_dict({"prompt": ["a"]}))


def test_rows_that_are_all_too_long(trainer):
    with pytest.raises(ValueError, match="max_length"):
        trainer(max_length=4, train_dataset=Dataset.from_dict({"prompt": ["long prompt"], "completion": ["x"]}))


# Checkpoints


def test_resume_with_another_strategy(trainer, tmp_path):
    trainer(save_strategy="steps", save_steps=1, output_dir=str(tmp_path)).train()
    changed = trainer(beta_strategy="m1", output_dir=str(tmp_path), max_steps=3)
    with pytest.raises(ValueError, match=r"beta_strategy='akd'.*beta_strategy='m1'"):
        changed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_resume_with_another_divergence(trainer, tmp_path):
    trainer(output_dir=str(tmp_path), max_steps=1, save_strategy="steps", save_steps=1, divergence="jsd").train()
    changed = trainer(output_dir=str(tmp_path), max_steps=2, divergence="forward_kl")
    with pytest.raises(
        ValueError, match="was written with divergence='jsd', but this run has divergence='forward_kl'"
    ):
        changed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_resume_with_another_learning_rate_of_beta(trainer, tmp_path):
    trainer(save_strategy="steps", save_steps=1, output_dir=str(tmp_path)).train()
    changed = trainer(beta_learning_rate=0.02, output_dir=str(tmp_path), max_steps=3)
    with pytest.raises(ValueError, match=r"beta_learning_rate=0.01.*beta_learning_rate=0.02"):
        changed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_second_training_starts_over(trainer):
    made = trainer(max_steps=-1, num_train_epochs=3, seed=3)
    made.train()
    first = logs(made, "kd/beta")
    made.train()
    assert logs(made, "kd/beta") == pytest.approx(first, abs=1e-6)


def test_resume_from_another_method(trainer, tmp_path):
    trainer(save_strategy="steps", save_steps=1, output_dir=str(tmp_path)).train()
    (tmp_path / "checkpoint-1" / "akd_state.pt").unlink()
    with pytest.raises(ValueError, match=r"no akd_state.pt: another trainer wrote it"):
        trainer(output_dir=str(tmp_path)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_card_has_the_models_and_no_score(trainer, pair, tmp_path):
    made = trainer(output_dir=str(tmp_path / "mine"))
    made.provenance.recipe = "recipes/micro/akd/config.yaml"
    made.create_model_card(dataset_name="code_alpaca")
    card = (tmp_path / "mine" / "README.md").read_text()
    for part in (
        *(f"`{Path(path).name}`" for path in pair),
        "code_alpaca",
        "AKD",
        "`akd`",
        "recipes/micro/akd/config.yaml",
        "eq13",
    ):
        assert part in card, part
    assert "at revision" not in card, "the models are local folders"
    assert "No benchmark has been run on this model." in card and "pass@" not in card


def test_student_loads_afterwards(trainer, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = trainer()
    made.train()
    made.save_model(str(tmp_path / "student"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert AutoTokenizer.from_pretrained(tmp_path / "student").eos_token == "<|endoftext|>"
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


@pytest.mark.parametrize("settings", [{}, {"normalization": "token"}])
def test_padding_free_batches_have_the_same_losses(trainer, settings):
    rows = tiny.rows(8)
    padded, flat = (
        trainer(train_dataset=rows, eval_dataset=rows, max_length=40, padding_free=on, **settings)
        for on in (False, True)
    )
    assert "position_ids" in next(iter(flat.get_train_dataloader()))
    assert max(map(len, flat.train_dataset["input_ids"])) <= 40
    losses = [[made.evaluate()["eval_loss"], made.train() and logs(made, "loss")] for made in (padded, flat)]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-4)


def test_padding_free_with_a_collator_is_refused(trainer):
    with pytest.raises(ValueError, match="`padding_free` is on and a `data_collator` is given"):
        trainer(padding_free=True, data_collator=lambda rows: rows)


@pytest.mark.parametrize(
    ("role", "family"), [("student", "qwen2"), ("teacher", "qwen2"), ("teacher", "llama"), ("teacher", "gpt_bigcode")]
)
def test_folder_without_tokenizer(pair, config, tmp_path, role, family):
    """For Qwen2, transformers creates an empty tokenizer; for others it raises an error."""
    tiny.model(family).save_pretrained(tmp_path / role)
    models = {"student": pair[0], "teacher": pair[1], role: str(tmp_path / role)}
    with pytest.raises(ValueError, match=f"no tokenizer could be loaded for the {role}"):
        AKDTrainer(models["student"], models["teacher"], config(), train_dataset=tiny.rows(4))
