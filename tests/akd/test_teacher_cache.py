"""Training from a teacher cache: as with the teacher in memory, whatever the batches; and refusals of wrong caches."""

import json
import os
import shutil
import signal as signals
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.codeplan import world
from tests.iterkd import world as pairs_world
from trl_akd import AKDConfig, AKDTrainer, CodePLANConfig, CodePLANTrainer, IterKDConfig, IterKDTrainer
from trl_akd.akd import cache_creation
from trl_akd.akd.cache_creation import create_cache
from trl_akd.akd.teacher_cache import is_teacher, unpacked_rows
from trl_akd.iterkd.pair_trainer import PairTrainer
from trl_akd.ledger import acquire_lock
from trl_akd.losses.fused_linear import fused_divergence
from trl_akd.losses.signals import NO_TOKEN, DenseSignal, SampledSignal, SparseSignal
from trl_akd.teachers import CachedTeacher
from trl_akd.teachers import cached as cached_module
from trl_akd.teachers.cache_card import describe_cache
from trl_akd.teachers.cache_files import (
    CachedRow,
    Manifest,
    read_manifest,
    row_key,
    shard_path,
    write_manifest,
    write_shard,
)
from trl_akd.teachers.sparse_codec import SparseCodec

KINDS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "int8"},
    "sparse": {"kind": "sparse", "top_k": 16},
    "all tokens": {"kind": "sparse", "top_k": tiny.VOCABULARY},
    "top": {"top_k": 16},
    "int8 top": {"dtype": "int8", "top_k": 16},
}
DATA = {"train_dataset": tiny.rows(8), "eval_dataset": tiny.rows(5, seed=1)}


def make(pair: tuple[str, str], folder: Path, **settings: Any) -> AKDTrainer:
    own = {"output_dir": str(folder / "run"), "max_length": 64, "eval_strategy": "steps", "eval_steps": 2}
    data = {name: settings.pop(name, rows) for name, rows in DATA.items()}
    return AKDTrainer(pair[0], args=AKDConfig(**{**tiny.SHORT_RUN, **own, **settings}), **data)


@pytest.fixture(scope="module")
def caches(pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("caches")
    trainer = make(pair, folder, teacher_model_name_or_path=pair[1])
    for name, settings in KINDS.items():
        create_cache(trainer, folder / name, **settings, data={"dataset_name": "toy"})
    return {name: folder / name for name in KINDS}


def history(trainer: AKDTrainer) -> list[dict[str, float]]:
    trainer.train()
    compared = ("loss", "grad_norm", "eval_loss", "kd/forward_kl", "kd/reverse_kl", "kd/beta", "eval_kd/teacher_nll")
    return [{key: log[key] for key in compared if key in log} for log in trainer.state.log_history]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalization": "token", "kd_temperature": 2.0, "ce_weight": 0.5},
        pytest.param(
            {"divergence": "reverse_kl", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 3},
            marks=pytest.mark.slow,
        ),
        pytest.param({"divergence": "akl"}, marks=pytest.mark.slow),
        {"packing": True, "eval_packing": True},
        pytest.param({"padding_free": True}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_training_equals_that_with_the_teacher_in_memory(pair, caches, tmp_path, settings):
    expected = history(make(pair, tmp_path, teacher_model_name_or_path=pair[1], **settings))
    trainer = make(pair, tmp_path, teacher_cache=str(caches["float32"]), **settings)
    assert trainer.teacher_model is None
    found = history(trainer)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("bfloat16", 2e-3), pytest.param("int8", 5e-3, marks=pytest.mark.slow), ("all tokens", 1e-2)],
)
def test_smaller_signals_are_close(pair, caches, tmp_path, name, tolerance):
    expected = history(make(pair, tmp_path, teacher_model_name_or_path=pair[1]))
    for ours, theirs in zip(history(make(pair, tmp_path, teacher_cache=str(caches[name]))), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=1e-3)


@pytest.mark.parametrize("name", ["top", pytest.param("int8 top", marks=pytest.mark.slow)])
def test_a_sample_of_all_tokens_is_exact(pair, caches, tmp_path, name):
    """Evaluations are exact with few samples, too."""
    settings = {"teacher_cache": str(caches[name]), "ce_weight": 0.5}
    expected = history(make(pair, tmp_path, **settings))
    found = history(make(pair, tmp_path, teacher_tail_samples=tiny.VOCABULARY, **settings))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    exact, sampled = (
        make(pair, tmp_path, teacher_tail_samples=samples, **settings).evaluate() for samples in (None, 1)
    )
    assert sampled["eval_loss"] == exact["eval_loss"]


