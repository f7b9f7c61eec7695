"""Configuration of plan sampling in `trl-akd evaluate`."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["PlanSamplingConfig"]


@dataclass
class PlanSamplingConfig:
    """
    Configuration of plan sampling in `trl-akd evaluate`.

    Args:
        plan_sampling (`bool`, *optional*, defaults to `False`):
            Whether to sample plans, select one per problem by its public tests, and evaluate `num_samples` programs
            generated with it. As many programs per plan are generated for the selection. The prompts are those of
            CodePLAN's training.
        num_plans (`int`, *optional*, defaults to `20`):
            Number of plans per problem.
        max_plan_tokens (`int`, *optional*, defaults to `512`):
            Maximum number of tokens per plan.
        without_public_tests (`str`, *optional*, defaults to `"error"`):
            For problems without public tests: `"error"`, or `"logprob"` to select the most likely plan.
        ranker (`str`, *optional*):
            Folder of a ranker from `trl-akd ranker train` that orders the programs.
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
                f"`ranker` is {self.ranker!r} without `plan_sampling`; rank existing samples by `trl-akd ranker "
                "rank` instead."
            )
