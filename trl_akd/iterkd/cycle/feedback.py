"""Feedback on the student's answers: static tools, tests, a judge, scores and levels (stage 2 of a cycle).

In the paper, the score of a judge and the results of tools identify difficult questions. Their combination and the
thresholds of the levels are choices of this project.

SODA's released tool ([Chen et al.](https://huggingface.co/papers/2408.03680)) checks whether code fences are closed,
takes the first fenced block, and compiles and runs it without tests. This module runs only Python, and the outcome of
other languages is "unknown". If the first block is Python, `extract_program` extracts the program. The linter pyflakes
is added.
"""

import ast
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from pyflakes.checker import Checker

from ...execution import ExecutionResult, Tests
from ...generation import parse_answer
from ...generation.answers import extract_program
from ...generation.python_ast import parse
from ..judge.judges import Judge
from ..judge.rubric import MAX_TOTAL, Judgement, Unjudged, read_judgement
from .config import CycleConfig
from .main_programs import Outcome, Verdict, lacks_resources, run_main_programs, run_present
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

MAX_CHARS = 50_000  # of an answer from which a program is extracted
MAX_FINDINGS = 20
_FINDING_CHARS = 200
_TAG_CHARS = 20


@dataclass(frozen=True, slots=True)
class StaticView:
    """Results of static tools on one answer, and the outcome of its program as a main program.

    The outcome is `"unknown"` without a Python program or a runner, after an error of the sandbox, and if a resource
    is missing (see `main_programs`).
    """

    complete: bool  # whether the thoughts and all code blocks are closed
    language: str | None  # tag of the first block, or "python" for text that looks like Python
    parses: bool | None = None  # None without a Python program
    compiles: bool | None = None  # None if that was not tried
    executed: Verdict = "unknown"
    error_type: str | None = None  # class name of the exception that ended the program, "timeout", or another cause
    findings: tuple[str, ...] = ()  # first ones of the linter, as line number and message
    num_findings: int = 0


def static_views(answers: Sequence[str], run: Runner | None) -> list[StaticView]:
    """Examine answers with static tools, and run their Python programs as main programs, without tests.

    Without a runner, programs are only parsed.

    Example:

    ```python
    >>> for view in static_views(["```python\\nprint(y)\\n```", "```js\\nlet x = 1\\n```", "I cannot."], None):
    ...     print(view.language, view.parses, view.executed, view.findings)
    python True unknown ("line 1: undefined name 'y'",)
    javascript None unknown ()
    None None unknown ()

    ```
    """
    examined = [_examine(answer) for answer in answers]
    if run is None:
        return [view for view, _ in examined]
    outcomes = run_main_programs(run, [program for _, program in examined])
    return [_with_outcome(view, outcome) for (view, _), outcome in zip(examined, outcomes, strict=True)]


def program_of(answer: str) -> str | None:
    """Return the Python program in an answer, or `None` if the answer is too long."""
    return extract_program(answer) if len(answer) <= MAX_CHARS else None


def _examine(answer: str) -> tuple[StaticView, str | None]:
    """Return the view before execution, and the program to run."""
    parsed = parse_answer(answer)
    is_searched = bool(parsed.blocks) or len(answer) <= MAX_CHARS
    language = parsed.language[:_TAG_CHARS] if parsed.language and is_searched else None
    program = program_of(answer) if language == "python" else None
    if program is None:
        return StaticView(parsed.complete, language), None
    tree = parse(program)
    if tree is None:
        return StaticView(parsed.complete, language, False, False, "fail", "SyntaxError"), program
    findings = _lint(tree)
    shown = tuple(finding[:_FINDING_CHARS] for finding in findings[:MAX_FINDINGS])
    return StaticView(parsed.complete, language, True, findings=shown, num_findings=len(findings)), program


def _with_outcome(view: StaticView, outcome: Outcome) -> StaticView:
    """Add the outcome of running the program."""
    if outcome.error_type is None and outcome.verdict == "unknown":
        return view
    return replace(view, compiles=outcome.compiles, executed=outcome.verdict, error_type=outcome.error_type)


