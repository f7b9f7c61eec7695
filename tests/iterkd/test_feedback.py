import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.iterkd.scripted import soda
from trl_akd.execution import CodeExecutor, ExecutionResult
from trl_akd.iterkd.cycle.config import CycleConfig
from trl_akd.iterkd.cycle.feedback import (
    Feedback,
    StaticView,
    collect_feedback,
    feedback_level,
    feedback_metrics,
    feedback_score,
)
from trl_akd.iterkd.cycle.records import LEVELS, Question, read_questions
from trl_akd.iterkd.judge.reader import parse_judgement
from trl_akd.iterkd.judge.rubric import REFUSALS, RULES, Judgement, Unjudged

ORDER = {"hard": 0, "medium": 1, "easy": 2}
OUTCOMES = {"fail": 0, "unknown": 1, "pass": 2}

judgements = st.builds(
    Judgement, st.tuples(*(st.sampled_from([step / 2 for step in range(int(2 * rule.maximum) + 1)]) for rule in RULES))
)
unjudged = st.none() | st.builds(Unjudged, st.sampled_from(REFUSALS))
views = st.builds(
    StaticView,
    complete=st.booleans(),
    language=st.sampled_from([None, "python", "go"]),
    parses=st.none() | st.booleans(),
    executed=st.sampled_from(list(OUTCOMES)),
    error_type=st.none() | st.text(),
    findings=st.lists(st.text()).map(tuple),
)
shares = st.none() | st.floats(0, 1)
configs = st.builds(
    lambda weight, unknown, low, width: CycleConfig(
        judge_weight=weight, unknown_execution=unknown, hard_at_most=low, easy_at_least=low + width
    ),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 6),
    st.floats(0.1, 6),
)


# Properties


@given(judgements | unjudged, views, shares, configs)
def test_ranges_of_scores_and_levels(judgement, view, passed, config):
    assert 0.0 <= feedback_score(judgement, view, passed, config) <= 1.0 + 1e-12
    assert feedback_level(judgement, view, passed, config) in LEVELS


@given(judgements, judgements, views, shares, configs)
def test_a_better_judgement_never_hurts(one, other, view, passed, config):
    low, high = sorted([one, other], key=lambda judgement: judgement.total)
    assert feedback_score(low, view, passed, config) <= feedback_score(high, view, passed, config) + 1e-12
    assert ORDER[feedback_level(low, view, passed, config)] <= ORDER[feedback_level(high, view, passed, config)]


@given(judgements | unjudged, views, st.sampled_from(list(OUTCOMES)), configs)
def test_a_better_execution_never_hurts(judgement, view, other, config):
    low, high = sorted([view.executed, other], key=OUTCOMES.__getitem__)
    worse, better = (StaticView(view.complete, view.language, executed=executed) for executed in (low, high))
    assert feedback_score(judgement, worse, None, config) <= feedback_score(judgement, better, None, config)
    assert (
        ORDER[feedback_level(judgement, worse, None, config)] <= ORDER[feedback_level(judgement, better, None, config)]
    )


@given(judgements | unjudged, views, st.floats(0, 1), st.floats(0, 1), configs)
def test_more_tests_passed_never_hurt(judgement, view, one, other, config):
    low, high = sorted([one, other])
    assert feedback_score(judgement, view, low, config) <= feedback_score(judgement, view, high, config)
    assert ORDER[feedback_level(judgement, view, low, config)] <= ORDER[feedback_level(judgement, view, high, config)]


@given(judgements | unjudged, views, shares)
def test_levels_follow_their_definition(judgement, view, passed):
    """Each of the three conditions holds for exactly one level."""
    failed = view.executed == "fail" if passed is None else passed < 1
    succeeded = view.executed == "pass" if passed is None else passed == 1
    total = judgement.total if isinstance(judgement, Judgement) else None
    hard = not view.complete or failed or (total is not None and total <= 2)
    easy = not hard and succeeded and (total is None or total >= 5)
    found = feedback_level(judgement, view, passed, CycleConfig())
    assert {"hard": hard, "easy": easy, "medium": not hard and not easy}[found]


@given(
    st.builds(
        Feedback,
        st.text(),
        st.text(),
        judgements | unjudged,
        views,
        shares,
        st.floats(0, 1),
        st.sampled_from(LEVELS),
    )
)
def test_feedback_survives_a_ledger(feedback):
    row = feedback.as_json()
    assert json.loads(json.dumps(row)) == row
    assert Feedback.from_json(row) == feedback


# Values


