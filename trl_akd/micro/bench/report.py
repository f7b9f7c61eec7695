"""The page of a benchmark's results, as a function of `results.json` alone."""

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from ...ledger import replace_text
from ...metrics.statistics import PairedMean, holm
from .charts import Series, bar_chart, xy_chart
from .config import FORMAT, Control, Prediction
from .tables import format_interval as _interval
from .tables import format_number as _number
from .tables import format_p_value as _p_value
from .tables import mean_over_seeds as _paired
from .tables import table as _table

__all__ = ["Results", "write_page"]

_TESTED = ("pass@1", "coverage")
_COLUMNS = {
    "pass@1": "pass@1",
    "pass@10": "pass@10",
    "coverage": "coverage",
    "greedy": "greedy",
    "valid_mass": "valid mass",
    "coverage_of_valid": "coverage of valid words",
    "forward_kl": "forward KL",
    "reverse_kl": "reverse KL",
}
_PLACE = ("world", "student", "rule", "seed", "draw")
_MAX_ERRORS = 6
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
        for run in self.runs:
            for name, value in run["measures"].items():
                if name != "errors" and not math.isfinite(value):
                    place = ", ".join(f"{key} {run[key]}" for key in _PLACE)
                    raise ValueError(f"{name} is {value} in the run of {place}")

    @property
    def places(self) -> list[tuple[str, str]]:
        """Pairs of a world and a student, in the order of the runs."""
        return list(dict.fromkeys((run["world"], run["student"]) for run in self.runs))

    def rules(self, place: tuple[str, str]) -> list[str]:
        """Return the rules with runs at a place, in the order of the recipe."""
        found = {run["rule"] for run in self.at(place)}
        return [rule for rule in self.content["rules"] if rule in found]

    def at(self, place: tuple[str, str], rule: str | None = None) -> list[Mapping[str, Any]]:
        """Return the runs at a place, of one rule or of all."""
        return [run for run in self.runs if (run["world"], run["student"]) == place and rule in (None, run["rule"])]

    def by_seed(self, place: tuple[str, str], rule: str, measure: str) -> dict[int, float]:
        """Return the value of a measure for each seed with runs of the rule."""
        values: dict[int, list[float]] = {}
        for run in self.at(place, rule):
            if measure in run["measures"]:
                values.setdefault(run["seed"], []).append(run["measures"][measure])
        return {seed: fmean(several) for seed, several in sorted(values.items())}

    def num_missing(self, place: tuple[str, str], rules: Collection[str] | None = None) -> int:
        """Return the number of planned runs at a place that are not finished, of some rules or of all."""
        finished = {tuple(run[key] for key in _PLACE) for run in self.content["runs"]}
        return sum(
            (run["world"], run["student"]) == place
            and (rules is None or run["rule"] in rules)
            and tuple(run[key] for key in _PLACE) not in finished
            for run in self.planned
        )

    def why_unranked(self, place: tuple[str, str]) -> str | None:
        """Return the reason for which the rules at a place are not ranked, `None` if they are."""
        missing, seeds = self.num_missing(place), len({run["seed"] for run in self.at(place)})
        if missing:
            return f"{missing} of its runs are missing; run the benchmark again."
        if seeds < _MIN_SEEDS:
            return f"{seeds} seeds have started, and a ranking needs at least {_MIN_SEEDS}; add seeds."
        return None

    def mean(self, place: tuple[str, str], rule: str, measure: str) -> float | None:
        """Return the mean of a measure over seeds, `None` if there are none."""
        values = self.by_seed(place, rule, measure)
        return fmean(values.values()) if values else None

    def compare(self, place: tuple[str, str], measure: str, first: str, second: str) -> PairedMean | None:
        """Return the paired difference of two rules over the seeds that both have, `None` for fewer than two."""
        one, other = (self.by_seed(place, rule, measure) for rule in (first, second))
        return _paired({seed: one[seed] - other[seed] for seed in one if seed in other})

    def above_line(self, place: tuple[str, str], rule: str) -> PairedMean | None:
        """Return how far the coverage of a rule lies above the line of fixed mixes, at its pass@1.

        The line joins the mixes that no other mix equals or exceeds in both means. Estimated by the jackknife over
        seeds, so that the interval includes the uncertainty of the two mixes next to the rule. `None` if their
        difference in pass@1 is not clearly different from 0, or for fewer than three seeds.
        """
        segment = self._segment(place, rule)
        if segment is None or rule in self.line:
            return None
        low, high = segment
        run = self.compare(place, "pass@1", high, low)
        if run is None or run.low <= 0:
            return None
        values = {
            (name, measure): self.by_seed(place, name, measure) for name in (rule, low, high) for measure in _TESTED
        }
        seeds = [seed for seed in values[rule, "pass@1"] if all(seed in found for found in values.values())]

        def height(chosen: Sequence[int]) -> float:
            mean = {key: fmean(found[seed] for seed in chosen) for key, found in values.items()}
            steps = {measure: mean[high, measure] - mean[low, measure] for measure in _TESTED}
            along = (mean[rule, "pass@1"] - mean[low, "pass@1"]) / steps["pass@1"]
            return mean[rule, "coverage"] - mean[low, "coverage"] - along * steps["coverage"]

        count = len(seeds)
        if count < 3:
            return None
        whole = height(seeds)
        return _paired(
            {seed: count * whole - (count - 1) * height([other for other in seeds if other != seed]) for seed in seeds}
        )

    def line_points(self, place: tuple[str, str]) -> dict[str, tuple[float, float]]:
        """Return the mean pass@1 and coverage of the mixes that make the line at a place, by pass@1."""
        found = {}
        for name in self.line:
            accuracy, coverage = (self.mean(place, name, measure) for measure in _TESTED)
            if accuracy is not None and coverage is not None:
                found[name] = (accuracy, coverage)
        points = sorted(found.items(), key=lambda item: item[1], reverse=True)
        line: dict[str, tuple[float, float]] = {}
        for name, point in points:  # from the highest pass@1 down, each with more coverage than those before
            if all(point[1] > other[1] for other in line.values()):
                line = {name: point, **line}
        return line

    def is_beyond_line(self, place: tuple[str, str], rule: str) -> bool:
        """Return whether the mean pass@1 of a rule lies outside those of the line, where the line is a guess."""
        ends = [accuracy for accuracy, _ in self.line_points(place).values()]
        mean = self.mean(place, rule, "pass@1")
        return bool(ends) and mean is not None and not ends[0] <= mean <= ends[-1]

    def _segment(self, place: tuple[str, str], rule: str) -> tuple[str, str] | None:
        """Return the two neighbours on the line between which a rule's mean pass@1 lies, or the nearest two."""
        points, mean = self.line_points(place), self.mean(place, rule, "pass@1")
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
        """Return whether a prediction is right: `"yes"` or `"no"` if its interval decides, and else `"open"`.

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
            and prediction.measure in _TESTED
        )
        if not is_control and not self.control_holds:
            return "withheld"
        if found is None:
            return "no interval"
        low = -math.inf if prediction.at_least is None else prediction.at_least
        high = math.inf if prediction.at_most is None else prediction.at_most
        if low <= found.low and found.high <= high:
            return "yes"
        return "no" if found.high < low or found.low > high else "open"

    def found(self, prediction: Prediction) -> PairedMean | None:
        """Return the difference that a prediction is about."""
        place = (prediction.world, prediction.student)
        if prediction.second is None:
            return self.above_line(place, prediction.first)
        return self.compare(place, prediction.measure, prediction.first, prediction.second)


def write_page(results: str | Path, page: str | Path | None = None) -> Path:
    """Write the page of results with its figures, and return its path.

    Args:
        results (`str` or `Path`):
            A `results.json`.
        page (`str` or `Path`, *optional*):
            The page. Figures are written beside it, and their names start with that of the page.

    Raises:
        FileNotFoundError: If there are no such results.
        ValueError: If the file is something else.
    """
    path = Path(results).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"`report` is {str(results)!r}, but there is no such file; give a results.json.")
    target = path.with_name("results.md") if page is None else Path(page).expanduser()
    if target.suffix != ".md":
        raise ValueError(f"`page` is {str(page)!r}; give a file with the suffix .md.")
    try:
        found = Results(json.loads(path.read_text(encoding="utf-8")))
        figures = _figures(found) if found.control_holds else {}
        text = _page(found, {name: f"{target.stem}-{name}.svg" for name in figures})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`report` is {str(results)!r}, which is not the results of `trl-akd bench` ({error!r}); give its "
            "results.json."
        ) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        replace_text(target.with_name(f"{target.stem}-{name}.svg"), figure)
    replace_text(target, text)
    return target


def _page(results: Results, figures: Mapping[str, str]) -> str:
    sections = [
        "# Benchmark of divergences: results",
        _summary(results),
        _starts(results),
        _control(results),
        _predictions(results),
    ]
    if results.control_holds:
        sections += [_ranking(results, place, figures) for place in results.places]
    sections.append(_costs(results))
    return "\n\n".join(sections) + "\n"


def _summary(results: Results) -> str:
    content = results.content
    commits = sorted({commit for run in content["runs"] for commit in (run["commit"], run["start"]["commit"])})
    doubts = ["are from several commits"] if len(commits) > 1 else []
    if any(commit.endswith("+") for commit in commits):
        doubts.append("include code that was not committed (+)")
    warning = f"**The runs {' and '.join(doubts)}, so they may not be comparable.** " if doubts else ""
    finished = len(content["runs"])
    asked = "; ".join(
        f"{name} {', '.join(map(str, content[name]))}" for name in ("worlds", "students", "rules", "seeds")
    )
    return (
        f"{finished} of {len(results.planned)} runs, at commit {', '.join(commits)}: {asked}.\n\n"
        f"{warning}Measures are of {content['num_samples']} samples at temperature 1 for each of "
        f"{content['num_tasks']} held-out tasks. Differences are paired by seed, with 95 % intervals by "
        "Student's t. The page on the "
        "benchmark of divergences describes worlds and measures. `trl-akd bench` made this page from the results "
        "alone."
    )


def _starts(results: Results) -> str:
    """Return the table of pre-trained students, with every seed that could not start."""
    rows = []
    places: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for run in results.content["runs"]:
        places.setdefault((run["world"], run["student"]), {})[run["seed"]] = run
    for (world, student), by_seed in places.items():
        started = [run["start"] for run in by_seed.values() if run["started"]]
        failed = [f"seed {seed} ({run['start']['mass']:.2f})" for seed, run in by_seed.items() if not run["started"]]
        steps, masses = ([start[key] for start in started] for key in ("steps", "mass"))
        rows.append(
            [
                world,
                student,
                str(len(started)),
                f"{min(steps)} to {max(steps)}" if steps else "",
                f"{min(masses):.2f} to {max(masses):.2f}" if masses else "",
                ", ".join(failed) or "none",
            ]
        )
    header = ["world", "student", "seeds", "steps of pre-training", "mass on valid words", "not started (mass)"]
    return "## Starts\n\n" + _table(header, rows)


def _control(results: Results) -> str:
    control = results.control
    found = results.control_differences()
    rows = [
        [f"{one} minus {other}, {measure}", _interval(difference), f"at least {control.margin:.2f}, above 0"]
        for difference, measure, one, other in (
            (found[0], "pass@1", control.concentrating, control.covering),
            (found[1], "coverage", control.covering, control.concentrating),
        )
    ]
    verdict = (
        "The control holds."
        if results.control_holds
        else "The control does not hold, so nothing is ranked: a world that does not show known differences cannot "
        "show others."
    )
    table = _table(["difference", "mean and 95 % interval", "required"], rows)
    return f"## Positive control\n\nWorld {control.world}, student {control.student}.\n\n{table}\n\n{verdict}"


def _predictions(results: Results) -> str:
    rows = []
    for name, prediction in results.predictions.items():
        found, place = results.found(prediction), (prediction.world, prediction.student)
        if prediction.second is None:
            beyond = ", extrapolated" if results.is_beyond_line(place, prediction.first) else ""
            subject = f"{prediction.first}, coverage above the line{beyond}"
        else:
            subject = f"{prediction.first} minus {prediction.second}, {prediction.measure}"
        low, high = prediction.at_least, prediction.at_most
        bounds = [f"at {end} {bound:g}" for end, bound in (("least", low), ("most", high)) if bound is not None]
        rows.append(
            [name, ", ".join(place), subject, ", ".join(bounds), _interval(found), results.verdict(prediction)]
        )
    header = ["prediction", "where", "mean difference of", "predicted", "found, with 95 % interval", "right"]
    frozen = {name: results.content[name] for name in ("predictions", "control", "line")}
    mark = hashlib.sha256(json.dumps(frozen, sort_keys=True).encode()).hexdigest()[:16]
    before = results.content["finished_before"]
    exception = (
        f"after {before} of the {len(results.planned)} runs and before the others" if before else "before the runs"
    )
    return (
        f"## Predictions\n\nPredictions, control and line were recorded {exception}, and others are refused since "
        f"(SHA-256 {mark}). Right: yes or no if the whole interval lies inside or outside the bounds, else "
        "open; withheld while the control does not hold.\n\n" + _table(header, rows)
    )


def _ranking(results: Results, place: tuple[str, str], figures: Mapping[str, str]) -> str:
    reference = results.control.covering
    rules = results.rules(place)
    parts = [f"## World {place[0]}, student {place[1]}"]
    reason = results.why_unranked(place)
    if reason is not None:
        return f"{parts[0]}\n\nNot ranked: {reason}"
    rows = []
    for rule in rules:
        draws = len({run["draw"] for run in results.at(place, rule)})
        rows.append([rule, str(draws), *(_number(results.mean(place, rule, measure)) for measure in _COLUMNS)])
    parts.append(_table(["rule", "draws", *_COLUMNS.values()], rows))
    others = [rule for rule in rules if rule != reference]
    if reference in rules and others:
        tests = {
            (rule, measure): results.compare(place, measure, rule, reference) for rule in others for measure in _TESTED
        }
        family = {key: test.p_value for key, test in tests.items() if test is not None}
        adjusted = dict(zip(family, holm(list(family.values())), strict=True))
        rows = []
        for rule in others:
            cells = [rule]
            for measure in _TESTED:
                cells += [_interval(tests[rule, measure]), _p_value(adjusted.get((rule, measure)))]
            height = results.above_line(place, rule)
            beyond = height is not None and results.is_beyond_line(place, rule)
            rows.append([*cells, f"{_interval(height)}{', extrapolated' if beyond else ''}"])
        header = ["rule", "Δ pass@1", "p", "Δ coverage", "p", "coverage above the line"]
        parts.append(
            f"Differences to {reference}; p-values by Holm's method over the {len(family)} tests of this "
            "table, a family of its own; n is the number of seeds:\n\n" + _table(header, rows)
        )
    parts += [f"![{_ALT[kind]}]({figures[name]})" for kind in _ALT if (name := _figure_name(kind, place)) in figures]
    return "\n\n".join(parts)


def _costs(results: Results) -> str:
    rows = [
        [
            *place,
            rule,
            *(f"{median(run['seconds'][part] for run in runs):.0f}" for part in ("train", "measure", "cpu")),
            f"{median(run['peak_memory_mb'] for run in runs):.0f}",
        ]
        for place in results.places
        for rule in results.rules(place)
        if (runs := results.at(place, rule))
    ]
    header = [
        "world",
        "student",
        "rule",
        "seconds of training",
        "seconds of measuring",
        "CPU seconds of both",
        "peak memory, MB",
    ]
    return (
        "## Cost\n\nMedians over runs, one core per run, on a machine that may have been shared. CPU seconds are "
        "without the sandbox.\n\n" + _table(header, rows)
    )


_ALT = {
    "coverage": "Coverage against pass@1, with the line of fixed mixes",
    "curves": "Forward KL during training",
    "beta": "β during training",
    "errors": "Outcomes of samples",
}


def _figure_name(kind: str, place: tuple[str, str]) -> str:
    return f"{kind}-{place[0]}-{place[1]}"


def _figures(results: Results) -> dict[str, str]:
    figures = {}
    for place in results.places:
        if results.why_unranked(place) is not None:
            continue
        figures[_figure_name("coverage", place)] = _coverage_figure(results, place)
        figures[_figure_name("curves", place)] = _curves_figure(results, place)
        beta = _beta_figure(results, place)
        if beta is not None:
            figures[_figure_name("beta", place)] = beta
        figures[_figure_name("errors", place)] = _errors_figure(results, place)
    return figures


def _coverage_figure(results: Results, place: tuple[str, str]) -> str:
    points = {
        rule: (results.mean(place, rule, "pass@1") or 0.0, results.mean(place, rule, "coverage") or 0.0)
        for rule in results.rules(place)
    }
    series = [Series(rule, [point], colour) for colour, (rule, point) in enumerate(points.items())]
    line = list(results.line_points(place).values())
    if len(line) > 1:
        series.insert(0, Series("", line, dashed=True))
    return xy_chart(f"{_ALT['coverage']}: {', '.join(place)}", "pass@1 at temperature 1", "coverage", series)


def _curves_figure(results: Results, place: tuple[str, str]) -> str:
    series = []
    for colour, rule in enumerate(results.rules(place)):
        by_step: dict[int, list[float]] = {}
        for run in results.at(place, rule):
            for point in run["history"]:
                by_step.setdefault(point["step"], []).append(point["forward_kl"])
        series.append(Series(rule, [(step, fmean(values)) for step, values in sorted(by_step.items())], colour))
    title = f"{_ALT['curves']}: {', '.join(place)}"
    return xy_chart(title, "optimizer step", "forward KL, nats per token", series)


def _beta_figure(results: Results, place: tuple[str, str]) -> str | None:
    """Return the curves of β of every run of the rules whose β moves, `None` if there are no such rules."""
    series = []
    for colour, rule in enumerate(results.rules(place)):
        curves = [
            [(point["step"], point["beta"]) for point in run["history"] if "beta" in point]
            for run in results.at(place, rule)
        ]
        if len({beta for curve in curves for _, beta in curve}) > 1:
            series += [Series(rule if index == 0 else "", curve, colour) for index, curve in enumerate(curves)]
    if not series:
        return None
    return xy_chart(f"{_ALT['beta']}: {', '.join(place)}", "optimizer step", "β, share of reverse KL", series)


def _errors_figure(results: Results, place: tuple[str, str]) -> str:
    shares: dict[str, dict[str, float]] = {}
    for rule in results.rules(place):
        runs = results.at(place, rule)
        names = {name for run in runs for name in run["measures"]["errors"]}
        shares[rule] = {
            name: fmean(run["measures"]["errors"].get(name, 0.0) for run in runs) for name in sorted(names)
        }
    totals: dict[str, float] = {}
    for errors in shares.values():
        for name, share in errors.items():
            totals[name] = totals.get(name, 0.0) + share
    common = sorted(totals, key=lambda name: (-totals[name], name))[:_MAX_ERRORS]
    bars = {}
    for rule, errors in shares.items():
        parts = {"passed": 1 - sum(errors.values()), **{name: errors.get(name, 0.0) for name in common}}
        rest = sum(share for name, share in errors.items() if name not in common)
        bars[rule] = {**parts, **({"other": rest} if len(totals) > _MAX_ERRORS else {})}
    return bar_chart(f"{_ALT['errors']}: {', '.join(place)}", "share of samples", bars)
