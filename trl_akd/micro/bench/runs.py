"""Runs of the benchmark: one per world, student, rule, seed and draw of β, each a row of a file.

Every run has its own process. A run is identified by a hash of all settings that its result depends on, so that an
interrupted benchmark continues, and one with more rules or seeds runs only what is new.
"""

import gc
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import LlamaForCausalLM, PrinterCallback
from transformers.utils import logging
from trl import SFTTrainer

from ... import __version__
from ...akd.akd_config import AKDConfig
from ...akd.akd_trainer import AKDTrainer
from ...data.encoding import encode_completions, encode_prompts
from ...execution import CodeExecutor
from ...generation.protocol import derive_seed
from ...ledger import Ledger, replace_text
from ...losses.reduction import IGNORE_INDEX
from .config import FORMAT, BenchConfig, WorldSettings, resolved_fields, rule_config
from .draws import beta_draws, stratified_seed
from .measures import measure
from .students import BATCH_SIZE, PRETRAINING, STUDENTS, make_start, make_tokenizer
from .teacher import EPSILON, ExactTeacher
from .world import World

__all__ = ["Run", "StartSettings", "plan", "run_benchmark", "train_and_measure"]

RUNS, LOG = "runs.jsonl", "log.txt"
_POINTS = 12  # of a learning curve


@dataclass(frozen=True)
class StartSettings:
    """Settings of a pre-trained student, which all rules of a seed start from.

    Args:
        world (`World`): the world, without noise.
        student (`str`): name of the student.
        mass (`float`): probability of a valid first word at which pre-training ends.
        max_steps (`int`): maximum number of steps.
        min_steps (`int`): minimum number of steps.
        num_tasks (`int`): number of tasks on which the probability is computed.
    """

    world: World
    student: str
    mass: float
    max_steps: int
    min_steps: int
    num_tasks: int

    @property
    def key(self) -> str:
        """Hash of the settings and of the constants of pre-training."""
        student = asdict(STUDENTS[self.student])
        return _digest({**asdict(self), **student, "batch_size": BATCH_SIZE, **PRETRAINING})


