"""Tiny models, tokenizers and data, created in the tests."""

import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CodeGenConfig,
    GPTBigCodeConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

VOCABULARY = 320

SHORT_RUN: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "logging_steps": 1,
    "save_strategy": "no",
    "learning_rate": 1e-2,
    "gradient_checkpointing": False,
}
"""Settings of a training that is over in a moment and leaves no checkpoint."""


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 258 tokens: the bytes, `<pad>` and `<|endoftext|>`, the name that Qwen2 requires."""
    alphabet = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab={**alphabet, "<pad>": 256, "<|endoftext|>": 257}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<|endoftext|>", model_max_length=512
    )


_CONFIGS: dict[str, Any] = {
    "llama": lambda size, hidden: LlamaConfig(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
    ),
    "llama_tied": lambda size, hidden: LlamaConfig(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    ),
    "qwen2": lambda size, hidden: Qwen2Config(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
    ),
    "codegen": lambda size, hidden: CodeGenConfig(
        vocab_size=size, n_embd=hidden, n_layer=2, n_head=4, n_positions=256, n_ctx=256, rotary_dim=4
    ),
    "gpt_bigcode": lambda size, hidden: GPTBigCodeConfig(
        vocab_size=size, n_embd=hidden, n_layer=2, n_head=2, n_positions=256
    ),
}


def model(
    family: str = "llama", *, vocabulary: int = VOCABULARY, hidden: int = 32, seed: int = 0, **config: Any
) -> PreTrainedModel:
    """A random model whose logits are far enough from uniform to distinguish tokens."""
    torch.manual_seed(seed)
    settings = _CONFIGS[family](vocabulary, hidden)
    settings.eos_token_id, settings.bos_token_id, settings.pad_token_id = 257, None, 256
    for name, value in config.items():
        setattr(settings, name, value)
    net = AutoModelForCausalLM.from_config(settings)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    return net


def save_pair(
    folder: Path, *, student: str = "llama", teacher: str = "qwen2", **student_config: Any
) -> tuple[str, str]:
    """Save a student and a wider teacher, both with the tokenizer; return their paths."""
    paths = folder / "student", folder / "teacher"
    model(student, seed=1, **student_config).save_pretrained(paths[0])
    model(teacher, hidden=48, seed=2).save_pretrained(paths[1])
    for path in paths:
        tokenizer().save_pretrained(path)
    return str(paths[0]), str(paths[1])


def rows(number: int, seed: int = 0) -> Dataset:
    """Prompt and completion rows of very different lengths."""
    source = random.Random(seed)
    words = ["def", "return", "x", "(y)", "lambda", "+", "0", "for", "in", "é"]

    def text(low: int, high: int) -> str:
        return " ".join(source.choice(words) for _ in range(source.randint(low, high)))

    return Dataset.from_list([{"prompt": text(1, 6) + "\n", "completion": text(1, 9)} for _ in range(number)])
