"""Tokenization and batches of pairs: a prompt with its correct and faulty answers.

Rows have `prompt`, or `instruction` and optionally `input` for a template, the correct answer `completion`, and a list
`rejected` of faulty answers.

- Prompts are never truncated; a pair whose prompt leaves no room for an answer is dropped.
- A correct answer that is too long is truncated, and has no EOS then.
- A faulty answer that is too long is dropped, as its fault may be at its end.
- A faulty answer that repeats the correct one or another faulty one is dropped.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.collators import pad, round_up
from ..data.encoding import encode_completions, encode_prompts
from ..data.schema import read_instruction, read_text
from ..data.templates import DEFAULT_TEMPLATE, get_template
from ..losses.reduction import IGNORE_INDEX

__all__ = ["DataCollatorForPairs", "PairEncoder", "PairReport", "check_pairs", "number_of_answers", "prepare_pairs"]

_TOKENS = List(Value("int32"))
_FEATURES = Features(prompt=_TOKENS, completion=_TOKENS, rejected=List(_TOKENS))


@dataclass(frozen=True)
class PairEncoder:
    r"""Tokenize a prompt with its correct and faulty answers.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer of the student, with an EOS token.
        max_length (`int`, *optional*, defaults to `512`):
            Maximum number of tokens of a prompt with one answer; `None` for no limit.
        prompt_template (`str`, *optional*, defaults to `"alpaca"`):
            Name of the template in `PROMPT_TEMPLATES` for rows with an `instruction`.
        max_faults (`int`, *optional*):
            Maximum number of faulty answers per pair, of which the first ones that fit are kept.

    Raises:
        ValueError: If a limit is too low, or the template is unknown.

    Example:

    ```python
    >>> from tests import tiny
    >>> encode = PairEncoder(tiny.tokenizer(), max_length=32)
    >>> row = encode({"prompt": "a + b?\n", "completion": "a + b", "rejected": ["a - b", "a + b", "a" * 99]}, index=0)
    >>> [tiny.tokenizer().decode(tokens) for tokens in row["rejected"]]
    ['a - b<|endoftext|>']

    ```
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = 512
    prompt_template: str = DEFAULT_TEMPLATE
    max_faults: int | None = None
    # The cache key of `Dataset.map` covers these fields but not the source code: increment it when the output changes.
    version: int = 1

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(
                f"`max_length` is {self.max_length}, but prompt and answer have at least one token each; give at "
                "least 2."
            )
        if self.max_faults is not None and self.max_faults < 0:
            raise ValueError(f"`max_faults` is {self.max_faults}; give at least 0, or leave it out for no limit.")
        get_template(self.prompt_template)

    def __call__(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        """Return the token ids of a row, empty if it is unusable, and its counts for [`PairReport`].

        Raises:
            ValueError: If the prompt or an answer is not a text.
        """
        [prompt] = encode_prompts(self.tokenizer, [self._prompt(row, index)])
        texts = [read_text(row, "completion", index), *_rejected(row, index)]
        completion, *rejected = encode_completions(self.tokenizer, texts)
        room = sys.maxsize if self.max_length is None else self.max_length - len(prompt)
        if not completion or room < 1:
            counts = Counter(["empty" if not completion else "too_long"])
            return {"prompt": [], "completion": [], "rejected": []} | {name: counts[name] for name in _COUNTED}
        kept: list[list[int]] = []
        counts = Counter(cut=int(len(completion) > room))
        for fault in rejected:
            outcome = self._outcome(fault, room, [completion, *kept])
            counts[outcome] += 1
            if outcome == "faults":
                kept.append(fault)
        tokens = {"prompt": prompt, "completion": completion[:room], "rejected": kept}
        return tokens | {name: counts[name] for name in _COUNTED}

    def _prompt(self, row: Mapping[str, Any], index: int) -> str:
        if row.get("prompt") is not None:
            return read_text(row, "prompt", index)
        return get_template(self.prompt_template).render(*read_instruction(row, index))

    def _outcome(self, fault: list[int], room: int, others: list[list[int]]) -> str:
        if not fault:
            return "faults_empty"
        if len(fault) > room:
            return "faults_too_long"
        if fault in others:
            return "faults_repeated"
        return "faults_beyond" if len(others) - 1 == self.max_faults else "faults"


@dataclass(frozen=True, slots=True)
class PairReport:
    """Counts of kept, truncated and dropped pairs, and of the faulty answers of the kept ones."""

    rows: int
    kept: int
    cut: int  # kept rows whose correct answer is truncated
    too_long: int  # dropped, as the prompt leaves no room for an answer
    empty: int  # dropped, as the correct answer is empty
    faults: int  # kept
    faults_too_long: int
    faults_empty: int
    faults_repeated: int  # the same as the correct answer or another faulty one
    faults_beyond: int  # dropped because of `max_faults`

    @property
    def is_clean(self) -> bool:
        """Whether every row was kept."""
        return self.kept == self.rows

    def summary(self) -> str:
        """Return the counts as two sentences.

        Example:

        ```python
        >>> report = PairReport(9, 7, 2, 1, 1, 8, 3, 0, 1, 0)
        >>> report.summary()  # doctest: +NORMALIZE_WHITESPACE
        'Kept 7 of 9 pairs (2 of them truncated); dropped 1 with too long a prompt and 1 without a correct answer. Kept
         8 faulty answers; dropped 3 too long, 0 empty, 1 repeated and 0 beyond the limit.'

        ```
        """
        return (
            f"Kept {self.kept:,} of {self.rows:,} pairs ({self.cut:,} of them truncated); dropped {self.too_long:,} "
            f"with too long a prompt and {self.empty:,} without a correct answer. Kept {self.faults:,} faulty "
            f"answers; dropped {self.faults_too_long:,} too long, {self.faults_empty:,} empty, "
            f"{self.faults_repeated:,} repeated and {self.faults_beyond:,} beyond the limit."
        )


_COUNTED = tuple(field.name for field in fields(PairReport) if field.name not in ("rows", "kept"))
_OUTCOMES = Features(**_FEATURES, **{name: Value("int64") for name in _COUNTED})


def prepare_pairs(
    dataset: Dataset,
    encoder: PairEncoder,
    *,
    shuffle_seed: int | None = None,
    num_proc: int | None = None,
    name: str = "train",
) -> tuple[Dataset, PairReport | None]:
    """Tokenize a dataset of pairs, drop unusable rows, and shuffle the others if a seed is given.

    Returns:
        The rows, and the counts. `first_answer` is the index of a row's first answer, the correct one, among all
        answers of the dataset. Rows that were tokenized already are returned unchanged, with `None`.

    Raises:
        ValueError: If a column is missing, a value is not a text, or no row is usable.
    """
    if "first_answer" in dataset.column_names:
        return dataset, None
    check_pairs(dataset, name)
    encoded = dataset.with_format(None).map(
        encoder,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=_OUTCOMES,
        num_proc=num_proc,
        desc=f"Tokenizing {name} dataset",
    )
    kept = encoded.select([index for index, completion in enumerate(encoded["completion"]) if completion])
    report = PairReport(len(encoded), len(kept), **{count: sum(encoded[count]) for count in _COUNTED})
    if report.kept == 0:
        raise ValueError(
            f"no row of the {name} dataset is usable: {report.too_long} prompts leave no room within max_length="
            f"{encoder.max_length}, and {report.empty} correct answers are empty; raise the limit or check the data."
        )
    kept = kept.select_columns(list(_FEATURES))
    if shuffle_seed is not None:
        kept = kept.shuffle(seed=shuffle_seed)
    ends = accumulate(1 + len(rejected) for rejected in kept["rejected"])
    return kept.add_column("first_answer", [0, *ends][: len(kept)]), report


def number_of_answers(pairs: Dataset) -> int:
    """Return the number of correct and faulty answers of a dataset."""
    return sum(1 + len(rejected) for rejected in pairs["rejected"])


def check_pairs(dataset: Dataset, name: str) -> None:
    """Raise a `ValueError` if a dataset is empty or lacks the columns for prompts or correct answers."""
    if len(dataset) == 0:
        raise ValueError(f"the {name} dataset is empty; give at least one row.")
    found = set(dataset.column_names)
    if "first_answer" in found:
        return
    for column, present in (("prompt", found & {"prompt", "instruction"}), ("completion", found & {"completion"})):
        if not present:
            raise ValueError(
                f"The {name} dataset has the columns {sorted(found)}, so {column!r} is missing; pairs have 'prompt' "
                "(or 'instruction'), 'completion' and 'rejected', a list of faulty answers."
            )


@dataclass
class DataCollatorForPairs:
    """Collate pairs to a padded batch of answers: the correct ones of all pairs, then all faulty ones.

    Args:
        pad_token_id (`int`):
            Padding token of `input_ids`.
        pad_to_multiple_of (`int`, *optional*):
            Number to a multiple of which the width is rounded up.

    Example:

    ```python
    >>> pairs = [
    ...     {"prompt": [5], "completion": [6, 7], "rejected": [[8]], "first_answer": 0},
    ...     {"prompt": [9], "completion": [6], "rejected": [], "first_answer": 2},
    ... ]
    >>> batch = DataCollatorForPairs(pad_token_id=0)(pairs)
    >>> batch["input_ids"].tolist(), batch["fault_rows"].tolist(), batch["answer_ids"].tolist()
    ([[5, 6, 7], [9, 6, 0], [5, 8, 0]], [[2], [-1]], [0, 2, 1])

    ```
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return int64 tensors.

        `input_ids`, `attention_mask` and `labels` have the shape `[B, T]`. `answer_ids` `[B]` are indices among the
        answers of the dataset. `fault_rows` `[P, K]` are the rows of each pair's faulty answers, padded with -1.
        """
        rows = [(pair["prompt"], pair["completion"]) for pair in pairs]
        answer_ids = [pair["first_answer"] for pair in pairs]
        fault_rows = []
        for pair in pairs:
            fault_rows.append(list(range(len(rows), len(rows) + len(pair["rejected"]))))
            rows += [(pair["prompt"], fault) for fault in pair["rejected"]]
            answer_ids += [pair["first_answer"] + number for number, _ in enumerate(pair["rejected"], start=1)]
        tokens = [[*prompt, *answer] for prompt, answer in rows]
        labels = [[IGNORE_INDEX] * len(prompt) + list(answer) for prompt, answer in rows]
        width = round_up(max(map(len, tokens)), self.pad_to_multiple_of or 1)
        return {
            "input_ids": pad(tokens, self.pad_token_id, width),
            "attention_mask": pad([[1] * len(ids) for ids in tokens], 0, width),
            "labels": pad(labels, IGNORE_INDEX, width),
            "answer_ids": torch.tensor(answer_ids),
            "fault_rows": pad(fault_rows, -1, max(map(len, fault_rows))),
        }


def _rejected(row: Mapping[str, Any], index: int) -> list[str]:
    """Return the faulty answers of a row, of which a single one need not be in a list."""
    value = row.get("rejected")
    texts = [value] if isinstance(value, str) else list(value or ())
    return [read_text({"rejected": text}, "rejected", index) for text in texts]
