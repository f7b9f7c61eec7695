"""Results of experiments and their pages: verdicts on predictions, tables, and the files that are read and written."""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, ClassVar, Generic, TypeVar

from ..ledger import replace_text
from ..metrics.statistics import PairedMean, holm, paired_mean
from .fields import Bounds

__all__ = [
    "COSTS",
    "SIGNIFICANT",
    "ExperimentResults",
    "Page",
    "adjust_p_values",
    "common_errors",
    "cost_cells",
    "describe_predictions",
    "describe_progress",
    "difference_over_seeds",
    "format_difference",
    "format_mean",
    "format_number",
    "format_p_value",
    "format_settings",
    "mean_errors",
    "mean_over_seeds",
    "predictions_table",
    "table",
]

SIGNIFICANT = 0.05
COSTS = ("training, s", "measuring, s", "CPU time of both, s", "peak memory, MiB")
"""Columns of `cost_cells`."""

_VERDICTS = ("right", "wrong", "open", "withheld", "too few seeds", "no interval", "runs are missing")
_Bounds = TypeVar("_Bounds", bound=Bounds)
_Key = TypeVar("_Key", bound=Hashable)


class ExperimentResults(ABC, Generic[_Bounds]):
    """Finished runs of an experiment, and verdicts on its predictions.

    Args:
        content (`Mapping`):
            Content of a file of results.

    Raises:
        ValueError: If it has another format, or a measure that is not finite.
    """

    format: ClassVar[int]
    """Format that is read."""
    place: ClassVar[tuple[str, ...]]
    """Keys by which runs differ."""
    recorded: ClassVar[tuple[str, ...]]
    """Parts of the content that were recorded before the runs."""
    min_seeds: ClassVar[int] = 2
    """Minimum number of seeds of a verdict."""

    predictions: Mapping[str, _Bounds]

    def __init__(self, content: Mapping[str, Any]) -> None:
        if content["format"] != self.format:
            raise ValueError(f"its format is {content['format']}, and this version reads {self.format}; run it again")
        self.content = content
        self.runs: list[Mapping[str, Any]] = [run for run in content["runs"] if run.get("started", True)]
        for run in self.runs:
            for name, value in _numbers(run["measures"]):
                if not math.isfinite(value):
                    place = ", ".join(f"{key} {run[key]}" for key in self.place)
                    raise ValueError(f"{name} is {value} in the run of {place}")

    @abstractmethod
    def found(self, prediction: _Bounds) -> PairedMean | None:
        """Return the mean that a prediction is about, `None` if it cannot be estimated."""

    @abstractmethod
    def is_needed(self, run: Mapping[str, Any], prediction: _Bounds) -> bool:
        """Return whether a verdict on a prediction depends on a run."""

    def is_withheld(self, prediction: _Bounds) -> bool:
        """Return whether there is no verdict on a prediction, as the positive control does not hold."""
        return False

    def num_missing(self, is_needed: Callable[[Mapping[str, Any]], bool]) -> int:
        """Return the number of planned runs of some kind that are not finished."""
        finished = {tuple(run[key] for key in self.place) for run in self.content["runs"]}
        return sum(
            is_needed(run) and tuple(run[key] for key in self.place) not in finished for run in self.content["planned"]
        )

    def verdict(self, prediction: _Bounds) -> str:
        """Return the verdict on a prediction: `"right"` or `"wrong"` if its interval decides, and else `"open"`.

        There is none, which the text says, while runs are missing, while the positive control does not hold, and if
        there are too few seeds.
        """
        if self.num_missing(lambda run: self.is_needed(run, prediction)):
            return "runs are missing"
        if self.is_withheld(prediction):
            return "withheld"
        found = self.found(prediction)
        if found is None:
            return "no interval"
        return "too few seeds" if found.pairs < self.min_seeds else prediction.verdict(found)


