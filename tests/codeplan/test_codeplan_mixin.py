"""CodePLAN in trainers of other packages."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from tests import tiny
from trl_akd import AKDConfig, AKDTrainer, CodePLANMixin, DataCollatorForCodePLAN
from trl_akd.codeplan.codeplan_mixin import EpochCallback, codeplan_loss
from trl_akd.codeplan.collator import share_divisors
from trl_akd.codeplan.plan_head import PLAN_HEAD_FILE, add_plan_head, plan_head_of

from . import world

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "codeplan.md"
TOKENIZER = tiny.tokenizer()
RUN: dict[str, Any] = {
    **tiny.SHORT_RUN, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4,
    "optim": "sgd", "lr_scheduler_type": "constant", "seed": 3, "disable_tqdm": True, "bf16": False,
}  # fmt: skip


class PlainTrainer(CodePLANMixin, Trainer):
    pass


class TunedTrainer(CodePLANMixin, SFTTrainer):
    pass


@pytest.fixture(scope="module")
def rows() -> Dataset:
    """Seven problems, so that the last step of an epoch has a short micro-batch, with indices for the draws."""
    return world.problems(7).map(lambda row, index: {"index": index}, with_indices=True)


def collator(**settings: Any) -> DataCollatorForCodePLAN:
    return DataCollatorForCodePLAN(TOKENIZER, **{"seed": 3, "max_length": 256, **settings})


def make(trainer_class: Any, folder: Path, rows: Any, model: Any = None, collate: Any = None, **settings: Any) -> Any:
    config = SFTConfig if issubclass(trainer_class, SFTTrainer) else TrainingArguments
    given = {
        name: settings.pop(name)
        for name in ("eval_dataset", "compute_loss_func", "compute_metrics", "peft_config", "formatting_func")
        if name in settings
    }
    return trainer_class(
        tiny.model() if model is None else model,
        args=config(str(folder), **{**RUN, **settings}),
        train_dataset=rows,
        processing_class=TOKENIZER,
        data_collator=collate or collator(),
        **given,
    )


def losses(trainer: Any) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


# The page's script


def script() -> str:
    [block] = [text for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "CodePLANMixin" in text]
    return block


def run_script(folder: Path, monkeypatch: pytest.MonkeyPatch, block: str) -> Any:
    """Run the block in a folder with the model and data that it names."""
    home = folder / "Salesforce" / "codegen-350M-mono"
    model = tiny.model("codegen")
    model.save_pretrained(home)
    TOKENIZER.save_pretrained(home)
    world.problems(4).to_json(folder / "plans.jsonl")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(block, str(PAGE), "exec"), names)
    return names["trainer"]


def test_script_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    block = script().replace("num_train_epochs=10", "num_train_epochs=2, logging_steps=1")
    assert len([line for line in block.splitlines() if line.strip()]) <= 20
    seen = {}
    for plan_weight in ("0.5", "0.0", "1.0"):
        folder = tmp_path / plan_weight
        folder.mkdir()
        trainer = run_script(folder, monkeypatch, block.replace("plan_weight=0.5", f"plan_weight={plan_weight}"))
        seen[plan_weight] = losses(trainer)
        assert (folder / "student" / PLAN_HEAD_FILE).is_file()
    middle = (seen["0.0"][0] + seen["1.0"][0]) / 2
    assert seen["0.5"][0] == pytest.approx(middle, rel=1e-5), "before the first update λ mixes the tasks linearly"
    assert abs(seen["0.0"][0] - seen["1.0"][0]) > 1e-3


# The objective


@pytest.mark.parametrize(
    ("trainer_class", "plan_head", "plan_weight"),
    [
        (PlainTrainer, True, 0.0),
        (PlainTrainer, True, 0.3),
        (PlainTrainer, True, 1.0),
        (PlainTrainer, False, 0.3),
        (TunedTrainer, True, 0.3),
        (TunedTrainer, False, 1.0),
    ],
)
def test_losses_and_updates_equal_those_of_codeplan_trainer(
    trainer, rows, tmp_path: Path, trainer_class: Any, plan_head: bool, plan_weight: float
):
    model = tiny.model()
    if plan_head:
        add_plan_head(model)
    made = make(trainer_class, tmp_path / "own", rows, model, collator(plan_weight=plan_weight))
    made.train()
    expected = trainer(
        train_dataset=rows, plan_weight=plan_weight, plan_head="separate" if plan_head else "shared", **RUN
    )
    expected.train()
    assert losses(made) == pytest.approx(losses(expected), rel=1e-5)
    for (name, found), wanted in zip(made.model.named_parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "settings",
    [{"schedule": "alternate"}, {"guided_weight": 0.5}, {"normalization": "token"}, {"pad_to_multiple_of": 16}],
    ids=str,
)
def test_settings_of_the_collator_are_used(trainer, rows, tmp_path: Path, settings: dict[str, Any]):
    made = make(PlainTrainer, tmp_path / "own", rows, collate=collator(plan_weight=0.3, **settings))
    made.train()
    expected = trainer(train_dataset=rows, plan_weight=0.3, plan_head="shared", **RUN, **settings)
    expected.train()
    assert losses(made) == pytest.approx(losses(expected), rel=1e-5)


def test_an_encoder_decoder(trainer, rows, tmp_path: Path):
    given = {"train_dataset": rows, "plan_weight": 0.3, "processing_class": world.roberta_tokenizer()}
    expected = trainer(world.t5(), plan_head="shared", **RUN, **given)
    expected.train()
    made = PlainTrainer(
        world.t5(),
        TrainingArguments(str(tmp_path / "own"), **RUN),
        train_dataset=rows,
        data_collator=DataCollatorForCodePLAN(world.roberta_tokenizer(), plan_weight=0.3, max_length=256, seed=3),
    )
    made.train()
    assert losses(made) == pytest.approx(losses(expected), rel=1e-5)


def test_an_adapter_with_a_plan_head(rows, tmp_path: Path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = tiny.model()
    before = add_plan_head(model).weight.detach().clone()
    made = make(TunedTrainer, tmp_path, rows, model, peft_config=lora)
    made.train()
    made.save_model()
    saved = load_file(tmp_path / PLAN_HEAD_FILE)["weight"]
    assert torch.equal(saved, plan_head_of(made.model).weight)
    assert not torch.equal(saved, before)


def test_each_epoch_has_different_draws(rows, tmp_path: Path):
    made = make(PlainTrainer, tmp_path, rows, max_steps=-1, num_train_epochs=3, learning_rate=0.0)
    drawn: list[tuple[int, int]] = []
    collate = made.data_collator
    usual = type(collate)._example

    def spy(self, problem, task):
        prompt, answer = usual(self, problem, task)
        drawn.append((int(self._epoch), hash((tuple(prompt), tuple(answer)))))
        return prompt, answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(collate), "_example", spy)
        made.train()
    epochs = [{text for number, text in drawn if number == epoch} for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("trainer_class", [PlainTrainer, TunedTrainer])
def test_evaluations_are_comparable(rows, tmp_path: Path, trainer_class: Any):
    made = make(
        trainer_class, tmp_path, rows, max_steps=-1, num_train_epochs=3, learning_rate=0.0, eval_strategy="epoch",
        eval_dataset=world.problems(4, seed=1),
    )  # fmt: skip
    made.train()
    found = [log["eval_loss"] for log in made.state.log_history if "eval_loss" in log]
    assert len(found) == 3 and found == pytest.approx([found[0]] * 3, rel=1e-6)


def test_evaluation_does_not_depend_on_the_batch_size(rows, tmp_path: Path):
    found = [
        make(
            PlainTrainer, tmp_path, rows, eval_dataset=world.problems(7, seed=1), per_device_eval_batch_size=size
        ).evaluate()["eval_loss"]
        for size in (1, 4, 7)
    ]
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


def test_predictions_are_losses(rows, tmp_path: Path):
    output = make(PlainTrainer, tmp_path, rows).predict(world.problems(3, seed=1))
    assert output.predictions is None and output.metrics["test_loss"] > 0


def test_resumed_run_has_its_plan_head(rows, tmp_path: Path):
    def start(folder: Path, **settings: Any) -> Any:
        model = tiny.model()
        add_plan_head(model)
        return make(PlainTrainer, folder, rows, model, save_strategy="steps", save_steps=2, **settings)

    whole = start(tmp_path / "whole")
    whole.train()
    resumed = start(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    torch.testing.assert_close(plan_head_of(resumed.model).weight, plan_head_of(whole.model).weight)


def test_custom_training_loop(rows):
    """The losses of micro-batches with shared divisors add up to the loss of the whole batch."""
    model, collate = tiny.model(), collator(plan_weight=0.3)
    add_plan_head(model)
    whole = codeplan_loss(model, collate(list(rows)))
    parts = list(DataLoader(list(rows), batch_size=3, collate_fn=collate))
    assert len(parts) == 3
    shared = [codeplan_loss(model, batch) for batch in share_divisors(parts, collate.normalization)]
    assert sum(shared).item() == pytest.approx(whole.item(), rel=1e-5)
    accelerator = Accelerator(cpu=True)
    prepared = codeplan_loss(accelerator.prepare_model(model), collate(list(rows)), accelerator=accelerator)
    assert prepared.item() == pytest.approx(whole.item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"the keys input_ids, labels, but no `token_weights`"):
        codeplan_loss(model, {"input_ids": parts[0]["input_ids"], "labels": parts[0]["labels"]})


# Wrong use


class OwnLoss(Trainer):
    """A trainer whose loss reads the weights."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return codeplan_loss(model, inputs)


