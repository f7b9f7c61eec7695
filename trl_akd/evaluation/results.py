"""Results of an evaluation as JSON, with all settings that they depend on, and in the formats of other tools."""

import json
import platform
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

from .. import __version__
from ..execution import ExecutionResult
from ..hub.private import public_settings
from ..ledger import replace_text
from ..metrics.taxonomy import error_table, is_tests_own_error
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
    verdicts: Sequence[Verdict],
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
        verdicts (`Sequence[Verdict]`):
            Verdicts, at least one per problem.
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
        RuntimeError: If more than 1 % of the programs have infrastructure errors.
    """
    check_verdicts((f"of the problem {verdict.sample.task_id!r}", verdict.result) for verdict in verdicts)
    tasks = {problem.task_id: {"samples": 0, "correct": 0} for problem in benchmark.problems}
    for verdict in verdicts:
        task = tasks[verdict.sample.task_id]
        task["samples"] += verdict.result.status != "infra_error"
        task["correct"] += verdict.result.passed
    return {
        "benchmark": benchmark_facts(benchmark),
        "metrics": _scores(tasks.values(), k, confidence)
        | {"confidence": confidence}
        | ({"test_case_average": _test_case_average(verdicts)} if all_tests else {}),
        "samples": _counts(benchmark, verdicts),
        "errors": error_table(verdict.label for verdict in verdicts).as_dict(),
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
    replace_text(folder / RESULTS, json.dumps({**results, "versions": _versions()}, indent=2) + "\n")


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


def _test_case_average(verdicts: Sequence[Verdict]) -> float:
    """Return the fraction of tests passed, averaged over problems, as in APPS's harness."""
    shares: dict[str, list[float]] = {}
    for verdict in verdicts:
        if verdict.result.status != "infra_error":
            share = verdict.result.tests_passed / verdict.result.tests_total
            shares.setdefault(verdict.sample.task_id, []).append(share)
    return fmean(fmean(several) for several in shares.values())


def _by_difficulty(
    benchmark: Benchmark, tasks: Mapping[str, Mapping[str, int]], k: Sequence[int], confidence: float
) -> dict[str, dict[str, float]]:
    levels = {problem.difficulty for problem in benchmark.problems if problem.difficulty is not None}
    return {
        level: _scores([tasks[p.task_id] for p in benchmark.problems if p.difficulty == level], k, confidence)
        for level in sorted(levels)
    }


def _counts(benchmark: Benchmark, verdicts: Sequence[Verdict]) -> dict[str, int]:
    entry_points = {problem.task_id: problem.entry_point for problem in benchmark.problems}
    statuses = [verdict.result.status for verdict in verdicts]
    return {
        "samples": len(verdicts),
        **{status: statuses.count(status) for status in ("passed", "failed", "timed_out", "infra_error")},
        "truncated": sum(verdict.sample.truncated for verdict in verdicts),
        "empty": sum(verdict.sample.empty for verdict in verdicts),
        "tests_own_error": sum(
            is_tests_own_error(verdict.result, entry_points[verdict.sample.task_id]) for verdict in verdicts
        ),
    }


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "trl")
    return {"trl_akd": __version__, "python": platform.python_version()} | {name: version(name) for name in packages}


EVAL_RESULTS = "eval_results.json"
_STATUSES = {"passed": "pass", "failed": "fail", "timed_out": "timeout"}


def write_eval_results(
    folder: Path, results: Mapping[str, Any], verdicts: Sequence[Verdict], base_verdicts: Sequence[Verdict] = ()
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
        "eval": _by_task(name, verdicts, base_verdicts),
        "pass_at_k": {"base": _without_bounds(results["base"]), "plus": scores} if base_verdicts else {"base": scores},
        "results": {name: {"alias": name} | _with_errors(results["metrics"])},
        "n-samples": {name: {"original": results["benchmark"]["problems"], "effective": len(results["tasks"])}},
        "higher_is_better": {name: dict.fromkeys(scores, True)},
        "model_name": results["model"]["name"],
    }
    path = folder / EVAL_RESULTS
    replace_text(path, json.dumps({**_kept(path), **found}, indent=2) + "\n")


def _by_task(name: str, verdicts: Sequence[Verdict], base_verdicts: Sequence[Verdict]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for index, verdict in enumerate(verdicts):
        task_id = verdict.sample.task_id
        if name.startswith("mbpp") and task_id.isdecimal():
            task_id = f"Mbpp/{task_id}"  # as EvalPlus names MBPP's problems
        status = _status(verdict.result)
        row: dict[str, Any] = {
            "task_id": task_id,
            "solution": verdict.sample.solution,
            "base_status": _status(base_verdicts[index].result) if base_verdicts else status,
            "plus_status": status if base_verdicts else None,
            "base_fail_tests": [],
            "plus_fail_tests": [],
        }
        found.setdefault(task_id, []).append(row)
    return found


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
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
