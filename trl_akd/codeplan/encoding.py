"""Problems with solutions and plans, as token ids: what CodePLAN's tasks are made of.

A row holds `problem`, one `solution` or several `solutions`, and one `plan` or several `plans`. The optional column
`plan_solutions` holds, for each plan, the index of the solution that it was written for, or `None` if that is unknown.
All are tokenised once; what is cut, left out or refused is decided here:

- a prompt is never cut; a problem whose prompt leaves no room is too long;
- a solution that is too long loses its end, and with it its EOS;
- a plan is used whole or not at all, for half a plan is another one.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from ..data.encoding import encode_completions, encode_prompts
from ..data.schema import read_text
from ..data.templates import render

__all__ = [
    "PROBLEM_COLUMNS",
    "UNKNOWN_SOLUTION",
    "ProblemEncoder",
    "ProblemReport",
    "Task",
    "TooLongError",
    "check_columns",
    "check_lengths",
    "prepare_problems",
    "tokens_of_problems",
]


class Task(IntEnum):
    """What an example asks for, by its number in `task_ids`: a program, a plan, or a program that follows a plan."""

    CODE = 0
    PLAN = 1
    GUIDED = 2


UNKNOWN_SOLUTION = -1
"""Stands in a tokenised row's `plan_solutions` for a plan of which no row says what solution it was written for."""

_TOKENS = List(Value("int32"))
_FEATURES = Features(
    index=Value("int64"),
    code_prompt=_TOKENS,
    plan_prompt=_TOKENS,
    guided_prompts=List(_TOKENS),
    solutions=List(_TOKENS),
    plans=List(_TOKENS),
    plan_solutions=List(Value("int32")),
)
_TEXT_COLUMNS = ("problem", "solution", "solutions", "plan", "plans", "plan_solutions")

PROBLEM_COLUMNS = (*_TEXT_COLUMNS, *(name for name in _FEATURES if name not in _TEXT_COLUMNS))
"""Columns that [`DataCollatorForCodePLAN`] reads, of rows as text and of tokenised ones."""

_OUTCOMES = Features(**_FEATURES, error=Value("string"), cut_solutions=Value("int64"), unused_plans=Value("int64"))


class TooLongError(ValueError):
    """A problem does not fit into the limits on length."""


