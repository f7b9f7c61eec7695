"""Texts that are longer than a model's table of positions are refused before training."""

import pytest
from datasets import Dataset

from tests import tiny
from tests.codeplan import world
from trl_akd import AKDConfig, AKDTrainer, CodePLANConfig, CodePLANTrainer, IterKDConfig
from trl_akd.iterkd.pair_trainer import PairTrainer

LONG = Dataset.from_list([{"prompt": "a" * 20, "completion": "b" * 30}] * 4)
WITH_TABLES = ("gpt_bigcode", "codegen")


def model(family, positions):
    return tiny.model(family, n_positions=positions, n_ctx=positions)


@pytest.mark.parametrize("family", WITH_TABLES)
@pytest.mark.parametrize("role", ["model", "teacher_model"])
@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            {"train_dataset": LONG},
            "the longest row has 51 tokens, but the {} has positions for 48; .*`max_length` to at most",
        ),
        (
            {"train_dataset": LONG, "max_length": None},
            "the longest row has 51 tokens, but the {} has positions for 48",
        ),
        ({"eval_dataset": LONG}, "the longest row has 51 tokens, but the {} has positions for 48"),
        ({"lmbda": 1.0, "max_new_tokens": 47}, "and `max_new_tokens` is 47, but the {} has positions for 48"),
        ({"seq_kd": True, "max_new_tokens": 47}, "and `max_new_tokens` is 47, but the {} has positions for 48"),
        ({"max_length": 40, "pad_to_multiple_of": 32, "train_dataset": LONG}, "`pad_to_multiple_of` is 32, .* to 64"),
    ],
)
def test_texts_longer_than_the_table(trainer, family, role, settings, complaint):
    short = Dataset.from_list([{"prompt": "a" * 20, "completion": "b"}] * 4)
    models = {role: model(family, 48)}
    name = {"model": "student", "teacher_model": "teacher"}[role]
    with pytest.raises(ValueError, match=complaint.format(name)):
        trainer(**{"train_dataset": short, "max_length": 64, **models, **settings})


@pytest.mark.parametrize("family", WITH_TABLES)
@pytest.mark.parametrize(
    "settings",
    [
        {"max_length": 64, "train_dataset": Dataset.from_list([{"prompt": "a" * 20, "completion": "b" * 27}] * 4)},
        {"max_length": 48, "train_dataset": LONG.to_iterable_dataset()},
        {"max_length": 48, "train_dataset": LONG, "packing": True},
        {"max_length": 96, "train_dataset": tiny.rows(8).select([1, 2]), "packing": True},
        {"max_length": 64, "train_dataset": LONG, "lmbda": 1.0, "max_new_tokens": 28},
    ],
)
def test_texts_that_fit(trainer, family, settings):
    made = trainer(model=model(family, 48), teacher_model=model(family, 48), **settings)
    made.train()
    assert made.state.global_step == 2


def test_a_stream_that_may_have_longer_texts_is_warned_of(trainer, caplog):
    trainer(model=model("codegen", 48), train_dataset=LONG.to_iterable_dataset(), max_length=64)
    assert "`max_length` is 64, but the student has positions for 48 tokens" in caplog.text


def test_models_that_compute_positions_have_no_limit(trainer):
    made = trainer(model=tiny.model(max_position_embeddings=16), max_length=64, train_dataset=LONG)
    made.train()
    assert made.state.global_step == 2


@pytest.mark.parametrize("positions", [40, 256])
@pytest.mark.parametrize(
    ("trainer_class", "config_class", "rows"),
    [
        (CodePLANTrainer, CodePLANConfig, world.problems(4)),
        (PairTrainer, IterKDConfig, LONG.add_column("rejected", [[], ["c" * 8], ["c" * 40], []])),
        (AKDTrainer, AKDConfig, LONG),
    ],
)
def test_all_trainers(pair, tmp_path, trainer_class, config_class, rows, positions):
    teacher = {AKDTrainer: pair[1]}.get(trainer_class)
    args = config_class(**{**tiny.SHORT_RUN, "output_dir": str(tmp_path), "max_length": 256})

    def make():
        return trainer_class(
            model("gpt_bigcode", positions), teacher, args, train_dataset=rows, processing_class=tiny.tokenizer()
        )

    if positions == 40:
        with pytest.raises(ValueError, match=r"the longest row has \d+ tokens, but the student has positions for 40"):
            make()
    else:
        make().train()
