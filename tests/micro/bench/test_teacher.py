"""The exact teacher against sums over all programs, and its way into the trainer."""

import math
from collections import Counter
from functools import cache

import pytest
import torch
from datasets import Dataset

from tests.tiny import SHORT_RUN
from trl_akd import AKDConfig, AKDTrainer
from trl_akd.data.encoding import encode_completions, encode_prompts
from trl_akd.losses import divergences
from trl_akd.micro.bench.students import make_tokenizer, student_config
from trl_akd.micro.bench.teacher import EPSILON, ExactTeacher
from trl_akd.micro.bench.world import BenchTask, World
from trl_akd.micro.models import new_model
from trl_akd.teachers import DenseSignal, Teacher

WORLD, TOKENIZER = World(0), make_tokenizer()
TASKS = WORLD.sample_tasks(6, split="train")
SIZE = len(TOKENIZER)


@pytest.fixture(scope="module")
def teacher() -> ExactTeacher:
    return ExactTeacher([(task, WORLD.answers(task)) for task in TASKS], TOKENIZER)


@cache
def programs(task: BenchTask) -> list[tuple[float, list[int]]]:
    answers = WORLD.answers(task)
    encoded = encode_completions(TOKENIZER, [answer.completion for answer in answers])
    return [(answer.probability, ids) for answer, ids in zip(answers, encoded, strict=True)]


def probability(task: BenchTask, completion: list[int]) -> float:
    """Probability that a completion begins with these tokens: a sum over programs of a product over tokens."""
    total = 0.0
    for weight, ids in programs(task):
        product = weight
        for position, token in enumerate(completion):
            intended = ids[position] if position < len(ids) else TOKENIZER.eos_token_id
            product *= EPSILON / SIZE + (1 - EPSILON) * (token == intended)
        total += product
    return total


