"""Tokenize rows once, before training.

Three rules hold for every row that is kept:

- The prompt's tokens are those from which generation starts (`trl_akd.data.encoding`), up to where the chat template
  renders the whole conversation differently.
- Labels are -100 on the prompt, and the tokens themselves on the completion and its EOS.
- Prompts are never truncated. A completion that exceeds `max_length` loses its end, including EOS, so that the student
  does not learn to stop there.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from numpy.typing import NDArray
from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerBase
from trl.data_utils import pack_dataset

from ..losses.reduction import IGNORE_INDEX
from .chat import render
from .encoding import encode_completions, encode_prompts, encode_rerendered, encode_texts
from .schema import (
    DatasetFormat,
    detect_format,
    read_instruction,
    read_messages,
    read_optional_text,
    read_template_inputs,
    read_text,
    read_tokens,
)
from .templates import DEFAULT_TEMPLATE, PromptTemplate, get_template

__all__ = [
    "PROMPT_COLUMN",
    "StreamCounts",
    "TokenizationReport",
    "pack",
    "prepare_dataset",
    "tokenize_dataset",
    "tokenize_stream",
]

TOKEN_COLUMNS = ["input_ids", "labels"]
PROMPT_COLUMN = "prompt_ids"


class _Outcome(IntEnum):
    KEPT = 0
    TRUNCATED = 1
    TOO_LONG = 2
    EMPTY = 3


_FEATURES = Features(
    input_ids=List(Value("int32")),
    labels=List(Value("int32")),
    prompt_ids=List(Value("int32")),
    rerendered=Value("bool"),
    outcome=Value("int8"),
    prompt_length=Value("int32"),
)


@dataclass(frozen=True, slots=True)
class TokenizationReport:
    """Counts of the rows kept and dropped; `kept + dropped_too_long + dropped_empty == rows`.

    Args:
        rows (`int`):
            Number of rows read.
        kept (`int`):
            Number of rows with at least one target token.
        truncated (`int`):
            Number of kept rows whose completion was truncated.
        dropped_too_long (`int`):
            Number of rows whose prompt leaves no room for a target token.
        dropped_empty (`int`):
            Number of rows without a completion or, if already tokenized, without a target.
        rerendered (`int`, *optional*, defaults to `0`):
            Number of rows, including dropped ones, whose rendered conversation does not start with the rendered
            prompt.
    """

    rows: int
    kept: int
    truncated: int
    dropped_too_long: int
    dropped_empty: int
    rerendered: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing to warn about."""
        return self.kept == self.rows and self.rerendered == 0

    def summary(self) -> str:
        """Return the counts as one sentence.

        Example:

        ```python
        >>> TokenizationReport(rows=10, kept=7, truncated=2, dropped_too_long=1, dropped_empty=2).summary()
        'Kept 7 of 10 rows (2 of them truncated); dropped 1 with too long a prompt and 2 without a completion.'

        ```
        """
        counts = (
            f"Kept {self.kept:,} of {self.rows:,} rows ({self.truncated:,} of them truncated); dropped "
            f"{self.dropped_too_long:,} with too long a prompt and {self.dropped_empty:,} without a completion."
        )
        if not self.rerendered:
            return counts
        return (
            f"{counts} In {self.rerendered:,} rows the conversation as the chat template renders it does not start "
            "with the rendered prompt, for example because the prompt opens `<think>` and the answer has no "
            "reasoning; these rows are trained on as the whole conversation is rendered."
        )


