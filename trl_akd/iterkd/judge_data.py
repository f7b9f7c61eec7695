"""Judgements to train a judge on, and what tells how good it has become."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .judging import Judgement, Unjudged, format_judgement, parse_judgement

__all__ = ["JudgedAnswer", "judge_metrics", "read_judgements"]

# How SODA's filled scoring prompts show where question and answer begin and end.
_QUESTION = ("Here is the programming question:", "#End of programming question#")
_ANSWER = ("Here is the code:", "#End of code#")


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """Hold an answer and a judgement on it.

    Args:
        instruction (`str`):
            What was asked.
        answer (`str`):
            What was answered.
        judgement ([`Judgement`]):
            Its scores.
        text (`str`):
            The judgement as a generative judge shall write it.
    """

    instruction: str
    answer: str
    judgement: Judgement
    text: str


def read_judgements(rows: Iterable[Mapping[str, Any]]) -> tuple[list[JudgedAnswer], Counter[str]]:
    """Read rows `{instruction, answer, scores}`, or `{instruction, response}` as SODA's authors released them.

    In the second kind, `instruction` is a filled prompt of theirs, out of which question and answer are taken, and
    `response` a judge's text; where that cannot be read, the row is left out and counted.

    Args:
        rows (`Iterable[Mapping]`):
            Rows of either kind. Beside `scores`, five numbers, `response` may give the judge's words, with the same
            scores.

    Returns:
        `tuple[list[JudgedAnswer], Counter]`: the judgements, and the reasons for which others could not be read.

    Raises:
        ValueError: If a row is of neither kind, or none is left; the message has its number.
    """
    judged: list[JudgedAnswer] = []
    refused: Counter[str] = Counter()
    for number, row in enumerate(rows):
        try:
            found = _read(row)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"row {number} of the judgements is not to be used ({error}); give {{instruction, answer, scores}} "
                "with five scores, or {instruction, response} as SODA's."
            ) from error
        if isinstance(found, Unjudged):
            refused[found.reason] += 1
        else:
            judged.append(found)
    if not judged:
        raise ValueError(f"no judgement can be read; refused are {dict(refused)}.")
    return judged, refused


def judge_metrics(found: Sequence[Judgement | Unjudged], wanted: Sequence[Judgement]) -> dict[str, float]:
    """Compare a judge's judgements with those that it should have given.

    Args:
        found (`Sequence[Judgement | Unjudged]`):
            What the judge gave.
        wanted (`Sequence[Judgement]`):
            What it should have given.

    Returns:
        `dict[str, float]`: `unjudged`, the share of answers without a judgement; over the others
        `mean_absolute_error` of the total in points, and `rank_correlation`, Spearman's with mean ranks for ties. What
        is not defined, as the correlation of a constant, is left out.

    Example:

    ```python
    >>> low, high = Judgement((0, 0, 0, 0, 0)), Judgement((2, 1, 1, 1, 1))
    >>> judge_metrics([low, Judgement((2, 1, 1, 0, 0)), Unjudged("no_scores"), low], [low, high, high, low])
    {'unjudged': 0.25, 'mean_absolute_error': 0.6666666666666666, 'rank_correlation': 1.0}

    ```
    """
    pairs = [(got.total, due.total) for got, due in zip(found, wanted, strict=True) if isinstance(got, Judgement)]
    metrics = {"unjudged": 1 - len(pairs) / len(wanted)} if wanted else {}
    if pairs:
        got, due = np.array(pairs, dtype=np.float64).T
        metrics["mean_absolute_error"] = float(np.abs(got - due).mean())
        if len(set(got)) > 1 and len(set(due)) > 1:
            metrics["rank_correlation"] = round(float(np.corrcoef(_mean_ranks(got), _mean_ranks(due))[0, 1]), 12)
    return metrics


def _read(row: Mapping[str, Any]) -> JudgedAnswer | Unjudged:
    if "scores" in row:
        judgement = Judgement(tuple(float(score) for score in row["scores"]))
        text = str(row.get("response") or format_judgement(judgement)).strip()
        if parse_judgement(text) != judgement:
            raise ValueError("its response does not give its scores")
        return JudgedAnswer(_text(row, "instruction"), _text(row, "answer"), judgement, text)
    filled, response = _text(row, "instruction"), _text(row, "response")
    parsed = parse_judgement(response)
    if isinstance(parsed, Unjudged):
        return parsed
    return JudgedAnswer(_between(filled, *_QUESTION), _between(filled, *_ANSWER), parsed, response.strip())


def _text(row: Mapping[str, Any], column: str) -> str:
    if not isinstance(row[column], str):
        raise TypeError(f"`{column}` is no text")
    return str(row[column])


def _between(text: str, opening: str, closing: str) -> str:
    _, found, rest = text.partition(opening)
    inside, ended, _ = rest.partition(closing)
    if not found or not ended:
        raise ValueError(f"its instruction has no {opening!r} … {closing!r}")
    return inside.strip()


def _mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[group]
    return ranks
