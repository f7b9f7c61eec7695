"""Tokenize problems with solutions and plans for CodePLAN.

A row has `problem`, one `solution` or several `solutions`, and one `plan` or several `plans`. If a row has both the
singular and the plural, their texts must be the same. The plural may be a JSON list, as in APPS on the Hub. The
optional column `plan_solutions` has the index of the solution that each plan was written for, or `None` if it is
unknown. Rows are tokenized once, by these rules:

- Prompts are never truncated; a problem whose prompt leaves no room for an answer is dropped.
- A solution that is too long loses its end, including EOS.
- Plans are never truncated, since a partial plan is a different plan; a plan that is too long is dropped.
"""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from ..data.encoding import encode_completions, encode_prompts
from ..data.schema import check_encodable, read_text
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
    "is_tokenized",
    "prepare_problems",
    "tokens_per_problem",
]


class Task(IntEnum):
    """The task of an example, by its number in `task_ids`: a program, a plan, or a program that follows a plan."""

    CODE = 0
    PLAN = 1
    GUIDED = 2


UNKNOWN_SOLUTION = -1
"""Entry in `plan_solutions` of a tokenized row for a plan whose solution is unknown."""

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
"""Columns of text rows and of tokenized rows that [`DataCollatorForCodePLAN`] reads."""

_OUTCOMES = Features(**_FEATURES, error=Value("string"), cut_solutions=Value("int64"), unused_plans=Value("int64"))


class TooLongError(ValueError):
    """A problem exceeds the limits on length."""