@dataclass(frozen=True)
class ProblemEncoder:
    r"""Tokenise a problem with its solutions and plans.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the student's tokenizer, with an EOS token.
        max_length (`int`, *optional*, defaults to `1024`): most tokens of a prompt with its answer; of the prompt
            alone where an encoder reads it. `None` for no limit.
        max_target_length (`int`, *optional*): most tokens of an answer. Defaults to `max_length`.
        is_encoder_decoder (`bool`, *optional*, defaults to `False`): whether the prompt is read by an encoder, which
            is trained to see all special tokens of its input.
        guided (`bool`, *optional*, defaults to `False`): whether programs are also written after a plan, so that a
            prompt has to hold the plan as well.

    Raises:
        ValueError: If a limit leaves no room for anything.

    Example:

    ```python
    >>> from transformers import ByT5Tokenizer
    >>> tokenizer = ByT5Tokenizer()
    >>> encode = ProblemEncoder(tokenizer, max_length=128, is_encoder_decoder=True)
    >>> row = encode({"problem": "Add a and b.", "solution": "a + b", "plan": "1. Add.\n2. Return."}, index=0)
    >>> tokenizer.decode(row["plan_prompt"])
    "[GEN_PLAN]\nQUESTION:\nAdd a and b.\n\nLet's think step by step:\n</s>"
    >>> tokenizer.decode(row["plans"][0])
    '1. Add.\n2. Return.</s>'

    ```
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = 1024
    max_target_length: int | None = None
    is_encoder_decoder: bool = False
    guided: bool = False
    # `Dataset.map` names its cache file by these fields but not by the source: raise this when the output changes.
    rules: int = 2

    def __post_init__(self) -> None:
        check_lengths(self.max_length, self.max_target_length, shortest=1 if self.is_encoder_decoder else 2)

    def __call__(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        """Return the row's token ids, with the columns `index`, `code_prompt`, `plan_prompt`, `solutions`, ….

        Raises:
            TooLongError: If a prompt leaves no room for an answer, or no plan fits whole.
            ValueError: If the problem, every solution or every plan is missing or empty.
        """
        problem = _problem(row, index)
        solutions, plans, plan_solutions = _answers(row, index)
        code_prompt, plan_prompt = self._prompts([render("codeplan_code", problem), render("codeplan_plan", problem)])
        for prompt in (code_prompt, plan_prompt):
            if not self._has_room(prompt):
                raise TooLongError(
                    f"A prompt of row {index} takes {len(prompt)} tokens, which {self._limits()} does not allow, and "
                    "prompts are never cut; raise the limit or drop the row."
                )
        encoded_plans = encode_completions(self.tokenizer, plans)
        guided_prompts = self._prompts([render("codeplan_guided", problem, plan) for plan in plans])
        fitting = [
            (tokens, prompt, solution)
            for tokens, prompt, solution in zip(encoded_plans, guided_prompts, plan_solutions, strict=True)
            if len(tokens) <= self.room(plan_prompt) and (self._has_room(prompt) or not self.guided)
        ]
        if not fitting:
            raise TooLongError(
                f"The shortest plan of row {index} takes {min(map(len, encoded_plans))} tokens, which with a "
                f"prompt of {len(plan_prompt)} {self._limits()} does not allow, and plans are never cut; raise the "
                "limit, shorten the plan or drop the row."
            )
        return {
            "index": index,
            "code_prompt": code_prompt,
            "plan_prompt": plan_prompt,
            "guided_prompts": [prompt for _, prompt, _ in fitting] if self.guided else [],
            "solutions": encode_completions(self.tokenizer, solutions),
            "plans": [tokens for tokens, _, _ in fitting],
            "plan_solutions": [solution for _, _, solution in fitting],
        }

    def room(self, prompt: Sequence[int]) -> int:
        """Return how many tokens of an answer fit after a prompt."""
        total = sys.maxsize if self.max_length is None else self.max_length
        target = total if self.max_target_length is None else self.max_target_length
        return target if self.is_encoder_decoder else min(target, total - len(prompt))

    def _has_room(self, prompt: Sequence[int]) -> bool:
        too_long_to_read = self.is_encoder_decoder and self.max_length is not None and len(prompt) > self.max_length
        return not too_long_to_read and self.room(prompt) > 0

    def _prompts(self, texts: list[str]) -> list[list[int]]:
        if not self.is_encoder_decoder:
            return encode_prompts(self.tokenizer, texts)
        encoding = self.tokenizer(texts, return_attention_mask=False, verbose=False)
        return list(encoding["input_ids"])

    def _limits(self) -> str:
        given = {"max_length": self.max_length, "max_target_length": self.max_target_length}
        return " with ".join(f"{name}={value}" for name, value in given.items() if value is not None)


@dataclass(frozen=True, slots=True)
class ProblemReport:
    """Say what became of the problems of a dataset.

    Args:
        rows (`int`): rows read.
        kept (`int`): rows with prompts, solutions and plans that fit.
        cut_solutions (`int`): solutions of the kept rows that will lose their end.
        unused_plans (`int`): plans of the kept rows that are too long to be used.
    """

    rows: int
    kept: int
    cut_solutions: int
    unused_plans: int

    @property
    def is_clean(self) -> bool:
        """Whether every row was kept."""
        return self.kept == self.rows

    def summary(self) -> str:
        """Return the counts as one sentence.

        Example:

        ```python
        >>> ProblemReport(rows=10, kept=7, cut_solutions=2, unused_plans=1).summary()
        'Kept 7 of 10 problems and dropped the rest as too long; 2 solutions are cut at the end, 1 plans left out.'

        ```
        """
        return (
            f"Kept {self.kept:,} of {self.rows:,} problems and dropped the rest as too long; "
            f"{self.cut_solutions:,} solutions are cut at the end, {self.unused_plans:,} plans left out."
        )


def prepare_problems(
    dataset: Dataset,
    encoder: ProblemEncoder,
    *,
    shuffle_seed: int | None = None,
    num_proc: int | None = None,
    name: str = "train",
) -> tuple[Dataset, ProblemReport | None]:
    """Tokenise a dataset of problems; those that are too long are dropped and counted.

    Args:
        dataset (`Dataset`): rows as [`ProblemEncoder`] takes them. Tokenised ones pass unchanged.
        encoder (`ProblemEncoder`): how.
        shuffle_seed (`int`, *optional*): shuffle with this seed.
        num_proc (`int`, *optional*): worker processes.
        name (`str`, *optional*, defaults to `"train"`): what to call the dataset in messages.

    Returns:
        The rows, and what was kept, cut and dropped (`None` for tokenised ones).

    Raises:
        ValueError: If a column is missing, the text of a row is, or no row is short enough.
    """
    if _is_tokenised(dataset):
        return dataset, None
    check_columns(dataset, name)
    encoded = dataset.with_format(None).map(
        _encode_or_leave_empty,
        fn_kwargs={"encoder": encoder},
        with_indices=True,
        remove_columns=dataset.column_names,
        features=_OUTCOMES,
        num_proc=num_proc,
        desc=f"Tokenizing {name} dataset",
    )
    errors = encoded["error"][:]
    kept = encoded.select([index for index, error in enumerate(errors) if error is None])
    if len(kept) == 0:
        raise ValueError(f"No row of the {name} dataset is short enough. The first: {errors[0]}")
    report = ProblemReport(len(encoded), len(kept), sum(kept["cut_solutions"]), sum(kept["unused_plans"]))
    kept = kept.select_columns(list(_FEATURES))
    return kept if shuffle_seed is None else kept.shuffle(seed=shuffle_seed), report


def tokens_of_problems(problems: Dataset) -> Dataset:
    """Return all tokens of each tokenised problem as one row of `input_ids`."""

    def join(row: dict[str, Any]) -> dict[str, list[int]]:
        answers = [*row["guided_prompts"], *row["solutions"], *row["plans"]]
        return {
            "input_ids": [*row["code_prompt"], *row["plan_prompt"], *(token for text in answers for token in text)]
        }

    return problems.map(join, remove_columns=problems.column_names, desc="Collecting tokens")


def check_columns(dataset: Dataset, name: str) -> None:
    """Refuse an empty dataset, and one without the columns of problems, solutions and plans."""
    if len(dataset) == 0:
        raise ValueError(f"the {name} dataset is empty; give at least one row.")
    found = set(dataset.column_names)
    if _is_tokenised(dataset):
        return
    remedies = {"problem": "rename the column", "solution": "rename the column", "plan": "have them written"}
    for column, remedy in remedies.items():
        if column not in found and f"{column}s" not in found:
            raise ValueError(
                f"The {name} dataset has the columns {sorted(found)}, so {column!r} is missing, or {column + 's'!r} "
                f"for several a row; {remedy}."
            )


def _is_tokenised(dataset: Dataset) -> bool:
    return set(_FEATURES) - {"plan_solutions"} <= set(dataset.column_names)


def _encode_or_leave_empty(row: dict[str, Any], index: int, *, encoder: ProblemEncoder) -> dict[str, Any]:
    try:
        encoded = encoder(row, index)
    except TooLongError as error:
        return {
            **{column: [] for column in _FEATURES},
            "index": index,
            "error": str(error),
            "cut_solutions": 0,
            "unused_plans": 0,
        }
    room = encoder.room(encoded["code_prompt"])
    return {
        **encoded,
        "error": None,
        "cut_solutions": sum(len(solution) > room for solution in encoded["solutions"]),
        "unused_plans": len(_answers(row, index)[1]) - len(encoded["plans"]),
    }


def check_lengths(max_length: int | None, max_target_length: int | None, *, shortest: int = 1) -> None:
    """Refuse limits on tokens that leave no room for an answer; `max_length` must be at least `shortest`."""
    for name, value, least in (("max_length", max_length, shortest), ("max_target_length", max_target_length, 1)):
        if value is not None and value < least:
            raise ValueError(f"`{name}` is {value}, which leaves no room for an answer; use {least} or more.")


def _problem(row: Mapping[str, Any], index: int) -> str:
    problem = read_text(row, "problem", index)
    if not problem.strip():
        raise ValueError(f"The problem of row {index} is empty; drop the row or fill it in.")
    _check_text(problem, "problem", index)
    return problem


def _answers(row: Mapping[str, Any], index: int) -> tuple[list[str], list[str], list[int]]:
    """Return the solutions and plans that are not blank, and each plan's solution among these."""
    solutions, plans = _texts(row, "solution", index), _texts(row, "plan", index)
    pairs = _plan_solutions(row, len(solutions), len(plans), index)
    kept = [number for number, solution in enumerate(solutions) if solution.strip()]
    place = {number: position for position, number in enumerate(kept)}
    for name, texts in (("solution", solutions), ("plan", plans)):
        if not any(map(str.strip, texts)):
            remedy = "have one written (`trl-akd plans`)" if name == "plan" else "fill it in"
            raise ValueError(f"Row {index} has no {name} that is not empty; {remedy} or drop the row.")
    paired = [
        (plan, place.get(pair, UNKNOWN_SOLUTION)) for plan, pair in zip(plans, pairs, strict=True) if plan.strip()
    ]
    return [solutions[number] for number in kept], [plan for plan, _ in paired], [pair for _, pair in paired]


