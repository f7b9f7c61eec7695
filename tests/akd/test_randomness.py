"""Sampled text differs between processes, steps and micro-batches, and is the same after resuming."""

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

from tests import tiny


def written(trainer, batch, micro_batch=0):
    return trainer._with_generated_text(batch, micro_batch)["labels"].tolist()


def test_equal_prompts_have_different_text_per_process_and_micro_batch(trainer, monkeypatch):
    rows = Dataset.from_list([{"prompt": "def f\n", "completion": "x"}] * 4)
    made = trainer(train_dataset=rows, lmbda=1.0, max_new_tokens=8)
    batch = made.data_collator([made.train_dataset[index] for index in range(4)])
    texts = {}
    for process in range(3):
        monkeypatch.setattr(Accelerator, "process_index", property(lambda self, process=process: process))
        for step in range(2):
            made.state.global_step = step
            for micro_batch in range(2):
                texts[process, step, micro_batch] = str(written(made, batch, micro_batch))
    assert len(set(texts.values())) == len(texts)
    torch.manual_seed(99)
    assert str(written(made, batch, 1)) == texts[2, 1, 1], "the text is a function of seed, step and process"


@pytest.mark.parametrize("settings", [{"lmbda": 1.0}, {"seq_kd": True}])
def test_sampling_does_not_change_the_random_state(trainer, settings):
    made = trainer(max_new_tokens=4, **settings)
    batch = next(iter(made.get_train_dataloader()))
    before = torch.get_rng_state()
    written(made, batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_resumed_run_samples_the_same_text(trainer, tmp_path):
    settings = {
        "lmbda": 0.5,
        "seq_kd": True,
        "max_new_tokens": 6,
        "max_steps": 4,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "output_dir": str(tmp_path),
    }
    whole = trainer(**settings)
    whole.train()
    resumed = trainer(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=1e-7)


@pytest.mark.parametrize("step", [2, 3, 5, 6, 7])
def test_stream_resumes_within_the_interrupted_epoch(trainer, tmp_path, step):
    """Three steps per epoch: β is redrawn, and the rows start over, after the third and the sixth step."""
    settings = {
        "train_dataset": tiny.rows(12).to_iterable_dataset(),
        "max_steps": 8,
        "seed": 1,
        "optim": "sgd",
        "save_strategy": "steps",
        "save_steps": 1,
        "output_dir": str(tmp_path),
    }
    whole = trainer(**settings)
    whole.train()
    resumed = trainer(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert resumed.adaptive_beta.epoch == whole.adaptive_beta.epoch == 2
    assert resumed.adaptive_beta.value == whole.adaptive_beta.value
    for found, expected in zip(
        resumed.adaptive_beta.state_dict()["optimizer"]["state"][0].values(),
        whole.adaptive_beta.state_dict()["optimizer"]["state"][0].values(),
        strict=True,
    ):
        assert found == expected
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=1e-7)


def test_stream_continues_with_more_steps_within_its_first_epoch(trainer, tmp_path):
    settings = {"train_dataset": tiny.rows(40).to_iterable_dataset(), "save_strategy": "steps", "save_steps": 2}
    trainer(**settings, max_steps=2, output_dir=str(tmp_path)).train()
    longer = trainer(**settings, max_steps=4)
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    whole = trainer(**settings, max_steps=4)
    whole.train()
    assert longer.adaptive_beta.epoch == 0
    assert longer.state.log_history[-2]["num_tokens"] == whole.state.log_history[-2]["num_tokens"]
