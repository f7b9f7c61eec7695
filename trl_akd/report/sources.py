"""Facts about a run, read from the files in its folder."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import EvalResult
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..evaluation.cards import card_scores, read_judged_samples
from ..evaluation.results import RESULTS, evaluation_folder, read_results
from ..hub.model_card import RUN_FILE
from ..hub.private import public_path
from ..hub.scores import read_card
from ..iterkd.cycle.ledger import read_items
from ..iterkd.cycle.report import CYCLES, CycleReport, read_reports, recorded_reports

__all__ = ["AFTER", "BEFORE", "TEACHER", "Evaluated", "Run", "read_run"]

BEFORE, AFTER, TEACHER = "student before training", "student", "teacher"

Log = Mapping[str, float]
Read = TypeVar("Read")


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of a model on a benchmark.

    Args:
        model (`str`):
            Name of the model, or its role in the run.
        folder (`Path`):
            Folder of the evaluation.
        results (`Mapping`):
            Content of `results.json`.
    """

    model: str
    folder: Path
    results: Mapping[str, Any]

    @property
    def scores(self) -> list[EvalResult]:
        """Scores with their intervals."""
        return card_scores(self.results, self.results.get("generation"))

    @property
    def benchmark(self) -> str:
        """Name of the benchmark."""
        return str(self.results["benchmark"]["name"])


