"""AKD on real instructions, by the recipe and the command line, with models created in the test."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

from trl_akd.cli.akd import main
from trl_akd.data.collators import DataCollatorForDistillation
from trl_akd.data.sources import load
from trl_akd.data.tokenization import tokenize_dataset

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "code_alpaca" / "code_alpaca_2k.json"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_file(), reason="needs ../shared/data/code_alpaca/code_alpaca_2k.json"),
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=["<|pad|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((text for row in json.loads(DATA.read_text()) for text in row.values()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|endoftext|>")


def make_model(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> LlamaForCausalLM:
    torch.manual_seed(hidden)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def teach(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output_dir: Path) -> None:
    rows, _ = tokenize_dataset(load(str(DATA)), tokenizer, max_length=256)
    args = TrainingArguments(
        str(output_dir),
        max_steps=200,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    )
    Trainer(model, args, DataCollatorForDistillation(tokenizer.pad_token_id), rows).train()


def test_recipe_lowers_loss_and_divergences(tmp_path):
    tokenizer = make_tokenizer()
    teacher, student = make_model(tokenizer, 128, 3), make_model(tokenizer, 64, 2)
    teach(teacher, tokenizer, tmp_path)
    for model, name in ((teacher, "teacher"), (student, "student")):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    main(
        [
            "--config",
            str(ROOT / "recipes" / "micro" / "akd" / "config_code_alpaca.yaml"),
            "--model_name_or_path",
            str(tmp_path / "student"),
            "--teacher_model_name_or_path",
            str(tmp_path / "teacher"),
            "--dataset_name",
            str(DATA),
            "--output_dir",
            str(tmp_path / "run"),
        ]
    )
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    for key in ("loss", "kd/forward_kl", "kd/reverse_kl"):
        series = [log[key] for log in history if key in log]
        assert sum(series[-3:]) < 0.5 * sum(series[:3]), (key, series)
    held_out = [log["eval_loss"] for log in history if "eval_loss" in log]
    assert held_out[-1] < held_out[0]
    assert all(0 <= log["kd/beta"] <= 1 for log in history if "kd/beta" in log)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "config_code_alpaca.yaml" in card
