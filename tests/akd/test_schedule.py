"""Knobs of a divergence that change during training: TAID's schedule, and β that changes linearly."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests import tiny
from tests.codeplan import world
from tests.iterkd import world as pairs_world
from trl_akd import AKDConfig, AKDTrainer, CodePLANConfig, CodePLANTrainer, IterKDConfig
from trl_akd.akd.checkpoint import save_state
from trl_akd.akd.metrics import METRICS, Means
from trl_akd.akd.model_card import objective
from trl_akd.iterkd.pair_trainer import PairTrainer
from trl_akd.losses import Interpolation, divergences

SETTINGS = {"divergence": "taid", "divergence_kwargs": {"t_start": 0.2, "step_size": 0.2, "momentum": 0.5}}
LINEAR = {"beta_strategy": "linear", "beta_initial_values": [0.2, 0.8]}
SCHEDULES = pytest.mark.parametrize(("settings", "key"), [(SETTINGS, "kd/t"), (LINEAR, "kd/beta")], ids=["t", "beta"])
TRAINING = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "ce_weight": 0.3,
}
RUN = {**SETTINGS, **TRAINING}


def series(made, key):
    return [log[key] for log in made.state.log_history if key in log]


def test_t_follows_the_logged_divergence(trainer):
    made = trainer(train_dataset=tiny.rows(12), **RUN)
    made.train()
    schedule, divergence = Interpolation(**SETTINGS["divergence_kwargs"]), series(made, "kd/divergence")
    expected = [schedule.value] + [
        schedule.update({"divergence": loss}, (step + 1) / 6) for step, loss in enumerate(divergence)
    ]
    assert series(made, "kd/t") == pytest.approx(expected[:-1], abs=1e-6)
    assert made.schedule.value == expected[-1] == 1.0
    assert len(set(series(made, "kd/t"))) == 6
    assert not series(made, "kd/beta")


def test_a_linear_beta_is_a_function_of_the_step(trainer):
    made = trainer(train_dataset=tiny.rows(12), **LINEAR, **TRAINING)
    made.train()
    assert series(made, "kd/beta") == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7], abs=1e-6)
    assert made.schedule.value == pytest.approx(0.8)
    for beta, forward, reverse, loss in zip(
        *(series(made, f"kd/{name}") for name in ("beta", "forward_kl", "reverse_kl", "divergence")), strict=True
    ):
        assert loss == pytest.approx((1 - beta) * forward + beta * reverse, rel=1e-4)
    metrics = made.evaluate(tiny.rows(3, seed=1))
    half = (metrics["eval_kd/forward_kl"] + metrics["eval_kd/reverse_kl"]) / 2
    assert metrics["eval_kd/divergence"] == pytest.approx(half, rel=1e-5)


def test_loss_uses_the_current_t_and_evaluation_the_final_one(trainer):
    made = trainer(eval_dataset=tiny.rows(3, seed=1), **RUN)
    [batch, *_] = made.get_train_dataloader()
    made.model.train()
    found = {}
    for made.schedule._value in (0.2, 0.8, 1.0):
        made.compute_loss(made.model, batch)
        [means], _ = made.distillation_metrics["train"].reduce(made.accelerator)
        found[made.schedule.value] = means.by_name["divergence"]
    assert found[0.2] < found[0.8] < found[1.0] == pytest.approx(means.by_name["forward_kl"], rel=1e-5)
    losses = []
    for made.schedule._value in (0.2, 0.8):
        metrics = made.evaluate()
        assert metrics["eval_kd/divergence"] == pytest.approx(metrics["eval_kd/forward_kl"], rel=1e-5)
        assert "eval_training_loss" not in metrics
        losses.append(metrics["eval_loss"])
    assert losses[0] == losses[1]


@SCHEDULES
def test_accumulation_does_not_change_the_knob(settings, key, trainer):
    found = []
    for accumulation in (1, 4):
        made = trainer(
            train_dataset=tiny.rows(12),
            **{
                **settings,
                **TRAINING,
                "per_device_train_batch_size": 4 // accumulation,
                "gradient_accumulation_steps": accumulation,
            },
        )
        made.train()
        found.append((series(made, key), series(made, "kd/divergence"), list(made.model.state_dict().values())))
    assert len(set(found[0][0])) == 6
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@SCHEDULES
def test_resumed_run_equals_the_uninterrupted_one_and_a_new_run_starts_over(settings, key, trainer, tmp_path):
    settings = {**settings, **TRAINING, "output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 2}
    whole = trainer(train_dataset=tiny.rows(12), **settings)
    whole.train()
    state = torch.load(tmp_path / "checkpoint-4" / "akd_state.pt", weights_only=True)
    saved = state.get("schedule", state["beta"])["value"]
    assert float(saved) == pytest.approx(series(whole, key)[4], abs=1e-6)
    resumed = trainer(train_dataset=tiny.rows(12), **{**settings, "save_strategy": "no"})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.schedule.state_dict() == whole.schedule.state_dict()
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=1e-7)
    resumed.args.max_steps = 1
    resumed.train()
    assert series(resumed, key) == [0.2]


def test_resume_with_another_schedule(trainer, tmp_path):
    settings = {"output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 1}
    trainer(**settings, **{**RUN, "max_steps": 1}).train()
    for changed in ({"divergence_kwargs": {"t_start": 0.3}}, {"divergence": "jsd", "divergence_kwargs": None}):
        made = trainer(**settings, **{**RUN, **changed})
        with pytest.raises(ValueError, match="resume with the old divergence"):
            made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
        with pytest.raises(ValueError, match="resume with the old divergence"):
            made.args.check_checkpoint(str(tmp_path / "checkpoint-1"))


def test_schedule_from_recipe_to_model_card(trainer, tmp_path):
    made = trainer(output_dir=str(tmp_path), divergence="TAID", divergence_kwargs='{"t_start": 0.25}')
    assert made.schedule.value == 0.25
    made.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "| divergence | `taid` |" in card and "| t_start | `0.25` |" in card and "| t |" not in card
    assert all(f"| {row} |" in card for row in ("t_end | `1.0`", "step_size | `0.0005`", "momentum | `0.99`"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"divergence": "akl"}, {"mu": 0.5}),
        ({"divergence": "abkd", "divergence_kwargs": {"beta": 0.3}}, {"alpha": 0.2, "beta": 0.3}),
        ({"divergence": "todi"}, {}),
        ({"beta_strategy": "fixed", "beta": 0.25}, {"beta_strategy": "fixed", "beta": 0.25}),
    ],
)
def test_the_card_states_all_settings_of_the_divergence(settings, expected):
    found = objective(AKDConfig("run", **settings))
    assert list(found)[:5] == ["divergence", "normalization", "kd_temperature", "lmbda", "ce_weight"]
    assert dict(list(found.items())[5:]) == expected


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"t": 0.5}, "changes 't' during training; it takes 't_start', 't_end', 'step_size', 'momentum', not 't'"),
        ({"alpha": 0.5}, "changes 't' during training; it takes 't_start', .*, not 'alpha'"),
        ({"t_start": 2}, r"t_start is 2; give a number in \[0, 1\]"),
    ],
)
def test_invalid_settings(settings, complaint):
    with pytest.raises(ValueError, match=rf"`divergence_kwargs` is {{.*}}: [^:]*{complaint}"):
        AKDConfig("run", divergence="taid", divergence_kwargs=settings)


NUMBERS = [np.float32(0.25), np.float64(0.25), np.array(0.25), torch.tensor(0.25), Fraction(1, 4)]


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize(
    "settings",
    [
        lambda value: {"divergence": "jsd", "divergence_kwargs": {"beta": value}},
        lambda value: {"divergence": "taid", "divergence_kwargs": {"t_start": value, "step_size": value}},
        lambda value: {"beta_initial_values": [value, 0.5], "beta_learning_rate": value, "beta_regularization": value},
        lambda value: {"beta_strategy": "fixed", "beta": value, "ce_weight": value, "kd_temperature": value},
    ],
)
def test_numbers_of_any_type_are_saved(value, settings, tmp_path):
    args, same = (AKDConfig(str(tmp_path), **settings(number)) for number in (value, 0.25))
    assert args.to_json_string() == same.to_json_string()
    beta = args.make_beta()
    save_state(tmp_path, beta, args.make_schedule(beta), args.loss_settings, 0)
    same.check_checkpoint(str(tmp_path))


def test_a_checkpoint_without_the_state_of_the_schedule(tmp_path):
    args = AKDConfig("run", **SETTINGS)
    for settings in ({}, args.loss_settings):  # of an older version; of a rule that had no schedule
        save_state(tmp_path, args.make_beta(), None, settings, 0)
        with pytest.raises(ValueError, match=r"written without a schedule of 't', but .* 'taid' changes it; start"):
            args.check_checkpoint(str(tmp_path))


@pytest.mark.parametrize("settings", [SETTINGS, {"beta_strategy": "akd"}])
def test_step_without_targets_changes_nothing(trainer, settings):
    made = trainer(**settings)
    before = made.schedule.state_dict()
    made._step_schedule([Means(dict.fromkeys(METRICS, 0.0), 0.0)])
    assert str(made.schedule.state_dict()) == str(before)
    made.state.max_steps = 2
    made._step_schedule([Means(dict.fromkeys(METRICS, 0.5), 1.0)])
    assert str(made.schedule.state_dict()) != str(before)


def test_custom_loss_cannot_update_the_knob(pair, tmp_path):
    class Own(AKDTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(input_ids=inputs["input_ids"]).logits.logsumexp(-1).mean()

    args = AKDConfig(**{**tiny.SHORT_RUN, "output_dir": str(tmp_path), "max_length": 64, **SETTINGS})
    made = Own(*pair, args, train_dataset=tiny.rows(4))
    with pytest.raises(
        ValueError, match=r"'taid', whose t depends on .* `Own.compute_loss` does not measure it; call"
    ):
        made.train()


@pytest.mark.parametrize(("name", "rule"), [("kl", "forward_kl"), ("RKL", "reverse_kl"), ("skl", "skew_kl")])
def test_a_divergence_has_one_name(name, rule, trainer, tmp_path):
    settings = {"output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 1}
    assert AKDConfig("run", divergence=name).divergence == rule
    if name == "kl":
        trainer(divergence=rule, max_steps=1, **settings).train()
        made = trainer(divergence=name, max_steps=2, **settings)
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
        assert made.state.global_step == 2


def test_custom_schedule(trainer, monkeypatch):
    """A registered rule may have a schedule as well as constant knobs."""
    monkeypatch.setattr(divergences, "_RULES", dict(divergences._RULES))

    @dataclass  # not hashable
    class Warmup(Interpolation):
        start: float = 0.0

        knob = "share"

        def __post_init__(self):
            super().__init__(t_start=self.start, step_size=0.0)

    @divergences.register("warm", schedule=Warmup)
    def warm(student_logits, teacher_logits, share, factor=1.0):
        return factor * divergences.akd(student_logits, teacher_logits, beta=share)

    made = trainer(divergence="warm", divergence_kwargs={"start": 0.5, "factor": 2.0}, max_steps=2)
    made.train()
    assert series(made, "kd/share") == [0.5, 0.75]
    for step, share in enumerate([0.5, 0.75]):
        forward, reverse, found = (
            series(made, f"kd/{key}")[step] for key in ("forward_kl", "reverse_kl", "divergence")
        )
        assert found == pytest.approx(2 * ((1 - share) * forward + share * reverse), rel=1e-4)


def test_codeplan_updates_t_from_its_distilled_tasks(pair, tmp_path):
    rows = world.problems(8)
    args = CodePLANConfig(
        **{**tiny.SHORT_RUN, "output_dir": str(tmp_path), "max_length": 256, **SETTINGS},
        code_objective="ce",
        plan_objective="akd",
    )
    made = CodePLANTrainer(*pair, args, train_dataset=rows)
    made.train()
    schedule = Interpolation(**SETTINGS["divergence_kwargs"])
    for step, loss in enumerate(divergence := series(made, "kd/divergence")):
        assert series(made, "kd/t")[step] == pytest.approx(schedule.value, abs=1e-6)
        schedule.update({"divergence": loss}, (step + 1) / len(divergence))
    assert made.schedule.value == pytest.approx(schedule.value, abs=1e-6) != 0.2


@SCHEDULES
def test_each_cycle_of_iterkd_resets_the_schedule(settings, key, pair, tmp_path):
    args = IterKDConfig(
        **{**tiny.SHORT_RUN, "output_dir": str(tmp_path), "max_length": 256, **settings}, objective="akd"
    )
    made = PairTrainer(*pair, args, train_dataset=pairs_world.pairs(4))
    for cycle in range(2):
        made.train_on(pairs_world.pairs(4, seed=cycle), cycle, tmp_path / str(cycle))
        found = series(made, key)
        assert found[0] == pytest.approx(0.2) and found == sorted(set(found))
