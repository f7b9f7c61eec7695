"""Sums over a step: no more precision than the device supports, and each row counts once."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests import tiny
from tests.codeplan import world
from tests.iterkd import world as pairs_world
from trl_akd import CodePLANConfig, CodePLANTrainer, IterKDConfig
from trl_akd.iterkd.pair_trainer import PairTrainer


class NoFloat64(TorchDispatchMode):
    """Raise an error if an operation creates a float64 tensor."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        assert not any(torch.is_tensor(leaf) and leaf.dtype == torch.float64 for leaf in tree_leaves(result)), function
        return result


@contextmanager
def without_float64(monkeypatch, trainer):
    """Treat the CPU as a device without float64, except for β, which is always on the CPU."""
    monkeypatch.setattr("trl_akd.distributed._WITHOUT_FLOAT64", {"cpu"})
    value = trainer.adaptive_beta.value
    monkeypatch.setattr(type(trainer.adaptive_beta), "value", property(lambda beta: value))
    with NoFloat64():
        yield


def make_akd(pair, args, **settings):
    from trl_akd import AKDConfig, AKDTrainer

    return AKDTrainer(*pair, AKDConfig(**args, ce_weight=0.5, **settings), train_dataset=tiny.rows(4))


def make_codeplan(pair, args, **settings):
    config = CodePLANConfig(**args, code_objective="akd", **settings)
    return CodePLANTrainer(*pair, config, train_dataset=world.problems(4))


def make_pairs(pair, args, **settings):
    config = IterKDConfig(**args, objective="akd", contrastive_loss="simpo", **settings)
    return PairTrainer(*pair, config, train_dataset=pairs_world.pairs(4))


@pytest.mark.parametrize("make", [make_akd, make_codeplan, make_pairs])
@pytest.mark.parametrize("training", [True, False])
def test_step_uses_no_float64(pair, make, training, monkeypatch, tmp_path):
    made = make(pair, {**tiny.SHORT_RUN, "output_dir": str(tmp_path), "max_length": 256})
    [batch, *_] = made.get_train_dataloader()
    made.model.train(training)
    made.compute_loss(made.model, batch)  # checks the architecture once
    mode = "train" if training else "eval"
    expected, _ = made.distillation_metrics[mode].reduce(made.accelerator)
    with without_float64(monkeypatch, made):
        loss = made.compute_loss(made.model, batch)
        if training:
            loss.backward()
        found, _ = made.distillation_metrics[mode].reduce(made.accelerator)
    for one, other in zip(found, expected, strict=True):
        assert one.by_name == pytest.approx(other.by_name, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("make", [make_akd, make_codeplan, make_pairs])
@pytest.mark.parametrize("normalization", ["sequence", "token"])
def test_repeated_rows_are_ignored(pair, make, normalization, tmp_path):
    """Rows that only fill up a batch do not change the loss, the means and the number of tokens."""
    made = make(
        pair,
        {**tiny.SHORT_RUN, "output_dir": str(tmp_path), "max_length": 256},
        normalization=normalization,
        disable_dropout=True,
    )
    made.model.train()
    rows = [made.train_dataset[index] for index in range(4)]
    for own in (1, 3):
        losses, counts = [], []
        for batch in (made._without_repeats(made.data_collator(rows), 4, own), made.data_collator(rows[:own])):
            losses.append(made.compute_loss(made.model, batch).item())
            counts.append(made.distillation_metrics["train"].reduce(made.accelerator))
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert counts[0][1] == counts[1][1], "tokens"
        for one, other in zip(counts[0][0], counts[1][0], strict=True):
            assert one.by_name == pytest.approx(other.by_name, rel=1e-5, abs=1e-7)
            assert one.weight == pytest.approx(other.weight, rel=1e-6)
    loss = made.compute_loss(made.model, made._without_repeats(made.data_collator(rows), 4, 0))
    loss.backward()
    assert loss.item() == 0.0


class Interrupted(Exception):
    pass


def interrupt(monkeypatch, trainer, micro_batch, error):
    """Raise an error instead of training on a micro-batch; the numbers begin with 1."""
    step, seen = trainer.training_step, []

    def interrupted_step(*args, **kwargs):
        seen.append(1)
        if len(seen) == micro_batch:
            raise error
        return step(*args, **kwargs)

    monkeypatch.setattr(trainer, "training_step", interrupted_step)


def begin_again(monkeypatch, trainer):
    interrupt(monkeypatch, trainer, 6, Interrupted())
    with pytest.raises(Interrupted):
        trainer.train()
    trainer.train()


def resume(monkeypatch, trainer):
    interrupt(monkeypatch, trainer, 6, Interrupted())
    with pytest.raises(Interrupted):
        trainer.train()
    trainer.train(resume_from_checkpoint=True)


def run_out_of_memory(monkeypatch, trainer):
    interrupt(monkeypatch, trainer, 6, torch.OutOfMemoryError("CUDA out of memory."))
    trainer.args.auto_find_batch_size = True
    trainer.train()


def compute_a_loss_first(monkeypatch, trainer):
    trainer.model.train()
    trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    trainer.train()


def train_twice(monkeypatch, trainer):
    trainer.train()
    trainer.train()


@pytest.mark.parametrize("make", [make_akd, make_codeplan, make_pairs])
@pytest.mark.parametrize("train", [begin_again, resume, run_out_of_memory, compute_a_loss_first, train_twice])
def test_nothing_is_left_of_earlier_steps(pair, make, train, monkeypatch, tmp_path):
    """A run logs the same whatever the trainer did before it."""
    settings = {**tiny.SHORT_RUN, "max_length": 256, "learning_rate": 0.0, "max_steps": 4, "logging_steps": 2}
    settings |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    settings |= {"save_strategy": "steps", "save_steps": 1}
    made = make(pair, {**settings, "output_dir": str(tmp_path / "made")})
    train(monkeypatch, made)
    settings["per_device_train_batch_size"] = made._train_batch_size
    expected = make(pair, {**settings, "output_dir": str(tmp_path / "expected")})
    expected.train()
    for found, log in zip(made.state.log_history[:-1], expected.state.log_history[:-1], strict=True):
        assert found == pytest.approx(log, rel=1e-5, abs=1e-7)