@pytest.mark.parametrize(
    ("judgement", "executed", "passed", "score", "level"),
    [
        (Judgement((2, 1, 1, 1, 1)), "pass", None, 1.0, "easy"),
        (Judgement((2, 1, 1, 0.5, 0.5)), "pass", None, 11 / 12, "easy"),
        (Judgement((2, 1, 1, 0.5, 0)), "pass", None, 0.875, "medium"),
        (Judgement((2, 1, 1, 1, 1)), "unknown", None, 0.75, "medium"),
        (Judgement((2, 1, 1, 1, 1)), "fail", None, 0.5, "hard"),
        (Judgement((0, 0.5, 0.5, 0.5, 0.5)), "pass", None, 2 / 3, "hard"),
        (Judgement((0, 1, 1, 0.5, 0)), "pass", None, 17 / 24, "medium"),
        (Judgement((2, 1, 1, 1, 1)), "pass", 0.5, 0.75, "hard"),
        (Judgement((2, 1, 1, 1, 1)), "fail", 1.0, 1.0, "easy"),
        (Unjudged("no_scores"), "pass", None, 1.0, "easy"),
        (Unjudged("no_scores"), "unknown", None, 0.5, "medium"),
        (None, "fail", None, 0.0, "hard"),
        (None, "unknown", 0.25, 0.25, "hard"),
    ],
)
def test_scores_and_levels_by_hand(judgement, executed, passed, score, level):
    view = StaticView(True, "python", executed=executed)
    assert feedback_score(judgement, view, passed, CycleConfig()) == pytest.approx(score)
    assert feedback_level(judgement, view, passed, CycleConfig()) == level
    assert feedback_level(judgement, StaticView(False, "python", executed=executed), passed, CycleConfig()) == "hard"