@dataclass(frozen=True)
class Run:
    """One run of the benchmark.

    Args:
        world_name (`str`), student (`str`), rule (`str`), seed (`int`), draw (`int`): its place in the results.
        world (`WorldSettings`): the world.
        fields (`Mapping`): fields of [`AKDConfig`], or the method, of the rule.
        num_tasks (`int`), num_samples (`int`): size of the evaluation.
    """

    world_name: str
    student: str
    rule: str
    seed: int
    draw: int
    world: WorldSettings
    fields: Mapping[str, Any]
    num_tasks: int
    num_samples: int

    @property
    def start(self) -> StartSettings:
        """Settings of the student from which it starts."""
        world = replace(self.world.world(self.seed), noise=0.0)
        return StartSettings(
            world,
            self.student,
            self.world.start_mass,
            self.world.start_max_steps,
            self.world.start_min_steps,
            self.num_tasks,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that the result depends on, with their defaults filled in."""
        world = {key: value for key, value in asdict(self.world).items() if key not in ("students", "rules")}
        return {
            "world": world,
            "start": self.start.key,
            "student": self.student,
            "epsilon": EPSILON,
            "fields": resolved_fields(self.fields),
            "seed": self.seed,
            "draw": self.draw,
            "num_tasks": self.num_tasks,
            "num_samples": self.num_samples,
        }

    @cached_property
    def key(self) -> str:
        """Hash of the settings."""
        return _digest(self.settings)

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"{self.world_name}, {self.student}, {self.rule}, seed {self.seed}, draw {self.draw}"


def plan(config: BenchConfig) -> list[Run]:
    """Return the runs of a benchmark, those of the first seed first.

    Raises:
        ValueError: If two runs have equal settings, so that one of them would be the other under a second name.
    """
    fields = config.rule_fields()
    runs = [
        Run(world_name, student, rule, seed, draw, world, fields[rule], config.num_tasks, config.num_samples)
        for seed in config.seeds
        for world_name, world in config.world_settings().items()
        for student in world.students or config.students
        for rule in world.rules or fields
        for draw in range(config.draws(rule))
    ]
    found: dict[str, Run] = {}
    for run in runs:
        other = found.setdefault(run.key, run)
        if other is not run:
            kind, first, second = (
                ("worlds", other.world_name, run.world_name)
                if other.world_name != run.world_name
                else ("rules", other.rule, run.rule)
            )
            raise ValueError(f"`{kind}` has {first!r} and {second!r}, which are equal; leave one of them out.")
    return runs


def run_benchmark(config: BenchConfig) -> Path:
    """Run what is missing, and return the file of the results.

    Raises:
        ValueError: If two runs are equal, or other predictions, control or line were recorded for these results.
        BlockingIOError: If another process writes to the folder.
        RuntimeError: If runs failed; others are kept.
    """
    folder = Path(config.output_dir)
    runs = plan(config)
    with Ledger(folder / RUNS, option="output_dir") as ledger:
        rows = {row["key"]: row for row, _ in ledger.read()}
        missing = [run for run in runs if run.key not in rows]
        num_finished = len(runs) - len(missing)
        finished_before = _record_predictions(config, folder / f"{config.name}.predictions.json", num_finished)
        print(f"{len(runs)} runs, {num_finished} of them finished before. Output of the runs: {folder / LOG}")
        failures, commit = [], _commit()
        began = time.monotonic()
        for number, (run, row, failure) in enumerate(_execute(missing, folder, config.workers), start=1):
            if row is None:
                failures.append(f"{run.name}: {' '.join(failure.split())}")
                print(f"failed: {failures[-1]}", file=sys.stderr)
                continue
            rows[run.key] = {**row, "commit": commit}
            ledger.append([rows[run.key]])
            print(f"{number}/{len(missing)} ({time.monotonic() - began:.0f} s)  {_summary(run, row)}", flush=True)
        results = folder / f"{config.name}.json"
        replace_text(results, _results(config, runs, rows, finished_before))
    if failures:
        raise RuntimeError(
            f"{len(failures)} of {len(missing)} runs failed, the first of them {failures[0]}; see {folder / LOG}, and "
            "run the command again."
        )
    return results


def _record_predictions(config: BenchConfig, path: Path, num_finished: int) -> int:
    """Record predictions, control and line, and return the number of runs that were finished when they were recorded.

    Raises:
        ValueError: If others were recorded for the same results.
    """
    asked = {"predictions": config.predictions, "control": asdict(config.control_settings()), "line": config.line}
    if not path.exists():
        replace_text(path, json.dumps({**asked, "finished_before": num_finished}, indent=2) + "\n")
    recorded = json.loads(path.read_text())
    for name, value in asked.items():
        if recorded[name] != value:
            raise ValueError(
                f"`{name}` differs from what {path} recorded before the runs; restore it, or give another `name`, "
                "with which the page says how many runs were finished before."
            )
    return int(recorded["finished_before"])


def train_and_measure(run: Run, starts: Path) -> dict[str, Any]:
    """Distill the exact teacher into a student by a rule, measure the student, and return the row of the run.

    Args:
        run (`Run`):
            The run.
        starts (`Path`):
            Folder of pre-trained students; the one that the run starts from is made if it is not there.
    """
    tokenizer, world = make_tokenizer(), run.world.world(run.seed)
    held_out = world.sample_tasks(run.num_tasks, split="held_out")
    start = _find_start(run.start, starts)
    row: dict[str, Any] = {
        "key": run.key,
        **_place(run),
        "settings": run.settings,
        "start": start,
    }
    low, high = run.world.start_range
    if not low <= start["mass"] <= high:
        return {**row, "started": False}
    model = LlamaForCausalLM.from_pretrained(starts / run.start.key)
    tasks = world.sample_tasks(run.world.rows, split="train")
    began, processor = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        history, draws = _train(run, model, tokenizer, world, tasks, scratch)
    trained = time.perf_counter()
    with CodeExecutor(workers=1, allow_code_execution=True) as executor:
        measures = measure(
            model,
            tokenizer,
            world,
            held_out,
            executor,
            num_samples=run.num_samples,
            seed=derive_seed(run.seed, "samples"),
        )
    measured = time.perf_counter()
    _check_finite(measures, history)
    seconds = {
        "train": round(trained - began, 1),
        "measure": round(measured - trained, 1),
        "cpu": round(time.process_time() - processor, 1),
    }
    return {
        **row,
        "started": True,
        "measures": _rounded(measures),
        "history": _rounded(history),
        "beta_draws": draws,
        "seconds": seconds,
        "peak_memory_mb": _peak_memory_mb(),
    }


def _check_finite(measures: Mapping[str, Any], history: Sequence[Mapping[str, float]]) -> None:
    values = _without(measures, "errors")
    for point in history:
        values |= {f"{name} at step {point['step']}": value for name, value in point.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}")


def _train(
    run: Run, model: Any, tokenizer: Any, world: World, tasks: Sequence[Any], folder: str
) -> tuple[list[dict[str, Any]], list[float]]:
    """Train a student in place, and return points of its learning curve and the values that β drew."""
    steps = int(-(-len(tasks) // BATCH_SIZE) * run.world.epochs)
    args = rule_config(
        run.fields,
        folder,
        epochs=run.world.epochs,
        learning_rate=STUDENTS[run.student].learning_rate,
        seed=run.seed,
        logging_steps=max(1, steps // _POINTS),
    )
    args.seed = stratified_seed(args, run.seed, run.draw)
    rows = world.sample_rows(tasks)
    prompts = encode_prompts(tokenizer, [row["prompt"] for row in rows])
    completions = encode_completions(tokenizer, [row["completion"] for row in rows])
    dataset = Dataset.from_list(
        [
            {"input_ids": [*prompt, *completion], "labels": [IGNORE_INDEX] * len(prompt) + completion}
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
    )
    if isinstance(args, AKDConfig):
        teacher = ExactTeacher([(task, world.taught_answers(task)) for task in tasks], tokenizer)
        trainer = AKDTrainer(model, teacher, args, train_dataset=dataset, processing_class=tokenizer)
    else:
        trainer = SFTTrainer(model, args, train_dataset=dataset, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    names = {"step": "step", "kd/forward_kl": "forward_kl", "kd/reverse_kl": "reverse_kl", "kd/beta": "beta"}
    history = [
        {short: log[name] for name, short in names.items() if name in log}
        for log in trainer.state.log_history
        if "kd/forward_kl" in log
    ]
    return history, beta_draws(args)


def _find_start(settings: StartSettings, starts: Path) -> dict[str, Any]:
    """Return steps and mass of a pre-trained student, which is made and saved if it is not there."""
    folder = starts / settings.key
    if not folder.exists():
        tokenizer = make_tokenizer()
        start = make_start(
            settings.world,
            tokenizer,
            STUDENTS[settings.student],
            gate_tasks=settings.world.sample_tasks(settings.num_tasks, split="held_out", stream="gate"),
            mass=settings.mass,
            max_steps=settings.max_steps,
            min_steps=settings.min_steps,
        )
        scratch = starts / f"{settings.key}.{os.getpid()}"
        content = {"steps": start.steps, "mass": round(start.mass, 6), "commit": _commit()}
        start.model.save_pretrained(scratch)
        (scratch / "start.json").write_text(json.dumps(content))
        try:
            scratch.rename(folder)
        except OSError:
            shutil.rmtree(scratch)
            if not folder.exists():  # no other process was faster
                raise
    found: dict[str, Any] = json.loads((folder / "start.json").read_text())
    return found


def _execute(
    runs: Sequence[Run], folder: Path, workers: int | None
) -> Iterator[tuple[Run, dict[str, Any] | None, str]]:
    """Yield each run with its row, or with `None` and the reason of its failure.

    A run whose student must be pre-trained first goes before the others that start from it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = workers or cores
    (folder / "starts").mkdir(parents=True, exist_ok=True)
    for unfinished in (folder / "starts").glob("*.*"):  # of a benchmark that was killed
        shutil.rmtree(unfinished)
    context = multiprocessing.get_context("forkserver")
    # DeepSpeed is imported by accelerate when a trainer begins; without it, its name is passed over.
    context.set_forkserver_preload([__name__, "deepspeed"])
    waiting, active = list(runs), dict[Any, tuple[Run, Any]]()
    try:
        while waiting or active:
            while len(active) < workers and (run := _next(waiting, active, folder / "starts")) is not None:
                waiting.remove(run)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(run, folder, sender), daemon=True)
                process.start()
                sender.close()
                active[receiver] = run, process
            for receiver in cast(list[Connection], wait(list(active))):
                run, process = active.pop(receiver)
                try:
                    row, failure = receiver.recv()
                except EOFError:
                    row, failure = None, ""
                receiver.close()
                process.join()
                yield run, row, failure or f"its process ended with status {process.exitcode}"
    finally:
        for _, process in active.values():
            process.kill()
            process.join()


