"""Students of the world, and the criterion at which their pre-training ends."""

import pytest
import torch

from trl_akd.micro.bench import students
from trl_akd.micro.bench.students import STUDENTS, make_start, make_tokenizer, student_config, valid_mass
from trl_akd.micro.bench.world import World
from trl_akd.micro.models import new_model

TOKENIZER = make_tokenizer()
SMALLEST = STUDENTS["32k"]


@pytest.mark.parametrize("name", STUDENTS)
def test_sizes_are_as_named(name: str):
    parameters = new_model(student_config(TOKENIZER, STUDENTS[name].hidden_size)).num_parameters()
    assert parameters == pytest.approx(int(name.removesuffix("k")) * 1000, rel=0.03)


def test_the_mass_on_valid_words_is_that_of_the_first_token():
    world, model = World(2), new_model(student_config(TOKENIZER, 32), seed=1).eval()
    tasks = world.sample_tasks(7, split="held_out")
    masses = []
    for task in tasks:
        input_ids = torch.tensor([TOKENIZER(task.prompt)["input_ids"]])
        with torch.no_grad():
            probabilities = model(input_ids).logits[0, -1].double().softmax(-1)
        valid = TOKENIZER.convert_tokens_to_ids(list(world.valid_words(task.context)))
        masses.append(probabilities[valid].sum().item())
    assert valid_mass(model, TOKENIZER, world, tasks) == pytest.approx(sum(masses) / len(masses), rel=1e-6)


def test_pretraining_ends_at_the_criterion_and_is_repeatable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(students, "PRETRAINING", {**students.PRETRAINING, "rows": 480})
    world = World(0)
    held_out = world.sample_tasks(40, split="held_out")
    starts = [make_start(world, TOKENIZER, SMALLEST, gate_tasks=held_out, mass=0.05, max_steps=60) for _ in range(2)]
    assert starts[0].steps == starts[1].steps < 60 and starts[0].steps % 5 == 0
    longer = make_start(world, TOKENIZER, SMALLEST, gate_tasks=held_out, mass=0.05, max_steps=60, min_steps=55)
    assert longer.steps == 55
    assert starts[0].mass == starts[1].mass == valid_mass(starts[0].model, TOKENIZER, world, held_out) >= 0.05
    one, other = (start.model.state_dict() for start in starts)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_pretraining_ends_after_its_steps_in_any_case(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(students, "PRETRAINING", {**students.PRETRAINING, "rows": 96})
    world = World(0)
    start = make_start(
        world, TOKENIZER, SMALLEST, gate_tasks=world.sample_tasks(5, split="held_out"), mass=0.99, max_steps=3
    )
    assert (start.steps, start.mass < 0.99) == (3, True)
    assert start.mass > 0, "the mass is measured at the end"
