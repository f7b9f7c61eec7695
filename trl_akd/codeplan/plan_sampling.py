"""Several plans for a problem, and the public tests to choose between them.

The paper's text on record does not say which tests choose. Here the public ones do, and hidden tests serve the report
alone: neither plans nor programs ever depend on them. Two more choices of ours: plans of which as many programs pass
are told apart by their mean log-probability, and the final programs are written anew with the chosen plan, since those
that made it win are the luckier ones.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from tqdm.auto import tqdm

from ..distributed import is_main_process, run_on_main_and_broadcast
from ..execution import CodeExecutor, ExecutionResult, Tests, check_tests
from ..generation import Completion, TextGenerator
from ..generation.protocol import derive_seed
from .plan_choice import PlanChoice, PlanSamplingResult, PlanScore, best_plan
from .public_tests import pass_fractions
from .task_prompts import TaskPrompting

__all__ = ["PlanSampler", "ProgramRanker"]

_Problem = Mapping[str, Any]
_Written = tuple[str, Completion]

_UNWRITTEN = Completion("", None, "length", 0)


class ProgramRanker(Protocol):
    """Anything that tells how likely programs are to be correct, without running them."""

    def score(self, problem: str, programs: Sequence[str]) -> list[float]:
        """Return a number for each program, the higher the better."""


class PlanSampler:
    r"""Sample plans, let public tests choose one by the programs it leads to, and write programs with it.

    Of a problem, N plans are sampled and m programs behind each. The plan whose programs pass the largest fraction of
    the public cases is chosen; the likelier one where that is equal, the earlier one where that is too. With it the
    final programs are written, which the hidden tests judge. All samples depend on the seed and the problem alone.

    Args:
        generator (`TextGenerator`):
            Writes programs and, unless there is a `plan_generator`, plans.
        executor ([`CodeExecutor`], *optional*):
            Where programs run; `None` on processes other than the main one.
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
        too_long (`Callable`, *optional*):
            Takes prompts and `max_new_tokens`, and returns the indices of prompts that the model has too few positions
            for, as `TransformersGenerator.too_long` does. Plans and programs that they ask for count as not solved; by
            default the generator's error ends the run.
        max_plan_tokens (`int`, *optional*, defaults to `512`), max_new_tokens (`int`, *optional*, defaults to `512`):
            Most tokens of a plan and of a program.
        seed (`int`, *optional*, defaults to `0`):
            Seed of sampling.
        batch_size (`int`, *optional*, defaults to `16`):
            Problems to work on at a time.
        accelerator (`Accelerator`, *optional*):
            That of generators that share their work over several processes, all of which then call `run`. Programs
            run, and are ranked, on the main one.
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
        executor: CodeExecutor | None,
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
        too_long: Callable[[Sequence[str], int], Sequence[int]] | None = None,
        max_plan_tokens: int = 512,
        max_new_tokens: int = 512,
        seed: int = 0,
        batch_size: int = 16,
        accelerator: Any = None,
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
        self._too_long = too_long
        self._max_plan_tokens = max_plan_tokens
        self._max_new_tokens = max_new_tokens
        self._seed = seed
        self._batch_size = batch_size
        self._accelerator = accelerator
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
        show = self._progress and is_main_process(self._accelerator)
        with tqdm(total=len(rows), desc="Sampling plans", unit="problem", disable=not show) as bar:
            for start in range(0, len(rows), self._batch_size):
                batch = rows[start : start + self._batch_size]
                results += self._work_on(batch)
                bar.update(len(batch))
        return results

    def _work_on(self, rows: Sequence[_Problem]) -> list[PlanSamplingResult]:
        """Choose with what may be seen; only then bring in the hidden tests."""
        seen = [{name: value for name, value in row.items() if name != "hidden_tests"} for row in rows]
        scores = self._score_plans(seen)
        chosen = [{number: best_plan(several[:number]) for number in self._numbers} for several in scores]
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
        plans = self._ask(
            self._plan_generator,
            [self._prompting.plan(problem) for problem in problems],
            "plans",
            n=self._n_plans,
            max_new_tokens=self._max_plan_tokens,
            stop=self._prompting.plan_stop,
        )
        tried = [
            (problem, completion.text.strip())
            for problem, several in zip(problems, plans, strict=True)
            for completion in several
            if _has_tests(problem) and completion is not _UNWRITTEN
        ]
        trials = iter(self._write(tried, "trials"))
        return [
            [self._score_plan(problem, completion, trials) for completion in several]
            for problem, several in zip(problems, plans, strict=True)
        ]

    def _score_plan(self, problem: _Problem, plan: Completion, trials: Iterator[list[_Written]]) -> PlanScore:
        """Judge a plan by the next trial, if there is one."""
        too_long, fraction = plan is _UNWRITTEN, None
        if _has_tests(problem):
            programs = [] if too_long else next(trials)
            too_long = too_long or programs[0][1] is _UNWRITTEN
            fraction = 0.0 if too_long else self._pass_fraction(problem, [program for program, _ in programs])
        return PlanScore(plan.text.strip(), plan.mean_logprob, fraction, too_long)

    def _write(self, pairs: Sequence[tuple[_Problem, str | None]], purpose: str) -> list[list[_Written]]:
        """Write programs for problems and plans, other ones for each purpose."""
        written = self._ask(
            self._generator,
            [self._prompting.code(problem, plan) for problem, plan in pairs],
            purpose,
            n=self._n_programs,
            max_new_tokens=self._max_new_tokens,
            stop=self._prompting.code_stop,
        )
        return [
            [(self._prompting.program(problem, completion.text), completion) for completion in several]
            for (problem, _), several in zip(pairs, written, strict=True)
        ]

    def _ask(
        self, generator: TextGenerator, prompts: Sequence[str], purpose: str, *, n: int, max_new_tokens: int, stop: Any
    ) -> list[list[Completion]]:
        """Generate for all prompts but those that the model has too few positions for."""
        long = set() if self._too_long is None else set(self._too_long(prompts, max_new_tokens))
        written = iter(
            generator.generate(
                [prompt for index, prompt in enumerate(prompts) if index not in long],
                n=n,
                max_new_tokens=max_new_tokens,
                stop=stop,
                seed=derive_seed(self._seed, purpose),
                **self._sampling,
            )
        )
        return [[_UNWRITTEN] * n if index in long else next(written) for index in range(len(prompts))]

    def _write_finals(
        self,
        problems: Sequence[_Problem],
        scores: Sequence[Sequence[PlanScore]],
        chosen: Sequence[Mapping[int, int | None]],
    ) -> list[dict[int | None, list[_Written]]]:
        """Write the final programs of each problem, once with each plan that is chosen; `None` is no plan."""
        finals: list[dict[int | None, list[_Written]]] = [{} for _ in problems]
        wanted = []
        for position, choice in enumerate(chosen):
            for index in dict.fromkeys(choice.values()):
                if index is not None and scores[position][index].too_long:
                    unwritten = (self._prompting.program(problems[position], ""), _UNWRITTEN)
                    finals[position][index] = [unwritten] * self._n_programs
                else:
                    wanted.append((position, index))
        pairs = [
            (problems[position], None if index is None else scores[position][index].plan) for position, index in wanted
        ]
        for (position, index), programs in zip(wanted, self._write(pairs, "final"), strict=True):
            finals[position][index] = self._ranked(problems[position], programs)
        return finals

    def _ranked(self, problem: _Problem, programs: list[_Written]) -> list[_Written]:
        if self._ranker is None:
            return programs
        score, texts = self._ranker.score, [program for program, _ in programs]
        scores = run_on_main_and_broadcast(self._accelerator, lambda: score(problem["problem"], texts))
        order = sorted(range(len(programs)), key=lambda index: -scores[index])
        return [programs[index] for index in order]

    def _pass_fraction(self, problem: _Problem, programs: Sequence[str]) -> float:
        """Return the fraction of the public cases that programs pass, averaged over them; those alike run once."""
        distinct = list(dict.fromkeys(programs))
        fractions = run_on_main_and_broadcast(
            self._accelerator, lambda: pass_fractions(distinct, problem["public_tests"], self._execute)
        )
        found = dict(zip(distinct, fractions, strict=True))
        judged = [fraction for program in programs if (fraction := found[program]) is not None]
        if not judged:
            raise RuntimeError(f"no program for problem {problem['id']!r} could be judged: the sandbox failed.")
        return sum(judged) / len(judged)

    def _execute(self, pairs: Sequence[tuple[str, Tests]], *, fail_fast: bool = False) -> list[ExecutionResult]:
        """Run programs on the main process."""
        assert self._executor is not None, "the main process needs an executor"
        return self._executor.run(pairs, fail_fast=fail_fast)

    def _judged(self, row: _Problem, finals: Sequence[_Written], index: int | None) -> PlanChoice:
        programs = [program for program, _ in finals]
        verdicts = self._verdicts(programs, row["hidden_tests"]) if row.get("hidden_tests") else []
        return PlanChoice(index, tuple(completion for _, completion in finals), tuple(programs), tuple(verdicts))

    def _verdicts(self, programs: Sequence[str], tests: Tests) -> list[ExecutionResult]:
        """Run programs against hidden tests, those that are alike once."""
        distinct = list(dict.fromkeys(programs))
        pairs = [(program, tests) for program in distinct]
        results = run_on_main_and_broadcast(self._accelerator, lambda: self._execute(pairs, fail_fast=True))
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


def _has_tests(row: _Problem) -> bool:
    tests = row.get("public_tests")
    return bool(tests.strip() if isinstance(tests, str) else tests)
