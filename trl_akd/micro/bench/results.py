"""Results of the benchmark of divergences: means, differences, and the line of fixed mixes."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Self

from ...bench.pages import ExperimentResults, difference_over_seeds, mean_over_seeds
from ...metrics.statistics import PairedMean
from .config import BETA_DRAWS, FORMAT, Control, Prediction

__all__ = ["TESTED", "Place", "Results"]

Place = tuple[str, str]
"""Names of a world and of a student."""

TESTED = ("pass@1", "coverage")

_MIN_SEEDS = 8


class Results(ExperimentResults[Prediction]):
    """Finished runs of a benchmark, by place, rule and seed.

    A seed's value of a measure is the mean over its draws of β.

    Args:
        content (`Mapping`):
            Content of `results.json`.

    Raises:
        ValueError: If it has another format, or a measure that is not finite.
    """

    format = FORMAT
    place = ("world", "student", "rule", "seed", "draw")
    recorded = ("predictions", "control", "line")

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.line: Sequence[str] = content["line"] or ()
        self.control = Control(**content["control"])
        self.predictions = {name: Prediction(**entry) for name, entry in content["predictions"].items()}
        self._runs: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
        for run in self.runs:
            self._runs.setdefault((run["world"], run["student"], run["rule"]), []).append(run)

    @property
    def places(self) -> list[Place]:
        """Pairs of a world and a student, in the order of the runs."""
        return list(dict.fromkeys((run["world"], run["student"]) for run in self.runs))

    def rules(self, place: Place) -> list[str]:
        """Return the rules with runs at a place, in the order of the recipe."""
        return [rule for rule in self.content["rules"] if self.at(place, rule)]

    def at(self, place: Place, rule: str) -> list[Mapping[str, Any]]:
        """Return the runs of a rule at a place."""
        return self._runs.get((*place, rule), [])

    def by_seed(self, place: Place, rule: str, measure: str) -> dict[int, float]:
        """Return the value of a measure for each seed with runs of the rule."""
        values: dict[int, list[float]] = {}
        for run in self.at(place, rule):
            if measure in run["measures"]:
                values.setdefault(run["seed"], []).append(run["measures"][measure])
        return {seed: fmean(several) for seed, several in sorted(values.items())}

    def why_unranked(self, place: Place) -> str | None:
        """Return the reason for which the rules at a place are not ranked, `None` if they are."""
        missing = self.num_missing(lambda run: (run["world"], run["student"]) == place)
        seeds = len({run["seed"] for rule in self.rules(place) for run in self.at(place, rule)})
        if missing:
            return f"{missing} of its runs are missing; run the benchmark again."
        if seeds < _MIN_SEEDS:
            return f"{seeds} seeds have started, and a ranking needs at least {_MIN_SEEDS}; add seeds."
        return None

    def mean(self, place: Place, rule: str, measure: str) -> float | None:
        """Return the mean of a measure over seeds, `None` if there are none."""
        values = self.by_seed(place, rule, measure)
        return fmean(values.values()) if values else None

    def compare(self, place: Place, measure: str, first: str, second: str) -> PairedMean | None:
        """Return the paired difference of two rules over the seeds that both have, `None` for fewer than two."""
        return difference_over_seeds(self.by_seed(place, first, measure), self.by_seed(place, second, measure))

    def above_line(self, place: Place, rule: str, suffix: str = "") -> PairedMean | None:
        """Return how far the coverage of a rule lies above the line of fixed mixes, at its pass@1.

        Both are measures with a suffix, for one temperature.

        The line joins the mixes that no other mix equals or exceeds in both means. Estimated by the jackknife over
        seeds, so that the interval includes the uncertainty of the two mixes next to the rule. `None` if their
        difference in pass@1 is not clearly different from 0, or for fewer than three seeds.
        """
        accuracy, coverage = (f"{measure}{suffix}" for measure in TESTED)
        segment = self._segment(place, rule, suffix)
        if segment is None or rule in self.line:
            return None
        low, high = segment
        run = self.compare(place, accuracy, high, low)
        if run is None or run.low <= 0:
            return None
        values = {
            (name, measure): self.by_seed(place, name, measure)
            for name in (rule, low, high)
            for measure in (accuracy, coverage)
        }
        seeds = [seed for seed in values[rule, accuracy] if all(seed in found for found in values.values())]

        def height(chosen: Sequence[int]) -> float:
            mean = {key: fmean(found[seed] for seed in chosen) for key, found in values.items()}
            steps = {measure: mean[high, measure] - mean[low, measure] for measure in (accuracy, coverage)}
            along = (mean[rule, accuracy] - mean[low, accuracy]) / steps[accuracy]
            return mean[rule, coverage] - mean[low, coverage] - along * steps[coverage]

        count = len(seeds)
        if count < 3:
            return None
        whole = height(seeds)
        return mean_over_seeds(
            {seed: count * whole - (count - 1) * height([other for other in seeds if other != seed]) for seed in seeds}
        )

    def points(self, place: Place, rules: Sequence[str], suffix: str = "") -> dict[str, tuple[float, float]]:
        """Return the mean pass@1 and coverage of rules, of those for which they were measured."""
        found = {}
        for name in rules:
            accuracy, coverage = (self.mean(place, name, f"{measure}{suffix}") for measure in TESTED)
            if accuracy is not None and coverage is not None:
                found[name] = (accuracy, coverage)
        return found

    def line_points(self, place: Place, suffix: str = "") -> dict[str, tuple[float, float]]:
        """Return the mean pass@1 and coverage of the mixes that make the line at a place, by pass@1."""
        found = self.points(place, self.line, suffix)
        line: dict[str, tuple[float, float]] = {}
        for name, point in sorted(
            found.items(), key=lambda item: item[1], reverse=True
        ):  # from the highest pass@1 down, each with more coverage than those before
            if all(point[1] > other[1] for other in line.values()):
                line = {name: point, **line}
        return line

    def is_beyond_line(self, place: Place, rule: str, suffix: str = "") -> bool:
        """Return whether the mean pass@1 of a rule lies outside those of the line, where the line is a guess."""
        ends = [accuracy for accuracy, _ in self.line_points(place, suffix).values()]
        mean = self.mean(place, rule, f"pass@1{suffix}")
        return bool(ends) and mean is not None and not ends[0] <= mean <= ends[-1]

    def _segment(self, place: Place, rule: str, suffix: str) -> tuple[str, str] | None:
        """Return the two neighbors on the line between which a rule's mean pass@1 lies, or the nearest two."""
        points, mean = self.line_points(place, suffix), self.mean(place, rule, f"pass@1{suffix}")
        names = list(points)
        if mean is None or len(names) < 2:
            return None
        last = sum(points[name][0] <= mean for name in names[1:-1])
        return names[last], names[last + 1]

    def control_differences(self) -> tuple[PairedMean | None, PairedMean | None]:
        """Return the two differences of the positive control: in pass@1, and in coverage."""
        place = (self.control.world, self.control.student)
        covering, concentrating = self.control.covering, self.control.concentrating
        return (
            self.compare(place, "pass@1", concentrating, covering),
            self.compare(place, "coverage", covering, concentrating),
        )

    @property
    def control_holds(self) -> bool:
        """Whether all of its runs are finished and both differences reach the margin, with intervals above 0."""
        control = (self.control.world, self.control.student)
        rules = (self.control.covering, self.control.concentrating)
        missing = self.num_missing(lambda run: (run["world"], run["student"]) == control and run["rule"] in rules)
        return missing == 0 and all(
            found is not None and found.difference >= self.control.margin and found.low > 0
            for found in self.control_differences()
        )

    def is_needed(self, run: Mapping[str, Any], prediction: Prediction) -> bool:
        """Return whether a run is one of the rules of a prediction, in its world with its student."""
        place = (run["world"], run["student"])
        return place == (prediction.world, prediction.student) and run["rule"] in self._compared(prediction)

    def is_withheld(self, prediction: Prediction) -> bool:
        """Return whether the control does not hold, unless the prediction is about its own difference."""
        control = self.control
        is_control = (
            (prediction.world, prediction.student) == (control.world, control.student)
            and self._compared(prediction) == {control.covering, control.concentrating}
            and prediction.measure in TESTED
        )
        return not is_control and not self.control_holds

    def _compared(self, prediction: Prediction) -> set[str]:
        """Return the rules that a prediction compares."""
        return {prediction.first, *((prediction.second,) if prediction.second else self.line)}

    def found(self, prediction: Prediction) -> PairedMean | None:
        """Return the difference that a prediction is about."""
        place = (prediction.world, prediction.student)
        if prediction.second is None:
            return self.above_line(place, prediction.first)
        return self.compare(place, prediction.measure, prediction.first, prediction.second)

    def by_draws(self) -> Self:
        """Return the results in which each sequence of values that β drew is a rule of its own."""
        runs = [
            {**run, "rule": f"{run['rule']}: {', '.join(map(str, run['beta_draws']))}"}
            for run in self.content["runs"]
            if run.get("beta_draws") and self.num_draws(run["rule"]) > 1
        ]
        return type(self)(
            {
                **self.content,
                "rules": {**self.content["rules"], **{name: {} for name in sorted({run["rule"] for run in runs})}},
                "runs": [*self.content["runs"], *runs],
            }
        )

    def num_draws(self, rule: str) -> int:
        """Return the number of seeds of β with which a rule was run."""
        return int((self.content["rules"][rule] or {}).get(BETA_DRAWS, 1))
