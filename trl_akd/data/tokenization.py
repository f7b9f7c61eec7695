"""Rows to token ids and labels, once, before training.

Three rules hold for every row kept:

- the prompt's tokens are those that generation starts from (`trl_akd.data.encoding`), as far as a chat template goes
  on from there in the whole conversation;
- labels are -100 on the prompt, and the tokens themselves on the completion and its EOS;
- the prompt is never cut. Where a row is longer than `max_length` its completion loses its end, EOS included, for a
  cut answer is no reason to stop.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from trl.data_utils import pack_dataset

from .chat import render
from .encoding import encode_completions, encode_prompts, encode_rerendered, encode_texts
from .schema import (
    IGNORED_LABEL,
    DatasetFormat,
    detect_format,
    read_answer,
    read_messages,
    read_template_inputs,
    read_text,
    read_tokens,
)
from .templates import DEFAULT_TEMPLATE, PromptTemplate, get_template

__all__ = ["TokenizationReport", "pack", "tokenize_dataset", "tokenize_stream"]

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
    """Say what became of the rows; `kept + dropped_too_long + dropped_empty == rows`.

    Args:
        rows (`int`): rows read.
        kept (`int`): rows with at least one target token.
        truncated (`int`): rows among the kept ones whose completion was cut at the end.
        dropped_too_long (`int`): rows whose prompt leaves no room for a target token.
        dropped_empty (`int`): rows whose completion is empty or, if already tokenised, that have no target.
        rerendered (`int`, *optional*, defaults to `0`): rows, dropped ones included, whose conversation goes on
            otherwise than the prompt alone ends.
    """

    rows: int
    kept: int
    truncated: int
    dropped_too_long: int
    dropped_empty: int
    rerendered: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing to warn of."""
        return self.kept == self.rows and self.rerendered == 0

    def summary(self) -> str:
        """Return the counts as one sentence.

        Example:

        ```python
        >>> TokenizationReport(rows=10, kept=7, truncated=2, dropped_too_long=1, dropped_empty=2).summary()
        'Kept 7 of 10 rows (2 of them cut at the end); dropped 1 with too long a prompt and 2 without a completion.'

        ```
        """
        counts = (
            f"Kept {self.kept:,} of {self.rows:,} rows ({self.truncated:,} of them cut at the end); dropped "
            f"{self.dropped_too_long:,} with too long a prompt and {self.dropped_empty:,} without a completion."
        )
        if not self.rerendered:
            return counts
        return (
            f"{counts} The chat template ends the prompts of {self.rerendered:,} rows otherwise than their "
            "conversations go on, as when it opens `<think>` for answers without reasoning; these rows are trained on "
            "as the whole conversation is rendered."
        )


def tokenize_dataset(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    prompt_template: str = DEFAULT_TEMPLATE,
    num_proc: int | None = None,
    name: str = "train",
    text_field: str = "text",
    generates: bool = False,
    prompts_suffice: bool = False,
    kept_columns: Collection[str] = (),
) -> tuple[Dataset, TokenizationReport]:
    """Tokenise a dataset and report what was cut or dropped.

    Rows are Alpaca columns, `prompt`/`completion` (text or messages), `messages` or ShareGPT's `conversations`, whole
    texts, or already tokenised `input_ids`/`labels`, which are checked and fitted to `max_length` alike (see
    `trl_akd.data.schema`). Only Alpaca columns go through the prompt template, and only messages are rendered with the
    columns `tools` and `chat_template_kwargs`. Of a whole text every token is a target, but for the first: nothing
    before it could predict it.

    Args:
        dataset (`Dataset`): rows in one of the formats above; other columns are left out.
        tokenizer (`PreTrainedTokenizerBase`): the student's tokenizer, with an EOS token.
        max_length (`int` or `None`): most tokens in a row; `None` cuts nothing.
        prompt_template (`str`, *optional*, defaults to `"alpaca"`): name in `PROMPT_TEMPLATES`.
        num_proc (`int`, *optional*): worker processes of `Dataset.map`.
        name (`str`, *optional*, defaults to `"train"`): what to call the dataset in messages.
        text_field (`str`, *optional*, defaults to `"text"`): column of whole texts.
        generates (`bool`, *optional*, defaults to `False`): also return `prompt_ids`, what generation starts from.
        prompts_suffice (`bool`, *optional*, defaults to `False`): keep rows without an answer, as prompts to be
            completed; their labels are all -100.
        kept_columns (`Collection[str]`, *optional*): columns that stay in the result, as far as they are there.

    Returns:
        `tuple[Dataset, TokenizationReport]`: rows of exactly `input_ids` and `labels` (equal lengths, in the order of
        the input) and the columns asked for, and the counts.

    Raises:
        ValueError: If columns are missing, a value has the wrong type, the dataset is empty, `max_length` is below 2,
            the tokenizer lacks what the format needs, or no row has a target token left.
    """
    if len(dataset) == 0:
        raise ValueError(f"The {name} dataset has no rows; check the file or the split it was loaded from.")
    kept = [column for column in dataset.column_names if column in kept_columns and column not in _FEATURES]
    mapped = dataset.with_format(None).map(
        _BatchTokenizer.create(
            dataset.column_names, tokenizer, max_length, prompt_template, text_field, generates, prompts_suffice
        ),
        batched=True,
        with_indices=True,
        remove_columns=[column for column in dataset.column_names if column not in kept],
        features=Features(_FEATURES | {column: dataset.features[column] for column in kept}),
        num_proc=num_proc,
        desc=f"Tokenizing {name} dataset",
    )
    columns = mapped.with_format("numpy")
    outcomes = columns["outcome"][:]
    report = _count(outcomes, int(columns["rerendered"][:].sum()))
    if report.kept == 0:
        long_prompts = columns["prompt_length"][:][outcomes == _Outcome.TOO_LONG]
        raise ValueError(_nothing_kept(name, report, long_prompts, max_length))
    if report.kept < report.rows:
        mapped = mapped.select(np.flatnonzero(outcomes <= _Outcome.TRUNCATED))
    return mapped.select_columns([*_token_columns(generates), *kept]), report


