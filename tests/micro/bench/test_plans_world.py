"""The world of procedures: its problems, plans and programs, run for real, and its split."""

import os
import re
import subprocess
import sys

import pytest

from trl_akd.codeplan.plan_checks import check_plan
from trl_akd.codeplan.public_tests import split_tests
from trl_akd.execution import CodeExecutor
from trl_akd.micro.bench.plans_world import CALLS, PROCEDURES, PlanTask, PlanWorld, plan_vocabulary
from trl_akd.micro.bench.students import make_tokenizer
from trl_akd.micro.bench.world import LIBRARIES, WORDS


@pytest.fixture(scope="module")
def executor():
    with CodeExecutor(workers=1, allow_code_execution=True) as executor:
        yield executor


def names(task: PlanTask) -> tuple[str | None, ...]:
    return tuple(procedure.name for procedure in task.procedures)


def test_names_are_distinct():
    assert len({*LIBRARIES, *WORDS, *PROCEDURES}) == len(LIBRARIES) + len(WORDS) + len(PROCEDURES)


def test_programs_pass_their_tests_and_those_for_another_library_fail(executor: CodeExecutor):
    world = PlanWorld(0)
    tasks = world.sample_tasks(6, split="held_out")
    right, renamed = [], []
    for task, problem in zip(tasks, world.problems(tasks), strict=True):
        right += [(world.solution(task), problem[kind]) for kind in ("public_tests", "hidden_tests")]
        other = PlanTask(world.libraries[world.libraries.index(task.library) - 1], task.procedures)
        renamed.append((world.solution(other).replace(other.library, task.library), problem["hidden_tests"]))
    results = executor.run([*right, *renamed])
    assert {result.status for result in results[: len(right)]} == {"passed"}
    assert {result.status for result in results[len(right) :]} == {"failed"}


def test_no_step_can_be_left_out():
    world = PlanWorld(2)
    for task, problem in zip(tasks := world.sample_tasks(40, split="train"), world.problems(tasks), strict=True):
        head, *calls = re.split(r"(?=\.\w+\(\d?\))", world.solution(task))
        assert len(calls) == 4 == len(task.steps) == len(task.plan.splitlines())
        for number in range(4):
            shorter = head + "".join(calls[:number] + calls[number + 1 :])
            with pytest.raises((AssertionError, TypeError)):
                exec(f"{shorter}\n{problem['public_tests']}{problem['hidden_tests']}", {})


def test_public_tests_are_cases_of_other_inputs():
    world = PlanWorld(0)
    [problem] = world.problems(world.sample_tasks(1, split="train"))
    inputs = [re.findall(r"assert solve\((.*)\) ==", problem[kind]) for kind in ("public_tests", "hidden_tests")]
    assert (len(split_tests(problem["public_tests"])), len(split_tests(problem["hidden_tests"]))) == (2, 6)
    assert set(inputs[0]).isdisjoint(inputs[1]) and list(map(len, inputs)) == [2, 6]


def test_statements_name_procedures_and_plans_spell_them_out():
    world = PlanWorld(0)
    tasks = world.sample_tasks(300, split="train")
    for task in tasks:
        assert task.problem == f"{task.library}: {task.procedures[0].name}, then {task.procedures[1].name}"
        assert not any(step.phrase() in task.problem for step in task.steps)
        assert check_plan(task.plan, truncated=False, max_chars=1000) is None
    assert {task.library for task in tasks} == set(world.libraries)
    named = {procedure.name: procedure.steps for task in tasks for procedure in task.procedures}
    assert len(named) == 24 and len(set(named.values())) == 24


def test_pairs_of_procedures_are_held_out_and_procedures_are_seen():
    world = PlanWorld(3)
    train, held_out = world.sample_tasks(400, split="train"), world.sample_tasks(100, split="held_out")
    pairs = [{names(task) for task in tasks} for tasks in (train, held_out)]
    assert pairs[0].isdisjoint(pairs[1])
    assert {name for pair in pairs[1] for name in pair} <= {name for pair in pairs[0] for name in pair}
    assert len(pairs[1]) > 50


def test_the_base_model_reads_nothing_about_the_procedures_of_training():
    """Their names occur only where a plan is given, with steps that differ from text to text."""
    world = PlanWorld(1)
    taught = {name for task in world.sample_tasks(300, split="train") for name in names(task)}
    common = set(PROCEDURES) - taught
    steps: dict[str, set[str]] = {}
    for row in world.pretraining_rows(900):
        mentioned = set(re.findall(r"\w+", row["prompt"])) & set(PROCEDURES)
        if "step by step:\n1. " not in row["prompt"]:
            assert mentioned <= common
        for name in mentioned:
            steps.setdefault(name, set()).add(row["completion"])
    assert steps.keys() == set(PROCEDURES)
    procedures = [
        procedure
        for task in world.pretraining_tasks(900, with_plans=True)
        for procedure in task.procedures
        if procedure.name is not None
    ]
    meanings = {name: {one.steps for one in procedures if one.name == name} for name in PROCEDURES}
    assert all(len(meanings[name]) == 1 for name in common) and all(len(meanings[name]) > 5 for name in taught)


def test_the_base_model_reads_three_kinds_of_texts():
    rows = PlanWorld(1).pretraining_rows(300)
    kinds = [
        (row["prompt"].startswith("[GEN_PLAN]"), "step by step:\n1. " in row["prompt"], "def " in row["completion"])
        for row in rows
    ]
    assert kinds == [(True, False, False), (False, False, True), (False, True, True)] * 100
    assert all(re.fullmatch(CALLS, row["completion"]) for row in rows if "def " in row["completion"])


def test_every_text_is_made_of_the_vocabulary_and_decodes_to_itself():
    world, tokenizer = PlanWorld(4), make_tokenizer(plan_vocabulary())
    assert len(tokenizer) == len(plan_vocabulary()) + 2
    rows = world.rows(world.sample_tasks(60, split="train") + world.sample_tasks(20, split="held_out"))
    texts = [row["prompt"] + row["completion"] for row in world.pretraining_rows(300)]
    for text in [*texts, *(row[key] for row in rows for key in ("problem", "solution", "plan"))]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert max(len(ids) for ids in tokenizer(texts)["input_ids"]) < 64
    assert tokenizer.convert_ids_to_tokens(tokenizer("1. add")["input_ids"]) == ["1. ", "<unk>"]


def test_worlds_depend_on_their_arguments_alone():
    script = (
        "from trl_akd.micro.bench.plans_world import *\nworld = PlanWorld({seed})\n"
        "tasks = world.sample_tasks(20, split='train')\n"
        "print(world.rows(tasks), world.problems(tasks[:2]), world.pretraining_rows(20), plan_vocabulary())"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script.format(seed=seed)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed, hash_seed in ((0, "1"), (0, "2"), (1, "1"))
    ]
    assert outputs[0] == outputs[1] != outputs[2]
    world = PlanWorld(1)
    assert world.sample_tasks(20, split="train") == world.sample_tasks(30, split="train")[:20]
    assert world.sample_tasks(20, split="train", stream="other") != world.sample_tasks(20, split="train")


@pytest.mark.parametrize(
    "arguments", [{"num_procedures": 9}, {"num_procedures": 40}, {"num_libraries": 0}, {"num_libraries": 25}]
)
def test_arguments_out_of_range_are_refused(arguments: dict):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` is"):
        PlanWorld(**arguments)
