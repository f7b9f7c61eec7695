import itertools
import json
import os
import subprocess
import sys

import pytest

from trl_akd.micro.operations import NUMBERS, OPERATIONS, TEXT
from trl_akd.micro.tasks import MAX_STEPS, Step, Task, is_held_out, run, sample_tasks, write_rows

BY_NAME = {operation.name: operation for operation in OPERATIONS}


@pytest.fixture(scope="module")
def training() -> list[Task]:
    return sample_tasks(3000, split="train", seed=0, lengths=(1, 2, 3))


@pytest.fixture(scope="module")
def held_out() -> list[Task]:
    return sample_tasks(300, split="held_out", seed=0, lengths=(2, 3))


def all_sequences(length: int) -> list[tuple[str, ...]]:
    """Return every sequence of distinct operations with matching types that starts from the input of a task."""
    return [
        tuple(operation.name for operation in sequence)
        for sequence in itertools.permutations(OPERATIONS, length)
        if sequence[0].takes in (NUMBERS, TEXT)
        and all(one.gives == next_one.takes for one, next_one in itertools.pairwise(sequence))
    ]


def test_drawn_tasks_belong_to_their_split(training: list[Task], held_out: list[Task]):
    assert not any(is_held_out(task.operations) for task in training)
    assert all(is_held_out(task.operations) for task in held_out)
    assert {task.operations for task in training}.isdisjoint(task.operations for task in held_out)


def test_no_held_out_program_occurs_in_training(training: list[Task], held_out: list[Task]):
    assert {task.solution for task in training}.isdisjoint(task.solution for task in held_out)
    assert {task.instruction for task in training}.isdisjoint(task.instruction for task in held_out)


@pytest.mark.parametrize("length", [2, 3])
def test_about_a_fifth_of_all_sequences_is_held_out(length: int):
    sequences = all_sequences(length)
    assert 0.15 < sum(map(is_held_out, sequences)) / len(sequences) < 0.25


def test_single_operations_are_never_held_out():
    assert not any(is_held_out([name]) for name in BY_NAME)


def test_training_shows_every_operation(training: list[Task]):
    assert {name for task in training for name in task.operations} == set(BY_NAME)


def test_reference_solutions_pass_their_tests(training: list[Task], held_out: list[Task]):
    for task in training[:500] + held_out:
        exec(task.solution + task.tests, {})


@pytest.mark.parametrize("dropped", range(MAX_STEPS))
def test_tests_fail_without_a_step(held_out: list[Task], dropped: int):
    seen = 0
    for task in held_out:
        if len(task.steps) <= dropped or task.steps[dropped].operation.takes != task.steps[dropped].operation.gives:
            continue
        remaining = task.steps[:dropped] + task.steps[dropped + 1 :]
        with pytest.raises(AssertionError):
            exec(task.tests, {"solve": lambda value, steps=remaining: run(steps, value)})
        seen += 1
    assert seen > 20


def test_constant_answer_fails(held_out: list[Task]):
    for task in held_out:
        expected = [ast_value.split(" == ", 1)[1] for ast_value in task.tests.splitlines()]
        assert len(set(expected)) > 1


def test_instructions_name_all_steps_in_either_order():
    tasks = sample_tasks(200, split="train", seed=3, lengths=(3,))
    orders = set()
    for task in tasks:
        places = [
            max(task.instruction.find(step.phrase(wording)) for wording in range(len(step.operation.phrases)))
            for step in task.steps
        ]
        assert min(places) >= 0
        orders.add(tuple(sorted(range(3), key=places.__getitem__)))
    assert orders == {(0, 1, 2), (2, 1, 0)}


def test_tasks_do_not_depend_on_the_hash_seed():
    script = (
        "from trl_akd.micro.tasks import sample_tasks\n"
        "print(sample_tasks(50, split='train'), sample_tasks(20, split='held_out'))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_seeds_and_lengths_are_obeyed():
    assert sample_tasks(20, split="train", seed=1) == sample_tasks(20, split="train", seed=1)
    assert sample_tasks(20, split="train", seed=1) != sample_tasks(20, split="train", seed=2)
    assert {len(task.steps) for task in sample_tasks(50, split="train", lengths=(1, 3))} == {1, 3}
    assert len({task.task_id for task in sample_tasks(50, split="train")}) == 50


@pytest.mark.parametrize("lengths", [(0,), (2, 4)])
def test_impossible_lengths_are_refused(lengths: tuple[int, ...]):
    with pytest.raises(ValueError, match="between 1 and 3"):
        sample_tasks(1, split="train", lengths=lengths)


def test_held_out_single_operations_are_refused():
    with pytest.raises(ValueError, match="never held out"):
        sample_tasks(1, split="held_out", lengths=(1,))


def test_order_of_steps():
    steps = [Step(BY_NAME["add"], "2"), Step(BY_NAME["keep_above"], "4"), Step(BY_NAME["sum"], "")]
    assert run(steps, [1, 3, 4]) == 11


def test_written_rows_are_prompt_and_completion(tmp_path, training: list[Task]):
    path = tmp_path / "rows.jsonl"
    write_rows(training[:3], path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"prompt": task.prompt, "completion": task.solution} for task in training[:3]]
