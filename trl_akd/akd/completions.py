"""The prompts and completions of generated text, for people to read while a run goes on."""

import importlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase
from transformers.utils import is_rich_available
from trl.trainer.utils import print_prompt_completions_sample

from ..losses.reduction import IGNORE_INDEX
from .akd_config import AKDConfig

__all__ = ["CompletionLog"]


class CompletionLog:
    """Holds the texts of the latest optimiser step, and writes them when the trainer logs.

    Args:
        args (`AKDConfig`):
            `log_completions`, `num_completions_to_print`, `log_unique_prompts`, `report_to` and the output folder.
        tokenizer (`PreTrainedTokenizerBase`):
            Decodes the texts.
        accelerator (`Accelerator`):
            Gathers them from all processes.
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
        """Print the texts, save them as Parquet under `completions`, and report them; then forget them."""
        if self._texts and self._accelerator.is_main_process:
            prompts, completions = (list(column) for column in zip(*self._texts, strict=True))
            if is_rich_available():
                print_prompt_completions_sample(
                    prompts, completions, {}, None, step, self._args.num_completions_to_print
                )
            folder = Path(str(self._args.output_dir)) / "completions"
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(_table(step, self._texts), folder / f"completions_{step:05d}.parquet")
            self._report(step)
        self._texts.clear()

    def _report(self, step: int) -> None:
        texts: Sequence[tuple[str, str]] = self._texts
        if self._args.log_unique_prompts:
            texts = list({text[0]: text for text in reversed(texts)}.values())[::-1]
        for name in ("wandb", "trackio"):
            if name in self._args.report_to:
                tracker: Any = importlib.import_module(name)
                tracker.log({"completions": tracker.Table(dataframe=_table(step, texts).to_pandas())})


def _table(step: int, texts: Sequence[tuple[str, str]]) -> pa.Table:
    prompts, completions = zip(*texts, strict=True)
    return pa.table({"step": [step] * len(texts), "prompt": prompts, "completion": completions})