@dataclass(frozen=True)
class ProblemEncoder:
    r"""Tokenize a problem with its solutions and plans.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The student's tokenizer, with an EOS token.
        max_length (`int`, *optional*, defaults to `1024`):
            Maximum number of tokens per prompt and answer together, or per prompt for an encoder-decoder; `None` for
            no limit.
        max_target_length (`int`, *optional*):
            Maximum number of tokens per answer; by default `max_length` is the only limit.
        is_encoder_decoder (`bool`, *optional*, defaults to `False`):
            Whether the student is an encoder-decoder, whose prompts keep all special tokens.
        guided (`bool`, *optional*, defaults to `False`):
            Whether to add prompts that contain a plan, for programs that follow it.

    Raises:
        ValueError: If a limit leaves no room for an answer.

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
    # The cache key of `Dataset.map` covers these fields but not the source code: increment the version when the output
    # changes.
    version: int = 3

    def __post_init__(self) -> None:
        check_lengths(self.max_length, self.max_target_length, shortest=1 if self.is_encoder_decoder else 2)

    def __call__(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        """Return the token ids of a row, with the columns `index`, `code_prompt`, `plan_prompt`, `solutions`, ….

        Raises:
            TooLongError: If a prompt leaves no room for an answer, or every plan is too long.
            ValueError: If the problem, every solution or every plan is missing or empty.
        """
        problem = _problem(row, index)
        solutions, plans, plan_solutions = _answers(row, index)
        code_prompt, plan_prompt = self._prompts([render("codeplan_code", problem), render("codeplan_plan", problem)])
        for prompt in (code_prompt, plan_prompt):
            if not self._leaves_room(prompt):
                raise TooLongError(
                    f"A prompt of row {index} has {len(prompt)} tokens, which {self._limits()} does not allow, and "
                    "prompts are never truncated; increase the limit or drop the row."
                )
        encoded_plans = encode_completions(self.tokenizer, plans)
        guided_prompts = self._prompts([render("codeplan_guided", problem, plan) for plan in plans])
        fitting = [
            (tokens, prompt, solution)
            for tokens, prompt, solution in zip(encoded_plans, guided_prompts, plan_solutions, strict=True)
            if len(tokens) <= self.max_answer_tokens(plan_prompt) and (self._leaves_room(prompt) or not self.guided)
        ]
        if not fitting:
            raise TooLongError(
                f"The shortest plan of row {index} has {min(map(len, encoded_plans))} tokens, which with a prompt of "
                f"{len(plan_prompt)} {self._limits()} does not allow, and plans are never truncated; increase the "
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

    def check(self, problem: Mapping[str, Any]) -> None:
        """Check that a tokenized row fits these settings, since it may have been tokenized with others.

        Raises:
            ValueError: If a prompt or plan is too long, or the guided prompts are missing.
        """
        prompts = [problem["code_prompt"], problem["plan_prompt"], *(problem["guided_prompts"] if self.guided else ())]
        room = self.max_answer_tokens(problem["plan_prompt"])
        if not all(map(self._leaves_room, prompts)) or any(len(plan) > room for plan in problem["plans"]):
            raise TooLongError(
                f"The tokenized row {problem['index']} has a prompt or plan that {self._limits()} does not allow, and "
                "prompts and plans are never truncated; tokenize its texts with this limit, or increase it."
            )
        if self.guided and len(problem["guided_prompts"]) != len(problem["plans"]):
            raise ValueError(
                f"The tokenized row {problem['index']} has {len(problem['guided_prompts'])} guided prompts for "
                f"{len(problem['plans'])} plans: it was tokenized with guided_weight=0; tokenize its texts again."
            )

    def max_answer_tokens(self, prompt: Sequence[int]) -> int:
        """Return the maximum number of tokens of an answer to a prompt."""
        total = sys.maxsize if self.max_length is None else self.max_length
        target = total if self.max_target_length is None else self.max_target_length
        return target if self.is_encoder_decoder else min(target, total - len(prompt))

    def _leaves_room(self, prompt: Sequence[int]) -> bool:
        prompt_too_long = self.is_encoder_decoder and self.max_length is not None and len(prompt) > self.max_length
        return not prompt_too_long and self.max_answer_tokens(prompt) > 0

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
    """Counts of the problems of a dataset that were kept and dropped.

    Args:
        rows (`int`):
            Number of rows read.
        kept (`int`):
            Number of rows with prompts, solutions and plans within the limits.
        cut_solutions (`int`):
            Number of solutions of the kept rows that are truncated.
        unused_plans (`int`):
            Number of plans of the kept rows that are too long.
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
        'Kept 7 of 10 problems and dropped the rest as too long; truncated 2 solutions and dropped 1 plans.'

        ```
        """
        return (
            f"Kept {self.kept:,} of {self.rows:,} problems and dropped the rest as too long; "
            f"truncated {self.cut_solutions:,} solutions and dropped {self.unused_plans:,} plans."
        )


def prepare_problems(
    dataset: Dataset,
    encoder: ProblemEncoder,
    *,
    shuffle_seed: int | None = None,
    num_proc: int | None = None,
    name: str = "train",
) -> tuple[Dataset, ProblemReport | None]:
    """Tokenize a dataset of problems, and drop those that are too long.

    Args:
        dataset (`Dataset`):
            Rows that [`ProblemEncoder`] accepts. Tokenized rows are checked and returned unchanged.
        encoder (`ProblemEncoder`):
            The encoder.
        shuffle_seed (`int`, *optional*):
            Seed of the shuffle; by default the order stays.
        num_proc (`int`, *optional*):
            Number of worker processes.
        name (`str`, *optional*, defaults to `"train"`):
            Name of the dataset in messages.

    Returns:
        The rows, and the counts (`None` for rows that were tokenized already).

    Raises:
        ValueError: If a column or a text is missing, every row is too long, or rows were tokenized with other
            settings.
    """
    if is_tokenized(dataset.column_names):
        checked = ["index", "code_prompt", "plan_prompt", "guided_prompts", "plans"]
        for row in dataset.with_format(None).select_columns(checked):
            encoder.check(row)
        return dataset, None
    check_columns(dataset, name)
    encoded = dataset.with_format(None).map(
        _encode_row,
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
        raise ValueError(f"Every row of the {name} dataset is too long. The first: {errors[0]}")
    report = ProblemReport(len(encoded), len(kept), sum(kept["cut_solutions"]), sum(kept["unused_plans"]))
    kept = kept.select_columns(list(_FEATURES))
    return kept if shuffle_seed is None else kept.shuffle(seed=shuffle_seed), report


def tokens_per_problem(problems: Dataset) -> Dataset:
    """Return all tokens of each tokenized problem as one row of `input_ids`."""

    def join(row: dict[str, Any]) -> dict[str, list[int]]:
        answers = [*row["guided_prompts"], *row["solutions"], *row["plans"]]
        return {
            "input_ids": [*row["code_prompt"], *row["plan_prompt"], *(token for text in answers for token in text)]
        }

    return problems.map(join, remove_columns=problems.column_names, desc="Collecting tokens")


def check_columns(dataset: Dataset, name: str) -> None:
    """Raise a ValueError if a dataset is empty, or lacks columns of problems, solutions or plans."""
    if len(dataset) == 0:
        raise ValueError(f"the {name} dataset is empty; give at least one row.")
    found = set(dataset.column_names)
    if is_tokenized(found):
        return
    remedies = {"problem": "rename the column", "solution": "rename the column", "plan": "run `trl-akd plans`"}
    for column, remedy in remedies.items():
        if column not in found and f"{column}s" not in found:
            raise ValueError(
                f"The {name} dataset has the columns {sorted(found)}, but neither {column!r} nor {column + 's'!r}; "
                f"{remedy}."
            )


def is_tokenized(columns: Collection[str]) -> bool:
    """Return whether the columns of a row are those of a tokenized row."""
    return all(name in columns for name in _FEATURES if name != "plan_solutions")


def _encode_row(row: dict[str, Any], index: int, *, encoder: ProblemEncoder) -> dict[str, Any]:
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
    room = encoder.max_answer_tokens(encoded["code_prompt"])
    return {
        **encoded,
        "error": None,
        "cut_solutions": sum(len(solution) > room for solution in encoded["solutions"]),
        "unused_plans": len(_answers(row, index)[1]) - len(encoded["plans"]),
    }


def check_lengths(max_length: int | None, max_target_length: int | None, *, shortest: int = 1) -> None:
    """Raise a ValueError if a limit leaves no room for an answer; the minimum of `max_length` is `shortest`."""
    for name, value, minimum in (("max_length", max_length, shortest), ("max_target_length", max_target_length, 1)):
        if value is not None and value < minimum:
            raise ValueError(f"`{name}` is {value}, which leaves no room for an answer; use {minimum} or more.")


def _problem(row: Mapping[str, Any], index: int) -> str:
    problem = read_text(row, "problem", index)
    if not problem.strip():
        raise ValueError(f"The problem of row {index} is empty; drop the row or add the problem.")
    check_encodable(problem, f"Column 'problem' of row {index}")
    return problem


def _answers(row: Mapping[str, Any], index: int) -> tuple[list[str], list[str], list[int]]:
    """Return the solutions and plans that are not blank, and the index of each plan's solution among them."""
    solutions, plans = _texts(row, "solution", index), _texts(row, "plan", index)
    pairs = _plan_solutions(row, len(solutions), len(plans), index)
    kept = [number for number, solution in enumerate(solutions) if solution.strip()]
    positions = {number: position for position, number in enumerate(kept)}
    for name, texts in (("solution", solutions), ("plan", plans)):
        if not any(map(str.strip, texts)):
            remedy = "generate one (`trl-akd plans`)" if name == "plan" else "add one"
            raise ValueError(f"Row {index} has no {name} that is not empty; {remedy} or drop the row.")
    paired = [
        (plan, positions.get(pair, UNKNOWN_SOLUTION)) for plan, pair in zip(plans, pairs, strict=True) if plan.strip()
    ]
    return [solutions[number] for number in kept], [plan for plan, _ in paired], [pair for _, pair in paired]


def _texts(row: Mapping[str, Any], name: str, index: int) -> list[str]:
    """Return the texts in the column `name` or, in the plural, `names`."""
    found = {column: _listed(row.get(column), column, index) for column in (name, f"{name}s")}
    one, several = ([text for text in texts if text.strip()] for texts in found.values())
    if several and not set(one) <= set(several):
        raise ValueError(
            f"Row {index} has both {name!r} and '{name}s', with different texts; remove the column that is not to be "
            "trained on."
        )
    return found[f"{name}s"] if several else found[name]


def _listed(value: Any, column: str, index: int) -> list[str]:
    """Return the texts of a column, which are a text, a list of texts or, in the plural, such a list as JSON."""
    where = f"Column {column!r} of row {index}"
    if isinstance(value, str) and column.endswith("s"):
        value = _decoded_list(value)
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list | tuple):
        raise ValueError(f"{where} is {value!r:.80}, of type {type(value).__name__}; give a text or a list of texts.")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{where} holds {type(text).__name__}, not text; drop the row or convert the column.")
        check_encodable(text, where)
    return list(texts)


def _decoded_list(text: str) -> Any:
    """Return the list or mapping of which a text is the JSON, or the text."""
    try:
        decoded = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return decoded if isinstance(decoded, list | dict) else text


def _plan_solutions(row: Mapping[str, Any], num_solutions: int, num_plans: int, index: int) -> list[int]:
    """Return, for each plan, the index of its solution in the row."""
    pairs = row.get("plan_solutions")
    if pairs is None:
        return [UNKNOWN_SOLUTION] * num_plans
    if not isinstance(pairs, list | tuple) or len(pairs) != num_plans:
        raise ValueError(
            f"Column 'plan_solutions' of row {index} is {pairs!r:.80}; give a list with an entry for each of the "
            f"{num_plans} plans, or remove the column."
        )
    for pair in pairs:
        if pair is not None and (type(pair) is not int or not UNKNOWN_SOLUTION <= pair < num_solutions):
            raise ValueError(
                f"Column 'plan_solutions' of row {index} holds {pair!r}; give indices of the row's {num_solutions} "
                "solutions, from 0, or null where a plan's solution is unknown."
            )
    return [UNKNOWN_SOLUTION if pair is None else pair for pair in pairs]
