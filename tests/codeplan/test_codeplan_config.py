"""Accepted and refused values of CodePLANConfig."""

import inspect
import re
from dataclasses import fields

import pytest

from trl_akd import AKDConfig, CodePLANConfig


def test_defaults_follow_the_paper(config):
    made = CodePLANConfig("outputs", use_cpu=True)
    assert (made.plan_weight, made.schedule, made.plan_head) == (0.5, "weighted", "separate")
    assert (made.code_objective, made.plan_objective, made.uses_teacher) == ("ce", "ce", False)
    assert made.guided_weight == 0.0


def test_docstring_lists_the_fields_in_order():
    named = re.findall(r"^    (\w+) \(`", inspect.getdoc(CodePLANConfig) or "", re.M)
    names = {field.name for field in fields(CodePLANConfig)}
    assert named == [name for name in CodePLANConfig.__annotations__ if name in names]
    assert issubclass(CodePLANConfig, AKDConfig)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"plan_weight": 1.2}, r"`plan_weight` is 1.2; .*must be in \[0, 1\]"),
        ({"plan_weight": -0.1}, "`plan_weight` is -0.1"),
        ({"plan_weight": float("nan")}, "`plan_weight` is nan"),
        ({"guided_weight": -1.0}, "`guided_weight` is -1.0"),
        ({"guided_weight": float("nan")}, "`guided_weight` is nan"),
        ({"guided_weight": float("inf")}, "`guided_weight` is inf; .* finite"),
        ({"max_target_length": 0}, "`max_target_length` is 0, which leaves no room"),
        ({"max_length": 0}, "`max_length` is 0, which leaves no room"),
        ({"schedule": "both"}, "`schedule` is 'both'; choose 'weighted' or 'alternate'"),
        ({"plan_head": "tied"}, "`plan_head` is 'tied'; choose 'separate' or 'shared'"),
        ({"code_objective": "kd"}, "`code_objective` is 'kd'; choose 'ce' or 'akd'"),
        ({"plan_objective": "kd"}, "`plan_objective` is 'kd'"),
        ({"packing": True}, "`packing` is on"),
        ({"padding_free": True}, "`padding_free` is on"),
        ({"train_sampling_strategy": "group_by_length"}, "`train_sampling_strategy` is 'group_by_length'"),
        ({"lmbda": 0.5}, "`lmbda` is on"),
        ({"seq_kd": True}, "`seq_kd` is on"),
        ({"remove_unused_columns": True}, "`remove_unused_columns` is on"),
        ({"teacher_model_name_or_path": "t"}, "`teacher_model_name_or_path` is 't', which has no effect"),
        ({"kd_temperature": 2.0}, "`kd_temperature` is 2.0, which has no effect"),
        ({"ce_weight": 1.0}, "`ce_weight` is 1.0, which has no effect"),
        ({"beta_strategy": "fixed", "beta": 0.5}, "`beta` is 0.5, which has no effect"),
    ],
)
def test_invalid_values(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_a_fixed_divergence(config):
    made = config(plan_objective="akd", beta_strategy="fixed", beta=0.0, kd_temperature=2.0)
    assert made.uses_teacher and made.make_beta().value == 0.0
