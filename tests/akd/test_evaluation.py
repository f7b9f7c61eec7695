"""Evaluation depends on the student and the data alone."""

import pytest
import torch
from transformers import EarlyStoppingCallback

from tests import tiny


def logs(trainer, key):
    return [log[key] for log in trainer.state.log_history if key in log]


@pytest.mark.parametrize("strategy", ["akd", "random_epoch", "m1"])
def test_an_unchanged_student_has_the_same_loss_in_every_epoch(trainer, strategy):
    made = trainer(
        eval_dataset=tiny.rows(5, seed=1),
        eval_strategy="epoch",
        max_steps=-1,
        num_train_epochs=5,
        seed=1,  # draws both initial values
        learning_rate=0.0,
        beta_strategy=strategy,
        ce_weight=0.5,
        **({} if strategy == "random_epoch" else {"beta_learning_rate": 0.1}),
    )
    made.train()
    losses = logs(made, "eval_loss")
    assert losses == [losses[0]] * 5
    [kl, rkl, nll] = [logs(made, f"eval_kd/{name}")[0] for name in ("forward_kl", "reverse_kl", "student_nll")]
    assert losses[0] == pytest.approx((kl + rkl) / 2 + 0.5 * nll, rel=1e-6)
    training = logs(made, "eval_training_loss")
    assert len(set(training)) > 1
    assert training[-1] == pytest.approx(
        (1 - made.adaptive_beta.value) * kl + made.adaptive_beta.value * rkl + 0.5 * nll, rel=1e-6
    )


def test_evaluation_uses_a_fixed_mix(trainer):
    found = trainer(eval_dataset=tiny.rows(5, seed=1), beta_strategy="fixed", beta=0.2).evaluate()
    expected = 0.8 * found["eval_kd/forward_kl"] + 0.2 * found["eval_kd/reverse_kl"]
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert "eval_training_loss" not in found


def test_evaluation_loss_of_a_batch_does_not_depend_on_beta(trainer):
    made = trainer()
    batch = next(iter(made.get_train_dataloader()))
    made.model.eval()
    losses = []
    for value in (0.1, 0.9):
        with torch.no_grad():
            made.adaptive_beta._beta.fill_(value)
        losses.append(made.compute_loss(made.model, batch).item())
    assert losses[0] == losses[1]


def test_early_stopping_depends_on_the_student_not_on_the_draw(trainer):
    """Both divergences fall in every epoch, so training does not stop, and the last checkpoint is the best."""
    made = trainer(
        eval_dataset=tiny.rows(8),
        eval_strategy="epoch",
        save_strategy="epoch",
        max_steps=-1,
        num_train_epochs=6,
        seed=1,
        learning_rate=2e-5,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1)],
    )
    made.train()
    for key in ("eval_kd/forward_kl", "eval_kd/reverse_kl", "eval_loss"):
        assert logs(made, key) == sorted(logs(made, key), reverse=True), key
    assert len(logs(made, "eval_loss")) == 6
    assert made.state.best_global_step == made.state.global_step
    assert logs(made, "eval_training_loss") != sorted(logs(made, "eval_training_loss"), reverse=True)


@pytest.mark.parametrize("metric", ["eval_kd/forward_kl", "eval_entropy", "eval_kd/student_nll"])
def test_any_metric_selects_the_best_checkpoint(trainer, metric):
    made = trainer(
        eval_dataset=tiny.rows(4, seed=1),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        max_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=False,
    )
    made.train()
    assert made.state.best_metric == min(logs(made, metric))


def test_resumed_run_has_the_same_evaluations(trainer, tmp_path):
    settings = {
        "eval_dataset": tiny.rows(5, seed=1),
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "max_steps": -1,
        "num_train_epochs": 3,
        "output_dir": str(tmp_path),
    }
    whole = trainer(**settings)
    whole.train()
    resumed = trainer(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert logs(resumed, "eval_loss") == pytest.approx(logs(whole, "eval_loss"), rel=1e-6)


@pytest.mark.parametrize("rows", [3, 6])
def test_rows_are_dropped_only_from_training(trainer, rows):
    found, expected = (
        trainer(eval_dataset=tiny.rows(rows, seed=1), train_dataset=tiny.rows(9), dataloader_drop_last=drop)
        for drop in (True, False)
    )
    assert found.evaluate()["eval_loss"] == pytest.approx(expected.evaluate()["eval_loss"], rel=1e-6)
    assert found.predict(found.eval_dataset).metrics["test_loss"] == pytest.approx(
        expected.evaluate()["eval_loss"], rel=1e-6
    )
    assert found.args.dataloader_drop_last
    assert len(found.get_train_dataloader()) == 2 < len(expected.get_train_dataloader())


def test_stream_is_evaluated_completely(trainer):
    rows = tiny.rows(7, seed=1)
    found = trainer(eval_dataset=rows.to_iterable_dataset()).evaluate()
    expected = trainer(eval_dataset=rows).evaluate()
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)


@pytest.mark.parametrize("settings", [{}, {"normalization": "token"}, {"packing": True, "max_length": 48}])
def test_repeated_rows_are_ignored(trainer, settings):
    made = trainer(train_dataset=tiny.rows(20), **settings)
    made.model.train()
    rows = [made.train_dataset[index] for index in range(4)]
    batch = made.data_collator(rows)
    for own in range(1, 4):
        alone = made.data_collator(rows[:own])
        losses, counts = [], []
        for given in (made._without_repeats(batch, 4, own), alone):
            losses.append(made.compute_loss(made.model, given).item())
            counts.append(made.distillation_metrics["train"].reduce(made.accelerator))
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert counts[0][1] == counts[1][1], "tokens"
        assert counts[0][0][0].by_name == pytest.approx(counts[1][0][0].by_name, rel=1e-5)
    loss = made.compute_loss(made.model, made._without_repeats(batch, 4, 0))
    loss.backward()
    assert loss.item() == 0.0
