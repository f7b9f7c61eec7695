"""The page of a benchmark's results, as a function of the files of results and of an introduction alone."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ...ledger import replace_text
from ...metrics.statistics import holm
from .config import BETA_DRAWS
from .figures import TITLES, draw_figures
from .results import LOW, TESTED, Place, Results
from .tables import SIGNIFICANT, format_difference, format_number, format_p_value, table

__all__ = ["write_page"]

_TITLE = "# Benchmark of divergences: results"
_COLUMNS = {
    "pass@1": "pass@1",
    "pass@10": "pass@10",
    "coverage": "coverage",
    "pass@1_T0.7": "pass@1 at T = 0.7",
    "coverage_T0.7": "coverage at T = 0.7",
    "greedy": "greedy pass@1",
    "valid_mass": "mass on valid words",
    "coverage_of_valid": "coverage of valid words",
    "forward_kl": "forward KL, nats per token",
    "reverse_kl": "reverse KL, nats per token",
}
_MIN_SEEDS_OF_DRAWS = 3
_VERDICTS = ("right", "wrong", "open", "withheld", "no interval", "runs are missing")


def write_page(
    results: Sequence[str | Path], page: str | Path | None = None, introduction: str | Path | None = None
) -> Path:
    """Write the page of results with its figures, and return its path.

    Figures of earlier results are removed.

    Args:
        results (`Sequence[str | Path]`):
            Files of results, each a section of the page.
        page (`str` or `Path`, *optional*):
            The page, by default beside the first file of results, with its name. Figures are written to a folder
            beside it with the name of the page, less its suffix; their names begin with that of their results.
        introduction (`str` or `Path`, *optional*):
            Markdown file whose text comes first.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file is something else.
    """
    paths = [Path(each).expanduser() for each in results]
    target = paths[0].with_suffix(".md") if page is None else Path(page).expanduser()
    if target.suffix != ".md":
        raise ValueError(f"`page` is {str(page)!r}; give a file with the suffix .md.")
    if len({path.stem for path in paths}) < len(paths):
        raise ValueError(f"`report` is {list(map(str, results))}, two of which have the same name; rename one.")
    texts = [_TITLE]
    if introduction is not None:
        texts.append(_read("introduction", Path(introduction).expanduser(), "a Markdown file").strip())
    figures: dict[str, str] = {}
    for path in paths:
        content = _read("report", path, "a results.json")
        try:
            found = Results(json.loads(content))
            drawn = _draw(found, path.stem)
            figures |= {name: figure for several in drawn.values() for name, figure in several.values()}
            names = {
                place: {kind: f"{target.stem}/{name}" for kind, (name, _) in several.items()}
                for place, several in drawn.items()
            }
            texts += [f"## {path.stem}", *_sections(found, names)]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`report` is {str(path)!r}, which is not the results of `trl-akd bench` ({error!r}); give its "
                "results.json."
            ) from error
    folder = target.with_suffix("")
    for path in paths:
        for kind in TITLES:
            for old in folder.glob(f"{path.stem}-{kind}-*.svg"):
                if old.name not in figures:
                    old.unlink()
    for name, figure in figures.items():
        replace_text(folder / name, figure)
    replace_text(target, "\n\n".join(texts) + "\n")
    return target


def _read(option: str, path: Path, expected: str) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"`{option}` is {str(path)!r}, but there is no such file; give {expected}.")
    return path.read_text(encoding="utf-8")


def _draw(results: Results, stem: str) -> dict[Place, dict[str, tuple[str, str]]]:
    """Return the names and contents of the figures by place and kind; none unless the control holds."""
    if not results.control_holds:
        return {}
    return {
        place: {
            kind: (f"{stem}-{kind}-{'-'.join(place)}.svg", figure)
            for kind, figure in draw_figures(results, place).items()
        }
        for place in results.places
        if results.why_unranked(place) is None
    }


def _sections(results: Results, figures: Mapping[Place, Mapping[str, str]]) -> list[str]:
    sections = [
        _summary(results),
        _control(results),
        _predictions(results),
    ]
    if results.control_holds:
        sections += [_ranking(results, place, figures.get(place, {})) for place in results.places]
    return [*sections, _setup(results), _starts(results), _costs(results)]


def _summary(results: Results) -> str:
    content = results.content
    commits = sorted({commit for run in content["runs"] for commit in (run["commit"], run["start"]["commit"])})
    doubts = ["are from several commits"] if len(commits) > 1 else []
    if any(commit.endswith("+") for commit in commits):
        doubts.append("include code that was not committed (+)")
    warning = f"**The runs {' and '.join(doubts)}, so they may not be comparable.** " if doubts else ""
    line = (
        " *Coverage above the line* is the coverage of a rule minus that of the fixed mixes "
        f"({', '.join(results.line)}) at the same pass@1."
        if results.line
        else ""
    )
    return (
        f"{len(content['runs'])} of {len(results.planned)} runs are finished, with {len(content['seeds'])} seeds, at "
        f"commit {', '.join(commits)}. {warning}Each student writes {content['num_samples']} samples at temperature 1 "
        f"for each of {content['num_tasks']} held-out tasks. *pass@1* is the probability that a sample passes the "
        "task's tests, and *coverage* the share of a task's correct programs among the samples that pass. Rules of a "
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
    rows = []
    verdicts: Counter[str] = Counter()
    for name, prediction in results.predictions.items():
        found, place = results.found(prediction), (prediction.world, prediction.student)
        if prediction.second is None:
            beyond = ", extrapolated" if results.is_beyond_line(place, prediction.first) else ""
            subject = f"{prediction.first}, coverage above the line{beyond}"
        else:
            subject = f"{prediction.first} minus {prediction.second}, {_COLUMNS[prediction.measure]}"
        low, high = prediction.at_least, prediction.at_most
        bounds = [f"at {end} {bound:g}" for end, bound in (("least", low), ("most", high)) if bound is not None]
        verdict = results.verdict(prediction)
        verdicts[verdict] += 1
        seeds = "" if found is None else str(found.pairs)
        rows.append([name, ", ".join(place), subject, ", ".join(bounds), format_difference(found), seeds, verdict])
    header = ["prediction", "world, student", "quantity", "predicted", "found [95 % interval]", "seeds", "verdict"]
    frozen = {name: results.content[name] for name in ("predictions", "control", "line")}
    mark = hashlib.sha256(json.dumps(frozen, sort_keys=True).encode()).hexdigest()[:16]
    before = results.content["finished_before"]
    when = f"after {before} of the {len(results.planned)} runs and before the others" if before else "before the runs"
    counts = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in _VERDICTS if verdicts[verdict])
    return (
        f"### Predictions\n\nPredictions, control and line were recorded {when}, and others are refused since "
        f"(SHA-256 {mark}). A prediction is right or wrong if the whole interval lies inside or outside the bounds, "
        f"and otherwise open. Of {len(rows)}: {counts}.\n\n" + table(header, rows)
    )


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
    family = {key: test.p_value for key, test in tests.items() if test is not None}
    adjusted = dict(zip(family, holm(list(family.values())), strict=True))
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
    temperature = "0.7" if suffix else "1"
    return (
        f"Differences to {reference} at temperature {temperature}, with p-values by Holm's method over the "
        f"{len(family)} tests of this table (bold below {SIGNIFICANT}):\n\n" + table(header, rows)
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
    worlds = [[name, _settings(entry, without=("students", "rules"))] for name, entry in content["worlds"].items()]
    rules = [[name, _settings(entry, without=(BETA_DRAWS,))] for name, entry in content["rules"].items()]
    return (
        "### Worlds and rules\n\n"
        + table(["world", "settings"], worlds)
        + "\n\n"
        + table(["rule", "fields of `trl-akd akd`, or method"], rules)
    )


def _settings(entry: Mapping[str, Any] | None, without: Sequence[str]) -> str:
    chosen = {key: value for key, value in (entry or {}).items() if key not in without}
    return ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in chosen.items()) or "defaults"


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
        [
            *place,
            rule,
            *(f"{median(run['seconds'][part] for run in runs):.1f}" for part in ("train", "measure", "cpu")),
            f"{median(run['peak_memory_mb'] for run in runs):.0f}",
        ]
        for place in results.places
        for rule in results.rules(place)
        if (runs := results.at(place, rule))
    ]
    header = ["world", "student", "rule", "training, s", "measuring, s", "CPU time of both, s", "peak memory, MB"]
    return (
        "### Cost\n\nMedians over runs, one core per run, on a machine that may have been shared. CPU time is "
        "without the sandbox.\n\n" + table(header, rows)
    )


def _height(results: Results, place: Place, rule: str, suffix: str = "") -> str:
    height = results.above_line(place, rule, suffix)
    beyond = height is not None and results.is_beyond_line(place, rule, suffix)
    return f"{format_difference(height)}{', extrapolated' if beyond else ''}"
