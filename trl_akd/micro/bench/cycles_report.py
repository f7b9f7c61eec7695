"""The page of the experiment on IterKD."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from ...bench.pages import (
    ExperimentResults,
    Page,
    adjust_p_values,
    common_errors,
    describe_predictions,
    describe_progress,
    difference_over_seeds,
    format_difference,
    format_mean,
    format_number,
    format_p_value,
    format_settings,
    mean_errors,
    predictions_table,
    table,
)
from ...metrics.statistics import PairedMean
from .cycles_config import CYCLES_FORMAT, Comparison
from .cycles_measures import CYCLES_MEASURES

__all__ = ["CYCLES_PAGE", "CyclesResults"]

_HEADINGS = {
    "pass@1": "pass@1",
    "greedy": "greedy",
    "greedy_rare": "greedy, rare operations",
    "greedy_common": "greedy, common ones",
}
_LEVELS = ("easy", "medium", "hard")
_MAX_ERRORS = 7


class CyclesResults(ExperimentResults[Comparison]):
    """Finished runs of the experiment, by variant and seed.

    Args:
        content (`Mapping`):
            Content of `results.json`.

    Raises:
        ValueError: If it has another format, or a measure that is not finite.
    """

    format = CYCLES_FORMAT
    place = ("variant", "seed")
    recorded = ("predictions", "control")
    min_seeds = 5

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.control = Comparison(**content["control"])
        self.predictions = {name: Comparison(**entry) for name, entry in content["predictions"].items()}

    @property
    def variants(self) -> list[str]:
        """Variants with runs, in the order of the recipe."""
        found = {run["variant"] for run in self.runs}
        return [name for name in self.content["variants"] if name in found]

    def at(self, variant: str) -> list[Mapping[str, Any]]:
        """Return the runs of a variant."""
        return [run for run in self.runs if run["variant"] == variant]

    def by_seed(self, variant: str, measure: str) -> dict[int, float]:
        """Return the value of a measure for each seed."""
        return {run["seed"]: run["measures"][measure] for run in self.at(variant) if measure in run["measures"]}

    def compare(self, measure: str, first: str, second: str) -> PairedMean | None:
        """Return the paired difference of two variants over the seeds of both, `None` for fewer than two."""
        return difference_over_seeds(self.by_seed(first, measure), self.by_seed(second, measure))

    def found(self, prediction: Comparison) -> PairedMean | None:
        """Return the difference that a prediction is about."""
        return self.compare(prediction.measure, prediction.first, prediction.second)

    def is_needed(self, run: Mapping[str, Any], prediction: Comparison) -> bool:
        """Return whether a run is one of the variants of a prediction."""
        return run["variant"] in (prediction.first, prediction.second)

    def is_withheld(self, prediction: Comparison) -> bool:
        """Return whether the control does not hold, unless the prediction is the control itself."""
        return prediction != self.control and not self.control_holds

    @property
    def control_holds(self) -> bool:
        """Whether the whole interval of the control lies inside its bounds, with at least five seeds."""
        return self.verdict(self.control) == "right"


def _sections(content: Mapping[str, Any], prefix: str) -> tuple[list[str], dict[str, str]]:
    """Return the texts of a file of results, which have no figures."""
    results = CyclesResults(content)
    sections = [_summary(results), _starts(results), _predictions(results)]
    if results.runs:
        sections += [_variants(results), _budgets(results), _cycles(results), _errors(results)]
    return sections, {}


CYCLES_PAGE = Page("Experiment on IterKD: results", "trl-akd bench cycles", _sections)
"""Page of the results of `trl-akd bench cycles`."""


def _summary(results: CyclesResults) -> str:
    content = results.content
    return (
        f"{describe_progress(content)} Settings: {format_settings(content['settings'])}. *pass@1* is that of "
        f"{content['num_samples']} samples at temperature 1 for each of {content['num_tasks']} held-out tasks. "
        "Differences are paired by seed; brackets are 95 % intervals by Student's t, and ± is half of one."
    )


def _starts(results: CyclesResults) -> str:
    by_seed = {run["seed"]: run for run in results.content["runs"]}
    rows = [
        [
            str(seed),
            *(format_number(run["start"]["measures"].get(measure)) for measure in CYCLES_MEASURES),
            "" if run["started"] else "not started",
        ]
        for seed, run in sorted(by_seed.items())
    ]
    return "### Students before\n\n" + table(["seed", *_HEADINGS.values(), ""], rows)


def _predictions(results: CyclesResults) -> str:
    columns = {
        "difference": lambda comparison: f"{comparison.first} minus {comparison.second}",
        "measure": lambda comparison: _HEADINGS[comparison.measure],
    }
    verdict = (
        "The control holds."
        if results.control_holds
        else "The control does not hold, so verdicts on predictions are withheld."
    )
    listed = predictions_table(results, {"control": results.control, **results.predictions}, columns)
    return f"### Predictions\n\n{describe_predictions(results)} {verdict}\n\n{listed}"


def _variants(results: CyclesResults) -> str:
    base, *others = results.variants
    found = {name: results.compare("pass@1", name, base) for name in others}
    adjusted = adjust_p_values(found)
    rows = [
        [
            name,
            str(len(results.at(name))),
            *(format_mean(results.by_seed(name, measure)) for measure in CYCLES_MEASURES),
            format_difference(found.get(name)),
            format_p_value(adjusted.get(name)),
        ]
        for name in results.variants
    ]
    header = ["variant", "seeds", *_HEADINGS.values(), f"pass@1 minus {base}", "p (Holm)"]
    return f"### Students after\n\n{table(header, rows)}"


def _budgets(results: CyclesResults) -> str:
    rows = []
    for name in results.variants:
        runs = results.at(name)
        aucs = [run["judge_auc"] for run in runs if run.get("judge_auc") is not None]
        spent = [run["tokens"]["teacher"] + run["tokens"]["judge"] for run in runs]
        rows.append(
            [
                name,
                f"{fmean(run['tokens']['trained'] for run in runs):,.0f}",
                f"{fmean(spent):,.0f}",
                f"{fmean(run['tokens']['judge'] for run in runs):,.0f}",
                f"{fmean(sum(run['cycles'][-1]['origins'].values()) for run in runs):,.0f}",
                f"{fmean(sum(sum(cycle['faults'].values()) for cycle in run['cycles']) for run in runs):,.0f}",
                f"{fmean(aucs):.3f}" if aucs else "",
                f"{fmean(run['seconds']['cpu'] for run in runs):.0f}",
            ]
        )
    header = [
        *("variant", "tokens trained on", "tokens of teacher and judge", "of them the judge"),
        *("questions, last cycle", "faults", "judge's AUC", "CPU s"),
    ]
    return f"### Budgets\n\nMeans over seeds.\n\n{table(header, rows)}"


def _cycles(results: CyclesResults) -> str:
    rows = []
    for name in results.variants:
        runs = results.at(name)
        before = fmean(run["start"]["measures"]["greedy"] for run in runs)
        cycles = [format_number(fmean(values)) for values in zip(*map(_greedy_by_cycle, runs), strict=True)]
        hard = [
            " / ".join(f"{fmean(run['cycles'][number]['feedback'][level] for run in runs):.2f}" for level in _LEVELS)
            for number in range(len(cycles))
        ]
        rows.append([name, format_number(before), ", ".join(cycles), ", ".join(hard)])
    header = ["variant", "before", "greedy after each cycle", "easy / medium / hard in each cycle"]
    return f"### Cycles\n\n{table(header, rows)}"


def _greedy_by_cycle(run: Mapping[str, Any]) -> list[float]:
    return [cycle["greedy"] for cycle in run["cycles"] if cycle["greedy"] is not None]


def _errors(results: CyclesResults) -> str:
    starts = {run["seed"]: run["start"]["measures"] for run in results.runs}
    columns = {"before": mean_errors(list(starts.values()))}
    columns |= {name: mean_errors([run["measures"] for run in results.at(name)]) for name in results.variants}
    common = common_errors(columns.values(), _MAX_ERRORS)
    rows = [
        [
            name,
            *(format_number(errors.get(error, 0.0)) for error in common),
            format_number(sum(share for error, share in errors.items() if error not in common)),
        ]
        for name, errors in columns.items()
    ]
    return f"### Error classes\n\nShares of the samples.\n\n{table(['student', *common, 'other'], rows)}"
