"""Plans from a teacher, for a student to learn: asked for once, paid for once.

Departures from CodePLAN: the teacher sees the problem beside the solution (the released script gives the solution
alone), by prompts of our own; what it writes is checked, and what is no plan is left out.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..distributed import is_main_process, run_on_main_and_broadcast
from ..generation import TextGenerator
from ..generation.budget import BudgetedGenerator, BudgetSpent
from ..generation.protocol import derive_seed, stream
from ..ledger import Ledger
from .plan_answers import Answer, AnswerFile, Answers, Key, judge_answers
from .plan_prompts import PLAN_STOP, Reasoning, plan_prompt
from .plan_rows import check_rows

__all__ = ["PlanGenerator", "PlanReport"]


@dataclass(frozen=True)
class PlanReport:
    """Say what came of asking for plans.

    Args:
        wanted (`int`):
            Plans that the rows ask for.
        plans (`int`):
            Those that are there and of use.
        rejected (`Mapping[str, int]`):
            Answers that are no plans, by reason, as `check_plan` names them; `refused` where the server declined to
            answer; `prompt_too_long` where none was asked.
        without (`int`):
            Problems without any plan.
        requests (`int`), tokens (`int`):
            What this run has cost.
        stopped (`str`, *optional*):
            The budget that ended it before all was asked for.
    """

    wanted: int
    plans: int
    rejected: Mapping[str, int]
    without: int
    requests: int
    tokens: int
    stopped: str | None


@dataclass(frozen=True, slots=True)
class _Question:
    """One prompt: for a problem and, if the teacher sees one, the solution of that index in its row."""

    key: Key
    prompt: str
    solution: int | None


class PlanGenerator:
    r"""Ask a teacher for the plans behind solutions, and keep its answers in a file.

    Answers are on disk as soon as the generator hands them over, under the key of problem id, digest of problem and
    solution, and version of the prompt. A run that ended early, by `kill -9` for instance, goes on when it is run
    again, and asks for nothing that is there; it costs at most what is under way. Rejected answers are kept as well,
    for they were paid for: they are not asked for again, and are judged anew when the checks change.

    Args:
        generator (`TextGenerator`):
            The teacher.
        output (`str` or `Path`):
            JSON Lines file of its answers.
        n (`int`, *optional*, defaults to `1`):
            Plans a solution or, if reasoning forward, a problem. May be raised later.
        reasoning (`str`, *optional*, defaults to `"backward"`):
            `"backward"`, from problem and solution, or `"forward"`, from the problem alone.
        layout (`str`, *optional*):
            The request in other words: a format string with the field `{problem}` and, backward, `{solution}`. It
            enters the version of the prompt.
        temperature (`float`, *optional*, defaults to `0.2`), top_p (`float`, *optional*, defaults to `1.0`):
            Of sampling; the temperature is that of the paper's released script.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Most tokens of an answer.
        seed (`int`, *optional*, defaults to `0`):
            Seed of sampling.
        batch_size (`int`, *optional*, defaults to `8`):
            Prompts to give the teacher at a time.
        max_solutions (`int`, *optional*):
            Take the shortest so many solutions of a problem; by default all that differ.
        max_requests (`int`, *optional*), max_tokens (`int`, *optional*):
            End the run, cleanly, when it has cost so much, as [`BudgetedGenerator`] counts.
        max_plan_chars (`int`, *optional*, defaults to `3000`):
            Most characters of a plan.
        max_prompt_chars (`int`, *optional*, defaults to `20000`):
            Leave out solutions whose prompt is longer.
        format_prompt (`Callable`, *optional*):
            Turns the request into what the teacher reads, such as by its chat template.
        settings (`Mapping`, *optional*):
            What else answers depend on, such as the teacher's name; answers of others are refused in the same file.
        accelerator (`Accelerator`, *optional*):
            That of a generator that shares its work over several processes, all of which then call `run`.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Attributes:
        report ([`PlanReport`], *optional*): what came of the last run.

    Raises:
        ValueError: If an argument is outside its range.

    Example:

    ```python
    >>> from tempfile import TemporaryDirectory
    >>> from trl_akd.generation import Completion
    >>> class Teacher:
    ...     def generate(self, prompts, **settings):
    ...         return [[Completion("1. Read n.\n2. Print it twice.", -0.1, "stop", 12)] for _ in prompts]
    >>> rows = [{"id": "7", "problem": "Double a number.", "solutions": ["print(2 * int(input()))"]}]
    >>> with TemporaryDirectory() as folder:
    ...     plans = PlanGenerator(Teacher(), output=f"{folder}/answers.jsonl", progress=False)
    ...     plans.run(rows)[0]["plans"], plans.report.tokens
    (['1. Read n.\n2. Print it twice.'], 12)

    ```
    """

    def __init__(
        self,
        generator: TextGenerator,
        output: str | Path,
        n: int = 1,
        reasoning: Reasoning = "backward",
        *,
        layout: str | None = None,
        temperature: float = 0.2,
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        seed: int = 0,
        batch_size: int = 8,
        max_solutions: int | None = None,
        max_requests: int | None = None,
        max_tokens: int | None = None,
        max_plan_chars: int = 3000,
        max_prompt_chars: int = 20_000,
        format_prompt: Callable[[str], str] | None = None,
        settings: Mapping[str, Any] | None = None,
        accelerator: Any = None,
        progress: bool = True,
    ) -> None:
        counts = {
            "n": n,
            "batch_size": batch_size,
            "max_new_tokens": max_new_tokens,
            "max_solutions": max_solutions,
        }
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}; give at least 1.")
        if n > 1 and temperature == 0:
            raise ValueError(f"`n` is {n} at temperature 0, where all plans are alike; give a `temperature` above 0.")
        self._generator = generator
        self._output = Path(output).expanduser()
        self._n = n
        self._prompt = plan_prompt(reasoning, layout)
        self._sampling: dict[str, Any] = {
            "temperature": temperature,
            "top_p": top_p,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
        }
        self._settings = {**self._sampling, **(settings or {})}
        self._batch_size = batch_size
        self._max_solutions = max_solutions
        self._limits: dict[str, Any] = {"max_requests": max_requests, "max_tokens": max_tokens}
        self._max_plan_chars = max_plan_chars
        self._max_prompt_chars = max_prompt_chars
        self._format_prompt = format_prompt or str
        self._accelerator = accelerator
        self._progress = progress
        self.report: PlanReport | None = None
        self._budget()  # refuses bad limits before anything is opened

    def run(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Ask for all plans that are not there yet.

        Args:
            rows (`Iterable[Mapping]`):
                Rows with `id`, `problem` and `solutions`, a list of programs; whatever else they hold is kept.

        Returns:
            `list[dict]`: The rows, each with `plans`, a list of texts in the order of the solutions; it is empty where
            every answer was rejected or the budget did not suffice. If the teacher saw solutions, `plan_solutions`
            holds, for each plan, the index of the solution that it was written for.

        Raises:
            ValueError: If a row is malformed or has no solution, or the file holds answers of other settings.
            GenerationError: If the teacher fails. What it has answered is kept.
            OSError: If the disk is full. What was written is kept.
        """
        found = [dict(row) for row in rows]
        check_rows(found, need_solutions=self._sees_solution)
        asked = [list(self._questions(row)) for row in found]
        budget = self._budget()
        with self._answers() as answers:
            self._ask(asked, answers, budget)
        self.report = self._add_plans(found, asked, answers, budget)
        return found

    def _budget(self) -> BudgetedGenerator:
        return BudgetedGenerator(self._generator, **self._limits, accelerator=self._accelerator)

    @contextmanager
    def _answers(self) -> Iterator[Answers]:
        """Yield the answers that are there, on the main process as a file that grows."""
        if not is_main_process(self._accelerator):
            yield Answers(run_on_main_and_broadcast(self._accelerator, dict))
            return
        with Ledger(self._output, self._settings) as ledger:
            answers = AnswerFile(ledger)
            run_on_main_and_broadcast(self._accelerator, lambda: answers.by_key)
            yield answers

    @property
    def _sees_solution(self) -> bool:
        return self._prompt.name == "backward"

    def _questions(self, row: Mapping[str, Any]) -> Iterator[_Question]:
        solutions = [""]
        if self._sees_solution:
            solutions = list(dict.fromkeys(row["solutions"]))
            if self._max_solutions is not None:
                solutions = sorted(solutions, key=len)[: self._max_solutions]
        for solution in solutions:
            prompt = self._format_prompt(self._prompt.render(row["problem"], solution))
            key = (str(row["id"]), _digest(row["problem"], solution), self._prompt.version)
            yield _Question(key, prompt, row["solutions"].index(solution) if self._sees_solution else None)

    def _lacking(self, asked: Sequence[Sequence[_Question]], answers: Answers) -> list[tuple[int, _Question]]:
        """Return what is still to be asked, and how often, the most often first."""
        lacking = [
            (self._n - len(answers[question.key]), question)
            for several in asked
            for question in several
            if not self._is_too_long(question)
        ]
        return sorted(((n, question) for n, question in lacking if n > 0), key=itemgetter(0), reverse=True)

    def _is_too_long(self, question: _Question) -> bool:
        return len(question.prompt) > self._max_prompt_chars

    def _ask(self, asked: Sequence[Sequence[_Question]], answers: Answers, budget: BudgetedGenerator) -> None:
        """Generate what is lacking, batch by batch, until the budget is spent."""
        todo = self._lacking(asked, answers)
        show = self._progress and is_main_process(self._accelerator) and bool(todo)
        with (
            tqdm(total=sum(n for n, _ in todo), desc="Asking for plans", unit="plan", disable=not show) as bar,
            suppress(BudgetSpent),
        ):
            for n, group in groupby(todo, key=itemgetter(0)):
                alike = [question for _, question in group]
                for start in range(0, len(alike), self._batch_size):
                    for answer in self._answered(alike[start : start + self._batch_size], n, budget):
                        answers.append([answer])
                        bar.update()

    def _answered(self, batch: Sequence[_Question], n: int, budget: BudgetedGenerator) -> Iterator[Answer]:
        """Ask for so many plans of each question, and yield answers as they come."""
        sampling = {**self._sampling, "seed": derive_seed(self._sampling["seed"], self._n - n)}
        prompts, problems = [question.prompt for question in batch], [question.key[0] for question in batch]
        for index, completions in stream(budget, prompts, problems=problems, n=n, stop=PLAN_STOP, **sampling):
            for completion in completions:
                yield Answer(
                    *batch[index].key,
                    completion.text,
                    completion.finish_reason,
                    completion.num_tokens,
                    completion.refusal,
                )

    def _add_plans(
        self,
        rows: list[dict[str, Any]],
        asked: Sequence[Sequence[_Question]],
        answers: Answers,
        budget: BudgetedGenerator,
    ) -> PlanReport:
        """Give each row its plans, and say what came of all."""
        rejected: Counter[str] = Counter()
        for row, questions in zip(rows, asked, strict=True):
            row["plans"] = []
            row.pop("plan_solutions", None)  # of plans that the row came with
            if self._sees_solution:
                row["plan_solutions"] = []
            for question in questions:
                plans, reasons = judge_answers(answers[question.key][: self._n], max_chars=self._max_plan_chars)
                row["plans"] += plans
                if question.solution is not None:
                    row["plan_solutions"] += [question.solution] * len(plans)
                rejected += reasons
                rejected["prompt_too_long"] += self._n * self._is_too_long(question)
        return PlanReport(
            wanted=self._n * sum(map(len, asked)),
            plans=sum(len(row["plans"]) for row in rows),
            rejected=dict((+rejected).most_common()),
            without=sum(not row["plans"] for row in rows),
            requests=budget.requests,
            tokens=budget.tokens,
            stopped=budget.exhausted if self._lacking(asked, answers) else None,
        )


def _digest(problem: str, solution: str) -> str:
    """Tell apart what teachers are shown, without the wording around it."""
    shown = json.dumps([problem, solution])
    return hashlib.sha256(shown.encode("ascii")).hexdigest()[:16]