def _numbers(measures: Mapping[str, Any], *names: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers in nested mappings with the names that lead to them."""
    for name, value in measures.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, *names, name)
        else:
            yield " ".join((*names, name)), value


@dataclass(frozen=True)
class Page:
    """A page of results in Markdown, a function of the files of results and of an introduction alone.

    Args:
        title (`str`):
            Title.
        command (`str`):
            Command that writes the results.
        sections (`Callable`):
            Returns the texts of a file of results, and their figures by path relative to the page. Its arguments are
            the content of the file, and the beginning of the paths.
        figure_kinds (`Sequence[str]`, *optional*, defaults to `()`):
            Kinds of figures. The paths begin as given, followed by a kind and `-`.
    """

    title: str
    command: str
    sections: Callable[[Mapping[str, Any], str], tuple[Sequence[str], Mapping[str, str]]]
    figure_kinds: Sequence[str] = ()

    def write(
        self,
        results: Sequence[str | Path],
        page: str | Path | None = None,
        introduction: str | Path | None = None,
    ) -> Path:
        """Write the page with its figures, and return its path.

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
        texts = [f"# {self.title}"]
        if introduction is not None:
            source = Path(introduction).expanduser()
            if source.resolve() == target.resolve():
                raise ValueError(
                    f"`introduction` is {str(source)!r}, which the page would replace; give another file."
                )
            texts.append(_read("introduction", source, "a Markdown file").strip())
        figures: dict[str, str] = {}
        for path in paths:
            text = _read("report", path, "a results.json")
            try:
                found, drawn = self.sections(json.loads(text), f"{target.stem}/{path.stem}")
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"`report` is {str(path)!r}, which is not the results of `{self.command}` ({error!r}); give its "
                    "results.json."
                ) from error
            texts += [f"## {path.stem}", *found]
            figures |= drawn
        kept = {target.parent / name for name in figures}
        for path in paths:
            for kind in self.figure_kinds:
                for old in target.with_suffix("").glob(f"{path.stem}-{kind}-*.svg"):
                    if old not in kept:
                        old.unlink()
        for name, figure in figures.items():
            replace_text(target.parent / name, figure)
        replace_text(target, "\n\n".join(texts) + "\n")
        return target


def _read(option: str, path: Path, expected: str) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"`{option}` is {str(path)!r}, but there is no such file; give {expected}.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{option}` is {str(path)!r}, which is not text in UTF-8; give {expected}.") from error


def describe_progress(content: Mapping[str, Any]) -> str:
    """Return how many runs are finished, at which commits, and a warning if they may not be comparable."""
    made = [each for run in content["runs"] for each in (run, run.get("start", run))]
    commits = sorted({each["commit"] for each in made})
    doubts = ["are from several commits"] if len(commits) > 1 else []
    if any(commit.endswith("+") for commit in commits):
        doubts.append("include code that was not committed (+)")
    warning = f" **The runs {' and '.join(doubts)}, so they may not be comparable.**" if doubts else ""
    at = f", at commit {', '.join(commits)}" if commits else ""
    return (
        f"{len(content['runs'])} of {len(content['planned'])} runs are finished, with {len(content['seeds'])} "
        f"seeds{at}.{warning}"
    )


def describe_predictions(results: ExperimentResults[Any]) -> str:
    """Return when predictions were recorded, what verdicts mean, and how many predictions have each."""
    frozen = {name: results.content[name] for name in results.recorded}
    mark = hashlib.sha256(json.dumps(frozen, sort_keys=True).encode()).hexdigest()[:16]
    *others, last = results.recorded
    names = f"{', '.join(others)} and {last}" if others else last
    early = results.content["finished_before"]
    total = len(results.content["planned"])
    when = f"after {early} of the {total} runs and before the others" if early else "before the runs"
    verdicts = Counter(map(results.verdict, results.predictions.values()))
    counts = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in _VERDICTS if verdicts[verdict])
    return (
        f"{names.capitalize()} were recorded {when}, and others have been refused since (SHA-256 {mark}). A "
        "prediction is right or wrong if the whole interval lies inside or outside the bounds, and otherwise open. Of "
        f"{len(results.predictions)}: {counts}."
    )


