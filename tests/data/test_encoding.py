"""The boundary between prompt and completion, for byte-level and SentencePiece-like tokenizers."""

from collections.abc import Callable

import pytest
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from trl_akd.data.encoding import encode_completions, encode_prompts

BOUNDARIES = [
    ("### Response:", "def f(x):\n    return x\n"),
    ("### Response:", "\n\ndef f(x):"),
    ("### Response:\n", "    return x"),
    ("### Response:", " x"),
    ("de", "fine"),  # a merge would cross the boundary
    ("\n", "\n\n  x"),
    ("Größe: ", "日本語 🙂"),
    ("a", "a"),
]


@pytest.mark.parametrize("post_processor", [None, "<bos> $A", "<bos> $A <eos>", "$A <eos>"])
@pytest.mark.parametrize(("prompt", "completion"), BOUNDARIES)
def test_byte_level_round_trip(
    byte_level: Callable[..., PreTrainedTokenizerFast], post_processor: str | None, prompt: str, completion: str
) -> None:
    tokenizer = byte_level(post_processor)
    [prompt_ids], [completion_ids] = encode_prompts(tokenizer, [prompt]), encode_completions(tokenizer, [completion])
    assert tokenizer.decode(prompt_ids + completion_ids, skip_special_tokens=True) == prompt + completion
    has_bos = post_processor is not None and "<bos>" in post_processor
    assert prompt_ids.count(tokenizer.bos_token_id) == has_bos
    assert (prompt_ids + completion_ids).count(tokenizer.eos_token_id) == 1
    assert completion_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(("prompt", "completion"), BOUNDARIES)
def test_sentence_piece_adds_no_space_before_the_completion(
    sentence_piece: PreTrainedTokenizerFast, prompt: str, completion: str
) -> None:
    [prompt_ids] = encode_prompts(sentence_piece, [prompt])
    [completion_ids] = encode_completions(sentence_piece, [completion])
    assert sentence_piece.decode(prompt_ids + completion_ids, skip_special_tokens=True) == prompt + completion
    # The fixture does what it is there for: a text tokenized alone opens with a space.
    assert sentence_piece.convert_ids_to_tokens(sentence_piece("a", add_special_tokens=False)["input_ids"])[0] == "▁a"


def test_prompt_tokens_are_those_of_inference(byte_level: Callable[..., PreTrainedTokenizerFast]) -> None:
    tokenizer = byte_level("<bos> $A")
    joint, alone = tokenizer("define")["input_ids"], tokenizer("de")["input_ids"]
    assert joint[: len(alone)] != alone, "the fixture should merge across the boundary"
    assert encode_prompts(tokenizer, ["de"]) == [alone]


def test_tokens_equal_those_of_the_joint_text_without_merges(
    byte_level: Callable[..., PreTrainedTokenizerFast],
) -> None:
    tokenizer = byte_level()
    prompt, completion = "### Response:", " print(add(1, 2))\n"
    joint = tokenizer(prompt + completion)["input_ids"]
    [prompt_ids], [completion_ids] = encode_prompts(tokenizer, [prompt]), encode_completions(tokenizer, [completion])
    assert prompt_ids + completion_ids[:-1] == joint


def test_bos_written_in_the_prompt_is_not_doubled(byte_level: Callable[..., PreTrainedTokenizerFast]) -> None:
    tokenizer = byte_level("<bos> $A")
    assert encode_prompts(tokenizer, ["<bos>def"]) == encode_prompts(tokenizer, ["def"])


def test_eos_written_in_the_prompt_stays(byte_level: Callable[..., PreTrainedTokenizerFast]) -> None:
    tokenizer = byte_level()
    [ids] = encode_prompts(tokenizer, ["def<eos>"])
    assert ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("ending", ["<eos>", "<eos>\n", "<eos>  \n"])
def test_eos_written_in_the_completion_is_not_doubled(
    byte_level: Callable[..., PreTrainedTokenizerFast], ending: str
) -> None:
    tokenizer = byte_level()
    assert encode_completions(tokenizer, ["x\n" + ending]) == encode_completions(tokenizer, ["x\n"])


@pytest.mark.parametrize("text", ["", " \n\t", "<eos>", " <eos>\n"])
def test_empty_completion_gets_no_eos(byte_level: Callable[..., PreTrainedTokenizerFast], text: str) -> None:
    assert encode_completions(byte_level(), [text]) == [[]]


def test_slow_tokenizer() -> None:
    tokenizer = ByT5Tokenizer()  # adds EOS to every text, has no BOS
    [prompt_ids], [completion_ids] = encode_prompts(tokenizer, ["ab"]), encode_completions(tokenizer, ["c"])
    offset = 3  # its special tokens come first
    assert prompt_ids == [ord("a") + offset, ord("b") + offset]
    assert completion_ids == [ord("c") + offset, tokenizer.eos_token_id]


def test_tokenizer_without_eos(byte_level: Callable[..., PreTrainedTokenizerFast]) -> None:
    tokenizer = byte_level()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"no EOS token.*set tokenizer\.eos_token"):
        encode_completions(tokenizer, ["x"])
