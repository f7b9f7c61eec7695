"""Runs of the benchmark: a training and its evaluations per pair, rule and seed, by the commands of `trl-akd`.

The student of a training, its evaluations and the whole run are each identified by a hash of their settings, so that
an interrupted benchmark continues, and another benchmark is evaluated without another training.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ..evaluation.results import RESULTS, read_results
from ..ledger import replace_text
from .process import run_command
from .runner import LOG, digest, rounded

__all__ = ["MODELS_FORMAT", "Command", "Run", "execute_in_turn"]

MODELS_FORMAT = 1  # of `runs.jsonl` and `results.json`; changes with their fields
_TRAINED = "trained.json"
_STUDENT = "student"


@dataclass(frozen=True)
class Command:
    """A command of `trl-akd`.

    Args:
        name (`str`):
            Name of the command.
        values (`Mapping`):
            Content of its recipe.
        settings (`Mapping`):
            Values on which the result depends and that differ from their defaults.
        flags (`tuple[str, ...]`, *optional*):
            Flags, beside that of the recipe.
        continues (`bool`, *optional*, defaults to `True`):
            Whether the command continues an interrupted run without being asked.
        seed (`int`, *optional*):
            Seed, if the result depends on one.
    """

    name: str
    values: Mapping[str, Any]
    settings: Mapping[str, Any]
    flags: tuple[str, ...] = ()
    continues: bool = True
    seed: int | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the result depends on."""
        return {"command": self.name, **self.settings, "seed": self.seed}

    @cached_property
    def key(self) -> str:
        """Hash of the command, its settings and the seed."""
        return digest({"format": MODELS_FORMAT, **self.identity})

    def write_recipe(self, path: Path, **values: Any) -> list[str]:
        """Write the recipe, with further values, and return the arguments of `trl-akd`."""
        seed = {} if self.seed is None else {"seed": self.seed}
        content = {**self.values, **seed, **values}
        replace_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        return [self.name, "--config", str(path), *self.flags]


