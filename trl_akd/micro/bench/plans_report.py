"""The page of the experiment on CodePLAN, as a function of its results alone."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

from ...ledger import replace_text
from ...metrics.statistics import PairedMean, holm
from .plans_config import PLANS_FORMAT, PLANS_MEASURES, Outcome, PlanPrediction
from .plans_measures import NUM_PROGRAMS, OWN_PLANS
from .tables import format_interval, format_p_value, mean_over_seeds, table

__all__ = ["PlansResults", "write_plans_page"]

_MIN_SEEDS = 5
_PLANS = {
    "without_plan": "without a plan",
    "true_plan": "true plan",
    "own_plans": "own plans",
    "own_plans_redrawn": "own plans, program redrawn",
}
_BEST = tuple(f"best@{number}" for number in NUM_PROGRAMS)
_OWN_MEASURES = {
    name: heading
    for name, heading in zip(
        PLANS_MEASURES[OWN_PLANS][len(_BEST) :],
        ("right plans", "a right plan among 10", "pass@1, right plan", "pass@1, wrong plan"),
        strict=True,
    )
}


class PlansResults:
    """Finished runs of the experiment, by world, training and seed.

    Args:
        content (`Mapping`):
            Content of the results.

    Raises:
        ValueError: If they have another format.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        if content["format"] != PLANS_FORMAT:
            raise ValueError(f"its format is {content['format']}, and this version reads {PLANS_FORMAT}; run it again")
        self.content = content
        self.runs: list[Mapping[str, Any]] = [run for run in content["runs"] if run["started"]]
        self.predictions = {name: PlanPrediction(**entry) for name, entry in content["predictions"].items()}

    def at(self, world: str, training: str) -> list[Mapping[str, Any]]:
        """Return the runs of a training in a world."""
        return [run for run in self.runs if (run["world"], run["training"]) == (world, training)]

    def by_seed(self, world: str, outcome: Outcome) -> dict[int, float]:
        """Return the value of an outcome for each seed that has one."""
        found = {
            run["seed"]: run["measures"].get(outcome.plan, {}).get(outcome.measure)
            for run in self.at(world, outcome.training)
        }
        return {seed: value for seed, value in sorted(found.items()) if value is not None}

    def mean(self, world: str, outcome: Outcome, minus: Outcome | None = None) -> PairedMean | None:
        """Return the mean of an outcome over seeds, or that of its paired difference to another.

        `None` if fewer than two seeds have a value.
        """
        values = self.by_seed(world, outcome)
        if minus is not None:
            others = self.by_seed(world, minus)
            values = {seed: values[seed] - others[seed] for seed in values if seed in others}
        return mean_over_seeds(values)

    def num_missing(self, world: str, trainings: set[str]) -> int:
        """Return the number of planned runs of trainings in a world that are not finished."""
        places = [
            {(run["training"], run["seed"]) for run in self.content[part] if run["world"] == world}
            for part in ("planned", "runs")
        ]
        return sum(training in trainings for training, _ in places[0] - places[1])

    def found(self, prediction: PlanPrediction) -> PairedMean | None:
        """Return the mean that a prediction is about."""
        return self.mean(prediction.world, *prediction.outcomes)

    def verdict(self, prediction: PlanPrediction) -> str:
        """Return whether a prediction is right: `"yes"` or `"no"` if its interval decides, and else `"open"`.

        Verdicts need all runs of the trainings, and at least five seeds that started.
        """
        if self.num_missing(prediction.world, {outcome.training for outcome in prediction.outcomes}):
            return "runs are missing"
        found = self.found(prediction)
        if found is None or found.pairs < _MIN_SEEDS:
            return "too few seeds"
        low = -math.inf if prediction.at_least is None else prediction.at_least
        high = math.inf if prediction.at_most is None else prediction.at_most
        if low <= found.low and found.high <= high:
            return "yes"
        return "no" if found.high < low or found.low > high else "open"


def write_plans_page(results: str | Path, page: str | Path | None = None) -> Path:
    """Write the page of results, and return its path.

    Args:
        results (`str` or `Path`):
            Results of `trl-akd bench plans`.
        page (`str` or `Path`, *optional*):
            The page, by default beside the results.

    Raises:
        FileNotFoundError: If there are no such results.
        ValueError: If the file is something else.
    """
    path = Path(results).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"`report` is {str(results)!r}, but there is no such file; give a results.json.")
    target = path.with_suffix(".md") if page is None else Path(page).expanduser()
    if target.suffix != ".md":
        raise ValueError(f"`page` is {str(page)!r}; give a file with the suffix .md.")
    try:
        text = _page(PlansResults(json.loads(path.read_text(encoding="utf-8"))))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`report` is {str(results)!r}, which is not the results of `trl-akd bench plans` ({error!r}); give its "
            "results.json."
        ) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_text(target, text)
    return target


