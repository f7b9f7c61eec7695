"""Options that have no effect together with others are refused, and only those."""

import itertools
import warnings
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import torch

from trl_akd import AdaptiveBeta, AKDConfig, CodePLANConfig, IterKDConfig
from trl_akd.losses import divergences
from trl_akd.losses.divergences import Rule


def make(kind: type = AKDConfig, **settings: Any) -> Any:
    return kind("unused", use_cpu=True, report_to="none", **settings)


STRATEGIES: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("akd", "m1", "m2", "random_epoch", "linear")},
    "fixed": {"beta": 0.3},
}
OF_BETA: dict[str, tuple[Any, ...]] = {
    "beta_initial_values": (None, (0.35, 0.9)),
    "beta_learning_rate": (None, 0.05),
    "beta_regularization": (None, 0.1, 0.0),
    "beta_regularizer": (None, "alg1", "eq16"),
}


@cache
def values_of_beta(strategy: str, beta: float | None, settings: tuple[tuple[str, Any], ...]) -> tuple[float, ...]:
    """Return β over three epochs of four steps, computed without a configuration."""
    arguments = {name.removeprefix("beta_"): value for name, value in settings}
    if beta is not None:
        arguments["initial_values"] = (beta,)
    schedule, values = AdaptiveBeta(strategy, **arguments), []  # type: ignore[arg-type]
    for step in range(12):
        values.append(schedule.update({"forward_kl": 1 + 0.1 * step, "reverse_kl": 2 - 0.05 * step}, (step + 1) / 12))
        if step % 4 == 3:
            values.append(schedule.reset())
    return tuple(values)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_option_of_beta_is_refused_if_beta_is_the_same_without_it(strategy: str):
    beta = STRATEGIES[strategy].get("beta")
    refused = 0
    for chosen in itertools.product(*OF_BETA.values()):
        given = {name: value for name, value in zip(OF_BETA, chosen, strict=True) if value is not None}
        found = values_of_beta(strategy, beta, tuple(given.items()))
        others = {name: {key: value for key, value in given.items() if key != name} for name in given}
        without_effect = [
            name for name, rest in others.items() if values_of_beta(strategy, beta, tuple(rest.items())) == found
        ]
        settings = {**given, **STRATEGIES[strategy], "beta_strategy": strategy}
        if without_effect:
            with pytest.raises(ValueError, match=rf"^`({'|'.join(without_effect)})` is .*, which has no effect"):
                make(**settings)
            refused += 1
        else:
            make(**settings)
    assert 0 < refused < 2 * 2 * 3 * 3


@pytest.mark.parametrize("name", sorted(set(divergences.names()) - {"akd"}))
def test_no_other_divergence_takes_options_of_beta(name: str):
    for option, value in {**{name: values[1] for name, values in OF_BETA.items()}, "beta_strategy": "m1"}.items():
        with pytest.raises(ValueError, match=f"`{option}` is .*, which has no effect with divergence='{name}'"):
            make(divergence=name, **{option: value})


def changed(value: Any) -> Any:
    """Return another value of a setting of a divergence, in [0, 1]."""
    return not value if isinstance(value, bool) else value / 2


