"""Configuration of the benchmark: worlds, students, rules, seeds and predictions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...bench.fields import Bounds, WorldExperimentConfig, build, check_counts, check_distinct, check_names
from .measures import LOW
from .rules import check_rule
from .students import STUDENTS
from .world import World

__all__ = [
    "BETA_DRAWS",
    "FORMAT",
    "MEASURES",
    "BenchConfig",
    "Control",
    "Prediction",
    "WorldSettings",
]

FORMAT = 3  # of `runs.jsonl` and `results.json`; changes with the world, the measures or the files


MEASURES = (
    "pass@1",
    "pass@10",
    "coverage",
    f"pass@1{LOW}",
    f"coverage{LOW}",
    "greedy",
    "valid_mass",
    "coverage_of_valid",
    "forward_kl",
    "reverse_kl",
)
BETA_DRAWS = "draws"


@dataclass(frozen=True)
class WorldSettings:
    """One world of a benchmark: arguments of [`World`], the amount of data, and the students' pre-training.

    Args:
        num_valid (`int`, *optional*, defaults to `4`): as in [`World`].
        same_everywhere (`bool`, *optional*, defaults to `False`): as in [`World`].
        noise (`float`, *optional*, defaults to `0.0`): as in [`World`].
        rows (`int`, *optional*, defaults to `2000`): number of training rows.
        epochs (`float`, *optional*, defaults to `3`): number of epochs.
        start_mass (`float`, *optional*, defaults to `0.35`): probability of a valid first word at which pre-training
            ends.
        start_range (`tuple[float, float]`, *optional*, defaults to `(0.25, 0.45)`): probabilities with which a student
            may start; a seed outside is reported, and not run.
        start_max_steps (`int`, *optional*, defaults to `900`): maximum number of steps of pre-training.
        start_min_steps (`int`, *optional*, defaults to `0`): minimum number of steps of pre-training, for worlds whose
            valid words are learned before anything else.
        students (`tuple[str, ...]`, *optional*): students to run in this world, by default all.
        rules (`tuple[str, ...]`, *optional*): rules to run in this world, by default all.
    """

    num_valid: int = 4
    same_everywhere: bool = False
    noise: float = 0.0
    rows: int = 2000
    epochs: float = 3
    start_mass: float = 0.35
    start_range: tuple[float, float] = (0.25, 0.45)
    start_max_steps: int = 900
    start_min_steps: int = 0
    students: tuple[str, ...] | None = None
    rules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("start_max_steps", 1), ("start_min_steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give an integer of at least {least}.")
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"`epochs` is {self.epochs}; give a number above 0.")
        if self.start_min_steps > self.start_max_steps:
            raise ValueError(
                f"`start_min_steps` is {self.start_min_steps}, above `start_max_steps`, {self.start_max_steps}; "
                "give at most as many."
            )
        low, high = self.start_range
        if not 0 <= low <= high <= 1:
            raise ValueError(f"`start_range` is {low} to {high}; give two probabilities, the lower one first.")
        if not low <= self.start_mass <= high:
            raise ValueError(f"`start_mass` is {self.start_mass}; give a value in `start_range`, {low} to {high}.")
        self.world(0)

    def world(self, seed: int) -> World:
        """Return the world of a seed."""
        return World(seed, self.num_valid, self.same_everywhere, self.noise)


@dataclass(frozen=True)
class Control:
    """The positive control: two rules whose known differences must be seen before any rules are ranked.

    Args:
        world (`str`), student (`str`): where it is looked for.
        covering (`str`): rule that must have the higher coverage, forward KL.
        concentrating (`str`): rule that must have the higher pass@1, reverse KL.
        margin (`float`, *optional*, defaults to `0.1`): least mean difference of both measures.
    """

    world: str
    student: str
    covering: str
    concentrating: str
    margin: float = 0.1

    def __post_init__(self) -> None:
        if self.covering == self.concentrating:
            raise ValueError(f"`covering` and `concentrating` are both {self.covering!r}; give two rules.")
        if not 0 <= self.margin <= 1:
            raise ValueError(f"`margin` is {self.margin}; give a number from 0 to 1.")


@dataclass(frozen=True)
class Prediction(Bounds):
    """A prediction about the mean difference of two rules over seeds.

    Args:
        world (`str`), student (`str`): where it is tested.
        measure (`str`): one of the measures, or `"line"`: how far the coverage of `first` lies above the line
            of the fixed mixes in `BenchConfig.line`.
        first (`str`), second (`str`, *optional*): rules; the difference is that of the first minus the second.
        at_least (`float`, *optional*), at_most (`float`, *optional*): predicted bounds of the mean difference.
    """

    world: str
    student: str
    measure: str
    first: str
    second: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first == self.second:
            raise ValueError(f"`first` and `second` are both {self.first!r}; give two rules.")


@dataclass
class BenchConfig(WorldExperimentConfig):
    """
    Configuration of `trl-akd bench`, with the fields of [`WorldExperimentConfig`].

    Args:
        predictions (`dict`, *optional*):
            Predictions by name. They, `control` and `line` are recorded before the first run, and others are then
            refused for this `name`.
        worlds (`dict`, *optional*):
            Worlds by name, such as `{separating: {rows: 2000, epochs: 3}}`; their keys are described in
            docs/methods/bench.md.
        students (`list[str]`, *optional*, defaults to `["32k"]`):
            Students: 32k, 68k or 255k.
        rules (`dict`, *optional*):
            Rules by name, each with the fields of `trl-akd akd` that make it, such as `{kl: {divergence:
            forward_kl}}`, or `{method: sft}` for supervised training on the rows. A rule may have its own
            `learning_rate` and `num_train_epochs`, and train a LoRA adapter (`use_peft`, `lora_r`, `lora_alpha`,
            `lora_dropout`, `lora_target_modules`). The key `draws` repeats a run with that many seeds of its beta.
        num_samples (`int`, *optional*, defaults to `20`):
            Number of samples per task.
        control (`dict`, *optional*):
            Positive control: `world`, `student`, and the rules `covering` and `concentrating`.
        line (`list[str]`, *optional*):
            Rules, at least two fixed mixes, whose line of coverage against pass@1 other rules are compared with.
    """

    mappings = ("worlds", "rules", "control", "predictions")
    required = ("worlds", "rules", "students", "seeds", "control", "predictions")

    worlds: dict[str, Any] | str | None = None
    students: list[str] = field(default_factory=lambda: ["32k"])
    rules: dict[str, Any] | str | None = None
    num_samples: int = 20
    control: dict[str, Any] | str | None = None
    line: list[str] | None = None

    def check_runs(self) -> None:
        """Check worlds, students, rules, control, line and predictions.

        Raises:
            ValueError: If a value is refused.
        """
        super().check_runs()
        check_counts(self, ("num_samples",))
        check_distinct("students", self.students)
        check_names("students", self.students, STUDENTS)
        self.world_settings()
        self._check_rules()
        self._check_comparisons()

    def world_settings(self) -> dict[str, WorldSettings]:
        """Return the worlds by name."""
        found: dict[str, WorldSettings] = self.build_each("worlds", WorldSettings)
        for name, settings in found.items():
            for key, chosen, known in (
                ("students", settings.students, self.students),
                ("rules", settings.rules, self.mapping("rules")),
            ):
                check_names(f"worlds: {name}: {key}", chosen or (), known)
                if chosen is not None and len(set(chosen)) != max(1, len(chosen)):
                    raise ValueError(f"`worlds: {name}: {key}` is {list(chosen)}; name at least one, and each once.")
        return found

    def rule_fields(self) -> dict[str, dict[str, Any]]:
        """Return the fields of [`AKDConfig`], or the method, of each rule."""
        rules = self.mapping("rules")
        for name, entry in rules.items():
            if not isinstance(entry or {}, Mapping):
                raise ValueError(
                    f"`rules` has {name!r}, which is {entry!r}; give a mapping, such as {{divergence: forward_kl}}."
                )
        return {
            name: {key: value for key, value in (entry or {}).items() if key != BETA_DRAWS}
            for name, entry in rules.items()
        }

    def draws(self, rule: str) -> int:
        """Return the number of seeds of beta with which a rule is run."""
        return int((self.mapping("rules")[rule] or {}).get(BETA_DRAWS, 1))

    def control_settings(self) -> Control:
        """Return the positive control."""
        control: Control = build(Control, self.mapping("control"), "`control`:")
        return control

    def prediction_settings(self) -> dict[str, Prediction]:
        """Return the predictions by name."""
        return self.build_each("predictions", Prediction)

    def _check_rules(self) -> None:
        for name, values in self.rule_fields().items():
            check_rule(name, values, (self.mapping("rules")[name] or {}).get(BETA_DRAWS, 1))

    def _check_comparisons(self) -> None:
        worlds, rules = self.mapping("worlds"), self.mapping("rules")
        control = self.control_settings()
        check_names("control: world", [control.world], worlds)
        check_names("control: student", [control.student], self.students)
        check_names("control", [control.covering, control.concentrating], rules)
        self._check_place("control", control, (control.covering, control.concentrating))
        check_names("line", self.line or (), rules)
        if self.line is not None and not 2 <= len(set(self.line)) == len(self.line):
            raise ValueError(f"`line` is {self.line}; give at least two rules, each once.")
        for name, prediction in self.prediction_settings().items():
            where = f"predictions: {name}"
            check_names(where, [prediction.world], worlds)
            check_names(where, [prediction.student], self.students)
            is_line = prediction.measure == "line"
            check_names(where, [prediction.first, *([prediction.second] if prediction.second else [])], rules)
            check_names(where, [prediction.measure], (*MEASURES, "line"))
            if is_line == (prediction.second is not None) or (is_line and self.line is None):
                raise ValueError(
                    f"`{where}` has measure {prediction.measure!r} and second {prediction.second!r}; give `second` "
                    "for a measure, and leave it out for 'line', which needs the field `line`."
                )
            if is_line and prediction.first in (self.line or ()):
                raise ValueError(f"`{where}` has first {prediction.first!r}, which is in `line`; give another rule.")
            if prediction.measure == "pass@10" and self.num_samples < 10:
                raise ValueError(
                    f"`{where}` has measure 'pass@10', which needs at least 10 `num_samples`, not {self.num_samples}."
                )
            compared = (prediction.second,) if prediction.second else tuple(self.line or ())
            self._check_place(where, prediction, (prediction.first, *compared))

    def _check_place(self, where: str, place: Control | Prediction, rules: tuple[str, ...]) -> None:
        """Refuse a comparison of rules that do not run in its world with its student."""
        settings = self.world_settings()[place.world]
        for kind, names, running in (
            ("student", (place.student,), settings.students),
            ("rule", rules, settings.rules),
        ):
            for name in names:
                if running is not None and name not in running:
                    raise ValueError(
                        f"`{where}` needs the {kind} {name!r}, which does not run in the world {place.world!r}; "
                        f"add it to the world's `{kind}s`, or choose another."
                    )