def tokenize_stream(
    dataset: IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    prompt_template: str = DEFAULT_TEMPLATE,
    text_field: str = "text",
    generates: bool = False,
    prompts_suffice: bool = False,
) -> IterableDataset:
    """Tokenise a stream lazily by the rules of `tokenize_dataset`; without a report, for nobody has seen all rows.

    Args:
        dataset (`IterableDataset`): rows in one of the formats of `tokenize_dataset`.
        tokenizer (`PreTrainedTokenizerBase`): the student's tokenizer, with an EOS token.
        max_length (`int` or `None`): most tokens in a row; `None` cuts nothing.
        prompt_template (`str`, *optional*, defaults to `"alpaca"`): name in `PROMPT_TEMPLATES`.
        text_field (`str`, *optional*, defaults to `"text"`): as `tokenize_dataset`.
        generates (`bool`, *optional*, defaults to `False`): as `tokenize_dataset`.
        prompts_suffice (`bool`, *optional*, defaults to `False`): as `tokenize_dataset`.

    Returns:
        `IterableDataset`: rows of exactly `input_ids` and `labels`, and `prompt_ids` if asked for.

    Raises:
        ValueError: As `tokenize_dataset`; what concerns a row is raised once the stream gets there.
    """
    column_names = dataset.column_names or list(next(iter(dataset), {}))
    mapped = dataset.with_format(None).map(
        _BatchTokenizer.create(
            column_names, tokenizer, max_length, prompt_template, text_field, generates, prompts_suffice
        ),
        batched=True,
        with_indices=True,
        remove_columns=column_names,
        features=_FEATURES,
    )
    return mapped.filter(_is_kept, input_columns="outcome").select_columns(_token_columns(generates))


def _token_columns(generates: bool) -> list[str]:
    return [*TOKEN_COLUMNS, PROMPT_COLUMN] if generates else TOKEN_COLUMNS


def pack(dataset: Dataset, max_length: int, *, num_proc: int | None = None, name: str = "train") -> Dataset:
    """Join tokenised rows into sequences of up to `max_length` tokens by best fit decreasing, cutting none.

    Args:
        dataset (`Dataset`): output of `tokenize_dataset` with the same `max_length` or a smaller one.
        max_length (`int`): most tokens in a packed sequence.
        num_proc (`int`, *optional*): worker processes.
        name (`str`, *optional*, defaults to `"train"`): what to call the dataset in messages.

    Returns:
        `Dataset`: rows of `input_ids`, `labels` and `seq_lengths`, the lengths of the samples inside each row.

    Raises:
        ValueError: If a row is longer than `max_length`; packing would cut it silently.
    """
    longest = max(map(len, dataset["input_ids"]))
    if longest > max_length:
        raise ValueError(
            f"The {name} dataset has a row of {longest} tokens, which does not fit the packing length max_length="
            f"{max_length}; tokenise with that max_length."
        )
    map_kwargs = {"num_proc": num_proc, "desc": f"Packing {name} dataset"}
    packed: Dataset = pack_dataset(dataset.select_columns(TOKEN_COLUMNS), max_length, "bfd", map_kwargs)
    return packed


