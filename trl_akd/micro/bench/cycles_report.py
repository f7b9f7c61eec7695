"""The page of the experiment on IterKD, as a function of its `results.json` alone."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ...ledger import replace_text
from ...metrics.statistics import PairedMean, holm
from .cycles_config import CYCLES_FORMAT, Comparison
from .cycles_measures import CYCLES_MEASURES
from .tables import format_interval, format_number, format_p_value, mean_over_seeds, table

__all__ = ["CyclesResults", "write_cycles_page"]

_MIN_SEEDS = 5
_HEADINGS = {
    "pass@1": "pass@1",
    "greedy": "greedy",
    "greedy_rare": "greedy, rare operations",
    "greedy_common": "greedy, common ones",
}
_MAX_ERRORS = 7


class CyclesResults:
    """Finished runs of the experiment, by variant and seed.

    Args:
        content (`Mapping`):
            Content of `results.json`.

    Raises:
        ValueError: If it has another format, or a measure that is not finite.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        if content["format"] != CYCLES_FORMAT:
            raise ValueError(
                f"its format is {content['format']}, and this version reads {CYCLES_FORMAT}; run it again"
            )
        self.content = content
        self.runs: list[Mapping[str, Any]] = [run for run in content["runs"] if run["started"]]
        self.control = Comparison(**content["control"])
        self.predictions = {name: Comparison(**entry) for name, entry in content["predictions"].items()}
        for run in self.runs:
            for name in CYCLES_MEASURES:
                if not math.isfinite(run["measures"].get(name, 0.0)):
                    raise ValueError(f"{name} is {run['measures'][name]} in the run of {run['variant']}")

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
        one, other = self.by_seed(first, measure), self.by_seed(second, measure)
        return mean_over_seeds({seed: one[seed] - other[seed] for seed in one if seed in other})

    def num_missing(self, variants: Sequence[str]) -> int:
        """Return the number of planned runs of variants that are not finished."""
        finished = {(run["variant"], run["seed"]) for run in self.content["runs"]}
        return sum(
            place["variant"] in variants and (place["variant"], place["seed"]) not in finished
            for place in self.content["planned"]
        )

    def verdict(self, comparison: Comparison) -> str:
        """Return whether a prediction is right: `"yes"` or `"no"` if its interval decides, and else `"open"`.

        Verdicts need all runs of both variants and, except for that of the control itself, a control that holds.
        """
        if self.num_missing((comparison.first, comparison.second)):
            return "runs are missing"
        found = self.compare(comparison.measure, comparison.first, comparison.second)
        if found is None:
            return "no interval"
        if comparison != self.control and not self.control_holds:
            return "withheld"
        low = -math.inf if comparison.at_least is None else comparison.at_least
        high = math.inf if comparison.at_most is None else comparison.at_most
        if low <= found.low and found.high <= high:
            return "yes"
        return "no" if found.high < low or found.low > high else "open"

    @property
    def control_holds(self) -> bool:
        """Whether the whole interval of the control lies inside its bounds, with at least five seeds."""
        found = self.compare(self.control.measure, self.control.first, self.control.second)
        return found is not None and found.pairs >= _MIN_SEEDS and self.verdict(self.control) == "yes"


