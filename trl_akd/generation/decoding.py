"""Decoding with a transformers model: token selection, detokenization, stop strings, and an unwrapped model."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria

from ..distributed import gathered
from ..heads import evaluating

__all__ = ["Detokenizer", "StopStrings", "TokenChooser", "collect_eos_token_ids", "unwrapped_for_generation"]

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what decoders put for the first bytes of a character


class TokenChooser(LogitsProcessor):
    """Choose each row's next token and record its log-probability.

    It replaces the sampling of `generate`, which has one random state per batch: each row has its own draws, so that a
    sample depends neither on the other rows of the batch nor on the number of ranks. All other tokens get a score of
    minus infinity.

    Args:
        temperature (`float`):
            Divides the logits; 0 takes the most probable token.
        top_p (`float`):
            Probability of the most probable tokens that are sampled from.
        draws (`torch.Tensor` of shape `[B, T]`, *optional*):
            Uniform numbers in [0, 1), one per row and step; not needed at temperature 0.
    """

    def __init__(self, temperature: float, top_p: float, draws: Tensor | None) -> None:
        self._temperature = temperature
        self._top_p = top_p
        self._draws = draws
        self._logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores `[B, V]` that leave one token per row."""
        chosen = self._choose(scores)[:, None]
        self._logprobs.append(scores.gather(1, chosen)[:, 0] - scores.logsumexp(-1))
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)

    def logprobs(self) -> Tensor:
        """Return the log-probabilities `[B, T]` of the tokens chosen so far, at temperature 1 and before `top_p`."""
        return torch.stack(self._logprobs, dim=1)

    def _choose(self, scores: Tensor) -> Tensor:
        if self._draws is None:
            return scores.argmax(-1)
        probabilities = (scores.to(self._draws.dtype) / self._temperature).softmax(-1)
        draw = self._draws[:, len(self._logprobs), None]
        if self._top_p == 1.0:
            return _invert(probabilities.cumsum(-1), draw)
        probabilities, tokens = torch.sort(probabilities, descending=True, stable=True)
        mass = probabilities.cumsum(-1)
        nucleus = mass.masked_fill(mass - probabilities >= self._top_p, 0.0).cummax(-1).values
        return tokens.gather(1, _invert(nucleus, draw)[:, None])[:, 0]


def _invert(mass: Tensor, draw: Tensor) -> Tensor:
    """Return the first index of each row whose cumulated mass exceeds the drawn share `[B, 1]` of the whole."""
    whole = mass[:, -1:].contiguous()
    last = torch.searchsorted(mass, whole)  # rounding must not lead past the last index with any mass
    index = torch.minimum(torch.searchsorted(mass, draw * whole, right=True), last)[:, 0]
    return index.clamp(max=mass.shape[-1] - 1)  # NaN has no index; the log-probabilities show it


class Detokenizer:
    """Decode generated tokens.

    Tokens that continue a text are decoded after a line break, which is removed again: tokenizers that drop a space at
    the beginning of a text (SentencePiece) would otherwise remove one from the first indent.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, continuing: bool) -> None:
        self._tokenizer = tokenizer
        anchor: list[int] = tokenizer("\n", add_special_tokens=False)["input_ids"] if continuing else []
        self._anchor = anchor if self._decode(anchor) == "\n" else []

    def __call__(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens without special tokens."""
        return self._decode([*self._anchor, *tokens])[bool(self._anchor) :]

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class StopStrings(StoppingCriteria):
    """End a row at the first token that completes one of its stop strings.

    Unlike that of transformers, this criterion needs no table of the whole vocabulary; it decodes the newest tokens.
    """

    def __init__(self, stop: Sequence[str], detokenizer: Detokenizer, rows: int) -> None:
        self._watches = [_Watch(stop, detokenizer) for _ in range(rows)]
        self._steps = 0
        self.lengths: list[int | None] = [None] * rows

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Look at the newest token of each row of `input_ids` `[B, T]` and return which rows have ended, `[B]`."""
        self._steps += 1
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if self.lengths[row] is None and self._watches[row].completes(token):
                self.lengths[row] = self._steps
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)


class _Watch:
    """Watch one text grow, in pieces that begin and end between two characters."""

    def __init__(self, stop: Sequence[str], detokenizer: Detokenizer) -> None:
        self._stop = stop
        self._reach = max(map(len, stop))
        self._detokenizer = detokenizer
        self._end = ""  # of the text so far, as much as a stop string can reach back
        self._settled: list[int] = []  # tokens of its last piece, without which the next might decode otherwise
        self._settled_length = 0
        self._open: list[int] = []

    def completes(self, token: int) -> bool:
        """Take the next token, and tell whether the text now holds a stop string."""
        self._open.append(token)
        text = self._end + self._detokenizer([*self._settled, *self._open])[self._settled_length :]
        if not text.endswith(_INCOMPLETE):
            self._end = text[-self._reach :]
            self._settled, self._open = self._open, []
            self._settled_length = len(self._detokenizer(self._settled))
        return any(stop in text for stop in self._stop)


@contextmanager
def unwrapped_for_generation(engine: Any, accelerator: Accelerator | None = None) -> Iterator[Any]:
    """Yield the model inside `engine`, fit for `generate`: whole, in eval mode, without gradients and own settings.

    Eval mode also switches gradient checkpointing off, with which there is no KV cache. Under ZeRO-3 every rank holds
    all parameters inside the context, so ranks may generate different numbers of batches with `synced_gpus=False`;
    opening and closing it are collective.

    Args:
        engine (`torch.nn.Module`):
            A model, or what `accelerator.prepare` made of it.
        accelerator (`Accelerator`, *optional*):
            The run's accelerator.
    """
    model = engine if accelerator is None else accelerator.unwrap_model(engine)
    with _whole(model), torch.no_grad(), evaluating(model), _without_habits(model):
        yield model


def collect_eos_token_ids(*sources: Any) -> list[int]:
    """Collect the end-of-sequence ids of models and tokenizers, in ascending order."""
    found: set[int] = set()
    for source in sources:
        ids = getattr(getattr(source, "generation_config", source), "eos_token_id", None)
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return sorted(found)


@contextmanager
def _whole(model: Any) -> Iterator[None]:
    """Gather what ZeRO-3 shards."""
    parameters = list(model.parameters())
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        with gathered(parameters), _without_hooks(model):
            yield
    else:
        yield


@contextmanager
def _without_hooks(model: Any) -> Iterator[None]:
    """Silence the hooks of all modules; ZeRO-3's would shard each layer again, and compare notes between ranks."""
    places = [(module, name) for module in model.modules() for name in ("_forward_pre_hooks", "_forward_hooks")]
    hooks = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, OrderedDict())
    try:
        yield
    finally:
        for (module, name), own in zip(places, hooks, strict=True):
            setattr(module, name, own)


@contextmanager
def _without_habits(model: Any) -> Iterator[None]:
    """Hide the model's own generation settings, from which `generate` fills in what a configuration leaves open."""
    owners = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    habits = [owner.generation_config for owner in owners]
    for owner in owners:
        owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for owner, habit in zip(owners, habits, strict=True):
            owner.generation_config = habit
