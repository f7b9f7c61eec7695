"""Measures against the exact teacher in the student's place, and known outcomes against the sandbox."""

import random
from types import SimpleNamespace

import pytest
import torch

from trl_akd.execution import CodeExecutor
from trl_akd.generation import Completion
from trl_akd.micro.bench import measures
from trl_akd.micro.bench.measures import PASSED, held_out_divergences, measure, outcomes, words_of_first_token
from trl_akd.micro.bench.students import make_tokenizer, student_config
from trl_akd.micro.bench.teacher import ExactTeacher
from trl_akd.micro.bench.world import WORDS, World, vocabulary
from trl_akd.micro.models import new_model

WORLD, TOKENIZER = World(0), make_tokenizer()
TASKS = WORLD.sample_tasks(30, split="held_out")


@pytest.fixture(scope="module")
def executor():
    with CodeExecutor(workers=1, allow_code_execution=True) as executor:
        yield executor


class TeacherAsStudent(torch.nn.Module):
    """A model whose logits are the exact teacher's log-probabilities."""

    def __init__(self, tasks=TASKS, world=WORLD):
        super().__init__()
        self.teacher = ExactTeacher([(task, world.answers(task)) for task in tasks], TOKENIZER)

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(logits=self.teacher.log_probs(input_ids))


class Writer:
    """A generator whose completions are given by a function of the task, the sample's number and its temperature."""

    def __init__(self, write):
        self.write = write

    def generate(self, prompts, *, n=1, temperature=0.0, max_new_tokens, seed=None):
        tasks = {task.prompt: task for task in TASKS}
        texts = [[self.write(tasks[prompt], number, temperature) for number in range(n)] for prompt in prompts]
        return [[Completion(text, -1.0, "stop", 9) for text in several] for several in texts]


def measured(write, executor, monkeypatch, **settings):
    monkeypatch.setattr(measures, "TransformersGenerator", lambda *args, **kwargs: Writer(write))
    return measure(TeacherAsStudent(), TOKENIZER, WORLD, TASKS, executor, **settings)


def mutated(rng: random.Random, task, word: str) -> str:
    """Return the program of a word with up to three tokens replaced, removed or inserted."""
    tokens = TOKENIZER(task.completion(word))["input_ids"]
    pieces = [TOKENIZER.decode([token]) for token in tokens]
    for _ in range(rng.randint(0, 3)):
        place = rng.randrange(2, len(pieces) + 1)
        pieces[place : place + rng.randint(0, 1)] = rng.sample(vocabulary(), rng.randint(0, 1))
    return "".join(pieces)


def test_known_outcomes_are_those_of_the_sandbox(executor: CodeExecutor):
    rng = random.Random(0)
    programs = [
        (task, mutated(rng, task, rng.choice([*WORDS, *WORLD.valid_words(task.context) * 3])))
        for task in rng.choices(TASKS, k=250)
    ]
    # a library made local, a signature and code outside of the function
    task = TASKS[0]
    library, wrong = task.context.library, next(word for word in WORDS if word not in WORLD.valid_words(task.context))
    right = WORLD.valid_words(task.context)[0]
    call = f"{wrong} = {library}.{wrong}(numbers)\n    "
    programs += [
        (task, f"{call}return {wrong}"),
        (task, f"{call}{library} = {wrong}"),
        (task, f"{call}return 1\n{wrong} = {library}.{wrong}(numbers)"),
        (task, f"{call}return 1\ndef solve(numbers):\n    return {library}.{right}(numbers)"),
        (task, f"{call}return ["),
        (task, f"{library} = {library}.{wrong}(numbers)\n    return 1"),
        (task, f"{wrong} = {library}.{wrong}(numbers)"),
        (task, task.completion(wrong).replace(f".{wrong}(", f".{right}(")),
        (task, task.completion(right).replace(f".{right}(", f".{wrong}(")),
        (task, ""),
    ]
    found = outcomes(WORLD, programs, executor)
    run = executor.run([(task.prompt + completion, WORLD.tests(task)) for task, completion in programs])
    assert found == [PASSED if result.passed else result.error_type for result in run]
    known = [outcome for program in programs if (outcome := measures._known_outcome(WORLD, *program)) is not None]
    assert len(known) > 60 and set(known) == {PASSED, "AttributeError"}
    assert {"NameError", "AssertionError", "SyntaxError"} <= set(found)


