"""Measures of a student that plans: of its programs without a plan, by the true plan, and by its own plans."""

import re
from collections.abc import Mapping, Sequence
from math import comb
from statistics import fmean
from types import MappingProxyType
from typing import Any, NamedTuple

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ...codeplan.plan_head import PlanHeadGenerator, plan_head_of
from ...codeplan.plan_sampling import PlanSampler
from ...codeplan.public_tests import pass_fractions
from ...codeplan.task_prompts import TaskPrompting
from ...execution import CodeExecutor, ExecutionResult, Tests
from ...generation import TransformersGenerator
from ...generation.protocol import derive_seed
from .plans_world import CALLS, PlanTask, PlanWorld

__all__ = [
    "NUM_COMPARED",
    "NUM_PROGRAMS",
    "OWN_PLANS",
    "REDRAWN",
    "SAMPLING",
    "TRUE_PLAN",
    "WITHOUT_PLAN",
    "Candidate",
    "PlanWorldExecutor",
    "best_of",
    "measure_plans",
]

NUM_PROGRAMS = (1, 2, 5, 10)
NUM_COMPARED = tuple(sorted({*NUM_PROGRAMS, *(number + 1 for number in NUM_PROGRAMS)}))  # with a redrawn program
WITHOUT_PLAN, TRUE_PLAN, OWN_PLANS, REDRAWN = "without_plan", "true_plan", "own_plans", "own_plans_redrawn"
SAMPLING: Mapping[str, Any] = MappingProxyType({"temperature": 0.6, "top_p": 0.95})  # as in the authors' code
_MAX_TOKENS = 48
_GENERATION_BATCH = 512


class PlanWorldExecutor(CodeExecutor):
    """Sandbox for the programs of a planning student, many of which need not run in it.

    A program that only calls methods of a library can do nothing else, so it runs in this process, in a fraction of
    the time. A program that does not compile runs with the first of its tests alone.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._not_compiled: dict[str, ExecutionResult] = {}

    def run(
        self,
        programs: Sequence[tuple[str, Tests]],
        timeout: float | None = None,
        memory_mb: int | None = None,
        *,
        fail_fast: bool = False,
    ) -> list[ExecutionResult]:
        """Run programs and return their results, in order; arguments as in [`CodeExecutor.run`]."""
        results = [_known_result(program, tests) for program, tests in programs]
        first = {program: number for number, (program, _) in reversed([*enumerate(programs)])}
        for numbers in (first.values(), range(len(programs))):
            missing = [
                number
                for number in numbers
                if results[number] is None and programs[number][0] not in self._not_compiled
            ]
            pairs = [programs[number] for number in missing]
            found = super().run(pairs, timeout, memory_mb, fail_fast=fail_fast) if pairs else []
            for number, result in zip(missing, found, strict=True):
                results[number] = result
                if result.stage == "compile":
                    self._not_compiled[programs[number][0]] = result
        return [result or self._not_compiled[program] for (program, _), result in zip(programs, results, strict=True)]


class Candidate(NamedTuple):
    """A program that may be submitted.

    Args:
        fraction (`float`): fraction of the public cases that it passes.
        logprob (`float`): mean log-probability of its tokens, or of those of its plan, by which ties are decided.
        passes (`bool`): whether it passes the hidden tests.
    """

    fraction: float
    logprob: float
    passes: bool


def best_of(candidates: Sequence[Candidate], number: int) -> float:
    """Return the probability that the best of `number` random candidates by the public tests passes the hidden ones.

    Example:

    ```python
    >>> good, bad = Candidate(1.0, -0.5, True), Candidate(0.5, -0.1, False)
    >>> [best_of([good, bad, bad, bad], number) for number in (1, 2, 4)]
    [0.25, 0.5, 1.0]

    ```
    """
    ranked = sorted(candidates, key=lambda each: (each.fraction, each.logprob), reverse=True)
    chosen = sum(comb(len(ranked) - 1 - rank, number - 1) for rank, each in enumerate(ranked) if each.passes)
    return chosen / comb(len(ranked), number)


def measure_plans(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    world: PlanWorld,
    tasks: Sequence[PlanTask],
    executor: CodeExecutor,
    *,
    own_plans: bool,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Return the measures of a student on held-out tasks, by the plan that its programs follow.

    The keys are `"without_plan"`, `"true_plan"` and, with `own_plans`, `"own_plans"` and `"own_plans_redrawn"`. Each
    has `best@n`: of n programs, the one that passes the largest fraction of the public cases is submitted, and
    `best@n` is the probability that it passes the hidden tests; `best@1` is pass@1.

    - `without_plan`, `true_plan`: n programs; ties go to the more probable program. n is 1, 2, 3, 5, 6, 10 or 11.
    - `own_plans`: n plans of the student and a program by each; ties go to the more probable plan. n is 1, 2, 5 or 10.
      Further measures are `plan_accuracy`, the share of plans that equal the true plan; `right_plan@10`, the share of
      tasks with such a plan among 10; and `pass_given_right` and `pass_given_wrong`, pass@1 of programs by such plans
      and by others, if there are any.
    - `own_plans_redrawn`: as in [`PlanSampler`], another program is drawn with the selected one of n plans, so that
      there are n + 1 programs.

    Args:
        model (`LlamaForCausalLM`):
            The student, which writes plans with its plan head if it has one.
        tokenizer (`PreTrainedTokenizerFast`):
            Tokenizer of the world.
        world (`PlanWorld`):
            The world.
        tasks (`Sequence[PlanTask]`):
            Held-out tasks.
        executor (`CodeExecutor`):
            Sandbox in which programs run.
        own_plans (`bool`):
            Whether to measure programs by the student's own plans.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples.

    Raises:
        RuntimeError: If the sandbox could not run a program.
    """
    generator = TransformersGenerator(model, tokenizer, batch_size=_GENERATION_BATCH)
    problems, prompting = world.problems(tasks), TaskPrompting()
    found = {}
    for name in (WITHOUT_PLAN, TRUE_PLAN):
        completions = generator.generate(
            [
                prompting.code(problem, task.plan if name == TRUE_PLAN else None)
                for problem, task in zip(problems, tasks, strict=True)
            ],
            n=max(NUM_COMPARED),
            max_new_tokens=_MAX_TOKENS,
            seed=derive_seed(seed, name),
            **SAMPLING,
        )
        candidates = [
            _candidates(problem, [(each.text, each.mean_logprob) for each in several], executor)
            for problem, several in zip(problems, completions, strict=True)
        ]
        found[name] = _best(candidates, NUM_COMPARED)
    if own_plans:
        found |= _by_own_plans(model, generator, problems, tasks, executor, seed)
    return found


