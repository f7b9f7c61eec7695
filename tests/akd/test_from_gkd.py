"""Arguments and overridden methods of users of TRL's `GKDTrainer`.

The cases of TRL's own tests of `GKDTrainer`, adapted to tiny local models. A case that must fail here is one of
`docs/methods/akd.md`, section "Differences from GKDTrainer".
"""

import ast
import inspect
import os
import sys
import textwrap
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from accelerate import ParallelismConfig
from datasets import Dataset, DatasetDict, IterableDatasetDict, concatenate_datasets
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from tests import tiny
from trl_akd import AKDConfig, AKDTrainer, CodePLANConfig, CodePLANTrainer, IterKDConfig, IterKDTrainer
from trl_akd.akd.gkd import GKDConfig, GKDTrainer
from trl_akd.akd.validation import _NEVER_CALLED

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def conversations(number: int = 4) -> Dataset:
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y = 1"}]
    return Dataset.from_dict({"messages": [turns] * number})


def chat_tokenizer():
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = CHAT
    return tokenizer


# TRL's cases


def test_trains_evaluates_and_saves(trainer, tmp_path):
    made = trainer(
        train_dataset=conversations(8),
        eval_dataset=conversations(5),
        processing_class=chat_tokenizer(),
        output_dir=str(tmp_path),
        dataloader_drop_last=True,
        eval_strategy="steps",
        max_steps=4,
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        lmbda=0.5,
        max_new_tokens=4,
    )
    made.train()
    assert made.state.log_history[-1]["train_loss"] is not None
    assert any("eval_loss" in log for log in made.state.log_history)
    assert "model.safetensors" in os.listdir(tmp_path / "checkpoint-2")


@pytest.mark.parametrize(
    "kind", ["dataset", "stream", "dataset_dict", "stream_dict", "dict", "dict_of_streams", "none"]
)
def test_types_of_evaluation_data(trainer, kind):
    rows = conversations()
    streamed = rows.to_iterable_dataset()
    data = {
        "dataset": rows,
        "stream": streamed,
        "dataset_dict": DatasetDict({"data1": rows, "data2": rows}),
        "stream_dict": IterableDatasetDict({"data1": streamed, "data2": streamed}),
        "dict": {"data1": rows, "data2": rows},
        "dict_of_streams": {"data1": streamed, "data2": streamed},
        "none": None,
    }[kind]
    made = trainer(train_dataset=rows, eval_dataset=data, processing_class=chat_tokenizer(), max_length=128)
    if isinstance(data, dict):
        assert set(made.eval_dataset) == {"data1", "data2"}
        assert {"eval_data1_loss", "eval_data2_loss"} <= set(made.evaluate())
    elif data is not None:
        assert "eval_loss" in made.evaluate()
    else:
        assert made.eval_dataset is None


def test_generation_config_is_that_of_gkd(trainer):
    made = trainer(train_dataset=conversations(), processing_class=chat_tokenizer(), max_length=128)
    config = made.generation_config
    assert config.pad_token_id == made.processing_class.eos_token_id
    assert config.eos_token_id == made.model.generation_config.eos_token_id == 257
    assert (config.max_new_tokens, config.temperature) == (made.args.max_new_tokens, made.args.temperature)
    assert (config.top_k, config.top_p, config.do_sample) == (0, 1.0, True)


def test_generation_config_may_be_changed(trainer):
    made = trainer(lmbda=1.0, max_new_tokens=6)
    made.generation_config.max_new_tokens = 2
    made._train_batch_size, made.model_wrapped = 4, made.model
    batches, _ = made.get_batch_samples(iter(made.get_train_dataloader()), 1, torch.device("cpu"))
    assert (batches[0]["labels"] != -100).sum(1).max() <= 2


