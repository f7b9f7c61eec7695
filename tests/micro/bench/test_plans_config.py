"""Configuration of the experiment on CodePLAN: what is accepted, and what is refused in one sentence."""

from typing import Any

import pytest

from trl_akd.micro.bench.plans_config import PLANS_MEASURES, Outcome, PlansConfig

CONFIG: dict[str, Any] = {
    "worlds": {"one": {"rows": 48}},
    "trainings": {"code": {}, "guided": {"plan_weight": 0.5, "guided_weight": 0.5}},
    "predictions": {
        "help": {
            "world": "one",
            "first": "guided own_plans best@10",
            "second": "code without_plan best@10",
            "at_least": 0.0,
        }
    },
}


def with_prediction(**change: Any) -> dict[str, Any]:
    entry = {**CONFIG["predictions"]["help"], **change}
    return {"predictions": {"help": {key: value for key, value in entry.items() if value is not None}}}


def test_a_recipe_gives_worlds_trainings_and_predictions():
    config = PlansConfig(**CONFIG)
    assert config.named_worlds()["one"].world(3).seed == 3
    assert [training.writes_plans for training in config.named_trainings().values()] == [False, True]
    [prediction] = config.named_predictions().values()
    assert prediction.outcomes == (
        Outcome("guided", "own_plans", "best@10"),
        Outcome("code", "without_plan", "best@10"),
    )
    assert [str(outcome) for outcome in prediction.outcomes] == [prediction.first, prediction.second]


def test_outcomes_without_own_plans_have_one_program_more():
    """Those that a redrawn program is compared with."""
    assert PLANS_MEASURES["own_plans_redrawn"] == ("best@1", "best@2", "best@5", "best@10")
    assert set(PLANS_MEASURES["without_plan"]) >= {"best@2", "best@3", "best@6", "best@11"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": {}}, "`predictions` is not set; write down what you expect"),
        ({"worlds": {"one": {"rows": 0}}}, "`worlds` has 'one', in which `rows` is 0"),
        ({"worlds": {"one": {"num_procedures": 3}}}, "`num_procedures` is 3; give an integer from 10 to 39"),
        ({"worlds": {"one": {"epochs": 0}}}, "`epochs` is 0"),
        ({"worlds": {"one": {"start_accuracy": 2}}}, "`start_accuracy` is 2"),
        ({"worlds": {"one": {"rowz": 3}}}, "`rowz` is unknown"),
        ({"trainings": {"code": {"plan_weight": 2}}}, "`plan_weight` is 2; give a number from 0 to 1"),
        ({"trainings": {"code": {"guided_weight": -1}}}, "`guided_weight` is -1"),
        ({"trainings": {"code": {"times_epochs": 0}}}, "`times_epochs` is 0"),
        ({"seeds": [1, 1]}, "`seeds` is \\[1, 1\\]"),
        ({"num_tasks": 0}, "`num_tasks` is 0"),
        ({"page": "a.md"}, "`page` is 'a.md', which has no effect without `report`"),
        (with_prediction(world="two"), "`predictions: help: world` has 'two'"),
        (with_prediction(first="guided best@10"), "the outcome is 'guided best@10'; give a training, a plan and a"),
        (with_prediction(first="guided own best@10"), "`plan` has 'own', which is not one of"),
        (with_prediction(first="guided own_plans best@3"), "`measure of own_plans` has 'best@3'"),
        (with_prediction(first="plain own_plans best@10"), "`predictions: help` has 'plain'"),
        (with_prediction(first="code own_plans best@10"), "about own plans of 'code', whose `plan_weight` is 0"),
        (with_prediction(first="code without_plan best@10"), "give two outcomes"),
        (with_prediction(at_least=None), "there is no bound; give `at_least` or `at_most`"),
        (with_prediction(at_most=-1.0), "the lower one as `at_least`"),
    ],
)
def test_mistakes_are_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as error:
        PlansConfig(**{**CONFIG, **change})
    assert "\n" not in str(error.value)