def _by_own_plans(
    model: LlamaForCausalLM,
    generator: TransformersGenerator,
    problems: Sequence[Mapping[str, str]],
    tasks: Sequence[PlanTask],
    executor: CodeExecutor,
    seed: int,
) -> dict[str, dict[str, float]]:
    sampler = PlanSampler(
        generator,
        executor,
        num_plans=max(NUM_PROGRAMS),
        num_programs=1,
        plan_generator=None if plan_head_of(model) is None else PlanHeadGenerator(generator, model),
        smaller_num_plans=NUM_PROGRAMS[:-1],
        max_plan_tokens=_MAX_TOKENS,
        max_new_tokens=_MAX_TOKENS,
        seed=derive_seed(seed, OWN_PLANS),
        batch_size=len(problems),
        progress=False,
        **SAMPLING,
    )
    results = sampler.run(problems)
    candidates = [
        _candidates(problem, [(score.programs[0], score.mean_logprob) for score in result.plan_scores], executor)
        for problem, result in zip(problems, results, strict=True)
    ]
    is_right = [
        [score.plan == task.plan for score in result.plan_scores] for task, result in zip(tasks, results, strict=True)
    ]
    passes: dict[bool, list[bool]] = {True: [], False: []}
    for several, rights in zip(candidates, is_right, strict=True):
        for candidate, right in zip(several, rights, strict=True):
            passes[right].append(candidate.passes)
    measures = {
        **_best(candidates, NUM_PROGRAMS),
        "plan_accuracy": fmean(map(fmean, is_right)),
        f"right_plan@{max(NUM_PROGRAMS)}": fmean(map(any, is_right)),
        **{
            name: fmean(passes[right])
            for name, right in (("pass_given_right", True), ("pass_given_wrong", False))
            if passes[right]
        },
    }
    redrawn = {
        f"best@{number}": fmean(_checked(result.choices[number].verdicts[0]).passed for result in results)
        for number in NUM_PROGRAMS
    }
    return {OWN_PLANS: measures, REDRAWN: redrawn}


def _best(candidates: Sequence[Sequence[Candidate]], numbers: Sequence[int]) -> dict[str, float]:
    return {f"best@{number}": fmean(best_of(several, number) for several in candidates) for number in numbers}


def _candidates(
    problem: Mapping[str, str], programs: Sequence[tuple[str, float | None]], executor: CodeExecutor
) -> list[Candidate]:
    """Return the outcomes of programs, given with their log-probabilities; equal programs run once."""
    distinct = list(dict.fromkeys(program for program, _ in programs))
    fractions = dict(zip(distinct, pass_fractions(distinct, problem["public_tests"], executor.run), strict=True))
    results = executor.run([(program, problem["hidden_tests"]) for program in distinct])
    passed = {program: _checked(result).passed for program, result in zip(distinct, results, strict=True)}
    found = []
    for program, logprob in programs:
        fraction = fractions[program]
        if fraction is None or logprob is None:
            raise RuntimeError(f"The sandbox could not run a program, or its log-probability is unknown:\n{program}")
        found.append(Candidate(fraction, logprob, passed[program]))
    return found


def _checked(result: ExecutionResult) -> ExecutionResult:
    if result.status == "infra_error":
        raise RuntimeError(f"The sandbox could not run a program: {result.message}")
    return result


def _known_result(program: str, tests: Tests) -> ExecutionResult | None:
    """Return the result of a program that need not run in the sandbox, `None` for any other."""
    if not isinstance(tests, str) or re.fullmatch(CALLS, program) is None:
        return None
    try:
        exec(f"{program}\n{tests}", {"__name__": "__main__"})
    except Exception as error:
        return ExecutionResult("failed", type(error).__name__)
    return ExecutionResult("passed", tests_passed=1)
