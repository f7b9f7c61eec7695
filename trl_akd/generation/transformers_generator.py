"""Generator for a transformers model in this process, or in all processes of an `accelerate launch`."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from ..data.encoding import encode_prompts
from ..distributed import picklable_error
from .decoding import (
    Detokenizer,
    StopStrings,
    TokenChooser,
    collect_eos_token_ids,
    in_batches,
    left_padded,
    uniform_draws,
    unwrapped_for_generation,
)
from .protocol import (
    GREEDY,
    Arrival,
    Completion,
    FinishReason,
    SamplingParams,
    StreamingGenerator,
    Usage,
    check_prompts,
    sample_offsets,
    truncate_at_stop,
)

__all__ = ["TransformersGenerator", "default_max_new_tokens"]


@dataclass(frozen=True, slots=True)
class _Row:
    """A sequence to generate: tokens of the prompt, number of the sample, and seed."""

    prompt: int
    number: int
    tokens: list[int]
    seed: int


_Written: TypeAlias = tuple[_Row, Completion]


class TransformersGenerator(StreamingGenerator):
    r"""Generate with a transformers model in memory, also during training.

    Sequences are batched by length, the longest first. If memory does not suffice, the batch size is halved. The KV
    cache is always used, also with gradient checkpointing. Of the model's own generation settings (repetition penalty,
    `top_k`, …) only the end-of-sequence ids are used, together with the tokenizer's. Mode, settings and random state
    of the model and of the caller are restored.

    Prompts are tokenized as in training (`trl_akd.data.encoding`). A sample depends only on prompt, seed and settings
    (apart from rounding, which depends on the batch): not on other prompts, batch size or the number of processes. A
    prompt given twice gets different samples.

    Args:
        model (`PreTrainedModel`, `PeftModel` or engine):
            A causal language model or an encoder-decoder on its device, or the result of `accelerator.prepare`.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer, with or without a padding token; the padding side has no effect.
        batch_size (`int`, *optional*, defaults to `16`):
            Maximum number of sequences generated together on one process.
        accelerator (`Accelerator`, *optional*):
            Distributes the prompts over its processes. All must call `generate` with the same arguments, and all get
            all completions. Required for a model that it prepared. Under ZeRO-3, each process gathers the whole model
            while generating.
        add_special_tokens (`bool`, *optional*, defaults to `True`):
            Whether the tokenizer adds BOS; `False` for prompts from a chat template, which contain it.

    Raises:
        ValueError: If `batch_size` is below 1 or the model is sharded by FSDP.

    Example:

    ```python
    >>> from transformers import ByT5Tokenizer, GPT2Config, GPT2LMHeadModel
    >>> from trl_akd.generation import TransformersGenerator
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=384, n_embd=8, n_layer=1, n_head=2))
    >>> generator = TransformersGenerator(model, ByT5Tokenizer(), batch_size=4)
    >>> [[completion]] = generator.generate(["def add(a, b):\n"], max_new_tokens=8)
    >>> completion.num_tokens <= 8
    True

    ```
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 16,
        accelerator: Accelerator | None = None,
        add_special_tokens: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}; give at least 1.")
        if accelerator is not None and accelerator.distributed_type == DistributedType.FSDP:
            raise ValueError("`accelerator` shards models by FSDP, which cannot generate here; use DDP or ZeRO.")
        self._engine = model
        self._model = model if accelerator is None else accelerator.unwrap_model(model)
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._accelerator = accelerator
        self._add_special_tokens = add_special_tokens
        self._is_encoder_decoder = bool(self._model.config.is_encoder_decoder)
        self._detokenizer = Detokenizer(tokenizer, continuing=not self._is_encoder_decoder)

    @property
    def is_shared(self) -> bool:
        """Whether all processes must call the generator together."""
        return self._accelerator is not None

    @property
    def model(self) -> Any:
        """The model without its engine."""
        return self._model

    @property
    def model_name(self) -> str:
        """The model's name or path."""
        return str(self._model.config.name_or_path)

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY) -> Iterator[Arrival]:
        """Yield the completions of each prompt when its last batch is finished.

        Between two yields the model stays in eval mode, without gradients.

        Raises:
            ValueError: If an argument is outside its range, a prompt has no tokens or is too long for the model, or
                the model's logits are NaN.
        """
        check_prompts(prompts)
        rows = sorted(self._rows(prompts, sampling), key=lambda row: len(row.tokens), reverse=True)
        if self._accelerator is not None:
            rows = rows[self._accelerator.process_index :: self._accelerator.num_processes]
        found: list[dict[int, Completion]] = [{} for _ in prompts]
        for written in self._write(rows, sampling):
            for row, completion in written:
                several = found[row.prompt]
                several[row.number] = completion
                if len(several) == sampling.n:
                    yield row.prompt, [several[number] for number in range(sampling.n)]

    def too_long(self, prompts: Sequence[str], max_new_tokens: int) -> list[int]:
        """Return the indices of the prompts that exceed the model's positions together with `max_new_tokens`."""
        lengths = map(len, self._encode(prompts))
        return [index for index, length in enumerate(lengths) if self._exceeds(length, max_new_tokens)]

    def _rows(self, prompts: Sequence[str], sampling: SamplingParams) -> list[_Row]:
        encoded = self._encode(prompts)
        for index, tokens in enumerate(encoded):
            self._check_length(index, len(tokens), sampling.max_new_tokens)
        return [
            _Row(index, sample, tokens, sampling.sample_seed(prompt, first + sample))
            for index, (prompt, tokens, first) in enumerate(
                zip(prompts, encoded, sample_offsets(prompts, sampling.n), strict=True)
            )
            for sample in range(sampling.n)
        ]

    def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
        if not prompts:
            return []
        if self._is_encoder_decoder:  # encoders are trained with EOS
            encoded = self._tokenizer(list(prompts), add_special_tokens=self._add_special_tokens, verbose=False)
            return list(encoded["input_ids"])
        encoded = encode_prompts(self._tokenizer, prompts, add_special_tokens=self._add_special_tokens)
        bos = self._tokenizer.bos_token_id
        return [tokens or ([] if bos is None else [bos]) for tokens in encoded]

    def _check_length(self, prompt: int, length: int, max_new_tokens: int) -> None:
        if length == 0:
            raise ValueError(
                f"`prompts[{prompt}]` is empty and the tokenizer has no BOS token; give a non-empty prompt."
            )
        if self._exceeds(length, max_new_tokens):
            raise ValueError(
                f"`prompts[{prompt}]` has {length} tokens, which with max_new_tokens={max_new_tokens} exceeds the "
                f"{self._positions} positions of the model; shorten the prompt or lower `max_new_tokens`."
            )

    @property
    def _positions(self) -> int | None:
        return _positions(self._model.config)

    def _exceeds(self, length: int, max_new_tokens: int) -> bool:
        needed = max(length, max_new_tokens) if self._is_encoder_decoder else length + max_new_tokens
        return self._positions is not None and needed > self._positions

    def _write(self, rows: list[_Row], sampling: SamplingParams) -> Iterator[list[_Written]]:
        """Generate the rows of this process, and yield the completions of all processes, batch by batch."""
        config = self._config(sampling.max_new_tokens, collect_eos_token_ids(self._model, self._tokenizer))
        with unwrapped_for_generation(self._engine, self._accelerator) as model:
            batches = self._batches(model, rows, sampling, config)
            if self._accelerator is None or self._accelerator.num_processes == 1:
                yield from batches
            else:
                yield from _in_step(batches)

    def _batches(
        self, model: Any, rows: list[_Row], sampling: SamplingParams, config: GenerationConfig
    ) -> Iterator[list[_Written]]:
        def write(batch: Sequence[_Row]) -> list[Completion]:
            return self._write_batch(model, batch, sampling, config)

        def explain(row: _Row) -> str:
            return (
                f"memory does not suffice for `prompts[{row.prompt}]`, of {len(row.tokens)} tokens and "
                f"max_new_tokens={sampling.max_new_tokens}; shorten it, or lower `max_new_tokens`."
            )

        for batch, completions in in_batches(rows, self._batch_size, write, explain):
            yield list(zip(batch, completions, strict=True))

    def _config(self, max_new_tokens: int, eos: list[int]) -> GenerationConfig:
        pad = self._tokenizer.pad_token_id
        own = getattr(self._model, "generation_config", None)
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,  # TokenChooser does
            use_cache=True,
            eos_token_id=eos or None,
            pad_token_id=pad if pad is not None else eos[0] if eos else 0,
            decoder_start_token_id=getattr(own, "decoder_start_token_id", None) if self._is_encoder_decoder else None,
        )

    def _write_batch(
        self, model: Any, rows: Sequence[_Row], sampling: SamplingParams, config: GenerationConfig
    ) -> list[Completion]:
        device = model.get_input_embeddings().weight.device
        inputs = left_padded([row.tokens for row in rows], config.pad_token_id, device)
        seeds = [row.seed for row in rows]
        draws = None if sampling.temperature == 0.0 else uniform_draws(seeds, sampling.max_new_tokens, device)
        chooser = TokenChooser(sampling.temperature, sampling.top_p, draws)
        stopper = StopStrings(sampling.stop, self._detokenizer, len(rows)) if sampling.stop else None
        sequences = model.generate(
            **inputs,
            generation_config=config,
            logits_processor=LogitsProcessorList([chooser]),
            stopping_criteria=StoppingCriteriaList([stopper] if stopper else []),
            synced_gpus=False,
        )
        generated = sequences[:, 1 if self._is_encoder_decoder else inputs["input_ids"].shape[1] :]
        lengths = stopper.lengths if stopper else [None] * len(rows)
        ends = set(config.eos_token_id or ())
        return [
            self._completion(row, tokens, row_logprobs, length, ends, sampling)
            for row, tokens, row_logprobs, length in zip(
                rows, generated.tolist(), chooser.logprobs().tolist(), lengths, strict=True
            )
        ]

    def _completion(
        self,
        row: _Row,
        tokens: list[int],
        logprobs: list[float],
        length: int | None,
        ends: set[int],
        sampling: SamplingParams,
    ) -> Completion:
        """Return the completion of a row, without padding."""
        end = next((position for position, token in enumerate(tokens[:length]) if token in ends), None)
        count = length or len(tokens) if end is None else end + 1
        mean = sum(logprobs[:count]) / count
        if math.isnan(mean):
            raise ValueError(
                f"the model's logits for `prompts[{row.prompt}]` are NaN; check that its training has not diverged "
                "and that its dtype does not overflow."
            )
        text, stopped = truncate_at_stop(
            self._detokenizer(tokens[:count] if end is None else tokens[:end]), sampling.stop
        )
        reason: FinishReason = "length" if end is None and not stopped else "stop"
        return Completion(text, mean, reason, count, usage=Usage(0, len(row.tokens), count))


def default_max_new_tokens(config: PreTrainedConfig) -> int:
    """Return the default maximum number of tokens per completion.

    512, or half of the model's positions where that is less, so that prompts of the same length fit.

    Example:

    ```python
    >>> from transformers import LlamaConfig
    >>> default_max_new_tokens(LlamaConfig(max_position_embeddings=128))
    64

    ```
    """
    positions = _positions(config)
    return 512 if positions is None or config.is_encoder_decoder else max(1, min(512, positions // 2))


def _positions(config: PreTrainedConfig) -> int | None:
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit


def _in_step(batches: Iterator[list[_Written]]) -> Iterator[list[_Written]]:
    """Yield the completions of one batch per process at a time; if a process fails, all fail."""
    while True:
        batch, failure = None, None
        try:
            batch = next(batches, None)
        except Exception as error:
            failure = picklable_error(error)
        outcomes = gather_object([(batch, failure)])
        for _, failure in outcomes:
            if failure is not None:
                raise failure
        if all(batch is None for batch, _ in outcomes):
            return
        yield [written for batch, _ in outcomes for written in batch or ()]
