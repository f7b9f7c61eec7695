"""Custom classes as `teacher_model`, with dense and sparse signals."""

from contextlib import contextmanager

import pytest
import torch

from tests import tiny
from tests.iterkd import world
from trl_akd import AKDTrainer, CodePLANConfig, CodePLANTrainer, IterKDConfig
from trl_akd.heads import final_hidden_states, lm_head
from trl_akd.iterkd.pair_trainer import PairTrainer
from trl_akd.losses import LMHead
from trl_akd.teachers import DenseSignal, SparseSignal


class AverageTeacher:
    """Average the logits of language models."""

    def __init__(self, *models):
        self.models = models

    def forward(self, inputs):
        with torch.no_grad():
            self.hidden = [final_hidden_states(model, inputs) for model in self.models]

    def signal(self, student):
        weights = [lm_head(model).weight.detach() / len(self.models) for model in self.models]
        return DenseSignal(torch.cat(self.hidden, dim=-1), LMHead(torch.cat(weights, dim=1)))


class TopK:
    """Return the most probable tokens of a language model and the total probability of the others, inside the
    context."""

    def __init__(self, model, k, temperature=1.0):
        self.model, self.k, self.temperature = model, k, temperature

    @contextmanager
    def forward(self, inputs):
        with torch.no_grad():
            self.logits = self.model(**inputs).logits
        yield
        self.logits = None

    def signal(self, student):
        return SparseSignal.from_logits(self.logits, self.k, self.temperature)


class DeprecatedTeacher:
    """A teacher with the deprecated methods."""

    vocabulary_size = 300

    def __init__(self, model):
        self.model = model

    @contextmanager
    def observe(self, inputs):
        self.inputs = inputs
        yield

    def knowledge(self, student):
        with torch.no_grad():
            return final_hidden_states(self.model, self.inputs), lm_head(self.model)


def losses(made):
    made.train()
    return [log["loss"] for log in made.state.log_history if "loss" in log]


def test_average_of_equal_models_is_the_model(pair, config):
    teacher = tiny.model("qwen2", hidden=48, seed=2)
    settings = {"train_dataset": tiny.rows(8), "processing_class": tiny.tokenizer()}
    expected = losses(AKDTrainer(tiny.model(seed=1), teacher, config(), **settings))
    own = AKDTrainer(tiny.model(seed=1), AverageTeacher(teacher, teacher), config(), **settings)
    assert own.teacher_model is None
    assert losses(own) == pytest.approx(expected, rel=1e-4)


def test_the_logits_are_averaged(pair, config):
    models = tiny.model("qwen2", hidden=48, seed=2), tiny.model("llama", seed=3)
    made = AKDTrainer(
        tiny.model(seed=1),
        AverageTeacher(*models),
        config(beta_strategy="fixed", beta=0.0, normalization="token"),
        train_dataset=tiny.rows(8),
        processing_class=tiny.tokenizer(),
    )
    batch = made.data_collator([made.train_dataset[index] for index in range(3)])
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        taught = torch.stack([model(**inputs).logits for model in models]).mean(0).log_softmax(-1)
        learned = made.model(**inputs).logits.log_softmax(-1)
        divergence = (taught.exp() * (taught - learned)).sum(-1)[:, :-1]
        loss = made.compute_loss(made.model, batch)
    assert float(loss) == pytest.approx(float(divergence[batch["labels"][:, 1:] != -100].mean()), rel=1e-4)


def test_a_smaller_vocabulary(pair, config):
    teacher = AverageTeacher(tiny.model("qwen2", vocabulary=300))
    teacher.vocabulary_size = 300
    made = AKDTrainer(pair[0], teacher, config(lmbda=1.0, max_new_tokens=4), train_dataset=tiny.rows(8))
    assert made.vocabulary_size == 300
    assert all(loss > 0 for loss in losses(made))
    teacher.vocabulary_size = 50
    with pytest.raises(ValueError, match="share only the ids below 50"):
        AKDTrainer(pair[0], teacher, config(), train_dataset=tiny.rows(8))


