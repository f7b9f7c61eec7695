"""A `teacher_model` of one's own class."""

from contextlib import contextmanager

import pytest
import torch

from tests import tiny
from trl_akd import AKDTrainer, CodePLANConfig, CodePLANTrainer
from trl_akd.heads import LMHead, final_hidden_states, lm_head


class Halves:
    """Average the logits of two language models."""

    def __init__(self, *models):
        self.models = models

    @contextmanager
    def observe(self, inputs):
        self.inputs = inputs
        yield

    def knowledge(self, student):
        with torch.no_grad():
            hidden = [final_hidden_states(model, self.inputs) for model in self.models]
        weights = [lm_head(model).weight.detach() / len(self.models) for model in self.models]
        return torch.cat(hidden, dim=-1), LMHead(torch.cat(weights, dim=1))


def losses(made):
    made.train()
    return [log["loss"] for log in made.state.log_history if "loss" in log]


def test_a_model_twice_is_the_model(pair, config):
    teacher = tiny.model("qwen2", hidden=48, seed=2)
    settings = {"train_dataset": tiny.rows(8), "processing_class": tiny.tokenizer()}
    expected = losses(AKDTrainer(tiny.model(seed=1), teacher, config(), **settings))
    own = AKDTrainer(tiny.model(seed=1), Halves(teacher, teacher), config(), **settings)
    assert own.teacher_model is None
    assert losses(own) == pytest.approx(expected, rel=1e-4)


def test_the_logits_are_averaged(pair, config):
    models = tiny.model("qwen2", hidden=48, seed=2), tiny.model("llama", seed=3)
    made = AKDTrainer(
        tiny.model(seed=1),
        Halves(*models),
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
    teacher = Halves(tiny.model("qwen2", vocabulary=300))
    teacher.vocabulary_size = 300
    made = AKDTrainer(pair[0], teacher, config(lmbda=1.0, max_new_tokens=4), train_dataset=tiny.rows(8))
    assert made.vocabulary_size == 300
    assert all(loss > 0 for loss in losses(made))
    teacher.vocabulary_size = 50
    with pytest.raises(ValueError, match="share only the ids below 50"):
        AKDTrainer(pair[0], teacher, config(), train_dataset=tiny.rows(8))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"seq_kd": True}, "`seq_kd` is set, but a `Teacher` of your own writes no text"),
        ({"teacher_device": "cpu"}, "`teacher_device` is set, but a `Teacher` of your own chooses"),
    ],
)
def test_options_of_a_loaded_teacher(pair, config, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        AKDTrainer(pair[0], Halves(tiny.model()), config(**settings), train_dataset=tiny.rows(4))


def test_codeplan_learns_from_it_too(pair, tmp_path):
    from datasets import Dataset

    rows = Dataset.from_dict({"problem": ["Add."] * 4, "solution": ["a + b"] * 4, "plan": ["Use +."] * 4})
    settings = {**tiny.SHORT_RUN, "output_dir": str(tmp_path), "max_length": 256}
    args = CodePLANConfig(**settings, code_objective="akd")
    made = CodePLANTrainer(pair[0], Halves(tiny.model("qwen2", seed=2)), args, train_dataset=rows)
    assert all(loss > 0 for loss in losses(made))
