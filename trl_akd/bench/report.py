"""Results of the benchmark with real models, and their page."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from ..metrics.statistics import PairedMean, accuracy_loss
from .config import COSTS, ModelPrediction
from .pages import (
    ExperimentResults,
    Page,
    adjust_p_values,
    describe_predictions,
    describe_progress,
    difference_over_seeds,
    format_difference,
    format_mean,
    format_p_value,
    format_settings,
    predictions_table,
    table,
)
from .runs import MODELS_FORMAT

__all__ = ["MODELS_PAGE", "ModelsResults"]

_SCORE = "pass@1"
_BESIDE_SCORES = ("_low", "_high", "_tasks")
_UNITS = {"seconds": "s", "peak_memory_mib": "MiB"}


class ModelsResults(ExperimentResults[ModelPrediction]):
    """Finished runs of the benchmark, by pair, rule and seed.

    Args:
        content (`Mapping`):
            Content of `results.json`.

    Raises:
        ValueError: If it has another format, or a score that is not finite.
    """

    format = MODELS_FORMAT
    place = ("pair", "rule", "seed")
    recorded = ("predictions",)

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.predictions = {name: ModelPrediction(**entry) for name, entry in content["predictions"].items()}
        self.reference: str = content["reference"]

    def rules(self, pair: str) -> list[str]:
        """Return the models before training and the rules with finished runs of a pair, in the order of the recipe."""
        return [rule for rule in (*self.content["before"], *self.content["rules"]) if self.at(pair, rule)]

    def at(self, pair: str, rule: str) -> list[Mapping[str, Any]]:
        """Return the runs of a rule with a pair, one per evaluated model.

        A model without training that is evaluated greedily has a single run, which all seeds share.
        """
        runs = {run["key"]: run for run in reversed(self.runs) if (run["pair"], run["rule"]) == (pair, rule)}
        return list(reversed(runs.values()))

    def by_seed(self, pair: str, rule: str, benchmark: str | None, measure: str) -> dict[int, float]:
        """Return the value of a score or a cost for each seed with a run of its own.

        Costs are those of runs that were not interrupted.
        """
        return {run["seed"]: value for run, value in self._values(self.at(pair, rule), benchmark, measure)}

    def compare(
        self, pair: str, benchmark: str | None, measure: str, first: str, second: str
    ) -> tuple[dict[int, float], dict[int, float]]:
        """Return the values of two rules for the seeds that both have.

        Seeds that share the runs of both, as for two models without training, count once.
        """
        runs = [run for run in self.runs if run["pair"] == pair]
        values: list[dict[int, tuple[str, float]]] = [
            {
                run["seed"]: (run["key"], value)
                for run, value in self._values([run for run in runs if run["rule"] == rule], benchmark, measure)
            }
            for rule in (first, second)
        ]
        seeds: dict[tuple[str, str], int] = {}
        for seed, (key, _) in values[0].items():
            if seed in values[1]:
                seeds.setdefault((key, values[1][seed][0]), seed)
        found, other = ({seed: each[seed][1] for seed in seeds.values()} for each in values)
        return found, other

    def found(self, prediction: ModelPrediction) -> PairedMean | None:
        """Return the mean difference that a prediction is about."""
        names = (prediction.benchmark, prediction.measure, prediction.first, prediction.second)
        return difference_over_seeds(*self.compare(prediction.pair, *names))

    def is_needed(self, run: Mapping[str, Any], prediction: ModelPrediction) -> bool:
        """Return whether a run is one of the rules of a prediction, with its pair."""
        return run["pair"] == prediction.pair and run["rule"] in (prediction.first, prediction.second)

    def _values(
        self, runs: Sequence[Mapping[str, Any]], benchmark: str | None, measure: str
    ) -> list[tuple[Mapping[str, Any], float]]:
        if benchmark is None:
            found = [(run, run[measure]) for run in runs if not run["continued"]]
        else:
            found = [(run, run["measures"][benchmark].get(measure)) for run in runs]
        return [(run, value) for run, value in found if value is not None]


def _sections(content: Mapping[str, Any], prefix: str) -> tuple[list[str], dict[str, str]]:
    """Return the texts of a file of results, which have no figures."""
    results = ModelsResults(content)
    pairs = [_pair(results, pair) for pair in content["pairs"] if results.rules(pair)]
    return [_summary(results), _predictions(results), *pairs, _costs(results), _setup(results)], {}


MODELS_PAGE = Page("Benchmark with real models: results", "trl-akd bench models", _sections)
"""Page of the results of `trl-akd bench models`."""


def _summary(results: ModelsResults) -> str:
    devices = sorted({run["device"] for run in results.runs})
    versions = sorted({_versions(run) for run in results.runs})
    several = " **The runs are from several devices or versions.**" if len(devices) > 1 or len(versions) > 1 else ""
    intervals = (
        "Rules of a seed are paired; ± and brackets are 95 % intervals by Student's t over seeds."
        if len(results.content["seeds"]) > 1
        else "**With a single seed there are no intervals over seeds, and differences may be chance.** The results of "
        "each evaluation have intervals over problems."
    )
    made = f" Device: {'; '.join(devices)}. Versions: {'; '.join(versions)}." if devices else ""
    return (
        f"{describe_progress(results.content)}{made}{several} {intervals} *Accuracy loss* is that of the mean "
        f"{_SCORE} relative to the teacher's."
    )


def _versions(run: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in run["versions"].items())


def _predictions(results: ModelsResults) -> str:
    columns = {
        "pair": lambda prediction: prediction.pair,
        "difference": lambda prediction: f"{prediction.first} minus {prediction.second}",
        "measure": _quantity,
    }
    listed = predictions_table(results, results.predictions, columns)
    return f"### Predictions\n\n{describe_predictions(results)}\n\n{listed}"


def _quantity(prediction: ModelPrediction) -> str:
    if prediction.benchmark is None:
        return f"training, {_UNITS[prediction.measure]}"
    return f"{prediction.benchmark}, {prediction.measure}"


def _pair(results: ModelsResults, pair: str) -> str:
    benchmarks = [name for name in results.content["benchmarks"] if _scores(results, pair, name)]
    rules = results.rules(pair)
    compared = [rule for rule in rules if rule != results.reference] if results.reference in rules else []
    differences = {
        (benchmark, rule): results.compare(pair, benchmark, _SCORE, rule, results.reference)
        for benchmark in benchmarks
        for rule in compared
    }
    tests = {key: difference_over_seeds(*values) for key, values in differences.items()}
    p_values = adjust_p_values(tests)
    parts = [f"### {pair}"]
    if p_values:
        parts.append(f"p-values are by Holm's method over the {len(p_values)} tests of this section.")
    for benchmark in benchmarks:
        scores = _scores(results, pair, benchmark)
        teacher = _mean(results.by_seed(pair, "teacher", benchmark, _SCORE))
        rows = []
        for rule in rules:
            key = (benchmark, rule)
            values = {score: results.by_seed(pair, rule, benchmark, score) for score in scores}
            rows.append(
                [
                    rule,
                    str(len(values[_SCORE])),
                    *(format_mean(found) for found in values.values()),
                    *([] if teacher is None else [_loss(rule, teacher, _mean(values[_SCORE]))]),
                    _difference(tests[key], *differences[key]) if key in tests else "",
                    format_p_value(p_values.get(key)),
                ]
            )
        loss = [] if teacher is None else ["accuracy loss"]
        header = ["rule", "runs", *scores, *loss, f"{_SCORE}, minus {results.reference}", "p"]
        problems = _first_run(results, pair, benchmark)["measures"][benchmark]["problems"]
        parts.append(f"{benchmark}, {problems} problems:\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def _scores(results: ModelsResults, pair: str, benchmark: str) -> list[str]:
    """Return the names of the scores on a benchmark, without those of their intervals over problems."""
    run = _first_run(results, pair, benchmark)
    return [name for name in run["measures"][benchmark] if name != "problems" and not name.endswith(_BESIDE_SCORES)]


def _first_run(results: ModelsResults, pair: str, benchmark: str) -> Mapping[str, Any]:
    return next(run for run in results.runs if run["pair"] == pair and benchmark in run["measures"])


def _mean(values: Mapping[int, float]) -> float | None:
    return fmean(values.values()) if values else None


def _loss(rule: str, teacher: float, mean: float | None) -> str:
    return "" if rule == "teacher" or teacher <= 0 or mean is None else f"{accuracy_loss(teacher, mean):.1%}"


def _difference(test: PairedMean | None, first: Mapping[int, float], second: Mapping[int, float]) -> str:
    """Return a difference with its interval, or without one for a single seed."""
    if test is None and first:
        [seed] = first
        return f"{first[seed] - second[seed]:+.3f}"
    return format_difference(test)


def _costs(results: ModelsResults) -> str:
    rows = []
    for pair in results.content["pairs"]:
        reference = [_median(results.by_seed(pair, results.reference, None, cost)) for cost in COSTS]
        for rule in results.rules(pair):
            runs = [run for run in results.at(pair, rule) if run["seconds"] is not None]
            if not runs:
                continue
            cells = []
            for cost, base in zip(COSTS, reference, strict=True):
                value = _median(results.by_seed(pair, rule, None, cost))
                cells += [_number(value, "{:.0f}"), _number(value / base if value and base else None, "{:.2f}")]
            continued = sum(run["continued"] for run in runs)
            rows.append([pair, rule, str(len(runs) - continued), *cells, str(continued or "")])
    header = ["pair", "rule", "runs", "training, s", f"/ {results.reference}", "peak memory, MiB"]
    header += [f"/ {results.reference}", "interrupted runs, left out"]
    return (
        "### Cost\n\nMedians over runs. Seconds are those of the whole training command, which also loads models and "
        "data. Peak memory is that of the main process: allocated on its GPU, or resident on a CPU. IterKD does not "
        f"report it.\n\n{table(header, rows)}"
    )


def _median(values: Mapping[int, float]) -> float | None:
    return median(values.values()) if values else None


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _setup(results: ModelsResults) -> str:
    content = results.content
    parts = ["### Settings", f"Method: {content['method']}. Seeds: {', '.join(map(str, content['seeds']))}."]
    for name in ("common", "evaluate"):
        parts.append(f"`{name}`: {format_settings(content[name])}.")
    for name in ("pair", "rule", "benchmark"):
        rows = [[key, format_settings(entry)] for key, entry in content[f"{name}s"].items()]
        parts.append(table([name, "fields"], rows))
    return "\n\n".join(parts)
