"""What the teacher is asked for a plan: one example, then the task.

The wording is this project's own. CodePLAN's prompts, which are not licensed, show a program and its numbered steps
once as well; they give the solution alone where ours gives the problem too.
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
"""Where a base model has left the plan and begins another example."""

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
    """Lay out a problem, and its solution where the teacher may see it, as a request for a plan.

    Args:
        name (`str`): how the teacher reasons.
        source (`str`): where the wording comes from.
        layout (`str`): format string with the field `problem` and, where the teacher sees it, `solution`.
    """

    name: Reasoning
    source: str
    layout: str

    @property
    def version(self) -> str:
        """Name the wording: what it is called and a digest, so that no change to it goes unnoticed."""
        return f"{self.name}-{hashlib.sha256(self.layout.encode()).hexdigest()[:8]}"

    def render(self, problem: str, solution: str = "") -> str:
        """Return the prompt for one problem."""
        return self.layout.format(problem=problem.strip(), solution=solution.strip())


def _layout(opening: str, parts: Mapping[str, tuple[str, str]]) -> str:
    """Put an opening, an example and the task together, both in the same parts: title, (example's text, task's)."""
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
            source="this project; that the teacher reasons back from a solution is CodePLAN's",
            layout=_layout(
                "You help people learn to program. Below are a problem and a program that solves it. Write the plan "
                "that someone who has not seen the program would follow to write it: which steps it takes, in which "
                f"order, and with what in mind. {_RULES}",
                {"Problem": (_DEMO_PROBLEM, "{problem}"), "Program": (_DEMO_SOLUTION, "{solution}")},
            ),
        ),
        "forward": PlanPrompt(
            "forward",
            source="this project; the comparison is CodePLAN's",
            layout=_layout(
                "You help people learn to program. Below is a problem. Write the plan that someone would follow to "
                "write a program that solves it: which steps it takes, in which order, and with what in mind. "
                f"{_RULES}",
                {"Problem": (_DEMO_PROBLEM, "{problem}")},
            ),
        ),
    }
)
"""What the teacher is asked: backward, from problem and reference solution, or forward, from the problem alone."""

_FIELDS: Mapping[Reasoning, set[str]] = MappingProxyType({"backward": {"problem", "solution"}, "forward": {"problem"}})


def plan_prompt(reasoning: Reasoning, layout: str | None = None) -> PlanPrompt:
    r"""Return the prompt for a way to reason, in the caller's own words if there are any.

    Args:
        reasoning (`str`):
            `"backward"` or `"forward"`.
        layout (`str`, *optional*):
            Format string with the field `{problem}` and, backward, `{solution}`; other braces are doubled.

    Raises:
        ValueError: If there is no such way to reason, or the layout's fields are others.

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
        raise ValueError(f"`layout` is no format string ({error}); double the braces that are no fields.") from error
    for problem, names in (("has unknown", found - fields), ("lacks the", fields - found)):
        if names:
            raise ValueError(
                f"`layout` {problem} fields {_named(names)}; reasoning {reasoning} takes {_named(fields)}, and other "
                "braces are doubled."
            )
    return PlanPrompt(reasoning, source="the caller", layout=layout)


def _named(fields: Iterable[str]) -> str:
    return " and ".join(f"{{{name}}}" for name in sorted(fields))
