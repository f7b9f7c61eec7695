"""Comparison of vocabularies, and errors if they differ."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trl_akd.data.vocabulary import require_shared_tokens, shared_vocabulary_size, vocabulary_digest

Build = Callable[..., PreTrainedTokenizerFast]


def tokenizer(
    renamed: dict[str, str] | None = None,
    merges: tuple[tuple[str, str], ...] = (("d", "e"), ("de", "f")),
    extra: tuple[str, ...] = (),
    lower: bool = False,
    split: bool = True,
    **special: Any,
) -> PreTrainedTokenizerFast:
    """A vocabulary of bytes, four merged tokens and `<eos>`, with a change."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "de", "def", "ef", "to", "<eos>", *extra]
    vocabulary = {(renamed or {}).get(token, token): index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    if lower:
        backend.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **({"eos_token": "<eos>"} | special))


TOKENS = 256 + 5


@pytest.mark.parametrize(
    ("student_size", "teacher_size", "shared"),
    [(TOKENS, TOKENS, TOKENS), (272, 264, 264), (264, 272, 264), (TOKENS - 1, 272, TOKENS - 1)],
)
def test_padding_rows(student_size: int, teacher_size: int, shared: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shared_vocabulary_size(tokenizer(), tokenizer(), student_size, teacher_size) == shared


@pytest.mark.parametrize(("student_size", "teacher_size"), [(TOKENS, TOKENS + 1), (320, 272), (272, 320)])
def test_tokenizers_of_different_length(student_size: int, teacher_size: int) -> None:
    longer = tokenizer(extra=("<fim>",))
    assert shared_vocabulary_size(tokenizer(), longer, student_size, teacher_size) == TOKENS
    assert shared_vocabulary_size(longer, tokenizer(), teacher_size, student_size) == TOKENS


def test_added_tokens_count(byte_level: Build) -> None:
    longer = tokenizer()
    longer.add_tokens(["<fim>", "<mid>"])
    assert shared_vocabulary_size(tokenizer(), longer, 320, 320) == TOKENS
    assert shared_vocabulary_size(longer, longer, 320, 330) == 320


def test_error_names_the_first_different_token() -> None:
    other = tokenizer(renamed={"ef": "fe", "to": "ot"})
    with pytest.raises(ValueError, match=r"id 258 is 'ef' for the student but 'fe' for the teacher; choose a teacher"):
        shared_vocabulary_size(tokenizer(), other, 272, 272)


def test_error_names_an_id_without_a_token() -> None:
    gap = tokenizer(merges=(), extra=("<x>", "<y>"))
    vocabulary = {token: index for token, index in gap.get_vocab().items() if token != "<x>"}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    with pytest.raises(ValueError, match=f"id {TOKENS} is '<x>' for the student but no token for the teacher"):
        shared_vocabulary_size(gap, PreTrainedTokenizerFast(tokenizer_object=backend), 272, 272)


@pytest.mark.parametrize(
    "other",
    [
        tokenizer(merges=(("e", "f"), ("d", "e"), ("de", "f"))),
        tokenizer(lower=True),
        tokenizer(merges=(("d", "e"), ("de", "f"), ("t", "o"))),
    ],
    ids=["merge order", "normalizer", "another merge"],
)
def test_same_tokens_with_different_splits(other: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"split the same text differently.*the student reads \[.*the teacher \["):
        shared_vocabulary_size(tokenizer(), other, 272, 272)


def test_special_tokens_that_differ_are_a_warning() -> None:
    base = tokenizer(extra=("<end>",), additional_special_tokens=["<end>"])
    chat = tokenizer(extra=("<end>",), eos_token="<end>", bos_token="<eos>")
    with pytest.warns(UserWarning) as caught:
        assert shared_vocabulary_size(base, chat, 272, 272) == 272
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert "eos_token is '<eos>' for the student but '<end>' for the teacher" in messages[0]
    assert "bos_token is None for the student but '<eos>' for the teacher" in messages[1]
    assert caught[0].filename == __file__


def test_slow_tokenizers() -> None:
    slow: PreTrainedTokenizerBase = ByT5Tokenizer()
    assert shared_vocabulary_size(slow, ByT5Tokenizer(), 400, 384) == 384
    with pytest.raises(ValueError, match="id 0 is '<pad>' for the student but"):
        shared_vocabulary_size(slow, tokenizer(), 400, 384)


def test_tokenizers_without_a_token_for_unknown_text() -> None:
    one, same, other = (
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({word: 0, "sum": 1})))
        for word in ("def", "def", "class")
    )
    assert shared_vocabulary_size(one, same, 2, 2) == 2
    assert vocabulary_digest(one, 2) == vocabulary_digest(same, 2) != vocabulary_digest(other, 2)


def test_error_names_a_token_beyond_the_prefix() -> None:
    longer = tokenizer(extra=("<fim>",))
    rows = Dataset.from_dict({"input_ids": [[1, 2], [3, TOKENS], []], "labels": [[1, 2], [3, TOKENS], []]})
    require_shared_tokens(rows, TOKENS + 1, longer)
    with pytest.raises(ValueError, match=f"eval dataset contains the token '<fim>' with id {TOKENS}.*below {TOKENS}"):
        require_shared_tokens(rows, TOKENS, longer, name="eval")
