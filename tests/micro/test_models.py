import itertools
import random
from collections.abc import Iterable

import pytest
import torch
from datasets import config as datasets_config
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from trl_akd.micro.models import (
    VOCABULARY_SIZE,
    new_model,
    order_by_length,
    pretrain,
    student_config,
    teacher_config,
    train_tokenizer,
)
from trl_akd.micro.tasks import Task, sample_tasks
from trl_akd.micro.teacher_data import AKD_DATA, code_rows


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return sample_tasks(2000, split="train")


@pytest.fixture(scope="module")
def tokenizer(tasks: list[Task]) -> PreTrainedTokenizerFast:
    return train_tokenizer(task.prompt + task.solution for task in tasks)


@pytest.mark.parametrize(
    "text",
    [
        "def solve(numbers):\n    numbers = sorted(numbers)\n    return numbers[::-1]\n",
        "\n\n\tdef f():\n\t\treturn 'é'  # tab, accent,  two spaces \n",
        "    indented, then nothing\n\n\n",
    ],
)
def test_text_decodes_to_itself(tokenizer: PreTrainedTokenizerFast, text: str):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_program_decodes_to_itself_whether_or_not_joined_to_its_prompt(
    tokenizer: PreTrainedTokenizerFast, tasks: list[Task]
):
    for task in tasks[:200]:
        prompt, solution = tokenizer([task.prompt, task.solution])["input_ids"]
        assert prompt + solution == tokenizer(task.prompt + task.solution)["input_ids"]
        assert tokenizer.decode(prompt + solution) == task.prompt + task.solution


def test_arguments_are_separate_tokens(tokenizer: PreTrainedTokenizerFast):
    for text in ("keep the first 7 characters", "text[7:]", "remove the letter 'e'", "text.replace('e', '')"):
        tokens = [tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]]
        assert "7" in tokens or tokenizer.decode(tokenizer("'e'")["input_ids"]) in "".join(tokens)
        assert not any(token != "7" and "7" in token for token in tokens)


def test_tokenizer_has_pad_and_eos_and_survives_saving(tokenizer: PreTrainedTokenizerFast, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "    a = 1\n\n    b = '  '\n"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)
    assert len(loaded) <= VOCABULARY_SIZE


def test_rows_fit_the_models(tokenizer: PreTrainedTokenizerFast, tasks: list[Task]):
    longest = max(len(tokenizer(task.prompt + task.solution)["input_ids"]) for task in tasks)
    assert longest < AKD_DATA.max_length // 2


def test_sizes(tokenizer: PreTrainedTokenizerFast):
    teacher, student = new_model(teacher_config(tokenizer, 128)), new_model(student_config(tokenizer, 128))
    assert 0.8e6 < teacher.num_parameters() < 1.2e6
    assert student.num_parameters() < 0.3 * teacher.num_parameters()


def test_new_models_depend_on_the_seed_alone(tokenizer: PreTrainedTokenizerFast):
    config = student_config(tokenizer, 128)
    torch.manual_seed(1)
    one = new_model(config, seed=5).state_dict()
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1)), "new_model must leave the global generator alone"
    same, other = new_model(config, seed=5).state_dict(), new_model(config, seed=6).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_batches_have_similar_lengths_in_random_order():
    rng = random.Random(0)
    lengths = [rng.randint(10, 50) for _ in range(2010)]

    def widths(order: Iterable[int]) -> list[int]:
        rows = list(order)
        return [max(lengths[row] for row in rows[i : i + 32]) for i in range(0, len(rows), 32)]

    order = order_by_length(lengths, batch_size=32)
    assert sorted(order) == list(range(2010))
    assert sum(widths(order)) < 0.7 * sum(widths(range(2010)))
    rises = sum(one < next_one for one, next_one in itertools.pairwise(widths(order)))
    assert 0.3 * 63 < rises < 0.7 * 63
    assert order != order_by_length(lengths, batch_size=32, seed=1)


def nats_per_token(model, tokenizer, tasks: list[Task]) -> float:
    total, count = 0.0, 0
    for task in tasks:
        prompt, solution = tokenizer([task.prompt, task.solution])["input_ids"]
        input_ids = torch.tensor([[*prompt, *solution, tokenizer.eos_token_id]])
        with torch.no_grad():
            log_probs = model(input_ids).logits[0].double().log_softmax(-1)
        targets = input_ids[0, len(prompt) :]
        total -= sum(log_probs[len(prompt) - 1 + i, target].item() for i, target in enumerate(targets))
        count += len(targets)
    return total / count


def test_pretraining_learns_programs_and_loads_back(tokenizer, tasks: list[Task], tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model = new_model(student_config(tokenizer, 128))
    before = nats_per_token(model.eval(), tokenizer, tasks[-20:])
    pretrain(model, tokenizer, list(code_rows(tasks[:-20])), output_dir=tmp_path / "run", max_steps=60)
    after = nats_per_token(model.eval(), tokenizer, tasks[-20:])
    assert before > 6.0
    assert after < 2.5

    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert nats_per_token(loaded.eval(), tokenizer, tasks[-5:]) == pytest.approx(
        nats_per_token(model, tokenizer, tasks[-5:]), rel=1e-5
    )