def _lint(tree: ast.Module) -> list[str]:
    """Return line number and message of each finding of pyflakes in a syntax tree."""
    try:
        found = Checker(tree).messages
    except RecursionError:
        return []
    messages = sorted(found, key=lambda message: (message.lineno, message.col))
    return [f"line {message.lineno}: {message.message % message.message_args}" for message in messages]


@dataclass(frozen=True, slots=True)
class Feedback:
    """Feedback on one answer of the student.

    `tests_passed` is the fraction of the question's tests that the answer passes, a test program counting as one. It
    is `None` without tests or a runner, after an error of the sandbox, and if a resource is missing.
    """

    question_id: str
    answer: str
    judgement: Judgement | Unjudged | None  # None without a judge
    view: StaticView
    tests_passed: float | None
    score: float  # in [0, 1]
    level: Level

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Return feedback from the values of `as_json`.

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

    There is one answer per question. Without a judge, only execution counts; without a runner, programs are only
    parsed. Weights and thresholds are those of `config`.

    Raises:
        ValueError: If the numbers of answers and questions differ.

    Example:

    ```python
    >>> answers = ["```python\\nprint(2)\\n```", "```python\\nprint(2"]
    >>> questions = [Question("a", "Print 2."), Question("b", "Print 2.")]
    >>> [(found.score, found.level) for found in collect_feedback(questions, answers, judge=None, run=None)]
    [(0.5, 'medium'), (0.0, 'hard')]

    ```
    """
    if len(questions) != len(answers):
        raise ValueError(f"there are {len(answers)} answers to {len(questions)} questions; give one per question.")
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
    r"""Return the score of an answer in [0, 1]: $w \cdot j / 6 + (1 - w) \cdot e$, or $e$ without a judgement.

    $j$ is the judge's total, and $w$ is `config.judge_weight`. $e$ is the fraction of tests passed or, without tests,
    1 if the program succeeds, 0 if it fails, and `config.unknown_execution` otherwise.

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

    A question is hard if the answer is incomplete, its execution fails, or the judge's total is at most
    `config.hard_at_most`. It is easy if the execution succeeds and the total is at least `config.easy_at_least`, and
    medium otherwise. Execution succeeds if all tests pass or, without tests, if the program succeeds. Without a
    judgement, only execution counts.

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
        `dict[str, float]`: mean `score`; fractions of `easy`, `medium` and `hard` answers; mean total of the
        `judge` and the mean fraction of `tests` passed, over the answers that have them; and the number of answers
        without a judgement, `unjudged/<reason>`. Undefined metrics are omitted.

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
    passed = [found.tests_passed for found in feedback if found.tests_passed is not None]
    unjudged = Counter(found.judgement.reason for found in feedback if isinstance(found.judgement, Unjudged))
    return {
        "score": math.fsum(found.score for found in feedback) / len(feedback),
        **{level: levels[level] / len(feedback) for level in LEVELS},
        **{name: math.fsum(values) / len(values) for name, values in (("judge", totals), ("tests", passed)) if values},
        **{f"unjudged/{reason}": count for reason, count in sorted(unjudged.items())},
    }


def _tests_passed(questions: Sequence[Question], answers: Sequence[str], run: Runner | None) -> list[float | None]:
    """Return the fraction of its tests that each answer passes; an answer without a program passes none."""
    tests = [None if run is None else question.tests for question in questions]
    programs = [None if test is None else program_of(answer) for answer, test in zip(answers, tests, strict=True)]
    jobs = [
        None if program is None or test is None else (program, test)
        for program, test in zip(programs, tests, strict=True)
    ]
    results = [None] * len(jobs) if run is None else run_present(run, jobs)
    return [_fraction_passed(result, test) for result, test in zip(results, tests, strict=True)]


def _fraction_passed(result: ExecutionResult | None, tests: Tests | None) -> float | None:
    """Return the fraction of tests passed, 0 without a program, and `None` without tests or if undecided."""
    if tests is None or result is None:
        return None if tests is None else 0.0
    unknown = result.status == "infra_error" or (result.tests_passed == 0 and lacks_resources(result, tests))
    return None if unknown else result.tests_passed / result.tests_total


def _execution(view: StaticView, tests_passed: float | None, unknown: float) -> float:
    if tests_passed is not None:
        return tests_passed
    return {"pass": 1.0, "fail": 0.0, "unknown": unknown}[view.executed]