class OwnLogs(SFTTrainer):
    """A trainer that overrides anything but the loss."""

    def log(self, logs, start_time=None):
        super().log(logs, start_time)


class OwnTimes(Trainer):
    """A trainer whose loss calls its base class and does something else as well."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class OwnFallback(Trainer):
    """A trainer that reads the weights if a batch has them."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "token_weights" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return codeplan_loss(model, inputs)


class Reversed(Trainer, CodePLANMixin):
    """The mixin listed after the trainer, whose methods override those of the mixin."""


@pytest.mark.parametrize(
    ("trainer_class", "workers", "func"),
    [
        (Trainer, 0, None),
        (Reversed, 0, None),
        (SFTTrainer, 0, None),
        (OwnLogs, 1, None),
        (OwnTimes, 0, None),
        (Trainer, 0, lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum()),
    ],
)
def test_a_trainer_that_ignores_the_weights_is_refused(rows, tmp_path: Path, trainer_class, workers, func):
    settings = {"dataset_kwargs": {"skip_prepare_dataset": True}} if issubclass(trainer_class, SFTTrainer) else {}
    made = make(
        trainer_class, tmp_path, rows, remove_unused_columns=False, dataloader_num_workers=workers,
        compute_loss_func=func, **settings,
    )  # fmt: skip
    before = [parameter.detach().clone() for parameter in made.model.parameters()]
    with pytest.raises(ValueError, match=r"ignores its `token_weights`.*CodePLANMixin.*CodePLANTrainer"):
        made.train()
    assert all(torch.equal(one, other) for one, other in zip(before, made.model.parameters(), strict=True))


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_error_before_workers_start(rows, tmp_path: Path, context: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.multiprocessing.get_start_method", lambda allow_none=False: context)
    made = make(Trainer, tmp_path, rows, remove_unused_columns=False, dataloader_num_workers=1)
    usual = made.get_train_dataloader

    def spawning():
        loader = usual()
        loader.multiprocessing_context = context
        return loader

    made.get_train_dataloader = spawning
    with pytest.raises(ValueError, match=r"ignores its `token_weights`"):
        made.train()


def test_akd_with_the_collator_is_refused(rows, tmp_path: Path):
    made = AKDTrainer(
        tiny.model(),
        tiny.model("qwen2"),
        AKDConfig(str(tmp_path), **RUN),
        collator(),
        rows,
        processing_class=TOKENIZER,
    )
    with pytest.raises(ValueError, match="the loss of AKDTrainer ignores its `token_weights`"):
        made.train()


class PlainWithTimes(CodePLANMixin, OwnTimes):
    """The mixin before a trainer whose `compute_loss` it overrides."""


class TimesBefore(OwnTimes, PlainTrainer):
    """A trainer whose `compute_loss` calls that of the mixin."""


@pytest.mark.parametrize("trainer_class", [PlainWithTimes, TimesBefore])
def test_mixin_with_other_base_classes(rows, tmp_path: Path, trainer_class):
    expected = make(PlainTrainer, tmp_path / "plain", rows, max_steps=1)
    made = make(trainer_class, tmp_path / "own", rows, max_steps=1)
    for each in (made, expected):
        each.train()
    assert losses(made) == pytest.approx(losses(expected), rel=1e-6)


@pytest.mark.parametrize("trainer_class", [OwnLoss, OwnFallback])
def test_custom_loss_is_accepted(rows, tmp_path: Path, trainer_class):
    collate = collator()
    made = make(trainer_class, tmp_path, rows, collate=collate, remove_unused_columns=False)
    made.add_callback(EpochCallback(collate))
    made.train()
    assert len(losses(made)) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"collate": lambda rows: {}}, "`data_collator` is a function, which returns no token weights"),
        ({"compute_loss_func": lambda *args, **kwargs: None}, "`compute_loss_func` is given"),
        ({"compute_metrics": lambda predictions: {}}, "`compute_metrics` is given"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` is 0.1"),
    ],
)
def test_options_without_effect(rows, tmp_path: Path, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        make(PlainTrainer, tmp_path, rows, **settings)


@pytest.mark.parametrize(
    "setting",
    [
        {"loss_type": "dft"},
        {"completion_only_loss": True},
        {"assistant_only_loss": True},
        {"shuffle_dataset": True},
    ],
    ids=str,
)
def test_settings_of_sft_without_effect(rows, tmp_path: Path, setting: dict[str, Any]):
    [name] = setting
    with pytest.raises(ValueError, match=f"`{name}` is .*leave it out|`{name}=True`"):
        make(TunedTrainer, tmp_path, rows, **setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"pad_to_multiple_of": 64}, "`pad_to_multiple_of` is 64, but the collator, which pads the batches, has None"),
        ({"formatting_func": lambda row: row["problem"]}, "`formatting_func` is given"),
    ],
)
def test_settings_of_sft_that_the_collator_replaces(rows, tmp_path: Path, setting: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        make(TunedTrainer, tmp_path, rows, **setting)


def test_batches_by_length(rows, tmp_path: Path):
    settings = {"train_sampling_strategy": "group_by_length"}
    with pytest.raises(ValueError, match=r"the train dataset has no column 'length'.*add the column"):
        make(PlainTrainer, tmp_path, rows, **settings)
    made = make(PlainTrainer, tmp_path, rows.map(lambda row: {"length": len(row["problem"])}), **settings)
    made.train()
    assert len(losses(made)) == 4


def test_batch_for_another_model_type(rows):
    for model, tokenizer in ((tiny.model(), TOKENIZER), (world.t5(), world.roberta_tokenizer())):
        kind = model.config.is_encoder_decoder
        batch = DataCollatorForCodePLAN(tokenizer, is_encoder_decoder=not kind)(list(rows)[:2])
        with pytest.raises(ValueError, match=rf"`is_encoder_decoder` of the collator is {not kind}, but .*={kind}\)"):
            codeplan_loss(model, batch)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokenizer": "gpt2"}, "`tokenizer` is 'gpt2', of type str; give a tokenizer"),
        ({"tokenizer": None}, "`tokenizer` is None"),
        ({"plan_weight": "0.5"}, "`plan_weight` is '0.5', of type str; give a number"),
        ({"guided_weight": None}, "`guided_weight` is None, of type NoneType; give a number"),
    ],
)
def test_values_of_another_type(given: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        DataCollatorForCodePLAN(**{"tokenizer": TOKENIZER, **given})


def test_several_gpus_of_one_process(rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="2 GPUs are visible to a single process"):
        make(PlainTrainer, tmp_path, rows)
