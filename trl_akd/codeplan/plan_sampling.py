"""Several plans for a problem, and the public tests to choose between them.

The paper's text on record does not say which tests choose. Here the public ones do, and hidden tests serve the report
alone: neither plans nor programs ever depend on them. Two more choices of ours: plans of which as many programs pass
are told apart by their mean log-probability, and the final programs are written anew with the chosen plan, since those
that made it win are the luckier ones.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tqdm.auto import tqdm

from ..execution import CodeExecutor, ExecutionResult, Tests, check_tests
from ..generation import Completion, TextGenerator
from ..generation.protocol import another_seed
from .task_prompts import TaskPrompting

__all__ = ["PlanChoice", "PlanSampler", "PlanSamplingResult", "PlanScore", "ProgramRanker"]

_Problem = Mapping[str, Any]


class ProgramRanker(Protocol):
    """Anything that tells how likely programs are to be correct, without running them."""

    def score(self, problem: str, programs: Sequence[str]) -> list[float]:
        """Return a number for each program, the higher the better."""


@dataclass(frozen=True, slots=True)
class PlanScore:
    """Say what speaks for a plan.

    Args:
        plan (`str`):
            The plan.
        mean_logprob (`float`, *optional*):
            Mean log-probability of its tokens, in nats.
        pass_fraction (`float`, *optional*):
            Public cases that its programs passed, as a fraction of all, averaged over the programs; `None` where there
            are no public tests.
    """

    plan: str
    mean_logprob: float | None
    pass_fraction: float | None


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """Hold what comes of a problem when the first so many plans are there to choose from.

    Args:
        index (`int`, *optional*):
            Which plan is chosen; `None` where there is none and the program is written without.
        completions (`tuple[Completion, ...]`):
            What the student then wrote; best first where a ranker ordered it.
        programs (`tuple[str, ...]`):
            The programs in it.
        verdicts (`tuple[ExecutionResult, ...]`):
            What the hidden tests say of each program; empty where there are none.
    """

    index: int | None
    completions: tuple[Completion, ...]
    programs: tuple[str, ...]
    verdicts: tuple[ExecutionResult, ...]


@dataclass(frozen=True, slots=True)
class PlanSamplingResult:
    """Hold what came of one problem.

    Args:
        id (`str`):
            The problem.
        plan_scores (`tuple[PlanScore, ...]`):
            Every plan that was sampled, in that order.
        choices (`Mapping[int, PlanChoice]`):
            What comes of choosing between the first so many plans, for each such number.
    """

    id: str
    plan_scores: tuple[PlanScore, ...]
    choices: Mapping[int, PlanChoice]

    @property
    def choice(self) -> PlanChoice:
        """Return the choice between all plans."""
        return self.choices[len(self.plan_scores)]

    @property
    def plan(self) -> str:
        """Return the plan that was chosen."""
        assert self.choice.index is not None
        return self.plan_scores[self.choice.index].plan

    @property
    def programs(self) -> tuple[str, ...]:
        """Return the final programs, written with the plan that was chosen."""
        return self.choice.programs

    @property
    def verdicts(self) -> tuple[ExecutionResult, ...]:
        """Return what the hidden tests say of the final programs."""
        return self.choice.verdicts


class PlanSampler:
    r"""Sample plans, let public tests choose one by the programs it leads to, and write programs with it.

    Of a problem, N plans are sampled and m programs behind each. The plan whose programs pass the largest fraction of
    the public cases is chosen; the likelier one where that is equal, the earlier one where that is too. With it the
    final programs are written, which the hidden tests judge. All samples depend on the seed and the problem alone.

    Args:
        generator (`TextGenerator`):
            Writes programs and, unless there is a `plan_generator`, plans.
        executor ([`CodeExecutor`]):
            Where programs run.
        n_plans (`int`, *optional*, defaults to `20`):
            N, plans a problem.
        n_programs (`int`, *optional*, defaults to `10`):
            m, programs a plan, and final programs a problem.
        temperature (`float`, *optional*, defaults to `0.6`), top_p (`float`, *optional*, defaults to `0.95`):
            Of all sampling, as in the paper's released code.
        plan_generator (`TextGenerator`, *optional*):
            Writes the plans, such as the same model through its plan head.
        also_with (`Sequence[int]`, *optional*):
            Numbers of plans, below `n_plans`, for which to tell also what comes of choosing between the first so many;
            0 writes without a plan. Their final programs are generated beside.
        without_public_tests (`str`, *optional*, defaults to `"error"`):
            What to do for a problem that has none: `"error"`, or `"logprob"`, choose the likeliest plan.
        ranker ([`ProgramRanker`], *optional*):
            Orders the final programs, the best first.
        prompting ([`TaskPrompting`], *optional*):
            How problems are put, and where the program is in what is answered.
        max_plan_tokens (`int`, *optional*, defaults to `512`), max_new_tokens (`int`, *optional*, defaults to `512`):
            Most tokens of a plan and of a program.
        seed (`int`, *optional*, defaults to `0`):
            Seed of sampling.
        batch_size (`int`, *optional*, defaults to `16`):
            Problems to work on at a time.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Raises:
        ValueError: If an argument is outside its range.

    Example:

    ```python
    >>> class Student:
    ...     def generate(self, prompts, *, n, **settings):
    ...         write = lambda prompt: "1. Print 4." if "[GEN_PLAN]" in prompt else "print(4)"
    ...         return [[Completion(write(prompt), -0.1, "stop", 4)] * n for prompt in prompts]
    >>> problem = {"id": "four", "problem": "Print 4.", "public_tests": {"inputs": [""], "outputs": ["4"]}}
    >>> with CodeExecutor(allow_code_execution=True) as executor:
    ...     [result] = PlanSampler(Student(), executor, n_plans=2, n_programs=1, progress=False).run([problem])
    >>> result.plan, result.plan_scores[0].pass_fraction, result.programs
    ('1. Print 4.', 1.0, ('print(4)',))

    ```
    """

    def __init__(
        self,
        generator: TextGenerator,
        executor: CodeExecutor,
        n_plans: int = 20,
        n_programs: int = 10,
        temperature: float = 0.6,
        top_p: float = 0.95,
        *,
        plan_generator: TextGenerator | None = None,
        also_with: Sequence[int] = (),
        without_public_tests: Literal["error", "logprob"] = "error",
        ranker: ProgramRanker | None = None,
        prompting: TaskPrompting | None = None,
        max_plan_tokens: int = 512,
        max_new_tokens: int = 512,
        seed: int = 0,
        batch_size: int = 16,
        progress: bool = True,
    ) -> None:
        for name, value in (("n_plans", n_plans), ("n_programs", n_programs), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"`{name}` is {value}; give at least 1.")
        if temperature == 0 and max(n_plans, n_programs) > 1:
            raise ValueError(
                f"`temperature` is 0 with n_plans={n_plans} and n_programs={n_programs}, which would all be alike; "
                "give a `temperature` above 0, such as 0.6."
            )
        if any(not 0 <= number < n_plans for number in also_with):
            raise ValueError(f"`also_with` is {list(also_with)}; give numbers from 0 to below n_plans={n_plans}.")
        if without_public_tests not in ("error", "logprob"):
            raise ValueError(f"`without_public_tests` is {without_public_tests!r}; choose 'error' or 'logprob'.")
        self._generator = generator
        self._plan_generator = plan_generator or generator
        self._executor = executor
        self._n_plans = n_plans
        self._n_programs = n_programs
        self._sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
        self._numbers = (*sorted(set(also_with)), n_plans)
        self._without_public_tests = without_public_tests
        self._ranker = ranker
        self._prompting = prompting or TaskPrompting()
        self._max_plan_tokens = max_plan_tokens
        self._max_new_tokens = max_new_tokens
        self._seed = seed
        self._batch_size = batch_size
        self._progress = progress

    def run(self, problems: Iterable[_Problem]) -> list[PlanSamplingResult]:
        """Work on problems.

        Args:
            problems (`Iterable[Mapping]`):
                Rows with `id`, `problem`, `public_tests` and, for the report, `hidden_tests`: a test program, or
                `{"inputs": [...], "outputs": [...]}` as in APPS.

        Returns:
            `list[PlanSamplingResult]`: In the order of the problems.

        Raises:
            ValueError: If a row is malformed, or has no public tests and `without_public_tests` is `"error"`.
            GenerationError: If a model fails.
        """
        rows = list(problems)
        self._check(rows)
        results = []
        with tqdm(total=len(rows), desc="Sampling plans", unit="problem", disable=not self._progress) as bar:
            for start in range(0, len(rows), self._batch_size):
                batch = rows[start : start + self._batch_size]
                results += self._work_on(batch)
                bar.update(len(batch))
        return results

    def _work_on(self, rows: Sequence[_Problem]) -> list[PlanSamplingResult]:
        """Choose with what may be seen; only then bring in the hidden tests."""
        seen = [{name: value for name, value in row.items() if name != "hidden_tests"} for row in rows]
        scores = self._score_plans(seen)
        chosen = [{number: _best(several[:number]) for number in self._numbers} for several in scores]
        finals = self._write_finals(seen, scores, chosen)
        return [
            PlanSamplingResult(
                str(row["id"]),
                tuple(several),
                {number: self._judged(row, final[index], index) for number, index in choice.items()},
            )
            for row, several, choice, final in zip(rows, scores, chosen, finals, strict=True)
        ]

    def _score_plans(self, problems: Sequence[_Problem]) -> list[list[PlanScore]]:
        plans = self._plan_generator.generate(
            [self._prompting.plan(problem) for problem in problems],
            n=self._n_plans,
            max_new_tokens=self._max_plan_tokens,
            stop=self._prompting.plan_stop,
            seed=another_seed(self._seed, "plans"),
            **self._sampling,
        )
        pairs = [
            (problem, completion.text.strip())
            for problem, several in zip(problems, plans, strict=True)
            for completion in several
            if _has_tests(problem)
        ]
        fractions = iter(
            self._pass_fraction(problem, programs)
            for (problem, _), programs in zip(pairs, self._write(pairs, "trials"), strict=True)
        )
        return [
            [
                PlanScore(
                    completion.text.strip(), completion.mean_logprob, next(fractions) if _has_tests(problem) else None
                )
                for completion in several
            ]
            for problem, several in zip(problems, plans, strict=True)
        ]

    def _write(self, pairs: Sequence[tuple[_Problem, str | None]], purpose: str) -> list[list[tuple[str, Completion]]]:
        """Write programs for problems and plans, other ones for each purpose."""
        written = self._generator.generate(
            [self._prompting.code(problem, plan) for problem, plan in pairs],
            n=self._n_programs,
            max_new_tokens=self._max_new_tokens,
            stop=self._prompting.code_stop,
            seed=another_seed(self._seed, purpose),
            **self._sampling,
        )
        return [
            [(self._prompting.program(problem, completion.text), completion) for completion in several]
            for (problem, _), several in zip(pairs, written, strict=True)
        ]

    def _write_finals(
        self,
        problems: Sequence[_Problem],
        scores: Sequence[Sequence[PlanScore]],
        chosen: Sequence[Mapping[int, int | None]],
    ) -> list[dict[int | None, list[tuple[str, Completion]]]]:
        """Write the final programs of each problem, once with each plan that is chosen; `None` is no plan."""
        wanted = [
            (position, index) for position, choice in enumerate(chosen) for index in dict.fromkeys(choice.values())
        ]
        finals: list[dict[int | None, list[tuple[str, Completion]]]] = [{} for _ in problems]
        pairs = [
            (problems[position], None if index is None else scores[position][index].plan) for position, index in wanted
        ]
        for (position, index), programs in zip(wanted, self._write(pairs, "final"), strict=True):
            finals[position][index] = self._ranked(problems[position], programs)
        return finals

    def _ranked(self, problem: _Problem, programs: list[tuple[str, Completion]]) -> list[tuple[str, Completion]]:
        if self._ranker is None:
            return programs
        scores = self._ranker.score(problem["problem"], [program for program, _ in programs])
        order = sorted(range(len(programs)), key=lambda index: -scores[index])
        return [programs[index] for index in order]

    def _pass_fraction(self, problem: _Problem, programs: Sequence[tuple[str, Completion]]) -> float:
        results = self._run([program for program, _ in programs], problem["public_tests"], fail_fast=False)
        judged = [result for result in results if result.status != "infra_error"]
        if not judged:
            raise RuntimeError(f"no program for problem {problem['id']!r} could be judged ({results[0].message}).")
        return sum(result.tests_passed / result.tests_total for result in judged) / len(judged)

    def _judged(self, row: _Problem, finals: Sequence[tuple[str, Completion]], index: int | None) -> PlanChoice:
        programs = [program for program, _ in finals]
        verdicts = self._run(programs, row["hidden_tests"], fail_fast=True) if row.get("hidden_tests") else []
        return PlanChoice(index, tuple(completion for _, completion in finals), tuple(programs), tuple(verdicts))

    def _run(self, programs: Sequence[str], tests: Tests, *, fail_fast: bool) -> list[ExecutionResult]:
        """Run programs, those that are alike once."""
        distinct = list(dict.fromkeys(programs))
        results = self._executor.run([(program, tests) for program in distinct], fail_fast=fail_fast)
        found = dict(zip(distinct, results, strict=True))
        return [found[program] for program in programs]

    def _check(self, rows: Sequence[_Problem]) -> None:
        """Find what is wrong with a problem before anything is generated."""
        for number, row in enumerate(rows):
            for column in ("id", "problem"):
                if column not in row:
                    raise ValueError(
                        f"problem {number} has no `{column}`; give rows {{id, problem, public_tests, hidden_tests}}."
                    )
            if self._without_public_tests == "error" and not _has_tests(row):
                raise ValueError(
                    f"problem {str(row['id'])!r} has no `public_tests` to choose a plan by; add some, or set "
                    "without_public_tests='logprob' to choose the likeliest plan."
                )
            for column in ("public_tests", "hidden_tests"):
                if row.get(column):
                    check_tests(row[column], f"`{column}` of problem {str(row['id'])!r}")
        ids = [str(row["id"]) for row in rows]
        if len(set(ids)) < len(ids):
            raise ValueError(f"two problems have the id {max(ids, key=ids.count)!r}; give each its own.")


def _best(scores: Sequence[PlanScore]) -> int | None:
    """Return the index of the first plan with the largest pass fraction and, among those, mean log-probability."""
    if not scores:
        return None
    if any(score.pass_fraction is None and score.mean_logprob is None for score in scores):
        raise ValueError(
            "without public tests plans are chosen by their log-probability, which the generator does not tell; use "
            "another backend, or give public tests."
        )

    def merit(index: int) -> tuple[float, float]:
        score = scores[index]
        logprob = -math.inf if score.mean_logprob is None else score.mean_logprob
        return (0.0 if score.pass_fraction is None else score.pass_fraction, logprob)

    return max(range(len(scores)), key=merit)


def _has_tests(row: _Problem) -> bool:
    tests = row.get("public_tests")
    return bool(tests.strip() if isinstance(tests, str) else tests)
