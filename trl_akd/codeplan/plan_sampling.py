"""Sample several plans per problem, and select one by the public tests.

The available text of the paper does not say which tests select the plan. Here the public tests do; hidden tests are
used for the report alone, and neither plans nor programs ever depend on them. Two more choices of this project: plans
with equal pass fractions are ranked by their mean log-probability, and the final programs are generated separately
with the selected plan, because the programs by which it was selected are biased towards passing.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..distributed import is_main_process, run_on_main_and_broadcast
from ..execution import CodeExecutor, ExecutionResult, Tests, check_tests, decode_tests
from ..generation import Completion, TextGenerator
from ..generation.protocol import derive_seed
from ..progress import Progress
from .public_tests import pass_fractions
from .task_prompts import TaskPrompting

__all__ = ["PlanChoice", "PlanSampler", "PlanSamplingResult", "PlanScore", "ProgramRanker"]

_Problem = Mapping[str, Any]
_Program = tuple[str, Completion]

_TESTS = ("public_tests", "hidden_tests")
_NOT_GENERATED = Completion("", None, "length", 0)


@dataclass(frozen=True, slots=True)
class PlanScore:
    """The score of a plan.

    Args:
        plan (`str`):
            The plan.
        mean_logprob (`float`, *optional*):
            Mean log-probability of its tokens, in nats.
        pass_fraction (`float`, *optional*):
            Fraction of the public cases that its programs pass, averaged over the programs; `None` without public
            tests. Each assertion of a test program is a case.
        too_long (`bool`, *optional*, defaults to `False`):
            Whether the prompt for the plan or for its programs exceeds the model's positions; the plan then counts as
            one whose programs pass nothing.
        programs (`tuple[str, ...]`, *optional*):
            The programs in which `pass_fraction` was measured; empty without public tests.
    """

    plan: str
    mean_logprob: float | None
    pass_fraction: float | None
    too_long: bool = False
    programs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """The plan selected from the first N plans of a problem, and the final programs.

    Args:
        index (`int`, *optional*):
            Index of the selected plan; `None` if N is 0 and the programs are generated without a plan.
        completions (`tuple[Completion, ...]`):
            Completions of the student, the best first if a ranker ordered them.
        programs (`tuple[str, ...]`):
            The programs in them.
        verdicts (`tuple[ExecutionResult, ...]`):
            Result of the hidden tests for each program; empty without hidden tests.
    """

    index: int | None
    completions: tuple[Completion, ...]
    programs: tuple[str, ...]
    verdicts: tuple[ExecutionResult, ...]


@dataclass(frozen=True, slots=True)
class PlanSamplingResult:
    """The result of one problem.

    Args:
        id (`str`):
            Id of the problem.
        plan_scores (`tuple[PlanScore, ...]`):
            All plans in the order in which they were sampled.
        choices (`Mapping[int, PlanChoice]`):
            The choice among the first N plans, by N.
    """

    id: str
    plan_scores: tuple[PlanScore, ...]
    choices: Mapping[int, PlanChoice]

    @property
    def choice(self) -> PlanChoice:
        """The choice among all plans."""
        return self.choices[len(self.plan_scores)]

    @property
    def plan(self) -> str:
        """The selected plan."""
        assert self.choice.index is not None
        return self.plan_scores[self.choice.index].plan

    @property
    def programs(self) -> tuple[str, ...]:
        """The final programs, generated with the selected plan."""
        return self.choice.programs

    @property
    def verdicts(self) -> tuple[ExecutionResult, ...]:
        """The results of the hidden tests for the final programs."""
        return self.choice.verdicts


class ProgramRanker(Protocol):
    """A model that scores programs without running them."""

    def score(self, problem: str, programs: Sequence[str]) -> list[float]:
        """Return the score of each program, higher for programs more likely to be correct."""


class PlanSampler:
    r"""Sample plans, select one by the public tests, and generate the final programs with it.

    For each problem, N plans are sampled, and m programs with each plan. The plan whose programs pass the largest
    fraction of the public cases is selected; ties go to the higher mean log-probability, then to the earlier plan. The
    final programs are generated with the selected plan, and evaluated by the hidden tests. All samples depend on the
    seed and the problem alone.

    Args:
        generator (`TextGenerator`):
            Generates programs and, unless there is a `plan_generator`, plans.
        executor ([`CodeExecutor`], *optional*):
            Runs programs; `None` on processes other than the main one.
        num_plans (`int`, *optional*, defaults to `20`):
            Number of plans per problem, N. `n_plans` is an alias.
        num_programs (`int`, *optional*, defaults to `10`):
            Number of programs per plan, and of final programs per problem, m. `n_programs` is an alias.
        temperature (`float`, *optional*, defaults to `0.6`), top_p (`float`, *optional*, defaults to `0.95`):
            Sampling parameters of plans and programs, as in the paper's released code.
        plan_generator (`TextGenerator`, *optional*):
            Generates the plans, such as the same model through its plan head.
        smaller_num_plans (`Sequence[int]`, *optional*):
            Smaller numbers of plans to report as well: for each number, a plan is selected from that many first plans,
            and final programs are generated with it. 0 is generation without a plan.
        without_public_tests (`str`, *optional*, defaults to `"error"`):
            For problems without public tests: `"error"`, or `"logprob"` to select the most likely plan.
        ranker ([`ProgramRanker`], *optional*):
            Orders the final programs, the best first.
        prompting ([`TaskPrompting`], *optional*):
            Makes the prompts, and extracts the program from a completion.
        too_long (`Callable`, *optional*):
            Takes prompts and `max_new_tokens`, and returns the indices of the prompts that exceed the model's
            positions, as `TransformersGenerator.too_long` does. These plans and programs count as not solved; by
            default the generator's error ends the run.
        max_plan_tokens (`int`, *optional*, defaults to `512`), max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum number of tokens per plan and per program.
        seed (`int`, *optional*, defaults to `0`):
            Seed of sampling.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of problems per batch.
        accelerator (`Accelerator`, *optional*):
            Accelerator of generators that are distributed over several processes, all of which then call `run`.
            Programs are run and ranked on the main process.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show the progress.

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
    ...     sampler = PlanSampler(Student(), executor, num_plans=2, num_programs=1, progress=False)
    ...     [result] = sampler.run([problem])
    >>> result.plan, result.plan_scores[0].pass_fraction, result.programs
    ('1. Print 4.', 1.0, ('print(4)',))

    ```
    """

    def __init__(
        self,
        generator: TextGenerator,
        executor: CodeExecutor | None,
        num_plans: int | None = None,
        num_programs: int | None = None,
        temperature: float = 0.6,
        top_p: float = 0.95,
        *,
        plan_generator: TextGenerator | None = None,
        smaller_num_plans: Sequence[int] = (),
        without_public_tests: Literal["error", "logprob"] = "error",
        ranker: ProgramRanker | None = None,
        prompting: TaskPrompting | None = None,
        too_long: Callable[[Sequence[str], int], Sequence[int]] | None = None,
        max_plan_tokens: int = 512,
        max_new_tokens: int = 512,
        seed: int = 0,
        batch_size: int = 16,
        accelerator: Any = None,
        progress: bool = True,
        n_plans: int | None = None,
        n_programs: int | None = None,
    ) -> None:
        plans, num_plans = _given("num_plans", num_plans, "n_plans", n_plans, 20)
        programs, num_programs = _given("num_programs", num_programs, "n_programs", n_programs, 10)
        for name, value in ((plans, num_plans), (programs, num_programs), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"`{name}` is {value}; give at least 1.")
        if temperature == 0 and max(num_plans, num_programs) > 1:
            raise ValueError(
                f"`temperature` is 0, at which all of {plans}={num_plans} and {programs}={num_programs} would be "
                "equal; give a `temperature` above 0, such as 0.6."
            )
        if any(not 0 <= number < num_plans for number in smaller_num_plans):
            raise ValueError(
                f"`smaller_num_plans` is {list(smaller_num_plans)}; give numbers of at least 0 and below "
                f"{plans}={num_plans}."
            )
        if without_public_tests not in ("error", "logprob"):
            raise ValueError(f"`without_public_tests` is {without_public_tests!r}; choose 'error' or 'logprob'.")
        self._generator = generator
        self._plan_generator = plan_generator or generator
        self._executor = executor
        self._num_plans = num_plans
        self._num_programs = num_programs
        self._sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
        self._all_num_plans = (*sorted(set(smaller_num_plans)), num_plans)
        self._without_public_tests = without_public_tests
        self._ranker = ranker
        self._prompting = prompting or TaskPrompting()
        self._too_long = too_long
        self._max_plan_tokens = max_plan_tokens
        self._max_new_tokens = max_new_tokens
        self._seed = seed
        self._batch_size = batch_size
        self._accelerator = accelerator
        self._progress = progress

    def run(self, problems: Iterable[_Problem]) -> list[PlanSamplingResult]:
        """Sample plans and programs for problems.

        Args:
            problems (`Iterable[Mapping]`):
                Rows with `id`, `problem`, `public_tests` and, for the report, `hidden_tests`: a test program, or
                `{"inputs": [...], "outputs": [...]}` as in APPS or its JSON.

        Returns:
            `list[PlanSamplingResult]`: Results in the order of the problems.

        Raises:
            ValueError: If a row is malformed, or has no public tests and `without_public_tests` is `"error"`.
            GenerationError: If a generator fails.
        """
        rows = [_with_decoded_tests(row) for row in problems]
        self._check(rows)
        results = []
        show = self._progress and is_main_process(self._accelerator)
        with Progress(len(rows), "Sampling plans", "problem", shown=show) as bar:
            for start in range(0, len(rows), self._batch_size):
                batch = rows[start : start + self._batch_size]
                results += self._run_batch(batch)
                bar.update(len(batch))
        return results

    def _run_batch(self, rows: Sequence[_Problem]) -> list[PlanSamplingResult]:
        problems = [{name: value for name, value in row.items() if name != "hidden_tests"} for row in rows]
        scores = self._score_plans(problems)
        selected = [{number: _select_plan(several[:number]) for number in self._all_num_plans} for several in scores]
        programs = self._generate_final_programs(problems, scores, selected)
        return [
            PlanSamplingResult(
                str(row["id"]),
                tuple(plan_scores),
                {number: self._evaluate(row, by_plan[index], index) for number, index in by_number.items()},
            )
            for row, plan_scores, by_number, by_plan in zip(rows, scores, selected, programs, strict=True)
        ]

    def _score_plans(self, problems: Sequence[_Problem]) -> list[list[PlanScore]]:
        plans = self._generate(
            self._plan_generator,
            [self._prompting.plan(problem) for problem in problems],
            "plans",
            n=self._num_plans,
            max_new_tokens=self._max_plan_tokens,
            stop=self._prompting.plan_stop,
        )
        pairs = [
            (problem, completion.text.strip())
            for problem, several in zip(problems, plans, strict=True)
            for completion in several
            if _has_public_tests(problem) and completion is not _NOT_GENERATED
        ]
        trials = iter(self._generate_programs(pairs, "trials"))
        return [
            [self._score_plan(problem, completion, trials) for completion in several]
            for problem, several in zip(problems, plans, strict=True)
        ]

    def _score_plan(self, problem: _Problem, plan: Completion, trials: Iterator[list[_Program]]) -> PlanScore:
        too_long, fraction = plan is _NOT_GENERATED, None
        texts: tuple[str, ...] = ()
        if _has_public_tests(problem):
            programs = [] if too_long else next(trials)
            too_long = too_long or programs[0][1] is _NOT_GENERATED
            texts = () if too_long else tuple(program for program, _ in programs)
            fraction = 0.0 if too_long else self._pass_fraction(problem, texts)
        return PlanScore(plan.text.strip(), plan.mean_logprob, fraction, too_long, texts)

    def _generate_programs(self, pairs: Sequence[tuple[_Problem, str | None]], purpose: str) -> list[list[_Program]]:
        """Generate programs for pairs of problem and plan; the samples differ by purpose."""
        completions = self._generate(
            self._generator,
            [self._prompting.code(problem, plan) for problem, plan in pairs],
            purpose,
            n=self._num_programs,
            max_new_tokens=self._max_new_tokens,
            stop=self._prompting.code_stop,
        )
        return [
            [(self._prompting.program(problem, completion.text), completion) for completion in several]
            for (problem, _), several in zip(pairs, completions, strict=True)
        ]

    def _generate(
        self, generator: TextGenerator, prompts: Sequence[str], purpose: str, *, n: int, max_new_tokens: int, stop: Any
    ) -> list[list[Completion]]:
        """Generate completions for all prompts that do not exceed the model's positions."""
        too_long = set() if self._too_long is None else set(self._too_long(prompts, max_new_tokens))
        completions = iter(
            generator.generate(
                [prompt for index, prompt in enumerate(prompts) if index not in too_long],
                n=n,
                max_new_tokens=max_new_tokens,
                stop=stop,
                seed=derive_seed(self._seed, purpose),
                **self._sampling,
            )
        )
        return [[_NOT_GENERATED] * n if index in too_long else next(completions) for index in range(len(prompts))]

    def _generate_final_programs(
        self,
        problems: Sequence[_Problem],
        scores: Sequence[Sequence[PlanScore]],
        selected: Sequence[Mapping[int, int | None]],
    ) -> list[dict[int | None, list[_Program]]]:
        """Generate the final programs of each problem once per selected plan, by its index; `None` is no plan."""
        programs: list[dict[int | None, list[_Program]]] = [{} for _ in problems]
        keys = []
        for position, by_number in enumerate(selected):
            for index in dict.fromkeys(by_number.values()):
                if index is not None and scores[position][index].too_long:
                    missing = (self._prompting.program(problems[position], ""), _NOT_GENERATED)
                    programs[position][index] = [missing] * self._num_programs
                else:
                    keys.append((position, index))
        pairs = [
            (problems[position], None if index is None else scores[position][index].plan) for position, index in keys
        ]
        for (position, index), generated in zip(keys, self._generate_programs(pairs, "final"), strict=True):
            programs[position][index] = self._rank(problems[position], generated)
        return programs

    def _rank(self, problem: _Problem, programs: list[_Program]) -> list[_Program]:
        if self._ranker is None:
            return programs
        score, texts = self._ranker.score, [program for program, _ in programs]
        scores = run_on_main_and_broadcast(self._accelerator, lambda: score(problem["problem"], texts))
        order = sorted(range(len(programs)), key=lambda index: -scores[index])
        return [programs[index] for index in order]

    def _pass_fraction(self, problem: _Problem, programs: Sequence[str]) -> float:
        """Return the fraction of the public cases that programs pass, averaged over them; equal programs run once."""
        distinct = list(dict.fromkeys(programs))
        fractions = run_on_main_and_broadcast(
            self._accelerator, lambda: pass_fractions(distinct, problem["public_tests"], self._execute)
        )
        found = dict(zip(distinct, fractions, strict=True))
        known = [fraction for program in programs if (fraction := found[program]) is not None]
        if not known:
            raise RuntimeError(f"no program for problem {problem['id']!r} could be run: the sandbox failed.")
        return sum(known) / len(known)

    def _execute(self, pairs: Sequence[tuple[str, Tests]], *, fail_fast: bool = False) -> list[ExecutionResult]:
        assert self._executor is not None, "the main process needs an executor"
        return self._executor.run(pairs, fail_fast=fail_fast)

    def _evaluate(self, row: _Problem, programs: Sequence[_Program], index: int | None) -> PlanChoice:
        """Run final programs against the hidden tests of a problem; equal programs run once."""
        texts = [program for program, _ in programs]
        verdicts = []
        if tests := row.get("hidden_tests"):
            distinct = list(dict.fromkeys(texts))
            pairs = [(program, tests) for program in distinct]
            results = run_on_main_and_broadcast(self._accelerator, lambda: self._execute(pairs, fail_fast=True))
            found = dict(zip(distinct, results, strict=True))
            verdicts = [found[program] for program in texts]
        return PlanChoice(index, tuple(completion for _, completion in programs), tuple(texts), tuple(verdicts))

    def _check(self, rows: Sequence[_Problem]) -> None:
        """Raise a ValueError for a malformed problem before anything is generated."""
        for number, row in enumerate(rows):
            for column in ("id", "problem"):
                if column not in row:
                    raise ValueError(
                        f"problem {number} has no `{column}`; give rows {{id, problem, public_tests, hidden_tests}}."
                    )
            if self._without_public_tests == "error" and not _has_public_tests(row):
                raise ValueError(
                    f"problem {str(row['id'])!r} has no `public_tests` to select a plan by; add some, or set "
                    "without_public_tests='logprob' to select the most likely plan."
                )
            for column in _TESTS:
                if row.get(column):
                    check_tests(row[column], f"`{column}` of problem {str(row['id'])!r}")
        ids = [str(row["id"]) for row in rows]
        if len(set(ids)) < len(ids):
            raise ValueError(f"two problems have the id {max(ids, key=ids.count)!r}; give each another one.")


def _given(name: str, value: int | None, alias: str, alias_value: int | None, default: int) -> tuple[str, int]:
    """Return the value of an argument with an alias, and the name by which it was given."""
    if value is None:
        return (name, default) if alias_value is None else (alias, alias_value)
    if alias_value is not None:
        raise ValueError(f"`{name}` is {value} and its alias `{alias}` is {alias_value}; give one of them.")
    return name, value


def _select_plan(scores: Sequence[PlanScore]) -> int | None:
    """Return the index of the first plan with the largest pass fraction and, among those, mean log-probability."""
    if not scores:
        return None
    if any(score.pass_fraction is None and score.mean_logprob is None and not score.too_long for score in scores):
        raise ValueError(
            "without public tests plans are selected by their log-probability, which this generator does not return; "
            "use another backend, or give public tests."
        )

    def key(index: int) -> tuple[float, float]:
        score = scores[index]
        logprob = -math.inf if score.mean_logprob is None else score.mean_logprob
        return (0.0 if score.pass_fraction is None else score.pass_fraction, logprob)

    return max(range(len(scores)), key=key)


def _with_decoded_tests(row: _Problem) -> _Problem:
    return {name: decode_tests(value) if name in _TESTS else value for name, value in row.items()}


def _has_public_tests(row: _Problem) -> bool:
    tests = row.get("public_tests")
    return bool(tests.strip() if isinstance(tests, str) else tests)
