"""`divergence="minillm"`: text from a mixture of both models, and the policy gradient in the trainer."""

import pytest
import torch
from peft import LoraConfig

from tests import tiny
from tests.akd.test_custom_teacher import AverageTeacher, TopK
from trl_akd import AKDTrainer, CodePLANConfig, IterKDConfig
from trl_akd.akd.teacher_mix import TeacherMix, teacher_next_logits
from trl_akd.losses import LMHead, PolicyGradient
from trl_akd.teachers import DenseSignal

MINILLM = {"divergence": "minillm", "lmbda": 1.0, "temperature": 1.0, "max_new_tokens": 5}
VARIANTS = {
    "defaults": {},
    "not mixed": {"teacher_mix": 0.0},
    "sampled rewards": {"single_step": False},
    "sums": {"length_normalization": False, "clip": None},
}
PROMPTS = [[7, 8, 9, 10], [11], [12, 13, 14]]


class Opinionated:
    """Teacher that expects one token, whatever the text."""

    def __init__(self, token, log_odds):
        self.logits = torch.zeros(1, tiny.VOCABULARY)
        self.logits[0, token] = log_odds

    def forward(self, inputs):
        self.shape = inputs["input_ids"].shape

    def signal(self, student):
        return DenseSignal(torch.ones(*self.shape, 1), LMHead(self.logits.T))


def logs(made, key):
    return [log[key] for log in made.state.log_history if key in log]


def batch_of(made):
    [batch, *_] = made.get_train_dataloader()
    return batch


def gradients(made, loss):
    parameters = [parameter for parameter in made.model.parameters() if parameter.requires_grad]
    return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)


