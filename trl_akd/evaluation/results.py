"""Results of an evaluation as JSON, with all settings that they depend on, and in the formats of other tools."""

import json
import platform
import shlex
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from importlib.metadata import version
from itertools import chain, groupby, repeat
from operator import itemgetter
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any, get_args

from .. import __version__
from ..execution import ExecutionResult
from ..execution.result import Status
from ..hub.private import public_settings
from ..ledger import replace_text
from ..metrics.taxonomy import ErrorLabel, error_table, is_tests_own_error
from ..metrics.verdicts import check_verdicts, scores
from .benchmarks import Benchmark
from .evaluation_config import EvaluationConfig
from .verdicts import Verdict

__all__ = [
    "EVAL_RESULTS",
    "RESULTS",
    "benchmark_facts",
    "evaluation_command",
    "evaluation_folder",
    "read_results",
    "summarize",
    "write_eval_results",
    "write_results",
]

RESULTS = "results.json"


def summarize(
    benchmark: Benchmark,
    verdicts: Iterable[Verdict],
    k: Sequence[int],
    *,
    confidence: float = 0.95,
    all_tests: bool = False,
) -> dict[str, Any]:
    """Compute scores and counts from verdicts.

    Programs with infrastructure errors are excluded from the scores; their number is reported.

    Args:
        benchmark (`Benchmark`):
            Problems.
        verdicts (`Iterable[Verdict]`):
            Verdicts, at least one per problem. They are read once.
        k (`Sequence[int]`):
            Values of k for pass@k.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence level of the intervals.
        all_tests (`bool`, *optional*, defaults to `False`):
            Whether all tests of all programs were run; adds `test_case_average` to `metrics`.

    Returns:
        `dict`: `benchmark`, `metrics` (see [`scores`]), `samples` (counts), `errors` (rows of the error table),
        `tasks` (numbers of valid and of correct samples, by `task_id`) and `difficulties` (scores by difficulty, if
        any).

    Raises:
        ValueError: If a test is not a Python program.
        UntestedProgramsError: If more than 1 % of the programs have infrastructure errors.
    """
    entry_points = {problem.task_id: problem.entry_point for problem in benchmark.problems}
    tasks = {task_id: {"samples": 0, "correct": 0} for task_id in entry_points}
    counts = dict.fromkeys(("samples", *get_args(Status), "truncated", "empty", "tests_own_error"), 0)
    labels: Counter[ErrorLabel] = Counter()
    shares: dict[str, array[float]] = {}

    def counted() -> Iterator[tuple[str, ExecutionResult]]:
        """Count each verdict in a single pass, as reading them may take long."""
        for verdict in verdicts:
            sample, result = verdict.sample, verdict.result
            is_judged = result.status != "infra_error"
            tasks[sample.task_id]["samples"] += is_judged
            tasks[sample.task_id]["correct"] += result.passed
            counts["samples"] += 1
            counts[result.status] += 1
            counts["truncated"] += sample.truncated
            counts["empty"] += sample.empty
            counts["tests_own_error"] += is_tests_own_error(result, entry_points[sample.task_id])
            labels[verdict.label] += 1
            if all_tests and is_judged:
                shares.setdefault(sample.task_id, array("d")).append(result.tests_passed / result.tests_total)
            yield f"of the problem {sample.task_id!r}", result

    check_verdicts(counted())
    # The average over problems of the fraction of tests passed, as in APPS's harness.
    average = {"test_case_average": fmean(map(fmean, shares.values()))} if all_tests else {}
    return {
        "benchmark": benchmark_facts(benchmark),
        "metrics": _scores(tasks.values(), k, confidence) | {"confidence": confidence} | average,
        "samples": counts,
        "errors": error_table(labels.elements()).as_dict(),
        "difficulties": _by_difficulty(benchmark, tasks, k, confidence),
        "tasks": tasks,
    }


def benchmark_facts(benchmark: Benchmark) -> dict[str, Any]:
    """Return the section `benchmark` of the results."""
    return {
        "name": benchmark.name,
        "source": benchmark.source,
        "dataset": benchmark.dataset,
        "revision": benchmark.revision,
        "problems": len(benchmark.problems),
        "fingerprint": benchmark.fingerprint,
    }


