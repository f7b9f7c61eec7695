"""Figures of a benchmark's results, in SVG."""

from statistics import fmean
from typing import Any

from ...bench.pages import common_errors, mean_errors
from ...charts import Series, bar_chart, line_chart, scatter_chart
from .measures import LOW, LOW_TEMPERATURE
from .results import Place, Results

__all__ = ["TITLES", "draw_figures"]

TITLES = {
    "coverage": "Coverage against pass@1 at temperature 1, with the line of fixed mixes",
    "low": f"Coverage against pass@1 at temperature {LOW_TEMPERATURE}, with the line of fixed mixes",
    "curves": "Forward KL on the rows of training, of the rules that train on them",
    "beta": "β during training",
    "errors": "Outcomes of samples",
}
"""Titles of the figures by kind."""

_MOVING = ("akd", "m1", "m2", "linear")
_MAX_ERRORS = 6


def draw_figures(results: Results, place: Place) -> dict[str, str]:
    """Return the figures of a world and student by their kind; all but `coverage` only where the control is."""
    figures = {"coverage": _coverage(results, place)}
    if place == (results.control.world, results.control.student):
        figures["low"] = _low(results, place)
        figures["curves"] = _curves(results, place)
        figures["beta"] = _beta(results, place)
        figures["errors"] = _errors(results, place)
    return {kind: figure for kind, figure in figures.items() if figure}


def _title(kind: str, place: Place) -> str:
    return f"{TITLES[kind]}: world {place[0]}, student {place[1]}"


def _coverage(results: Results, place: Place) -> str:
    points, reference = results.points(place, results.rules(place)), results.control.covering
    cooler = results.points(place, [reference], LOW)
    points |= {f"{reference} at T = {LOW_TEMPERATURE}": point for point in cooler.values()}
    line = list(results.line_points(place))
    return scatter_chart(_title("coverage", place), "pass@1", "coverage", points, line, results.line)


def _low(results: Results, place: Place) -> str:
    points = results.points(place, results.rules(place), LOW)
    line = list(results.line_points(place, LOW))
    if not points:
        return ""
    return scatter_chart(_title("low", place), "pass@1", "coverage", points, line, results.line)


def _curves(results: Results, place: Place) -> str:
    series = []
    for style, rule in enumerate(rule for rule in results.rules(place) if not _fields(results, rule).get("lmbda")):
        by_step: dict[int, list[float]] = {}
        for run in results.at(place, rule):
            for point in run["history"]:
                by_step.setdefault(point["step"], []).append(point["forward_kl"])
        if by_step:
            points = [(step, fmean(values)) for step, values in sorted(by_step.items())]
            series.append(Series(rule, points, style))
    return line_chart(_title("curves", place), "optimizer step", "forward KL, nats per token", series)


def _beta(results: Results, place: Place) -> str:
    """Return β of each sequence of draws, of the rules whose β moves within an epoch; empty without such rules."""
    series = []
    for style, rule in enumerate(filter(lambda rule: _moves(results, rule), results.rules(place))):
        by_draws: dict[tuple[float, ...], dict[int, list[float]]] = {}
        for run in results.at(place, rule):
            steps = by_draws.setdefault(tuple(run["beta_draws"]), {})
            for point in run["history"]:
                steps.setdefault(point["step"], []).append(point["beta"])
        series += [
            Series(rule, [(step, fmean(values)) for step, values in sorted(steps.items())], style)
            for _, steps in sorted(by_draws.items())
        ]
    return line_chart(_title("beta", place), "optimizer step", "β, share of reverse KL", series) if series else ""


def _fields(results: Results, rule: str) -> dict[str, Any]:
    fields: dict[str, Any] = results.content["rules"][rule] or {}
    return fields


def _moves(results: Results, rule: str) -> bool:
    fields = _fields(results, rule)
    is_mix = fields.get("divergence", "akd") == "akd" and fields.get("method", "akd") == "akd"
    return is_mix and fields.get("beta_strategy", "akd") in _MOVING


def _errors(results: Results, place: Place) -> str:
    shares = {rule: mean_errors([run["measures"] for run in results.at(place, rule)]) for rule in results.rules(place)}
    common = common_errors(shares.values(), _MAX_ERRORS)
    has_others = len({name for errors in shares.values() for name in errors}) > len(common)
    bars = {}
    for rule, errors in shares.items():
        parts = {"passed": 1 - sum(errors.values()), **{name: errors.get(name, 0.0) for name in common}}
        rest = sum(share for name, share in errors.items() if name not in common)
        bars[rule] = {**parts, **({"other": rest} if has_others else {})}
    return bar_chart(_title("errors", place), "share of samples", bars)
