"""The six-point rubric, and how a judge's text is read: strictly, with half points.

The rubric is that of SODA's released scoring prompt ([Chen et al.](https://huggingface.co/papers/2408.03680)): five
rules whose points add up. It asks for whole points, yet half of the released judgements have half points, so these
count. A judgement that is not clear is refused, for a reason with a name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

__all__ = [
    "MAX_TOTAL",
    "REFUSALS",
    "RULES",
    "Judgement",
    "Refusal",
    "Rule",
    "Unjudged",
    "format_judgement",
    "parse_judgement",
    "read_judgement",
]

Refusal: TypeAlias = Literal[
    "no_scores", "missing_score", "extra_score", "not_a_number", "other_scale", "out_of_range", "not_half_points"
]

REFUSALS: tuple[Refusal, ...] = get_args(Refusal)
"""What can be wrong with a judge's text:

- `no_scores`: no line `Score:`, or no rule behind it, as in prose;
- `missing_score`: fewer than five rules, or a rule with nothing behind it;
- `extra_score`: a sixth rule, or a rule twice;
- `not_a_number`: something else than a number, as "N/A" or a range;
- `other_scale`: a rule scored out of something else than its maximum, as "4/5";
- `out_of_range`: below 0 or above the rule's maximum;
- `not_half_points`: no multiple of 0.5.
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """Name one rule of the rubric, and the most points that it gives."""

    name: str
    maximum: float


RULES: tuple[Rule, ...] = (
    Rule("Basic functionality", 2.0),
    Rule("Boundary checks", 1.0),
    Rule("Requirement coverage", 1.0),
    Rule("Readability", 1.0),
    Rule("Coding practice", 1.0),
)
MAX_TOTAL = sum(rule.maximum for rule in RULES)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Hold the scores of one answer.

    Args:
        scores (`tuple[float, ...]`):
            Points by rule, in the order of `RULES`, each a multiple of 0.5.

    Raises:
        ValueError: If these are no five scores of the rubric.

    Example:

    ```python
    >>> Judgement((2, 0, 1, 0.5, 0.5)).total
    4.0

    ```
    """

    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.scores) != len(RULES):
            raise ValueError(f"`scores` has {len(self.scores)} numbers; give {len(RULES)}, one a rule.")
        for rule, score in zip(RULES, self.scores, strict=True):
            if (refusal := _refusal(rule, score)) is not None:
                raise ValueError(
                    f"`scores` gives {score} for {rule.name!r} ({refusal}); give 0 to {rule.maximum:g} in steps of "
                    "0.5."
                )

    @property
    def total(self) -> float:
        """Return the sum of the scores, 0 to 6."""
        return float(sum(self.scores))


@dataclass(frozen=True, slots=True)
class Unjudged:
    """Hold why there is no judgement."""

    reason: Refusal


def read_judgement(value: Mapping[str, Any]) -> Judgement | Unjudged:
    """Return what `dataclasses.asdict` made plain values of.

    Example:

    ```python
    >>> read_judgement({"scores": [2, 0, 1, 0.5, 0.5]}), read_judgement({"reason": "no_scores"})
    (Judgement(scores=(2, 0, 1, 0.5, 0.5)), Unjudged(reason='no_scores'))

    ```
    """
    return Judgement(tuple(value["scores"])) if "scores" in value else Unjudged(value["reason"])


def format_judgement(judgement: Judgement) -> str:
    r"""Write a judgement as `parse_judgement` reads it.

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


def parse_judgement(text: str) -> Judgement | Unjudged:
    r"""Read the scores in what a judge wrote.

    They stand behind a line that opens with `Score:`, one rule a line or several with commas between: `Rule 1` or
    `1.`, a name or none, and the points. `2/2`, `2 points`, bold type and a remark in parentheses or behind a dash are
    understood. Lines that open otherwise, as that of a total, are passed over: the total is the sum, whatever the
    judge added up. What stands before `</think>` does not count. Time is linear in the text's length.

    Args:
        text (`str`):
            What a judge wrote.

    Returns:
        `Judgement` or `Unjudged`: the scores, or the first reason why there are none.

    Example:

    ```python
    >>> parse_judgement("Score:\n1. Works: 2/2\n2. Bounds: 0.5\n3. Covers: 1\n4. Reads: 1\n5. Style: 0").total
    4.5
    >>> parse_judgement("It works, and I would give it 5 of 6.")
    Unjudged(reason='no_scores')

    ```
    """
    plain = text.rpartition("</think>")[2].translate(_MARKUP)
    heading = _HEADING.search(plain)
    lines = _BETWEEN.sub("\n", plain[heading.end() :]).splitlines() if heading else []
    entries = [entry for line in lines if (entry := _ENTRY.match(line))]
    if not entries:
        return Unjudged("no_scores")
    numbers = [int(entry["rule"] or entry["number"]) for entry in entries]
    if set(numbers) - set(range(1, len(RULES) + 1)) or len(set(numbers)) < len(numbers):
        return Unjudged("extra_score")
    if len(numbers) < len(RULES):
        return Unjudged("missing_score")
    values = [entry["value"] for _, entry in sorted(zip(numbers, entries, strict=True), key=lambda pair: pair[0])]
    scores = []
    for rule, value in zip(RULES, values, strict=True):
        score = _read_score(rule, value)
        if isinstance(score, Unjudged):
            return score
        scores.append(score)
    return Judgement(tuple(scores))


_MARKUP = str.maketrans("", "", "*_`#")
_HEADING = re.compile(r"^[ \t-]*+scores?[ \t]*+(?::|$)", re.IGNORECASE | re.MULTILINE)
_BETWEEN = re.compile(r"[,;][ \t]*+(?=rule[ \t]*+[0-9])", re.IGNORECASE)
_ENTRY = re.compile(
    r"[ \t\u2022-]*+(?:rule[ \t]*+(?P<rule>[0-9]{1,3}+)|(?P<number>[0-9]{1,3}+)(?=[.)][ \t]))[.):]?+[ \t]*+"
    r"(?:(?:[^:=0-9][^:=]{0,80}+)?+[:=])?+(?P<value>.*+)",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"(?P<score>-?+[0-9]{1,6}+(?:\.[0-9]{1,6}+)?+)(?:[ \t]*+/[ \t]*+(?P<scale>[0-9]{1,6}+(?:\.[0-9]{1,6}+)?+))?+"
    r"(?:[ \t]*+(?:points?|pts?)\b)?+[.,;]?+[ \t]*+(?:$|\(|[\u2013\u2014-][ \t]*+[^ \t0-9])",
    re.IGNORECASE,
)


def _read_score(rule: Rule, text: str) -> float | Unjudged:
    value = text.strip()
    if not value:
        return Unjudged("missing_score")
    found = _VALUE.match(value)
    if found is None:
        return Unjudged("not_a_number")
    if found["scale"] is not None and float(found["scale"]) != rule.maximum:
        return Unjudged("other_scale")
    score = float(found["score"])
    refusal = _refusal(rule, score)
    return score if refusal is None else Unjudged(refusal)


def _refusal(rule: Rule, score: float) -> Refusal | None:
    if not 0 <= score <= rule.maximum:
        return "out_of_range"
    return None if score * 2 == int(score * 2) else "not_half_points"
