"""Text generated during training: the terms of the loss on it, and a share that changes during training."""

import dataclasses

import pytest
import torch
from transformers import TrainerCallback

from tests import tiny
from tests.akd.test_trainer import logs
from trl_akd import AKDTrainer
from trl_akd.data.collators import DataCollatorForDistillation

PATTERN = [True, False, True, True, False, False, False, True]
"""Which rows of a step have text from the student: a single one, two, and none in a micro-batch."""

SETTINGS = {"lmbda": 0.5, "ce_weight": 0.5, "beta_strategy": "fixed", "beta": 0.3}


def completion_of(prompt):
    """Return tokens that differ from prompt to prompt in number and kind."""
    return [65 + (len(prompt) + position) % 26 for position in range(1 + sum(prompt) % 4)]


@pytest.fixture
def of_doubles(trainer):
    """Create a trainer of a student and a teacher in float64, of eight rows."""
    return lambda **settings: trainer(
        tiny.model(seed=1).double(), tiny.model("qwen2", hidden=48, seed=2).double(), **SETTINGS | settings
    )


def rows_of(made, pattern):
    """Return tokens, labels and whether the text is the data's for each row; in others the student continues."""
    rows = []
    for row, is_own in zip(made.train_dataset, pattern, strict=True):
        tokens, labels = row["input_ids"], row["labels"]
        if is_own:
            prompt = tokens[: labels.count(-100)]
            tokens = prompt + completion_of(prompt)
            labels = [-100] * len(prompt) + completion_of(prompt)
        rows.append((tokens, labels, not is_own))
    return rows


def by_hand(made, rows):
    """Return loss, gradients, means and number of tokens of a step, from one row and one token at a time.

    Divergence and NLL of a token have the same weight; the NLL counts only in the data, the divisor is that of all.
    """
    made.model.zero_grad()
    of_rows, is_data = [], torch.tensor([each for *_, each in rows], dtype=torch.float64)
    for tokens, labels, _ in rows:
        ids = torch.tensor([tokens])
        q, p = (model(ids).logits[0].log_softmax(-1) for model in (made.model, made.teacher.model))
        each = []
        for position in range(1, len(tokens)):
            if labels[position] != -100:
                log_q, log_p = q[position - 1], p[position - 1].detach()
                forward, reverse = (log_p.exp() * (log_p - log_q)).sum(), (log_q.exp() * (log_q - log_p)).sum()
                each.append(torch.stack([0.7 * forward + 0.3 * reverse, -log_q[labels[position]]]))
        of_rows.append(torch.stack(each))
    if made.args.normalization == "sequence":
        sums, items = torch.stack([each.mean(0) for each in of_rows]), len(rows)
    else:
        sums, items = torch.stack([each.sum(0) for each in of_rows]), sum(map(len, of_rows))
    loss = (sums[:, 0] + 0.5 * is_data * sums[:, 1]).sum() / items
    loss.backward()
    means = dict(zip(("divergence", "student_nll"), (sums.sum(0) / items).tolist(), strict=True))
    return loss.item(), gradients_of(made), means, sum(len(tokens) for tokens, *_ in rows)


def gradients_of(made):
    return torch.cat([parameter.grad.flatten() for parameter in made.model.parameters()])


def step(made, batches):
    """Return what `by_hand` returns, from an optimizer step of the trainer."""
    made.model_wrapped = made.model
    made.model.train()
    made.model.zero_grad()
    batches, items = made.get_batch_samples(iter(batches), len(batches), torch.device("cpu"))
    losses = [made.compute_loss(made.model, batch, num_items_in_batch=items) for batch in batches]
    sum(losses).backward()
    [means], tokens = made.distillation_metrics["train"].reduce(made.accelerator)
    return sum(losses).item(), gradients_of(made), means.by_name, tokens


def assert_same(found, expected):
    loss, gradients, means, tokens = found
    assert loss == pytest.approx(expected[0], rel=1e-6)
    torch.testing.assert_close(gradients, expected[1], rtol=1e-5, atol=1e-8)
    assert {name: means[name] for name in expected[2]} == pytest.approx(expected[2], rel=1e-6)
    assert tokens == expected[3]


def in_micro_batches(rows, number):
    size = len(rows) // number
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@pytest.mark.parametrize("normalization", ["sequence", "token"])
@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("pattern", [PATTERN, sorted(PATTERN)], ids=["mixed", "sorted"])
def test_cross_entropy_is_on_the_data_only(of_doubles, monkeypatch, pattern, groups, normalization):
    """The division into micro-batches does not matter, whether they have both kinds of text or one."""
    monkeypatch.setattr(AKDTrainer, "_may_regroup", groups)
    made = of_doubles(normalization=normalization)
    made.lmbda = 0.0  # the text is in the rows
    rows, collate = rows_of(made, pattern), DataCollatorForDistillation(256)
    expected = by_hand(made, rows)
    for number in (1, 2, 4, 8):
        batches = [
            {
                **collate([{"input_ids": tokens, "labels": labels} for tokens, labels, _ in each]),
                "is_data": torch.tensor([is_data for *_, is_data in each]),
            }
            for each in in_micro_batches(rows, number)
        ]
        assert_same(step(made, batches), expected)


@pytest.mark.parametrize("normalization", ["sequence", "token"])
@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize(
    ("own", "seq_kd"),
    [([True, False, False, True], False), ([False, True], False), ([True, True], False), ([True, False], True)],
    ids=["4", "2", "own", "seq_kd"],
)
def test_cross_entropy_beside_text_of_the_student(of_doubles, monkeypatch, own, seq_kd, groups, normalization):
    """Micro-batches that are drawn get text of the student, the others keep the data or get the teacher's."""
    sampled = {True: [], False: []}

    def sampler(is_students):
        def sample(self, prompts):
            sampled[is_students] += prompts
            return [completion_of(prompt.tokens) for prompt in prompts]

        return sample

    monkeypatch.setattr(AKDTrainer, "_may_regroup", groups)
    monkeypatch.setattr(AKDTrainer, "_sample_student", sampler(is_students=True))
    monkeypatch.setattr(AKDTrainer, "_sample_teacher", sampler(is_students=False))
    monkeypatch.setattr("trl_akd.akd.akd_trainer.is_on_policy", lambda *args, micro_batch, **kwargs: own[micro_batch])
    made = of_doubles(normalization=normalization, seq_kd=seq_kd)
    pattern = [each for each in own for _ in range(8 // len(own))]
    rows = rows_of(made, [True] * 8 if seq_kd else pattern)
    rows = [(*text, not is_own) for (*text, _), is_own in zip(rows, pattern, strict=True)]
    batches = [made.data_collator(each) for each in in_micro_batches(list(made.train_dataset), len(own))]
    found = step(made, batches)
    assert len(sampled[True]) == sum(pattern) and len(sampled[False]) == (8 - sum(pattern)) * seq_kd
    assert_same(found, by_hand(made, rows))


def test_steps_of_generated_text_alone_have_no_cross_entropy(trainer, monkeypatch):
    monkeypatch.setattr("trl_akd.akd.akd_trainer.is_on_policy", lambda *args, **kwargs: True)
    found = []
    for weight in (0.5, 0.0):
        made = trainer(**SETTINGS | {"ce_weight": weight}, max_new_tokens=5)
        made.train()
        found.append([log for log in made.state.log_history if "loss" in log])
    assert [list(log) for log in found[0]] == [list(log) for log in found[1]]
    for log, expected in zip(*found, strict=True):
        assert log == pytest.approx(expected, rel=1e-5)
        assert log["loss"] == pytest.approx(log["kd/divergence"])


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
