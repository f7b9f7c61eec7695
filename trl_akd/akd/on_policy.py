"""Text generated during training, by the student (on-policy) or the teacher (SeqKD): sampling it and logging it."""

import importlib
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from ..generation.decoding import collect_eos_token_ids, unwrapped_for_generation
from ..losses.reduction import IGNORE_INDEX
from .akd_config import AKDConfig


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


def sampling_seed(seed: int, step: int, micro_batch: int, process: int) -> int:
    """Return the sampling seed of one micro-batch on one process.

    It differs between micro-batches and processes, and depends on the arguments alone, so that a resumed run samples
    the same text.

    Example:

    ```python
    >>> len({sampling_seed(0, 3, micro_batch, process) for micro_batch in range(2) for process in range(2)})
    4

    ```
    """
    return random.Random(f"{seed}:{step}:{micro_batch}:{process}:text").getrandbits(63)


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


def sample_rows(
    engine: Any,
    batch: Mapping[str, torch.Tensor],
    accelerator: Accelerator,
    config: GenerationConfig,
    *,
    vocabulary_size: int,
    seed: int,
    processor: Callable[[Any, torch.Tensor], AbstractContextManager[LogitsProcessor]] | None = None,
) -> list[dict[str, list[int]]]:
    """Sample completions of the prompts of a batch.

    Args:
        engine (`torch.nn.Module`):
            The model as `accelerator.prepare` returned it.
        batch (`Mapping`):
            `prompts` and `prompt_attention_mask`, int64 tensors `[B, P]`, left-padded.
        accelerator (`Accelerator`):
            Accelerator of the trainer.
        config (`GenerationConfig`):
            Sampling parameters.
        vocabulary_size (`int`):
            Number of leading token ids that both models share. No other ids are sampled.
        seed (`int`):
            Seed of the sampling. The random state of the process is left unchanged.
        processor (`Callable`, *optional*):
            Function of the unwrapped model and the prompts' attention mask `[B, P]` that returns a context manager of
            a `LogitsProcessor`.

    Returns:
        `list[dict]`: Rows `{input_ids, labels}` whose labels cover the completion up to and including its first stop
        token, or all of it if there is none.
    """
    bare = accelerator.unwrap_model(engine)
    device = bare.get_input_embeddings().weight.device
    not_shared = list(range(vocabulary_size, bare.config.get_text_config().vocab_size))
    config = GenerationConfig(**{**config.to_diff_dict(), "suppress_tokens": not_shared or None})
    prompts, mask = batch["prompts"].to(device), batch["prompt_attention_mask"].to(device)
    with ExitStack() as stack:
        model = stack.enter_context(unwrapped_for_generation(engine, accelerator))
        options = {"generation_config": config}
        if processor is not None:
            options["logits_processor"] = LogitsProcessorList([stack.enter_context(processor(model, mask))])
        stack.enter_context(_seeded(seed, device))
        sequences = model.generate(input_ids=prompts, attention_mask=mask, **options)
    completions, stops = sequences[:, prompts.shape[1] :].tolist(), set(collect_eos_token_ids(config))
    return [
        _row(prompt[keep.bool()].tolist(), _until_stop(completion, stops))
        for prompt, keep, completion in zip(prompts, mask, completions, strict=True)
    ]


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed random numbers within the context, and restore their state after it."""
    has_states = device.type not in ("cpu", "mps")  # torch.random cannot restore those of MPS
    with torch.random.fork_rng([device] if has_states else [], device_type=device.type if has_states else "cuda"):
        torch.manual_seed(seed)
        yield


def _row(prompt: list[int], completion: list[int]) -> dict[str, list[int]]:
    return {"input_ids": prompt + completion, "labels": [IGNORE_INDEX] * len(prompt) + completion}


def _until_stop(completion: list[int], stops: set[int]) -> list[int]:
    for position, token in enumerate(completion):
        if token in stops:
            return completion[: position + 1]
    return completion


class CompletionLog:
    """Prompts and completions of the latest optimizer step, written when the trainer logs.

    Args:
        args (`AKDConfig`):
            Configuration; `num_completions_to_print`, `log_unique_prompts`, `report_to` and `output_dir` are read.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer that decodes the texts.
        accelerator (`Accelerator`):
            Accelerator that gathers the texts from all processes.
    """

    def __init__(self, args: AKDConfig, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator) -> None:
        step = args.per_device_train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
        self._texts: deque[tuple[str, str]] = deque(maxlen=step)
        self._args = args
        self._tokenizer = tokenizer
        self._accelerator = accelerator

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
        self._texts.clear()

    def _report(self, step: int) -> None:
        texts: Sequence[tuple[str, str]] = self._texts
        if self._args.log_unique_prompts:
            texts = list({text[0]: text for text in reversed(texts)}.values())[::-1]
        report_table("completions", _table(step, texts), self._args.report_to)


def report_table(name: str, table: pa.Table, report_to: Sequence[str]) -> None:
    """Log a table to Weights & Biases and trackio if they are in `report_to`, as TRL's trainers do."""
    for package in ("wandb", "trackio"):
        if package in report_to:
            tracker: Any = importlib.import_module(package)
            tracker.log({name: tracker.Table(dataframe=table.to_pandas())})


def _print(step: int, texts: Sequence[tuple[str, str]]) -> None:
    """Print prompts and completions as a table, as TRL's trainers do."""
    table = Table("Prompt", "Completion", expand=True, show_lines=True)
    for prompt, completion in texts:
        table.add_row(Text(prompt, style="bright_yellow"), Text(completion, style="bright_green"))
    Console().print(Panel(table, expand=False, title=f"Step {step}"))


def _table(step: int, texts: Sequence[tuple[str, str]]) -> pa.Table:
    prompts, completions = zip(*texts, strict=True)
    return pa.table({"step": [step] * len(texts), "prompt": prompts, "completion": completions})
