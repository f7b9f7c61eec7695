"""Measures of students that plan: against scripted students, brute force and the sandbox."""

import itertools
import random
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pytest

from trl_akd.codeplan.plan_head import add_plan_head
from trl_akd.execution import CodeExecutor, ExecutionResult
from trl_akd.generation import Completion
from trl_akd.micro.bench import plans_measures
from trl_akd.micro.bench.plans_measures import Candidate, PlanWorldExecutor, best_of, measure_plans
from trl_akd.micro.bench.plans_world import PlanWorld, plan_vocabulary
from trl_akd.micro.bench.students import make_tokenizer
from trl_akd.micro.bench.world import WORDS
from trl_akd.micro.models import llama_config, new_model

WORLD = PlanWorld(0)
TASKS = WORLD.sample_tasks(4, split="held_out")
WRONG = f"def solve(numbers):\n    return {TASKS[0].library}(numbers).{WORDS[0]}(7)"
BY_PROBLEM = {task.problem: task for task in TASKS}


@pytest.fixture(scope="module")
def executor():
    with PlanWorldExecutor(workers=1, allow_code_execution=True) as executor:
        yield executor


def scripted(write: Any) -> type:
    """Return a generator class whose completions are `write(task, plan or None, asks_for_plan, number)`."""

    class Scripted:
        def __init__(self, *args: Any, **settings: Any) -> None:
            pass

        def generate(self, prompts: list[str], *, n: int, **settings: Any) -> list[list[Completion]]:
            found = []
            for prompt in prompts:
                problem = re.search(r"QUESTION:\n(.*)\n", prompt)
                plan = re.search(r"step by step:\n(.+?)\n\nANSWER", prompt, re.DOTALL)
                assert problem is not None
                arguments = BY_PROBLEM[problem[1]], plan[1] if plan else None, prompt.startswith("[GEN_PLAN]")
                found.append([Completion(*write(*arguments, number), "stop", 1) for number in range(n)])
            return found

    return Scripted