def _next(waiting: Sequence[Run], active: Mapping[Any, tuple[Run, Any]], starts: Path) -> Run | None:
    """Return the first run whose start is there, or is not being made."""
    being_made = {run.start.key for run, _ in active.values() if not (starts / run.start.key).exists()}
    return next((run for run in waiting if run.start.key not in being_made), None)


def _child(run: Run, folder: Path, sender: Connection) -> None:
    """Carry out a run in a process of its own, whose output goes to the log, and which ends when its parent does."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    gc.freeze()  # the trainer collects garbage, and there are many objects of imported modules
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    print(f"== {run.name}", flush=True)
    try:
        sender.send((train_and_measure(run, folder / "starts"), ""))
    except Exception as error:
        sender.send((None, f"{type(error).__name__}: {error}"))
        raise


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _results(
    config: BenchConfig, runs: Sequence[Run], rows: Mapping[str, dict[str, Any]], finished_before: int
) -> str:
    """Return the results as JSON: what was asked and predicted, and the finished runs in the order of the plan.

    Each run has its place in the plan, whatever its world and rule were called when it ran.
    """
    content = {
        "format": FORMAT,
        "worlds": config.worlds,
        "students": config.students,
        "rules": config.rules,
        "seeds": config.seeds,
        "num_tasks": config.num_tasks,
        "num_samples": config.num_samples,
        "control": config.control,
        "line": config.line,
        "predictions": config.predictions,
        "finished_before": finished_before,
        "planned": [_place(run) for run in runs],
        "runs": [{**_without(rows[run.key], "settings"), **_place(run)} for run in runs if run.key in rows],
    }
    # One line per run, so that committed results are small and have readable changes.
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {_lines(value)}" for name, value in content.items()) + "\n}\n"


def _lines(value: Any) -> str:
    """Return JSON in which each item of a list of objects has its line."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
    return json.dumps(value)


