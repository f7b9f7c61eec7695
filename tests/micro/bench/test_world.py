"""The world: its programs, run for real, and its split."""

import itertools
import os
import random
import subprocess
import sys
from collections import Counter

import pytest

from trl_akd.execution import CodeExecutor
from trl_akd.micro.bench.students import MAX_LENGTH, make_tokenizer
from trl_akd.micro.bench.world import CONTEXTS, LIBRARIES, WORDS, World, vocabulary
from trl_akd.micro.tasks import is_held_out, operation_names

WORLDS = [World(0), World(1), World(0, num_valid=1), World(0, same_everywhere=True), World(0, noise=0.1)]


@pytest.fixture(scope="module")
def executor():
    with CodeExecutor(workers=1, allow_code_execution=True) as executor:
        yield executor


def test_names_are_distinct():
    assert (len(set(LIBRARIES)), len(set(CONTEXTS)), len(set(WORDS))) == (24, 96, 48)
    assert not set(LIBRARIES) & set(WORDS)


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_each_context_has_its_valid_words(world: World):
    valid = [world.valid_words(context) for context in CONTEXTS]
    assert {len(words) for words in valid} == {len(set(words)) for words in valid} == {world.num_valid}
    assert sum(world.probabilities) == pytest.approx(1.0)
    assert list(world.probabilities) == sorted(world.probabilities, reverse=True)
    assert (len(set(valid)) == 1) == world.same_everywhere
    if not world.same_everywhere:
        assert len(set(itertools.chain(*valid))) > 36, "most words are valid somewhere"


def test_four_words_have_the_stated_probabilities():
    assert World().probabilities == pytest.approx((0.42, 0.26, 0.19, 0.13))
    assert World(num_valid=1).probabilities == (1.0,)


def test_every_correct_program_passes(executor: CodeExecutor):
    world = World(0)
    tasks = world.sample_tasks(12, split="held_out") + world.sample_tasks(12, split="train")
    programs = [
        (task.prompt + answer.completion, world.tests(task)) for task in tasks for answer in world.answers(task)
    ]
    assert {result.status for result in executor.run(programs)} == {"passed"}


def test_every_wrong_fork_fails_with_its_error(executor: CodeExecutor):
    """An entry point that the library lacks is an AttributeError, and a change of the local a NameError."""
    world = World(0)
    missing, mixed = [], []
    for task in world.sample_tasks(4, split="held_out"):
        valid = world.valid_words(task.context)
        missing += [(task, task.completion(word)) for word in WORDS if word not in valid][::4]
        for word, other in itertools.permutations(valid, 2):
            lines, others = task.completion(word).split("\n"), task.completion(other).split("\n")
            mixed += [(task, "\n".join([*lines[:cut], *others[cut:]])) for cut in (1, 2) if lines[cut] != others[cut]]
    for programs, error in ((missing, "AttributeError"), (mixed, "NameError")):
        results = executor.run([(task.prompt + completion, world.tests(task)) for task, completion in programs])
        assert {result.status for result in results} == {"failed"}
        assert all(error in (result.error_type, *result.error_bases) for result in results)


def test_wrong_operations_fail(executor: CodeExecutor):
    world = World(0)
    one, other = world.sample_tasks(2, split="train")
    assert one.steps != other.steps
    word = world.valid_words(one.context)[0]
    swapped = type(one)(one.context, other.steps).completion(word)
    [result] = executor.run([(one.prompt + swapped, world.tests(one))])
    assert (result.status, result.error_type) == ("failed", "AssertionError")


def test_operation_sequences_are_held_out_and_contexts_are_seen():
    world = World(3)
    train, held_out = world.sample_tasks(2000, split="train"), world.sample_tasks(300, split="held_out")
    sequences = [{operation_names(task.steps) for task in tasks} for tasks in (train, held_out)]
    assert sequences[0].isdisjoint(sequences[1])
    assert not any(map(is_held_out, sequences[0])) and all(map(is_held_out, sequences[1]))
    assert len(sequences[0]) > 50 and len(sequences[1]) > 15
    assert {task.context for task in train} == {task.context for task in held_out} == set(CONTEXTS)
    operations = {name for sequence in sequences[0] for name in sequence}
    assert operations >= {name for sequence in sequences[1] for name in sequence}
    assert {task.prompt for task in train}.isdisjoint(task.prompt for task in held_out)


