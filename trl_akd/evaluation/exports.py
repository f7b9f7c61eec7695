"""Results as other tools read them: `eval_results.json`, with the keys of EvalPlus and lm-evaluation-harness."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

from ..execution import ExecutionResult
from ..files import replace_text
from .verdicts import Verdict

__all__ = ["EVAL_RESULTS", "write_eval_results"]

EVAL_RESULTS = "eval_results.json"
_STATUSES = {"passed": "pass", "failed": "fail", "timed_out": "timeout"}


def write_eval_results(
    folder: Path, results: Mapping[str, Any], verdicts: Sequence[Verdict], base_verdicts: Sequence[Verdict] = ()
) -> None:
    """Write `eval_results.json`.

    - EvalPlus: `date`, `hash`, `eval` (by task, a list of `solution`, `base_status` and `plus_status`) and `pass_at_k`
      (`base` and, where the benchmark has more tests than its base, `plus`: both passed). Programs that could not be
      judged have the status `None`.
    - lm-evaluation-harness: `results` (by task, `pass@k,none` and `pass@k_stderr,none`), `n-samples` and `model_name`.

    Other keys of a file that is there already, such as those that a trainer wrote, are kept.

    Args:
        folder (`Path`):
            Folder to write into.
        results (`Mapping`):
            What `results.json` holds.
        verdicts (`Sequence[Verdict]`):
            A verdict per sample.
        base_verdicts (`Sequence[Verdict]`, *optional*):
            Verdicts on the same samples by the base tests, where the benchmark tells them from all tests.
    """
    name = results["benchmark"]["name"]
    scores = _scores(results["metrics"])
    found = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "hash": results["benchmark"]["fingerprint"],
        "eval": _by_task(name, verdicts, base_verdicts),
        "pass_at_k": {"base": _scores(results["base"]), "plus": scores} if base_verdicts else {"base": scores},
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


def _scores(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key.startswith("pass@") and "_" not in key}


def _with_errors(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return scores and their standard errors, half the interval divided by its number of standard deviations."""
    deviations = NormalDist().inv_cdf(0.5 + metrics["confidence"] / 2)
    found: dict[str, float] = {}
    for key, value in _scores(metrics).items():
        found[f"{key},none"] = value
        found[f"{key}_stderr,none"] = (metrics[f"{key}_high"] - metrics[f"{key}_low"]) / 2 / deviations
    return found


def _kept(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
