"""Configuration of the experiment on IterKD: world, budgets, variants, seeds and predictions."""

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from ...bench.fields import Bounds, WorldExperimentConfig, build, check_counts, check_names
from ...iterkd.cycle.records import Level
from .cycles_measures import CYCLES_MEASURES
from .cycles_world import CyclesWorld

__all__ = ["CYCLES_FORMAT", "Comparison", "CyclesConfig", "CyclesSettings", "Faults", "Questions", "Variant"]

CYCLES_FORMAT = 1  # of `runs.jsonl` and `results.json`; changes with the world, the measures or the files

Faults: TypeAlias = Literal["none", "taxonomy", "logical", "own"]
Questions: TypeAlias = Literal["derived", "rare", "blind", "same"]


@dataclass(frozen=True)
class CyclesSettings:
    """World, student and budgets, which all variants share.

    Args:
        num_rare (`int`, *optional*, defaults to `9`): as in [`CyclesWorld`].
        rare_share (`float`, *optional*, defaults to `0.1`): as in [`CyclesWorld`].
        teacher_error (`float`, *optional*, defaults to `0.1`): share of the teacher's correct answers with a wrong
            step, and of its faulty ones that are correct.
        hidden_size (`int`, *optional*, defaults to `64`): hidden size of the student.
        start_steps (`int`, *optional*, defaults to `400`): number of steps of pre-training.
        start_range (`tuple[float, float]`, *optional*, defaults to `(0.2, 0.6)`): greedy pass@1, on tasks of its own,
            with which a student may start; a seed outside is reported, and not run.
        questions (`int`, *optional*, defaults to `600`): number of seed questions.
        teacher_tokens (`int`, *optional*, defaults to `240000`): tokens of teacher and judge per run, which determine
            the number of new questions.
        trained_tokens (`int`, *optional*, defaults to `100000`): tokens of answers in training per run, which
            determine the number of epochs.
        learning_rate (`float`, *optional*, defaults to `0.002`): peak learning rate of each cycle.
    """

    num_rare: int = 9
    rare_share: float = 0.1
    teacher_error: float = 0.1
    hidden_size: int = 64
    start_steps: int = 400
    start_range: tuple[float, float] = (0.2, 0.6)
    questions: int = 600
    teacher_tokens: int = 240_000
    trained_tokens: int = 100_000
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        for name in ("hidden_size", "start_steps", "questions", "teacher_tokens", "trained_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give an integer of at least 1.")
        if not 0.0 <= self.teacher_error < 1.0:
            raise ValueError(f"`teacher_error` is {self.teacher_error}; give a share of at least 0 and below 1.")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"`learning_rate` is {self.learning_rate}; give a number above 0.")
        low, high = self.start_range
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(f"`start_range` is {low} to {high}; give two probabilities, the lower one first.")
        self.world(0)

    def world(self, seed: int) -> CyclesWorld:
        """Return the world of a seed."""
        return CyclesWorld(seed, self.num_rare, self.rare_share)


@dataclass(frozen=True)
class Variant:
    """A variant of IterKD.

    Args:
        cycles (`int`, *optional*, defaults to `3`): number of cycles.
        questions (`str`, *optional*, defaults to `"derived"`): new questions: `"derived"` from questions by their
            levels; `"rare"`, each with an operation that is rare in pre-training, as if the teacher knew what the
            student lacks; `"blind"`, derived from random seed questions before the only cycle; or `"same"`, none.
        faults (`str`, *optional*, defaults to `"none"`): faulty answers: `"none"`; `"taxonomy"`, the teacher's, of
            five kinds; `"logical"`, the teacher's, with a wrong step; or `"own"`, failing samples of the student.
        judge (`float`, *optional*): AUC of the judge, from 0.5 to 1; without it, there is none.
        execution (`bool`, *optional*, defaults to `True`): whether answers are run in the cycles.
        tests (`bool`, *optional*, defaults to `False`): whether seed questions have tests.
        keep_unverified (`bool`, *optional*, defaults to `False`): as in [`IterKDConfig`].
        contrastive_weight (`float`, *optional*, defaults to `1.0`): as in [`IterKDConfig`], if there are faults.
        as_many_questions_as (`str`, *optional*): variant whose number of new questions is used instead of the one
            that spends the budget.
    """

    cycles: int = 3
    questions: str = "derived"
    faults: str = "none"
    judge: float | None = None
    execution: bool = True
    tests: bool = False
    keep_unverified: bool = False
    contrastive_weight: float = 1.0
    as_many_questions_as: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (("questions", get_args(Questions)), ("faults", get_args(Faults))):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose from {', '.join(choices)}.")
        if self.cycles < 1:
            raise ValueError(f"`cycles` is {self.cycles}; give an integer of at least 1.")
        if (self.cycles == 1) != (self.questions == "blind") and self.questions != "same":
            raise ValueError(
                f"`cycles` is {self.cycles} and `questions` {self.questions!r}; a single cycle has 'blind' questions "
                "or the 'same', and several have others than 'blind'."
            )
        if self.judge is not None and not 0.5 <= self.judge <= 1.0:
            raise ValueError(f"`judge` is {self.judge}; give an AUC from 0.5 to 1.")
        if self.tests and not self.execution:
            raise ValueError("`tests` is true and `execution` false; tests need execution.")
        if not 0.0 <= self.contrastive_weight < math.inf:
            raise ValueError(f"`contrastive_weight` is {self.contrastive_weight}; give a number of at least 0.")

    @property
    def faults_per_question(self) -> int:
        """Number of faulty answers requested per question."""
        return 0 if self.faults == "none" else 1

    @property
    def level_weights(self) -> dict[Level, int]:
        """Relative numbers of new questions by level, 1:2:2 unless feedback cannot tell some levels apart."""
        if self.judge is None:
            return {"easy": 1} if self.execution else {"medium": 1}
        if not self.execution:
            return {"medium": 1, "hard": 1}
        return {"easy": 1, "hard": 4} if self.judge == 1.0 else {"easy": 1, "medium": 2, "hard": 2}


