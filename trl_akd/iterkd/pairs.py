"""Correct and faulty answers to a prompt, as token ids and as batches.

A row holds `prompt`, or `instruction` (with an optional `input`) for a template, and `completion`, the correct answer,
and `rejected`, faulty answers. All are tokenised once; what is cut or left out is decided here:

- a prompt is never cut; a pair whose prompt leaves no room is too long;
- a correct answer that is too long loses its end, and with it its EOS;
- a faulty answer is used whole or not at all, for its fault may be at its end;
- a faulty answer that repeats the correct one, or another faulty one, is left out.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
_COUNTED = (
    "too_long",
    "empty",
    "cut",
    "faults",
    "faults_too_long",
    "faults_empty",
    "faults_repeated",
    "faults_beyond",
)
_OUTCOMES = Features(**_FEATURES, **{name: Value("int64") for name in _COUNTED})


@dataclass(frozen=True)
class PairEncoder:
    r"""Tokenise a prompt with its correct and its faulty answers.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the student's tokenizer, with an EOS token.
        max_length (`int`, *optional*, defaults to `512`): maximum number of tokens of a prompt with one answer; `None`
            for no limit.
        prompt_template (`str`, *optional*, defaults to `"alpaca"`): name in `PROMPT_TEMPLATES`, for rows with an
            `instruction`.
        max_faults (`int`, *optional*): maximum number of faulty answers per pair; the first that fit are kept.

    Raises:
        ValueError: If a limit leaves no room for anything, or the template is unknown.

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
    # `Dataset.map` names its cache file by these fields but not by the source: raise this when the output changes.
    rules: int = 1

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(
                f"`max_length` is {self.max_length}, but a row needs a token of prompt and one of answer; use 2 or "
                "more."
            )
        if self.max_faults is not None and self.max_faults < 0:
            raise ValueError(f"`max_faults` is {self.max_faults}; give at least 0, or leave it out for no limit.")
        get_template(self.prompt_template)

    def __call__(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        """Return the token ids of a row, empty if it is unusable, and counts by name.

        Raises:
            ValueError: If the prompt or an answer is not a text.
        """
        [prompt] = encode_prompts(self.tokenizer, [self._prompt(row, index)])
        texts = [read_text(row, "completion", index), *_rejected(row, index)]
        completion, *rejected = encode_completions(self.tokenizer, texts)
        room = sys.maxsize if self.max_length is None else self.max_length - len(prompt)
        if not completion or room < 1:
            counts = Counter(["empty" if not completion else "too_long"])
            return {"prompt": [], "completion": [], "rejected": [], **_all_counts(counts)}
        kept: list[list[int]] = []
        counts = Counter(cut=int(len(completion) > room))
        for fault in rejected:
            problem = self._problem(fault, room, [completion, *kept])
            counts[problem or "faults"] += 1
            if problem is None:
                kept.append(fault)
        return {"prompt": prompt, "completion": completion[:room], "rejected": kept, **_all_counts(counts)}

    def _prompt(self, row: Mapping[str, Any], index: int) -> str:
        if row.get("prompt") is not None:
            return read_text(row, "prompt", index)
        return get_template(self.prompt_template).render(*read_instruction(row, index))

    def _problem(self, fault: list[int], room: int, others: list[list[int]]) -> str | None:
        if not fault:
            return "faults_empty"
        if len(fault) > room:
            return "faults_too_long"
        if fault in others:
            return "faults_repeated"
        return "faults_beyond" if len(others) - 1 == self.max_faults else None


@dataclass(frozen=True, slots=True)
class PairReport:
    """Counts of kept, truncated and dropped pairs and faulty answers of a dataset.

    Args:
        rows (`int`): rows read.
        kept (`int`): rows with a prompt and a correct answer that fit.
        cut (`int`): rows among the kept ones whose correct answer loses its end.
        too_long (`int`): rows dropped as their prompt leaves no room for an answer.
        empty (`int`): rows dropped as their correct answer is empty.
        faults (`int`): faulty answers kept.
        faults_too_long (`int`): faulty answers of kept rows left out as they do not fit whole.
        faults_empty (`int`): those left out as they are empty.
        faults_repeated (`int`): those left out as they repeat the correct answer or another faulty one.
        faults_beyond (`int`): those left out as there were enough.
    """

    rows: int
    kept: int
    cut: int
    too_long: int
    empty: int
    faults: int
    faults_too_long: int
    faults_empty: int
    faults_repeated: int
    faults_beyond: int

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
        'Kept 7 of 9 pairs (2 correct answers cut at the end); dropped 1 with too long a prompt and 1 without a correct
         answer. Kept 8 faulty answers; left out 3 too long, 0 empty, 1 repeated and 0 beyond the limit.'

        ```
        """
        return (
            f"Kept {self.kept:,} of {self.rows:,} pairs ({self.cut:,} correct answers cut at the end); dropped "
            f"{self.too_long:,} with too long a prompt and {self.empty:,} without a correct answer. Kept "
            f"{self.faults:,} faulty answers; left out {self.faults_too_long:,} too long, {self.faults_empty:,} "
            f"empty, {self.faults_repeated:,} repeated and {self.faults_beyond:,} beyond the limit."
        )


def prepare_pairs(
    dataset: Dataset,
    encoder: PairEncoder,
    *,
    shuffle_seed: int | None = None,
    num_proc: int | None = None,
    name: str = "train",
) -> tuple[Dataset, PairReport | None]:
    """Tokenise a dataset of pairs; unusable rows are dropped and counted.

    Args:
        dataset (`Dataset`): rows as [`PairEncoder`] takes them. Tokenised ones pass unchanged.
        encoder (`PairEncoder`): how.
        shuffle_seed (`int`, *optional*): shuffle with this seed.
        num_proc (`int`, *optional*): worker processes.
        name (`str`, *optional*, defaults to `"train"`): what to call the dataset in messages.

    Returns:
        Rows of `prompt`, `completion`, `rejected` and `first_answer`, which numbers a row's answers through the
        dataset, the correct one first; and what was kept, cut and dropped (`None` for tokenised ones).

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
            f"No row of the {name} dataset is of use: {report.too_long} prompts leave no room within max_length="
            f"{encoder.max_length}, and {report.empty} correct answers are empty."
        )
    kept = kept.select_columns(list(_FEATURES))
    if shuffle_seed is not None:
        kept = kept.shuffle(seed=shuffle_seed)
    ends = accumulate(1 + len(rejected) for rejected in kept["rejected"])
    return kept.add_column("first_answer", [0, *ends][: len(kept)]), report


def number_of_answers(pairs: Dataset) -> int:
    """Return the number of answers in rows of [`prepare_pairs`], correct and faulty ones."""
    return sum(1 + len(rejected) for rejected in pairs["rejected"])


def check_pairs(dataset: Dataset, name: str) -> None:
    """Raise an error for an empty dataset, or one without columns of a prompt and a correct answer."""
    if len(dataset) == 0:
        raise ValueError(f"the {name} dataset is empty; give at least one row.")
    found = set(dataset.column_names)
    if "first_answer" in found:
        return
    for column, present in (("prompt", found & {"prompt", "instruction"}), ("completion", found & {"completion"})):
        if not present:
            raise ValueError(
                f"The {name} dataset has the columns {sorted(found)}, so {column!r} is missing; pairs have 'prompt' "
                "(or 'instruction' for a template), 'completion' and 'rejected', a list of faulty answers."
            )


@dataclass
class DataCollatorForPairs:
    """Pad the answers of some pairs to one batch: first each pair's correct answer, then all faulty ones.

    Args:
        pad_token_id (`int`): id that fills up `input_ids`.
        pad_to_multiple_of (`int`, *optional*): round widths up to a multiple of this.

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

        `input_ids`, `attention_mask` and `labels` are `[B, T]`; `answer_ids` `[B]` are the answers' numbers in the
        dataset; `fault_rows` `[P, K]` are the rows of each pair's faulty answers, -1 where it has fewer.
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
    """Return the faulty answers of a row; a single one may stand without a list."""
    value = row.get("rejected")
    texts = [value] if isinstance(value, str) else list(value or ())
    return [read_text({"rejected": text}, "rejected", index) for text in texts]


def _all_counts(found: Counter[str]) -> dict[str, int]:
    return {name: found[name] for name in _COUNTED}