def measured(write: Any, executor: CodeExecutor, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    monkeypatch.setattr(plans_measures, "TransformersGenerator", scripted(write))
    model: Any = object()
    tokenizer: Any = None
    return measure_plans(model, tokenizer, WORLD, TASKS, executor, **{"own_plans": True, **settings})


def test_a_student_that_needs_the_right_plan(executor: PlanWorldExecutor, monkeypatch: pytest.MonkeyPatch):
    """Every second plan is right; programs pass by the right plan alone."""

    def write(task, plan, asks_for_plan, number):
        if asks_for_plan:
            return (task.plan if number % 2 else "1. add 2 to every number"), -1.0
        return (WORLD.solution(task) if plan == task.plan else WRONG), -1.0

    found = measured(write, executor, monkeypatch)
    assert found["without_plan"] == {f"best@{number}": 0.0 for number in (1, 2, 3, 5, 6, 10, 11)}
    assert found["true_plan"] == {f"best@{number}": 1.0 for number in (1, 2, 3, 5, 6, 10, 11)}
    own = found["own_plans"]
    assert (own["plan_accuracy"], own["right_plan@10"]) == (0.5, 1.0)
    assert (own["pass_given_right"], own["pass_given_wrong"]) == (1.0, 0.0)
    assert [own[f"best@{number}"] for number in (1, 2, 10)] == pytest.approx([0.5, 1 - (5 * 4) / (10 * 9), 1.0])
    assert found["own_plans_redrawn"] == {"best@1": 0.0, "best@2": 1.0, "best@5": 1.0, "best@10": 1.0}


def test_programs_are_selected_by_public_tests_and_judged_by_hidden_ones(
    executor: PlanWorldExecutor, monkeypatch: pytest.MonkeyPatch
):
    """One program in eleven passes the hidden tests; the most probable one passes the public tests as well."""
    public = {
        task.problem: problem["public_tests"] for task, problem in zip(TASKS, WORLD.problems(TASKS), strict=True)
    }

    def write(task, plan, asks_for_plan, number):
        outputs = dict(re.findall(r"assert solve\((.*)\) == (.*)\n", public[task.problem]))
        memorized = f"def solve(numbers):\n    return {{{', '.join(f'{k!r}: {v}' for k, v in outputs.items())}}}"
        texts = {0: f"{memorized}[str(numbers)]", 1: WORLD.solution(task)}
        return texts.get(number, WRONG), -float(number != 0)

    found = measured(write, executor, monkeypatch, own_plans=False)
    assert found.keys() == {"without_plan", "true_plan"}
    # The right program is submitted if it is drawn and the more probable memorized one is not.
    expected = {number: number / 11 * (11 - number) / 10 for number in (1, 2, 5, 11)}
    assert [found["without_plan"][f"best@{number}"] for number in expected] == pytest.approx(list(expected.values()))


def test_shares_without_cases_are_left_out(executor: PlanWorldExecutor, monkeypatch: pytest.MonkeyPatch):
    found = measured(lambda task, *_: (task.plan, -1.0), executor, monkeypatch)["own_plans"]
    assert "pass_given_wrong" not in found and found["pass_given_right"] == 0.0


def test_a_model_writes_plans_with_its_plan_head(executor: PlanWorldExecutor):
    tokenizer = make_tokenizer(plan_vocabulary())
    model = new_model(llama_config(tokenizer, 128, hidden_size=16, layers=1, heads=1)).eval()
    uses = []
    settings: dict[str, Any] = {"own_plans": True, "seed": 1}
    before = measure_plans(model, tokenizer, WORLD, TASKS[:2], executor, **settings)
    head = add_plan_head(model)
    head.register_forward_hook(lambda *_: uses.append("plan head"))
    model.lm_head.register_forward_hook(lambda *_: uses.append("LM head"))
    assert measure_plans(model, tokenizer, WORLD, TASKS[:2], executor, **settings) == before, "still a copy"
    assert [name for name, _ in itertools.groupby(uses)] == ["LM head", "plan head", "LM head"]


def test_best_of_is_the_mean_over_all_subsets():
    rng = random.Random(0)
    for _ in range(20):
        several = [Candidate(rng.choice((0.0, 0.5, 1.0)), rng.random(), rng.random() < 0.4) for _ in range(6)]
        for number in range(1, 7):
            subsets = list(itertools.combinations(several, number))
            chosen = [max(subset, key=lambda each: (each.fraction, each.logprob)).passes for subset in subsets]
            assert best_of(several, number) == pytest.approx(fmean(chosen))


def test_known_results_are_those_of_the_sandbox(executor: PlanWorldExecutor):
    """Right programs, and programs in which tokens are replaced, left out or repeated."""
    tokenizer, rng = make_tokenizer(plan_vocabulary()), random.Random(0)
    pairs = []
    for task, problem in zip(TASKS, WORLD.problems(TASKS), strict=True):
        ids = tokenizer(WORLD.solution(task))["input_ids"]
        pairs.append((WORLD.solution(task), problem["hidden_tests"]))
        for _ in range(6):
            place = rng.randrange(len(ids))
            other = rng.choice(([], [ids[place]] * 2, [rng.randrange(2, len(tokenizer))], [rng.choice(ids)]))
            pairs.append((tokenizer.decode([*ids[:place], *other, *ids[place + 1 :]]), problem["public_tests"]))
    known = executor.run(pairs)
    sandboxed = CodeExecutor.run(executor, pairs)
    assert [(one.status, one.error_type) for one in known] == [(one.status, one.error_type) for one in sandboxed]
    assert {result.error_type for result in known} >= {None, "SyntaxError", "AssertionError", "AttributeError"}


def test_a_program_that_does_not_compile_runs_with_its_first_test_alone(monkeypatch: pytest.MonkeyPatch):
    ran = []

    def run(self: CodeExecutor, programs: Sequence[tuple[str, str]], *args: Any, **settings: Any):
        ran.extend(programs)
        stages: list[Any] = ["compile" if program == "(" else "test" for program, _ in programs]
        return [
            ExecutionResult("failed", f"of {tests}", stage=stage)
            for (_, tests), stage in zip(programs, stages, strict=True)
        ]

    monkeypatch.setattr(CodeExecutor, "run", run)
    executor = PlanWorldExecutor(workers=1, allow_code_execution=True)
    pairs = [(program, tests) for tests in ("1", "2") for program in ("(", "x")]
    assert [result.error_type for result in executor.run(pairs)] == ["of 1", "of 1", "of 1", "of 2"]
    assert [result.error_type for result in executor.run([("(", "3")])] == ["of 1"]
    assert sorted(ran) == [("(", "1"), ("x", "1"), ("x", "2")]
