"""Decoding with a transformers model: token selection, detokenization, stop strings, and an unwrapped model."""

import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria

from ..distributed import gathered, widest_float
from ..heads import evaluating

__all__ = [
    "Detokenizer",
    "StopStrings",
    "TokenChooser",
    "collect_eos_token_ids",
    "in_batches",
    "left_padded",
    "uniform_draws",
    "unwrapped_for_generation",
]

logger = logging.getLogger(__name__)

Row = TypeVar("Row")
Output = TypeVar("Output")

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # decoders return it for an incomplete character


class TokenChooser(LogitsProcessor):
    """Choose the next token of each row, and record its log-probability.

    Replaces the sampling of `generate`, which has one random state per batch. Here each row has its own random
    numbers, so that a sample depends neither on the other rows of the batch nor on the number of ranks. All other
    tokens get a score of minus infinity.

    Args:
        temperature (`float`):
            Sampling temperature; 0 for greedy decoding.
        top_p (`float`):
            Cumulative probability of the most likely tokens to sample from.
        draws (`torch.Tensor` of shape `[B, T]`, *optional*):
            Uniform random numbers in [0, 1), one per row and step; not needed at temperature 0.
        with_logprobs (`bool`, *optional*, defaults to `True`):
            Whether log-probabilities are recorded, which takes a fifth of the time.
    """

    def __init__(self, temperature: float, top_p: float, draws: Tensor | None, *, with_logprobs: bool = True) -> None:
        self._temperature = temperature
        self._top_p = top_p
        self._draws = draws
        self._with_logprobs = with_logprobs
        self._logprobs: list[Tensor] = []
        self._steps = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores `[B, V]` with one finite entry per row."""
        chosen = self._choose(scores)[:, None]
        self._steps += 1
        if self._with_logprobs:
            self._logprobs.append(scores.gather(1, chosen)[:, 0] - scores.logsumexp(-1))
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)

    def logprobs(self) -> Tensor:
        """Return the log-probabilities `[B, T]` of the tokens chosen so far, at temperature 1 and before `top_p`."""
        return torch.stack(self._logprobs, dim=1)

    def _choose(self, scores: Tensor) -> Tensor:
        if self._draws is None:
            return scores.argmax(-1)
        probabilities = (scores.to(self._draws.dtype) / self._temperature).softmax(-1)
        draw = self._draws[:, self._steps, None]
        if self._top_p == 1.0:
            return _invert(probabilities.cumsum(-1), draw)
        probabilities, tokens = torch.sort(probabilities, descending=True, stable=True)
        mass = probabilities.cumsum(-1)
        nucleus = mass.masked_fill(mass - probabilities >= self._top_p, 0.0).cummax(-1).values
        return tokens.gather(1, _invert(nucleus, draw)[:, None])[:, 0]


def _invert(mass: Tensor, draw: Tensor) -> Tensor:
    """Return the first index of each row whose cumulative mass exceeds the fraction `draw` `[B, 1]` of the total."""
    whole = mass[:, -1:].contiguous()
    last = torch.searchsorted(mass, whole)  # because of rounding, never an index after the last one with mass
    index = torch.minimum(torch.searchsorted(mass, draw * whole, right=True), last)[:, 0]
    return index.clamp(max=mass.shape[-1] - 1)  # for NaN, which the log-probabilities report


class Detokenizer:
    """Decode generated tokens.

    Tokens that continue a text are decoded after a line break, which is removed again. Tokenizers that drop a space at
    the beginning of a text (SentencePiece) would otherwise remove one from the first indentation.
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
    """Stop a row at the first token that completes a stop string.

    Unlike the criterion of transformers, this one needs no table of the whole vocabulary; it decodes the latest
    tokens.
    """

    def __init__(self, stop: Sequence[str], detokenizer: Detokenizer, rows: int) -> None:
        self._watches = [_Watch(stop, detokenizer) for _ in range(rows)]
        self._steps = 0
        self.lengths: list[int | None] = [None] * rows

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return whether each row of `input_ids` `[B, T]` has ended, `[B]`, given its latest token."""
        self._steps += 1
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if self.lengths[row] is None and self._watches[row].completes(token):
                self.lengths[row] = self._steps
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)


class _Watch:
    """Incremental search for stop strings in a text, decoded in pieces of whole characters."""

    def __init__(self, stop: Sequence[str], detokenizer: Detokenizer) -> None:
        self._stop = stop
        self._reach = max(map(len, stop))
        self._detokenizer = detokenizer
        self._end = ""  # last characters of the text so far, in which a stop string may begin
        self._settled: list[int] = []  # tokens of the last piece, on which decoding may depend
        self._settled_length = 0
        self._open: list[int] = []

    def completes(self, token: int) -> bool:
        """Add a token, and return whether the text now contains a stop string."""
        self._open.append(token)
        text = self._end + self._detokenizer([*self._settled, *self._open])[self._settled_length :]
        if not text.endswith(_INCOMPLETE):
            self._end = text[-self._reach :]
            self._settled, self._open = self._open, []
            self._settled_length = len(self._detokenizer(self._settled))
        return any(stop in text for stop in self._stop)


def left_padded(sequences: Sequence[list[int]], pad_token_id: int, device: torch.device) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask` `[B, T]` of sequences, padded on the left."""
    longest = max(map(len, sequences))
    ids = [[pad_token_id] * (longest - len(tokens)) + tokens for tokens in sequences]
    mask = [[0] * (longest - len(tokens)) + [1] * len(tokens) for tokens in sequences]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def uniform_draws(seeds: Sequence[int], steps: int, device: torch.device) -> Tensor:
    """Return uniform numbers `[B, steps]`, a function of each row's seed; fewer steps use the first of them."""
    sources = [random.Random(seed) for seed in seeds]
    draws = [[source.random() for _ in range(steps)] for source in sources]
    return torch.tensor(draws, dtype=widest_float(device)).to(device)


