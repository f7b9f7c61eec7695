"""Sampled text differs between processes, steps and micro-batches, and is the same after resuming."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from datasets import Dataset

from tests import tiny


def written(trainer, *batches):
    return [batch["labels"].tolist() for batch in trainer._complete(list(batches))]


def texts_of(batches):
    """Completions of all rows, in order."""
    return [[token for token in row.tolist() if token != -100] for batch in batches for row in batch["labels"]]


def test_equal_prompts_have_different_text_per_process_and_micro_batch(trainer, monkeypatch):
    rows = Dataset.from_list([{"prompt": "def f\n", "completion": "x"}] * 4)
    made = trainer(train_dataset=rows, lmbda=1.0, max_new_tokens=8)
    batch = made.data_collator([made.train_dataset[index] for index in range(4)])
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    texts = {}
    for process in range(3):
        monkeypatch.setattr(Accelerator, "process_index", property(lambda self, process=process: process))
        for step in range(2):
            made.state.global_step = step
            for micro_batch, rows in enumerate(written(made, batch, batch)):
                texts[process, step, micro_batch] = str(rows)
    assert len(set(texts.values())) == len(texts)
    torch.manual_seed(99)
    assert str(written(made, batch, batch)[1]) == texts[2, 1, 1], "the text is a function of seed, step and row"


@pytest.mark.parametrize("settings", [{"lmbda": 1.0}, {"seq_kd": True}])
@pytest.mark.parametrize(("processes", "size"), [(1, 4), (1, 1), (2, 2), (2, 1), (4, 1)])
def test_text_does_not_depend_on_the_split(trainer, monkeypatch, settings, processes, size):
    """Eight rows per step on any number of processes: each row has the same text, and its own."""
    made = trainer(max_new_tokens=8, train_dataset=tiny.rows(8), **settings)
    rows = [made.train_dataset[index] for index in range(8)]
    whole = texts_of(made._complete([made.data_collator(rows)]))
    assert len({tuple(text) for text in whole}) == 8
    made._train_batch_size = size
    monkeypatch.setattr(Accelerator, "num_processes", processes)
    found = {}
    for process in range(processes):
        monkeypatch.setattr(Accelerator, "process_index", property(lambda self, process=process: process))
        starts = range(process * size, 8, processes * size)
        batches = [made.data_collator(rows[start : start + size]) for start in starts]
        numbers = [number for start in starts for number in range(start, start + size)]
        found.update(zip(numbers, texts_of(made._complete(batches)), strict=True))
    assert [found[number] for number in range(8)] == whole


@pytest.mark.parametrize("changed", [{"top_k": 1}, {"top_p": 1e-4}, {"min_p": 0.999}, {"do_sample": False}, {}])
def test_generation_config_shapes_the_distribution(trainer, changed):
    """With all but the most likely token excluded, every row has the text of greedy decoding."""
    made = trainer(max_new_tokens=6, lmbda=1.0)
    batch = next(iter(made.get_train_dataloader()))
    for name, value in changed.items():
        setattr(made.generation_config, name, value)
    found = texts_of(made._complete([batch]))
    greedy = made.model.generate(
        batch["prompts"], attention_mask=batch["prompt_attention_mask"], max_new_tokens=6, do_sample=False
    )[:, batch["prompts"].shape[1] :]
    expected = [row.tolist() for row in greedy]
    same = all(row[: len(text)] == text for row, text in zip(expected, found, strict=True))
    assert same == bool(changed)


def test_beam_search(trainer):
    made = trainer(max_new_tokens=6, seq_kd=True)
    batch = next(iter(made.get_train_dataloader()))
    made.generation_config.num_beams = 3
    with pytest.raises(ValueError, match="do_sample=True and num_beams=3; set do_sample=False for beam search"):
        made._complete([batch])
    made.generation_config.do_sample = False
    found = texts_of(made._complete([batch]))
    beams = made.teacher_model.generate(
        batch["prompts"],
        attention_mask=batch["prompt_attention_mask"],
        generation_config=made.generation_config,
    )[:, batch["prompts"].shape[1] :].tolist()
    greedy = made.teacher_model.generate(
        batch["prompts"], attention_mask=batch["prompt_attention_mask"], max_new_tokens=6, do_sample=False
    )[:, batch["prompts"].shape[1] :].tolist()
    assert beams != greedy
    assert all(row[: len(text)] == text for row, text in zip(beams, found, strict=True))


def test_memory_that_does_not_suffice_halves_the_batch(trainer, monkeypatch):
    made = trainer(max_new_tokens=4, lmbda=1.0, train_dataset=tiny.rows(8))
    batches = [made.data_collator([made.train_dataset[index]]) for index in range(8)]
    expected, sizes, original = written(made, *batches), [], type(made.model).generate

    def limited(self, input_ids, **options):
        sizes.append(len(input_ids))
        if len(input_ids) > limit:
            raise torch.OutOfMemoryError
        return original(self, input_ids, **options)

    monkeypatch.setattr(type(made.model), "generate", limited)
    limit = 2
    assert written(made, *batches) == expected
    assert written(made, *batches) == expected
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2], "the second step begins with the size that sufficed"
    limit = 0
    with pytest.raises(torch.OutOfMemoryError, match="lower `max_new_tokens` or `max_length`"):
        written(made, *batches)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, DistributedType.FSDP),
        ({"divergence": "minillm", "temperature": 1.0}, DistributedType.DEEPSPEED),
        ({}, DistributedType.DEEPSPEED),
    ],
    ids=["fsdp", "mixture", "alone"],
)
def test_processes_that_generate_in_step_have_equally_many_batches(trainer, monkeypatch, settings, kind):
    """Processes that generate in step never halve their batches, as all must generate equally many."""
    made = trainer(max_new_tokens=4, lmbda=1.0, train_dataset=tiny.rows(8), per_device_train_batch_size=2, **settings)
    batches = [made.data_collator([made.train_dataset[index] for index in (row, row + 1)]) for row in (0, 2, 4)]
    calls, original, limit = [], type(made.model).generate, 8

    def limited(self, input_ids, synced_gpus, **options):
        calls.append((len(input_ids), synced_gpus))
        if len(input_ids) > limit:
            raise torch.OutOfMemoryError
        return original(self, input_ids, **options)

    monkeypatch.setattr(type(made.model), "generate", limited)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    made._complete(batches)
    if not settings and kind == DistributedType.DEEPSPEED:
        assert calls == [(6, False)]
        return
    assert calls == [(2, None)] * 3
    limit = 1
    with pytest.raises(RuntimeError, match=r"memory does not suffice .* lower `max_new_tokens`") as caught:
        made._complete(batches)
    assert not isinstance(caught.value, torch.OutOfMemoryError)
    assert len(calls) == 4


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
