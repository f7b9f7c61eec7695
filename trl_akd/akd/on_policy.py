"""Text generated during training, by the student (on-policy) or the teacher (SeqKD): sampling it and logging it."""

import importlib
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from textwrap import indent
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TrainerCallback,
    TypicalLogitsWarper,
)

from ..generation.decoding import (
    TokenChooser,
    in_batches,
    left_padded,
    uniform_draws,
    unwrapped_for_generation,
)
from ..losses.reduction import IGNORE_INDEX
from .akd_config import AKDConfig

MixedProcessor: TypeAlias = Callable[[Any], AbstractContextManager[Callable[[torch.Tensor], LogitsProcessor]]]
"""Function of a model, whose context manager yields a function of an attention mask `[B, P]` of prompts."""


def is_on_policy(lmbda: float, *, seed: int, step: int, micro_batch: int) -> bool:
    """Decide at random, with probability `lmbda`, whether a micro-batch is on-policy.

    The decision depends on the arguments alone, so that all ranks agree (generation under ZeRO-3 is a collective) and
    a resumed run makes the same decisions.

    Example:

    ```python
    >>> is_on_policy(1.0, seed=0, step=3, micro_batch=0), is_on_policy(0.0, seed=0, step=3, micro_batch=0)
    (True, False)

    ```
    """
    return random.Random(f"{seed}:{step}:{micro_batch}").random() < lmbda


def sampling_seed(seed: int, step: int, row: int) -> int:
    """Return the sampling seed of a row, given its number in the global batch of an optimizer step.

    It depends on the arguments alone, so that the text of a row is the same after resuming, for any number of
    processes and of accumulated micro-batches.

    Example:

    ```python
    >>> len({sampling_seed(0, step, row) for step in range(2) for row in range(2)})
    4

    ```
    """
    return random.Random(f"{seed}:{step}:{row}:text").getrandbits(63)