def test_sampled_training_is_the_same_with_other_batches_and_resumed(pair, caches, tmp_path):
    """The samples of a row depend on the seed and the step, not on its batch."""

    def train(folder: str, checkpoint: str | None = None, **settings: Any) -> AKDTrainer:
        own = {"teacher_cache": str(caches["top"]), "teacher_tail_samples": 2, "optim": "sgd", "max_steps": 3}
        trainer = make(pair, tmp_path / folder, eval_strategy="no", **{**own, **settings})
        trainer.train(checkpoint)
        return trainer

    unbroken = train("unbroken", save_strategy="steps", save_steps=2)
    expected = unbroken.model.state_dict()
    split = train("split", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    resumed = train("resumed", str(tmp_path / "unbroken" / "run" / "checkpoint-2"))
    for trainer in (split, resumed):
        for name, parameter in trainer.model.state_dict().items():
            torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-6)
    other = train("other", data_seed=42, seed=43)
    assert not all(
        torch.allclose(value, expected[name], atol=1e-6) for name, value in other.model.state_dict().items()
    )


def test_the_error_of_samples_is_measured(pair, caches, tmp_path):
    measured = CachedTeacher(caches["top"]).manifest.measured
    assert measured["forward_kl"]["gradient_error"] == pytest.approx(0.0, abs=1e-5)
    found = measured["sampled"]
    assert found["tail_samples"] == 64 and found["tokens"] == measured["tokens"]
    for name in ("forward_kl", "reverse_kl"):
        assert 1e-4 < found[name]["gradient_error"] < 1.0
        assert found[name]["teacher"] == measured[name]["teacher"]
        assert found[name]["cache"] == pytest.approx(found[name]["teacher"], rel=0.1)
    assert (
        "error of the gradient with teacher_tail_samples 64: "
        in describe_cache(CachedTeacher(caches["top"]).manifest, caches["top"])["sampled"]
    )


def test_samples_of_rows(pair, caches, tmp_path):
    """In padded and packed batches, the same in one step, other numbers in the next, and without a step none."""
    _, batches = teacher_and_batches(pair, tmp_path)
    cached = CachedTeacher(caches["top"], tail_samples=4, seed=1)

    def offsets(batch: dict[str, torch.Tensor], step: int) -> list[float]:
        cached.step = step
        cached.forward({name: value for name, value in batch.items() if name != "labels"})
        signal = cached.signal(None)
        assert isinstance(signal, SampledSignal) and signal.samples == 4
        known = ~signal.offsets.isnan()
        assert torch.equal(known, ~signal.hidden.isnan().any(-1))
        assert torch.equal(known, ~signal.top.log_probs.isnan().any(-1))
        exact = signal.head.logits(signal.hidden[known]).log_softmax(-1)
        torch.testing.assert_close(signal.top.log_probs[known], exact.gather(-1, signal.top.ids[known]))
        torch.testing.assert_close(
            signal.log_normalizer[known], signal.head.logits(signal.hidden[known]).logsumexp(-1)
        )
        return signal.offsets[known].tolist()

    whole = set(offsets(batches[0], step=3))
    assert len(whole) == len(offsets(batches[0], step=3)) > 20 and all(0 <= number < 1 for number in whole)
    for batch in batches[1:]:
        assert set(offsets(batch, step=3)) < whole
    assert not whole & set(offsets(batches[0], step=4))
    cached.step = None
    cached.forward({"input_ids": batches[0]["input_ids"], "attention_mask": batches[0]["attention_mask"]})
    assert isinstance(cached.signal(None), DenseSignal)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"teacher_tail_samples": 0}, "`teacher_tail_samples` is 0; give an integer of at least 1 or None"),
        ({"teacher_tail_samples": True}, "`teacher_tail_samples` is True; give an integer"),
        ({"teacher_cache": None}, "`teacher_tail_samples` is 4, which has no effect without `teacher_cache`"),
        ({"divergence": "jsd"}, "`divergence` is 'jsd', but only mixes of forward and reverse KL are estimated"),
        (
            {"divergence": "akl"},
            "`divergence` is 'akl', but only mixes .*; choose 'akd', 'forward_kl' or 'reverse_kl'",
        ),
        (
            {"teacher_cache": "float32"},
            "`teacher_tail_samples` is 4, but .* does not have hidden states with the most",
        ),
        ({"teacher_cache": "sparse"}, "`teacher_tail_samples` is 4, but .* create it again with cache_kind='hidden'"),
        ({"kd_temperature": 2.0}, r"`kd_temperature` is 2.0, but .*most probable tokens at temperature 1.0; set the"),
    ],
    ids=str,
)
def test_wrong_settings_of_samples(pair, caches, tmp_path, settings, complaint):
    settings = {"teacher_cache": "top", "teacher_tail_samples": 4, **settings}
    if settings["teacher_cache"] is not None:
        settings["teacher_cache"] = str(caches[settings["teacher_cache"]])
    with pytest.raises(ValueError, match=complaint):
        make(pair, tmp_path, **settings)


