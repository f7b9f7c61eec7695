"""Cost of a run: an estimate before the first request, usage, and time and requests that survive restarts."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...generation.budget import Budget, Limit
from ...generation.protocol import Usage, estimate_num_tokens
from ...ledger import replace_text
from .config import CycleConfig
from .pair_generation import assign_kinds
from .records import LEVELS, Question

__all__ = [
    "Price",
    "Spending",
    "describe_usage",
    "estimate_usage",
    "prices",
    "read_spending",
    "recording_spending",
    "write_usage",
]


@dataclass(frozen=True)
class Price:
    """Price per million tokens, in any currency; `None` if unknown."""

    prompt: float | None
    completion: float | None

    def of(self, usage: Usage) -> float | None:
        """Return the price of usage."""
        if self.prompt is None and self.completion is None:
            return None
        tokens = usage.prompt_tokens * (self.prompt or 0.0) + usage.completion_tokens * (self.completion or 0.0)
        return tokens / 1e6


def prices(config: CycleConfig, *, teacher_judges: bool) -> dict[str, Price]:
    """Return the prices of teacher and judge."""
    teacher = Price(config.price_per_million_prompt_tokens, config.price_per_million_completion_tokens)
    judge = Price(config.judge_price_per_million_prompt_tokens, config.judge_price_per_million_completion_tokens)
    return {"teacher": teacher, "judge": teacher if teacher_judges else judge}


def estimate_usage(questions: Sequence[Question], config: CycleConfig, *, judged: bool) -> dict[str, Usage]:
    """Return an upper estimate of the usage of all cycles, by model.

    All answers are assumed to be kept, judged and followed up, no request to be repeated after an error, and all
    completions to have their maximum length. The lengths of prompts are estimated from the first cycle.

    `questions` are those of the first cycle, and `judged` is whether a model writes judgements.

    Example:

    ```python
    >>> config = CycleConfig(cycles=1)
    >>> usage = estimate_usage([Question("a", "Add two numbers.")], config, judged=True)
    >>> usage["teacher"].requests, usage["judge"].requests
    (2, 3)

    ```
    """
    prompts, judge = config.teaching_prompts, config.judge_prompt
    answers = [prompts.for_answer(question.instruction) for question in questions if question.answer is None]
    faults = [
        prompts.for_fault(question.instruction, kind)
        for question in questions
        for kind in assign_kinds(question.id, config, config.run_seed)
    ]
    num_new = sum(map(config.new_questions, LEVELS))
    new_prompt_tokens = round(
        sum(
            config.new_questions(level)
            * _mean_num_tokens([prompts.for_question(question.instruction, level) for question in questions])
            for level in LEVELS
        )
    )
    judge_prompt_tokens = _mean_num_tokens([judge.render(question.instruction, "") for question in questions])
    teacher, judging, size = Usage(), Usage(), len(questions)
    for cycle in range(config.cycles):
        num_answers = len(answers) if cycle == 0 else size
        num_faults = size * config.faults_per_question
        prompt_tokens = num_answers * _mean_num_tokens(answers or faults) + num_faults * _mean_num_tokens(faults)
        requests = num_answers + num_faults
        teacher += Usage(requests, round(prompt_tokens), requests * config.teacher_max_new_tokens)
        if cycle + 1 < config.cycles:
            teacher += Usage(num_new, new_prompt_tokens, num_new * config.teacher_max_new_tokens)
        if judged:
            num_verified = size + num_faults
            num_student_answers = size + (size if config.own_faults and cycle else 0)
            attempts = 1 + config.judge_retries
            answer_tokens = attempts * (
                num_verified * config.teacher_max_new_tokens + num_student_answers * config.answer_max_new_tokens
            )
            requests = attempts * (num_verified + num_student_answers)
            judging += Usage(
                requests,
                round(requests * judge_prompt_tokens + answer_tokens),
                requests * config.teacher_max_new_tokens,
            )
        size = min(config.questions_per_cycle, size + num_new)
    return {"teacher": teacher, **({"judge": judging} if judged else {})}


def describe_usage(usage: Mapping[str, Usage], price: Mapping[str, Price]) -> str:
    """Return usage and its price in words.

    Example:

    ```python
    >>> describe_usage({"teacher": Usage(1500, 20_000, 30_000)}, {"teacher": Price(1.0, 2.0)})
    'teacher: 1,500 requests, 20,000 prompt tokens and 30,000 completion tokens, at a price of 0.08'

    ```
    """
    parts = []
    for model, used in usage.items():
        cost = price[model].of(used)
        parts.append(
            f"{model}: {used.requests:,} requests, {used.prompt_tokens:,} prompt tokens and "
            f"{used.completion_tokens:,} completion tokens{' (partly estimated)' if used.estimated else ''}"
            f"{'' if cost is None else f', at a price of {cost:.2f}'}"
        )
    return "; ".join(parts)


def write_usage(
    folder: Path,
    usage: Mapping[str, Usage],
    price: Mapping[str, Price],
    *,
    trained_cycles: int,
    stopped: Limit | None,
    seconds: float | None,
) -> None:
    """Write `usage.json`: usage, price, number of trained cycles, and the budget that ended the run, if any."""
    costs = {model: price[model].of(used) for model, used in usage.items()}
    known = [cost for cost in costs.values() if cost is not None]
    summary: dict[str, Any] = {"trained_cycles": trained_cycles, "stopped": stopped}
    summary |= {model: {**asdict(used), "cost": costs[model]} for model, used in usage.items()}
    summary["total"] = {**asdict(sum(usage.values(), Usage())), "cost": sum(known) if known else None}
    if seconds is not None:
        summary["seconds"] = round(seconds, 1)
    (folder / "usage.json").write_text(json.dumps(summary, indent=2) + "\n")


def _mean_num_tokens(texts: Sequence[str]) -> float:
    return sum(map(estimate_num_tokens, texts)) / len(texts) if texts else 0.0


_INTERVAL = 10.0  # seconds between two writes, which a killed process loses at most


@dataclass(frozen=True)
class Spending:
    """Seconds of a run and number of requests sent, including unanswered ones."""

    seconds: float = 0.0
    requests: int = 0


def read_spending(path: Path) -> Spending:
    """Read the spending of earlier starts of a run from a file; zero if there is no file.

    Raises:
        ValueError: If the file is damaged.
    """
    if not path.exists():
        return Spending()
    try:
        values = json.loads(path.read_text())
        return Spending(float(values["seconds"]), int(values["requests"]))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); delete it to count `max_seconds` and unanswered requests from 0."
        ) from error


@contextmanager
def recording_spending(path: Path, budget: Budget) -> Iterator[None]:
    """Write the spending of a budget to a file every few seconds inside the context, and at its end."""
    ended = threading.Event()

    def write() -> None:
        spending = Spending(round(budget.seconds, 1), budget.spent.requests)
        replace_text(path, json.dumps(asdict(spending)) + "\n")

    def write_regularly() -> None:
        while not ended.wait(_INTERVAL):
            with suppress(OSError):  # the write at the end raises it
                write()

    thread = threading.Thread(target=write_regularly, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write()