@dataclass(frozen=True)
class Comparison(Bounds):
    """A prediction about the mean difference of two variants over seeds.

    Args:
        first (`str`), second (`str`): variants; the difference is that of the first minus the second.
        measure (`str`, *optional*, defaults to `"pass@1"`): one of the measures.
        at_least (`float`, *optional*), at_most (`float`, *optional*): bounds of the mean difference.
    """

    first: str
    second: str
    measure: str = "pass@1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first == self.second:
            raise ValueError(f"`first` and `second` are both {self.first!r}; give two variants.")
        if self.measure not in CYCLES_MEASURES:
            raise ValueError(f"`measure` is {self.measure!r}; choose from {', '.join(CYCLES_MEASURES)}.")


@dataclass
class CyclesConfig(WorldExperimentConfig):
    """
    Configuration of `trl-akd bench cycles`, with the fields of [`WorldExperimentConfig`].

    Args:
        predictions (`dict`, *optional*):
            Predictions by name: `first`, `second`, `measure`, `at_least`, `at_most`. They and `control` are recorded
            before the first run, and others are then refused for this `name`.
        settings (`dict`, *optional*):
            World, student and budgets; the keys are described in docs/methods/iterkd_bench.md.
        variants (`dict`, *optional*):
            Variants by name, such as `{derived: {judge: 1.0}}`; the keys are described there as well.
        num_samples (`int`, *optional*, defaults to `10`):
            Number of samples per task.
        control (`dict`, *optional*):
            Comparison that must hold before anything is ranked, with the keys of a prediction.
    """

    mappings = ("settings", "variants", "control", "predictions")
    required = ("variants", "seeds", "control", "predictions")

    output_dir: str = "outputs/bench/cycles"
    num_tasks: int = 200
    settings: dict[str, Any] | str | None = None
    variants: dict[str, Any] | str | None = None
    num_samples: int = 10
    control: dict[str, Any] | str | None = None

    def check_runs(self) -> None:
        """Check settings, variants, control and predictions.

        Raises:
            ValueError: If a value is refused.
        """
        super().check_runs()
        check_counts(self, ("num_samples",))
        self.shared_settings()
        variants = self.named_variants()
        for name, variant in variants.items():
            if variant.as_many_questions_as is not None:
                check_names(f"variants: {name}: as_many_questions_as", [variant.as_many_questions_as], variants)
        for name, comparison in {"control": self.control_comparison(), **self.named_predictions()}.items():
            check_names(name, [comparison.first, comparison.second], variants)

    def shared_settings(self) -> CyclesSettings:
        """Return world, student and budgets."""
        settings: CyclesSettings = build(CyclesSettings, self.mapping("settings"), "`settings`:")
        return settings

    def named_variants(self) -> dict[str, Variant]:
        """Return the variants by name."""
        return self.build_each("variants", Variant)

    def control_comparison(self) -> Comparison:
        """Return the comparison that must hold before anything is ranked."""
        comparison: Comparison = build(Comparison, self.mapping("control"), "`control`:")
        return comparison

    def named_predictions(self) -> dict[str, Comparison]:
        """Return the predictions by name."""
        return self.build_each("predictions", Comparison)
