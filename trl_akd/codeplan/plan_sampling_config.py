"""What `trl-akd evaluate` needs to know to sample plans."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["PlanSamplingConfig"]


@dataclass
class PlanSamplingConfig:
    """
    Plans in an evaluation: whether the student plans first, and how its plan is chosen.

    Args:
        plan_sampling (`bool`, *optional*, defaults to `False`):
            Sample plans, choose one a problem by its public tests, and judge programs written with it: `num_samples`
            a problem, after as many a plan for the choice. The student is asked as CodePLAN trains it.
        num_plans (`int`, *optional*, defaults to `20`):
            Plans a problem.
        max_plan_tokens (`int`, *optional*, defaults to `512`):
            Most tokens of a plan.
        without_public_tests (`str`, *optional*, defaults to `"error"`):
            What to do for a problem without public tests: `"error"`, or `"logprob"`, choose the likeliest plan.
        ranker (`str`, *optional*):
            Folder of a ranker that orders the programs, from `trl-akd ranker train`.
    """

    plan_sampling: bool = False
    num_plans: int = 20
    max_plan_tokens: int = 512
    without_public_tests: Literal["error", "logprob"] = "error"
    ranker: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_plans", "max_plan_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give at least 1.")
        if self.without_public_tests not in ("error", "logprob"):
            raise ValueError(f"`without_public_tests` is {self.without_public_tests!r}; choose error or logprob.")
        if self.ranker is not None and not self.plan_sampling:
            raise ValueError(
                f"`ranker` is {self.ranker!r} without `plan_sampling`; order samples that are there by `trl-akd "
                "ranker rank` instead."
            )