def test_a_student_with_fewer_tokens_cannot_sample(pair, caches, tmp_path):
    """The most probable tokens and the normalizer are those of the vocabulary for which the cache was created."""
    args = AKDConfig(
        str(tmp_path), teacher_cache=str(caches["top"]), teacher_tail_samples=4, max_length=64, **tiny.SHORT_RUN
    )
    student = AutoModelForCausalLM.from_pretrained(pair[0])
    student.resize_token_embeddings(tiny.VOCABULARY - 8)
    with pytest.raises(ValueError, match=r"has ids below 320, but the student's LM head has 312 rows"):
        AKDTrainer(student, None, args, train_dataset=tiny.rows(8), processing_class=tiny.tokenizer())


def teacher_and_batches(pair: tuple[str, str], folder: Path) -> tuple[AKDTrainer, list[dict[str, torch.Tensor]]]:
    """Batches of the training rows: padded and shuffled, of another size, with repeated rows, and packed."""
    trainer = make(pair, folder, teacher_model_name_or_path=pair[1])
    rows = [{name: list(row[name]) for name in ("input_ids", "labels")} for row in trainer.train_dataset]
    batches = [trainer.data_collator(chosen) for chosen in (rows[::-1], rows[2:3], [*rows[1:3], rows[1]])]
    packed = {name: torch.tensor([list(chain.from_iterable(row[name] for row in rows[3:6]))]) for name in rows[0]}
    positions = [position for row in rows[3:6] for position in range(len(row["input_ids"]))]
    return trainer, [*batches, {**packed, "position_ids": torch.tensor([positions])}]