def test_rows_follow_the_probabilities():
    world = World(0)
    [task] = world.sample_tasks(1, split="train")
    drawn = Counter(row["completion"] for row in world.sample_rows([task] * 4000))
    for answer in world.answers(task):
        assert drawn[answer.completion] / 4000 == pytest.approx(answer.probability, abs=0.03)
    assert len(drawn) == 4


def test_a_share_of_noisy_tasks_is_wrong_in_rows_and_signal_alike():
    clean, noisy = World(5), World(5, noise=0.1)
    tasks = noisy.sample_tasks(3000, split="train")
    assert tasks == clean.sample_tasks(3000, split="train")
    wrong = [noisy.taught_answers(task) != noisy.answers(task) for task in tasks]
    assert sum(wrong) / len(wrong) == pytest.approx(0.1, abs=0.02)
    for task, is_wrong, row in zip(tasks, wrong, noisy.sample_rows(tasks), strict=True):
        words = {answer.word for answer in noisy.taught_answers(task)}
        assert words.isdisjoint(noisy.valid_words(task.context)) == is_wrong
        assert row["completion"] in {answer.completion for answer in noisy.taught_answers(task)}
    assert all(clean.taught_answers(task) == clean.answers(task) for task in tasks[:200])


def test_worlds_depend_on_their_arguments_alone():
    def description(world: World):
        tasks = world.sample_tasks(20, split="train")
        return tasks, world.sample_rows(tasks), [world.tests(task) for task in tasks]

    assert description(World(1)) == description(World(1)) != description(World(2))
    world = World(1)
    assert world.sample_tasks(20, split="train") == world.sample_tasks(30, split="train")[:20]
    assert world.sample_tasks(20, split="train", stream="other") != world.sample_tasks(20, split="train")


def test_worlds_do_not_depend_on_the_hash_seed():
    script = (
        "from trl_akd.micro.bench.world import *\nworld = World(0, noise=0.1)\n"
        "tasks = world.sample_tasks(20, split='train')\n"
        "print(tasks, world.sample_rows(tasks), world.tests(tasks[0]), vocabulary())"
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


@pytest.mark.parametrize("arguments", [{"num_valid": 0}, {"num_valid": 5}, {"noise": 1.0}, {"noise": -0.1}])
def test_arguments_out_of_range_are_refused(arguments: dict):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` is"):
        World(**arguments)


def test_every_text_is_made_of_the_vocabulary_and_decodes_to_itself():
    world, tokenizer = World(4), make_tokenizer()
    assert len(tokenizer) == len(vocabulary()) + 2
    tasks = world.sample_tasks(300, split="train") + world.sample_tasks(100, split="held_out")
    for task in tasks:
        for word in random.Random(task.prompt).sample(WORDS, 3):
            prompt, completion = tokenizer([task.prompt, task.completion(word)])["input_ids"]
            assert prompt + completion == tokenizer(task.prompt + task.completion(word))["input_ids"]
            assert tokenizer.decode(prompt + completion) == task.prompt + task.completion(word)
            assert len(prompt + completion) < MAX_LENGTH // 1.5
            assert tokenizer.convert_ids_to_tokens(completion[0]) == word, "the fork is the first token"
            assert sum(tokenizer.convert_ids_to_tokens(token) == word for token in completion) == 5


def test_tests_fail_programs_with_a_step_left_out():
    world = World(0)
    for task in world.sample_tasks(400, split="train"):
        program = task.prompt + world.answers(task)[0].completion
        word = world.answers(task)[0].word
        *head, call, first, last = program.split("\n")
        tests = world.tests(task)
        exec(compile(f"{program}\n{tests}", "whole", "exec"), {})
        for lines in ([*head, call, last], [*head, call, first, f"    return {word}"]):
            text = "\n".join(lines)
            with pytest.raises((AssertionError, TypeError)):
                exec(compile(f"{text}\n{tests}", "shorter", "exec"), {})
