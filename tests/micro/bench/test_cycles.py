"""The experiment on IterKD: its world, teacher, judges, budgets, runs and page."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trl_akd.execution import CodeExecutor, ExecutionResult
from trl_akd.iterkd.cycle.records import FAULT_KINDS
from trl_akd.iterkd.judge.rubric import Judgement
from trl_akd.micro.bench.cycles_config import CyclesConfig, CyclesSettings, Variant
from trl_akd.micro.bench.cycles_judge import MISSING_STEP, NoisyJudge, auc, judge_aucs
from trl_akd.micro.bench.cycles_report import CYCLES_PAGE, CyclesResults
from trl_akd.micro.bench.cycles_runs import TokenCosts, num_new_questions, plan_cycles
from trl_akd.micro.bench.cycles_teacher import ScriptedTeacher
from trl_akd.micro.bench.cycles_world import (
    TIMEOUT,
    CyclesWorld,
    QuestionPool,
    _known_outcome,
    correct_programs,
    error_class,
    outcomes,
)
from trl_akd.micro.models import train_tokenizer
from trl_akd.micro.operations import OPERATIONS
from trl_akd.micro.tasks import Step, Task, draw_solution
from trl_akd.micro.teacher_data import TEACHING_PROMPTS, draw_fault

WORLD = CyclesWorld(seed=1, num_rare=5, rare_share=0.1)


class NoExecutor:
    """Executor that must not be needed, except for programs with a known wrong result."""

    def run(self, programs: list[Any]) -> list[ExecutionResult]:
        return [ExecutionResult("failed", "AssertionError") for _ in programs]


@pytest.fixture(scope="module")
def pool() -> QuestionPool:
    return QuestionPool(WORLD, size=400)


@pytest.fixture(scope="module")
def tasks(pool: QuestionPool) -> list[Task]:
    return list(pool.tasks.values())[:60]


@pytest.fixture(scope="module")
def tokenizer(tasks: list[Task]):
    return train_tokenizer(task.prompt + task.solution for task in tasks)


def test_pretraining_has_few_rare_operations_and_other_tasks_have_all():
    pretraining, tasks = WORLD.sample_pretraining(600), WORLD.sample(600, split="train", stream="questions")
    count, usual = (
        Counter(name for task in found for name in task.operations if name in WORLD.rare)
        for found in (pretraining, tasks)
    )
    assert len(WORLD.rare) == 5 and usual.keys() == WORLD.rare
    assert count.total() < 0.25 * usual.total()
    assert WORLD.rare != CyclesWorld(seed=2, num_rare=5).rare
    assert WORLD.sample_pretraining(5) == pretraining[:5]


@pytest.mark.parametrize(
    ("change", "message"), [({"num_rare": 99}, "`num_rare` is 99"), ({"rare_share": 1.5}, "`rare_share` is 1.5")]
)
def test_worlds_that_are_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        CyclesWorld(**change)


def test_new_questions_of_the_same_type_differ_in_one_operation(pool: QuestionPool, tasks: list[Task]):
    rng = random.Random(0)
    pairs = [(task, pool.derive(task, "new_same", rng)) for task in tasks]
    changed = [
        sum(one != other for one, other in zip(first.operations, second.operations, strict=True))
        for first, second in pairs
        if len(first.steps) == len(second.steps)
    ]
    assert changed.count(1) > 0.6 * len(tasks)
    for task in tasks:
        assert pool.derive(task, "new_easy", rng).steps[0].operation.takes == task.steps[0].operation.takes
        assert WORLD.rare.intersection(pool.with_rare_operation(rng).operations)


def test_known_outcomes_are_those_of_the_sandbox(tasks: list[Task]):
    """Correct programs and those with an endless loop need not run, and wrong ones are told apart by what differs."""
    rng = random.Random(0)
    with CodeExecutor(1, timeout=TIMEOUT, allow_code_execution=True) as executor:
        texts = [(task, text) for task in tasks[:4] for text in sorted(correct_programs(task))]
        assert all(result.passed for result in executor.run([(text, task.tests) for task, text in texts]))
        endless = [(task, draw_fault(task, "timeout", rng)) for task in tasks[:2]]
        results = executor.run([(text, task.tests) for task, text in endless])
        assert [error_class(*each, result) for each, result in zip(endless, results, strict=True)] == ["timed_out"] * 2
        assert [_known_outcome(*each) for each in endless] == ["timed_out"] * 2
        kinds: tuple[Any, ...] = ("syntax", "type", "name")
        wrong = [(task, draw_fault(task, kind, rng)) for kind in kinds for task in tasks[:4]]
        wrong += [(task, draw_solution(task.steps[:-1], rng)) for task in tasks[:4]]
        found = outcomes([*texts, *wrong, *texts], executor)
    assert found[: len(texts)] == ["passed"] * len(texts) == found[-len(texts) :]
    assert "passed" not in found[len(texts) : -len(texts)]
    assert set(found[len(texts) :][:4]) == {"SyntaxError"}


def test_wrong_results_by_what_differs():
    by_name = {operation.name: operation for operation in OPERATIONS}
    task = Task("t", (Step(by_name["add"], "3"), Step(by_name["sum"], "")), "", "", "", "")
    right = "def solve(numbers):\n    numbers = [n + 3 for n in numbers]\n    return sum(numbers)\n"
    failed = ExecutionResult("failed", "AssertionError")
    assert right.strip() in correct_programs(task)
    assert error_class(task, right.replace("3", "2"), failed) == "argument"
    assert error_class(task, right.replace("n +", "n *"), failed) == "wrong step"
    assert error_class(task, "def solve(numbers):\n    return sum(numbers)\n", failed) == "number of steps"
    assert error_class(task, right, ExecutionResult("failed", "TypeError")) == "TypeError"


def test_teacher_answers_all_requests_and_errs_at_its_rate(pool: QuestionPool, tasks: list[Task], tokenizer):
    teacher = ScriptedTeacher(pool, tokenizer, error_rate=0.3)
    asked = [(task, name, kind) for task in tasks for name in TEACHING_PROMPTS for kind in FAULT_KINDS]
    prompts = [TEACHING_PROMPTS[name].format(instruction=task.instruction, kind=kind) for task, name, kind in asked]
    written = [completion for [completion] in teacher.generate(prompts)]
    assert written == [completion for [completion] in teacher.generate(prompts)]
    right = {"correct": 0, "faulty": 0}
    for (task, name, _), completion in zip(asked, written, strict=True):
        if name.startswith("new"):
            assert completion.text in pool.tasks
        else:
            right[name] += completion.text.strip() in correct_programs(task)
        assert completion.usage is not None and completion.usage.completion_tokens == completion.num_tokens
    assert right["correct"] / (5 * len(tasks)) == pytest.approx(0.7, abs=0.2)
    assert right["faulty"] / (5 * len(tasks)) == pytest.approx(0.3, abs=0.1)
    again = [TEACHING_PROMPTS["new_same"].format(instruction=tasks[0].instruction)] * 6
    first, second = ([text for [text] in teacher.generate(again, seed=seed)] for seed in (0, 1))
    assert len({completion.text for completion in first}) > 1 and first != second, "repeated requests differ"
    with pytest.raises(ValueError, match="not a request about a task"):
        teacher.generate(["# What is this?\n"])


@pytest.mark.parametrize("due", [0.5, 0.75, 0.9, 1.0])
def test_judges_have_their_auc(due: float, pool: QuestionPool, tokenizer):
    tasks = list(pool.tasks.values())[:300]
    judge: Any = NoisyJudge(pool, NoExecutor(), tokenizer, auc=due)  # type: ignore[arg-type]
    found = judge_aucs(judge, tasks)
    assert found.keys() == {*FAULT_KINDS, MISSING_STEP}
    for name, value in found.items():
        assert value > 0.95 if name == "syntax" else value == pytest.approx(due, abs=0.08), name
    answers = [(task.instruction, task.solution) for task in tasks[:3]]
    assert judge.judge(answers) == judge.judge(answers) and judge.tokens > 0
    assert all(isinstance(found, Judgement) for found in judge.judge(answers))


def test_auc_counts_ties_half():
    assert (auc([1.0], [1.0]), auc([2.0, 0.0], [1.0]), auc([2.0], [1.0])) == (0.5, 0.5, 1.0)
    with pytest.raises(ValueError, match="at least one of each"):
        auc([], [1.0])


COSTS = TokenCosts(answer=20.0, fault=30.0, question=25.0, judgement=40.0)


@pytest.mark.parametrize(
    ("variant", "seed_cost", "new_cost"),
    [
        (Variant(), 20, 2 * 45),
        (Variant(cycles=1, questions="blind"), 20, 45),
        (Variant(judge=0.9), 60, 2 * (85 + 40)),
        (Variant(cycles=2, judge=0.9), 60, 85 + 40),
        (Variant(judge=0.9, faults="taxonomy"), 170, 2 * (195 + 40)),
        (Variant(judge=0.9, faults="own"), 140, 2 * (165 + 40)),
        (Variant(judge=0.9, faults="taxonomy", tests=True), 90, 2 * (195 + 40)),
        (Variant(faults="logical", keep_unverified=True), 50, 2 * 75),
    ],
)
def test_number_of_new_questions_spends_the_budget(variant: Variant, seed_cost: int, new_cost: int):
    settings = CyclesSettings(questions=100, teacher_tokens=100_000)
    assert num_new_questions(variant, settings, COSTS) == (100_000 - 100 * seed_cost) // new_cost
    with pytest.raises(ValueError, match="`teacher_tokens` is 1000"):
        num_new_questions(variant, replace(settings, teacher_tokens=1000), COSTS)


VALID: dict[str, Any] = {
    "settings": {
        "questions": 20,
        "teacher_tokens": 5_000,
        "trained_tokens": 20_000,
        "start_steps": 60,
        "start_range": [0, 1],
    },
    "variants": {"derived": {"judge": 1.0, "cycles": 2}, "own": {"judge": 0.9, "faults": "own", "cycles": 2}},
    "seeds": [0],
    "num_tasks": 10,
    "num_samples": 2,
    "control": {"first": "derived", "second": "own", "at_least": -1.0},
    "predictions": {"p": {"first": "own", "second": "derived", "at_least": 0.0, "measure": "greedy"}},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": None}, "write down what you expect"),
        ({"variants": {"a": {"faults": "some"}}}, "`faults` is 'some'; choose from none, taxonomy"),
        ({"variants": {"a": {"cycles": 1}}}, "a single cycle has 'blind' questions"),
        ({"variants": {"a": {"judge": 0.3}}}, "`judge` is 0.3; give an AUC"),
        ({"variants": {"a": {"tests": True, "execution": False}}}, "tests need execution"),
        ({"variants": {"a": {"faulty": 1}}}, "`faulty` is unknown"),
        ({"variants": {"derived": {}, "own": {"as_many_questions_as": "x"}}}, "'x', which is not one of"),
        ({"control": {"first": "derived", "second": "x", "at_least": 0.0}}, "'x', which is not one of"),
        ({"control": {"first": "derived", "second": "own"}}, "there is no bound; give `at_least`"),
        ({"control": {**VALID["control"], "at_most": -2.0}}, "the lower one as `at_least`"),
        ({"predictions": {"p": {"first": "own", "second": "own", "at_least": 0.0}}}, "give two variants"),
        ({"settings": {"questions": 0}}, "`questions` is 0"),
        ({"settings": {"start_range": [0.5, 0.2]}}, "the lower one first"),
        ({"seeds": [0, 0]}, "`seeds` is"),
        ({"num_tasks": 0}, "`num_tasks` is 0"),
        ({"num_samples": 0}, "`num_samples` is 0"),
        ({"name": "a/b"}, "`name` is 'a/b'; give letters"),
        ({"introduction": "answer.txt"}, "`introduction` is 'answer.txt', which has no effect without `report`"),
    ],
)
def test_configurations_that_are_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        CyclesConfig(**{**VALID, **change})


def test_equal_variants_are_refused_and_runs_differ_in_all_that_counts():
    with pytest.raises(ValueError, match="'derived' and 'again', which are equal"):
        plan_cycles(CyclesConfig(**{**VALID, "variants": {**VALID["variants"], "again": {"judge": 1, "cycles": 2}}}))
    [run, *_] = plan_cycles(CyclesConfig(**VALID))
    changes: list[dict[str, Any]] = [
        {"seed": 5},
        {"num_tasks": 7},
        {"num_samples": 7},
        {"variant": replace(run.variant, contrastive_weight=0.5)},
        {"questions_of": Variant(judge=0.6, cycles=2)},
        *({"settings": replace(run.settings, **change)} for change in ({"learning_rate": 1.0}, {"start_steps": 9})),
    ]
    assert len({run.key, *(replace(run, **change).key for change in changes)}) == 1 + len(changes)
    assert replace(run, variant_name="other").key == run.key


def row(variant: str, seed: int, value: float, **changed: Any) -> dict[str, Any]:
    measures = {"pass@1": value, "greedy": value, "greedy_common": value, "errors": {"wrong step": 1 - value}}
    level = {"easy": 0.5, "medium": 0.0, "hard": 0.5}
    cycle = {"questions": 9, "origins": {"seed": 9}, "faults": {"own": 2}, "feedback": level, "greedy": value}
    return {
        "variant": variant,
        "seed": seed,
        "commit": "abc",
        "start": {"measures": {**measures, "pass@1": 0.1}, "commit": "abc"},
        "started": True,
        "measures": measures,
        "cycles": [cycle, cycle],
        "tokens": {"trained": 10, "teacher": 20, "judge": 5},
        "judge_auc": 0.9,
        "seconds": {"cpu": 3.0},
        **changed,
    }


def content(gain: float, seeds: int = 5) -> dict[str, Any]:
    variants = {"base": 0.3, "better": 0.3 + gain}
    places = [(name, seed) for seed in range(seeds) for name in variants]
    return {
        "format": 1,
        "settings": {"questions": 9},
        "variants": {name: {} for name in variants},
        "seeds": list(range(seeds)),
        "num_tasks": 10,
        "num_samples": 2,
        "control": {"first": "better", "second": "base", "measure": "greedy", "at_least": 0.05},
        "finished_before": 0,
        "predictions": {"p": {"first": "base", "second": "better", "at_most": 0.0}},
        "planned": [{"variant": name, "seed": seed} for name, seed in places],
        "runs": [
            row(name, seed, variants[name] + 0.01 * seed + 0.001 * (name == "better") * (seed % 2))
            for name, seed in places
        ],
    }


@pytest.mark.parametrize(
    ("change", "control", "prediction"),
    [
        ({"gain": 0.1}, "right", "right"),
        ({"gain": 0.01}, "wrong", "withheld"),
        ({"gain": 0.1, "seeds": 4}, "too few seeds", "withheld"),
        ({"gain": 0.1, "seeds": 1}, "no interval", "withheld"),
    ],
)
def test_verdicts_need_a_control_that_holds_on_five_seeds(change: dict[str, Any], control: str, prediction: str):
    results = CyclesResults(content(**change))
    assert (results.verdict(results.control), results.verdict(results.predictions["p"])) == (control, prediction)


def test_verdicts_need_all_runs():
    found = content(0.1)
    results = CyclesResults({**found, "runs": found["runs"][:-1]})
    assert results.verdict(results.control) == "runs are missing" and not results.control_holds


def test_page(tmp_path: Path):
    results = tmp_path / "results.json"
    found = content(0.1)
    results.write_text(json.dumps(found))
    page = CYCLES_PAGE.write([results]).read_text()
    assert CYCLES_PAGE.write([results], tmp_path / "other.md").read_text() == page
    assert "The control holds." in page and "10 of 10 runs are finished, with 5 seeds, at commit abc." in page
    assert "Predictions and control were recorded before the runs" in page and "Of 1: 1 right." in page
    assert "| p | base minus better | pass@1 | at most 0 | -0.100 [-0.101, -0.100] | 5 | right |" in page
    assert "| better | 5 | 0.420 ± 0.020 | 0.420 ± 0.020 |" in page and "| 10 | 25 | 5 | 9 | 4 | 0.900 | 3 |" in page
    not_started = {**row("base", 0, 0.0), "started": False}
    del not_started["measures"]
    results.write_text(json.dumps({**found, "runs": [not_started]}))
    assert "not started" in CYCLES_PAGE.write([results]).read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "not the results of"),
        ("no JSON", "not the results of"),
        (json.dumps({**content(0.1), "format": 0}), "format is 0"),
    ],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        CYCLES_PAGE.write([tmp_path / "results.json"])
    with pytest.raises(FileNotFoundError, match="no such file"):
        CYCLES_PAGE.write([tmp_path / "none.json"])


@pytest.mark.slow
@pytest.mark.end_to_end
def test_runs_of_a_seed_share_their_start_and_count_their_tokens(tmp_path: Path):
    config = CyclesConfig(**VALID)
    rows = {run.variant_name: run.execute(tmp_path) for run in plan_cycles(config)}
    assert len(list(tmp_path.iterdir())) == 1
    derived, own = rows["derived"], rows["own"]
    assert derived["start"] == own["start"]
    assert all(cycle["faults"] == {} for cycle in derived["cycles"]) and derived["judge_auc"] in (1.0, None)
    assert own["cycles"][0]["faults"].keys() == {"logical"}, "failing samples before the first cycle"
    settings = config.shared_settings()
    for found in rows.values():
        assert found["tokens"]["trained"] == pytest.approx(settings.trained_tokens, rel=0.2)
        assert found["tokens"]["teacher"] > 0 < found["tokens"]["judge"]
        assert len(found["cycles"]) == 2 and found["measures"].keys() >= {"pass@1", "greedy", "errors"}