def in_batches(
    rows: Sequence[Row],
    size: int,
    generate: Callable[[Sequence[Row]], list[Output]],
    explain: Callable[[Row], str],
) -> Iterator[tuple[Sequence[Row], list[Output]]]:
    """Generate in batches, and halve the batch size when memory runs out.

    Args:
        rows (`Sequence`):
            Rows in the order in which they are generated.
        size (`int`):
            Number of rows per batch.
        generate (`Callable`):
            Function that returns the outputs of a batch of rows.
        explain (`Callable`):
            Function that returns the message of the error if memory does not suffice for a single row.

    Yields:
        `tuple`: The rows of a batch and their outputs.
    """
    while rows:
        batch = rows[:size]
        try:
            yield batch, generate(batch)
            rows = rows[size:]
            continue
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise torch.OutOfMemoryError(explain(batch[0])) from error
        # Outside of the clause above, whose error keeps the failed batch's tensors alive.
        size = len(batch) // 2
        logger.warning("Out of memory with %d sequences; continuing with %d at a time.", len(batch), size)
        torch.cuda.empty_cache()


@contextmanager
def unwrapped_for_generation(engine: Any, accelerator: Accelerator | None = None) -> Iterator[Any]:
    """Yield the model inside `engine`, prepared for `generate`: gathered, in eval mode, without gradients.

    Eval mode also disables gradient checkpointing, which disables the KV cache. Under ZeRO-3 each rank has all
    parameters inside the context, so ranks may generate different numbers of batches with `synced_gpus=False`;
    entering and leaving the context are collective operations.

    Args:
        engine (`torch.nn.Module`):
            Model, or the result of `accelerator.prepare`.
        accelerator (`Accelerator`, *optional*):
            Accelerator of the run.
    """
    model = engine if accelerator is None else accelerator.unwrap_model(engine)
    with _whole(model), torch.no_grad(), evaluating(model), _without_defaults(model):
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
    """Gather the parameters that ZeRO-3 shards."""
    parameters = list(model.parameters())
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        with gathered(parameters), _without_hooks(model):
            yield
    else:
        yield


@contextmanager
def _without_hooks(model: Any) -> Iterator[None]:
    """Remove the hooks of all modules; those of ZeRO-3 would shard each layer again and synchronize ranks."""
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
def _without_defaults(model: Any) -> Iterator[None]:
    """Hide the model's generation config, which `generate` uses as defaults."""
    owners = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    defaults = [owner.generation_config for owner in owners]
    for owner in owners:
        owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for owner, default in zip(owners, defaults, strict=True):
            owner.generation_config = default
