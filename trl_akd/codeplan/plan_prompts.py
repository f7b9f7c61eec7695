"""Prompts for plans, with one example.

The wording is this project's own. CodePLAN's prompts, which have no license, contain one program with its numbered
steps as well, but show the solution without the problem.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import Formatter
from types import MappingProxyType
from typing import Literal, TypeAlias

__all__ = ["PLAN_PROMPTS", "PLAN_STOP", "PlanPrompt", "Reasoning", "plan_prompt"]

Reasoning: TypeAlias = Literal["backward", "forward"]

PLAN_STOP = ("\n### ",)
"""Strings at which a base model ends the plan and begins another example."""

_DEMO_PROBLEM = """\
A shop notes the price of one share at the end of each day. Read the prices from one line, separated by blanks, and
print the largest profit that buying on one day and selling on a later day could have made, or 0 if none could."""

_DEMO_SOLUTION = """\
prices = list(map(int, input().split()))
cheapest = prices[0]
profit = 0
for price in prices[1:]:
    profit = max(profit, price - cheapest)
    cheapest = min(cheapest, price)
print(profit)"""

_DEMO_PLAN = """\
1. Read all prices as integers from the one line of input.
2. Remember the first price as the cheapest so far, and a profit of 0.
3. Go through the other prices in order.
4. For each, see what selling at it would gain over the cheapest price before it, and keep the gain if it beats the \
profit so far.
5. Then let the cheapest price be the smaller of itself and this price.
6. Print the profit."""


@dataclass(frozen=True, slots=True)
class PlanPrompt:
    """A prompt for the plan of a problem.

    Args:
        name (`str`):
            `"backward"` or `"forward"`.
        source (`str`):
            Source of the wording.
        layout (`str`):
            Format string with the field `problem` and, backward, `solution`.
    """

    name: Reasoning
    source: str
    layout: str

    @property
    def version(self) -> str:
        """The name and a digest of the layout, which changes with the wording."""
        return f"{self.name}-{hashlib.sha256(self.layout.encode()).hexdigest()[:8]}"

    def render(self, problem: str, solution: str = "") -> str:
        """Return the prompt for one problem."""
        return self.layout.format(problem=problem.strip(), solution=solution.strip())


def _layout(opening: str, parts: Mapping[str, tuple[str, str]]) -> str:
    """Join an introduction, an example and the task, given as (example, task) by the title of their section."""
    demo = "\n\n".join(f"### {title}\n{_escape(example)}" for title, (example, _) in parts.items())
    task = "\n\n".join(f"### {title}\n{asked}" for title, (_, asked) in parts.items())
    return f"{opening}\n\n{demo}\n\n### Plan\n{_DEMO_PLAN}\n\n{task}\n\n### Plan\n"


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


_RULES = (
    "Number the steps 1., 2., 3. and so on, one a line. Write whole sentences in plain English, no code, and nothing "
    "before the first step or after the last."
)

PLAN_PROMPTS: Mapping[Reasoning, PlanPrompt] = MappingProxyType(
    {
        "backward": PlanPrompt(
            "backward",
            source="this project, after CodePLAN's backward reasoning from a solution",
            layout=_layout(
                "You help people learn to program. Below are a problem and a program that solves it. Write the plan "
                "that someone who has not seen the program would follow to write it: which steps it takes, in which "
                f"order, and with what in mind. {_RULES}",
                {"Problem": (_DEMO_PROBLEM, "{problem}"), "Program": (_DEMO_SOLUTION, "{solution}")},
            ),
        ),
        "forward": PlanPrompt(
            "forward",
            source="this project, after CodePLAN's comparison",
            layout=_layout(
                "You help people learn to program. Below is a problem. Write the plan that someone would follow to "
                "write a program that solves it: which steps it takes, in which order, and with what in mind. "
                f"{_RULES}",
                {"Problem": (_DEMO_PROBLEM, "{problem}")},
            ),
        ),
    }
)
"""The prompts: backward, from problem and reference solution, and forward, from the problem alone."""

_FIELDS: Mapping[Reasoning, set[str]] = MappingProxyType({"backward": {"problem", "solution"}, "forward": {"problem"}})


def plan_prompt(reasoning: Reasoning, layout: str | None = None) -> PlanPrompt:
    r"""Return the prompt for a kind of reasoning, with a custom layout if one is given.

    Args:
        reasoning (`str`):
            `"backward"` or `"forward"`.
        layout (`str`, *optional*):
            Format string with the field `{problem}` and, backward, `{solution}`; other braces are doubled.

    Raises:
        ValueError: If the kind of reasoning is unknown, or the layout has the wrong fields.

    Example:

    ```python
    >>> plan_prompt("forward", "Task: {problem}\nSteps:\n").render("Double a number.")
    'Task: Double a number.\nSteps:\n'

    ```
    """
    if reasoning not in PLAN_PROMPTS:
        raise ValueError(f"`reasoning` is {reasoning!r}; choose one of {', '.join(PLAN_PROMPTS)}.")
    if layout is None:
        return PLAN_PROMPTS[reasoning]
    fields = _FIELDS[reasoning]
    try:
        found = {name for _, name, _, _ in Formatter().parse(layout) if name is not None}
    except ValueError as error:
        raise ValueError(f"`layout` is not a format string ({error}); double braces that are not fields.") from error
    for problem, names in (("has unknown", found - fields), ("lacks the", fields - found)):
        if names:
            raise ValueError(
                f"`layout` {problem} fields {_format_fields(names)}; {reasoning} reasoning takes "
                f"{_format_fields(fields)}, and other braces are doubled."
            )
    return PlanPrompt(reasoning, source="the caller", layout=layout)


def _format_fields(fields: Iterable[str]) -> str:
    return " and ".join(f"{{{name}}}" for name in sorted(fields))