def write_cycles_page(results: str | Path, page: str | Path | None = None) -> Path:
    """Write the page of results, and return its path.

    Args:
        results (`str` or `Path`):
            A `results.json` of `trl-akd bench cycles`.
        page (`str` or `Path`, *optional*):
            The page, by default `results.md` beside the results.

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
        text = _page(CyclesResults(json.loads(path.read_text(encoding="utf-8"))))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`report` is {str(results)!r}, which is not the results of `trl-akd bench cycles` ({error!r}); give its "
            "results.json."
        ) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_text(target, text)
    return target


def _page(results: CyclesResults) -> str:
    sections = ["# Experiment on IterKD: results", _summary(results), _starts(results), _predictions(results)]
    if results.runs:
        sections += [_variants(results), _budgets(results), _cycles(results), _errors(results)]
    return "\n\n".join(sections) + "\n"


def _summary(results: CyclesResults) -> str:
    content = results.content
    commits = sorted({run["commit"] for run in content["runs"]})
    settings = ", ".join(f"{name} {value}" for name, value in content["settings"].items())
    uncommitted = any(commit.endswith("+") for commit in commits)
    doubts = ["are from several commits"] if len(commits) > 1 else []
    doubts += ["include code that was not committed (+)"] if uncommitted else []
    warning = f"**The runs {' and '.join(doubts)}, so they may not be comparable.** " if doubts else ""
    return (
        f"{len(content['runs'])} of {len(content['planned'])} runs, at commit {', '.join(commits)}: seeds "
        f"{', '.join(map(str, content['seeds']))}; {settings}.\n\n{warning}pass@1 is that of {content['num_samples']} "
        f"samples at temperature 1 for each of {content['num_tasks']} held-out tasks. Differences are paired by seed, "
        "with 95 % intervals by Student's t."
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
    return "## Students before\n\n" + table(["seed", *_HEADINGS.values(), ""], rows)


def _predictions(results: CyclesResults) -> str:
    verdict = (
        "The control holds." if results.control_holds else "The control does not hold, so other verdicts are withheld."
    )
    rows = [
        _prediction(results, name, comparison)
        for name, comparison in {"control": results.control, **results.predictions}.items()
    ]
    header = ["prediction", "difference", "measure", "predicted", "mean and 95 % interval", "right"]
    return f"## Predictions\n\n{verdict}\n\n{table(header, rows)}"


def _prediction(results: CyclesResults, name: str, comparison: Comparison) -> list[str]:
    bounds = [
        f"{words} {bound:+.2f}"
        for words, bound in (("at least", comparison.at_least), ("at most", comparison.at_most))
        if bound is not None
    ]
    return [
        name,
        f"{comparison.first} minus {comparison.second}",
        _HEADINGS[comparison.measure],
        ", ".join(bounds),
        format_interval(results.compare(comparison.measure, comparison.first, comparison.second)),
        results.verdict(comparison),
    ]


def _variants(results: CyclesResults) -> str:
    base = next(iter(results.variants))
    others = [name for name in results.variants if name != base]
    found = {name: results.compare("pass@1", name, base) for name in others}
    tested = [name for name, difference in found.items() if difference is not None]
    adjusted = dict(zip(tested, holm([found[name].p_value for name in tested]), strict=True))  # type: ignore[union-attr]
    rows = [
        [
            name,
            *(_mean(results, name, measure) for measure in CYCLES_MEASURES),
            format_interval(found.get(name)),
            format_p_value(adjusted.get(name)),
        ]
        for name in results.variants
    ]
    header = ["variant", *_HEADINGS.values(), f"pass@1 minus {base}", "p (Holm)"]
    return f"## Students after\n\n{table(header, rows)}"


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
    return f"## Budgets\n\nMeans over seeds.\n\n{table(header, rows)}"


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
    return f"## Cycles\n\n{table(header, rows)}"


_LEVELS = ("easy", "medium", "hard")


def _greedy_by_cycle(run: Mapping[str, Any]) -> list[float]:
    return [cycle["greedy"] for cycle in run["cycles"] if cycle["greedy"] is not None]


def _errors(results: CyclesResults) -> str:
    starts = list({run["seed"]: run["start"] for run in results.runs}.values())
    columns = {"before": _mean_errors(starts)}
    columns |= {name: _mean_errors(results.at(name)) for name in results.variants}
    totals: dict[str, float] = {}
    for errors in columns.values():
        for error, share in errors.items():
            totals[error] = totals.get(error, 0.0) + share
    common = sorted(totals, key=lambda error: (-totals[error], error))[:_MAX_ERRORS]
    rows = [
        [
            name,
            *(format_number(errors.get(error, 0.0)) for error in common),
            format_number(sum(share for error, share in errors.items() if error not in common)),
        ]
        for name, errors in columns.items()
    ]
    return f"## Error classes\n\nShares of the samples.\n\n{table(['student', *common, 'other'], rows)}"


def _mean_errors(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = sorted({name for entry in found for name in entry["measures"]["errors"]})
    return {name: fmean(entry["measures"]["errors"].get(name, 0.0) for entry in found) for name in names}


def _mean(results: CyclesResults, variant: str, measure: str) -> str:
    values = results.by_seed(variant, measure)
    found = mean_over_seeds(values)
    if found is None:
        return format_number(next(iter(values.values()), None))
    return f"{found.difference:.3f} ± {found.difference - found.low:.3f}"