def _texts(row: Mapping[str, Any], name: str, index: int) -> list[str]:
    """Return the texts in the column `name`, or in that of several."""
    value = row.get(f"{name}s") if row.get(name) is None else row[name]
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list | tuple):
        raise ValueError(
            f"Column {name!r} of row {index} is {value!r:.80}, of type {type(value).__name__}; give a text or a "
            "list of texts."
        )
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(
                f"Column {name!r} of row {index} holds {type(text).__name__}, not text; drop the row or convert the "
                "column."
            )
        _check_text(text, name, index)
    return list(texts)


def _check_text(text: str, name: str, index: int) -> None:
    """Refuse half of a surrogate pair, which tokenizers cannot read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"Column {name!r} of row {index} holds {text[error.start]!r}, half of a character; replace it, or drop "
            "the row."
        ) from error


def _plan_solutions(row: Mapping[str, Any], num_solutions: int, num_plans: int, index: int) -> list[int]:
    """Return, for each plan, the index of its solution in the row."""
    pairs = row.get("plan_solutions")
    if pairs is None:
        return [UNKNOWN_SOLUTION] * num_plans
    if not isinstance(pairs, list | tuple) or len(pairs) != num_plans:
        raise ValueError(
            f"Column 'plan_solutions' of row {index} is {pairs!r:.80}; give a list with an entry for each of the "
            f"{num_plans} plans, or leave it out."
        )
    for pair in pairs:
        if pair is not None and (type(pair) is not int or not UNKNOWN_SOLUTION <= pair < num_solutions):
            raise ValueError(
                f"Column 'plan_solutions' of row {index} holds {pair!r}; give indices of the row's {num_solutions} "
                "solutions, from 0, or null where a plan's solution is unknown."
            )
    return [UNKNOWN_SOLUTION if pair is None else pair for pair in pairs]