def _page(results: PlansResults) -> str:
    worlds = [_world(results, world) for world in results.content["worlds"]]
    return "\n\n".join([_summary(results), _starts(results), _predictions(results), *worlds, _costs(results)]) + "\n"


def _summary(results: PlansResults) -> str:
    content = results.content
    commits = sorted({commit for run in content["runs"] for commit in (run["commit"], run["start"]["commit"])})
    doubts = ["are from several commits"] if len(commits) > 1 else []
    if any(commit.endswith("+") for commit in commits):
        doubts.append("include code that was not committed (+)")
    warning = f"**The runs {' and '.join(doubts)}, so they may not be comparable.** " if doubts else ""
    early = content["finished_before"]
    known = f" {early} of the runs were finished when the predictions were recorded." if early else ""
    return (
        "# Experiment on CodePLAN: results\n\n"
        f"{len(content['runs'])} of {len(content['planned'])} runs, at commit {', '.join(commits)}: seeds "
        f"{', '.join(map(str, content['seeds']))}; {content['num_tasks']} held-out problems each.{known}\n\n"
        f"{warning}best@n: of n programs, the one that passes the largest fraction of the public cases passes the "
        "hidden tests; best@1 is pass@1. Means over seeds, with 95 % intervals by Student's t; differences are paired "
        "by seed. `trl-akd bench plans` made this page from the results alone."
    )


def _starts(results: PlansResults) -> str:
    facts = ("plan", "program", "program_by_plan")
    starts = {(run["world"], run["seed"]): run for run in results.content["runs"]}
    rows = [
        [world, str(seed), *(f"{run['start'][fact]:.2f}" for fact in facts), "yes" if run["started"] else "no"]
        for (world, seed), run in starts.items()
    ]
    header = ["world", "seed", "plans", "programs", "programs by a given plan", "started"]
    return (
        "## Students before training\n\nShare of unseen texts of the base model that the pre-trained student "
        f"writes.\n\n{table(header, rows)}"
    )


def _predictions(results: PlansResults) -> str:
    found = {name: results.found(prediction) for name, prediction in results.predictions.items()}
    tested = {
        name: mean.p_value
        for name, mean in found.items()
        if mean is not None and len(results.predictions[name].outcomes) == 2
    }
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    rows = []
    for name, prediction in results.predictions.items():
        bounds = [
            f"at {word} {bound:+.2f}"
            for word, bound in (("least", prediction.at_least), ("most", prediction.at_most))
            if bound is not None
        ]
        rows.append(
            [
                name,
                prediction.world,
                " minus ".join(map(str, prediction.outcomes)),
                ", ".join(bounds),
                format_interval(found[name]),
                format_p_value(adjusted.get(name)),
                results.verdict(prediction),
            ]
        )
    header = ["prediction", "world", "outcome", "predicted", "mean and 95 % interval", "p (Holm)", "right"]
    return (
        "## Predictions\n\nRecorded before the runs. Right: yes or no if the whole interval lies inside or outside "
        f"the bounds, else open. p: of differences from 0.\n\n{table(header, rows)}"
    )


def _world(results: PlansResults, world: str) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in results.content["worlds"][world].items())
    rows, own = [], []
    for training in results.content["trainings"]:
        rows += [
            [training, words, *cells]
            for plan, words in _PLANS.items()
            if any(cells := [_mean(results, world, Outcome(training, plan, measure)) for measure in _BEST])
        ]
        cells = [_mean(results, world, Outcome(training, OWN_PLANS, measure)) for measure in _OWN_MEASURES]
        if any(cells):
            own.append([training, *cells])
    parts = [f"## World {world}", f"{settings}.", table(["training", "programs", *_BEST], rows)]
    if own:
        parts += ["Own plans:", table(["training", *_OWN_MEASURES.values()], own)]
    return "\n\n".join(parts)


def _mean(results: PlansResults, world: str, outcome: Outcome) -> str:
    found = results.mean(world, outcome)
    if found is None:
        return "".join(f"{value:.3f}" for value in results.by_seed(world, outcome).values())
    return f"{found.difference:.3f} ± {found.difference - found.low:.3f}"


def _costs(results: PlansResults) -> str:
    rows = [
        [
            world,
            training,
            f"{fmean(run['steps'] for run in runs):.0f}",
            *(f"{median(run['seconds'][part] for run in runs):.0f}" for part in ("train", "measure", "cpu")),
            f"{median(run['peak_memory_mb'] for run in runs):.0f}",
        ]
        for world in results.content["worlds"]
        for training in results.content["trainings"]
        if (runs := results.at(world, training))
    ]
    header = ["world", "training", "steps", "s of training", "s of measuring", "CPU s of both", "peak memory, MiB"]
    return f"## Cost\n\nMedians over runs, one core per run.\n\n{table(header, rows)}"
