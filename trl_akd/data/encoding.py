"""Tokenize prompts and completions.

The two are tokenized separately, so the prompt's tokens in training are exactly those from which generation starts,
even where a merge would cross the boundary. The completion is tokenized as the continuation of a text, so tokenizers
that add a space to the beginning of a text (SentencePiece) add none.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

__all__ = ["common_prefix_length", "encode_completions", "encode_prompts", "encode_rerendered", "encode_texts"]


def common_prefix_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return the number of leading items that two sequences share."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, add_special_tokens: bool = True
) -> list[list[int]]:
    """Tokenize prompts for training and for generation alike, with at most one BOS and no added EOS.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The student's tokenizer.
        prompts (`Sequence[str]`):
            Texts.
        add_special_tokens (`bool`, *optional*, defaults to `True`):
            Whether the tokenizer adds BOS; `False` for text from a chat template, which contains its own.
    """
    encoded = _encode(tokenizer, prompts, add_special_tokens)
    return [_trim_special_tokens(tokenizer, text, ids) for text, ids in zip(prompts, encoded, strict=True)]


def _trim_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    if ids and ids[-1] == eos and not text.endswith(str(tokenizer.eos_token)):
        ids = ids[:-1]
    return ids


def encode_completions(tokenizer: PreTrainedTokenizerBase, completions: Sequence[str]) -> list[list[int]]:
    """Tokenize completions so that each ends with a single EOS, whether or not its text already has one.

    An empty completion stays empty, without EOS. Whitespace after the EOS of a chat template (usually a line break) is
    removed, since generation stops before it.

    Raises:
        ValueError: If the tokenizer has no EOS token.
    """
    return _encode_with_eos(tokenizer, completions, _encode_continuations)


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokenize whole texts so that each ends with a single EOS; an empty text stays empty.

    Raises:
        ValueError: If the tokenizer has no EOS token.
    """
    return _encode_with_eos(tokenizer, texts, encode_prompts)


def encode_rerendered(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], conversation: str
) -> tuple[list[int], list[int]]:
    """Tokenize a conversation that does not start with its rendered prompt, and split it after their common prefix.

    Returns:
        `tuple[list[int], list[int]]`: The tokens of the common prefix, and the tokens after it, ending with EOS.

    Raises:
        ValueError: If the tokenizer has no EOS token.
    """
    _require_eos(tokenizer)
    [ids] = _encode(tokenizer, [_without_eos(conversation, str(tokenizer.eos_token))])
    shared = common_prefix_length(prompt, ids)
    return ids[:shared], [*ids[shared:], tokenizer.eos_token_id]


def _encode_with_eos(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    encode: Callable[[PreTrainedTokenizerBase, Sequence[str]], list[list[int]]],
) -> list[list[int]]:
    _require_eos(tokenizer)
    texts = [_without_eos(text, str(tokenizer.eos_token)) for text in texts]
    encoded = encode(tokenizer, texts)
    return [[*ids, tokenizer.eos_token_id] if text.strip() else [] for text, ids in zip(texts, encoded, strict=True)]


def _require_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no EOS token to end completions with; set tokenizer.eos_token to the token that stops "
            "the student's generation."
        )


def _without_eos(text: str, eos_token: str) -> str:
    ended = text.rstrip()
    return ended.removesuffix(eos_token) if ended.endswith(eos_token) else text


def _encode_continuations(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokenize texts after a line break, and remove the tokens of the line break.

    If the line break merges with the text (byte-level BPE before a line break or an indent), the text is tokenized
    alone: such tokenizers do not add a space.
    """
    [line_break] = _encode(tokenizer, ["\n"])
    after_break = _encode(tokenizer, ["\n" + text for text in texts])
    return [
        ids[len(line_break) :] if ids[: len(line_break)] == line_break else _encode(tokenizer, [text])[0]
        for text, ids in zip(texts, after_break, strict=True)
    ]


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], add_special_tokens: bool = False
) -> list[list[int]]:
    encoding = tokenizer(
        list(texts), add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False
    )
    input_ids: list[list[int]] = encoding["input_ids"]
    return input_ids
