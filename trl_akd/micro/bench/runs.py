"""Runs of the benchmark: one per world, student, rule, seed and draw of β, each a row of a file.

Every run has its own process. A run is identified by a hash of all settings that its result depends on, so that an
interrupted benchmark continues, and one with more rules or seeds runs only what is new.
"""

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import LlamaForCausalLM, PrinterCallback
from trl import SFTTrainer

from ...akd.akd_config import AKDConfig
from ...akd.akd_trainer import AKDTrainer
from ...akd.cache_creation import create_cache
from ...bench.runner import (
    check_distinct_runs,
    digest,
    execute_all,
    find_start,
    peak_memory_mb,
    rounded,
    run_experiment,
)
from ...data.encoding import encode_completions, encode_prompts
from ...execution import CodeExecutor
from ...generation.protocol import derive_seed
from ...losses.reduction import IGNORE_INDEX
from .config import FORMAT, BenchConfig, WorldSettings
from .draws import beta_draws, stratified_seed
from .measures import measure
from .rules import add_adapter, cache_settings, merge_adapter, resolved_fields, rule_config
from .students import BATCH_SIZE, PRETRAINING, STUDENTS, make_start, make_tokenizer
from .teacher import EPSILON, ExactTeacher
from .world import World

__all__ = ["Run", "StartSettings", "plan", "run_benchmark", "train_and_measure"]

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
        return digest({"format": FORMAT, **asdict(self), **student, "batch_size": BATCH_SIZE, **PRETRAINING})


@dataclass(frozen=True)
class Run:
    """One run of the benchmark.

    Args:
        world_name (`str`), student (`str`), rule (`str`), seed (`int`), draw (`int`): its place in the results.
        world (`WorldSettings`): the world.
        fields (`Mapping`): fields of the rule.
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
    def epochs(self) -> float:
        """Number of epochs: the rule's own, or that of the world."""
        return float(self.fields.get("num_train_epochs", self.world.epochs))

    @property
    def learning_rate(self) -> float:
        """Peak learning rate: the rule's own, or that of the student."""
        return float(self.fields.get("learning_rate", STUDENTS[self.student].learning_rate))

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that the result depends on, with their defaults filled in."""
        world = {key: value for key, value in asdict(self.world).items() if key not in ("students", "rules")}
        settings: dict[str, Any] = {
            "world": {**world, "epochs": self.epochs},
            "start": self.start.key,
            "student": self.student,
            "epsilon": EPSILON,
            "fields": resolved_fields(self.fields),
            "seed": self.seed,
            "draw": self.draw,
            "num_tasks": self.num_tasks,
            "num_samples": self.num_samples,
        }
        if self.learning_rate != STUDENTS[self.student].learning_rate:  # which the hash of the start includes
            settings["learning_rate"] = self.learning_rate
        return settings

    @cached_property
    def key(self) -> str:
        """Hash of the settings."""
        return digest({"format": FORMAT, **self.settings})

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"{self.world_name}, {self.student}, {self.rule}, seed {self.seed}, draw {self.draw}"

    @property
    def place(self) -> dict[str, Any]:
        """Its place in the results."""
        return {
            "world": self.world_name,
            "student": self.student,
            "rule": self.rule,
            "seed": self.seed,
            "draw": self.draw,
        }

    @property
    def start_key(self) -> str:
        """Hash of the settings of the student from which it starts."""
        return self.start.key

    def execute(self, starts: Path) -> dict[str, Any]:
        """Return the row of the run, see [`train_and_measure`]."""
        return train_and_measure(self, starts)

    def summary(self, row: Mapping[str, Any]) -> str:
        """Return its row in a few words."""
        if not row["started"]:
            return f"not run, as its start has a mass of {row['start']['mass']:.2f} on valid words"
        measures = row["measures"]
        return f"pass@1 {measures['pass@1']:.3f}, coverage {measures['coverage']:.3f}"


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
    check_distinct_runs(runs, {"world": "worlds", "rule": "rules"})
    return runs


def run_benchmark(config: BenchConfig) -> Path:
    """Run what is missing, and return the file of the results.

    Raises:
        ValueError: If two runs are equal, or other predictions, control or line were recorded for these results.
        BlockingIOError: If another process writes to the folder.
        RuntimeError: If runs failed; others are kept.
    """
    names = ("worlds", "students", "rules", "seeds", "num_tasks", "num_samples")
    folder = Path(config.output_dir)
    return run_experiment(
        plan(config),
        folder,
        partial(execute_all, folder=folder, workers=config.workers),
        asked={
            "predictions": config.predictions,
            "control": asdict(config.control_settings()),
            "line": config.line,
        },
        content={"format": FORMAT, **{name: getattr(config, name) for name in names}},
        name=config.name,
    )


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
    start = find_start(starts / run.start.key, lambda folder: _save_start(run.start, folder))
    row: dict[str, Any] = {
        "key": run.key,
        **run.place,
        "settings": run.settings,
        "start": start,
    }
    low, high = run.world.start_range
    if not low <= start["mass"] <= high:
        return {**row, "started": False}
    student = LlamaForCausalLM.from_pretrained(starts / run.start.key)
    model = add_adapter(student, run.fields, seed=derive_seed(run.seed, "adapter"))
    tasks = world.sample_tasks(run.world.rows, split="train")
    began, processor = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        history, draws = _train(run, model, tokenizer, world, tasks, scratch)
    trained = time.perf_counter()
    model = merge_adapter(model)
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
        "measures": rounded(measures),
        "history": rounded(history),
        "beta_draws": draws,
        "seconds": seconds,
        "peak_memory_mb": peak_memory_mb(),
    }


def _check_finite(measures: Mapping[str, Any], history: Sequence[Mapping[str, float]]) -> None:
    values = {name: value for name, value in measures.items() if name != "errors"}
    for point in history:
        values |= {f"{name} at step {point['step']}": value for name, value in point.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}")


def _train(
    run: Run, model: Any, tokenizer: Any, world: World, tasks: Sequence[Any], folder: str
) -> tuple[list[dict[str, Any]], list[float]]:
    """Train a student in place, and return points of its learning curve and the values that β drew."""
    steps = int(-(-len(tasks) // BATCH_SIZE) * run.epochs)
    cache = cache_settings(run.fields)

    def make_args(teacher_cache: str | None = None) -> Any:
        args = rule_config(
            run.fields,
            folder,
            epochs=run.epochs,
            learning_rate=run.learning_rate,
            seed=run.seed,
            logging_steps=max(1, steps // _POINTS),
            teacher_cache=teacher_cache,
        )
        args.seed = stratified_seed(args, run.seed, run.draw)
        return args

    args = make_args()
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
        if cache is not None:
            signals = f"{folder}/teacher_cache"
            create_cache(trainer, signals, **cache)
            trainer = AKDTrainer(model, args=make_args(signals), train_dataset=dataset, processing_class=tokenizer)
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


def _save_start(settings: StartSettings, folder: Path) -> dict[str, Any]:
    """Pre-train and save a student, and return its steps and mass."""
    start = make_start(
        settings.world,
        make_tokenizer(),
        STUDENTS[settings.student],
        gate_tasks=settings.world.sample_tasks(settings.num_tasks, split="held_out", stream="gate"),
        mass=settings.mass,
        max_steps=settings.max_steps,
        min_steps=settings.min_steps,
    )
    start.model.save_pretrained(folder)
    return {"steps": start.steps, "mass": round(start.mass, 6)}
