"""Text generated during training: the terms of the loss on it, and a share that changes during training."""

import dataclasses

import pytest
import torch
from transformers import TrainerCallback

from tests import tiny
from tests.akd.test_trainer import logs
from trl_akd import AKDTrainer
from trl_akd.akd.on_policy import is_on_policy
from trl_akd.data.collators import DataCollatorForDistillation


def gradients(made):
    """Return the gradients of the first optimizer step, and whether each micro-batch was sampled from the student."""
    steps = made.args.gradient_accumulation_steps
    made.model_wrapped = made.model
    made.model.train()
    made.model.zero_grad()
    batches, items = made.get_batch_samples(iter(made.get_train_dataloader()), steps, torch.device("cpu"))
    for batch in batches:
        made.compute_loss(made.model, batch, num_items_in_batch=items).backward()
    return torch.cat([parameter.grad.flatten() for parameter in made.model.parameters()]), batches


@pytest.mark.parametrize("normalization", ["sequence", "token"])
@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("settings", [{"lmbda": 0.5}, {"lmbda": 0.5, "seq_kd": True}, {"seq_kd": True}])
def test_cross_entropy_is_on_the_data_only(trainer, monkeypatch, settings, groups, normalization):
    """Its gradient is the weighted sum over the data's tokens, divided by all items of the step."""
    monkeypatch.setattr(AKDTrainer, "_may_regroup", groups)
    settings |= {"max_new_tokens": 5, "normalization": normalization, "gradient_accumulation_steps": 4}
    settings |= {"per_device_train_batch_size": 2, "beta_strategy": "fixed", "beta": 0.3}
    own = [is_on_policy(settings.get("lmbda", 0.0), seed=42, step=0, micro_batch=number) for number in range(4)]
    assert any(own) == ("lmbda" in settings) and not all(own)
    found = [trainer(**settings, ce_weight=weight) for weight in (0.0, 0.5)]
    without, with_ce = (gradients(made)[0] for made in found)
    [plain] = found[:1]
    monkeypatch.setattr(AKDTrainer, "_may_regroup", False)
    _, batches = gradients(plain)
    plain.model.zero_grad()
    weights, items = [], 0
    for batch, is_own in zip(batches, own, strict=True):
        targets = plain._targets(batch)
        items += targets.items.item()
        logits = plain.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets.labels, reduction="none")
        weights.append(0.0 if is_own else (nll * targets.weights).sum())
    (0.5 * sum(weights) / items).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in plain.model.parameters()])
    torch.testing.assert_close(with_ce - without, expected, rtol=1e-3, atol=1e-5)


def test_cross_entropy_without_data_is_refused(config):
    with pytest.raises(ValueError, match=r"`ce_weight` is 0.5, which has no effect with lmbda=1"):
        config(lmbda=1.0, ce_weight=0.5)


class Share(TrainerCallback):
    """Set an attribute of the trainer before a step."""

    def __init__(self, step, **attributes):
        self.step, self.attributes = step, attributes

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            vars(self.trainer).update(self.attributes)


def with_share(trainer, callback, **settings):
    callback.trainer = trainer(callbacks=[callback], max_steps=3, max_new_tokens=3, **settings)
    return callback.trainer


@pytest.mark.parametrize("attributes", [{"lmbda": 1.0}, {"seq_kd": True}])
def test_a_share_without_prompts(trainer, attributes):
    made = with_share(trainer, Share(1, **attributes))
    with pytest.raises(ValueError, match=r"the trainer has lmbda=.*a batch has no `prompts`.*\(it has 0.0\)"):
        made.train()
    assert len(logs(made, "loss")) == 1


@pytest.mark.parametrize("given", [{"lmbda": 1.0}, {"seq_kd": True}])
def test_a_share_without_completions(trainer, given):
    rows = tiny.rows(8).remove_columns("completion")
    made = with_share(trainer, Share(1, lmbda=0.0, seq_kd=False), **given, train_dataset=rows)
    with pytest.raises(ValueError, match=r"the trainer has lmbda=0.0 and seq_kd=False, but a row has no completion"):
        made.train()
    assert len(logs(made, "loss")) == 1


@pytest.mark.parametrize(
    ("given", "attributes"),
    [({"lmbda": 0.5}, {"lmbda": 1.0}), ({"lmbda": 0.5}, {"lmbda": 0.0}), ({"lmbda": 1.0}, {"lmbda": 0.0})],
)
def test_a_share_that_rows_allow(trainer, given, attributes):
    made = with_share(trainer, Share(1, **attributes), **given)
    made.train()
    assert len(logs(made, "loss")) == 3


@pytest.mark.parametrize("given", [{}, {"dataset_kwargs": {"skip_prepare_dataset": False}}])
def test_a_collator_leaves_the_configuration_as_it_is(pair, config, trainer, given):
    args = config(**given)
    before = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    made = AKDTrainer(
        *pair, args, DataCollatorForDistillation(256), train_dataset=trainer().train_dataset, eval_dataset=None
    )
    made.train()
    assert {field.name: getattr(args, field.name) for field in dataclasses.fields(args)} == before
    assert not made.args.remove_unused_columns
    AKDTrainer(*pair, args, train_dataset=tiny.rows(4)).train()
