"""Tokenizer, teacher and student for the generated tasks, and their supervised training."""

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ..data.collators import DataCollatorForDistillation
from ..data.tokenization import tokenize_dataset

PAD_TOKEN, EOS_TOKEN = "<|pad|>", "<|endoftext|>"
VOCABULARY_SIZE = 1024

UNRECORDED_ON_CPU: Mapping[str, Any] = MappingProxyType(
    {
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
)
"""Training arguments of a run on the CPU that saves and reports nothing."""

# Digits, line breaks and quoted letters are separate tokens, so that program and instruction spell them alike.
_KEPT_APART = Regex(r"\d|\n|'[a-z]'")
_LONGEST_TOKEN = 24
_BATCHES_PER_GROUP = 20


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer.

    Merges cross spaces, so that a common phrase is a single token and sequences are short. Every text decodes to
    itself.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_KEPT_APART, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        max_token_length=_LONGEST_TOKEN,
        special_tokens=[PAD_TOKEN, EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        clean_up_tokenization_spaces=False,
    )


def teacher_config(tokenizer: PreTrainedTokenizerBase, max_length: int) -> LlamaConfig:
    """Return the configuration of the teacher: a Llama of 0.98 million parameters and `max_length` positions."""
    return llama_config(tokenizer, max_length, hidden_size=128, layers=4, heads=4)


def student_config(tokenizer: PreTrainedTokenizerBase, max_length: int) -> LlamaConfig:
    """Return the configuration of the student: a Llama of 0.25 million parameters."""
    return llama_config(tokenizer, max_length, hidden_size=80, layers=2, heads=2)


def new_model(config: LlamaConfig, seed: int = 0) -> LlamaForCausalLM:
    """Return a model with random weights, a function of the configuration and the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, str]],
    *,
    output_dir: str | Path,
    max_steps: int,
    learning_rate: float = 4e-3,
    batch_size: int = 64,
    seed: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train a model in place by cross-entropy on completions.

    Args:
        model (`LlamaForCausalLM`):
            Model to train.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer of the model.
        rows (`Sequence[Mapping]`):
            Rows with `prompt` and `completion`, repeated if `max_steps` needs more.
        output_dir (`str` or `Path`):
            Output folder of the `Trainer`, to which nothing is saved.
        max_steps (`int`):
            Number of optimizer steps.
        learning_rate (`float`, *optional*, defaults to `4e-3`):
            Peak learning rate, which decays to 0 in the second half of the steps.
        batch_size (`int`, *optional*, defaults to `64`):
            Rows per step.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the order of rows.
        callbacks (`Sequence[TrainerCallback]`, *optional*):
            Callbacks of the `Trainer`, one of which may stop it earlier.
    """
    max_length = model.config.max_position_embeddings
    dataset, _ = tokenize_dataset(Dataset.from_list(list(rows)), tokenizer, max_length=max_length)
    order = order_by_length([len(ids) for ids in dataset["input_ids"]], batch_size, seed)
    args = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=max_steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": max_steps // 2, "decay_type": "linear"},
        warmup_steps=max_steps // 12,
        adam_beta2=0.98,
        weight_decay=0.01,
        train_sampling_strategy="sequential",
        logging_steps=max(1, max_steps // 10),
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=seed,
    )
    collator = DataCollatorForDistillation(tokenizer.pad_token_id)
    Trainer(model, args, collator, dataset.select(order), callbacks=list(callbacks)).train()


def order_by_length(lengths: Sequence[int], batch_size: int, seed: int = 0) -> list[int]:
    """Return a random order of rows in which the rows of a batch have similar lengths.

    The `Trainer`'s `group_by_length` orders the batches of a group from long to short; here their order is random.

    Args:
        lengths (`Sequence[int]`):
            Number of tokens of each row.
        batch_size (`int`):
            Rows per batch.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the order.
    """
    rng = random.Random(seed)
    shuffled = rng.sample(range(len(lengths)), len(lengths))
    group = _BATCHES_PER_GROUP * batch_size
    batches = []
    for start in range(0, len(shuffled), group):
        alike = sorted(shuffled[start : start + group], key=lengths.__getitem__)
        batches += [alike[i : i + batch_size] for i in range(0, len(alike), batch_size)]
    rng.shuffle(batches)
    return [row for batch in sorted(batches, key=len, reverse=True) for row in batch]


def llama_config(
    tokenizer: PreTrainedTokenizerBase, max_length: int, *, hidden_size: int, layers: int, heads: int
) -> LlamaConfig:
    """Return the configuration of a Llama with tied embeddings, as all micro models are."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_length,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        tie_word_embeddings=True,
        initializer_range=hidden_size**-0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
