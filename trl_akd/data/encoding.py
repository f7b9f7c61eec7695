"""Text to token ids on either side of the boundary between prompt and completion.

The two sides are tokenised apart, so the prompt's tokens in training are exactly those that generation starts from,
even where a merge would cross the boundary. The completion is tokenised as text that follows other text, so tokenizers
that open a text with a space (SentencePiece) add none.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length

__all__ = ["encode_completions", "encode_prompts", "encode_rerendered", "encode_texts"]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, add_special_tokens: bool = True
) -> list[list[int]]:
    """Tokenise prompts as generation starts from them: BOS at most once, and no EOS that the text does not hold.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the student's tokenizer.
        prompts (`Sequence[str]`): texts.
        add_special_tokens (`bool`, *optional*, defaults to `True`): whether the tokenizer adds its BOS; `False` for
            text from a chat template, which writes its own.
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
    """Tokenise completions and close each with EOS, once, whether or not its text already ends in it.

    An empty completion stays empty: it gets no EOS, for there is nothing to learn to end. What a chat template writes
    behind its last EOS (a line break, as a rule) is left out, since generation stops before it.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the student's tokenizer.
        completions (`Sequence[str]`): texts.

    Raises:
        ValueError: If the tokenizer has no EOS token.
    """
    _require_eos(tokenizer)
    texts = [_without_eos(text, str(tokenizer.eos_token)) for text in completions]
    encoded = _encode_continuations(tokenizer, texts)
    return [[*ids, tokenizer.eos_token_id] if text.strip() else [] for text, ids in zip(texts, encoded, strict=True)]


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokenise whole texts and close each with EOS, once; an empty text stays empty.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the student's tokenizer.
        texts (`Sequence[str]`): texts.

    Raises:
        ValueError: If the tokenizer has no EOS token.
    """
    _require_eos(tokenizer)
    texts = [_without_eos(text, str(tokenizer.eos_token)) for text in texts]
    encoded = encode_prompts(tokenizer, texts)
    return [[*ids, tokenizer.eos_token_id] if text.strip() else [] for text, ids in zip(texts, encoded, strict=True)]


def encode_rerendered(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], conversation: str
) -> tuple[list[int], list[int]]:
    """Tokenise a conversation whose text goes on otherwise than its prompt ends, and cut it where they part.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the student's tokenizer.
        prompt (`Sequence[int]`): tokens of the prompt alone.
        conversation (`str`): text of the whole conversation.

    Returns:
        `tuple[list[int], list[int]]`: the tokens that both have in common, and those that follow, closed with EOS.

    Raises:
        ValueError: If the tokenizer has no EOS token.
    """
    _require_eos(tokenizer)
    [ids] = _encode(tokenizer, [_without_eos(conversation, str(tokenizer.eos_token))])
    shared = common_prefix_length(list(prompt), ids)
    return ids[:shared], [*ids[shared:], tokenizer.eos_token_id]


def _require_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no EOS token, so completions cannot be ended; set tokenizer.eos_token to the token "
            "that stops the student's generation."
        )


def _without_eos(text: str, eos_token: str) -> str:
    ended = text.rstrip()
    return ended.removesuffix(eos_token) if ended.endswith(eos_token) else text


def _encode_continuations(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokenise texts behind a line break, then take its tokens off again.

    Where the break merges with the text (byte-level BPE before a line break or an indent), the text is tokenised
    alone: such tokenizers put no space in front.
    """
    [line_break] = _encode(tokenizer, ["\n"])
    behind = _encode(tokenizer, ["\n" + text for text in texts])
    return [
        ids[len(line_break) :] if ids[: len(line_break)] == line_break else _encode(tokenizer, [text])[0]
        for text, ids in zip(texts, behind, strict=True)
    ]


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], add_special_tokens: bool = False
) -> list[list[int]]:
    encoding = tokenizer(
        list(texts), add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False
    )
    input_ids: list[list[int]] = encoding["input_ids"]
    return input_ids