@dataclass(frozen=True)
class _BatchTokenizer:
    """Tokenise one batch; what `Dataset.map` calls, and hashes into the name of its cache file."""

    tokenizer: PreTrainedTokenizerBase
    format: DatasetFormat
    template: PromptTemplate
    max_length: int | None
    text_field: str
    generates: bool
    prompts_suffice: bool
    # The cache key holds these fields but no source code: raise the number whenever the output changes.
    rules: int = 2

    @classmethod
    def create(
        cls,
        column_names: list[str],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None,
        prompt_template: str,
        text_field: str,
        generates: bool,
        prompts_suffice: bool,
    ) -> Self:
        if max_length is not None and max_length < 2:
            raise ValueError(
                f"max_length is {max_length}, but a row needs a token of prompt and one of completion; use 2 or more."
            )
        if "seq_lengths" in column_names:
            raise ValueError(
                "The dataset has a column 'seq_lengths', so it is packed already and the bounds of its samples would "
                "be lost; pass the rows as they were before packing."
            )
        found = detect_format(column_names, text_field=text_field, prompts_suffice=prompts_suffice)
        if found == "text" and generates:
            raise ValueError(
                f"The dataset has whole texts in {text_field!r}, without prompts that completions could be generated "
                "from; set lmbda=0 and seq_kd=False, or pass 'prompt' columns."
            )
        template = get_template(prompt_template)
        return cls(tokenizer, found, template, max_length, text_field, generates, prompts_suffice)

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
        labels = [IGNORED_LABEL] * len(shared) + completion
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
                self.tokenizer, self._messages(row, index), index, prompt_suffices=self.prompts_suffice, **inputs
            )
            if not conversation.is_continued:
                return _Text(conversation.prompt, "", conversation.whole)
            return _Text(conversation.prompt, conversation.whole[len(conversation.prompt) :])
        for column in ("tools", "chat_template_kwargs"):
            if row.get(column):
                raise ValueError(
                    f"Row {index} has {column!r}, with which only a conversation is rendered, but its prompt is text; "
                    "pass messages, or drop the column."
                )
        if self._has_prompt:
            return _Text(read_text(row, "prompt", index), read_answer(row, "completion", index))
        has_input = row.get("input") is not None  # None is how Arrow writes a field that the row leaves out
        task_input = read_text(row, "input", index) if has_input else ""
        prompt = self.template.render(read_text(row, "instruction", index), task_input)
        return _Text(prompt, read_answer(row, "output", index))

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
        """Cut a row at its end and say what that did to it; a row to be dropped comes back without tokens."""
        input_ids, labels = tokens.input_ids, [IGNORED_LABEL, *tokens.labels[1:]]
        targets = [position for position, label in enumerate(labels) if label != IGNORED_LABEL]
        prompt_length = targets[0] if targets else len(input_ids)
        prompt_ids = input_ids[:prompt_length] if tokens.prompt_ids is None else tokens.prompt_ids
        outcome = _outcome(len(input_ids), prompt_length, self.max_length)
        if self.prompts_suffice and outcome == _Outcome.EMPTY and prompt_ids:
            fits = self.max_length is None or len(prompt_ids) < self.max_length
            outcome = _Outcome.KEPT if fits else _Outcome.TOO_LONG
        kept = slice(self.max_length) if _is_kept(outcome) else slice(0)
        return {
            "input_ids": input_ids[kept],
            "labels": labels[kept],
            "prompt_ids": prompt_ids if self.generates and _is_kept(outcome) else [],
            "rerendered": tokens.rerendered,
            "outcome": outcome,
            "prompt_length": prompt_length,
        }


@dataclass(frozen=True)
class _Text:
    """A row's texts; `rerendered` is a whole conversation that does not go on as its prompt ends."""

    prompt: str
    completion: str
    rerendered: str | None = None


@dataclass(frozen=True)
class _Tokens:
    """A row's tokens, before anything is cut."""

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
    kept, truncated, too_long, empty = (int(np.sum(outcomes == outcome)) for outcome in _Outcome)
    return TokenizationReport(len(outcomes), kept + truncated, truncated, too_long, empty, rerendered)


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