@dataclass(frozen=True)
class Run:
    """One run of the benchmark.

    Args:
        pair (`str`), rule (`str`):
            Its place in the results.
        training ([`Command`], *optional*):
            Training. Without it, a model is evaluated as it is, which the recipes of `evaluations` name.
        evaluations (`Mapping`):
            Evaluations by the name of their benchmark.
        seed (`int`, *optional*, defaults to `0`):
            Seed.
    """

    pair: str
    rule: str
    training: Command | None
    evaluations: Mapping[str, Command]
    seed: int = 0

    def with_seed(self, seed: int) -> "Run":
        """Return the run with another seed. Greedy evaluations do not depend on it."""
        return replace(
            self,
            seed=seed,
            training=None if self.training is None else replace(self.training, seed=seed),
            evaluations={
                name: replace(command, seed=seed if command.settings.get("temperature") else None)
                for name, command in self.evaluations.items()
            },
        )

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings that the result depends on and that differ from their defaults."""
        return {
            "training": None if self.training is None else self.training.identity,
            "evaluations": {name: command.identity for name, command in self.evaluations.items()},
        }

    @cached_property
    def key(self) -> str:
        """Hash of the settings."""
        return digest({"format": MODELS_FORMAT, **self.settings})

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"{self.pair}, {self.rule}, seed {self.seed}"

    @property
    def place(self) -> dict[str, Any]:
        """Its place in the results."""
        return {"pair": self.pair, "rule": self.rule, "seed": self.seed}

    def summary(self, row: Mapping[str, Any]) -> str:
        """Return its row in a few words."""
        return ", ".join(f"{name} pass@1 {found['pass@1']:.3f}" for name, found in row["measures"].items())

    def folder(self, output_dir: Path) -> Path:
        """Return the folder of its files, which ends with the hash of the training or of the evaluated model."""
        if self.training is not None:
            key = self.training.key
        else:
            [key] = {digest(_model_of(command)) for command in self.evaluations.values()}
        runs = output_dir / "runs"
        return next(runs.glob(f"*-{key}"), runs / f"{self.pair}-{self.rule}-{self.seed}-{key}")

    def write_recipes(self, output_dir: Path) -> list[list[str]]:
        """Write the recipes of its commands, and return their arguments."""
        folder = self.folder(output_dir)
        written = []
        if self.training is not None:
            written.append(self.training.write_recipe(folder / "train.yaml", output_dir=str(folder / _STUDENT)))
        for name, command in self.evaluations.items():
            values: dict[str, Any] = {"output_dir": str(self.evaluation_folder(output_dir, name))}
            if self.training is not None:
                values["model_name_or_path"] = str(folder / _STUDENT)
            written.append(command.write_recipe(folder / f"evaluate-{name}.yaml", **values))
        return written

    def evaluation_folder(self, output_dir: Path, name: str) -> Path:
        """Return the folder of the samples and results on a benchmark."""
        return self.folder(output_dir) / "evaluations" / f"{name}-{self.evaluations[name].key}"


def _model_of(evaluation: Command) -> dict[str, Any]:
    return {name: evaluation.values.get(name) for name in ("model_name_or_path", "model_revision")}


def execute_in_turn(
    runs: Sequence[Run], output_dir: Path, *, device: str, keep_students: bool = True
) -> Iterator[tuple[Run, dict[str, Any] | None, str]]:
    """Yield each run with its row, or with `None` and the reason of its failure.

    Checkpoints of a run, and its student unless `keep_students`, are removed once the caller has its row.
    """
    for run in runs:
        try:
            row = _execute(run, output_dir)
        except (OSError, RuntimeError, ValueError) as error:
            yield run, None, str(error)
            continue
        yield run, {**row, "device": device}, ""
        if run.training is not None:
            _clean(run.folder(output_dir), keep_student=keep_students)


def _execute(run: Run, output_dir: Path) -> dict[str, Any]:
    folder, log = run.folder(output_dir), output_dir / LOG
    commands = run.write_recipes(output_dir)
    with open(log, "a", encoding="utf-8") as output:
        output.write(f"== {run.name}\n")
    training: dict[str, Any] = {"seconds": None, "continued": False, "peak_memory_mib": None}
    if run.training is not None:
        training = _train(run.training, commands.pop(0), folder, log)
    measures, versions = {}, {}
    for (name, _), arguments in zip(run.evaluations.items(), commands, strict=True):
        found = run.evaluation_folder(output_dir, name)
        if not (found / RESULTS).is_file():
            _trl_akd(arguments, log)
        results = read_results(found)
        measures[name] = _measures(results)
        versions = results["versions"]
    return {
        "key": run.key,
        **run.place,
        "settings": run.settings,
        "measures": rounded(measures),
        "seconds": training["seconds"],
        "continued": training["continued"],
        "peak_memory_mib": training["peak_memory_mib"],
        "versions": versions,
    }


def _train(command: Command, arguments: list[str], folder: Path, log: Path) -> dict[str, Any]:
    """Train a student unless that is done, and return seconds, peak memory, and whether it continued a training."""
    finished = folder / _TRAINED
    if not finished.is_file():
        student = folder / _STUDENT
        checkpoints = any(student.glob("checkpoint-*/trainer_state.json"))
        if checkpoints and not command.continues:
            arguments = [*arguments, "--resume_from_checkpoint", "true"]
        continued = checkpoints or (command.continues and student.exists())
        began = time.monotonic()
        _trl_akd(arguments, log)
        seconds = round(time.monotonic() - began, 1)
        facts = {"seconds": seconds, "continued": continued, "peak_memory_mib": _peak_memory(student)}
        replace_text(finished, json.dumps(facts))
    found: dict[str, Any] = json.loads(finished.read_text())
    return found


def _trl_akd(arguments: Sequence[str], log: Path) -> None:
    try:
        run_command([sys.executable, "-m", "trl_akd", *arguments], log)
    except RuntimeError as error:
        raise RuntimeError(f"`trl-akd {arguments[0]}` failed; {error}") from error


def _peak_memory(student: Path) -> float | None:
    """Return the peak memory of training in MiB, if the method reports it."""
    path = student / "train_results.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    value: float | None = found.get("train_peak_memory_mib")
    return value


def _measures(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores of an evaluation, those by the base tests of a benchmark with the prefix `base `."""
    scores = {name: value for name, value in results["metrics"].items() if name != "confidence"}
    base = {f"base {name}": value for name, value in results.get("base", {}).items() if name.startswith("pass@")}
    return {**scores, **base, "problems": results["benchmark"]["problems"]}


def _clean(folder: Path, *, keep_student: bool) -> None:
    for checkpoint in (folder / _STUDENT).glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    if not keep_student:
        (folder / _TRAINED).unlink(missing_ok=True)
        shutil.rmtree(folder / _STUDENT, ignore_errors=True)
