"""Tokenizers created in the tests, and a separate cache folder for `datasets`."""

import string
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    'def add(a, b):\n    """Add two numbers."""\n    return a + b\n\n\nprint(add(1, 2))\n',
    "### Instruction:\nWrite a function.\n\n### Response:\n\n    for x in range(10):\n        print(x)\n",
    "def define(definition):\n\treturn [x for x in definition]\n",
]


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def _finish(backend: Tokenizer, post_processor: str | None, **special: str) -> PreTrainedTokenizerFast:
    if post_processor is not None:
        names = [name for name in ("<bos>", "<eos>") if name in post_processor]
        ids = [(name, backend.token_to_id(name)) for name in names]
        backend.post_processor = processors.TemplateProcessing(single=post_processor, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>", **special)


@pytest.fixture
def byte_level() -> Callable[..., PreTrainedTokenizerFast]:
    """Like GPT-2: byte-level BPE with merges, pad equal to EOS, BOS only from a post-processor."""

    def build(
        post_processor: str | None = None, size: int = 320, corpus: list[str] = CORPUS
    ) -> PreTrainedTokenizerFast:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<eos>", "<bos>", "<|user|>", "<|assistant|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(corpus, trainer)
        return _finish(backend, post_processor, bos_token="<bos>")

    return build


@pytest.fixture
def sentence_piece() -> PreTrainedTokenizerFast:
    """Like Llama: a space is added before each text, byte fallback, and BOS."""
    merges = [("▁", "a"), ("▁", "d"), ("d", "e"), ("▁d", "e"), ("e", "f"), ("▁", "▁"), ("f", "i"), ("fi", "n")]
    tokens = ["<unk>", "<bos>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *string.printable[:95]]
    tokens = list(dict.fromkeys([*tokens, *("".join(merge) for merge in merges)]))
    vocabulary = {token: index for index, token in enumerate(tokens) if token != " "}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finish(backend, "<bos> $A", bos_token="<bos>", unk_token="<unk>")
