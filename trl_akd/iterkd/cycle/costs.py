"""Cost of a run: an estimate before the first request, usage, and spending that survives restarts."""

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
    "estimate_usage",
    "keeping_spending",
    "kept_spending",
    "prices",
    "usage_text",
    "write_usage",
]


@dataclass(frozen=True)
class Price:
    """Price per million tokens, in any currency; `None` if unknown."""

    prompt: float | None
    completion: float | None

    def of(self, usage: Usage) -> float | None:
        """Return the price of usage.

        Example:

        ```python
        >>> Price(0.5, 1.5).of(Usage(10, 2_000_000, 1_000_000))
        2.5

        ```
        """
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

    Requests are counted as if every answer were kept, judged and followed up, and none were repeated after a fault;
    completions as if each were as long as allowed. The lengths of prompts are estimated from the first cycle's.

    Args:
        questions (`Sequence[Question]`):
            The first cycle's questions.
        config ([`CycleConfig`]):
            Configuration of the cycles.
        judged (`bool`):
            Whether a model writes judgements.

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
    new = {level: config.new_questions(level) for level in LEVELS}
    followed_up = {
        level: _mean([prompts.for_question(question.instruction, level) for question in questions]) for level in LEVELS
    }
    request = _mean([judge.render(question.instruction, "") for question in questions])
    teacher, judging, size = Usage(), Usage(), len(questions)
    for cycle in range(config.cycles):
        asked = len(answers) if cycle == 0 else size
        erring = size * config.faults_per_question
        written = asked * _mean(answers or faults) + erring * _mean(faults)
        teacher += Usage(asked + erring, round(written), (asked + erring) * config.teacher_max_new_tokens)
        if cycle + 1 < config.cycles:
            following = round(sum(new[level] * followed_up[level] for level in LEVELS))
            teacher += Usage(sum(new.values()), following, sum(new.values()) * config.teacher_max_new_tokens)
        if judged:
            own = size if config.own_faults and cycle else 0
            verified = size + erring
            read = verified * config.teacher_max_new_tokens + (size + own) * config.answer_max_new_tokens
            requests = (verified + size + own) * (1 + config.judge_retries)
            read *= 1 + config.judge_retries
            judging += Usage(requests, round(requests * request + read), requests * config.teacher_max_new_tokens)
        size = min(config.questions_per_cycle, size + sum(new.values()))
    return {"teacher": teacher, **({"judge": judging} if judged else {})}


def usage_text(usage: Mapping[str, Usage], price: Mapping[str, Price]) -> str:
    """Return usage and its price in words.

    Example:

    ```python
    >>> usage_text({"teacher": Usage(1500, 20_000, 30_000)}, {"teacher": Price(1.0, 2.0)})
    'teacher: 1,500 requests, 20,000 prompt tokens and 30,000 completion tokens, at a price of 0.08'

    ```
    """
    parts = []
    for author, used in usage.items():
        cost = price[author].of(used)
        parts.append(
            f"{author}: {used.requests:,} requests, {used.prompt_tokens:,} prompt tokens and "
            f"{used.completion_tokens:,} completion tokens{' (in part estimated)' if used.estimated else ''}"
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
    total = sum(usage.values(), Usage())
    costs = {author: price[author].of(used) for author, used in usage.items()}
    known = [cost for cost in costs.values() if cost is not None]
    rows = {author: _as_json(used, costs[author]) for author, used in usage.items()}
    summary: dict[str, Any] = {"trained_cycles": trained_cycles, "stopped": stopped, **rows}
    summary["total"] = _as_json(total, sum(known) if known else None)
    if seconds is not None:
        summary["seconds"] = round(seconds, 1)
    (folder / "usage.json").write_text(json.dumps(summary, indent=2) + "\n")


def _as_json(usage: Usage, cost: float | None) -> dict[str, Any]:
    return {
        "requests": usage.requests,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "estimated": usage.estimated,
        "cost": cost,
    }


def _mean(texts: Sequence[str]) -> float:
    return sum(map(estimate_num_tokens, texts)) / len(texts) if texts else 0.0


_INTERVAL = 10.0  # seconds between two writes, which are what a kill can lose


@dataclass(frozen=True)
class Spending:
    """Seconds of a run and number of requests sent, including those without an answer."""

    seconds: float = 0.0
    requests: int = 0


def kept_spending(path: Path) -> Spending:
    """Read the spending of earlier starts of a run from a file; zero if there is no file.

    Raises:
        ValueError: If the file is damaged.
    """
    if not path.exists():
        return Spending()
    try:
        kept = json.loads(path.read_text())
        return Spending(float(kept["seconds"]), int(kept["requests"]))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); delete it to count `max_seconds` and requests without an answer from 0."
        ) from error


@contextmanager
def keeping_spending(path: Path, budget: Budget) -> Iterator[None]:
    """Write the spending of a budget to a file every few seconds inside the context, and at its end."""
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(_INTERVAL):
            with suppress(OSError):  # which the write at the end reports
                write()

    def write() -> None:
        spending = Spending(round(budget.seconds, 1), budget.spent.requests)
        replace_text(path, json.dumps(asdict(spending)) + "\n")

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write()
