"""The page of the experiment on CodePLAN."""

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from ...bench.pages import (
    COSTS,
    ExperimentResults,
    Page,
    adjust_p_values,
    cost_cells,
    describe_predictions,
    describe_progress,
    difference_over_seeds,
    format_mean,
    format_settings,
    mean_over_seeds,
    predictions_table,
    table,
)
from ...metrics.statistics import PairedMean
from .plans_config import PLANS_FORMAT, PLANS_MEASURES, Outcome, PlanPrediction
from .plans_measures import NUM_PROGRAMS, OWN_PLANS

__all__ = ["PLANS_PAGE", "PlansResults"]

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


class PlansResults(ExperimentResults[PlanPrediction]):
    """Finished runs of the experiment, by world, training and seed.

    Args:
        content (`Mapping`):
            Content of `results.json`.

    Raises:
        ValueError: If it has another format, or a measure that is not finite.
    """

    format = PLANS_FORMAT
    place = ("world", "training", "seed")
    recorded = ("predictions",)
    min_seeds = 5

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(content)
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

    def found(self, prediction: PlanPrediction) -> PairedMean | None:
        """Return the mean that a prediction is about, or the mean difference."""
        values = [self.by_seed(prediction.world, outcome) for outcome in prediction.outcomes]
        return mean_over_seeds(*values) if len(values) == 1 else difference_over_seeds(*values)

    def is_needed(self, run: Mapping[str, Any], prediction: PlanPrediction) -> bool:
        """Return whether a run is one of the trainings of a prediction, in its world."""
        trainings = {outcome.training for outcome in prediction.outcomes}
        return run["world"] == prediction.world and run["training"] in trainings


def _sections(content: Mapping[str, Any], prefix: str) -> tuple[list[str], dict[str, str]]:
    """Return the texts of a file of results, which have no figures."""
    results = PlansResults(content)
    worlds = [_world(results, world) for world in results.content["worlds"]]
    return [_summary(results), _starts(results), _predictions(results), *worlds, _costs(results)], {}


PLANS_PAGE = Page("Experiment on CodePLAN: results", "trl-akd bench plans", _sections)
"""Page of the results of `trl-akd bench plans`."""


def _summary(results: PlansResults) -> str:
    content = results.content
    return (
        f"{describe_progress(content)} Each student is measured on {content['num_tasks']} held-out problems. "
        "*best@n*: of n programs, the one that passes the largest fraction of the public cases passes the hidden "
        "tests; *best@1* is pass@1. Differences are paired by seed; brackets are 95 % intervals by Student's t, and ± "
        "is half of one."
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
        "### Students before training\n\nShare of unseen texts of the base model that the pre-trained student "
        f"writes.\n\n{table(header, rows)}"
    )


def _predictions(results: PlansResults) -> str:
    columns = {
        "world": lambda prediction: prediction.world,
        "outcome": lambda prediction: " minus ".join(map(str, prediction.outcomes)),
    }
    differences = {
        name: results.found(prediction)
        for name, prediction in results.predictions.items()
        if len(prediction.outcomes) == 2
    }
    listed = predictions_table(results, results.predictions, columns, adjust_p_values(differences))
    return f"### Predictions\n\n{describe_predictions(results)} p-values are of differences from 0.\n\n{listed}"


def _world(results: PlansResults, world: str) -> str:
    rows, own = [], []
    for training in results.content["trainings"]:
        rows += [
            [training, words, *cells]
            for plan, words in _PLANS.items()
            if any(cells := _means(results, world, training, plan, _BEST))
        ]
        cells = _means(results, world, training, OWN_PLANS, _OWN_MEASURES)
        if any(cells):
            own.append([training, *cells])
    parts = [
        f"### World {world}",
        f"{format_settings(results.content['worlds'][world])}.",
        table(["training", "programs", *_BEST], rows),
    ]
    if own:
        parts += ["Own plans:", table(["training", *_OWN_MEASURES.values()], own)]
    return "\n\n".join(parts)


def _means(results: PlansResults, world: str, training: str, plan: str, measures: Iterable[str]) -> list[str]:
    return [format_mean(results.by_seed(world, Outcome(training, plan, measure))) for measure in measures]


def _costs(results: PlansResults) -> str:
    rows = [
        [world, training, f"{fmean(run['steps'] for run in runs):.0f}", *cost_cells(runs)]
        for world in results.content["worlds"]
        for training in results.content["trainings"]
        if (runs := results.at(world, training))
    ]
    header = ["world", "training", "steps", *COSTS]
    return f"### Cost\n\nMedians over runs, one core per run.\n\n{table(header, rows)}"
