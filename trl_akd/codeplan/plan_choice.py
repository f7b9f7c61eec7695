"""What speaks for each plan, which one is chosen, and what comes of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..execution import ExecutionResult
from ..generation import Completion

__all__ = ["PlanChoice", "PlanSamplingResult", "PlanScore", "best_plan"]


@dataclass(frozen=True, slots=True)
class PlanScore:
    """Say what speaks for a plan.

    Args:
        plan (`str`):
            The plan.
        mean_logprob (`float`, *optional*):
            Mean log-probability of its tokens, in nats.
        pass_fraction (`float`, *optional*):
            Public cases that its programs passed, as a fraction of all, averaged over the programs; `None` where there
            are no public tests. Each assertion of a test program is a case.
        too_long (`bool`, *optional*, defaults to `False`):
            Whether the prompt for it, or for programs behind it, exceeds the model's positions, so that it counts as
            one of which no program passes anything.
    """

    plan: str
    mean_logprob: float | None
    pass_fraction: float | None
    too_long: bool = False


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """Hold what comes of a problem when the first so many plans are there to choose from.

    Args:
        index (`int`, *optional*):
            Which plan is chosen; `None` where there is none and the program is written without.
        completions (`tuple[Completion, ...]`):
            What the student then wrote; best first where a ranker ordered it.
        programs (`tuple[str, ...]`):
            The programs in it.
        verdicts (`tuple[ExecutionResult, ...]`):
            What the hidden tests say of each program; empty where there are none.
    """

    index: int | None
    completions: tuple[Completion, ...]
    programs: tuple[str, ...]
    verdicts: tuple[ExecutionResult, ...]


@dataclass(frozen=True, slots=True)
class PlanSamplingResult:
    """Hold what came of one problem.

    Args:
        id (`str`):
            The problem.
        plan_scores (`tuple[PlanScore, ...]`):
            Every plan that was sampled, in that order.
        choices (`Mapping[int, PlanChoice]`):
            What comes of choosing between the first so many plans, for each such number.
    """

    id: str
    plan_scores: tuple[PlanScore, ...]
    choices: Mapping[int, PlanChoice]

    @property
    def choice(self) -> PlanChoice:
        """Return the choice between all plans."""
        return self.choices[len(self.plan_scores)]

    @property
    def plan(self) -> str:
        """Return the plan that was chosen."""
        assert self.choice.index is not None
        return self.plan_scores[self.choice.index].plan

    @property
    def programs(self) -> tuple[str, ...]:
        """Return the final programs, written with the plan that was chosen."""
        return self.choice.programs

    @property
    def verdicts(self) -> tuple[ExecutionResult, ...]:
        """Return what the hidden tests say of the final programs."""
        return self.choice.verdicts


def best_plan(scores: Sequence[PlanScore]) -> int | None:
    """Return the index of the first plan with the largest pass fraction and, among those, mean log-probability."""
    if not scores:
        return None
    if any(score.pass_fraction is None and score.mean_logprob is None and not score.too_long for score in scores):
        raise ValueError(
            "without public tests plans are chosen by their log-probability, which the generator does not tell; use "
            "another backend, or give public tests."
        )

    def merit(index: int) -> tuple[float, float]:
        score = scores[index]
        logprob = -math.inf if score.mean_logprob is None else score.mean_logprob
        return (0.0 if score.pass_fraction is None else score.pass_fraction, logprob)

    return max(range(len(scores)), key=merit)
