"""Generate plans with a teacher, and keep its answers on disk so that none is paid for twice.

Departures from CodePLAN: the teacher sees the problem and the solution (the released script shows only the
solution), the prompts are this project's own, and answers that are not valid plans are rejected.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

from ..distributed import is_main_process, run_on_main_and_broadcast
from ..generation import TextGenerator
from ..generation.budget import BudgetedGenerator, BudgetSpent
from ..generation.protocol import SamplingParams, derive_seed, stream
from ..generation.wrappers import is_chat
from ..ledger import Ledger
from ..progress import Progress
from .plan_checks import check_plan, check_rows, extract_plan
from .plan_prompts import PLAN_STOP, Reasoning, plan_prompt

__all__ = ["PlanGenerator", "PlanReport"]


@dataclass(frozen=True)
class PlanReport:
    """Counts of a run of [`PlanGenerator`].

    Args:
        wanted (`int`):
            Number of plans requested for the rows.
        plans (`int`):
            Number of valid plans.
        rejected (`Mapping[str, int]`):
            Number of answers that are not valid plans, by the reasons of `check_plan`, or `refused` if the server
            refused the request, or `prompt_too_long` if none was sent.
        without (`int`):
            Number of problems without a plan.
        requests (`int`), tokens (`int`):
            Cost of this run.
        stopped (`str`, *optional*):
            The limit that ended the run early.
    """

    wanted: int
    plans: int
    rejected: Mapping[str, int]
    without: int
    requests: int
    tokens: int
    stopped: str | None


class PlanGenerator:
    r"""Generate plans for solutions with a teacher, and keep its answers in a file.

    Each answer is written as soon as the generator returns it, under the id of the problem, a digest of problem and
    solution, and the version of the prompt. A run that was interrupted, for example by `kill -9`, continues when it is
    started again and repeats no recorded request; only requests in flight are lost. Rejected answers are kept as well,
    since they were paid for: they are not requested again, and are checked again when the checks change.

    Args:
        generator (`TextGenerator`):
            The teacher. It is stopped where `### ` begins a line, as in the prompts, unless it is a chat model, whose
            answers may have headings: a generator of user messages, or one with a `format_prompt`.
        output (`str` or `Path`):
            JSON Lines file of its answers.
        n (`int`, *optional*, defaults to `1`):
            Number of plans per solution or, with forward reasoning, per problem. A later run may increase it.
        reasoning (`str`, *optional*, defaults to `"backward"`):
            `"backward"`, from problem and solution, or `"forward"`, from the problem alone.
        layout (`str`, *optional*):
            Custom prompt: a format string with the field `{problem}` and, backward, `{solution}`. It is part of the
            version of the prompt.
        temperature (`float`, *optional*, defaults to `0.2`), top_p (`float`, *optional*, defaults to `1.0`):
            Sampling parameters; the temperature is that of the paper's released script.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum number of tokens per answer.
        seed (`int`, *optional*, defaults to `0`):
            Seed of sampling.
        batch_size (`int`, *optional*, defaults to `8`):
            Number of prompts per call of the generator.
        max_solutions (`int`, *optional*):
            Maximum number of solutions per problem, the shortest first; by default all distinct ones.
        max_requests (`int`, *optional*), max_tokens (`int`, *optional*):
            Limits on the cost of a run, as [`BudgetedGenerator`] counts them; the run then ends without an error.
        max_plan_chars (`int`, *optional*, defaults to `3000`):
            Maximum number of characters per plan.
        max_prompt_chars (`int`, *optional*, defaults to `20000`):
            Maximum number of characters per prompt; solutions with longer prompts are skipped.
        format_prompt (`Callable`, *optional*):
            Converts a prompt to the teacher's format, such as its chat template.
        settings (`Mapping`, *optional*):
            Further settings on which answers depend, such as the teacher's name; a file of answers with other settings
            is an error.
        accelerator (`Accelerator`, *optional*):
            Accelerator of a generator that is distributed over several processes, all of which then call `run`.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show the progress.

    Attributes:
        report ([`PlanReport`], *optional*): counts of the last run.

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
        counts = {"n": n, "batch_size": batch_size, "max_new_tokens": max_new_tokens, "max_solutions": max_solutions}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}; give at least 1.")
        if n > 1 and temperature == 0:
            raise ValueError(f"`n` is {n} at temperature 0, where all plans are equal; give a `temperature` above 0.")
        self._generator = generator
        self._output = Path(output).expanduser()
        self._n = n
        self._prompt = plan_prompt(reasoning, layout)
        sampling = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens, "seed": seed}
        stop = PLAN_STOP if format_prompt is None and not is_chat(generator) else ()
        self._sampling = SamplingParams(n, temperature, top_p, max_new_tokens, stop)
        self._seed = seed
        self._settings = {**sampling, **(settings or {})}
        self._batch_size = batch_size
        self._max_solutions = max_solutions
        self._limits: dict[str, Any] = {"max_requests": max_requests, "max_tokens": max_tokens}
        self._max_plan_chars = max_plan_chars
        self._max_prompt_chars = max_prompt_chars
        self._format_prompt = format_prompt or str
        self._accelerator = accelerator
        self._progress = progress
        self.report: PlanReport | None = None
        self._budgeted_generator()  # raises on invalid limits before a file is opened

    def run(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Request all plans that are not in the file yet.

        Args:
            rows (`Iterable[Mapping]`):
                Rows with `id`, `problem` and `solutions`, a list of programs; other columns are kept.

        Returns:
            `list[dict]`: The rows, each with `plans`, a list of texts in the order of the solutions, empty if every
            answer was rejected or the limits ended the run before. With backward reasoning, `plan_solutions` has the
            index of the solution of each plan.

        Raises:
            ValueError: If a row is malformed or has no solution, or the file contains answers with other settings.
            GenerationError: If the teacher fails. Its answers so far are kept.
            OSError: If the disk is full. The answers written before are kept.
        """
        found = [dict(row) for row in rows]
        check_rows(found, need_solutions=self._sees_solution)
        requests = [list(self._requests(row)) for row in found]
        generator = self._budgeted_generator()
        with self._open_answers() as answers:
            self._generate(requests, answers, generator)
        self.report = self._add_plans(found, requests, answers, generator)
        return found

    def _budgeted_generator(self) -> BudgetedGenerator:
        return BudgetedGenerator(self._generator, **self._limits, accelerator=self._accelerator)

    @contextmanager
    def _open_answers(self) -> Iterator["_Answers"]:
        """Yield the answers in the file, which is open for more on the main process."""
        if not is_main_process(self._accelerator):
            yield _Answers(run_on_main_and_broadcast(self._accelerator, dict))
            return
        with Ledger(self._output, self._settings) as ledger:
            yield _Answers(run_on_main_and_broadcast(self._accelerator, lambda: _read_answers(ledger)), ledger)

    @property
    def _sees_solution(self) -> bool:
        return self._prompt.name == "backward"

    def _requests(self, row: Mapping[str, Any]) -> Iterator["_Request"]:
        solutions = [""]
        if self._sees_solution:
            solutions = list(dict.fromkeys(row["solutions"]))
            if self._max_solutions is not None:
                solutions = sorted(solutions, key=len)[: self._max_solutions]
        for solution in solutions:
            prompt = self._format_prompt(self._prompt.render(row["problem"], solution))
            key = (str(row["id"]), _digest(row["problem"], solution), self._prompt.version)
            yield _Request(key, prompt, row["solutions"].index(solution) if self._sees_solution else None)

    def _missing(self, requests: Sequence[Sequence["_Request"]], answers: "_Answers") -> list[tuple[int, "_Request"]]:
        """Return the number of missing answers and the request, for each incomplete one, the largest number first."""
        missing = [
            (self._n - len(answers[request.key]), request)
            for several in requests
            for request in several
            if not self._is_too_long(request)
        ]
        return sorted(((n, request) for n, request in missing if n > 0), key=itemgetter(0), reverse=True)

    def _is_too_long(self, request: "_Request") -> bool:
        return len(request.prompt) > self._max_prompt_chars

    def _generate(
        self, requests: Sequence[Sequence["_Request"]], answers: "_Answers", generator: BudgetedGenerator
    ) -> None:
        """Generate the missing answers batch by batch, until a limit is reached."""
        missing = self._missing(requests, answers)
        show = self._progress and is_main_process(self._accelerator)
        with (
            Progress(sum(n for n, _ in missing), "Generating plans", "plan", shown=show) as bar,
            suppress(BudgetSpent),
        ):
            for n, group in groupby(missing, key=itemgetter(0)):
                same_n = [request for _, request in group]
                for start in range(0, len(same_n), self._batch_size):
                    for answer in self._stream_answers(same_n[start : start + self._batch_size], n, generator):
                        answers.append(answer)
                        bar.update()

    def _stream_answers(
        self, batch: Sequence["_Request"], n: int, generator: BudgetedGenerator
    ) -> Iterator["_Answer"]:
        """Yield the `n` missing answers of each request as they arrive."""
        sampling = replace(self._sampling, n=n, seed=derive_seed(self._seed, self._n - n))
        prompts, problems = [request.prompt for request in batch], [request.key[0] for request in batch]
        for index, completions in stream(generator, prompts, sampling, problems=problems):
            for completion in completions:
                yield _Answer(
                    *batch[index].key,
                    completion.text,
                    completion.finish_reason,
                    completion.num_tokens,
                    completion.refusal,
                )

    def _add_plans(
        self,
        rows: list[dict[str, Any]],
        requests: Sequence[Sequence["_Request"]],
        answers: "_Answers",
        generator: BudgetedGenerator,
    ) -> PlanReport:
        """Add the valid plans to each row, and return the counts."""
        rejected: Counter[str] = Counter()
        for row, several in zip(rows, requests, strict=True):
            row["plans"] = []
            for name in ("plan", "plan_solutions"):  # of the previous plans of the row
                row.pop(name, None)
            if self._sees_solution:
                row["plan_solutions"] = []
            for request in several:
                plans, reasons = self._check(answers[request.key][: self._n])
                row["plans"] += plans
                if request.solution is not None:
                    row["plan_solutions"] += [request.solution] * len(plans)
                rejected += reasons
                rejected["prompt_too_long"] += self._n * self._is_too_long(request)
        return PlanReport(
            wanted=self._n * sum(map(len, requests)),
            plans=sum(len(row["plans"]) for row in rows),
            rejected=dict((+rejected).most_common()),
            without=sum(not row["plans"] for row in rows),
            requests=generator.requests,
            tokens=generator.tokens,
            stopped=generator.exhausted if self._missing(requests, answers) else None,
        )

    def _check(self, answers: Sequence["_Answer"]) -> tuple[list[str], Counter[str]]:
        """Return the valid plans, and the number of rejected answers by reason."""
        plans: list[str] = []
        rejected: Counter[str] = Counter()
        for answer in answers:
            plan = extract_plan(answer.answer)
            truncated = answer.finish_reason == "length"
            reason: str | None = check_plan(plan, truncated=truncated, max_chars=self._max_plan_chars)
            if answer.finish_reason == "refused":
                reason = "refused"
            if reason is None:
                plans.append(plan)
            else:
                rejected[reason] += 1
        return plans, rejected


_Key: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Request:
    """One prompt, for a problem and, with backward reasoning, the solution with that index in its row."""

    key: _Key
    prompt: str
    solution: int | None


@dataclass(frozen=True, slots=True)
class _Answer:
    """One line of the file of answers.

    Args:
        id (`str`):
            Id of the problem.
        shown (`str`):
            Digest of the problem and, with backward reasoning, the solution.
        prompt (`str`):
            Version of the prompt.
        answer (`str`):
            Text of the completion.
        finish_reason (`str`):
            `stop`, `length` or `refused`.
        num_tokens (`int`, *optional*):
            Number of tokens of the completion.
        refusal (`str`, *optional*):
            Message of a server that refused the request.
    """

    id: str
    shown: str
    prompt: str
    answer: str
    finish_reason: str
    num_tokens: int | None
    refusal: str | None = None

    @property
    def key(self) -> _Key:
        return self.id, self.shown, self.prompt


class _Answers:
    """Answers by the key of their request, in memory and, on the main process, in a file."""

    def __init__(self, by_key: dict[_Key, list[_Answer]], ledger: Ledger | None = None) -> None:
        self._by_key = by_key
        self._ledger = ledger

    def __getitem__(self, key: _Key) -> list[_Answer]:
        return self._by_key.setdefault(key, [])

    def append(self, answer: _Answer) -> None:
        """Add an answer, and return once it is on disk."""
        if self._ledger is not None:
            self._ledger.append([asdict(answer)])
        self[answer.key].append(answer)


def _read_answers(ledger: Ledger) -> dict[_Key, list[_Answer]]:
    found: dict[_Key, list[_Answer]] = {}
    for row, where in ledger.read():
        try:
            answer = _Answer(**row)
        except TypeError as error:
            raise ValueError(f"{where} is not an answer of this package; give another output.") from error
        found.setdefault(answer.key, []).append(answer)
    return found


def _digest(problem: str, solution: str) -> str:
    """Return a digest of the texts shown to the teacher, which does not depend on the wording of the prompt."""
    shown = json.dumps([problem, solution])
    return hashlib.sha256(shown.encode("ascii")).hexdigest()[:16]
