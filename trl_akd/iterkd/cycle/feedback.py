"""Feedback on the student's answers: static tools, tests, a judge, scores and levels (stage 2 of a cycle).

In the paper a judge's score and the result of tools find the difficult questions; how the two are combined, and the
limits of the levels, are this project's choices.

SODA's released tool ([Chen et al.](https://huggingface.co/papers/2408.03680)) checks whether fences are closed, takes
the first fenced block, and compiles and runs it without tests. This module runs only Python: the execution of answers
in other languages is "unknown". If the first block is Python, the program is that of `extract_program`. A linter,
pyflakes, is added.
"""

import ast
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, TypeAlias

from ...execution import ExecutionResult, Tests
from ...generation import parse_answer
from ...generation.answers import extract_program
from ...generation.python_ast import parse
from ..judge.judges import Judge
from ..judge.rubric import MAX_TOTAL, Judgement, Unjudged, read_judgement
from .config import CycleConfig
from .main_programs import Outcome, Verdict, lacks_surroundings, run_alone
from .records import LEVELS, Level, Question, Runner

__all__ = [
    "MAX_CHARS",
    "MAX_FINDINGS",
    "Feedback",
    "StaticView",
    "collect_feedback",
    "feedback_level",
    "feedback_metrics",
    "feedback_score",
    "program_of",
    "static_views",
]

MAX_CHARS = 50_000
"""Maximum number of characters of an answer that is searched for a program."""

MAX_FINDINGS = 20
_FINDING_CHARS = 200
_TAG_CHARS = 20
_Linter: TypeAlias = Callable[[ast.Module], list[str]]


@dataclass(frozen=True, slots=True)
class StaticView:
    """Results of static tools on one answer.

    Args:
        complete (`bool`):
            Whether the thoughts and all code blocks are closed.
        language (`str`, *optional*):
            Language of the first fenced block, by its tag, or `"python"` for text that looks like it; `None` without
            code.
        parses (`bool`, *optional*):
            Whether the Python program parses; `None` without one.
        compiles (`bool`, *optional*):
            Whether Python compiles it; `None` if not tried.
        executed (`str`):
            `"pass"` if the program succeeds as a main program, `"fail"` if it fails or exceeds the time limit, and
            `"unknown"` without a Python program or a runner, after an error of the sandbox, and if the program lacks
            its environment (see `main_programs`).
        error_type (`str`, *optional*):
            Class name of the exception that ended it, `"timeout"`, or another cause.
        findings (`tuple[str, ...]`):
            Line and message of the first findings of the linter.
        num_findings (`int`):
            Number of findings.
    """

    complete: bool
    language: str | None
    parses: bool | None = None
    compiles: bool | None = None
    executed: Verdict = "unknown"
    error_type: str | None = None
    findings: tuple[str, ...] = ()
    num_findings: int = 0


def static_views(answers: Sequence[str], run: Runner | None) -> list[StaticView]:
    """Examine answers with static tools, and run their Python programs as main programs, without tests.

    Args:
        answers (`Sequence[str]`):
            Answers of the student.
        run (`Runner`, *optional*):
            Runs programs, each within its time limit; with `None`, programs are only parsed.

    Returns:
        `list[StaticView]`: one view per answer, in order.

    Raises:
        ImportError: If pyflakes is missing.

    Example:

    ```python
    >>> for view in static_views(["```python\\nprint(y)\\n```", "```js\\nlet x = 1\\n```", "I cannot."], None):
    ...     print(view.language, view.parses, view.executed, view.findings)
    python True unknown ("line 1: undefined name 'y'",)
    javascript None unknown ()
    None None unknown ()

    ```
    """
    lint = _linter()
    read = [_read(answer, lint) for answer in answers]
    views = [view for view, _ in read]
    runnable = [(index, program) for index, (_, program) in enumerate(read) if program is not None]
    if run is not None:
        outcomes = run_alone(run, [program for _, program in runnable])
        for (index, _), outcome in zip(runnable, outcomes, strict=True):
            views[index] = _executed(views[index], outcome)
    return views


def program_of(answer: str) -> str | None:
    """Return the Python program in an answer, or `None` if the answer is too long."""
    return extract_program(answer) if len(answer) <= MAX_CHARS else None


def _read(answer: str, lint: _Linter) -> tuple[StaticView, str | None]:
    """Return the view without running anything, and the program to run."""
    read = parse_answer(answer)
    complete = read.complete
    is_searched = len(answer) <= MAX_CHARS
    language = read.language[:_TAG_CHARS] if read.language and (read.blocks or is_searched) else None
    program = program_of(answer) if language == "python" else None
    if program is None:
        return StaticView(complete, language), None
    tree = parse(program)
    if tree is None:
        return StaticView(complete, language, False, False, "fail", "SyntaxError"), program
    findings = lint(tree)
    shown = tuple(finding[:_FINDING_CHARS] for finding in findings[:MAX_FINDINGS])
    return StaticView(complete, language, True, findings=shown, num_findings=len(findings)), program


def _executed(view: StaticView, outcome: Outcome) -> StaticView:
    """Add the outcome of running the program."""
    if outcome.error_type is None and outcome.verdict == "unknown":
        return view
    return replace(view, compiles=outcome.compiles, executed=outcome.verdict, error_type=outcome.error_type)