def test_a_smaller_vocabulary_in_a_cycle(pair, tmp_path):
    teacher = AverageTeacher(tiny.model("qwen2", vocabulary=300))
    teacher.vocabulary_size = 50
    args = IterKDConfig(str(tmp_path / "run"), max_length=64, **tiny.SHORT_RUN)
    trainer = PairTrainer(pair[0], teacher, args)
    with pytest.raises(ValueError, match=r"The train dataset contains .* share only the ids below 50"):
        trainer.train_on(world.pairs(4), 0, tmp_path / "cycle")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"seq_kd": True}, "`seq_kd` is set, but a custom `Teacher` generates no text"),
        ({"teacher_device": "cpu"}, "`teacher_device` is set, but a custom `Teacher` chooses"),
    ],
)
def test_options_of_a_loaded_teacher(pair, config, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        AKDTrainer(pair[0], AverageTeacher(tiny.model()), config(**settings), train_dataset=tiny.rows(4))


def test_codeplan_accepts_a_custom_teacher(pair, tmp_path):
    from datasets import Dataset

    rows = Dataset.from_dict({"problem": ["Add."] * 4, "solution": ["a + b"] * 4, "plan": ["Use +."] * 4})
    settings = {**tiny.SHORT_RUN, "output_dir": str(tmp_path), "max_length": 256}
    args = CodePLANConfig(**settings, code_objective="akd")
    made = CodePLANTrainer(pair[0], AverageTeacher(tiny.model("qwen2", seed=2)), args, train_dataset=rows)
    assert all(loss > 0 for loss in losses(made))


@pytest.mark.parametrize("settings", [{}, {"divergence": "jsd"}, {"lmbda": 1.0, "max_new_tokens": 4}])
def test_sparse_signal_of_all_tokens_is_exact(pair, config, settings):
    teacher = tiny.model("qwen2", hidden=48, seed=2)
    common = {"train_dataset": tiny.rows(8), "eval_dataset": tiny.rows(4), "processing_class": tiny.tokenizer()}
    settings = {"eval_strategy": "steps", "eval_steps": 1, **settings}
    dense = AKDTrainer(tiny.model(seed=1), teacher, config(**settings), **common)
    sparse = AKDTrainer(tiny.model(seed=1), TopK(teacher, tiny.VOCABULARY), config(**settings), **common)
    for made in (dense, sparse):
        made.train()
    for ours, theirs in zip(sparse.state.log_history, dense.state.log_history, strict=True):
        compared = {key for key in theirs if "kd/" in key or key in ("loss", "grad_norm", "eval_loss", "entropy")}
        assert {key: ours[key] for key in compared} == pytest.approx({key: theirs[key] for key in compared}, rel=1e-4)
    assert ("kd/beta" in sparse.state.log_history[0]) == ("divergence" not in settings)


def test_sparse_signal_lowers_the_full_divergence(pair, config):
    """Training on four tokens and a tail lowers the divergence between the full distributions."""
    teacher = tiny.model("qwen2", hidden=48, seed=2)
    student = tiny.model(seed=1)
    settings = {"train_dataset": tiny.rows(8), "processing_class": tiny.tokenizer()}
    made = AKDTrainer(student, TopK(teacher, 4), config(max_steps=12), **settings)
    whole = AKDTrainer(student, teacher, config(), eval_dataset=tiny.rows(8), **settings)
    before = whole.evaluate()
    found = losses(made)
    after = whole.evaluate()
    assert found[-1] < 0.7 * found[0]
    assert after["eval_kd/forward_kl"] < 0.9 * before["eval_kd/forward_kl"]


def test_a_sparse_teacher_at_another_temperature(pair, config):
    teacher = TopK(tiny.model("qwen2", seed=2), 4, temperature=2.0)
    with pytest.raises(ValueError, match=r"temperature is 1\.0, but the teacher's log-probabilities"):
        AKDTrainer(pair[0], teacher, config(), train_dataset=tiny.rows(8)).train()
    assert losses(AKDTrainer(pair[0], teacher, config(kd_temperature=2.0), train_dataset=tiny.rows(8)))


def test_deprecated_interface(pair, config):
    model = tiny.model("qwen2", vocabulary=300, seed=2)
    with pytest.warns(
        FutureWarning, match=r"DeprecatedTeacher\) has the methods `observe` and `knowledge`.*deprecated"
    ):
        made = AKDTrainer(pair[0], DeprecatedTeacher(model), config(), train_dataset=tiny.rows(8))
    teacher = AverageTeacher(model)
    teacher.vocabulary_size = 300
    expected = losses(AKDTrainer(pair[0], teacher, config(), train_dataset=tiny.rows(8)))
    assert losses(made) == pytest.approx(expected)