def batch(rows: list[tuple[BenchTask, list[int]]]) -> tuple[torch.Tensor, list[int]]:
    prompts = encode_prompts(TOKENIZER, [task.prompt for task, _ in rows])
    sequences = [torch.tensor([*prompt, *ids]) for prompt, (_, ids) in zip(prompts, rows, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=TOKENIZER.pad_token_id)
    return padded, [len(prompt) for prompt in prompts]


def prefixes(task: BenchTask) -> list[list[int]]:
    """Prefixes of a program, of one that changes its word, of one that never had a valid word, and past the end."""
    (_, first), (_, second), *_ = programs(task)
    wrong = encode_completions(TOKENIZER, [task.completion(word) for word in ("tern", "wren")])
    return [first, [*second[:5], *first[5:]], *wrong, [*first, 7, 7], [0] * 12]


def test_it_is_the_quotient_of_sums_over_programs(teacher: ExactTeacher):
    rows = [(task, ids) for task in TASKS[:2] for ids in prefixes(task)]
    input_ids, starts = batch(rows)
    found = teacher.log_probs(input_ids)
    for row, ((task, ids), start) in enumerate(zip(rows, starts, strict=True)):
        for length in range(0, len(ids), 3):
            whole = probability(task, ids[:length])
            for token in {*(ids[position] for position in range(length, len(ids))), 0, 1, 50}:
                expected = math.log(probability(task, [*ids[:length], token]) / whole)
                assert found[row, start - 1 + length, token].item() == pytest.approx(expected, abs=1e-9)


def test_continuations_sum_to_one(teacher: ExactTeacher):
    input_ids, _ = batch([(task, ids) for task in TASKS for ids in prefixes(task)])
    assert torch.allclose(teacher.log_probs(input_ids).exp().sum(-1), torch.ones(()).double(), atol=1e-12)


def test_two_tokens_after_any_prefix_sum_to_one():
    """By brute force over all pairs of tokens, without the teacher's own code."""
    [task] = TASKS[:1]
    prefix = programs(task)[0][1][:3]
    pairs = [probability(task, [*prefix, a, b]) for a in range(SIZE) for b in range(SIZE)]
    assert sum(pairs) == pytest.approx(probability(task, prefix), rel=1e-9)


def test_samples_have_the_frequencies_of_the_programs(teacher: ExactTeacher):
    [task] = TASKS[:1]
    number, length = 1500, max(len(ids) for _, ids in programs(task))
    input_ids, (start, *_) = batch([(task, [])] * number)
    generator = torch.Generator().manual_seed(0)
    for _ in range(length):
        probabilities = teacher.log_probs(input_ids)[:, -1].exp()
        input_ids = torch.cat([input_ids, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
    drawn = Counter(tuple(ids) for ids in input_ids[:, start:].tolist())
    right = 0
    for weight, ids in programs(task):
        share = drawn[(*ids, *[TOKENIZER.eos_token_id] * (length - len(ids)))] / number
        assert share == pytest.approx(weight * (1 - EPSILON) ** length, abs=4 * math.sqrt(weight / number))
        right += share
    assert right == pytest.approx((1 - EPSILON + EPSILON / SIZE) ** length, abs=0.02)


def test_the_fork_has_the_probabilities_of_the_words(teacher: ExactTeacher):
    input_ids, starts = batch([(task, []) for task in TASKS])
    found = teacher.log_probs(input_ids).exp()
    for row, (task, start) in enumerate(zip(TASKS, starts, strict=True)):
        for weight, ids in programs(task):
            assert found[row, start - 1, ids[0]].item() == pytest.approx(weight, abs=2e-3)


def test_its_signal_is_dense_and_typed(teacher: ExactTeacher):
    assert isinstance(teacher, Teacher)
    student = new_model(student_config(TOKENIZER, 32))
    input_ids, _ = batch([(task, programs(task)[0][1]) for task in TASKS])
    teacher.forward({"input_ids": input_ids})
    signal = teacher.signal(student)
    assert isinstance(signal, DenseSignal)
    logits = signal.head.logits(signal.hidden)
    assert torch.equal(logits.log_softmax(-1).argmax(-1), teacher.log_probs(input_ids).argmax(-1))
    assert torch.allclose(logits.double(), teacher.log_probs(input_ids), atol=1e-5)


def test_unknown_prompts_are_refused(teacher: ExactTeacher):
    [unknown] = WORLD.sample_tasks(1, split="held_out")
    with pytest.raises(ValueError, match="not that of a task"):
        teacher.forward({"input_ids": batch([(unknown, [])])[0]})


@pytest.mark.parametrize("rule", ["forward_kl", "reverse_kl"])
def test_the_trainer_measures_the_divergence_from_it(rule: str, teacher: ExactTeacher, tmp_path):
    """The loss of AKDTrainer is a plain mean of divergences from the exact distribution."""
    rows = [(task, programs(task)[row % 4][1]) for row, task in enumerate(TASKS)]
    prompts = encode_prompts(TOKENIZER, [task.prompt for task, _ in rows])
    data = Dataset.from_list(
        [
            {"input_ids": [*prompt, *ids], "labels": [-100] * len(prompt) + ids}
            for prompt, (_, ids) in zip(prompts, rows, strict=True)
        ]
    )
    student = new_model(student_config(TOKENIZER, 32))
    args = AKDConfig(str(tmp_path), divergence=rule, **SHORT_RUN)
    trainer = AKDTrainer(student, teacher, args, train_dataset=data, eval_dataset=data, processing_class=TOKENIZER)
    found = trainer.evaluate()["eval_loss"]
    means = []
    for row, ids in zip(data, (ids for _, ids in rows), strict=True):
        input_ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            logits = student.eval()(input_ids).logits.double()
        values = divergences.get(rule)(logits, teacher.log_probs(input_ids))[0]
        means.append(values[len(input_ids[0]) - len(ids) - 1 : -1].mean().item())
    assert found == pytest.approx(sum(means) / len(means), rel=1e-4)
