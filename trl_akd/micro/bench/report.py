"""The page of the benchmark of divergences."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...bench.pages import (
    COSTS,
    SIGNIFICANT,
    Page,
    adjust_p_values,
    cost_cells,
    describe_predictions,
    describe_progress,
    format_difference,
    format_number,
    format_p_value,
    format_settings,
    predictions_table,
    table,
)
from .config import BETA_DRAWS, Prediction
from .figures import TITLES, draw_figures
from .measures import LOW, LOW_TEMPERATURE
from .results import TESTED, Place, Results

__all__ = ["BENCH_PAGE"]

_COLUMNS = {
    "pass@1": "pass@1",
    "pass@10": "pass@10",
    "coverage": "coverage",
    f"pass@1{LOW}": f"pass@1 at T = {LOW_TEMPERATURE}",
    f"coverage{LOW}": f"coverage at T = {LOW_TEMPERATURE}",
    "greedy": "greedy pass@1",
    "valid_mass": "mass on valid words",
    "coverage_of_valid": "coverage of valid words",
    "forward_kl": "forward KL, nats per token",
    "reverse_kl": "reverse KL, nats per token",
}
_MIN_SEEDS_OF_DRAWS = 3


def _sections(content: Mapping[str, Any], prefix: str) -> tuple[list[str], dict[str, str]]:
    """Return the texts of a file of results, and the figures by path; there are none unless the control holds."""
    results = Results(content)
    sections = [_summary(results), _control(results), _predictions(results)]
    figures: dict[str, str] = {}
    if results.control_holds:
        for place in results.places:
            drawn = draw_figures(results, place) if results.why_unranked(place) is None else {}
            paths = {kind: f"{prefix}-{kind}-{'-'.join(place)}.svg" for kind in drawn}
            figures |= {paths[kind]: figure for kind, figure in drawn.items()}
            sections.append(_ranking(results, place, paths))
    return [*sections, _setup(results), _starts(results), _costs(results)], figures


BENCH_PAGE = Page("Benchmark of divergences: results", "trl-akd bench", _sections, tuple(TITLES))
"""Page of the results of `trl-akd bench`."""


def _summary(results: Results) -> str:
    content = results.content
    line = (
        " *Coverage above the line* is the coverage of a rule minus that of the fixed mixes "
        f"({', '.join(results.line)}) at the same pass@1."
        if results.line
        else ""
    )
    return (
        f"{describe_progress(content)} Each student writes {content['num_samples']} samples at temperature 1 for each "
        f"of {content['num_tasks']} held-out tasks. *pass@1* is the probability that a sample passes the task's "
        "tests, and *coverage* the share of a task's correct programs among the samples that pass. Rules of a "
        "seed share the world, the rows, their order and the pre-trained student, so differences are paired by seed; "
        f"brackets are 95 % intervals by Student's t.{line}"
    )


def _control(results: Results) -> str:
    control = results.control
    found = results.control_differences()
    rows = [
        [
            measure,
            f"{one} minus {other}",
            format_difference(difference),
            f"at least {control.margin:.2f}, interval above 0",
        ]
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
    compared = table(["measure", "difference", "mean [95 % interval]", "required"], rows)
    return f"### Positive control\n\nWorld {control.world}, student {control.student}.\n\n{compared}\n\n{verdict}"


def _predictions(results: Results) -> str:
    def quantity(prediction: Prediction) -> str:
        if prediction.second is not None:
            return f"{prediction.first} minus {prediction.second}, {_COLUMNS[prediction.measure]}"
        is_beyond = results.is_beyond_line((prediction.world, prediction.student), prediction.first)
        return f"{prediction.first}, coverage above the line{', extrapolated' if is_beyond else ''}"

    columns = {
        "world, student": lambda prediction: f"{prediction.world}, {prediction.student}",
        "quantity": quantity,
    }
    listed = predictions_table(results, results.predictions, columns)
    return f"### Predictions\n\n{describe_predictions(results)}\n\n{listed}"


def _ranking(results: Results, place: Place, figures: Mapping[str, str]) -> str:
    reference = results.control.covering
    rules = results.rules(place)
    parts = [f"### World {place[0]}, student {place[1]}"]
    reason = results.why_unranked(place)
    if reason is not None:
        return f"{parts[0]}\n\nNot ranked: {reason}"
    parts += [_image(kind, figures) for kind in ("coverage", "low") if kind in figures]
    rows = []
    for rule in rules:
        runs = results.at(place, rule)
        counts = [str(len({run[key] for run in runs})) for key in ("seed", "draw")]
        rows.append([rule, *counts, *(format_number(results.mean(place, rule, measure)) for measure in _COLUMNS)])
    parts.append("Means over seeds:\n\n" + table(["rule", "seeds", "draws of β", *_COLUMNS.values()], rows))
    others = [rule for rule in rules if rule != reference]
    if reference in rules and others:
        parts += [_differences(results, place, reference, others, suffix) for suffix in ("", LOW)]
        parts += _draws(results, place, reference)
    parts += [_image(kind, figures) for kind in TITLES if kind in figures and kind not in ("coverage", "low")]
    return "\n\n".join(parts)


def _image(kind: str, figures: Mapping[str, str]) -> str:
    return f"{TITLES[kind]}:\n\n![{TITLES[kind]}]({figures[kind]})"


def _differences(results: Results, place: Place, reference: str, others: Sequence[str], suffix: str) -> str:
    measures = [f"{measure}{suffix}" for measure in TESTED]
    tests = {
        (rule, measure): results.compare(place, measure, rule, reference) for rule in others for measure in measures
    }
    adjusted = adjust_p_values(tests)
    rows = []
    for rule in others:
        cells = [rule]
        for measure in measures:
            cells += [format_difference(tests[rule, measure]), format_p_value(adjusted.get((rule, measure)))]
        rows.append([*cells, _height(results, place, rule, suffix)])
    header = [
        "rule",
        f"pass@1, minus {reference}",
        "p",
        f"coverage, minus {reference}",
        "p",
        "coverage above the line",
    ]
    temperature = LOW_TEMPERATURE if suffix else 1
    return (
        f"Differences to {reference} at temperature {temperature}, with p-values by Holm's method over the "
        f"{len(adjusted)} tests of this table (bold below {SIGNIFICANT}):\n\n" + table(header, rows)
    )


def _draws(results: Results, place: Place, reference: str) -> list[str]:
    """Return the table of the sequences of values that β drew, if sequences have enough seeds."""
    found, own = results.by_draws(), set(results.rules(place))
    rows = []
    for rule in found.rules(place):
        seeds = found.by_seed(place, rule, "pass@1")
        if rule in own or len(seeds) < _MIN_SEEDS_OF_DRAWS:
            continue
        name, _, values = rule.partition(": ")
        differences = [format_difference(found.compare(place, measure, rule, reference)) for measure in TESTED]
        rows.append([name, values, str(len(seeds)), *differences, _height(found, place, rule)])
    if not rows:
        return []
    differences = [f"{measure}, minus {reference}" for measure in TESTED]
    header = ["rule", "values of β, by epoch", "seeds", *differences, "coverage above the line"]
    return ["By the values that β drew, without adjustment:\n\n" + table(header, rows)]


def _setup(results: Results) -> str:
    """Return the tables of worlds and rules as the recipe gives them."""
    content = results.content
    worlds = [
        [name, format_settings(entry, without=("students", "rules"))] for name, entry in content["worlds"].items()
    ]
    rules = [[name, format_settings(entry, without=(BETA_DRAWS,))] for name, entry in content["rules"].items()]
    return (
        "### Worlds and rules\n\n"
        + table(["world", "settings"], worlds)
        + "\n\n"
        + table(["rule", "fields of `trl-akd akd`, or method"], rules)
    )


def _starts(results: Results) -> str:
    """Return the table of pre-trained students, with every seed that could not start."""
    rows = []
    places: dict[Place, dict[int, Mapping[str, Any]]] = {}
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
    return "### Pre-trained students\n\n" + table(header, rows)


def _costs(results: Results) -> str:
    rows = [
        [*place, rule, *cost_cells(results.at(place, rule))]
        for place in results.places
        for rule in results.rules(place)
    ]
    header = ["world", "student", "rule", *COSTS]
    return (
        "### Cost\n\nMedians over runs, one core per run, on a machine that may have been shared. CPU time is "
        "without the sandbox.\n\n" + table(header, rows)
    )


def _height(results: Results, place: Place, rule: str, suffix: str = "") -> str:
    height = results.above_line(place, rule, suffix)
    beyond = height is not None and results.is_beyond_line(place, rule, suffix)
    return f"{format_difference(height)}{', extrapolated' if beyond else ''}"