def test_a_teacher_who_is_the_student_has_no_divergence_and_all_modes(executor: CodeExecutor, monkeypatch):
    rng = random.Random(0)

    def write(task, number, temperature):
        answers = WORLD.answers(task)
        [drawn] = rng.choices(answers, [answer.probability for answer in answers]) if temperature else answers[:1]
        return drawn.completion

    found = measured(write, executor, monkeypatch)
    assert (found["pass@1"], found["pass@10"], found["greedy"], found["errors"]) == (1.0, 1.0, 1.0, {})
    assert found["forward_kl"] == pytest.approx(0.0, abs=1e-9) == found["reverse_kl"]
    assert found["valid_mass"] == pytest.approx(1.0, abs=1e-3)
    expected = sum(1 - (1 - p) ** 20 for p in WORLD.probabilities) / 4
    assert found["coverage_of_valid"] == pytest.approx(expected, abs=1e-3)
    assert found["coverage"] == pytest.approx(expected, abs=0.03)


def test_one_right_mode_in_half_of_the_samples(executor: CodeExecutor, monkeypatch):
    """The other half has a wrong entry point; greedy text mixes two words."""

    def write(task, number, temperature):
        valid = WORLD.valid_words(task.context)
        if not temperature:
            head, tail = task.completion(valid[0]).split("\n", 1)
            return f"{head}\n{tail.replace(valid[0], valid[1])}"
        wrong = next(word for word in WORDS if word not in valid)
        return task.completion(valid[0] if number % 2 else wrong)

    found = measured(write, executor, monkeypatch, num_samples=4)
    assert (found["pass@1"], found["coverage"], found["greedy"]) == (0.5, 0.25, 0.0)
    assert found["errors"] == {"AttributeError": 0.5}
    assert "pass@10" not in found


def test_words_of_the_first_token_by_hand():
    model = TeacherAsStudent()
    logits = torch.zeros(len(TASKS), len(TOKENIZER)).double()
    for row, task in enumerate(TASKS):
        for word, extra in zip(WORLD.valid_words(task.context), (5.0, 4.0, 1.0, 0.0), strict=True):
            logits[row, TOKENIZER.convert_tokens_to_ids(word)] = extra
    model.forward = lambda input_ids, attention_mask: SimpleNamespace(
        logits=logits[:, None].expand(-1, input_ids.shape[1], -1)
    )
    weights = torch.tensor([5.0, 4.0, 1.0, 0.0]).double().exp()
    found = words_of_first_token(model, TOKENIZER, WORLD, TASKS, num_samples=3)
    assert found["valid_mass"] == pytest.approx((weights.sum() / (weights.sum() + len(TOKENIZER) - 4)).item())
    shares = weights / weights.sum()
    assert found["coverage_of_valid"] == pytest.approx((1 - (1 - shares) ** 3).mean().item())


def test_divergences_weigh_programs_by_their_probabilities():
    """Against a loop over tasks, programs and tokens, one at a time."""
    model = new_model(student_config(TOKENIZER, 32)).eval()
    tasks = TASKS[:3]
    teacher = ExactTeacher([(task, WORLD.answers(task)) for task in tasks], TOKENIZER)
    expected = {"forward_kl": 0.0, "reverse_kl": 0.0}
    for task in tasks:
        prompt = TOKENIZER(task.prompt)["input_ids"]
        for answer in WORLD.answers(task):
            ids = [*prompt, *TOKENIZER(answer.completion)["input_ids"], TOKENIZER.eos_token_id]
            input_ids = torch.tensor([ids])
            with torch.no_grad():
                log_q = model(input_ids).logits[0].double().log_softmax(-1)
            log_p = teacher.log_probs(input_ids)[0]
            places = range(len(prompt) - 1, len(ids) - 1)
            for name, (a, b) in {"forward_kl": (log_p, log_q), "reverse_kl": (log_q, log_p)}.items():
                values = [(a[place].exp() * (a[place] - b[place])).sum().item() for place in places]
                expected[name] += answer.probability * sum(values) / len(values) / len(tasks)
    found = held_out_divergences(model, TOKENIZER, WORLD, tasks)
    assert found == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}
