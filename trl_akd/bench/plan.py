"""Plan and execution of a benchmark with real models."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from ..evaluation.benchmarks import local_copy
from .config import ModelsConfig
from .fields import check_names
from .runner import check_distinct_runs, run_experiment
from .runs import MODELS_FORMAT, Command, Run, execute_in_turn

__all__ = ["Resolve", "plan", "run_models"]

Resolve: TypeAlias = Callable[[str, str | None, Mapping[str, Any]], tuple[Command, Mapping[str, Any]]]
"""Function that checks a command.

Its arguments are the name of the command, a recipe, and values that replace those of the recipe, where `None` removes
one. It returns the command and the value of every field, and raises a ValueError if the command refuses its values.
"""

_DEVICE = """
import platform, torch
if torch.accelerator.is_available():
    kind, number = torch.accelerator.current_accelerator().type, torch.accelerator.device_count()
    name = getattr(getattr(torch, kind), "get_device_name", lambda index: kind)(0)
    print(f"{number} x {name}")
else:
    print(f"CPU ({platform.machine()})")
"""


def plan(config: ModelsConfig, resolve: Resolve) -> list[Run]:
    """Return the runs of a benchmark, those of the first seed first.

    Args:
        config ([`ModelsConfig`]):
            Configuration.
        resolve (`Resolve`):
            Function that checks a command.

    Raises:
        ValueError: If a command refuses its fields, two rules are equal, or a prediction has an unknown measure.
        FileNotFoundError: If a recipe does not exist.
    """
    checked = [
        run
        for pair in config.mapping("pairs")
        for run in (
            *(_untrained(config, resolve, pair, role) for role in config.before),
            *(_trained(config, resolve, pair, rule) for rule in config.mapping("rules")),
        )
    ]
    runs = [run.with_seed(seed) for seed in config.seeds for run in checked]
    check_distinct_runs(runs, {"pair": "pairs", "rule": "rules"})
    _check_measures(config, runs)
    return runs


def _trained(config: ModelsConfig, resolve: Resolve, pair: str, rule: str) -> Run:
    fields = config.entry("rules", rule)
    method, evaluate = fields.pop("method", config.method), fields.pop("evaluate", None) or {}
    training, values = _training(config, resolve, pair, rule, method, fields)
    return Run(pair, rule, training, _evaluations(config, resolve, (pair, rule), evaluate, values))


def _untrained(config: ModelsConfig, resolve: Resolve, pair: str, role: str) -> Run:
    _, values = _training(config, resolve, pair, role, config.method, {})
    prefix = "teacher_model" if role == "teacher" else "model"
    model = values.get(f"{prefix}_name_or_path")
    if model is None:
        raise ValueError(
            f"`before` has {role!r}, but the recipe of the pair {pair!r} does not set `{prefix}_name_or_path`; leave "
            f"{role!r} out of `before`."
        )
    named = {"model_name_or_path": model, "model_revision": values.get(f"{prefix}_revision")}
    return Run(pair, role, None, _evaluations(config, resolve, (pair, role), named, values))


def _training(
    config: ModelsConfig, resolve: Resolve, pair: str, rule: str, method: str, fields: Mapping[str, Any]
) -> tuple[Command, Mapping[str, Any]]:
    own = config.entry("pairs", pair)
    recipe = own.pop("recipe", None)
    values = {**config.mapping("common"), **own, **fields, "output_dir": config.output_dir}
    return _resolve(resolve, f"pair {pair!r} with {rule!r}", method, recipe, values)


def _evaluations(
    config: ModelsConfig,
    resolve: Resolve,
    place: tuple[str, str],
    fields: Mapping[str, Any],
    training: Mapping[str, Any],
) -> dict[str, Command]:
    """Return the evaluations of a run by benchmark, with the prompt template of the training unless one is given."""
    found = {}
    for name in config.mapping("benchmarks"):
        values = {"benchmark": name, **config.mapping("evaluate"), **config.entry("benchmarks", name), **fields}
        if values.get("prompt_style") == "template":
            values.setdefault("prompt_template", training.get("prompt_template"))
        where = f"pair {place[0]!r} with {place[1]!r} on {name!r}"
        found[name], _ = _resolve(resolve, where, "evaluate", None, values)
    return found


def _resolve(
    resolve: Resolve, where: str, name: str, recipe: str | None, values: Mapping[str, Any]
) -> tuple[Command, Mapping[str, Any]]:
    try:
        return resolve(name, recipe, values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}, which `trl-akd {name}` refuses: {error}") from error


def _check_measures(config: ModelsConfig, runs: list[Run]) -> None:
    """Refuse predictions about scores that the evaluations do not compute."""
    for name, prediction in config.named_predictions().items():
        if prediction.benchmark is None:
            continue
        for run in runs:
            if run.pair == prediction.pair and run.rule in (prediction.first, prediction.second):
                values = run.evaluations[prediction.benchmark].values
                known = [f"pass@{k}" for k in values.get("k", [1])]
                known += [f"base {score}" for score in known if str(values["benchmark"]).endswith("_plus")]
                known += ["test_case_average"] if values.get("all_tests") else []
                check_names(f"predictions: {name}: measure", [prediction.measure], known)


def run_models(config: ModelsConfig, runs: Sequence[Run]) -> Path:
    """Execute the runs that are missing, and return the file of the results.

    Raises:
        PermissionError: If the user did not allow to run programs.
        FileNotFoundError: If a local copy of a benchmark does not exist.
        ValueError: If other predictions were recorded for these results.
        BlockingIOError: If another process writes to the folder.
        RuntimeError: If runs failed; others are kept.
    """
    _check_evaluations(runs, allow_code_execution=config.allow_code_execution)
    folder = Path(config.output_dir)
    names = ("method", "pairs", "common", "rules", "benchmarks", "evaluate", "before", "seeds")
    return run_experiment(
        runs,
        folder,
        partial(execute_in_turn, output_dir=folder, device=_device(), keep_students=config.keep_students),
        asked={"predictions": config.predictions},
        content={
            "format": MODELS_FORMAT,
            **{name: getattr(config, name) for name in names},
            "reference": config.reference or next(iter(config.mapping("rules"))),
        },
        name=config.name,
    )


def _check_evaluations(runs: Sequence[Run], *, allow_code_execution: bool) -> None:
    """Check that programs may run and that local benchmarks exist."""
    if not allow_code_execution and os.environ.get("HF_ALLOW_CODE_EVAL") != "1":
        raise PermissionError(
            "the evaluations run programs that models wrote, which must be allowed: give `--allow_code_execution`, or "
            "set HF_ALLOW_CODE_EVAL=1."
        )
    for values in (command.values for run in runs for command in run.evaluations.values()):
        path = local_copy(values["benchmark"], values.get("benchmark_path"))
        if path is not None and not path.exists():
            raise FileNotFoundError(f"the benchmark {str(path)!r} does not exist; check the path.")


def _device() -> str:
    """Return number and name of the devices, found in another process, so that this one uses none of their memory."""
    found = subprocess.run([sys.executable, "-c", _DEVICE], capture_output=True, text=True, check=True)
    return found.stdout.strip().splitlines()[-1]