def _place(run: Run) -> dict[str, Any]:
    return {
        "world": run.world_name,
        "student": run.student,
        "rule": run.rule,
        "seed": run.seed,
        "draw": run.draw,
    }


def _summary(run: Run, row: Mapping[str, Any]) -> str:
    if not row["started"]:
        return f"{run.name}: not run, as its start has a mass of {row['start']['mass']:.2f} on valid words"
    measures = row["measures"]
    return f"{run.name}: pass@1 {measures['pass@1']:.3f}, coverage {measures['coverage']:.3f}"


def _without(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def _with_float_numbers(value: Any) -> Any:
    """Return JSON values in which equal numbers, such as 1 and 1.0, are written alike."""
    if isinstance(value, Mapping):
        return {key: _with_float_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_float_numbers(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _digest(settings: Mapping[str, Any]) -> str:
    text = json.dumps(_with_float_numbers({"format": FORMAT, **settings}), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _peak_memory_mb() -> int:
    import resource  # which Windows does not have

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def _commit() -> str:
    """Return the commit of a checkout, with `+` if files of the package differ from it, or the package's version."""
    package = Path(__file__).parents[2]
    git = ["git", "-C", str(package)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", str(package)], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return f"version {__version__}"
    return commit.strip()[:12] + ("+" if changed.strip() else "")