def _linter() -> _Linter:
    """Return a function that lists line and message of each finding of pyflakes in a syntax tree."""
    try:
        from pyflakes.checker import Checker
    except ImportError as error:
        raise ImportError("The static view needs pyflakes; install it with `pip install trl_akd[iterkd]`.") from error

    def lint(tree: ast.Module) -> list[str]:
        try:
            found = Checker(tree).messages
        except RecursionError:
            return []
        messages = sorted(found, key=lambda message: (message.lineno, message.col))
        return [f"line {message.lineno}: {message.message % message.message_args}" for message in messages]

    return lint


@dataclass(frozen=True, slots=True)
class Feedback:
    """Feedback on one answer of the student.

    Args:
        question_id (`str`):
            Id of the question.
        answer (`str`):
            Answers of the student.
        judgement ([`Judgement`] or [`Unjudged`], *optional*):
            Judgement, or the reason why there is none; `None` without a judge.
        view ([`StaticView`]):
            Results of the static tools.
        tests_passed (`float`, *optional*):
            Fraction of the question's tests that the answer passes, a test program counting as one; `None` without
            tests or results, after an error of the sandbox, and if the answer lacks its environment.
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
        """Return JSON values for a ledger."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Return the feedback from the values of `as_json`.

        Raises:
            ValueError: If the row is damaged.
        """
        try:
            view = StaticView(**{**row["view"], "findings": tuple(row["view"]["findings"])})
            judgement = None if row["judgement"] is None else read_judgement(row["judgement"])
            return cls(**{**row, "judgement": judgement, "view": view})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a row of feedback is damaged ({error!r}); delete it, or give another file.") from error


def collect_feedback(
    questions: Sequence[Question],
    answers: Sequence[str],
    *,
    judge: Judge | None,
    run: Runner | None,
    config: CycleConfig | None = None,
) -> list[Feedback]:
    """Collect feedback on the student's answers.

    Args:
        questions (`Sequence[Question]`):
            Questions.
        answers (`Sequence[str]`):
            One answer per question.
        judge ([`Judge`], *optional*):
            Judge of the answers; `None` for none.
        run (`Runner`, *optional*):
            Runs programs, each within its time limit; with `None`, programs are only parsed.
        config ([`CycleConfig`], *optional*):
            Weights and thresholds. Defaults to those of [`CycleConfig`].

    Returns:
        `list[Feedback]`: one per answer, in order.

    Raises:
        ValueError: If the numbers of answers and questions differ.
        ImportError: If pyflakes is missing.

    Example:

    ```python
    >>> answers = ["```python\\nprint(2)\\n```", "```python\\nprint(2"]
    >>> questions = [Question("a", "Print 2."), Question("b", "Print 2.")]
    >>> [(found.score, found.level) for found in collect_feedback(questions, answers, judge=None, run=None)]
    [(0.5, 'medium'), (0.0, 'hard')]

    ```
    """
    if len(questions) != len(answers):
        raise ValueError(f"{len(answers)} answers to {len(questions)} questions; give one each.")
    config = config or CycleConfig()
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
    judgement: Judgement | Unjudged | None, view: StaticView, tests_passed: float | None, config: CycleConfig
) -> float:
    r"""Combine the views of an answer: $w \cdot j / 6 + (1 - w) \cdot e$, or $e$ alone where there is no judgement.

    Args:
        judgement ([`Judgement`] or [`Unjudged`], *optional*):
            The judge's total is $j$.
        view ([`StaticView`]):
            Where there are no tests, $e$ is 1 for a pass, 0 for a failure, else `config.unknown_execution`.
        tests_passed (`float`, *optional*):
            Share of tests passed, which is $e$ where there are any.
        config ([`CycleConfig`]):
            `judge_weight` is $w$.

    Returns:
        `float`: In [0, 1].

    Example:

    ```python
    >>> view = StaticView(complete=True, language="python", executed="pass")
    >>> feedback_score(Judgement((2, 0, 1, 0, 0)), view, None, CycleConfig())
    0.75

    ```
    """
    executed = _execution(view, tests_passed, config.unknown_execution)
    if not isinstance(judgement, Judgement):
        return executed
    return config.judge_weight * judgement.total / MAX_TOTAL + (1 - config.judge_weight) * executed


def feedback_level(
    judgement: Judgement | Unjudged | None, view: StaticView, tests_passed: float | None, config: CycleConfig
) -> Level:
    """Return the difficulty of a question for the student.

    Hard: the answer is not complete, or its execution fails, or the judge's total is at most `config.hard_at_most`.
    Easy: its execution passes and the total is at least `config.easy_at_least`. Medium: all others. Where there are
    tests, passing them all is what counts as execution. Where there is no judgement, what is said of it is left out.

    Args: as those of [`feedback_score`].

    Example:

    ```python
    >>> view = StaticView(complete=True, language="python", executed="pass")
    >>> feedback_level(Judgement((2, 1, 1, 1, 0)), view, None, CycleConfig())
    'easy'
    >>> feedback_level(Judgement((2, 1, 1, 1, 0)), view, 0.9, CycleConfig())
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
    """Summarize feedback for the report of a cycle.

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
    """Return the fraction of its tests that each answer passes; an answer without a program passes none."""
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
    """Return the fraction of tests passed, `None` if undecided."""
    unknown = result.status == "infra_error" or (result.tests_passed == 0 and lacks_surroundings(result, tests))
    return None if unknown else result.tests_passed / result.tests_total


def _execution(view: StaticView, tests_passed: float | None, unknown: float) -> float:
    if tests_passed is not None:
        return tests_passed
    return {"pass": 1.0, "fail": 0.0, "unknown": unknown}[view.executed]
