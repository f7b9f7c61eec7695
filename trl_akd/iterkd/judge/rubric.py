"""The six-point rubric and judgements by it.

The rubric is that of SODA's released scoring prompt ([Chen et al.](https://huggingface.co/papers/2408.03680)): five
rules whose points are added. It asks for whole points, but half of the released judgements have half points, which are
therefore valid here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

__all__ = [
    "MAX_TOTAL",
    "REFUSALS",
    "RULES",
    "RULE_NUMBERS",
    "Judgement",
    "Refusal",
    "Rule",
    "Unjudged",
    "format_judgement",
    "read_judgement",
    "refusal_of",
]

Refusal: TypeAlias = Literal[
    "no_scores",
    "missing_score",
    "extra_score",
    "not_a_number",
    "other_scale",
    "out_of_range",
    "not_half_points",
    "contradictory",
    "withdrawn",
]
REFUSALS: tuple[Refusal, ...] = get_args(Refusal)
"""Reasons to refuse the text of a judge:

- `no_scores`: no scores by rule, for example only prose, only a total, or an unclosed thought;
- `missing_score`: fewer than five rules, or a rule without a score;
- `extra_score`: a sixth rule;
- `not_a_number`: a range, or text such as "N/A";
- `other_scale`: a scale other than the rule's maximum, such as "4/5";
- `out_of_range`: below 0 or above the rule's maximum;
- `not_half_points`: not a multiple of 0.5;
- `contradictory`: two scores for a rule without a final one, or a total that is not the sum;
- `withdrawn`: the judge withdraws the scores or declines to judge.
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """Rule of the rubric with its maximum number of points."""

    name: str
    maximum: float


RULES: tuple[Rule, ...] = (
    Rule("Basic functionality", 2.0),
    Rule("Boundary checks", 1.0),
    Rule("Requirement coverage", 1.0),
    Rule("Readability", 1.0),
    Rule("Coding practice", 1.0),
)
RULE_NUMBERS = range(1, len(RULES) + 1)
MAX_TOTAL = sum(rule.maximum for rule in RULES)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Scores of one answer, multiples of 0.5 in the order of `RULES`.

    Raises:
        ValueError: If these are not five scores of the rubric.
    """

    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.scores) != len(RULES):
            raise ValueError(f"`scores` has {len(self.scores)} numbers; give {len(RULES)}, one per rule.")
        for rule, score in zip(RULES, self.scores, strict=True):
            if (refusal := refusal_of(rule, score)) is not None:
                raise ValueError(
                    f"`scores` has {score} for {rule.name!r} ({refusal}); give a multiple of 0.5 from 0 to "
                    f"{rule.maximum:g}."
                )

    @property
    def total(self) -> float:
        """Sum of the scores, from 0 to 6."""
        return float(sum(self.scores))


@dataclass(frozen=True, slots=True)
class Unjudged:
    """Reason for which there is no judgement."""

    reason: Refusal


def read_judgement(value: Mapping[str, Any]) -> Judgement | Unjudged:
    """Return a judgement from the values of `dataclasses.asdict`.

    Example:

    ```python
    >>> read_judgement({"scores": [2, 0, 1, 0.5, 0.5]}), read_judgement({"reason": "no_scores"})
    (Judgement(scores=(2, 0, 1, 0.5, 0.5)), Unjudged(reason='no_scores'))

    ```
    """
    return Judgement(tuple(value["scores"])) if "scores" in value else Unjudged(value["reason"])


def format_judgement(judgement: Judgement) -> str:
    """Return a judgement in the format that the default prompt requests.

    Example:

    ```python
    >>> print(format_judgement(Judgement((2, 0, 1, 0.5, 0.5))))
    Score:
    Rule 1. Basic functionality: 2
    Rule 2. Boundary checks: 0
    Rule 3. Requirement coverage: 1
    Rule 4. Readability: 0.5
    Rule 5. Coding practice: 0.5

    ```
    """
    lines = [
        f"Rule {number}. {rule.name}: {score:g}"
        for number, (rule, score) in enumerate(zip(RULES, judgement.scores, strict=True), 1)
    ]
    return "\n".join(["Score:", *lines])


def refusal_of(rule: Rule, score: float) -> Refusal | None:
    """Return the reason for which a number is not a score of a rule, or `None` if it is."""
    if not 0 <= score <= rule.maximum:
        return "out_of_range"
    return None if score * 2 == int(score * 2) else "not_half_points"
