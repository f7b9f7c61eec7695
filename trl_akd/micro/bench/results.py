"""Results of a benchmark: its finished runs, their differences, and verdicts on predictions."""

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from typing import Any, Self

from ...metrics.statistics import PairedMean
from .config import BETA_DRAWS, FORMAT, Control, Prediction
from .tables import mean_over_seeds

__all__ = ["LOW", "TESTED", "Place", "Results"]

Place = tuple[str, str]
"""Names of a world and of a student."""

TESTED = ("pass@1", "coverage")
LOW = "_T0.7"
"""Suffix of these measures at the lower temperature."""

_PLACE = ("world", "student", "rule", "seed", "draw")
_MIN_SEEDS = 8


class Results:
    """Finished runs of a benchmark, by place, rule and seed.

    A seed's value of a measure is the mean over its draws of β.

    Args:
        content (`Mapping`):
            Content of `results.json`.

    Raises:
        ValueError: If it has another format, or a measure that is not finite.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, and this version reads {FORMAT}; run it again")
        self.content = content
        self.line: Sequence[str] = content["line"] or ()
        self.planned: list[Mapping[str, Any]] = content["planned"]
        self.control = Control(**content["control"])
        self.predictions = {name: Prediction(**entry) for name, entry in content["predictions"].items()}
        self.runs: list[Mapping[str, Any]] = [run for run in content["runs"] if run["started"]]
        self._runs: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
        for run in self.runs:
            self._runs.setdefault((run["world"], run["student"], run["rule"]), []).append(run)
            for name, value in run["measures"].items():
                if name != "errors" and not math.isfinite(value):
                    place = ", ".join(f"{key} {run[key]}" for key in _PLACE)
                    raise ValueError(f"{name} is {value} in the run of {place}")

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

    def num_missing(self, place: Place, rules: Collection[str] | None = None) -> int:
        """Return the number of planned runs at a place that are not finished, of some rules or of all."""
        finished = {tuple(run[key] for key in _PLACE) for run in self.content["runs"]}
        return sum(
            (run["world"], run["student"]) == place
            and (rules is None or run["rule"] in rules)
            and tuple(run[key] for key in _PLACE) not in finished
            for run in self.planned
        )

    def why_unranked(self, place: Place) -> str | None:
        """Return the reason for which the rules at a place are not ranked, `None` if they are."""
        missing, seeds = (
            self.num_missing(place),
            len({run["seed"] for rule in self.rules(place) for run in self.at(place, rule)}),
        )
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
        one, other = (self.by_seed(place, rule, measure) for rule in (first, second))
        return mean_over_seeds({seed: one[seed] - other[seed] for seed in one if seed in other})

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
        """Return the two neighbours on the line between which a rule's mean pass@1 lies, or the nearest two."""
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
        place = (self.control.world, self.control.student)
        rules = (self.control.covering, self.control.concentrating)
        return self.num_missing(place, rules) == 0 and all(
            found is not None and found.difference >= self.control.margin and found.low > 0
            for found in self.control_differences()
        )

    def verdict(self, prediction: Prediction) -> str:
        """Return the verdict on a prediction: `"right"` or `"wrong"` if its interval decides, and else `"open"`.

        Verdicts need all runs of the rules, and, unless they are those of the control, a control that holds.
        """
        found, control = self.found(prediction), self.control
        rules = (prediction.first, *((prediction.second,) if prediction.second else self.line))
        place = (prediction.world, prediction.student)
        if self.num_missing(place, rules):
            return "runs are missing"
        is_control = (
            place == (control.world, control.student)
            and set(rules) == {control.covering, control.concentrating}
            and prediction.measure in TESTED
        )
        if not is_control and not self.control_holds:
            return "withheld"
        if found is None:
            return "no interval"
        low = -math.inf if prediction.at_least is None else prediction.at_least
        high = math.inf if prediction.at_most is None else prediction.at_most
        if low <= found.low and found.high <= high:
            return "right"
        return "wrong" if found.high < low or found.low > high else "open"

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
