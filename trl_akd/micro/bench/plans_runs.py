"""Runs of the experiment on CodePLAN: one per world, training and seed."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

from datasets import Dataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback

from ...bench.runner import (
    check_distinct_runs,
    digest,
    execute_all,
    find_start,
    peak_memory_mb,
    rounded,
    run_experiment,
)
from ...codeplan.codeplan_config import CodePLANConfig
from ...codeplan.codeplan_trainer import CodePLANTrainer
from ...generation import TransformersGenerator
from ...generation.protocol import derive_seed
from ..models import UNRECORDED_ON_CPU, llama_config, new_model, pretrain
from .plans_config import PLANS_FORMAT, PlansConfig, PlanTraining, PlanWorldSettings
from .plans_measures import NUM_PROGRAMS, OWN_PLANS, SAMPLING, WITHOUT_PLAN, PlanWorldExecutor, measure_plans
from .plans_world import PlanWorld, plan_vocabulary
from .students import make_tokenizer

__all__ = ["PlansRun", "PlansStart", "plan_runs", "run_plans"]

_STUDENT: Mapping[str, Any] = MappingProxyType({"hidden_size": 64, "layers": 2, "heads": 2})  # 117 thousand parameters
_POSITIONS = 128
_PRETRAINING: Mapping[str, Any] = MappingProxyType({"rows": 24_000, "batch_size": 64, "learning_rate": 5e-3})
_TRAINING: Mapping[str, Any] = MappingProxyType(
    {"per_device_train_batch_size": 48, "learning_rate": 2e-3, "lr_scheduler_type": "cosine", "plan_head": "separate"}
)
_START_TEXTS = 300
_MAX_TEXT_TOKENS = 48


@dataclass(frozen=True)
class PlansStart:
    """A pre-trained student, which all trainings of a seed start from.

    Args:
        world (`PlanWorld`): the world, whose seed is also that of the weights and of the order of rows.
        steps (`int`): number of steps.
    """

    world: PlanWorld
    steps: int

    @cached_property
    def key(self) -> str:
        """Hash of the settings and of the constants of pre-training."""
        return digest({"format": PLANS_FORMAT, **asdict(self), **_STUDENT, **_PRETRAINING})

    def save(self, folder: Path) -> dict[str, Any]:
        """Train the student on the base model's texts, save it, and return its accuracies on others."""
        tokenizer = make_tokenizer(plan_vocabulary())
        model = new_model(llama_config(tokenizer, _POSITIONS, **_STUDENT), seed=self.world.seed)
        batch_size = int(_PRETRAINING["batch_size"])
        count = min(int(_PRETRAINING["rows"]), self.steps * batch_size)
        rows = self.world.pretraining_rows(count + _START_TEXTS)
        with tempfile.TemporaryDirectory() as scratch:
            pretrain(
                model,
                tokenizer,
                rows[:count],
                output_dir=scratch,
                max_steps=self.steps,
                learning_rate=_PRETRAINING["learning_rate"],
                batch_size=batch_size,
                seed=self.world.seed,
            )
        model.eval().save_pretrained(folder)
        facts: dict[str, Any] = rounded({"steps": self.steps, **text_accuracies(model, tokenizer, rows[count:])})
        return facts


