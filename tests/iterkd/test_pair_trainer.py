"""IterKD's training on one process: its loss from full logits, its reference, its cycles."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from tests import tiny
from trl_akd import AKDConfig, AKDTrainer, IterKDConfig
from trl_akd.iterkd.pair_loss import contrastive_objective
from trl_akd.iterkd.pair_trainer import PairTrainer
from trl_akd.losses import LMHead
from trl_akd.losses.contrastive import Sequences, dpo, dpo_norm, infonce, simpo, unlikelihood

from . import world


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., IterKDConfig]:
    def make(**settings: Any) -> IterKDConfig:
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "report_to": "none",
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "max_length": 64,
            "learning_rate": 1e-2,
            "gradient_checkpointing": False,
        }
        return IterKDConfig(**{**defaults, **settings})

    return make


@pytest.fixture
def trainer(config: Callable[..., IterKDConfig]) -> Callable[..., PairTrainer]:
    """Create a trainer of a tiny student; settings that are not arguments of the trainer go to the configuration."""

    def make(model: Any = None, teacher_model: Any = None, **settings: Any) -> PairTrainer:
        names = ("train_dataset", "eval_dataset", "peft_config", "callbacks", "data_collator")
        given = {"train_dataset": world.pairs(8), **{name: settings.pop(name) for name in names if name in settings}}
        return PairTrainer(
            model or tiny.model(), teacher_model, args=config(**settings), processing_class=tiny.tokenizer(), **given
        )

    return make


OWN = ("iterkd/supervised_loss", "iterkd/contrastive_loss", "iterkd/margin", "iterkd/accuracy")


def logs(trainer, key):
    return [log[key] for log in trainer.state.log_history if key in log]


def teacher():
    return tiny.model("qwen2", hidden=48, seed=3)


def parameters(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


# The loss


def token_log_probs(model, pair, answer):
    """Log-probabilities of one answer's tokens, from the model's own logits, without padding."""
    ids = torch.tensor([[*pair["prompt"], *answer]])
    found = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return found[len(pair["prompt"]) - 1 :]


def by_hand(name, model, frozen, pairs):
    """The contrastive loss of some pairs, one by one."""
    total = []
    for pair in pairs:
        if not pair["rejected"]:
            continue
        found = {side: [token_log_probs(net, pair, answer) for answer in (pair["completion"], *pair["rejected"])]
                 for side, net in (("policy", model), ("frozen", frozen))}  # fmt: skip
        if name == "unlikelihood":
            terms = [unlikelihood(one, torch.ones_like(one, dtype=torch.bool)) for one in found["policy"][1:]]
            total.append(torch.stack(terms).mean())
            continue
        sums, reference = (torch.stack([one.sum() for one in found[side]]) for side in ("policy", "frozen"))
        lengths = torch.tensor([len(one) for one in found["policy"]])
        loss = {"dpo": dpo, "dpo_norm": dpo_norm, "simpo": simpo, "infonce": infonce}[name]
        right, wrong = (
            Sequences(*(column[part].reshape(shape) for column in (sums, lengths, reference.detach())))
            for part, shape in ((slice(1), (1,)), (slice(1, None), (1, -1)))
        )
        total.append(loss(right, wrong).loss[0])
    return torch.stack(total).mean()


@pytest.mark.parametrize("name", ["dpo", "dpo_norm", "simpo", "unlikelihood", "infonce"])
def test_loss_equals_that_of_full_logits(trainer, name):
    """Value and gradients of cross-entropy plus contrastive loss with a frozen copy, after updates of the student."""
    made = trainer(contrastive_loss=name, contrastive_weight=0.7)
    frozen = tiny.model()
    made.train()
    model, pairs = made.model, list(made.train_dataset)
    if made.args.needs_reference:
        assert len(made._reference) == sum(1 + len(pair["rejected"]) for pair in pairs)
    supervised = torch.stack([-token_log_probs(model, pair, pair["completion"]).mean() for pair in pairs]).mean()
    expected = supervised + 0.7 * by_hand(name, model, frozen, pairs)
    wanted = list(model.parameters())
    expected_gradients = torch.autograd.grad(expected, wanted)

    batches, items = made.get_batch_samples(
        iter([made.data_collator(pairs[:3]), made.data_collator(pairs[3:])]), 2, torch.device("cpu")
    )
    assert items.tolist() == [8, 6]
    found = sum(made.compute_loss(model, batch, num_items_in_batch=items) for batch in batches)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)
    for gradient, reference in zip(torch.autograd.grad(found, wanted), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("words", [tiny.VOCABULARY, tiny.VOCABULARY - 20], ids=["one vocabulary", "smaller teacher"])
@pytest.mark.parametrize("name", ["simpo", "unlikelihood"])
def test_loss_with_a_teacher_equals_that_of_full_logits(trainer, name, words):
    """Value and gradients of divergence, cross-entropy and contrastive loss, which share passes over the LM head."""
    settings = {"beta_strategy": "fixed", "beta": 0.3, "ce_weight": 0.5, "kd_temperature": 2.0}
    frozen = tiny.model("qwen2", vocabulary=words, hidden=48, seed=3).double().eval()
    made = trainer(
        tiny.model().double(), frozen, contrastive_loss=name, contrastive_weight=0.7, loss_chunk_size=7, **settings
    )
    model, pairs = made.model, list(made.train_dataset)
    supervised = []
    for pair in pairs:
        ids, start = torch.tensor([[*pair["prompt"], *pair["completion"]]]), len(pair["prompt"])
        q, p = (net(input_ids=ids).logits[0, start - 1 : -1, :words] for net in (model, frozen))
        nll = torch.nn.functional.cross_entropy(q, ids[0, start:], reduction="none")
        log_q, log_p = (logits.div(2.0).log_softmax(-1) for logits in (q, p.detach()))
        mix = (0.7 * log_p.exp() - 0.3 * log_q.exp()) * (log_p - log_q)
        supervised.append((mix.sum(-1) + 0.5 * nll).mean())
    expected = torch.stack(supervised).mean() + 0.7 * by_hand(name, model, frozen, pairs)
    wanted = list(model.parameters())
    expected_gradients = torch.autograd.grad(expected, wanted)

    batches, items = made.get_batch_samples(
        iter([made.data_collator(pairs[:3]), made.data_collator(pairs[3:])]), 2, torch.device("cpu")
    )
    found = sum(made.compute_loss(model, batch, num_items_in_batch=items) for batch in batches)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-7)
    for gradient, reference in zip(torch.autograd.grad(found, wanted), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("words", "passes"),
    [(None, (2, 2)), (tiny.VOCABULARY, (2, 2)), (tiny.VOCABULARY - 20, (3, 2))],
    ids=["no teacher", "one vocabulary", "smaller teacher"],
)
def test_how_often_the_head_projects_each_answer(trainer, monkeypatch, words, passes):
    """Passes of correct and of faulty answers; prompts and padding are not projected."""
    frozen = None if words is None else tiny.model("qwen2", vocabulary=words, hidden=48)
    made = trainer(tiny.model(), frozen, contrastive_loss="simpo")
    batch = made.data_collator([pair for pair in made.train_dataset if pair["rejected"]])
    targets, width, projected = made._targets(batch), made.model.config.hidden_size, 0
    project = LMHead.project

    def counted(head, hidden, out):
        nonlocal projected
        projected += len(hidden) if hidden.shape[1] == width else 0
        return project(head, hidden, out)

    [[inputs], items] = made.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    monkeypatch.setattr(LMHead, "project", counted)
    made.compute_loss(made.model, inputs, num_items_in_batch=items)
    lengths = (targets.labels != -100).sum(dim=1)
    correct, faulty = lengths[: targets.pairs].sum().item(), lengths[targets.pairs :].sum().item()
    assert faulty > 0
    assert projected == passes[0] * correct + passes[1] * faulty


def test_the_reference_is_a_frozen_copy(trainer):
    made = trainer()
    frozen = tiny.model()
    made.train()
    expected = [token_log_probs(frozen, pair, answer).sum().item()
                for pair in made.train_dataset for answer in (pair["completion"], *pair["rejected"])]  # fmt: skip
    torch.testing.assert_close(made._reference, torch.tensor(expected), rtol=1e-5, atol=1e-4)
    first = logs(made, "iterkd/contrastive_loss")[0]
    assert first == pytest.approx(math.log(2), abs=1e-5), "nothing has moved yet"


@pytest.mark.parametrize("settings", [{"contrastive_weight": 0.0}, {"pairs": "without faults"}])
def test_without_faults_it_is_akd(trainer, config, settings):
    rows = world.pairs(8, most_faults=0 if "pairs" in settings else 3)
    settings.pop("pairs", None)
    ours = trainer(tiny.model(), teacher(), train_dataset=rows, max_steps=4, **settings)
    own = {"contrastive_weight", "contrastive_loss", "max_faults", "objective", "remove_unused_columns"}
    given = {
        name: value for name, value in vars(config(max_steps=4)).items() if name in AKDConfig.__dataclass_fields__
    }
    same = ("output_dir", "use_cpu", "report_to", "max_steps", "per_device_train_batch_size", "logging_steps",
            "save_strategy", "max_length", "learning_rate", "gradient_checkpointing")  # fmt: skip
    akd = AKDTrainer(
        tiny.model(), teacher(), args=AKDConfig(**{name: given[name] for name in same if name not in own}),
        train_dataset=rows.remove_columns("rejected"), processing_class=tiny.tokenizer(),
    )  # fmt: skip
    for made in (ours, akd):
        made.train()
    for key in ("loss", "grad_norm", "kd/beta", "kd/forward_kl", "num_tokens"):
        assert logs(ours, key) == logs(akd, key), key
    for name, value in akd.model.named_parameters():
        assert torch.equal(value, ours.model.get_parameter(name)), name
    assert not logs(ours, "iterkd/contrastive_loss")


def test_training_increases_the_margin(trainer):
    made = trainer(max_steps=30, learning_rate=3e-3, contrastive_weight=1.0)
    made.train()
    assert all(len(logs(made, key)) == 30 for key in OWN)
    assert logs(made, "loss") == pytest.approx([a + b for a, b in zip(*map(logs, [made] * 2, OWN[:2]), strict=True)])
    assert sum(logs(made, "iterkd/contrastive_loss")[-4:]) < 0.5 * 4 * math.log(2)
    assert logs(made, "iterkd/margin")[-1] > 0.5 and logs(made, "iterkd/accuracy")[-1] == 1
    assert not logs(made, "kd/beta")


def test_evaluation_is_supervised(trainer):
    rows = world.pairs(7, seed=1)
    results = [trainer(eval_dataset=rows, per_device_eval_batch_size=size).evaluate() for size in (1, 7)]
    assert results[0]["eval_loss"] == pytest.approx(results[1]["eval_loss"], rel=1e-5)
    assert results[0]["eval_loss"] == results[0]["eval_iterkd/supervised_loss"]
    assert "eval_iterkd/margin" not in results[0]


def test_the_teacher_gets_only_correct_answers(trainer, monkeypatch):
    made = trainer(None, teacher(), objective="akd")
    batch = made.data_collator(list(made.train_dataset))
    seen = made._targets(batch).teacher_inputs["input_ids"]
    width = max(len(pair["prompt"]) + len(pair["completion"]) for pair in made.train_dataset)
    assert seen.shape == (8, width) and len(batch["input_ids"]) > 8


# Cycles


@pytest.mark.end_to_end
def test_cycles_are_independent(trainer, tmp_path):
    both = trainer(train_dataset=None, max_steps=3)
    one, two = world.pairs(8), world.pairs(10, seed=5)
    both.train_on(one, 0, tmp_path / "0")
    both.save_model(str(tmp_path / "student"))
    both.train_on(two, 1, tmp_path / "1")
    second = trainer(tiny.model(seed=9), train_dataset=None, max_steps=3)
    second.load_student(tmp_path / "student")
    second.train_on(two, 1, tmp_path / "2")
    for key in ("loss", "grad_norm", "learning_rate", "num_tokens", *OWN):
        assert logs(second, key) == logs(both, key), key
    assert both.args.output_dir == second.args.output_dir and both.args.seed == 42
    for name, value in parameters(both).items():
        assert torch.equal(value, parameters(second)[name]), name
    [[text]] = both.student_generator().generate(["def"], max_new_tokens=4)
    [[same]] = second.student_generator().generate(["def"], max_new_tokens=4)
    assert text == same


@pytest.mark.end_to_end
def test_a_cycle_resumes(trainer, tmp_path):
    settings = {"train_dataset": None, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(**settings)
    whole.train_on(world.pairs(8), 2, tmp_path / "2")
    resumed = trainer(**settings)
    resumed.train_on(world.pairs(8), 2, tmp_path / "2", resume_from_checkpoint=str(tmp_path / "2" / "checkpoint-2"))
    assert logs(resumed, "iterkd/margin") == logs(whole, "iterkd/margin")
    for name, value in parameters(whole).items():
        assert torch.equal(value, parameters(resumed)[name]), name
    with pytest.raises(ValueError, match=r"whose pairs had \d+ answers, but these have \d+"):
        resumed.train_on(world.pairs(9), 2, tmp_path / "2", resume_from_checkpoint=True)
    (tmp_path / "2" / "checkpoint-2" / "iterkd_reference.pt").unlink()
    with pytest.raises(ValueError, match=r"has no iterkd_reference\.pt"):
        resumed.train_on(world.pairs(8), 2, tmp_path / "2", str(tmp_path / "2" / "checkpoint-2"))


@pytest.mark.end_to_end
@pytest.mark.parametrize("settings", [{"bf16": True}, {"gradient_checkpointing": True}, {"lora": True}])
def test_repeated_training_variants(trainer, tmp_path, settings):
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM") if settings.pop("lora", False) else None
    made = trainer(train_dataset=None, peft_config=lora, **settings)
    forwards = []
    for cycle in range(3):
        made.train_on(world.pairs(8, seed=cycle), cycle, tmp_path / str(cycle))
        forwards.append(_depth(made.model.forward))
        made.student_generator().generate(["def"], max_new_tokens=2)
    assert len(set(forwards)) == 1, "accelerate's casts do not pile up"
    assert logs(made, "iterkd/contrastive_loss")[0] == pytest.approx(math.log(2), abs=0.02)
    made.save_model(str(tmp_path / "student"))
    before = parameters(made)
    made.train_on(world.pairs(8), 3, tmp_path / "3")
    made.load_student(tmp_path / "student")
    for name, value in parameters(made).items():
        assert torch.equal(value, before[name]), name


def _depth(function):
    depth = 0
    while hasattr(function, "__wrapped__"):
        function, depth = function.__wrapped__, depth + 1
    return depth


def test_all_pairs_without_faults(trainer, caplog, tmp_path):
    made = trainer(train_dataset=None)
    with caplog.at_level("WARNING"):
        made.train_on(world.pairs(8, most_faults=0), 0, tmp_path / "0")
    assert "No pair of the train dataset has a faulty answer" in caplog.text


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contrastive_weight": -1.0}, "`contrastive_weight` is -1.0"),
        ({"contrastive_weight": math.nan}, "`contrastive_weight` is nan"),
        ({"contrastive_loss": "orpo"}, "`contrastive_loss` is 'orpo'; choose one of 'dpo', "),
        ({"objective": "kd"}, "`objective` is 'kd'; choose one of 'akd', 'ce'"),
        ({"contrastive_beta": 0.0}, "`contrastive_beta` is 0.0"),
        ({"contrastive_loss": "simpo", "simpo_margin": math.inf}, "`simpo_margin` is inf"),
        ({"simpo_margin": 0.5}, "`simpo_margin` is 0.5, which has no effect with contrastive_loss='dpo_norm'"),
        ({"contrastive_loss": "unlikelihood", "contrastive_beta": 1.0}, "`contrastive_beta` is 1.0, which has no"),
        ({"contrastive_weight": 0.0, "max_faults": 2}, "`max_faults` is 2, which has no effect while"),
        ({"max_faults": 0}, "`max_faults` is 0; give at least 1, or set contrastive_weight=0"),
        ({"packing": True}, "`packing` is on, but batches of IterKD"),
        ({"lmbda": 0.5}, "`lmbda` is on"),
        ({"remove_unused_columns": True}, "`remove_unused_columns` is on"),
        ({"objective": "ce", "kd_temperature": 2.0}, "`kd_temperature` is 2.0, which has no effect while `objective`"),
    ],
)
def test_bad_settings(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_the_objective_follows_the_teacher(trainer):
    assert trainer().args.objective == "ce"
    assert trainer(None, teacher()).args.objective == "akd"
    with pytest.raises(ValueError, match="`teacher_model` is given, but no objective uses a teacher"):
        trainer(None, teacher(), objective="ce")
    with pytest.raises(ValueError, match=r"`kd_temperature` is 2\.0, which has no effect while `objective` is 'ce'"):
        trainer(kd_temperature=2.0)


def test_bad_input(trainer, tmp_path):
    with pytest.raises(ValueError, match="`data_collator` is given"):
        trainer(data_collator=list)
    made = trainer(train_dataset=None)
    with pytest.raises(ValueError, match="the train dataset is empty"):
        made.train_on(world.pairs(2).select([]), 0, tmp_path)
    with pytest.raises(ValueError, match="'completion' is missing"):
        made.train_on(Dataset.from_list([{"prompt": "x"}]), 0, tmp_path)
    with pytest.raises(ValueError, match="a IterableDataset"):
        made.train_on(world.pairs(2).to_iterable_dataset(), 0, tmp_path)
    with pytest.raises(ValueError, match="Can't find a valid checkpoint"):
        made.load_student(tmp_path)


def test_settings_reach_the_loss():
    args = IterKDConfig("outputs", contrastive_loss="simpo", contrastive_beta=3.0, simpo_margin=0.2, use_cpu=True)
    objective = contrastive_objective(args.contrastive_loss, args.contrastive_kwargs)
    assert objective.args[0].keywords == {"beta": 3.0, "margin": 0.2}


def test_models_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student, _ = tiny.save_pair(tmp_path)
    made = PairTrainer(student, train_dataset=world.pairs(4))
    assert isinstance(made.args, IterKDConfig) and made.args.output_dir.endswith("student-IterKD")
    made.create_model_card()
    card = (tmp_path / made.args.output_dir / "README.md").read_text()
    assert "IterKD" in card and "contrastive_loss" in card and "beta_strategy" not in card