def effects(rule: Rule, settings: Mapping[str, Any]) -> list[float]:
    """Return all numbers by which a divergence acts on training: its values, its schedule, its policy gradient."""
    knobs, arguments = rule.split(settings)
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.2, 4, 50, dtype=torch.float64).unsqueeze(1)
    student, teacher = (scale * torch.randn(50, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    found: list[float] = []
    if rule.schedule is not None:
        schedule = rule.schedule(**arguments)
        steps = 8_000  # in fewer, TAID's line rises faster than its steps
        found += [schedule.update({"divergence": 2 / step}, step / steps) for step in range(1, steps + 1)]
        knobs = {**knobs, schedule.knob: schedule.evaluation_value}
    if rule.policy_gradient is not None:
        losses, labels = torch.tensor([[1.0, 3.0, 0.1, 2.0], [0.5, 2.0, 4.0, 1.0]]), torch.ones(2, 4).long()
        policy_gradient = rule.policy_gradient(**arguments)
        found += policy_gradient.nll_weights(losses, losses.flip(1), labels).flatten().tolist()
    return found + rule(student, teacher, **knobs).tolist()


SETTINGS = [
    (rule, name)
    for rule in map(divergences.get, divergences.names())
    if rule.name != "akd"
    for name in rule.default_settings
]


@pytest.mark.parametrize(("rule", "name"), SETTINGS, ids=[f"{rule.name}-{name}" for rule, name in SETTINGS])
def test_every_setting_of_a_divergence_has_an_effect(rule: Rule, name: str):
    needed = {"lmbda": 1.0, "temperature": 1.0} if rule.policy_gradient else {}
    default = rule.default_settings[name]
    settings = make(divergence=rule.name, divergence_kwargs={name: changed(default)}, **needed).divergence_settings
    assert effects(rule, settings) != effects(rule, {})


@pytest.mark.parametrize(
    ("kind", "settings", "warns"),
    [
        (AKDConfig, {}, True),
        (AKDConfig, {"lmbda": 0.5}, False),
        (AKDConfig, {"seq_kd": True}, False),
        (AKDConfig, {"divergence": "jsd"}, True),
        (CodePLANConfig, {}, True),
        (IterKDConfig, {}, True),
    ],
)
def test_a_temperature_without_generated_text_is_warned_of(kind: type, settings: dict[str, Any], warns: bool):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(kind, **settings)
        make(kind, **settings, temperature=0.9)  # the default
        assert not [each for each in caught if "`temperature`" in str(each.message)]
        make(kind, **settings, temperature=2.0)
    found = [str(each.message) for each in caught if "`temperature` is 2.0, which has no effect" in str(each.message)]
    assert len(found) == warns and all("set `kd_temperature`" in text for text in found)


@pytest.mark.parametrize(
    ("kind", "settings", "without_effect", "accepted"),
    [
        (AKDConfig, {"seq_kd": True}, {"lmbda": 1.0}, {"lmbda": 0.9}),
        (CodePLANConfig, {"plan_head": "shared"}, {"plan_weight": 0.0}, {"plan_weight": 0.1}),
        (CodePLANConfig, {"plan_objective": "akd"}, {"plan_weight": 0.0}, {"plan_weight": 1.0}),
        (CodePLANConfig, {"code_objective": "akd"}, {"plan_weight": 1.0}, {"plan_weight": 0.0}),
        (
            CodePLANConfig,
            {"code_objective": "akd"},
            {"plan_weight": 1.0},
            {"plan_weight": 1.0, "guided_weight": 0.1},
        ),
        (IterKDConfig, {"contrastive_beta": 1.0}, {"contrastive_loss": "unlikelihood"}, {"contrastive_loss": "dpo"}),
        (IterKDConfig, {"contrastive_loss": "simpo"}, {"contrastive_weight": 0.0}, {"contrastive_weight": 0.1}),
        (IterKDConfig, {"max_faults": 2}, {"contrastive_weight": 0.0}, {"contrastive_weight": 0.1}),
        (IterKDConfig, {"simpo_margin": 0.5}, {"contrastive_loss": "dpo"}, {"contrastive_loss": "simpo"}),
    ],
)
def test_an_option_is_refused_beside_values_that_switch_it_off(
    kind: type, settings: dict[str, Any], without_effect: dict[str, Any], accepted: dict[str, Any]
):
    [(name, value)] = settings.items()
    make(kind, **settings, **accepted)
    with pytest.raises(ValueError, match=f"`{name}` is {value!r}, which has no effect"):
        make(kind, **settings, **without_effect)


OF_TEACHERS = {
    **{
        entry.name: 5 if "int" in str(entry.type) or "float" in str(entry.type) else "x"
        for entry in fields(AKDConfig)
        if entry.name.startswith("teacher_")
    },
    "teacher_model_init_kwargs": {"dtype": "auto"},
    "divergence": "jsd",
    "beta_strategy": "m1",
    "beta_learning_rate": 1.0,
    "beta_initial_values": [0.5],
    "beta_regularization": 1.0,
    "beta_regularizer": "alg1",
    "kd_temperature": 2.0,
    "ce_weight": 1.0,
}


@pytest.mark.parametrize("name", OF_TEACHERS)
@pytest.mark.parametrize(("kind", "settings"), [(CodePLANConfig, {}), (IterKDConfig, {"objective": "ce"})])
def test_objectives_without_a_teacher_refuse_the_options_of_teachers(kind: type, settings: dict[str, Any], name: str):
    reasons = "has no effect (?:while|without)|is for the teacher's server|`teacher_model_name_or_path` is not set"
    with pytest.raises(ValueError, match=f"`{name}` is .*({reasons})"):
        make(kind, **settings, **{name: OF_TEACHERS[name]})
