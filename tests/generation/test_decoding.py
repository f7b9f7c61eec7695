"""Selection of tokens, detokenization without lost spaces, and stop strings across token boundaries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests import tiny
from trl_akd.generation.decoding import Detokenizer, StopStrings, TokenChooser


def sentencepiece() -> PreTrainedTokenizerFast:
    """A tokenizer like that of Llama 2: a space is added before each text, and removed by decoding."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "x", "▁x", "▁▁", "▁▁▁▁"]
    merges = [("▁", "x"), ("▁", "▁"), ("▁▁", "▁▁")]
    backend = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=merges,
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_no_indent_is_lost() -> None:
    tokenizer = sentencepiece()
    indented = [tokenizer.convert_tokens_to_ids(token) for token in ("▁▁▁▁", "x")]
    assert tokenizer.decode(indented) == "   x", "the premise of this test"
    assert Detokenizer(tokenizer, continuing=True)(indented) == "    x"
    assert Detokenizer(tokenizer, continuing=False)(indented) == "   x"


def test_special_and_unknown_tokens_have_no_text() -> None:
    tokenizer = tiny.tokenizer()
    detokenizer = Detokenizer(tokenizer, continuing=True)
    letter = tokenizer("a")["input_ids"]
    assert detokenizer([256, *letter, 257, 300, *letter]) == "aa"


TEXT = st.text(st.sampled_from("ab\n é🎈"), max_size=12)


@given(text=TEXT, stop=st.lists(st.text(st.sampled_from("ab\n é🎈"), min_size=1, max_size=4), min_size=1, max_size=3))
@settings(max_examples=200)
@pytest.mark.parametrize("make", [tiny.tokenizer, sentencepiece], ids=["bytes", "sentencepiece"])
def test_a_row_ends_at_the_first_token_that_completes_a_stop(make, text: str, stop: list[str]) -> None:
    tokenizer = TOKENIZERS.setdefault(make, make())
    detokenizer = Detokenizer(tokenizer, continuing=True)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    tokens = [piece for token in tokens for piece in (256 if make is tiny.tokenizer else 1, token)]  # silent between
    expected = next(
        (
            length
            for length in range(1, len(tokens) + 1)
            if any(string in detokenizer(tokens[:length]) for string in stop)
        ),
        None,
    )
    criterion = StopStrings(stop, detokenizer, rows=2)
    done = [
        criterion(torch.tensor([[7, *tokens[:length]], [7] + [257 if make is tiny.tokenizer else 2] * length]), None)
        for length in range(1, len(tokens) + 1)
    ]
    assert criterion.lengths == [expected, None]
    assert [bool(rows[0]) for rows in done] == [
        expected is not None and length >= expected for length in range(1, len(tokens) + 1)
    ]


TOKENIZERS: dict = {}


def chosen(scores: torch.Tensor) -> torch.Tensor:
    assert ((scores == 0).sum(-1) == 1).all()
    assert ((scores == -torch.inf).sum(-1) == scores.shape[-1] - 1).all()
    return scores.argmax(-1)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.8), (1.5, 0.5), (0.01, 0.9)])
def test_samples_follow_the_warped_distribution(temperature: float, top_p: float) -> None:
    """On a fine grid of draws, the frequency of each token equals its probability up to one grid point."""
    logits = torch.tensor([0.3, 2.0, -1.0, 1.9, 0.3, -torch.inf, 1.0])
    expected = (logits.double() / temperature).softmax(-1)
    nucleus: list[int] = []
    for token in expected.argsort(descending=True, stable=True).tolist():
        if expected[nucleus].sum() < top_p:
            nucleus.append(token)
    kept = torch.zeros_like(expected)
    kept[nucleus] = expected[nucleus] / expected[nucleus].sum()
    grid = 10_000
    draws = (torch.arange(grid, dtype=torch.float64) / grid)[:, None]
    tokens = chosen(TokenChooser(temperature, top_p, draws)(torch.zeros(grid, 1), logits.expand(grid, -1)))
    assert (torch.bincount(tokens, minlength=len(logits)) - kept * grid).abs().max() <= 1


@pytest.mark.parametrize("top_p", [1.0, 0.999999, 1e-9])
def test_the_outermost_draws_choose_a_token_of_some_probability(top_p: float) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, -200.0, -torch.inf]]).repeat(2, 1)
    draws = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64)
    assert chosen(TokenChooser(1.0, top_p, draws)(torch.zeros(2, 1), logits)).tolist() == [1, 1]


def test_log_probabilities_are_those_before_warping() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    draws = torch.rand(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    chooser = TokenChooser(0.5, 0.9, draws)
    tokens = torch.stack([chosen(chooser(torch.zeros(4, 1), logits)) for _ in range(2)], 1)
    torch.testing.assert_close(chooser.logprobs(), logits.log_softmax(-1).gather(1, tokens))
    alone = TokenChooser(0.5, 0.9, draws, with_logprobs=False)
    assert (torch.stack([chosen(alone(torch.zeros(4, 1), logits)) for _ in range(2)], 1) == tokens).all()