def predictions_table(
    results: ExperimentResults[_Bounds],
    predictions: Mapping[str, _Bounds],
    columns: Mapping[str, Callable[[_Bounds], str]],
    p_values: Mapping[str, float] | None = None,
) -> str:
    """Return the table of predictions, with what was found and the verdicts.

    Args:
        results (`ExperimentResults`):
            Results.
        predictions (`Mapping`):
            Predictions by name.
        columns (`Mapping`):
            Columns that describe a prediction, by heading.
        p_values (`Mapping[str, float]`, *optional*):
            Adjusted p-values by name of a prediction, for a column of their own.
    """
    rows = []
    for name, prediction in predictions.items():
        found = results.found(prediction)
        rows.append(
            [
                name,
                *(describe(prediction) for describe in columns.values()),
                prediction.describe_bounds(),
                format_difference(found),
                "" if found is None else str(found.pairs),
                *([] if p_values is None else [format_p_value(p_values.get(name))]),
                results.verdict(prediction),
            ]
        )
    tested = [] if p_values is None else ["p (Holm)"]
    return table(
        ["prediction", *columns, "predicted", "found [95 % interval]", "seeds", *tested, "verdict"],
        rows,
    )


def mean_over_seeds(values: Mapping[int, float]) -> PairedMean | None:
    """Return the mean of values by seed, such as differences, with its interval; `None` for fewer than two."""
    found = list(values.values())
    return paired_mean(found, [0.0] * len(found)) if len(found) >= 2 else None


def difference_over_seeds(first: Mapping[int, float], second: Mapping[int, float]) -> PairedMean | None:
    """Return the mean of the first values minus the second, over the seeds of both; `None` for fewer than two."""
    return mean_over_seeds({seed: first[seed] - second[seed] for seed in first if seed in second})


def adjust_p_values(tests: Mapping[_Key, PairedMean | None]) -> dict[_Key, float]:
    """Return the p-values of tests by Holm's method over all of them."""
    family = {key: test.p_value for key, test in tests.items() if test is not None}
    return dict(zip(family, holm(list(family.values())), strict=True))


def mean_errors(measures: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean share of each error class over measures of several runs."""
    names = sorted({name for entry in measures for name in entry["errors"]})
    return {name: fmean(entry["errors"].get(name, 0.0) for entry in measures) for name in names}


def common_errors(shares: Iterable[Mapping[str, float]], number: int) -> list[str]:
    """Return the most common error classes, the most common one first."""
    totals: dict[str, float] = {}
    for errors in shares:
        for name, share in errors.items():
            totals[name] = totals.get(name, 0.0) + share
    return sorted(totals, key=lambda name: (-totals[name], name))[:number]


def cost_cells(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the medians of the costs of runs, for the columns `COSTS`."""
    seconds = [f"{median(run['seconds'][part] for run in runs):.1f}" for part in ("train", "measure", "cpu")]
    return [*seconds, f"{median(run['peak_memory_mb'] for run in runs):.0f}"]


def format_difference(found: PairedMean | None) -> str:
    """Return a difference with its interval."""
    return "" if found is None else f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def format_mean(values: Mapping[int, float]) -> str:
    """Return the mean of values by seed with half the width of its interval, if there are at least two."""
    found = mean_over_seeds(values)
    if found is None:
        return format_number(next(iter(values.values()), None))
    return f"{found.difference:.3f} ± {found.difference - found.low:.3f}"


def format_p_value(p_value: float | None) -> str:
    """Return a p-value, in bold if it is significant."""
    if p_value is None:
        return ""
    text = "< .001" if p_value < 0.001 else f"{p_value:.3f}"
    return f"**{text}**" if p_value < SIGNIFICANT else text


def format_number(value: float | None) -> str:
    """Return a number with three decimals."""
    return "" if value is None else f"{value:.3f}"


def format_settings(entry: Mapping[str, Any] | None, without: Sequence[str] = ()) -> str:
    """Return settings as a recipe gives them, less some keys."""
    chosen = {key: value for key, value in (entry or {}).items() if key not in without}
    return ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in chosen.items()) or "defaults"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
