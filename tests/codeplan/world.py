"""Problems with solutions and plans, and an encoder-decoder with CodeT5's kind of tokenizer, all tiny."""

import random
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

VOCABULARY = 320


def problems(number: int, seed: int = 0) -> Dataset:
    """Rows whose texts differ in length, with one to three solutions and plans each."""
    source = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(
            source.choice(["sum", "x", "(y)", "+", "0", "é", "of"]) for _ in range(source.randint(low, high))
        )

    return Dataset.from_list(
        [
            {
                "problem": text(1, 6),
                "solutions": [text(1, 12) for _ in range(source.randint(1, 3))],
                "plans": [f"1. {text(1, 4)}\n2. {text(1, 4)}" for _ in range(source.randint(1, 3))],
            }
            for _ in range(number)
        ]
    )


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that adds `<s>` and `</s>` to every text, like that of CodeT5."""
    special = {"<pad>": 0, "<s>": 1, "</s>": 2}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {**special, **{symbol: index + len(special) for index, symbol in enumerate(alphabet)}}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=512
    )


def t5(seed: int = 0, *, scaled: bool = True, hidden: int = 32, **config: Any) -> T5ForConditionalGeneration:
    """A random T5; `scaled` enables the scaling of hidden states for tied embeddings."""
    torch.manual_seed(seed)
    settings = T5Config(
        vocab_size=VOCABULARY,
        d_model=hidden,
        d_kv=8,
        d_ff=2 * hidden,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
        tie_word_embeddings=scaled,
        **config,
    )
    model = T5ForConditionalGeneration(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    return model
