"""Configuration of the experiment on IterKD: world, budgets, variants, seeds and predictions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from ...iterkd.cycle.records import Level
from .cycles_measures import CYCLES_MEASURES
from .cycles_world import CyclesWorld
from .fields import build, check_counts, check_distinct, check_names, check_required, is_report, read_mapping

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
class Comparison:
    """A prediction about the mean difference of two variants over seeds.

    Args:
        first (`str`), second (`str`): variants; the difference is that of the first minus the second.
        measure (`str`, *optional*, defaults to `"pass@1"`): one of the measures.
        at_least (`float`, *optional*), at_most (`float`, *optional*): bounds of the mean difference.
    """

    first: str
    second: str
    measure: str = "pass@1"
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.at_least, self.at_most) if bound is not None]
        if not bounds or not all(map(math.isfinite, bounds)) or bounds != sorted(bounds):
            raise ValueError(
                f"the bounds are at least {self.at_least} and at most {self.at_most}; give one or two finite numbers, "
                "the lower one as `at_least`."
            )
        if self.first == self.second:
            raise ValueError(f"`first` and `second` are both {self.first!r}; give two variants.")
        if self.measure not in CYCLES_MEASURES:
            raise ValueError(f"`measure` is {self.measure!r}; choose from {', '.join(CYCLES_MEASURES)}.")


@dataclass
class CyclesConfig:
    """
    Configuration of `trl-akd bench cycles`.

    Args:
        output_dir (`str`, *optional*, defaults to `"outputs/bench/cycles"`):
            Folder of the runs (`runs.jsonl`), of pre-trained students and of the results (`results.json`).
        settings (`dict`, *optional*):
            World, student and budgets; the keys are described in docs/methods/iterkd_bench.md.
        variants (`dict`, *optional*):
            Variants by name, such as `{derived: {judge: 1.0}}`; the keys are described there as well.
        seeds (`list[int]`, *optional*, defaults to `[0]`):
            Seeds. World, start, questions and held-out tasks are a function of the seed, so that variants are compared
            in pairs.
        num_tasks (`int`, *optional*, defaults to `200`):
            Number of held-out tasks.
        num_samples (`int`, *optional*, defaults to `10`):
            Number of samples per task.
        control (`dict`, *optional*):
            Comparison that must hold before anything is ranked, with the keys of a prediction.
        predictions (`dict`, *optional*):
            Predictions by name: `first`, `second`, `measure`, `at_least`, `at_most`. They and `control` are recorded
            before the first run, and the folder then refuses others.
        workers (`int`, *optional*):
            Number of runs at the same time. Defaults to the number of cores.
        report (`str`, *optional*):
            Write the page of these results (a results.json) instead of running anything.
        page (`str`, *optional*):
            File of the page, with the suffix .md. By default `results.md` beside the results.
    """

    output_dir: str = "outputs/bench/cycles"
    settings: dict[str, Any] | str | None = None
    variants: dict[str, Any] | str | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    num_tasks: int = 200
    num_samples: int = 10
    control: dict[str, Any] | str | None = None
    predictions: dict[str, Any] | str | None = None
    workers: int | None = None
    report: str | None = None
    page: str | None = None

    def __post_init__(self) -> None:
        for name in ("settings", "variants", "control", "predictions"):
            setattr(self, name, read_mapping(name, getattr(self, name)))
        if is_report(self):
            return
        check_required(self, ("variants", "seeds", "control", "predictions"))
        check_counts(self, ("num_tasks", "num_samples", "workers"))
        check_distinct("seeds", self.seeds)
        self.shared_settings()
        variants = self.named_variants()
        for name, variant in variants.items():
            if variant.as_many_questions_as is not None:
                check_names(f"variants: {name}: as_many_questions_as", [variant.as_many_questions_as], variants)
        for name, comparison in {"control": self.control_comparison(), **self.named_predictions()}.items():
            check_names(name, [comparison.first, comparison.second], variants)

    def shared_settings(self) -> CyclesSettings:
        """Return world, student and budgets."""
        settings: CyclesSettings = build(CyclesSettings, self.settings or {}, "`settings`:")
        return settings

    def named_variants(self) -> dict[str, Variant]:
        """Return the variants by name."""
        return {
            name: build(Variant, entry or {}, f"`variants` has {name!r}, in which")
            for name, entry in _entries(self.variants).items()
        }

    def control_comparison(self) -> Comparison:
        """Return the comparison that must hold before anything is ranked."""
        comparison: Comparison = build(Comparison, self.control, "`control`:")
        return comparison

    def named_predictions(self) -> dict[str, Comparison]:
        """Return the predictions by name."""
        return {
            name: build(Comparison, entry, f"`predictions` has {name!r}, in which")
            for name, entry in _entries(self.predictions).items()
        }


def _entries(value: Any) -> Mapping[str, Any]:
    assert isinstance(value, dict)
    return value