@pytest.mark.parametrize("normalization", ["token", "sequence"])
@pytest.mark.parametrize("training", [True, False])
def test_loss_is_divided_by_the_items_given(trainer, normalization, training):
    made = trainer(normalization=normalization)
    batch = made.data_collator([made.train_dataset[index] for index in range(3)])
    labels = batch["labels"][:, 1:]
    items = int((labels != -100).sum()) if normalization == "token" else len(labels)
    made.model.train(training)
    with torch.no_grad():
        mean = made.compute_loss(made.model, batch)
        for given in (items, float(items), torch.tensor(items), torch.tensor([items]), torch.tensor(float(items))):
            assert made.compute_loss(made.model, batch, num_items_in_batch=given) == pytest.approx(float(mean))
            assert made.compute_loss(made.model, batch, num_items_in_batch=2 * given) == pytest.approx(float(mean) / 2)


def test_loss_covers_all_completion_tokens_for_any_prompt_lengths(trainer):
    turns = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there, how are you?"}],
        [
            {"role": "user", "content": "Explain in detail the theory of relativity"},
            {"role": "assistant", "content": "OK"},
        ],
    ]
    made = trainer(
        train_dataset=Dataset.from_dict({"messages": turns}), processing_class=chat_tokenizer(), max_length=128
    )
    batch = made.data_collator(list(made.train_dataset))
    texts = [made.processing_class.decode(row[row != -100]) for row in batch["labels"]]
    assert texts == [f"{row[1]['content']}\n<|endoftext|>" for row in turns]


def test_custom_loss(pair, config):
    class Own(AKDTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())

    made = Own(pair[0], pair[1], config(), train_dataset=tiny.rows(8))
    made.train()
    assert all(log["loss"] > 0 for log in made.state.log_history if "loss" in log)


def test_custom_loss_that_calls_super(pair, config):
    class Half(AKDTrainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) / 2

    half, whole = (
        kind(pair[0], pair[1], config(max_steps=1), train_dataset=tiny.rows(8)) for kind in (Half, AKDTrainer)
    )
    half.train(), whole.train()
    assert half.state.log_history[0]["loss"] == pytest.approx(whole.state.log_history[0]["loss"] / 2, abs=1e-4)


# Refusals


@pytest.mark.parametrize("hook", sorted(_NEVER_CALLED))
@pytest.mark.parametrize("base", [AKDTrainer, CodePLANTrainer, IterKDTrainer])
def test_override_without_effect_is_refused(pair, tmp_path, hook, base):
    parent = type("Parent", (base,), {hook: lambda *args: None})
    child = type("Child", (parent,), {})
    with pytest.raises(TypeError, match=rf"Parent overrides `{hook}`, which .* never calls.*override `"):
        child(pair[0], pair[1], None, train_dataset=Dataset.from_dict({"instruction": ["x"]}))


def test_all_other_overrides_are_called():
    """Methods that an overridden method would have called are called elsewhere, or overrides of them are refused."""

    def called_in(function) -> set[str]:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        return {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
        }

    parents = (GKDTrainer, SFTTrainer, *SFTTrainer.__mro__[1 : SFTTrainer.__mro__.index(Trainer) + 1])
    bypassed = {
        (GKDTrainer, "__init__"),
        (GKDTrainer, "training_step"),
        (GKDTrainer, "compute_loss"),
        (SFTTrainer, "compute_loss"),
        (SFTTrainer, "_prepare_dataset"),
        (Trainer, "compute_loss"),
        (Trainer, "prediction_step"),
        (Trainer, "get_batch_samples"),
    }
    live: set[str] = called_in(AKDTrainer)
    for parent in parents:
        for name, function in vars(parent).items():
            if inspect.isfunction(function) and (parent, name) not in bypassed and name not in _NEVER_CALLED:
                live |= called_in(function)
    methods = {name for parent in parents for name, function in inspect.getmembers(parent, callable)}
    reached = {name for parent, name in bypassed for name in called_in(getattr(parent, name))} & methods
    own_of_gkd = {
        name for name in vars(GKDTrainer) if not name.startswith("__") and callable(getattr(GKDTrainer, name))
    }
    private = {"_liger_student_forward"}  # of TRL before 1.14, whose loss with Liger kernels is replaced as a whole
    assert (reached | own_of_gkd) - live - private - {"compute_loss", "training_step"} == set(_NEVER_CALLED)


