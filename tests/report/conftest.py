"""A folder with the files of a run, without training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trl_akd.evaluation.results import evaluation_folder
from trl_akd.hub.model_card import ModelCardContent, Provenance, write_run_facts

SOLUTION = "def double(x):\n    return x * 2\n"


def write_evaluation(folder: Path, name: str, verdicts: Mapping[str, tuple[str, str | None]], **row: Any) -> Path:
    """Write an evaluation with one sample per problem, from status and error type by problem."""
    passed = {task: status == "passed" for task, (status, _) in verdicts.items()}
    score = sum(passed.values()) / len(passed)
    errors = {"correct": sum(passed.values()), "wrong_answer": 0}
    for _, kind in verdicts.values():
        if kind is not None:
            errors[f"{kind}/all"] = errors.get(f"{kind}/all", 0) + 1
    results = {
        "model": {"name": name, "commit": None},
        "generation": {"temperature": 0.8, "model": "/data/models/student", "base_url": "http://me:word@host/v1"},
        "execution": {"isolation": "namespace", "timeout": 10.0},
        "benchmark": {
            **{"name": "humaneval", "source": "/data/humaneval.jsonl", "dataset": None, "revision": None},
            **{"problems": len(passed), "fingerprint": "abc"},
        },
        "metrics": {"pass@1": score, "pass@1_low": score / 2, "pass@1_high": 1.0, "confidence": 0.95},
        "samples": {"samples": len(passed), "empty": 0, "truncated": 0, "tests_own_error": 0, "infra_error": 0},
        "errors": errors,
        "difficulties": {},
        "tasks": {task: {"samples": 2, "correct": int(found)} for task, found in passed.items()},
        "versions": {"trl_akd": "0.1.0"},
    }
    samples, lines = [], []
    for task, (status, kind) in verdicts.items():
        samples.append({"task_id": task, "sample": 0, "solution": SOLUTION, "completion": SOLUTION, **row})
        label = {"error_type": kind, "cause": kind, "complete": kind is None}
        lines.append({"task_id": task, "sample": 0, "status": status, "message": "", "label": label})
    write(folder / "results.json", json.dumps(results))
    for file, rows in (("samples.jsonl", samples), ("verdicts.jsonl", lines)):
        write(folder / file, "".join(f"{json.dumps(each)}\n" for each in rows))
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_run(folder: Path, **facts: Any) -> Path:
    """Write the files of a run of AKD with two evaluations."""
    content = ModelCardContent(
        **{"method": "AKD", "model_name": "student-akd", "repository": "me/student-akd", "tags": []},
        **{
            "objective": {"beta_strategy": "akd"},
            "explanation": "Minimizes $$\\beta\\,\\mathrm{KL}(q\\,\\|\\,p)$$",
            **facts,
        },
    )
    provenance = Provenance(
        **{"student": "org/student", "student_revision": "c0ffee", "teacher": "/home/me/models/teacher"},
        **{"dataset": "org/data", "command": "trl-akd akd --config recipe.yaml"},
    )
    write_run_facts(folder, provenance, content)
    history = [
        {"step": step, "loss": 2.0 / (step + 1), "kd/forward_kl": 1.0, "kd/reverse_kl": 0.5, "kd/beta": 0.1 * step}
        for step in range(4)
    ]
    history += [{"step": step, "eval_loss": 1.0, "eval_pass@1": 0.5} for step in (0, 3)]
    write(folder / "trainer_state.json", json.dumps({"log_history": history, "global_step": 3}))
    write_evaluation(
        evaluation_folder(folder, 0), "run, step 0", {"a": ("failed", "NameError"), "b": ("failed", None)}
    )
    write_evaluation(
        evaluation_folder(folder, 3), "run, step 3", {"a": ("failed", "NameError"), "b": ("passed", None)}
    )
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")
