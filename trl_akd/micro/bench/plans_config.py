"""Configuration of the experiment on CodePLAN: worlds, trainings, seeds and predictions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...bench.fields import Bounds, WorldExperimentConfig, check_names
from .plans_measures import NUM_COMPARED, NUM_PROGRAMS, OWN_PLANS, REDRAWN, TRUE_PLAN, WITHOUT_PLAN
from .plans_world import PlanWorld

__all__ = [
    "PLANS_FORMAT",
    "PLANS_MEASURES",
    "Outcome",
    "PlanPrediction",
    "PlanTraining",
    "PlanWorldSettings",
    "PlansConfig",
]

PLANS_FORMAT = 1  # of `runs.jsonl` and of the results; changes with the world, the measures or the files

_PLAN_MEASURES = ("plan_accuracy", f"right_plan@{max(NUM_PROGRAMS)}", "pass_given_right", "pass_given_wrong")
_BY_OWN_PLANS = tuple(f"best@{number}" for number in NUM_PROGRAMS)
_BY_OTHERS = tuple(f"best@{number}" for number in NUM_COMPARED)
PLANS_MEASURES: Mapping[str, tuple[str, ...]] = {
    WITHOUT_PLAN: _BY_OTHERS,
    TRUE_PLAN: _BY_OTHERS,
    OWN_PLANS: (*_BY_OWN_PLANS, *_PLAN_MEASURES),
    REDRAWN: _BY_OWN_PLANS,
}
"""Measures by the plan that programs follow."""


@dataclass(frozen=True)
class PlanWorldSettings:
    """One world of the experiment: arguments of [`PlanWorld`], the amount of data, and the pre-training.

    Args:
        num_procedures (`int`, *optional*, defaults to `24`): as in [`PlanWorld`].
        num_libraries (`int`, *optional*, defaults to `6`): as in [`PlanWorld`].
        rows (`int`, *optional*, defaults to `500`): number of training problems.
        epochs (`float`, *optional*, defaults to `8`): number of epochs.
        start_steps (`int`, *optional*, defaults to `800`): number of steps of pre-training.
        start_accuracy (`float`, *optional*, defaults to `0.7`): minimum share of given plans that a pre-trained
            student follows, to start; a seed below is reported, and not run.
    """

    num_procedures: int = 24
    num_libraries: int = 6
    rows: int = 500
    epochs: float = 8
    start_steps: int = 800
    start_accuracy: float = 0.7

    def __post_init__(self) -> None:
        for name in ("rows", "start_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give an integer of at least 1.")
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"`epochs` is {self.epochs}; give a number above 0.")
        if not 0 <= self.start_accuracy <= 1:
            raise ValueError(f"`start_accuracy` is {self.start_accuracy}; give a share from 0 to 1.")
        self.world(0)

    def world(self, seed: int) -> PlanWorld:
        """Return the world of a seed."""
        return PlanWorld(seed, self.num_procedures, self.num_libraries)


@dataclass(frozen=True)
class PlanTraining:
    """One way of training, by [`CodePLANTrainer`].

    Args:
        plan_weight (`float`, *optional*, defaults to `0.0`): as in [`CodePLANConfig`]; 0 for programs alone.
        guided_weight (`float`, *optional*, defaults to `0.0`): as in [`CodePLANConfig`].
        times_epochs (`float`, *optional*, defaults to `1.0`): factor of the world's number of epochs. With 2, training
            on programs alone sees as many programs as training on programs and on programs that follow a plan.
    """

    plan_weight: float = 0.0
    guided_weight: float = 0.0
    times_epochs: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.plan_weight <= 1:
            raise ValueError(f"`plan_weight` is {self.plan_weight}; give a number from 0 to 1.")
        if not 0 <= self.guided_weight < math.inf:
            raise ValueError(f"`guided_weight` is {self.guided_weight}; give a number of at least 0.")
        if not 0 < self.times_epochs < math.inf:
            raise ValueError(f"`times_epochs` is {self.times_epochs}; give a number above 0.")

    @property
    def writes_plans(self) -> bool:
        """Whether the student learns to write plans."""
        return self.plan_weight > 0


@dataclass(frozen=True)
class Outcome:
    """A measure of a training, by the plan that programs follow; written as three words.

    Args:
        training (`str`): name of the training.
        plan (`str`): `without_plan`, `true_plan`, `own_plans` or `own_plans_redrawn`.
        measure (`str`): measure, such as `best@10`.
    """

    training: str
    plan: str
    measure: str

    @classmethod
    def parse(cls, text: str) -> "Outcome":
        """Return the outcome that three words name, such as `"guided own_plans best@10"`.

        Raises:
            ValueError: If there are other words.
        """
        words = text.split()
        if len(words) != 3:
            raise ValueError(
                f"the outcome is {text!r}; give a training, a plan and a measure, such as 'guided own_plans best@10'."
            )
        check_names("plan", [words[1]], PLANS_MEASURES)
        check_names(f"measure of {words[1]}", [words[2]], PLANS_MEASURES[words[1]])
        return cls(*words)

    def __str__(self) -> str:
        return f"{self.training} {self.plan} {self.measure}"


@dataclass(frozen=True)
class PlanPrediction(Bounds):
    """A prediction about the mean of an outcome over seeds, or about the mean difference of two.

    Args:
        world (`str`): where it is tested.
        first (`str`), second (`str`, *optional*): outcomes; the difference is that of the first minus the second.
        at_least (`float`, *optional*), at_most (`float`, *optional*): predicted bounds of the mean.
    """

    world: str
    first: str
    second: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first == self.second:
            raise ValueError(f"`first` and `second` are both {self.first!r}; give two outcomes.")
        for outcome in self.outcomes:
            Outcome.parse(str(outcome))

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """The first outcome, and the second one if it is a difference."""
        return tuple(Outcome.parse(text) for text in (self.first, self.second) if text is not None)


@dataclass
class PlansConfig(WorldExperimentConfig):
    """
    Configuration of `trl-akd bench plans`, with the fields of [`WorldExperimentConfig`].

    Args:
        worlds (`dict`, *optional*):
            Worlds by name, such as `{scarce: {rows: 300, epochs: 10}}`; their keys are described in
            docs/methods/codeplan_bench.md.
        trainings (`dict`, *optional*):
            Trainings by name, each with `plan_weight`, `guided_weight` and `times_epochs`.
    """

    mappings = ("worlds", "trainings", "predictions")
    required = ("worlds", "trainings", "seeds", "predictions")

    output_dir: str = "outputs/bench/plans"
    worlds: dict[str, Any] | str | None = None
    trainings: dict[str, Any] | str | None = None

    def check_runs(self) -> None:
        """Check worlds, trainings and predictions.

        Raises:
            ValueError: If a value is refused.
        """
        super().check_runs()
        worlds, trainings = self.named_worlds(), self.named_trainings()
        for name, prediction in self.named_predictions().items():
            check_names(f"predictions: {name}: world", [prediction.world], worlds)
            for outcome in prediction.outcomes:
                check_names(f"predictions: {name}", [outcome.training], trainings)
                if outcome.plan in (OWN_PLANS, REDRAWN) and not trainings[outcome.training].writes_plans:
                    raise ValueError(
                        f"`predictions` has {name!r}, about own plans of {outcome.training!r}, whose `plan_weight` is "
                        "0; choose a training on plans."
                    )

    def named_worlds(self) -> dict[str, PlanWorldSettings]:
        """Return the worlds by name."""
        return self.build_each("worlds", PlanWorldSettings)

    def named_trainings(self) -> dict[str, PlanTraining]:
        """Return the trainings by name."""
        return self.build_each("trainings", PlanTraining)

    def named_predictions(self) -> dict[str, PlanPrediction]:
        """Return the predictions by name."""
        return self.build_each("predictions", PlanPrediction)