@dataclass
class Run:
    """A training run, or an evaluation, as its files describe it.

    Args:
        folder (`Path`):
            Folder of the run.
        facts (`Mapping`):
            Content of `run.json`, see `trl_akd.hub.model_card.run_facts`; empty for an evaluation.
        logs (`Sequence[Mapping[str, float]]`):
            Logged numbers, each with a `step`. Those of IterKD's cycles follow each other.
        evaluations (`Sequence[Evaluated]`):
            Evaluations: those during training, in order of their steps, and then others.
        card (`Sequence[EvalResult]`):
            Scores on the model card.
        cycles (`Sequence[CycleReport]`):
            Reports of IterKD's cycles.
        items (`Sequence[Mapping]`):
            Items in the ledger of IterKD: questions, pairs and feedback.
        usage (`Mapping`):
            Content of IterKD's `usage.json`.
        problems (`list[str]`):
            Files that could not be read, one sentence each.
    """

    folder: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    logs: Sequence[Log] = ()
    evaluations: Sequence[Evaluated] = ()
    card: Sequence[EvalResult] = ()
    cycles: Sequence[CycleReport] = ()
    items: Sequence[Mapping[str, Any]] = ()
    usage: Mapping[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def subject(self) -> Evaluated | None:
        """The evaluation whose programs represent the run: that of the trained student, else the last one."""
        own = [each for each in self.evaluations if each.model == AFTER]
        return next(reversed(own or self.evaluations), None)

    def read(self, name: str, read: Callable[[], Read], default: Read) -> Read:
        """Return what `read` returns, or `default` without the file or, with a remark, if the file is damaged."""
        try:
            return read()
        except FileNotFoundError:
            return default
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
            self.problems.append(f"{name} could not be read: {reason}.")
            return default

    def samples(self, evaluated: Evaluated) -> list[dict[str, Any]]:
        """Return the samples of an evaluation with their verdicts."""
        return self.read("verdicts.jsonl", lambda: read_judged_samples(evaluated.folder), [])


def read_run(folder: Path, evaluations: Sequence[Path] = ()) -> Run:
    """Read the files of a run.

    Args:
        folder (`Path`):
            Output folder of a training run or of an evaluation.
        evaluations (`Sequence[Path]`, *optional*):
            Output folders of further evaluations, such as those of the teacher and of the student before training.

    Raises:
        FileNotFoundError: If there is no such folder, it has no files of a run, or there is no such evaluation.
        ValueError: If a further evaluation is damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"`run_dir` is {str(folder)!r}, but there is no such folder; check the path.")
    run = Run(folder)
    run.facts = run.read(RUN_FILE, lambda: _read_facts(folder / RUN_FILE), {})
    run.logs = run.read(TRAINER_STATE_NAME, lambda: _read_logs(folder), [])
    run.card = run.read("README.md", lambda: _read_scores(folder / "README.md"), [])
    run.items = run.read("ledger/items.jsonl", lambda: read_items(folder / "ledger"), [])
    run.cycles = run.read(CYCLES, lambda: read_reports(folder), [])
    recorded: list[CycleReport] = run.read("ledger/items.jsonl", lambda: recorded_reports(run.items), [])
    if len(recorded) > len(run.cycles):  # the run is in progress
        run.cycles = recorded
    run.usage = run.read("usage.json", lambda: _read_usage(folder / "usage.json"), {})
    during = list(_evaluations_during_training(run))
    further = [Evaluated(_name(results), folder, results) for results in _results(run, folder)]
    for place in evaluations:
        results = read_results(place)
        further.append(Evaluated(_role(results, run), place, results))
    run.evaluations = [*during, *further]
    if not (run.facts or run.logs or run.evaluations or run.cycles or run.items):
        raise FileNotFoundError(
            f"{str(folder)!r} has no readable file of a run, such as {RUN_FILE}, {TRAINER_STATE_NAME} or {RESULTS}; "
            f"give the `output_dir` of a training or of `trl-akd evaluate`. {' '.join(run.problems)}".rstrip()
        )
    return run


def _results(run: Run, folder: Path) -> list[dict[str, Any]]:
    """Return the results in a folder, or nothing if there are none."""
    none: list[dict[str, Any]] = []
    return run.read(str(folder / RESULTS), lambda: [read_results(folder)], none)


def _read_facts(path: Path) -> dict[str, Any]:
    facts = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        {"name": str(row["name"]), "value": str(row["value"]), "revision": row["revision"]} for row in facts["facts"]
    ]
    texts = {name: str(facts[name]) for name in ("name", "method", "explanation")}
    return {
        **{**texts, "facts": rows, "command": facts["command"], "versions": dict(facts["versions"])},
        "measured_step": facts.get("measured_step"),  # not in files of earlier versions
    }


def _read_usage(path: Path) -> dict[str, Any]:
    return {**json.loads(path.read_text(encoding="utf-8"))}


def _read_scores(path: Path) -> list[EvalResult]:
    return list(read_card(path).data.eval_results or []) if path.is_file() else []


def _read_logs(folder: Path) -> list[Log]:
    """Return the logs of a run or, for IterKD, of all its cycles, one after another."""
    cycles = [_latest_state(cycle) for cycle in sorted(folder.glob("cycle-*"), key=_number)]
    states = [path for path in cycles if path.is_file()] or [_latest_state(folder)]
    return [log for path in states for log in _read_log(path)]


def _latest_state(folder: Path) -> Path:
    """Return the state at the end of training or, for a run that goes on, that of its last checkpoint."""
    checkpoints = sorted(
        folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}"), key=lambda path: _number(path.parent)
    )
    states: list[Path] = [path for path in (*checkpoints[-1:], folder / TRAINER_STATE_NAME) if path.is_file()]
    return max(states, key=lambda path: path.stat().st_mtime, default=folder / TRAINER_STATE_NAME)


def _read_log(path: Path) -> list[Log]:
    history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
    found = ({name: float(value) for name, value in log.items() if _is_number(value)} for log in history)
    return [log for log in found if "step" in log]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _evaluations_during_training(run: Run) -> list[Evaluated]:
    """Return the evaluations at the steps in the logs; others in the folder belong to an earlier run."""
    steps = sorted({int(log["step"]) for log in run.logs if any(name.startswith("eval_pass@") for name in log)})
    measured = run.facts.get("measured_step")
    saved = measured if measured in steps else next(reversed(steps), None)  # of the saved model
    found = []
    for step in steps:
        folder = evaluation_folder(run.folder, step)
        role = BEFORE if step == 0 else AFTER if step == saved else f"student at step {step}"
        found += [Evaluated(role, folder, results) for results in _results(run, folder)]
    return found


def _role(results: Mapping[str, Any], run: Run) -> str:
    """Return the role of an evaluated model in a run, or its name if it has none."""
    name = str(results["model"]["name"])
    if Path(name).expanduser().resolve() == run.folder.resolve():
        return AFTER
    roles = {"Student": BEFORE, "Teacher": TEACHER}
    known = {row["value"]: roles[row["name"]] for row in run.facts.get("facts", []) if row["name"] in roles}
    return known.get(public_path(name), _name(results))


def _name(results: Mapping[str, Any]) -> str:
    return public_path(str(results["model"]["name"])).rpartition("/")[2]