@pytest.mark.parametrize(
    ("kind", "own", "others"),
    [
        (AKDTrainer, AKDConfig, (GKDConfig, SFTConfig, TrainingArguments)),
        (CodePLANTrainer, CodePLANConfig, (AKDConfig, GKDConfig, TrainingArguments, IterKDConfig)),
        (IterKDTrainer, IterKDConfig, (AKDConfig, SFTConfig, TrainingArguments, CodePLANConfig)),
    ],
)
def test_a_configuration_of_another_trainer_is_refused(pair, tmp_path, kind, own, others):
    for other in others:
        args = other(output_dir=str(tmp_path), use_cpu=True, report_to="none", bf16=False)
        with pytest.raises(
            TypeError, match=rf"`args` is a {other.__name__}, but {kind.__name__} takes an? {own.__name__}"
        ):
            kind(pair[0], pair[1], args, train_dataset=Dataset.from_dict({"instruction": ["x"]}))


@pytest.mark.parametrize("name", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"])
@pytest.mark.parametrize("where", ["peft_config", "student", "teacher"])
def test_virtual_tokens_are_refused(trainer, name, where):
    import peft

    virtual = getattr(peft, name)(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(ValueError, match=rf"`peft_config` is a {name}, which learns virtual tokens"):
        if where == "peft_config":
            trainer(peft_config=virtual)
        elif where == "student":
            trainer(peft.get_peft_model(tiny.model(), virtual))
        else:
            trainer(None, peft.get_peft_model(tiny.model("qwen2"), virtual), processing_class=tiny.tokenizer())


@pytest.mark.parametrize("method", ["cp", "sp", "tp"])
def test_parallelism_within_a_row_is_refused(trainer, monkeypatch, method):
    monkeypatch.setattr("accelerate.ParallelismConfig._validate_accelerator", lambda *args: None)
    with pytest.raises(ValueError, match=rf"`parallelism_config` has {method}_size=2.*set {method}_size=1"):
        trainer(parallelism_config=ParallelismConfig(**{f"{method}_size": 2}))


# Rows


@pytest.mark.parametrize("settings", [{"lmbda": 1.0}, {"seq_kd": True}, {"lmbda": 0.5, "seq_kd": True}])
@pytest.mark.parametrize("streaming", [False, True])
def test_prompts_without_completions_if_all_text_is_generated(trainer, settings, streaming):
    rows = tiny.rows(8).select_columns("prompt")
    made = trainer(
        train_dataset=rows.to_iterable_dataset() if streaming else rows,
        eval_dataset=tiny.rows(4, seed=1),
        max_new_tokens=4,
        **settings,
    )
    made.train()
    assert len([log for log in made.state.log_history if log.get("loss", 0) > 0]) == 2
    assert made.evaluate()["eval_loss"] > 0


def test_prompts_without_completions_are_refused_otherwise(trainer):
    rows = tiny.rows(4).select_columns("prompt")
    with pytest.raises(
        ValueError,
        match=r"'completion' is missing.*or add completions: prompts alone .* with lmbda=1",
    ):
        trainer(train_dataset=rows, lmbda=0.5)
    with pytest.raises(ValueError, match="'completion' is missing"):
        trainer(eval_dataset=rows, lmbda=1.0)


def test_reasoning_template_is_sampled_from_as_at_inference(trainer):
    """The prompt in training may end differently from the one that text is generated from."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = CHAT.replace("<assistant>{% endif", "<assistant><think>{% endif")
    made = trainer(
        train_dataset=conversations(), processing_class=tokenizer, max_length=128, lmbda=1.0, max_new_tokens=3
    )
    batch = next(iter(made.get_train_dataloader()))
    assert all(text.endswith("<assistant><think>") for text in tokenizer.batch_decode(batch["prompts"]))
    assert "<think>" not in tokenizer.decode(batch["input_ids"][0])
    made.train()


def test_whole_texts_train(trainer):
    data = Dataset.from_dict({"text": ["def f(x):\n    return x\n"] * 8})
    made = trainer(train_dataset=data, eval_dataset=data)
    made.train()
    assert made.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("settings", [{"lmbda": 1.0}, {"seq_kd": True, "gradient_accumulation_steps": 2}])
def test_completions_are_logged(trainer, tmp_path, capsys, settings):
    made = trainer(
        train_dataset=tiny.rows(16),
        output_dir=str(tmp_path),
        log_completions=True,
        num_completions_to_print=1,
        max_new_tokens=4,
        logging_steps=2,
        max_steps=4,
        **settings,
    )
    made.train()
    files = sorted(path.name for path in (tmp_path / "completions").iterdir())
    assert files == ["completions_00002.parquet", "completions_00004.parquet"]
    table = pd.read_parquet(tmp_path / "completions" / files[0])
    assert list(table.columns) == ["step", "prompt", "completion"]
    assert len(table) == 4 * settings.get("gradient_accumulation_steps", 1)  # those of the latest step
    assert set(table.step) == {2}
    assert set(table.prompt) <= set(tiny.rows(16)["prompt"])
    assert "Step 2" in capsys.readouterr().out


def test_completions_are_reported(trainer, tmp_path, monkeypatch):
    reported = []
    tracker = SimpleNamespace(
        Table=lambda dataframe: dataframe, log=lambda entry: reported.append(entry["completions"])
    )
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    rows = tiny.rows(1)
    made = trainer(
        train_dataset=concatenate_datasets([rows] * 4),
        output_dir=str(tmp_path),
        lmbda=1.0,
        log_completions=True,
        log_unique_prompts=True,
        max_new_tokens=2,
        max_steps=1,
    )
    made.args.report_to = ["trackio"]
    board: list[tuple[str, str, int]] = []
    writer = TrainerCallback()
    writer.tb_writer = SimpleNamespace(add_text=lambda *entry: board.append(entry))
    made.add_callback(writer)
    made.train()
    assert [list(table.prompt) for table in reported] == [rows["prompt"][:]]
    [(name, text, step)] = board
    assert (name, step) == ("completions/0", 1) and text.startswith("**prompt**\n\n    ")
    assert rows["prompt"][0].strip() in text and "\n\n**completion**\n\n    " in text


@pytest.mark.parametrize("form", ["text", "messages"])
def test_completions_are_logged_by_trls_callback(trainer, monkeypatch, form):
    from trl import LogCompletionsCallback

    rows, tokenizer = tiny.rows(6), chat_tokenizer()
    if form == "messages":
        turns = [[{"role": "user", "content": "x"}]] * 6
        rows = Dataset.from_dict({"prompt": turns, "completion": [[{"role": "assistant", "content": "y"}]] * 6})
    made = trainer(
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        max_length=128,
        eval_strategy="steps",
        eval_steps=1,
    )
    assert made.eval_dataset["prompt"][:] == rows["prompt"][:]
    config = made.generation_config.__class__(max_new_tokens=3, do_sample=True, pad_token_id=256)
    callback = LogCompletionsCallback(made, config, num_prompts=4)
    made.add_callback(callback)
    made.train()
    assert len(callback.table) == 8
    assert made.evaluate(rows)["eval_loss"] > 0


def test_evaluation_dataset_named_train_is_not_training_data(trainer):
    prompts, rows = tiny.rows(4).remove_columns("completion"), tiny.rows(3, seed=1)
    settings = {"train_dataset": prompts, "lmbda": 1.0, "max_new_tokens": 4}
    made = trainer(eval_dataset={"train": rows, "other": rows}, **settings)
    assert made.eval_dataset["train"].column_names == made.eval_dataset["other"].column_names
    assert made.evaluate()["eval_train_loss"] > 0
    with pytest.raises(ValueError, match=r"prompts alone are enough for training .* but not for evaluation"):
        trainer(eval_dataset={"train": prompts}, **settings)
    with pytest.raises(ValueError, match=r"\['a'\], none of which belongs to a known format"):
        trainer(train_dataset=Dataset.from_dict({"a": ["x"]}), eval_dataset={"train": rows})
