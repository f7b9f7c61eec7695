"""Plan selection by public tests, with a scripted student and the real executor."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.codeplan.scripted import Scripted, apps_problems, mbpp_problems
from trl_akd.codeplan.plan_sampling import PlanSampler
from trl_akd.codeplan.task_prompts import TaskPrompting
from trl_akd.execution import CodeExecutor
from trl_akd.generation import GenerationError, TransformersGenerator
from trl_akd.generation.recorded import RecordedGenerator
from trl_akd.ledger import Ledger

PROGRAMS = {
    "double": "print(2 * int(input()))",
    "square": "print(int(input()) ** 2)",
    "crash": "raise ValueError",
    "nothing": "",
}
PROBLEM = {
    "id": "double",
    "problem": "Double a number.",
    "public_tests": {"inputs": ["3", "2", "0"], "outputs": ["6", "4", "0"]},
    "hidden_tests": {"inputs": ["5", "-1"], "outputs": ["10", "-2"]},
}


@pytest.fixture(scope="module")
def executor() -> Iterator[CodeExecutor]:
    with CodeExecutor(2, timeout=30, allow_code_execution=True) as made:
        yield made


def student(plans: list[Any], programs: dict[str, list[str]] | None = None) -> Scripted:
    """Generate the plans in turn and, for a plan, its programs in turn, by default the program of its name."""

    def write(prompt: str, number: int, seed: int | None) -> Any:
        if prompt.startswith("[GEN_PLAN]"):
            return plans[number % len(plans)]
        plan = prompt.split("step by step:\n")[1].split("\n")[0] if "step by step" in prompt else "none"
        names = (programs or {}).get(plan, [plan])
        return PROGRAMS.get(names[number % len(names)], "")

    return Scripted(write)


def sampler(asked: Scripted, executor: CodeExecutor, **settings: Any) -> PlanSampler:
    return PlanSampler(asked, executor, **{"num_plans": 3, "num_programs": 2, "progress": False, **settings})


# The choice


def test_plan_with_the_highest_pass_fraction_is_selected(executor: CodeExecutor):
    asked = student(["crash", ("double", -9.0), ("square", -0.1)])
    [result] = sampler(asked, executor).run([PROBLEM])
    assert [score.pass_fraction for score in result.plan_scores] == [0.0, 1.0, pytest.approx(2 / 3)]
    assert result.plan == "double" and result.programs == (PROGRAMS["double"],) * 2
    assert [verdict.status for verdict in result.verdicts] == ["passed"] * 2


def test_fractions_are_means_over_programs_and_cases(executor: CodeExecutor):
    asked = student(["mixed", "square"], {"mixed": ["double", "crash"]})
    [result] = sampler(asked, executor, num_plans=2).run([PROBLEM])
    assert [score.pass_fraction for score in result.plan_scores] == [0.5, pytest.approx(2 / 3)]
    assert [score.programs for score in result.plan_scores] == [
        (PROGRAMS["double"], PROGRAMS["crash"]),
        (PROGRAMS["square"],) * 2,
    ]
    assert result.plan == "square"


@pytest.mark.parametrize(
    ("logprobs", "index"), [((-3.0, -1.0, -2.0), 1), ((-1.0, -1.0, -2.0), 0), ((None, -5.0, None), 1), ((None,), 0)]
)
def test_ties_go_to_the_more_likely_then_the_earlier_plan(executor: CodeExecutor, logprobs: tuple, index: int):
    asked = student([("double", logprob) for logprob in logprobs])
    [result] = sampler(asked, executor).run([PROBLEM])
    assert result.choice.index == index


def test_against_a_search_by_hand(executor: CodeExecutor):
    source = random.Random(0)
    names = list(PROGRAMS)
    plans = [(f"p{number}", -float(source.randint(1, 3))) for number in range(8)]
    programs = {plan: [source.choice(names) for _ in range(3)] for plan, _ in plans}
    [result] = sampler(
        student(plans, programs), executor, num_plans=8, num_programs=3, smaller_num_plans=[1, 2, 5]
    ).run([PROBLEM])
    worth = {"double": 1.0, "square": 2 / 3, "crash": 0.0, "nothing": 0.0}
    for number, choice in result.choices.items():
        merits = [
            (round(sum(worth[name] for name in programs[plan]) / 3, 9), logprob, -place)
            for place, (plan, logprob) in enumerate(plans[:number])
        ]
        assert choice.index == merits.index(max(merits))


def test_a_test_program(executor: CodeExecutor):
    problem = {"id": 1, "problem": "P", "public_tests": "assert x == 4", "hidden_tests": "assert x + 1 == 5"}
    write = {"[GEN_PLAN]": lambda number: "ab"[number], "a\n": lambda number: "x = 3", "b\n": lambda number: "x = 4"}
    asked = Scripted(lambda prompt, number, seed: next(f(number) for key, f in write.items() if key in prompt))
    [result] = sampler(asked, executor, num_plans=2).run([problem])
    assert [score.pass_fraction for score in result.plan_scores] == [0.0, 1.0]
    assert result.programs == ("x = 4",) * 2 and all(verdict.passed for verdict in result.verdicts)


# Hidden tests


class Spy:
    """An executor that logs its tests in the order of all events."""

    def __init__(self, executor: CodeExecutor, log: list[tuple[str, Any]]) -> None:
        self.executor, self.log = executor, log

    def run(self, programs, **settings):
        self.log += [("run", tests) for _, tests in programs]
        return self.executor.run(programs, **settings)


def test_hidden_tests_do_not_affect_the_selection(executor: CodeExecutor):
    """Plans, scores, programs and requests do not depend on the hidden tests."""
    plans = ["crash", "double", "square"]
    hidden: list[Any] = [
        PROBLEM["hidden_tests"],
        {"inputs": ["5"], "outputs": ["25"]},  # which the chosen plan's programs fail, and another's pass
        "raise ValueError",
        None,
    ]
    seen = []
    for tests in hidden:
        asked = student(plans)
        [result] = sampler(asked, executor).run([{**PROBLEM, "hidden_tests": tests}])
        seen.append((result.plan, result.plan_scores, result.programs, asked.calls, asked.settings))
    assert all(one == seen[0] for one in seen) and seen[0][0] == "double"


def test_hidden_tests_run_after_generation(executor: CodeExecutor):
    log: list[tuple[str, Any]] = []
    asked = student(["crash", "double", "square"])
    answer = asked.write
    asked.write = lambda *arguments: log.append(("write", None)) or answer(*arguments)
    PlanSampler(asked, Spy(executor, log), num_plans=3, num_programs=2, progress=False).run([PROBLEM])
    last_written = max(place for place, (kind, _) in enumerate(log) if kind == "write")
    runs = [(place > last_written, tests) for place, (kind, tests) in enumerate(log) if kind == "run"]
    assert {tests == PROBLEM["public_tests"] for late, tests in runs if not late} == {True}
    assert {tests == PROBLEM["hidden_tests"] for late, tests in runs if late} == {True}


def test_prompts_do_not_see_hidden_tests(executor: CodeExecutor):
    class Curious(TaskPrompting):
        def plan(self, problem):
            assert "hidden_tests" not in problem
            return super().plan(problem)

        def code(self, problem, plan):
            assert "hidden_tests" not in problem
            return super().code(problem, plan)

    sampler(student(["double"]), executor, prompting=Curious()).run([PROBLEM])


# What is sampled


def test_sampling_parameters_of_the_authors(executor: CodeExecutor):
    asked = student(["double"])
    PlanSampler(asked, executor, progress=False).run([PROBLEM])
    assert [(settings["n"], len(call)) for settings, call in zip(asked.settings, asked.calls, strict=True)] == [
        (20, 1),
        (10, 20),
        (10, 1),
    ]
    assert {(settings["temperature"], settings["top_p"]) for settings in asked.settings} == {(0.6, 0.95)}


def test_final_programs_are_generated_separately(executor: CodeExecutor):
    """The programs by which a plan was selected are biased; with the same seed they would be generated again."""
    asked = student(["double"])
    sampler(asked, executor).run([PROBLEM])
    seeds = [settings["seed"] for settings in asked.settings]
    assert len(set(seeds)) == 3


def test_separate_plan_generator(executor: CodeExecutor):
    planner, coder = student(["double"]), student(["none"])
    [result] = sampler(coder, executor, plan_generator=planner).run([PROBLEM])
    assert result.plan == "double" and result.programs == (PROGRAMS["double"],) * 2
    assert len(planner.calls) == 1 and all(p.startswith("[GEN_CODE]") for call in coder.calls for p in call)


def test_fewer_plans_and_none(executor: CodeExecutor):
    asked = student(["crash", "square", "double"], {"none": ["nothing"]})
    [result] = sampler(asked, executor, smaller_num_plans=[0, 1, 2]).run([PROBLEM])
    assert {number: choice.index for number, choice in result.choices.items()} == {0: None, 1: 0, 2: 1, 3: 2}
    assert [choice.programs[0] for choice in result.choices.values()] == ["", *(PROGRAMS[n] for n in plans_of(result))]
    assert [sum(verdict.passed for verdict in choice.verdicts) for choice in result.choices.values()] == [0, 0, 0, 2]
    assert len(asked.calls[-1]) == 4, "one prompt a plan that is chosen"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"public_tests": ["assert 1"]}, TypeError, "`public_tests` of problem 'double' has tests of type list"),
        (
            {"hidden_tests": {"inputs": [], "outputs": []}},
            ValueError,
            "`hidden_tests` of problem 'double' has 0",
        ),
        ({"public_tests": '["assert 1"]'}, TypeError, "`public_tests` of problem 'double' has tests of type list"),
        ({"public_tests": " \n"}, ValueError, "has no `public_tests`"),
    ],
)
def test_wrong_tests_are_refused_before_generation(executor: CodeExecutor, change, error, message):
    asked = student(["double"])
    with pytest.raises(error, match=message):
        sampler(asked, executor).run([{**PROBLEM, "id": "first"}, {**PROBLEM, **change}])
    with pytest.raises(ValueError, match="two problems have the id 'double'"):
        sampler(asked, executor).run([PROBLEM, PROBLEM])
    assert not asked.calls


def test_tests_may_be_json(executor: CodeExecutor):
    encoded = {**PROBLEM, **{name: json.dumps(PROBLEM[name]) for name in ("public_tests", "hidden_tests")}}
    [result], [same] = (sampler(student(["crash", "double"]), executor).run([row]) for row in (PROBLEM, encoded))
    assert [score.pass_fraction for score in same.plan_scores] == [score.pass_fraction for score in result.plan_scores]
    assert [verdict.tests_total for verdict in same.choices[3].verdicts] == [2, 2]


def plans_of(result) -> list[str]:
    return [score.plan for score in result.plan_scores]


def test_a_problem_s_samples_do_not_depend_on_the_others(executor: CodeExecutor):
    model = TransformersGenerator(tiny.model(max_position_embeddings=2048), tiny.tokenizer(), batch_size=8)
    settings = {"max_plan_tokens": 8, "max_new_tokens": 8, "num_plans": 2, "progress": False, "num_programs": 2}
    problems = [{**PROBLEM, "id": str(number), "problem": f"Problem {number}."} for number in range(3)]
    together = PlanSampler(model, executor, **settings).run(problems)
    apart = PlanSampler(model, executor, batch_size=1, **settings).run(problems[::-1])[::-1]
    assert [(r.plan, r.programs) for r in together] == [(r.plan, r.programs) for r in apart]


def test_a_ranker_orders_the_final_programs(executor: CodeExecutor):
    class ByLength:
        def score(self, problem, programs):
            assert problem == PROBLEM["problem"]
            return [len(program) for program in programs]

    asked = student(["mixed"], {"mixed": ["crash", "nothing", "double"]})
    [result] = sampler(asked, executor, num_programs=3, ranker=ByLength()).run([PROBLEM])
    assert result.programs == (PROGRAMS["double"], PROGRAMS["crash"], "")
    assert [verdict.passed for verdict in result.verdicts] == [True, False, False]
    assert [completion.text for completion in result.choice.completions] == list(result.programs)


# Without public tests


@pytest.mark.parametrize("public", [None, "", {}])
def test_public_tests_are_required_by_default(executor: CodeExecutor, public: Any):
    asked = student([("double", -2.0), ("square", -1.0), ("crash", -3.0)])
    problem = {**PROBLEM, "public_tests": public}
    with pytest.raises(ValueError, match=r"problem 'double' has no `public_tests`.*without_public_tests='logprob'"):
        sampler(asked, executor).run([problem])
    assert asked.calls == [], "found before anything is generated"
    [result] = sampler(asked, executor, without_public_tests="logprob").run([problem, {**problem, "id": 2}][:1])
    assert result.plan == "square" and [score.pass_fraction for score in result.plan_scores] == [None] * 3
    assert [verdict.passed for verdict in result.verdicts] == [False, False], "hidden tests did not help"


def test_problems_with_and_without_public_tests(executor: CodeExecutor):
    asked = student([("double", -2.0), ("square", -1.0)])
    bare = {name: value for name, value in PROBLEM.items() if name != "public_tests"} | {"id": "bare"}
    results = sampler(asked, executor, num_plans=2, without_public_tests="logprob").run(
        [bare, PROBLEM, bare | {"id": 3}]
    )
    assert [result.plan for result in results] == ["square", "double", "square"]
    assert [result.id for result in results] == ["bare", "double", "3"]


def test_selection_without_tests_or_log_probabilities(executor: CodeExecutor):
    asked = student([("double", None)])
    with pytest.raises(ValueError, match="log-probability, which this generator does not return"):
        sampler(asked, executor, without_public_tests="logprob").run([{"id": 1, "problem": "P"}])


# Mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_plans": 0}, "`num_plans` is 0"),
        ({"num_programs": 0}, "`num_programs` is 0"),
        ({"temperature": 0.0}, "`temperature` is 0, at which all of num_plans=3"),
        (
            {"smaller_num_plans": [3]},
            r"`smaller_num_plans` is \[3\]; give numbers of at least 0 and below num_plans=3",
        ),
        ({"without_public_tests": "guess"}, "`without_public_tests` is 'guess'"),
        ({"batch_size": 0}, "`batch_size` is 0"),
    ],
)
def test_invalid_arguments(executor: CodeExecutor, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        sampler(student(["double"]), executor, **settings)


def test_aliases_of_the_numbers(executor: CodeExecutor):
    made = PlanSampler(student(["double"]), executor, n_plans=2, n_programs=1, progress=False)
    [result] = made.run([PROBLEM])
    assert (len(result.plan_scores), len(result.programs)) == (2, 1)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"n_plans": 0}, "`n_plans` is 0"),
        ({"n_programs": -1}, "`n_programs` is -1"),
        ({"n_plans": 3, "num_plans": 4}, "`num_plans` is 4 and its alias `n_plans` is 3; give one of them"),
        ({"n_plans": 20, "num_plans": 20}, "`num_plans` is 20 and its alias `n_plans` is 20"),
        ({"n_programs": 3, "num_programs": 4}, "`num_programs` is 4 and its alias `n_programs` is 3"),
        ({"n_plans": 2, "temperature": 0.0}, "all of n_plans=2 and num_programs=10 would be equal"),
        ({"n_plans": 2, "smaller_num_plans": [2]}, "below n_plans=2"),
    ],
)
def test_errors_name_the_alias_that_was_given(numbers: dict, message: str):
    with pytest.raises(ValueError, match=message):
        PlanSampler(student(["double"]), None, **numbers)


def test_an_alias_beside_a_positional_argument():
    with pytest.raises(ValueError, match="`num_plans` is 4 and its alias `n_plans` is 3"):
        PlanSampler(student(["double"]), None, 4, n_plans=3)


def test_greedy_with_one_of_each(executor: CodeExecutor):
    asked = student(["double"])
    [result] = sampler(asked, executor, num_plans=1, num_programs=1, temperature=0.0).run([PROBLEM])
    assert result.verdicts[0].passed


@pytest.mark.parametrize("column", ["id", "problem"])
def test_malformed_problems(executor: CodeExecutor, column: str):
    row = {name: value for name, value in PROBLEM.items() if name != column}
    with pytest.raises(ValueError, match=f"problem 0 has no `{column}`"):
        sampler(student(["double"]), executor).run([row])


# Going on


def test_recorded_completions_are_not_generated_again(tmp_path: Path, executor: CodeExecutor):
    first, second = student(["crash", "double", "square"]), student(["crash", "double", "square"])
    problems = [PROBLEM, {**PROBLEM, "id": "twin"}]  # with equal prompts
    found = []
    for asked in (first, second):
        with Ledger(tmp_path / "calls.jsonl", {"model": "student"}) as ledger:
            results = sampler(RecordedGenerator(asked, ledger), executor).run(problems)
        found.append([(result.id, result.plan_scores, result.programs) for result in results])
    assert found[0] == found[1]
    assert first.asked > 0 and second.calls == []


def test_failure_keeps_complete_prompts(tmp_path: Path):
    class Failing(Scripted):
        def stream(self, prompts, sampling):
            found = self.generate(prompts, **vars(sampling))
            yield from [(2, found[2]), (0, found[0][:1]), (1, found[1][:1]), (0, found[0][1:])]
            raise GenerationError("gone")

    failing, asked = Failing(lambda prompt, number, seed: f"{prompt}{number}"), Scripted(lambda p, n, s: f"{p}{n}")
    settings = {"n": 2, "temperature": 1.0, "seed": 0}
    with Ledger(tmp_path / "calls.jsonl", {}) as ledger:
        with pytest.raises(GenerationError, match="gone"):
            RecordedGenerator(failing, ledger).generate(["a", "b", "c", "c"], **settings)
        recorded = RecordedGenerator(asked, ledger)
        found = recorded.generate(["a", "b", "c", "c"], **settings)
    assert asked.calls == [["b", "c", "c"]], "half a prompt, and one of two equal prompts, are asked for as a whole"
    assert [[completion.text for completion in several] for several in found[:2]] == [["a0", "a1"], ["b0", "b1"]]


def test_other_settings_are_recorded_separately(tmp_path: Path):
    asked = Scripted(lambda *_: "x")
    with Ledger(tmp_path / "calls.jsonl", {}) as ledger:
        recorded = RecordedGenerator(asked, ledger)
        for settings in (
            {},
            {"seed": 1},
            {"stop": ["x"]},
            {"temperature": 0.5},
            {"max_new_tokens": 3},
            {"top_p": 0.5},
        ):
            recorded.generate(["a"], **settings)
        recorded.generate(["a"])
    assert len(asked.calls) == 6


def test_record_of_another_tool_is_refused(tmp_path: Path):
    with Ledger(tmp_path / "calls.jsonl", {}) as ledger:
        ledger.append([{"text": "x"}])
        with pytest.raises(ValueError, match="line 1 is not a record of a generator"):
            RecordedGenerator(Scripted(lambda *_: "x"), ledger)


# Real data


@pytest.mark.end_to_end
@pytest.mark.parametrize("several", [slice(1, 3), pytest.param(slice(None), marks=pytest.mark.slow)])
def test_real_apps_problems_with_their_own_solutions(executor: CodeExecutor, several: slice):
    """A student that generates the solution with one plan of three, and that of another problem with the others."""
    problems = apps_problems()[several]
    solution = {row["problem"]: row["solutions"][1] for row in problems}

    def write(prompt: str, number: int, seed: int | None) -> str:
        if prompt.startswith("[GEN_PLAN]"):
            return ["wrong", "right", "empty"][number]
        problem = next(text for text in solution if text in prompt)
        others = [text for text in solution if text != problem]
        if "step by step" not in prompt or "\nwrong\n" in prompt:
            return solution[others[0]]
        return solution[problem] if "\nright\n" in prompt else ""

    results = sampler(Scripted(write), executor, smaller_num_plans=[0, 1]).run(problems)
    assert [result.plan for result in results] == ["right"] * len(problems)
    assert all(verdict.passed for result in results for verdict in result.verdicts)
    assert not any(verdict.passed for result in results for verdict in result.choices[1].verdicts)


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", ["apps", "mbpp"])
def test_real_problems_with_a_tiny_model(executor: CodeExecutor, benchmark: str):
    problems = apps_problems() if benchmark == "apps" else mbpp_problems(10, 20)
    model = TransformersGenerator(tiny.model(max_position_embeddings=8192), tiny.tokenizer(), batch_size=8)
    sampled = PlanSampler(
        model,
        executor,
        num_plans=2,
        num_programs=2,
        max_plan_tokens=24,
        max_new_tokens=24,
        progress=False,
        smaller_num_plans=[0],
    ).run(problems)
    assert [result.id for result in sampled] == [row["id"] for row in problems]
    for result in sampled:
        assert len(result.plan_scores) == 2 and all(score.pass_fraction is not None for score in result.plan_scores)
        assert {number: len(choice.verdicts) for number, choice in result.choices.items()} == {0: 2, 2: 2}