class StreamCounts:
    """Counts of the rows read from a stream, in memory that the workers of a data loader share with its process."""

    def __init__(self) -> None:
        # One row per worker, since their additions are not atomic, and the first for the process itself.
        self._counts = torch.zeros(_MOST_WORKERS + 1, len(_Outcome) + 1, dtype=torch.int64)
        self._counts.share_memory_()  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the same counts, as copies of a stream read the same rows."""
        return self

    def keeps(self, outcome: int, rerendered: bool) -> bool:
        """Count a row, and return whether it is kept."""
        worker = get_worker_info()
        counts = self._counts[0 if worker is None else 1 + worker.id % _MOST_WORKERS]
        counts[outcome] += 1
        counts[-1] += rerendered
        return _is_kept(outcome)

    def clear(self) -> None:
        """Begin with 0 again."""
        self._counts.zero_()

    def report(self) -> TokenizationReport:
        """Return the counts of the rows read so far."""
        *outcomes, rerendered = self._counts.sum(dim=0).tolist()
        return _report(outcomes, rerendered)


_MOST_WORKERS = 63


def prepare_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    packing: bool = False,
    shuffle_seed: int | None = None,
    num_proc: int | None = None,
    name: str = "train",
    kept_columns: Collection[str] = (),
    **options: Any,
) -> tuple[Dataset | IterableDataset, TokenizationReport | StreamCounts | None]:
    """Tokenize a dataset and, if requested, shuffle and pack it.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows in a format that [`tokenize_dataset`] accepts. Packed rows are returned unchanged.
        tokenizer (`PreTrainedTokenizerBase`):
            The student's tokenizer.
        max_length (`int` or `None`):
            Maximum number of tokens per row, packed or not.
        packing (`bool`, *optional*, defaults to `False`):
            Whether to join samples into rows of up to `max_length` tokens.
        shuffle_seed (`int`, *optional*):
            Seed of the shuffle; by default the order stays.
        kept_columns (`Collection[str]`, *optional*):
            Columns to keep, unless the rows are packed or streamed.
        num_proc (`int`, *optional*), name (`str`, *optional*, defaults to `"train"`), **options:
            As in [`tokenize_dataset`].

    Returns:
        The rows, and the counts, which for a stream grow as it is read (`None` for rows that were packed already).

    Raises:
        ValueError: As in [`tokenize_dataset`] and [`pack`], or if a stream is to be packed.
    """
    if "seq_lengths" in (dataset.column_names or ()):
        return dataset, None
    report: TokenizationReport | StreamCounts
    if isinstance(dataset, IterableDataset):
        if packing:
            raise ValueError(
                f"`packing` is on, but the {name} dataset is a stream; set packing=False or streaming=False."
            )
        report = StreamCounts()
        dataset = tokenize_stream(dataset, tokenizer, max_length=max_length, counts=report, **options)
    else:
        dataset, report = tokenize_dataset(
            dataset,
            tokenizer,
            max_length=max_length,
            num_proc=num_proc,
            name=name,
            kept_columns=kept_columns,
            **options,
        )
    if shuffle_seed is not None:
        dataset = dataset.shuffle(seed=shuffle_seed)
    if isinstance(dataset, Dataset) and packing:
        if max_length is None:
            raise ValueError("`packing` is on, but `max_length` is not set; set the number of tokens per packed row.")
        dataset = pack(dataset, max_length, num_proc=num_proc, name=name)
    return dataset, report


def tokenize_dataset(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    prompt_template: str = DEFAULT_TEMPLATE,
    num_proc: int | None = None,
    name: str = "train",
    text_field: str = "text",
    with_prompts: bool = False,
    allow_prompt_only: bool = False,
    kept_columns: Collection[str] = (),
) -> tuple[Dataset, TokenizationReport]:
    """Tokenize a dataset and count the truncated and dropped rows.

    Rows have Alpaca columns, `prompt`/`completion` (text or messages), `messages` or ShareGPT's `conversations`, whole
    texts, or `input_ids`/`labels`, which are checked and truncated to `max_length` as well (see
    `trl_akd.data.schema`). The prompt template applies to Alpaca columns only; the columns `tools` and
    `chat_template_kwargs` apply to messages only. In a whole text every token but the first is a target.

    Args:
        dataset (`Dataset`):
            Rows in one of these formats; other columns are dropped.
        tokenizer (`PreTrainedTokenizerBase`):
            The student's tokenizer, with an EOS token.
        max_length (`int` or `None`):
            Maximum number of tokens per row; `None` for no limit.
        prompt_template (`str`, *optional*, defaults to `"alpaca"`):
            Name of a template in `PROMPT_TEMPLATES`.
        num_proc (`int`, *optional*):
            Number of worker processes of `Dataset.map`.
        name (`str`, *optional*, defaults to `"train"`):
            Name of the dataset in messages.
        text_field (`str`, *optional*, defaults to `"text"`):
            Column of whole texts.
        with_prompts (`bool`, *optional*, defaults to `False`):
            Whether to add `prompt_ids`, the tokens from which generation starts.
        allow_prompt_only (`bool`, *optional*, defaults to `False`):
            Whether to keep rows without a completion; their labels are all -100.
        kept_columns (`Collection[str]`, *optional*):
            Columns to keep in the result where the dataset has them.

    Returns:
        `tuple[Dataset, TokenizationReport]`: Rows of `input_ids` and `labels` (of equal length, in the order of the
        dataset) and the requested columns, and the counts.

    Raises:
        ValueError: If columns are missing, a value has the wrong type, the dataset is empty, `max_length` is below 2,
            the tokenizer lacks something that the format needs, or no row has a target token left.
    """
    if len(dataset) == 0:
        raise ValueError(f"The {name} dataset has no rows; check the file or the split it was loaded from.")
    kept = [column for column in dataset.column_names if column in kept_columns and column not in _FEATURES]
    mapped = dataset.with_format(None).map(
        _BatchTokenizer.create(
            dataset.column_names, tokenizer, max_length, prompt_template, text_field, with_prompts, allow_prompt_only
        ),
        batched=True,
        with_indices=True,
        remove_columns=[column for column in dataset.column_names if column not in kept],
        features=Features(_FEATURES | {column: dataset.features[column] for column in kept}),
        num_proc=num_proc,
        desc=f"Tokenizing {name} dataset",
    )
    batches: Any = mapped.select_columns(["outcome", "rerendered"]).with_format("arrow").iter(batch_size=10_000)
    counted = [(batch["outcome"].to_numpy(), pc.sum(batch["rerendered"]).as_py()) for batch in batches]
    outcomes = np.concatenate([found for found, _ in counted])  # one byte per row
    report = _count(outcomes, sum(rerendered for _, rerendered in counted))
    if report.kept == 0:
        long_prompts = mapped.with_format("numpy")["prompt_length"][:][outcomes == _Outcome.TOO_LONG]
        raise ValueError(_nothing_kept(name, report, long_prompts, max_length))
    if report.kept < report.rows:
        mapped = mapped.select(np.flatnonzero(outcomes <= _Outcome.TRUNCATED))
    return mapped.select_columns([*_token_columns(with_prompts), *kept]), report


def tokenize_stream(
    dataset: IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    prompt_template: str = DEFAULT_TEMPLATE,
    text_field: str = "text",
    with_prompts: bool = False,
    allow_prompt_only: bool = False,
    counts: StreamCounts | None = None,
) -> IterableDataset:
    """Tokenize a stream lazily, by the rules and with the arguments of [`tokenize_dataset`].

    The rows that are read, kept or dropped, are added to `counts`.

    Returns:
        `IterableDataset`: Rows of `input_ids` and `labels`, and `prompt_ids` if requested.

    Raises:
        ValueError: As in [`tokenize_dataset`]; errors about a row are raised when the stream reaches it.
    """
    column_names = dataset.column_names or list(next(iter(dataset), {}))
    mapped = dataset.with_format(None).map(
        _BatchTokenizer.create(
            column_names, tokenizer, max_length, prompt_template, text_field, with_prompts, allow_prompt_only
        ),
        batched=True,
        with_indices=True,
        remove_columns=column_names,
        features=_FEATURES,
    )
    counts = StreamCounts() if counts is None else counts
    kept = mapped.filter(counts.keeps, input_columns=["outcome", "rerendered"])
    return kept.select_columns(_token_columns(with_prompts))


def _token_columns(with_prompts: bool) -> list[str]:
    return [*TOKEN_COLUMNS, PROMPT_COLUMN] if with_prompts else TOKEN_COLUMNS


def pack(dataset: Dataset, max_length: int, *, num_proc: int | None = None, name: str = "train") -> Dataset:
    """Join tokenized rows into sequences of up to `max_length` tokens by best-fit decreasing, without splitting any.

    Args:
        dataset (`Dataset`):
            Rows from [`tokenize_dataset`] with the same `max_length` or a smaller one.
        max_length (`int`):
            Maximum number of tokens per packed sequence.
        num_proc (`int`, *optional*):
            Number of worker processes.
        name (`str`, *optional*, defaults to `"train"`):
            Name of the dataset in messages.

    Returns:
        `Dataset`: Rows of `input_ids`, `labels` and `seq_lengths`, the lengths of the samples in each row.

    Raises:
        ValueError: If a row is longer than `max_length`, which TRL's packing would truncate silently.
    """
    batches: Any = dataset.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=1000)
    longest = max(pc.max(pc.list_value_length(batch["input_ids"])).as_py() for batch in batches)
    if longest > max_length:
        raise ValueError(
            f"The {name} dataset has a row of {longest} tokens, which does not fit the packing length max_length="
            f"{max_length}; tokenize with that max_length."
        )
    map_kwargs = {"num_proc": num_proc, "desc": f"Packing {name} dataset"}
    packed: Dataset = pack_dataset(dataset.select_columns(TOKEN_COLUMNS), max_length, "bfd", map_kwargs)
    return packed


@dataclass(frozen=True)
class _BatchTokenizer:
    """The function that `Dataset.map` calls per batch, whose fields are part of the name of its cache file."""

    tokenizer: PreTrainedTokenizerBase
    format: DatasetFormat
    template: PromptTemplate
    max_length: int | None
    text_field: str
    with_prompts: bool
    allow_prompt_only: bool
    # The cache key covers these fields but not the source code: increment the version when the output changes.
    version: int = 4

    @classmethod
    def create(
        cls,
        column_names: list[str],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None,
        prompt_template: str,
        text_field: str,
        with_prompts: bool,
        allow_prompt_only: bool,
    ) -> Self:
        if max_length is not None and max_length < 2:
            raise ValueError(
                f"max_length is {max_length}, but a row needs a token of prompt and one of completion; use 2 or more."
            )
        if "seq_lengths" in column_names:
            raise ValueError(
                "The dataset has a column 'seq_lengths', so it is packed already, and the bounds of its samples would "
                "be lost; pass the rows before packing."
            )
        found = detect_format(column_names, text_field=text_field, allow_prompt_only=allow_prompt_only)
        if found == "text" and with_prompts:
            raise ValueError(
                f"The dataset has whole texts in {text_field!r}, without prompts that completions could be generated "
                "from; set lmbda=0 and seq_kd=False, or pass 'prompt' columns."
            )
        template = get_template(prompt_template)
        return cls(tokenizer, found, template, max_length, text_field, with_prompts, allow_prompt_only)

    def __call__(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        fitted = [self._fit(tokens) for tokens in self._encode(rows, indices)]
        return {column: [row[column] for row in fitted] for column in _FEATURES}

    def _encode(self, rows: list[dict[str, Any]], indices: list[int]) -> list["_Tokens"]:
        numbered = list(zip(rows, indices, strict=True))
        if self.format == "tokenized":
            return [_Tokens(*read_tokens(row, index), row.get(PROMPT_COLUMN)) for row, index in numbered]
        if self.format == "text":
            whole = encode_texts(self.tokenizer, [read_text(row, self.text_field, index) for row, index in numbered])
            return [_Tokens(ids, ids) for ids in whole]
        texts = [self._read(row, index) for row, index in numbered]
        prompts = encode_prompts(
            self.tokenizer, [text.prompt for text in texts], add_special_tokens=not self._is_chat(rows[0])
        )
        completions = encode_completions(self.tokenizer, [text.completion for text in texts])
        return [self._join(*parts) for parts in zip(texts, prompts, completions, strict=True)]

    def _join(self, text: "_Text", prompt: list[int], completion: list[int]) -> "_Tokens":
        shared = prompt
        if text.rerendered is not None:
            shared, completion = encode_rerendered(self.tokenizer, prompt, text.rerendered)
        labels = [IGNORE_INDEX] * len(shared) + completion
        return _Tokens(shared + completion, labels, prompt, text.rerendered is not None)

    def _is_chat(self, row: dict[str, Any]) -> bool:
        return self.format in ("messages", "conversations") or (self._has_prompt and isinstance(row["prompt"], list))

    @property
    def _has_prompt(self) -> bool:
        return self.format in ("prompt_completion", "prompt_only")

    def _read(self, row: dict[str, Any], index: int) -> "_Text":
        if self._is_chat(row):
            inputs = read_template_inputs(row, index)
            conversation = render(
                self.tokenizer, self._messages(row, index), index, allow_prompt_only=self.allow_prompt_only, **inputs
            )
            if not conversation.starts_with_prompt:
                return _Text(conversation.prompt, "", conversation.whole)
            return _Text(conversation.prompt, conversation.whole[len(conversation.prompt) :])
        for column in ("tools", "chat_template_kwargs"):
            if row.get(column):
                raise ValueError(
                    f"Row {index} has {column!r}, which applies to conversations only, but its prompt is text; pass "
                    "messages, or drop the column."
                )
        if self._has_prompt:
            return _Text(read_text(row, "prompt", index), read_optional_text(row, "completion", index))
        prompt = self.template.render(*read_instruction(row, index))
        return _Text(prompt, read_optional_text(row, "output", index))

    def _messages(self, row: dict[str, Any], index: int) -> list[dict[str, Any]]:
        if self.format in ("messages", "conversations"):
            return read_messages(row, self.format, index)
        messages = read_messages(row, "prompt", index)
        if self.format == "prompt_only":
            return messages
        if row["completion"] is None:
            return [*messages, {"role": "assistant", "content": ""}]
        return messages + read_messages(row, "completion", index)

    def _fit(self, tokens: "_Tokens") -> dict[str, Any]:
        """Truncate a row and record the outcome; a row to be dropped is returned without tokens."""
        input_ids, labels = tokens.input_ids, [IGNORE_INDEX, *tokens.labels[1:]]
        targets = [position for position, label in enumerate(labels) if label != IGNORE_INDEX]
        prompt_length = targets[0] if targets else len(input_ids)
        prompt_ids = input_ids[:prompt_length] if tokens.prompt_ids is None else tokens.prompt_ids
        outcome = _outcome(len(input_ids), prompt_length, self.max_length)
        if self.allow_prompt_only and outcome == _Outcome.EMPTY and prompt_ids:
            fits = self.max_length is None or len(prompt_ids) < self.max_length
            outcome = _Outcome.KEPT if fits else _Outcome.TOO_LONG
        kept = slice(self.max_length) if _is_kept(outcome) else slice(0)
        return {
            "input_ids": input_ids[kept],
            "labels": labels[kept],
            "prompt_ids": prompt_ids if self.with_prompts and _is_kept(outcome) else [],
            "rerendered": tokens.rerendered,
            "outcome": outcome,
            "prompt_length": prompt_length,
        }


@dataclass(frozen=True)
class _Text:
    """The texts of a row; `rerendered` is the whole conversation if it does not start with the rendered prompt."""

    prompt: str
    completion: str
    rerendered: str | None = None


@dataclass(frozen=True)
class _Tokens:
    """The tokens of a row before truncation."""

    input_ids: list[int]
    labels: list[int]
    prompt_ids: list[int] | None = None
    rerendered: bool = False


def _outcome(length: int, prompt_length: int, max_length: int | None) -> _Outcome:
    if prompt_length == length:
        return _Outcome.EMPTY
    if max_length is None or length <= max_length:
        return _Outcome.KEPT
    return _Outcome.TRUNCATED if prompt_length < max_length else _Outcome.TOO_LONG


def _is_kept(outcome: int) -> bool:
    return outcome <= _Outcome.TRUNCATED


def _count(outcomes: NDArray[np.int8], rerendered: int) -> TokenizationReport:
    return _report([int(np.sum(outcomes == outcome)) for outcome in _Outcome], rerendered)


def _report(counts: Sequence[int], rerendered: int) -> TokenizationReport:
    kept, truncated, too_long, empty = counts
    return TokenizationReport(sum(counts), kept + truncated, truncated, too_long, empty, rerendered)


def _nothing_kept(
    name: str, report: TokenizationReport, long_prompts: NDArray[np.int32], max_length: int | None
) -> str:
    nothing = f"No row of the {name} dataset has a target token"
    if report.dropped_too_long == 0:
        return f"{nothing}: all {report.rows} completions are empty; check the completion or output column."
    return (
        f"{nothing} within max_length={max_length}: the prompts of {report.dropped_too_long} rows take "
        f"{long_prompts.min()} to {long_prompts.max()} tokens, and {report.dropped_empty} completions are empty; "
        "raise max_length or shorten the prompts."
    )