def evaluation_folder(output_dir: str | Path, step: int) -> Path:
    """Return the folder of the evaluation at a step of a training run."""
    return Path(output_dir) / "evaluation" / f"step-{step}"


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write `results.json` atomically."""
    parts = json.JSONEncoder(indent=2).iterencode({**results, "versions": _versions()})
    replace_text(folder / RESULTS, chain(parts, ["\n"]))  # in parts, as there may be many problems


def read_results(folder: str | Path) -> dict[str, Any]:
    """Read the results that an evaluation wrote into a folder.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file was not written by an evaluation.
    """
    path = Path(folder) / RESULTS
    if not path.is_file():
        raise FileNotFoundError(f"There is no {RESULTS} in {str(folder)!r}; run `trl-akd evaluate` into it first.")
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for part in ("benchmark", "metrics", "tasks"):
            dict(results[part])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} was not written by `trl-akd evaluate`; run it again with this folder.") from error
    return results


def evaluation_command(results: Mapping[str, Any]) -> str | None:
    """Return the command of an evaluation, with the settings that differ from the defaults and without local folders.

    Returns `None` for an evaluation of other tools' samples, during training, or with plans.
    """
    settings, benchmark = results.get("generation") or {}, results["benchmark"]
    if "model" not in settings or "plans" in results:
        return None
    defaults = {field.name: field.default for field in fields(EvaluationConfig)} | {"k": [1]}
    known = benchmark["dataset"] is not None
    given = {
        "model_name_or_path": settings["model"],
        "benchmark": benchmark["name"] if known else benchmark["source"],
        "benchmark_path": None if benchmark["source"] == benchmark["dataset"] or not known else benchmark["source"],
        **{name: value for name, value in settings.items() if name in defaults},
        "num_samples": max(task["samples"] for task in results["tasks"].values()),
        "k": [int(name.removeprefix("pass@")) for name in _without_bounds(results["metrics"])],
    }
    flags = [
        f"--{name} {' '.join(shlex.quote(str(each)) for each in (value if isinstance(value, list) else [value]))}"
        for name, value in public_settings(given).items()
        if value is not None and value != defaults[name] and not isinstance(value, dict)
    ]
    return " ".join(["trl-akd evaluate", *flags, "--allow_code_execution"])


def _scores(tasks: Iterable[Mapping[str, int]], k: Sequence[int], confidence: float) -> dict[str, float]:
    counts = [(task["samples"], task["correct"]) for task in tasks]
    return scores([samples for samples, _ in counts], [correct for _, correct in counts], k, confidence)


def _by_difficulty(
    benchmark: Benchmark, tasks: Mapping[str, Mapping[str, int]], k: Sequence[int], confidence: float
) -> dict[str, dict[str, float]]:
    levels = {problem.difficulty for problem in benchmark.problems if problem.difficulty is not None}
    return {
        level: _scores([tasks[p.task_id] for p in benchmark.problems if p.difficulty == level], k, confidence)
        for level in sorted(levels)
    }


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "trl")
    return {"trl_akd": __version__, "python": platform.python_version()} | {name: version(name) for name in packages}


EVAL_RESULTS = "eval_results.json"
_STATUSES = {"passed": "pass", "failed": "fail", "timed_out": "timeout"}


def write_eval_results(
    folder: Path, results: Mapping[str, Any], verdicts: Iterable[Verdict], base_verdicts: Sequence[Verdict] = ()
) -> None:
    """Write `eval_results.json`.

    The file has the keys of EvalPlus (`date`, `hash`, `eval` with `solution`, `base_status` and `plus_status` by task,
    and `pass_at_k` with `base` and, if there are additional tests, `plus`) and of lm-evaluation-harness (`results`
    with `pass@k,none` and `pass@k_stderr,none` by task, `n-samples` and `model_name`). Programs with infrastructure
    errors have the status `None`. Other keys of an existing file, such as those of a trainer, are kept.
    """
    name = results["benchmark"]["name"]
    scores = _without_bounds(results["metrics"])
    found = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "hash": results["benchmark"]["fingerprint"],
        "eval": {},  # written one task at a time, because it has the programs
        "pass_at_k": {"base": _without_bounds(results["base"]), "plus": scores} if base_verdicts else {"base": scores},
        "results": {name: {"alias": name} | _with_errors(results["metrics"])},
        "n-samples": {name: {"original": results["benchmark"]["problems"], "effective": len(results["tasks"])}},
        "higher_is_better": {name: dict.fromkeys(scores, True)},
        "model_name": results["model"]["name"],
    }
    path = folder / EVAL_RESULTS
    before, after = json.dumps({**_kept(path), **found}, indent=2).split(f"{_EVAL}}}")
    tasks = _tasks(name, verdicts, base_verdicts)
    replace_text(path, chain([before, _EVAL], tasks, ["\n  }", after, "\n"]))


_EVAL = '\n  "eval": {'  # a line break and two spaces precede only the keys of the outermost object


def _tasks(name: str, verdicts: Iterable[Verdict], base_verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Yield the tasks of the section `eval` as JSON."""
    rows = map(partial(_eval_row, name), verdicts, base_verdicts or repeat(None))
    for number, (task_id, several) in enumerate(groupby(rows, key=itemgetter("task_id"))):
        text = json.dumps(list(several), indent=2).replace("\n", "\n    ")
        yield f"{',' if number else ''}\n    {json.dumps(task_id)}: {text}"


def _eval_row(name: str, verdict: Verdict, base: Verdict | None) -> dict[str, Any]:
    task_id, status = verdict.sample.task_id, _status(verdict.result)
    if name.startswith("mbpp") and task_id.isdecimal():
        task_id = f"Mbpp/{task_id}"  # as EvalPlus names MBPP's problems
    return {
        "task_id": task_id,
        "solution": verdict.sample.solution,
        "base_status": status if base is None else _status(base.result),
        "plus_status": None if base is None else status,
        "base_fail_tests": [],
        "plus_fail_tests": [],
    }


def _status(result: ExecutionResult) -> str | None:
    return _STATUSES.get(result.status)


def _without_bounds(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key.startswith("pass@") and "_" not in key}


def _with_errors(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return scores with their standard errors, computed from the confidence intervals."""
    deviations = NormalDist().inv_cdf(0.5 + metrics["confidence"] / 2)
    found: dict[str, float] = {}
    for key, value in _without_bounds(metrics).items():
        found[f"{key},none"] = value
        found[f"{key}_stderr,none"] = (metrics[f"{key}_high"] - metrics[f"{key}_low"]) / 2 / deviations
    return found


def _kept(path: Path) -> dict[str, Any]:
    """Return the keys of an existing file, without the programs, of which there may be many."""
    try:
        with open(path, encoding="utf-8") as file:
            kept = json.loads("".join(_without_eval(file)))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _without_eval(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a file as `write_eval_results` writes it, with an empty section `eval`."""
    lines = iter(lines)
    first, second = next(lines, ""), next(lines, "")
    is_ours = first == "{\n" and second.startswith('  "')
    for line in (lines := chain([first, second], lines)):
        if is_ours and line == f"{_EVAL[1:]}\n":
            end = next((line for line in lines if line.startswith("  }")), "")
            yield f"{_EVAL[1:]}{end.lstrip()}"
        else:
            yield line
