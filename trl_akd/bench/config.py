"""Configuration of the benchmark with real models: pairs, rules, seeds, evaluations and predictions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .fields import Bounds, ExperimentConfig, check_names

__all__ = ["COSTS", "ModelPrediction", "ModelsConfig"]

COSTS = ("seconds", "peak_memory_mib")
_BEFORE = ("student", "teacher")
_SET_BY_BENCHMARK = ("output_dir", "seed", "resume_from_checkpoint", "dry_run", "allow_code_execution")
_SET_FOR_EVALUATION = ("output_dir", "seed", "model_name_or_path", "samples", "compare", "allow_code_execution")


@dataclass(frozen=True)
class ModelPrediction(Bounds):
    """A prediction about the mean difference of two rules over seeds.

    Args:
        pair (`str`): pair of models.
        first (`str`), second (`str`): rules, or `student` and `teacher`, evaluated as they are; the difference is that
            of the first minus the second.
        benchmark (`str`, *optional*): benchmark; none for the cost of training.
        measure (`str`, *optional*, defaults to `"pass@1"`): score on the benchmark, or `seconds` or `peak_memory_mib`.
    """

    pair: str
    first: str
    second: str
    benchmark: str | None = None
    measure: str = "pass@1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first == self.second:
            raise ValueError(f"`first` and `second` are both {self.first!r}; give two rules.")
        if (self.measure in COSTS) != (self.benchmark is None):
            raise ValueError(
                f"`measure` is {self.measure!r} and `benchmark` {self.benchmark!r}; give a benchmark for a score, and "
                f"none for {' and '.join(COSTS)}."
            )
        if set(_BEFORE) & {self.first, self.second} and self.benchmark is None:
            raise ValueError(f"`measure` is {self.measure!r}, which models that are not trained do not have.")


@dataclass
class ModelsConfig(ExperimentConfig):
    """
    Configuration of `trl-akd bench models`, with the fields of [`ExperimentConfig`].

    Args:
        method (`str`, *optional*, defaults to `"akd"`):
            Training command: akd, codeplan, iterkd, or that of another package.
        pairs (`dict`, *optional*):
            Pairs of models by name, each with `recipe`, a recipe of the method, and fields that replace those of the
            recipe, such as `{starcoder: {recipe: recipes/starcoder-7b-to-1b/akd/config_full.yaml}}`.
        common (`dict`, *optional*):
            Fields of the method for all runs. `accelerate_config` selects the number of processes.
        rules (`dict`, *optional*):
            Rules by name, each with the fields of the method that make it, such as `{kd: {divergence: forward_kl}}`.
            Null removes a field of the recipe. `method` and `evaluate` replace those of the benchmark.
        benchmarks (`dict`, *optional*):
            Benchmarks by name, each with fields of `trl-akd evaluate`, such as `{humaneval: {}, mbpp: {}}`. Their
            `benchmark` defaults to the name.
        evaluate (`dict`, *optional*):
            Fields of `trl-akd evaluate` for all benchmarks.
        before (`list[str]`, *optional*):
            Models to evaluate without training: student, teacher.
        reference (`str`, *optional*):
            Rule that the others are compared with. Defaults to the first.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to check all runs, write their recipes and print their commands, without running them.
        keep_students (`bool`, *optional*, defaults to `True`):
            Whether to keep the trained students.
        allow_code_execution (`bool`, *optional*, defaults to `False`):
            Whether to run the programs, in a sandbox. `HF_ALLOW_CODE_EVAL=1` in the environment also allows it.
    """

    mappings = ("pairs", "common", "rules", "benchmarks", "evaluate", "predictions")
    required = ("pairs", "rules", "benchmarks", "seeds", "predictions")

    output_dir: str = "outputs/bench/models"
    method: str = "akd"
    pairs: dict[str, Any] | str | None = None
    common: dict[str, Any] | str | None = None
    rules: dict[str, Any] | str | None = None
    benchmarks: dict[str, Any] | str | None = None
    evaluate: dict[str, Any] | str | None = None
    before: list[str] = field(default_factory=list)
    reference: str | None = None
    dry_run: bool = False
    keep_students: bool = True
    allow_code_execution: bool = False

    def check_runs(self) -> None:
        """Check pairs, rules, benchmarks and predictions; `plan` checks the fields of the commands.

        Raises:
            ValueError: If a value is refused.
        """
        check_names("before", self.before, _BEFORE)
        for name in ("pairs", "rules", "benchmarks"):
            for key, entry in self.mapping(name).items():
                if not isinstance({} if entry is None else entry, Mapping):
                    raise ValueError(f"`{name}` has {key!r}, which is {entry!r}; give a mapping of fields to values.")
        self._check_reserved()
        for name in _BEFORE:
            if name in self.mapping("rules"):
                raise ValueError(f"`rules` has {name!r}, which is the name of a model without training; rename it.")
        if self.reference is not None:
            check_names("reference", [self.reference], self.mapping("rules"))
        compared = [*self.mapping("rules"), *self.before]
        for name, prediction in self.named_predictions().items():
            where = f"predictions: {name}"
            check_names(f"{where}: pair", [prediction.pair], self.mapping("pairs"))
            check_names(where, [prediction.first, prediction.second], compared)
            if prediction.benchmark is not None:
                check_names(f"{where}: benchmark", [prediction.benchmark], self.mapping("benchmarks"))

    def named_predictions(self) -> dict[str, ModelPrediction]:
        """Return the predictions by name."""
        return self.build_each("predictions", ModelPrediction)

    def entry(self, mapping: str, name: str) -> dict[str, Any]:
        """Return the fields of a pair, a rule or a benchmark."""
        return dict(self.mapping(mapping)[name] or {})

    def _check_reserved(self) -> None:
        """Refuse fields that the benchmark sets for each run."""
        trainings = {"common": self.mapping("common")}
        evaluations = {"evaluate": self.mapping("evaluate")}
        for name in self.mapping("pairs"):
            trainings[f"pairs: {name}"] = self.entry("pairs", name)
        for name in self.mapping("rules"):
            rule = self.entry("rules", name)
            trainings[f"rules: {name}"] = rule
            if not isinstance(found := rule.get("evaluate") or {}, Mapping):
                raise ValueError(f"`rules: {name}: evaluate` is {found!r}; give a mapping of fields to values.")
            evaluations[f"rules: {name}: evaluate"] = dict(found)
        for name in self.mapping("benchmarks"):
            evaluations[f"benchmarks: {name}"] = self.entry("benchmarks", name)
        for groups, reserved in ((trainings, _SET_BY_BENCHMARK), (evaluations, _SET_FOR_EVALUATION)):
            for where, values in groups.items():
                for key in reserved:
                    if key in values:
                        raise ValueError(f"`{where}` sets `{key}`, which the benchmark sets itself; leave it out.")
        if "benchmark" in self.mapping("evaluate"):
            raise ValueError("`evaluate` sets `benchmark`; give the benchmarks in `benchmarks`.")
