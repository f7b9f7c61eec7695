"""Stage 2 of a cycle, multi-view feedback: a score and a level of difficulty for each answer of the student.

That a judge's score and the tools' verdict find the difficult questions is on record
([Chen et al.](https://huggingface.co/papers/2408.03680)); how the two are combined, and where the levels begin, is
not. What is done here is this project's choice.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from ..execution import ExecutionResult, Tests
from .judges import Judge
from .judging import MAX_TOTAL, Judgement, Unjudged, read_judgement
from .records import LEVELS, Level, Question, Runner
from .running_alone import lacks_surroundings
from .static_view import StaticView, program_of, static_views

__all__ = ["Feedback", "FeedbackConfig", "feedback_level", "feedback_metrics", "feedback_score", "listen"]


@dataclass(frozen=True)
class FeedbackConfig:
    """
    How the views are combined, and where the levels begin.

    Args:
        judge_weight (`float`, *optional*, defaults to `0.5`):
            Weight of the judge's total, divided by 6; execution has the rest.
        unknown_execution (`float`, *optional*, defaults to `0.5`):
            What execution counts for where its outcome is unknown; a pass counts 1 and a failure 0.
        hard_at_most (`float`, *optional*, defaults to `2.0`):
            Greatest total of the judge at which a question is hard.
        easy_at_least (`float`, *optional*, defaults to `5.0`):
            Least total of the judge at which a question may be easy.

    Raises:
        ValueError: If a value is outside its range.
    """

    judge_weight: float = 0.5
    unknown_execution: float = 0.5
    hard_at_most: float = 2.0
    easy_at_least: float = 5.0

    def __post_init__(self) -> None:
        for name in ("judge_weight", "unknown_execution"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give a number from 0 to 1.")
        for name in ("hard_at_most", "easy_at_least"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"`{name}` is {getattr(self, name)}; give a total of the judge, 0 to {MAX_TOTAL:g}.")
        if self.hard_at_most >= self.easy_at_least:
            raise ValueError(
                f"`hard_at_most` is {self.hard_at_most} and `easy_at_least` {self.easy_at_least}; a total must not be "
                "both, so raise the latter."
            )


@dataclass(frozen=True, slots=True)
class Feedback:
    """Hold what came back on one answer of the student.

    Args:
        question_id (`str`):
            The question's.
        answer (`str`):
            What the student wrote.
        judgement ([`Judgement`] or [`Unjudged`], *optional*):
            The judge's view, or why there is none; `None` where no judge was asked.
        view ([`StaticView`]):
            The tools' view.
        tests_passed (`float`, *optional*):
            Share of the question's tests that the answer passes, a test program counting as one; `None` where there
            are no tests, none were run, the sandbox failed, or the answer lacks its surroundings.
        score (`float`):
            Both views combined, in [0, 1].
        level (`str`):
            `"easy"`, `"medium"` or `"hard"`.
    """

    question_id: str
    answer: str
    judgement: Judgement | Unjudged | None
    view: StaticView
    tests_passed: float | None
    score: float
    level: Level

    def as_json(self) -> dict[str, Any]:
        """Return plain values, for a ledger."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Return the feedback that `as_json` wrote.

        Raises:
            ValueError: If the row is none.
        """
        try:
            view = StaticView(**{**row["view"], "findings": tuple(row["view"]["findings"])})
            judgement = None if row["judgement"] is None else read_judgement(row["judgement"])
            return cls(**{**row, "judgement": judgement, "view": view})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a row of feedback is damaged ({error!r}); delete it, or start anew.") from error


def listen(
    questions: Sequence[Question],
    answers: Sequence[str],
    *,
    judge: Judge | None,
    run: Runner | None,
    config: FeedbackConfig | None = None,
) -> list[Feedback]:
    """Give feedback on the student's answers.

    Args:
        questions (`Sequence[Question]`):
            What was asked.
        answers (`Sequence[str]`):
            One answer a question.
        judge ([`Judge`], *optional*):
            The model-based view; `None` leaves it out.
        run (`Runner`, *optional*):
            Runs programs, each within its time limit; `None` looks only whether they parse.
        config ([`FeedbackConfig`], *optional*):
            How views are combined; the defaults without it.

    Returns:
        `list[Feedback]`: one an answer, in order.

    Raises:
        ValueError: If there are more or fewer answers than questions.
        ImportError: If pyflakes is missing.

    Example:

    ```python
    >>> answers = ["```python\\nprint(2)\\n```", "```python\\nprint(2"]
    >>> questions = [Question("a", "Print 2."), Question("b", "Print 2.")]
    >>> [(found.score, found.level) for found in listen(questions, answers, judge=None, run=None)]
    [(0.5, 'medium'), (0.0, 'hard')]

    ```
    """
    if len(questions) != len(answers):
        raise ValueError(f"{len(answers)} answers to {len(questions)} questions; give one each.")
    config = config or FeedbackConfig()
    views = static_views(answers, run)
    tested = _tests_passed(questions, answers, run)
    judgements: list[Judgement | Unjudged | None] = [None] * len(questions)
    if judge is not None:
        pairs = [(question.instruction, answer) for question, answer in zip(questions, answers, strict=True)]
        judgements = list(judge.judge(pairs))
    return [
        Feedback(
            question.id,
            answer,
            judgement,
            view,
            passed,
            feedback_score(judgement, view, passed, config),
            feedback_level(judgement, view, passed, config),
        )
        for question, answer, judgement, view, passed in zip(
            questions, answers, judgements, views, tested, strict=True
        )
    ]


def feedback_score(
    judgement: Judgement | Unjudged | None, view: StaticView, tests_passed: float | None, config: FeedbackConfig
) -> float:
    r"""Combine the views of an answer: $w \cdot j / 6 + (1 - w) \cdot e$, or $e$ alone where there is no judgement.

    Args:
        judgement ([`Judgement`] or [`Unjudged`], *optional*):
            The judge's total is $j$.
        view ([`StaticView`]):
            Where there are no tests, $e$ is 1 for a pass, 0 for a failure, else `config.unknown_execution`.
        tests_passed (`float`, *optional*):
            Share of tests passed, which is $e$ where there are any.
        config ([`FeedbackConfig`]):
            `judge_weight` is $w$.

    Returns:
        `float`: In [0, 1].

    Example:

    ```python
    >>> view = StaticView(complete=True, language="python", executed="pass")
    >>> feedback_score(Judgement((2, 0, 1, 0, 0)), view, None, FeedbackConfig())
    0.75

    ```
    """
    executed = _execution(view, tests_passed, config.unknown_execution)
    if not isinstance(judgement, Judgement):
        return executed
    return config.judge_weight * judgement.total / MAX_TOTAL + (1 - config.judge_weight) * executed


def feedback_level(
    judgement: Judgement | Unjudged | None, view: StaticView, tests_passed: float | None, config: FeedbackConfig
) -> Level:
    """Tell how difficult a question was for the student.

    Hard: the answer is not complete, or its execution fails, or the judge's total is at most `config.hard_at_most`.
    Easy: its execution passes and the total is at least `config.easy_at_least`. Medium: all others. Where there are
    tests, passing them all is what counts as execution. Where there is no judgement, what is said of it is left out.

    Args: as those of [`feedback_score`].

    Example:

    ```python
    >>> view = StaticView(complete=True, language="python", executed="pass")
    >>> feedback_level(Judgement((2, 1, 1, 1, 0)), view, None, FeedbackConfig())
    'easy'
    >>> feedback_level(Judgement((2, 1, 1, 1, 0)), view, 0.9, FeedbackConfig())
    'hard'

    ```
    """
    passed = tests_passed == 1.0 if tests_passed is not None else view.executed == "pass"
    failed = tests_passed < 1.0 if tests_passed is not None else view.executed == "fail"
    total = judgement.total if isinstance(judgement, Judgement) else None
    if not view.complete or failed or (total is not None and total <= config.hard_at_most):
        return "hard"
    return "easy" if passed and (total is None or total >= config.easy_at_least) else "medium"


def feedback_metrics(feedback: Sequence[Feedback]) -> dict[str, float]:
    """Sum feedback up, for the report of a cycle.

    Returns:
        `dict[str, float]`: `score`, the mean; `easy`, `medium` and `hard`, shares of the answers; over those that it
        is known of, `judge`, the mean total, and `tests`, the mean share passed; and `unjudged/<reason>`, numbers of
        answers that the judge gave nothing on. What there is nothing of is left out.

    Example:

    ```python
    >>> view = StaticView(complete=True, language="python", executed="pass")
    >>> feedback_metrics([Feedback("a", "x", Unjudged("no_scores"), view, None, 1.0, "easy")])
    {'score': 1.0, 'easy': 1.0, 'medium': 0.0, 'hard': 0.0, 'unjudged/no_scores': 1}

    ```
    """
    if not feedback:
        return {}
    levels = Counter(found.level for found in feedback)
    totals = [found.judgement.total for found in feedback if isinstance(found.judgement, Judgement)]
    shares = [found.tests_passed for found in feedback if found.tests_passed is not None]
    unjudged = Counter(found.judgement.reason for found in feedback if isinstance(found.judgement, Unjudged))
    return {
        "score": math.fsum(found.score for found in feedback) / len(feedback),
        **{level: levels[level] / len(feedback) for level in LEVELS},
        **{name: math.fsum(values) / len(values) for name, values in (("judge", totals), ("tests", shares)) if values},
        **{f"unjudged/{reason}": count for reason, count in sorted(unjudged.items())},
    }


def _tests_passed(questions: Sequence[Question], answers: Sequence[str], run: Runner | None) -> list[float | None]:
    """Return the share of its tests that each answer passes; an answer without a program passes none."""
    shares: list[float | None] = [None] * len(questions)
    if run is None:
        return shares
    jobs = []
    for index, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        if question.tests is None:
            continue
        program = program_of(answer)
        if program is None:
            shares[index] = 0.0
        else:
            jobs.append((index, (program, question.tests)))
    results = run([job for _, job in jobs]) if jobs else []
    for (index, (_, tests)), result in zip(jobs, results, strict=True):
        shares[index] = _share(result, tests)
    return shares


def _share(result: ExecutionResult, tests: Tests) -> float | None:
    """Return the share of tests passed, `None` where the program could not be judged."""
    unknown = result.status == "infra_error" or (result.tests_passed == 0 and lacks_surroundings(result, tests))
    return None if unknown else result.tests_passed / result.tests_total


def _execution(view: StaticView, tests_passed: float | None, unknown: float) -> float:
    if tests_passed is not None:
        return tests_passed
    return {"pass": 1.0, "fail": 0.0, "unknown": unknown}[view.executed]