def sampling_config(
    *, max_new_tokens: int, temperature: float, pad_token_id: int, eos_token_ids: list[int]
) -> GenerationConfig:
    """Return a configuration that samples from the full distribution, with a KV cache."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        use_cache=True,
        pad_token_id=pad_token_id,
        eos_token_id=eos_token_ids[0] if len(eos_token_ids) == 1 else eos_token_ids,
    )


@dataclass(frozen=True)
class Prompt:
    """Tokens of a prompt, and the seed with which its completion is sampled."""

    tokens: list[int]
    seed: int


def read_prompts(batch: Mapping[str, torch.Tensor], seeds: Iterable[int]) -> list[Prompt]:
    """Return the prompts of a collated batch, whose left-padded `prompts` have a `prompt_attention_mask` `[B, P]`."""
    rows = zip(batch["prompts"].tolist(), batch["prompt_attention_mask"].tolist(), seeds, strict=False)
    return [Prompt(list(compress(tokens, mask)), seed) for tokens, mask, seed in rows]


def completed_row(prompt: Prompt, completion: Sequence[int], stop_ids: Iterable[int]) -> dict[str, list[int]]:
    """Return a row whose labels cover the completion up to its first stop token, or all of it if there is none."""
    stops = set(stop_ids)
    end = next((position + 1 for position, token in enumerate(completion) if token in stops), len(completion))
    kept = list(completion[:end])
    return {"input_ids": prompt.tokens + kept, "labels": [IGNORE_INDEX] * len(prompt.tokens) + kept}


class TransformersSampler:
    """Sampler of completions with the `generate` of transformers.

    Prompts are sorted by length. They form one batch, whose size is halved when memory runs out. Where processes must
    generate in step (under FSDP, or with a processor), batches have a fixed size, since all need equally many. Each
    row has random numbers of its own, so that its text does not depend on the other rows.

    Args:
        accelerator (`Accelerator`):
            Accelerator of the trainer.
        vocabulary_size (`int`):
            Number of leading token ids that both models share. No other ids are sampled.
        size_in_step (`int`):
            Number of prompts per batch where processes must generate in step.
    """

    def __init__(self, accelerator: Accelerator, vocabulary_size: int, *, size_in_step: int) -> None:
        self._accelerator = accelerator
        self._size_in_step = size_in_step
        self._vocabulary_size = vocabulary_size
        self._batch_size: int | None = None

    def sample(
        self,
        engine: Any,
        prompts: Sequence[Prompt],
        config: GenerationConfig,
        processor: MixedProcessor | None = None,
    ) -> list[list[int]]:
        """Return one completion per prompt, followed by padding if others are longer.

        Args:
            engine (`torch.nn.Module`):
                The model as `accelerator.prepare` returned it.
            prompts (`Sequence[Prompt]`):
                Prompts of this process.
            config (`GenerationConfig`):
                Sampling parameters.
            processor (`Callable`, *optional*):
                Function of the unwrapped model that returns a context manager, which yields a function from the
                attention mask `[B, P]` of prompts to a `LogitsProcessor`.

        Raises:
            ValueError: If beam search is combined with sampling.
        """
        if config.do_sample and (config.num_beams or 1) > 1:
            raise ValueError(
                f"`generation_config` has do_sample=True and num_beams={config.num_beams}; set do_sample=False for "
                "beam search, or num_beams=1."
            )
        bare = self._accelerator.unwrap_model(engine)
        not_shared = range(self._vocabulary_size, bare.config.get_text_config().vocab_size)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].tokens), reverse=True)
        is_sharded = self._accelerator.distributed_type == DistributedType.FSDP
        in_step = self._accelerator.num_processes > 1 and (is_sharded or processor is not None)
        size = min(self._size_in_step if in_step else self._batch_size or len(prompts), len(prompts))
        found: dict[int, list[int]] = {}
        with ExitStack() as stack:
            model = stack.enter_context(unwrapped_for_generation(engine, self._accelerator))
            processor_of = None if processor is None else stack.enter_context(processor(model))

            def generate(batch: Sequence[int]) -> list[list[int]]:
                rows = [prompts[index] for index in batch]
                try:
                    return _generate(model, rows, config, list(not_shared), processor_of, in_step=in_step)
                except torch.OutOfMemoryError as error:
                    if in_step:  # the other processes would wait for those with more batches
                        raise RuntimeError(explain(batch[0])) from error
                    raise

            def explain(index: int) -> str:
                return (
                    f"memory does not suffice for generating up to {config.max_new_tokens} tokens after a prompt of "
                    f"{len(prompts[index].tokens)}; lower `max_new_tokens` or `max_length`."
                )

            largest = 0
            for batch, completions in in_batches(order, size, generate, explain):
                found.update(zip(batch, completions, strict=True))
                largest = max(largest, len(batch))
        if largest < size:
            self._batch_size = largest
        return [found[index] for index in range(len(prompts))]


def _generate(
    model: Any,
    prompts: Sequence[Prompt],
    config: GenerationConfig,
    not_shared: list[int],
    processor_of: Callable[[torch.Tensor], LogitsProcessor] | None,
    *,
    in_step: bool,
) -> list[list[int]]:
    """Return the completions of one batch of prompts, without the token ids `not_shared`."""
    device = model.get_input_embeddings().weight.device
    inputs = left_padded([prompt.tokens for prompt in prompts], config.pad_token_id, device)
    processors = LogitsProcessorList()
    if processor_of is not None:
        processors.append(processor_of(inputs["attention_mask"]))
    if config.do_sample:
        processors += _warpers(config, str(device))
        draws = uniform_draws([prompt.seed for prompt in prompts], config.max_new_tokens, device)
        processors.append(TokenChooser(1.0, 1.0, draws, with_logprobs=False))
    kept = {name: value for name, value in config.to_diff_dict().items() if name not in ("do_sample", *_WARPERS)}
    sequences = model.generate(
        **inputs,
        generation_config=GenerationConfig(**{**kept, "suppress_tokens": not_shared or None}),
        logits_processor=processors,
        synced_gpus=None if in_step else False,
    )
    completions: list[list[int]] = sequences[:, inputs["input_ids"].shape[1] :].tolist()
    return completions


# Fields of GenerationConfig that shape the distribution, in the order in which `generate` applies them -> class, and
# the value that changes nothing.
_WARPERS: dict[str, tuple[Callable[..., LogitsProcessor], float]] = {
    "temperature": (TemperatureLogitsWarper, 1.0),
    "top_k": (TopKLogitsWarper, 0),
    "top_p": (TopPLogitsWarper, 1.0),
    "min_p": (MinPLogitsWarper, 0.0),
    "typical_p": (TypicalLogitsWarper, 1.0),
    "epsilon_cutoff": (EpsilonLogitsWarper, 0.0),
    "eta_cutoff": (EtaLogitsWarper, 0.0),
}


def _warpers(config: GenerationConfig, device: str) -> Iterator[LogitsProcessor]:
    for name, (warper, neutral) in _WARPERS.items():
        value = getattr(config, name, None)
        if value not in (None, neutral):
            yield warper(value, device=device) if name == "eta_cutoff" else warper(value)


class CompletionLog:
    """Prompts and completions of the latest optimizer step, written when the trainer logs.

    Args:
        args (`AKDConfig`):
            Configuration; `num_completions_to_print`, `log_unique_prompts`, `report_to` and `output_dir` are read.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer that decodes the texts.
        accelerator (`Accelerator`):
            Accelerator that gathers the texts from all processes.
        callbacks (`Sequence[TrainerCallback]`, *optional*):
            Callbacks of the trainer, as for [`report_table`].
    """

    def __init__(
        self,
        args: AKDConfig,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        step = args.per_device_train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
        self._texts: deque[tuple[str, str]] = deque(maxlen=step)
        self._args = args
        self._tokenizer = tokenizer
        self._accelerator = accelerator
        self._callbacks = callbacks

    def add(self, rows: Sequence[dict[str, list[int]]]) -> None:
        """Add one micro-batch of rows `{input_ids, labels}`. All processes must call it."""
        lengths = [row["labels"].count(IGNORE_INDEX) for row in rows]
        parts = [
            self._tokenizer.batch_decode(ids, skip_special_tokens=True)
            for ids in (
                [row["input_ids"][:length] for row, length in zip(rows, lengths, strict=True)],
                [row["input_ids"][length:] for row, length in zip(rows, lengths, strict=True)],
            )
        ]
        self._texts.extend(gather_object(list(zip(*parts, strict=True))))

    def write(self, step: int) -> None:
        """Print the texts, save them as Parquet under `completions`, and report them; then clear them."""
        if self._texts and self._accelerator.is_main_process:
            _print(step, list(self._texts)[: self._args.num_completions_to_print])
            folder = Path(str(self._args.output_dir)) / "completions"
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(_table(step, self._texts), folder / f"completions_{step:05d}.parquet")
            self._report(step)
        self.clear()

    def clear(self) -> None:
        """Discard the texts."""
        self._texts.clear()

    def _report(self, step: int) -> None:
        texts: Sequence[tuple[str, str]] = self._texts
        if self._args.log_unique_prompts:
            texts = list({text[0]: text for text in reversed(texts)}.values())[::-1]
        report_table("completions", _table(step, texts), self._args.report_to, self._callbacks)


def report_table(
    name: str, table: pa.Table, report_to: Sequence[str], callbacks: Sequence[TrainerCallback] = ()
) -> None:
    """Log a table to Weights & Biases and trackio, as TRL's trainers do, and to TensorBoard, if in `report_to`.

    Args:
        name (`str`):
            Name of the table.
        table (`pa.Table`):
            Table with a column `step`.
        report_to (`Sequence[str]`):
            Trackers.
        callbacks (`Sequence[TrainerCallback]`, *optional*):
            Callbacks of the trainer, one of which writes for TensorBoard.
    """
    for package in ("wandb", "trackio"):
        if package in report_to:
            tracker: Any = importlib.import_module(package)
            tracker.log({name: tracker.Table(dataframe=table.to_pandas())})
    for callback in callbacks:
        writer = getattr(callback, "tb_writer", None)
        if writer is not None:
            for number, row in enumerate(table.to_pylist()):
                writer.add_text(f"{name}/{number}", _as_markdown(row), row["step"])


def _as_markdown(row: dict[str, Any]) -> str:
    """Return the values of a row as blocks of code, which Markdown shows unchanged."""
    values = {key: value for key, value in row.items() if key != "step" and value is not None}
    return "\n\n".join(f"**{key}**\n\n{indent(str(value), '    ', lambda _: True)}" for key, value in values.items())


def _print(step: int, texts: Sequence[tuple[str, str]]) -> None:
    """Print prompts and completions as a table, as TRL's trainers do."""
    table = Table("Prompt", "Completion", expand=True, show_lines=True)
    for prompt, completion in texts:
        table.add_row(Text(prompt, style="bright_yellow"), Text(completion, style="bright_green"))
    Console().print(Panel(table, expand=False, title=f"Step {step}"))


def _table(step: int, texts: Sequence[tuple[str, str]]) -> pa.Table:
    prompts, completions = zip(*texts, strict=True)
    return pa.table({"step": [step] * len(texts), "prompt": prompts, "completion": completions})