def reference(made, batch, words):
    """The surrogate from full logits, and the mean reverse KL."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        log_p = made.teacher.model(**inputs).logits[:, :-1, :words].log_softmax(-1)
    log_q = made.model(**inputs).logits[:, :-1, :words].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    weights = (labels != -100).float()
    weights /= weights.sum() if made.args.normalization == "token" else weights.sum(1, keepdim=True) * len(labels)
    nll_q, nll_p = (-each.gather(-1, labels.clamp(min=0)[..., None])[..., 0] for each in (log_q, log_p))
    settings = made.policy_gradient
    factors = settings.nll_weights(nll_q.detach(), nll_p, labels)
    reverse_kl = (log_q.exp() * (log_q - log_p)).sum(-1)
    loss = (weights * factors * nll_q).sum()
    if settings.single_step:
        loss = loss + (weights * reverse_kl).sum()
    return loss, (weights * reverse_kl).sum()


@pytest.mark.parametrize("normalization", ["sequence", "token"])
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_gradient_equals_that_of_full_logits(trainer, settings, normalization):
    student = tiny.model(vocabulary=400, seed=1)
    made = trainer(
        student, tiny.model("qwen2", seed=2), divergence_kwargs=settings, normalization=normalization, **MINILLM
    )
    batch = batch_of(made)
    made.model.train()
    expected, value = reference(made, batch, words=tiny.VOCABULARY)
    loss = made.compute_loss(made.model, batch)
    assert loss.item() == pytest.approx(value.item(), rel=1e-5)
    [means], _ = made.distillation_metrics["train"].reduce(made.accelerator)
    assert means.by_name["divergence"] == pytest.approx(value.item(), rel=1e-5)
    for found, other in zip(gradients(made, loss), gradients(made, expected), strict=True):
        torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-6 * other.abs().max().item())


@pytest.mark.parametrize("normalization", ["sequence", "token"])
def test_rows_have_the_same_gradient_in_one_batch_and_in_several(trainer, normalization):
    made = trainer(normalization=normalization, **MINILLM)
    batch = batch_of(made)
    made.model.train()
    items = made._targets(batch).items
    whole = gradients(made, made.compute_loss(made.model, batch, num_items_in_batch=items))
    parts = [
        gradients(made, made.compute_loss(made.model, {k: v[i : i + 1] for k, v in batch.items()}, False, items))
        for i in range(len(batch["labels"]))
    ]
    for expected, found in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(sum(found), expected, rtol=1e-4, atol=1e-6)


def test_equal_models_have_no_gradient(trainer, pair):
    made = trainer(None, tiny.model(seed=1), **MINILLM)
    made.model.load_state_dict(made.teacher.model.state_dict())
    made.model.train()
    batch = made._complete([batch_of(made)])[0]
    loss = made.compute_loss(made.model, batch)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert max(gradient.abs().max() for gradient in gradients(made, loss)) < 1e-5


def test_rows_without_a_target_have_no_gradient(trainer):
    made = trainer(**MINILLM)
    batch = batch_of(made)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    made.model.train()
    loss = made.compute_loss(made.model, batch)
    assert loss.item() == 0.0
    assert not any(gradient.any() for gradient in gradients(made, loss))


def test_evaluation_is_reverse_kl_on_the_data(trainer):
    data = tiny.rows(5, seed=1)
    found = trainer(eval_dataset=data, **MINILLM).evaluate()
    expected = trainer(eval_dataset=data, divergence="reverse_kl").evaluate()
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)
    assert found["eval_kd/reverse_kl"] == found["eval_kd/divergence"]


# Text


def padded(rows):
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])


def students_and_teachers(trainer):
    teacher = tiny.model("qwen2", hidden=48, vocabulary=400, seed=2)
    yield trainer(None, teacher, **MINILLM), teacher
    made = trainer(None, AverageTeacher(teacher), **MINILLM)
    yield made, teacher
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    base = tiny.model(seed=3)
    made = AKDTrainer(
        tiny.model(seed=3),
        None,
        made.args,
        train_dataset=tiny.rows(8),
        processing_class=tiny.tokenizer(),
        peft_config=lora,
    )
    yield made, base


def test_logits_of_the_next_token_are_the_teachers(trainer):
    """Whatever the teacher, and with left-padded prompts of unequal lengths."""
    following = torch.randint(3, 300, (len(PROMPTS), 6), generator=torch.Generator().manual_seed(0))
    for made, teacher in students_and_teachers(trainer):
        ids, mask = padded(PROMPTS)
        made.model.eval()
        with (
            torch.no_grad(),
            teacher_next_logits(made.teacher, made.model, made.accelerator, vocabulary_size=300) as begin,
        ):
            next_logits = begin(mask)
            for step in range(following.shape[1]):
                found = next_logits(torch.cat([ids, following[:, :step]], dim=1))
                for row, prompt in enumerate(PROMPTS):
                    alone = torch.tensor([[*prompt, *following[row, :step].tolist()]])
                    expected = teacher(alone).logits[0, -1, :300]
                    torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt_bigcode", "codegen"])
def test_logits_of_the_next_token_of_other_architectures(trainer, kind):
    teacher = tiny.model(kind, seed=2)
    made = trainer(None, teacher, **MINILLM)
    ids, mask = padded(PROMPTS)
    new = torch.tensor([[20], [21], [22]])
    with (
        torch.no_grad(),
        teacher_next_logits(made.teacher, made.model, made.accelerator, vocabulary_size=tiny.VOCABULARY) as begin,
    ):
        next_logits = begin(mask)
        next_logits(ids)
        found = next_logits(torch.cat([ids, new], dim=1))
        for row, prompt in enumerate(PROMPTS):
            expected = teacher(torch.tensor([[*prompt, *new[row].tolist()]])).logits[0, -1]
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("teacher_mix", [0.0, 0.2, 0.6])
def test_text_has_the_share_of_the_teacher(trainer, teacher_mix):
    """The student hardly ever samples the token that the teacher expects."""
    made = trainer(
        None,
        Opinionated(99, log_odds=50.0),
        divergence_kwargs={"teacher_mix": teacher_mix},
        **{**MINILLM, "max_new_tokens": 4},
    )
    prompts = torch.full((500, 3), 5)
    batch = {"prompts": prompts, "prompt_attention_mask": torch.ones_like(prompts)}
    labels = made._complete([batch])[0]["labels"]
    tokens = labels[labels != -100]
    assert len(tokens) > 1500
    share = (tokens == 99).float().mean().item()
    assert abs(share - teacher_mix - (1 - teacher_mix) / tiny.VOCABULARY) < 4 * 0.5 / len(tokens) ** 0.5


def test_mixture_has_no_tokens_that_are_not_shared(trainer):
    student = tiny.model(vocabulary=400)
    made = trainer(student, tiny.model("qwen2"), divergence_kwargs={"teacher_mix": 0.5}, **MINILLM)
    prompts = torch.full((50, 3), 5)
    batch = {"prompts": prompts, "prompt_attention_mask": torch.ones_like(prompts)}
    assert made._complete([batch])[0]["input_ids"].max() < tiny.VOCABULARY


def test_processor_returns_normalized_log_probabilities():
    processor = TeacherMix(lambda ids: torch.randn(2, 7), 0.3)
    found = processor(torch.zeros(2, 3, dtype=torch.long), torch.randn(2, 5))
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2))


# Training


def test_training_with_accumulation_and_a_custom_teacher(trainer):
    teacher = AverageTeacher(tiny.model("qwen2", seed=2))
    for given in (None, teacher):
        made = trainer(None, given, gradient_accumulation_steps=2, **MINILLM)
        made.train()
        assert len(logs(made, "loss")) == 2
        assert logs(made, "loss") == pytest.approx(logs(made, "kd/reverse_kl"), rel=1e-5)


def test_resumed_run_equals_the_uninterrupted_one(trainer, tmp_path):
    settings = {**MINILLM, "max_steps": 2, "save_strategy": "steps", "save_steps": 1, "output_dir": str(tmp_path)}
    whole = trainer(**settings)
    whole.train()
    resumed = trainer(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=1e-7)
    other = trainer(**{**settings, "divergence_kwargs": {"teacher_mix": 0.0}})
    with pytest.raises(ValueError, match="resume with the old divergence_kwargs"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_reverse_kl_of_completions_falls(trainer):
    """The long-term part is followed with the right sign: sampled rewards alone train the student."""
    student, teacher = tiny.model(vocabulary=300, seed=1), Opinionated(99, log_odds=4.0)
    teacher.logits = teacher.logits[:, :300]
    teacher.vocabulary_size = 300
    made = trainer(
        student,
        teacher,
        train_dataset=tiny.rows(64),
        divergence_kwargs={"single_step": False},
        **{**MINILLM, "max_steps": 8, "per_device_train_batch_size": 32, "lr_scheduler_type": "constant"},
    )
    made.train()
    found = logs(made, "kd/divergence")
    assert sum(found[-3:]) < 0.95 * sum(found[:3]), "with the wrong sign it would rise"


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lmbda": 0.0}, "`lmbda` is 0.0; .*so set lmbda=1.0[.]"),
        ({"lmbda": 0.5}, "`lmbda` is 0.5"),
        ({"temperature": 0.9}, "`temperature` is 0.9; .*set temperature=1.0[.]"),
        (
            {"lmbda": 0.0, "temperature": 0.9},
            "`lmbda` is 0.0 and `temperature` is 0.9; .*lmbda=1.0 and temperature=1.0",
        ),
        ({"kd_temperature": 2.0}, "`kd_temperature` is 2.0; .*set kd_temperature=1.0"),
        ({"seq_kd": True}, "`seq_kd` is True; .*set seq_kd=False"),
        ({"ce_weight": 0.5}, "`ce_weight` is 0.5; .*set ce_weight=0.0"),
        (
            {"divergence_kwargs": {"alpha": 0.2}},
            "`divergence_kwargs` is .*has no knob 'alpha'; it takes 'teacher_mix'",
        ),
        ({"divergence_kwargs": {"teacher_mix": 1}}, "`divergence_kwargs` is .*teacher_mix is 1"),
        ({"packing": True}, "`packing` is on together with `lmbda`"),
        ({"beta_initial_values": [0.5]}, "`beta_initial_values` is .*has no effect with divergence='minillm'"),
    ],
)
def test_bad_settings_are_named_with_a_remedy(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**{**MINILLM, **settings})


def test_settings_may_be_text(config):
    settings = config(divergence_kwargs='{"teacher_mix": 0, "length_normalization": false}', **MINILLM)
    assert settings.make_policy_gradient() == PolicyGradient(teacher_mix=0, length_normalization=False)
    assert config(divergence="reverse_kl").make_policy_gradient() is None


@pytest.mark.parametrize("make", [CodePLANConfig, IterKDConfig])
def test_methods_on_given_text_refuse_it(make, tmp_path):
    with pytest.raises(ValueError, match=r"`divergence` is 'minillm', .*trains on given text; choose another"):
        make(str(tmp_path), divergence="minillm", **tiny.SHORT_RUN)


@pytest.mark.parametrize("teacher_mix", [0.0, 0.2])
def test_sparse_signal_is_refused(trainer, teacher_mix):
    teacher = TopK(tiny.model("qwen2", seed=2), 8)
    made = trainer(None, teacher, divergence_kwargs={"teacher_mix": teacher_mix}, **MINILLM)
    with pytest.raises(ValueError, match=r"`teacher_model` returns a sparse signal, .*or set divergence='reverse_kl'"):
        made.train()