@dataclass(frozen=True)
class PlansRun:
    """One run of the experiment.

    Args:
        world_name (`str`), training_name (`str`), seed (`int`): its place in the results.
        world (`PlanWorldSettings`): the world.
        training (`PlanTraining`): the training.
        num_tasks (`int`): number of held-out problems.
    """

    world_name: str
    training_name: str
    seed: int
    world: PlanWorldSettings
    training: PlanTraining
    num_tasks: int

    @property
    def start(self) -> PlansStart:
        """The student from which it starts."""
        return PlansStart(self.world.world(self.seed), self.world.start_steps)

    @property
    def start_key(self) -> str:
        """Name of the student's folder."""
        return self.start.key

    @cached_property
    def key(self) -> str:
        """Hash of all settings that the result depends on."""
        return digest(
            {
                "start": self.start_key,
                "world": asdict(self.world),
                "training": asdict(self.training),
                "fixed": dict(_TRAINING),
                "sampling": dict(SAMPLING),
                "num_programs": NUM_PROGRAMS,
                "seed": self.seed,
                "num_tasks": self.num_tasks,
            }
        )

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"{self.world_name}, {self.training_name}, seed {self.seed}"

    @property
    def place(self) -> dict[str, Any]:
        """World, training and seed, as in a row of the results."""
        return {"world": self.world_name, "training": self.training_name, "seed": self.seed}

    def execute(self, starts: Path) -> dict[str, Any]:
        """Train from the saved start, which is made if it is not there, and return the row of the run."""
        folder = starts / self.start_key
        start = find_start(folder, self.start.save)
        row = {"key": self.key, **self.place, "start": start}
        if start["program_by_plan"] < self.world.start_accuracy:
            return {**row, "started": False}
        tokenizer, world = make_tokenizer(plan_vocabulary()), self.world.world(self.seed)
        began, processor = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as scratch_folder:
            model, steps = self._train(LlamaForCausalLM.from_pretrained(folder), tokenizer, world, scratch_folder)
        trained = time.perf_counter()
        with PlanWorldExecutor(workers=1, allow_code_execution=True) as executor:
            measures = measure_plans(
                model,
                tokenizer,
                world,
                world.sample_tasks(self.num_tasks, split="held_out"),
                executor,
                own_plans=self.training.writes_plans,
                seed=derive_seed(self.seed, "samples"),
            )
        seconds = {
            "train": trained - began,
            "measure": time.perf_counter() - trained,
            "cpu": time.process_time() - processor,
        }
        return {
            **row,
            "started": True,
            "steps": steps,
            **rounded({"measures": measures, "seconds": seconds}),
            "peak_memory_mb": peak_memory_mb(),
        }

    def summary(self, row: Mapping[str, Any]) -> str:
        """Return a row in a few words."""
        if not row["started"]:
            accuracy = row["start"]["program_by_plan"]
            return f"not run, as its start follows {accuracy:.2f} of given plans"
        shown = WITHOUT_PLAN, OWN_PLANS
        found = {name: row["measures"][name]["best@1"] for name in shown if name in row["measures"]}
        return "pass@1 " + ", ".join(f"{name} {value:.3f}" for name, value in found.items())

    def _train(
        self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: PlanWorld, folder: str
    ) -> tuple[LlamaForCausalLM, int]:
        args = CodePLANConfig(
            folder,
            plan_weight=self.training.plan_weight,
            guided_weight=self.training.guided_weight,
            num_train_epochs=self.world.epochs * self.training.times_epochs,
            max_length=_POSITIONS,
            gradient_checkpointing=False,
            logging_steps=1_000_000,
            seed=self.seed,
            **UNRECORDED_ON_CPU,
            **_TRAINING,
        )
        rows = world.rows(world.sample_tasks(self.world.rows, split="train"))
        trainer = CodePLANTrainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer.model.eval(), trainer.state.global_step


def text_accuracies(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Mapping[str, str]]
) -> dict[str, float]:
    """Return the share of the base model's texts that a student writes, most probable token by token, by kind."""
    generator = TransformersGenerator(model, tokenizer, batch_size=len(rows))
    written = generator.generate([row["prompt"] for row in rows], max_new_tokens=_MAX_TEXT_TOKENS)
    is_right: dict[str, list[bool]] = {}
    for row, [completion] in zip(rows, written, strict=True):
        is_right.setdefault(row["kind"], []).append(completion.text == row["completion"])
    return {kind: fmean(several) for kind, several in is_right.items()}


def plan_runs(config: PlansConfig) -> list[PlansRun]:
    """Return the runs: those of the first world first, and in it those of the first seed.

    Raises:
        ValueError: If two runs are equal, so that one of them would be the other under a second name.
    """
    runs = [
        PlansRun(world_name, training_name, seed, world, training, config.num_tasks)
        for world_name, world in config.named_worlds().items()
        for seed in config.seeds
        for training_name, training in config.named_trainings().items()
    ]
    check_distinct_runs(runs, {"world": "worlds", "training": "trainings"})
    return runs


def run_plans(config: PlansConfig) -> Path:
    """Run what is missing, and return the file of the results.

    Raises:
        ValueError: If two runs are equal, or other predictions were recorded for these results.
        BlockingIOError: If another process writes to the folder.
        RuntimeError: If runs failed; others are kept.
    """
    content = {
        "format": PLANS_FORMAT,
        "worlds": {name: asdict(world) for name, world in config.named_worlds().items()},
        "trainings": {name: asdict(training) for name, training in config.named_trainings().items()},
        "seeds": config.seeds,
        "num_tasks": config.num_tasks,
    }
    folder = Path(config.output_dir)
    return run_experiment(
        plan_runs(config),
        folder,
        partial(execute_all, folder=folder, workers=config.workers),
        asked={"predictions": config.predictions},
        content=content,
        name=config.name,
    )