@torch.no_grad()
def hidden_states_one_by_one(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the final hidden states of each sample of a batch alone, NaN where the next token is no target."""
    hidden = torch.full((*batch["input_ids"].shape, model.config.hidden_size), torch.nan)
    for row, ids in enumerate(batch["input_ids"]):
        positions = batch.get("position_ids")
        length = int(batch["attention_mask"][row].sum()) if positions is None else len(ids)
        starts = [0] if positions is None else (positions[row] == 0).nonzero()[:, 0].tolist()
        for start, stop in zip(starts, [*starts[1:], length], strict=True):
            states = model.model(input_ids=ids[None, start:stop], use_cache=False).last_hidden_state[0]
            wanted = batch["labels"][row, start + 1 : stop] != -100
            hidden[row, start : stop - 1][wanted] = states[:-1][wanted]
    return hidden


def test_signals_equal_those_of_each_row_alone(pair, caches, tmp_path):
    trainer, batches = teacher_and_batches(pair, tmp_path)
    cached = CachedTeacher(caches["float32"])
    for batch in batches:
        cached.forward(
            {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
        )
        found = cached.signal(None)
        assert isinstance(found, DenseSignal)
        expected = hidden_states_one_by_one(trainer.teacher.model, batch)
        assert not expected.isnan().all()
        torch.testing.assert_close(found.hidden, expected, equal_nan=True, atol=1e-5, rtol=1e-5)
    with pytest.raises(RuntimeError, match="before `forward`"):
        cached.signal(None)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_equal_batches_have_equal_signals(pair, tmp_path, dtype):
    """Bit by bit, the hidden states and the LM head of the teacher in memory, in its own dtype."""
    trainer = make(
        pair,
        tmp_path,
        teacher_model_name_or_path=pair[1],
        teacher_model_init_kwargs={"dtype": dtype},
        eval_strategy="no",
        eval_dataset=None,
        per_device_eval_batch_size=8,
    )
    assert create_cache(trainer, tmp_path / "cache").dtype == dtype
    keys = {row_key(np.asarray(row["input_ids"], dtype=np.int32)): row for row in trainer.train_dataset}
    rows = [keys[key] for key in sorted(keys, key=lambda key: (-len(keys[key]["input_ids"]), key))]  # as created
    batch = trainer.data_collator(rows)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    cached = CachedTeacher(tmp_path / "cache")
    cached.forward(inputs)
    found = cached.signal(None)
    with trainer.teacher.forward(inputs):
        expected = trainer.teacher.signal(None)
    targets = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100) != -100
    assert torch.equal(found.hidden[targets], expected.hidden[targets])
    assert torch.equal(found.head.weight, expected.head.weight)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_sparse_divergences_are_lower_bounds(pair, caches, tmp_path, divergence):
    trainer, batches = teacher_and_batches(pair, tmp_path)
    batch = batches[0]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    weights = (torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100) != -100).float()
    student = trainer.model
    values = {}
    for name, teacher in (("memory", trainer.teacher), *((name, CachedTeacher(caches[name])) for name in caches)):
        context = teacher.forward(inputs)
        with torch.no_grad(), context if context is not None else torch.no_grad():
            hidden = student.model(**inputs).last_hidden_state
            head = cache_creation.lm_head(student)
            values[name] = fused_divergence(
                hidden, head, teacher.signal(None), token_weights=weights, divergence=divergence
            ).divergence[weights > 0]
    assert values["float32"] == pytest.approx(values["memory"], abs=1e-5)
    assert values["all tokens"] == pytest.approx(values["memory"], abs=0.02)
    assert (values["sparse"] <= values["memory"] + 0.01).all()
    assert values["sparse"].mean() < 0.7 * values["memory"].mean()
    measured = CachedTeacher(caches["sparse"]).manifest.measured[divergence]
    assert measured["cache"] < measured["teacher"] and measured["gradient_error"] > 0.1


def test_equal_rows_are_stored_once_with_all_their_targets(pair, tmp_path):
    ids = [5, 6, 7, 8, 9]
    labels = [[-100, -100, 7, -100, -100], [-100, -100, -100, 8, 9]]
    rows = Dataset.from_dict({"input_ids": [ids, ids, [1, 2]], "labels": [*labels, [-100, 2]]})
    trainer = make(pair, tmp_path, teacher_model_name_or_path=pair[1], train_dataset=rows, eval_strategy="no")
    manifest = create_cache(trainer, tmp_path / "cache")
    known = 5  # rows of the evaluation dataset
    assert manifest.rows == 2 + known
    cached = CachedTeacher(tmp_path / "cache")
    cached.forward({"input_ids": torch.tensor([ids])})
    assert (~cached.signal(None).hidden.isnan().any(-1)).tolist() == [[False, True, True, True, False]]
    row = CachedRow.from_labels(ids, ids)
    assert cached.uncached([row]) == (1, 0, 1), "the first prediction is no target of either row"
    assert cached.uncached([CachedRow.from_labels(ids, labels[0]), CachedRow.from_labels([3, 4], [-100, 4])]) == (
        2,
        1,
        0,
    )


class MostProbable:
    """A teacher that returns the most probable tokens of a model, as a server does, and sometimes one more."""

    def __init__(self, model: Any, k: int):
        self.model, self.k = model, k

    @torch.no_grad()
    def forward(self, inputs: Any) -> None:
        self.logits = self.model(**inputs).logits

    def signal(self, student: Any) -> SparseSignal:
        found = SparseSignal.from_logits(self.logits, self.k)
        none = torch.full_like(found.tail_log_prob, -torch.inf).unsqueeze(-1)
        ids = torch.cat([found.ids, torch.full_like(none, NO_TOKEN, dtype=torch.int64)], dim=-1)
        return SparseSignal(ids, torch.cat([found.log_probs, none], dim=-1), found.tail_log_prob)


def test_a_teacher_with_sparse_signals(pair, caches, tmp_path):
    """Of its tokens, the most probable ones are stored, as from the model itself."""
    args = AKDConfig(str(tmp_path / "run"), max_length=64, **tiny.SHORT_RUN)
    model = AutoModelForCausalLM.from_pretrained(pair[1])
    trainer = AKDTrainer(pair[0], MostProbable(model, 64), args, **DATA)
    with pytest.raises(ValueError, match="`cache_kind` is 'hidden', but the teacher returns sparse signals"):
        create_cache(trainer, tmp_path / "cache")
    with pytest.raises(
        ValueError, match=r"the teacher returns 64 tokens or more .*`cache_top_k` 65 .*give at most 64"
    ):
        create_cache(trainer, tmp_path / "cache", kind="sparse", top_k=65)
    manifest = create_cache(trainer, tmp_path / "cache", kind="sparse", top_k=16)
    assert manifest.teacher == "MostProbable"
    expected, found = (CachedTeacher(folder) for folder in (caches["sparse"], tmp_path / "cache"))
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(3)])
    for teacher in (expected, found):
        teacher.forward({name: batch[name] for name in ("input_ids", "attention_mask")})
    signals_of = [teacher.signal(None) for teacher in (expected, found)]
    assert torch.equal(signals_of[0].ids, signals_of[1].ids)
    torch.testing.assert_close(signals_of[0].log_probs, signals_of[1].log_probs, equal_nan=True, atol=1e-2, rtol=0)


def test_looking_up_rows_in_blocks_equals_one_by_one(tmp_path, monkeypatch):
    """Random rows and targets, some of them unknown, without targets, or with more targets than are stored."""
    random = np.random.default_rng(0)
    stored = [random_row(random, number) for number in range(40)]
    manifest = Manifest(
        "sparse", "packed", 1, 1.0, 9, None, "teacher", None, None, "", 40, int(sum(map(targets, stored))), "", 2
    )
    write_manifest(tmp_path, manifest)
    for number, rows in enumerate((stored[:7], stored[7:])):
        packed = torch.zeros(sum(map(targets, rows)), SparseCodec(9, 1).bytes_per_token, dtype=torch.uint8)
        write_shard(tmp_path, manifest, number, rows, {"packed": packed})
    cached = CachedTeacher(tmp_path)
    known = {row.tokens.tobytes(): row.is_target for row in stored}
    asked = [*stored[::3], *(random_row(random, number % 50) for number in range(60)), CachedRow(stored[0].tokens[:0],
             stored[0].is_target[:0])]  # fmt: skip
    stored_of = [known.get(row.tokens.tobytes()) for row in asked]
    missing = sum(of is None and row.is_target.any() for row, of in zip(asked, stored_of, strict=True))
    without = sum(of is not None and (row.is_target & ~of).any() for row, of in zip(asked, stored_of, strict=True))
    assert missing > 2 and without > 10
    for block in (1, 7, 1000):
        monkeypatch.setattr(cached_module, "_BLOCK", block)
        assert cached.uncached(iter(asked)) == (len(asked), missing, without)


def random_row(random: np.random.Generator, number: int) -> CachedRow:
    """Return a row whose tokens depend on its number alone, and whose targets are random; every fifth has few."""
    tokens = np.arange(number, number + 2 + number % 11, dtype=np.int32)
    is_target = random.random(len(tokens)) < (0.1 if number % 5 == 0 else 0.6)
    is_target[-1] = False
    return CachedRow(tokens, is_target)


def targets(row: CachedRow) -> int:
    return int(row.is_target.sum())


@pytest.mark.parametrize("is_packed", [False, True])
def test_rows_of_a_dataset(is_packed):
    samples = [([5, 6, 7], [-100, 6, 7]), ([8, 9], [8, 9]), ([3], [3]), ([4, 5, 6, 7], [-100, 5, -100, 7])]
    rows = {"input_ids": [ids for ids, _ in samples], "labels": [labels for _, labels in samples]}
    if is_packed:
        rows = {name: [[*one, *two], [*three, *four]] for name, (one, two, three, four) in rows.items()}
        rows["seq_lengths"] = [[3, 2], [1, 4]]
    expected = [(ids, [*(label != -100 for label in labels[1:]), False]) for ids, labels in samples]
    for dataset in (Dataset.from_dict(rows), Dataset.from_dict(rows).select([1, 0] if is_packed else [3, 2, 1, 0])):
        found = [(row.tokens.tolist(), row.is_target.tolist()) for row in unpacked_rows(dataset)]
        assert sorted(found) == sorted(expected)
    assert [row.is_target.tolist() for row in unpacked_rows(Dataset.from_dict({"input_ids": [[1, 2]]}))] == [
        [True, False]
    ]


def small(trainer: AKDTrainer, folder: Path) -> Any:
    return create_cache(trainer, folder, shard_mb=0.005)


def test_two_runs_do_not_write_one_cache(pair, tmp_path):
    trainer = make(pair, tmp_path, teacher_model_name_or_path=pair[1])
    (tmp_path / "cache").mkdir()
    with acquire_lock(tmp_path / "cache" / "manifest.json", "`output_dir`"):
        with pytest.raises(BlockingIOError, match=r"is being written by another process; .* another `output_dir`"):
            small(trainer, tmp_path / "cache")
    assert small(trainer, tmp_path / "cache").measured


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_creation_continues(pair, tmp_path, monkeypatch):
    trainer = make(pair, tmp_path, teacher_model_name_or_path=pair[1])
    manifest = small(trainer, tmp_path / "whole")
    assert manifest.shards > 4
    write_shard = cache_creation.write_shard

    def write_and_die(folder: Path, manifest: Any, number: int, *rest: Any) -> None:
        if number == 2:
            path = shard_path(folder, manifest, number)
            path.with_name(f"{path.name}.tmp").write_bytes(b"half a shard")
            os.kill(os.getpid(), signals.SIGKILL)
        write_shard(folder, manifest, number, *rest)

    folder = tmp_path / "killed"
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(cache_creation, "write_shard", write_and_die)
        try:
            small(trainer, folder)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signals.SIGKILL
    with pytest.raises(ValueError, match=rf"has 2 of {manifest.shards} shards.*run the same `trl-akd cache` command"):
        make(pair, tmp_path, teacher_cache=str(folder))
    trainer = make(pair, tmp_path, teacher_model_name_or_path=pair[1])
    written = []
    monkeypatch.setattr(cache_creation, "write_shard", lambda *given: (written.append(given[2]), write_shard(*given)))
    assert small(trainer, folder) == manifest
    assert written == list(range(2, manifest.shards)), "finished shards are kept"
    assert contents(folder) == contents(tmp_path / "whole")
    assert small(trainer, folder) == manifest and len(written) == manifest.shards - 2


def test_a_full_disk_keeps_finished_shards(pair, tmp_path, monkeypatch):
    trainer = make(pair, tmp_path, teacher_model_name_or_path=pair[1])
    save = cache_creation.write_shard.__globals__["save_file"]

    def save_until_full(tensors: Any, path: Path, facts: Any) -> None:
        if "shard-00001" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, path, facts)

    monkeypatch.setitem(cache_creation.write_shard.__globals__, "save_file", save_until_full)
    with pytest.raises(OSError, match=r"shard-00001.*cannot be written \(No space left on device\); free some space"):
        small(trainer, tmp_path / "cache")
    assert sorted(path.name for path in (tmp_path / "cache").glob("shard*"))[0].startswith("shard-00000")
    assert not list((tmp_path / "cache").glob("*.tmp"))
    monkeypatch.undo()
    assert small(trainer, tmp_path / "cache").measured
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ValueError, match=r"the teacher cache needs 0\.0 GB, but .* GB free; free some space"):
        small(trainer, tmp_path / "other")


def edit(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        [shard] = folder.glob("shard-*.safetensors")
        if name == "no shard":
            shard.unlink()
        elif name == "truncated":
            shard.write_bytes(shard.read_bytes()[:-8])
        elif name == "no LM head":
            (folder / "head.safetensors").unlink()
        elif name == "no manifest":
            (folder / "manifest.json").unlink()
        elif name == "damaged manifest":
            (folder / "manifest.json").write_text("{")
        else:
            facts = json.loads((folder / "manifest.json").read_text())
            (folder / "manifest.json").write_text(json.dumps({**facts, name: 99}))

    return change


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("no shard", "has 0 of 1 shards; copy the whole cache"),
        ("truncated", r"shard-00000-of-00001.safetensors is damaged or truncated"),
        ("no LM head", r"head.safetensors is missing; copy the whole cache"),
        ("no manifest", "which has no manifest.json"),
        ("damaged manifest", r"manifest.json is damaged .*; delete it"),
        ("format", "has format 99, but this version reads 1"),
        ("rows", "belongs to another cache"),
        ("nonsense", r"manifest.json is damaged .*nonsense"),
    ],
)
def test_damaged_caches(pair, caches, tmp_path, name, complaint):
    folder = tmp_path / "cache"
    shutil.copytree(caches["float32"], folder)
    edit(name)(folder)
    with pytest.raises(ValueError, match=complaint):
        make(pair, tmp_path, teacher_cache=str(folder))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"max_length": 24}, r"no signal for 4 of 7 rows of the train dataset; .*max_length was 64 and is 24"),
        (
            {"train_dataset": concatenate_datasets([tiny.rows(8), tiny.rows(2, seed=9)])},
            r"no signal for 2 of 10 rows of the train dataset; its settings were the same, so the data differs "
            r"\(then 'toy'\)",
        ),
        ({"eval_dataset": {"other": tiny.rows(2, seed=9)}}, r"no signal for 2 of 2 rows of the eval_other dataset"),
        ({"lmbda": 0.5}, "`lmbda` is 0.5, but a cache has no signals for generated text"),
        ({"seq_kd": True}, "`seq_kd` is True, but a cache has no signals for generated text"),
        ({"divergence": "minillm"}, "`divergence` is 'minillm', which trains on generated text"),
        (
            {"divergence": "minillm", "lmbda": 1.0, "temperature": 1.0},
            "`divergence` is 'minillm', which trains on generated text",
        ),
        ({"teacher_device": "cpu"}, "`teacher_device` is 'cpu' and `teacher_cache` is set, which needs no teacher"),
        ({"teacher_model_name_or_path": "other/model"}, r"has signals of '.*teacher', but .*'other/model'"),
        ({"teacher_cache": "nowhere"}, "`teacher_cache` is 'nowhere', which is not a folder"),
        ({"train_dataset": tiny.rows(8).to_iterable_dataset()}, "the train dataset is a stream.*streaming=False"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_caches_of_another_run(pair, caches, tmp_path, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        make(pair, tmp_path, **{"teacher_cache": str(caches["float32"]), **settings})


def test_other_cases_of_another_run(pair, caches, tmp_path):
    with pytest.raises(ValueError, match=r"`kd_temperature` is 2\.0, but .* sparse signals at temperature 1\.0"):
        make(pair, tmp_path, teacher_cache=str(caches["sparse"]), kd_temperature=2.0)
    args = AKDConfig(str(tmp_path), teacher_cache=str(caches["float32"]), **tiny.SHORT_RUN)
    with pytest.raises(ValueError, match="`teacher_model` is given and `teacher_cache` is set"):
        AKDTrainer(pair[0], tiny.model(), args, train_dataset=tiny.rows(8))
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["lambda"])
    with pytest.raises(ValueError, match="was created with another tokenizer"):
        AKDTrainer(pair[0], None, args, train_dataset=tiny.rows(8), processing_class=tokenizer)
    teacher = tmp_path / "teacher"
    shutil.copytree(pair[1], teacher)
    make(pair, tmp_path, teacher_cache=str(caches["float32"]), teacher_model_name_or_path=str(teacher))
    tiny.model("qwen2", hidden=48, seed=5).save_pretrained(teacher)
    with pytest.raises(ValueError, match="or its files have changed since"):
        make(pair, tmp_path, teacher_cache=str(caches["float32"]), teacher_model_name_or_path=str(teacher))


def test_another_prompt_template(pair, tmp_path):
    rows = Dataset.from_list([{"instruction": f"Add {number}.", "output": "x + 1"} for number in range(4)])
    data = {"train_dataset": rows, "eval_dataset": rows, "max_length": 512}
    folder = tmp_path / "cache"
    create_cache(make(pair, tmp_path, teacher_model_name_or_path=pair[1], **data), folder)
    make(pair, tmp_path, teacher_cache=str(folder), **data)
    with pytest.raises(ValueError, match=r"prompt_template was 'alpaca' and is 'starcoder'"):
        make(pair, tmp_path, teacher_cache=str(folder), prompt_template="starcoder", **data)


@pytest.mark.parametrize(("revision", "is_same"), [("main", True), ("v2", False), (None, False)])
def test_a_teacher_on_the_hub_is_compared_by_name_and_revision(caches, tmp_path, revision, is_same):
    manifest = replace(
        read_manifest(caches["float32"]), teacher="org/teacher", teacher_revision="main", teacher_weights=None
    )
    args = AKDConfig(str(tmp_path), teacher_model_name_or_path="org/teacher", teacher_model_revision=revision)
    assert is_teacher(manifest, args) == is_same


def test_a_run_resumes_from_the_same_signals_alone(pair, caches, tmp_path):
    first = make(
        pair, tmp_path, teacher_cache=str(caches["float32"]), max_steps=3, save_strategy="steps", save_steps=2
    )
    first.train()
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(ValueError, match=r"written with teacher_cache='signals .*; resume with the old teacher_cache"):
        make(pair, tmp_path, teacher_cache=str(caches["int8"])).train(checkpoint)
    for source in ({"teacher_cache": str(caches["float32"])}, {"teacher_model_name_or_path": pair[1]}):
        resumed = make(pair, tmp_path, max_steps=3, **source)
        resumed.train(checkpoint)
        assert resumed.state.global_step == 3
        expected = first.model.state_dict()
        for name, parameter in resumed.model.state_dict().items():
            torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-6)


def test_rows_that_no_check_sees(pair, caches, tmp_path):
    """Evaluation on another dataset: the loss is not finite, and the error says why."""
    trainer = make(pair, tmp_path, teacher_cache=str(caches["float32"]))
    with pytest.raises(FloatingPointError, match="rows or targets without a signal in `teacher_cache`"):
        trainer.evaluate(tiny.rows(2, seed=9).map(lambda row: {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"kind": "sparse", "top_k": 500}, "`cache_top_k` is 500, but student and teacher share 320 tokens"),
        ({"kind": "sparse"}, r"has a teacher cache with .*kind='hidden', not 'sparse'"),
        ({"dtype": "int8"}, r"has a teacher cache with dtype='float32', not 'int8'"),
    ],
)
def test_settings_of_creations(pair, caches, tmp_path, settings, complaint):
    trainer = make(pair, tmp_path, teacher_model_name_or_path=pair[1])
    with pytest.raises(ValueError, match=complaint):
        create_cache(trainer, caches["float32"], **settings)


def test_a_lost_head_is_written_again(pair, caches, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(caches["float32"], folder)
    edit("no LM head")(folder)
    create_cache(make(pair, tmp_path, teacher_model_name_or_path=pair[1]), folder)
    assert (folder / "head.safetensors").read_bytes() == (caches["float32"] / "head.safetensors").read_bytes()


def test_hidden_states_that_a_dtype_cannot_represent(pair, tmp_path):
    trainer = make(pair, tmp_path, teacher_model_name_or_path=pair[1])
    with torch.no_grad():
        trainer.teacher.model.model.norm.weight.fill_(1e6)
    with pytest.raises(
        ValueError, match=r"`cache_dtype` is 'float16', .* above its largest, 65504; choose 'bfloat16'"
    ):
        create_cache(trainer, tmp_path / "cache", dtype="float16")
    assert not (tmp_path / "cache").exists()


def test_creations_that_are_refused(pair, caches, tmp_path):
    trainer = make(pair, tmp_path, teacher_model_name_or_path=pair[1], train_dataset=tiny.rows(3))
    with pytest.raises(ValueError, match=r"has a teacher cache with .*rows=.*; give another `output_dir`"):
        create_cache(trainer, caches["float32"])
    with pytest.raises(ValueError, match="which has other files; give a new folder"):
        create_cache(trainer, pair[0])
    with torch.no_grad():
        trainer.teacher.model.lm_head.weight.fill_(torch.nan)
        trainer.teacher.model.model.norm.weight.fill_(torch.nan)
    trainer.teacher._is_verified = True
    with pytest.raises(ValueError, match=r"the teacher's output is not finite .*dtype: float32"):
        create_cache(trainer, tmp_path / "cache")
    trainer = make(pair, tmp_path, teacher_cache=str(caches["float32"]))
    with pytest.raises(ValueError, match="`teacher_cache` is set, but a cache is created from a teacher"):
        create_cache(trainer, tmp_path / "cache")


@pytest.mark.parametrize(
    "objectives",
    [("akd", "ce"), *(pytest.param((code, "akd"), marks=pytest.mark.slow) for code in ("akd", "ce"))],
)
def test_codeplan(pair, tmp_path, objectives):
    """Every solution and plan that may be drawn is in the cache, but only those of the distilled tasks."""
    settings = {
        **tiny.SHORT_RUN,
        "max_length": 128,
        "output_dir": str(tmp_path / "run"),
        "guided_weight": 0.3,
        "code_objective": objectives[0],
        "plan_objective": objectives[1],
    }
    rows = world.problems(6)
    in_memory = {"teacher_model_name_or_path": pair[1], **settings}
    expected = CodePLANTrainer(pair[0], args=CodePLANConfig(**in_memory), train_dataset=rows)
    create_cache(expected, tmp_path / "cache")
    expected.train()
    args = CodePLANConfig(teacher_cache=str(tmp_path / "cache"), **settings)
    cached = CodePLANTrainer(pair[0], args=args, train_dataset=rows)
    cached.train()
    losses = [[log["loss"] for log in trainer.state.log_history if "loss" in log] for trainer in (cached, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_encoder_decoders_are_refused(caches, tmp_path):
    args = CodePLANConfig(
        str(tmp_path), code_objective="akd", teacher_cache=str(caches["float32"]), **{**tiny.SHORT_RUN, "bf16": False}
    )
    with pytest.raises(ValueError, match="`teacher_cache` is set and `model` is an encoder-decoder"):
        CodePLANTrainer(
            world.t5(), args=args, train_dataset=world.problems(2), processing_class=world.roberta_tokenizer()
        )


def test_codeplan_without_a_teacher_refuses_a_cache(tmp_path):
    with pytest.raises(ValueError, match="`teacher_cache` is 'x', which has no effect while `code_objective`"):
        CodePLANConfig(str(tmp_path), teacher_cache="x")


def test_iterkd(pair, tmp_path):
    pairs = pairs_world.pairs(8)
    settings = {**tiny.SHORT_RUN, "output_dir": str(tmp_path / "run"), "max_length": 64}
    args = IterKDConfig(teacher_model_name_or_path=pair[1], **settings)
    create_cache(PairTrainer(pair[0], args=args, train_dataset=pairs), tmp_path / "cache")
    losses = []
    for source in ({"teacher_cache": str(tmp_path / "cache")}, {"teacher_model_name_or_path": pair[1]}):
        trainer = PairTrainer(pair[0], args=IterKDConfig(**source, **settings))
        assert trainer.args.objective == "akd"
        trainer.train_on(pairs, 0, tmp_path / "cycle")
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    trainer = PairTrainer(pair[0], args=IterKDConfig(teacher_cache=str(tmp_path / "cache"), **settings))
    with pytest.raises(ValueError, match=r"no signal for \d+ of 8 rows of the train dataset"):
        trainer.train_on(pairs_world.pairs(8, seed=5), 1, tmp_path / "cycle")
    with pytest.raises(ValueError, match="each cycle trains on new answers, for which no cache has signals"):
        IterKDTrainer(pair[0], args=IterKDConfig(teacher_cache="cache", **settings))


def test_card_names_the_teacher_of_the_cache(pair, caches, tmp_path):
    trainer = make(pair, tmp_path, teacher_cache=str(caches["float32"]))
    assert trainer.provenance.teacher == pair[1]