def test_every_setting_has_an_effect():
    judgement, view = Judgement((2, 1, 0.5, 0, 0)), StaticView(True, "python", executed="unknown")

    def found(**settings):
        config = CycleConfig(**settings)
        return (
            feedback_score(judgement, view, None, config),
            feedback_level(judgement, view, None, config),
            feedback_level(judgement, view, 1.0, config),
        )

    assert found() == (0.5 * 3.5 / 6 + 0.25, "medium", "medium")
    assert found(judge_weight=0.25)[0] == 0.25 * 3.5 / 6 + 0.375
    assert found(unknown_execution=0.0)[0] == 0.5 * 3.5 / 6
    assert found(hard_at_most=3.5)[1:] == ("hard", "hard")
    assert found(easy_at_least=3.5)[1:] == ("medium", "easy")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judge_weight": 1.5}, "`judge_weight` is 1.5; give a number from 0 to 1"),
        ({"judge_weight": float("nan")}, "`judge_weight` is nan"),
        ({"unknown_execution": -0.1}, "`unknown_execution` is -0.1"),
        ({"hard_at_most": float("nan")}, "`hard_at_most` is nan; give a total"),
        ({"hard_at_most": 5.0}, "`hard_at_most` is 5.0 and `easy_at_least` 5.0"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        CycleConfig(**settings)


# Listening


class ByAnswer:
    """Judge with the judgements of a dictionary."""

    def __init__(self, verdicts) -> None:
        self.verdicts = verdicts
        self.pairs: list[tuple[str, str]] = []

    def judge(self, pairs):
        self.pairs += pairs
        return [self.verdicts[answer] for _, answer in pairs]


DOUBLE = "def double(x):\n    return x + x"
TESTS = "assert double(3) == 6"


@pytest.fixture(scope="module")
def run():
    with CodeExecutor(1, allow_code_execution=True) as executor:
        yield lambda programs: executor.run(programs, timeout=1.0)


def test_tests_may_be_json():
    tests = {"inputs": ["1"], "outputs": ["2"]}
    [question] = read_questions([{"instruction": "Double.", "tests": json.dumps(tests)}])
    assert question.tests == tests


def test_feedback_on_real_programs(run):
    script = "n = int(input())\nprint(n * 2 if n < 3 else 0)"
    questions = [
        Question("tested", "Double.", tests=TESTS),
        Question("wrong", "Double.", tests=TESTS),
        Question("script", "Double.", tests={"inputs": ["1", "2", "3", "4"], "outputs": ["2", "4", "6", "8"]}),
        Question("untested", "Double."),
        Question("broken", "Double."),
        Question("shell", "Double.", tests=TESTS),
        Question("nothing", "Double.", tests=TESTS),
    ]
    answers = [
        f"```python\n{DOUBLE}\n```",
        "```python\ndef double(x):\n    return x\n```",
        f"```python\n{script}\n```",
        DOUBLE,
        "```python\ndouble(2)\n```",
        f"```bash\npip install x\n```\n```python\n{DOUBLE}\n```",
        "I cannot.",
    ]
    good = Judgement((2, 1, 1, 1, 1))
    judge = ByAnswer({**dict.fromkeys(answers, good), answers[3]: Unjudged("no_scores")})
    found = collect_feedback(questions, answers, judge=judge, run=run)
    assert judge.pairs == [("Double.", answer) for answer in answers]
    assert [one.question_id for one in found] == [question.id for question in questions]
    assert [one.answer for one in found] == answers
    assert [one.tests_passed for one in found] == [1.0, 0.0, 0.5, None, None, 1.0, 0.0]
    assert [one.view.executed for one in found] == ["pass", "pass", "unknown", "pass", "fail", "unknown", "unknown"]
    assert [one.score for one in found] == [1.0, 0.5, 0.75, 1.0, 0.5, 1.0, 0.5]
    assert [one.level for one in found] == ["easy", "hard", "hard", "easy", "hard", "easy", "hard"]
    assert collect_feedback(questions, answers, judge=judge, run=run) == found, "a second look gives the same"
    metrics = feedback_metrics(found)
    assert metrics["score"] == pytest.approx(sum(one.score for one in found) / 7)
    assert (metrics["easy"], metrics["medium"], metrics["hard"]) == (3 / 7, 0.0, 4 / 7)
    assert (metrics["judge"], metrics["tests"], metrics["unjudged/no_scores"]) == (6.0, 0.5, 1)


def test_ablations():
    questions = [Question("a", "Double.", tests=TESTS), Question("b", "Double.")]
    answers = [f"```python\n{DOUBLE}\n```", "```python\ndef (\n```"]
    alone = collect_feedback(questions, answers, judge=None, run=None)
    assert [(one.judgement, one.tests_passed, one.score, one.level) for one in alone] == [
        (None, None, 0.5, "medium"),
        (None, None, 0.0, "hard"),
    ]
    judge = ByAnswer(dict.fromkeys(answers, Judgement((2, 1, 1, 1, 1))))
    assert [one.score for one in collect_feedback(questions, answers, judge=judge, run=None)] == [0.75, 0.5]
    weighty = collect_feedback(questions, answers, judge=judge, run=None, config=CycleConfig(judge_weight=1.0))
    assert [one.score for one in weighty] == [1.0, 1.0]


def test_errors_of_the_sandbox_are_unknown():
    def broken(programs):
        return [ExecutionResult("infra_error") for _ in programs]

    answer = f"{DOUBLE}\nprint(double(2))"  # only definitions would pass without the sandbox
    [found] = collect_feedback([Question("a", "Double.", tests=TESTS)], [answer], judge=None, run=broken)
    assert (found.tests_passed, found.view.executed, found.level) == (None, "unknown", "medium")


def test_no_answers_and_too_many_answers():
    assert collect_feedback([], [], judge=ByAnswer({}), run=None) == []
    assert feedback_metrics([]) == {}
    with pytest.raises(ValueError, match="2 answers to 1 questions; give one per question"):
        collect_feedback([Question("a", "b")], ["c", "d"], judge=None, run=None)


@pytest.mark.parametrize(
    "change", [{"view": None}, {"judgement": {}}, {"judgement": {"scores": [9]}}, {"other": 1}, {"view": {"x": 1}}]
)
def test_a_damaged_row_is_named(change: dict):
    row = Feedback("a", "b", None, StaticView(True, None), None, 0.5, "medium").as_json()
    with pytest.raises(ValueError, match="a row of feedback is damaged"):
        Feedback.from_json({**row, **change})


def test_real_answers_with_real_judgements():
    """Released judgements, assigned to the released correct answers, so that every level occurs."""
    answers = [row["response"][0] for row in soda("pairwise_data.json")]
    verdicts = [parse_judgement(row["response"]) for row in soda("scoring_data.json")]
    questions = [Question(str(number), row["instruction"]) for number, row in enumerate(soda("pairwise_data.json"))]

    class Released:
        def judge(self, pairs):
            return verdicts

    def accepted(programs):
        return [ExecutionResult("passed") for _ in programs]

    found = collect_feedback(questions, answers, judge=Released(), run=accepted)
    metrics = feedback_metrics(found)
    assert metrics["unjudged/missing_score"] == metrics["unjudged/not_a_number"] == 1
    assert metrics["judge"] == pytest.approx(sum(one.total for one in verdicts if isinstance(one, Judgement)) / 98)
    assert min(metrics[level] for level in LEVELS) > 0
    assert [Feedback.from_json(json.loads(json.dumps(one.as_json()))) for one in found] == found
