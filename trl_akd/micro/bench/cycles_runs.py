"""Runs of the experiment on IterKD: one per variant and seed, each a row of a file.

All runs of a seed share world, pre-trained student, seed questions and held-out tasks. Budgets are equal: the number
of new questions is chosen such that teacher and judge use `teacher_tokens`, and the number of epochs such that the
student is trained on `trained_tokens`.
"""

import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import datasets
import yaml
from datasets import Dataset
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase, PrinterCallback

from ...bench.runner import (
    check_distinct_runs,
    digest,
    execute_all,
    find_start,
    peak_memory_mb,
    rounded,
    run_experiment,
)
from ...data.encoding import encode_completions
from ...execution import CodeExecutor
from ...generation.protocol import Usage, derive_seed
from ...iterkd.cycle.records import FAULT_KINDS, Question
from ...iterkd.cycle.report import CycleReport
from ...iterkd.iterkd_config import IterKDConfig
from ...iterkd.iterkd_trainer import IterKDTrainer
from ..models import UNRECORDED_ON_CPU, llama_config, new_model, pretrain, train_tokenizer
from ..tasks import Task
from ..teacher_data import TEACHING_PROMPTS, code_rows
from .cycles_config import CYCLES_FORMAT, CyclesConfig, CyclesSettings, Variant
from .cycles_judge import REPLY_TOKENS, NoisyJudge, auc, judge_request
from .cycles_measures import measure_student
from .cycles_teacher import ScriptedTeacher, StudentFaults
from .cycles_world import MAX_NEW_TOKENS, TIMEOUT, CyclesWorld, QuestionPool

__all__ = ["CyclesRun", "TokenCosts", "num_new_questions", "plan_cycles", "run_cycles"]

_BATCH_SIZE = 48  # answers per step
_MAX_LENGTH = 96
_PRETRAINING_ROWS, _TOKENIZER_TASKS = 16_000, 4_000
_OLD_SHARE = 0.5
_GENERATION_BATCH = 256
_MEASURED_TASKS = 300  # on which mean costs are computed
_FIXED: dict[str, Any] = {
    "prompt_template": "comment",
    "min_question_chars": 10,
    "novelty_threshold": 0.95,  # questions have similar wordings
    "overlap_words": 20,
    "objective": "ce",
    "max_length": _MAX_LENGTH,
    "answer_max_new_tokens": MAX_NEW_TOKENS,
    "lr_scheduler_type": "cosine",
    "gradient_checkpointing": False,
    **UNRECORDED_ON_CPU,
}


@dataclass(frozen=True)
class TokenCosts:
    """Mean numbers of tokens of a correct answer, a fault, a new question and a judgement, with their requests."""

    answer: float
    fault: float
    question: float
    judgement: float

    @classmethod
    def measure(cls, tasks: Sequence[Task], tokenizer: PreTrainedTokenizerBase) -> "TokenCosts":
        """Return the means over tasks."""

        def mean(texts: Sequence[str]) -> float:
            return fmean(map(len, tokenizer(list(texts))["input_ids"]))

        def request(name: str) -> float:
            template = TEACHING_PROMPTS[name]
            return mean([template.format(instruction=task.instruction, kind=FAULT_KINDS[0]) for task in tasks])

        program = mean([task.solution for task in tasks]) + 1
        question = mean([task.instruction for task in tasks]) + 1
        return cls(
            answer=request("correct") + program,
            fault=request("faulty") + program,
            question=(request("new_easy") + request("new_same")) / 2 + question,
            judgement=mean([judge_request(task.instruction, task.solution) for task in tasks]) + REPLY_TOKENS,
        )


def num_new_questions(variant: Variant, settings: CyclesSettings, costs: TokenCosts) -> int:
    """Return the number of new questions per cycle with which a variant uses the budget of teacher and judge.

    A question costs its correct answer, its fault, and the judgements of both if running cannot tell them apart; a new
    one also the question itself. The answers of the student to all questions of a cycle are judged.

    Raises:
        ValueError: If the budget does not suffice for the seed questions and one new one.
    """
    if variant.questions == "same":
        return 0
    fault = costs.fault if variant.faults in ("taxonomy", "logical") else 0.0
    judgement = 0.0 if variant.judge is None else costs.judgement
    verification = 2 * judgement * variant.faults_per_question
    seeds = costs.answer + fault + judgement + (0.0 if variant.tests else verification)
    new = costs.question + costs.answer + fault + judgement + verification
    old = judgement * _OLD_SHARE / (1 - _OLD_SHARE)
    left = settings.teacher_tokens - settings.questions * seeds
    count = int(left / (new if variant.questions == "blind" else (variant.cycles - 1) * (new + old)))
    if count < 1:
        raise ValueError(
            f"`teacher_tokens` is {settings.teacher_tokens}, but {settings.questions} seed questions need "
            f"{settings.questions * seeds:.0f} and a new one {new:.0f}; raise it, or lower `questions`."
        )
    return count


@dataclass(frozen=True)
class CyclesStart:
    """A pre-trained student, which all variants of a seed start from.

    Args:
        settings (`CyclesSettings`): world and student.
        seed (`int`): seed of the world, the weights and the order of rows.
        num_tasks (`int`), num_samples (`int`): size of the evaluation.
    """

    settings: CyclesSettings
    seed: int
    num_tasks: int
    num_samples: int

    @cached_property
    def key(self) -> str:
        """Hash of the settings and of the constants of pre-training."""
        names = ("num_rare", "rare_share", "hidden_size", "start_steps")
        return digest(
            {
                "format": CYCLES_FORMAT,
                **{name: getattr(self.settings, name) for name in names},
                "rows": _PRETRAINING_ROWS,
                "batch_size": _BATCH_SIZE,
                "seed": self.seed,
                "num_tasks": self.num_tasks,
                "num_samples": self.num_samples,
            }
        )

    @property
    def world(self) -> CyclesWorld:
        """The world of the seed."""
        return self.settings.world(self.seed)

    def held_out(self, stream: str = "held_out") -> list[Task]:
        """Return the tasks on which students are measured, or others of the same kind."""
        return self.world.sample(self.num_tasks, split="held_out", stream=stream)

    def measure(self, model: Any, tokenizer: PreTrainedTokenizerBase, stream: str = "held_out") -> dict[str, Any]:
        """Return the measures of a student of this seed."""
        seed = derive_seed(self.seed, "samples")
        with CodeExecutor(workers=1, timeout=TIMEOUT, allow_code_execution=True) as executor:
            return measure_student(
                model, tokenizer, self.world, self.held_out(stream), executor, num_samples=self.num_samples, seed=seed
            )

    def save(self, folder: Path) -> dict[str, Any]:
        """Train the student, save it with its tokenizer, and return facts about it.

        They are the rare operations, its measures, and its greedy pass@1 on other tasks, which decides whether it may
        start.
        """
        world, settings = self.world, self.settings
        tasks = world.sample(_TOKENIZER_TASKS, split="train", stream="tokenizer")
        tokenizer = train_tokenizer(row["prompt"] + row["completion"] for row in code_rows(tasks))
        config = llama_config(tokenizer, _MAX_LENGTH, hidden_size=settings.hidden_size, layers=2, heads=2)
        model = new_model(config, seed=self.seed)
        count = min(_PRETRAINING_ROWS, settings.start_steps * _BATCH_SIZE)
        rows = list(code_rows(world.sample_pretraining(count)))
        with tempfile.TemporaryDirectory() as scratch:
            pretrain(
                model,
                tokenizer,
                rows,
                output_dir=scratch,
                max_steps=settings.start_steps,
                batch_size=_BATCH_SIZE,
                seed=self.seed,
            )
        model.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {
            "rare": sorted(world.rare),
            "measures": rounded(self.measure(model, tokenizer)),
            "gate": self.measure(model, tokenizer, "gate")["greedy"],
        }


@dataclass(frozen=True)
class CyclesRun:
    """One run of the experiment.

    Args:
        variant_name (`str`), seed (`int`): its place in the results.
        settings (`CyclesSettings`): world, student and budgets.
        variant (`Variant`): the variant.
        questions_of (`Variant`): variant whose number of new questions is used, `variant` itself by default.
        num_tasks (`int`), num_samples (`int`): size of the evaluation.
    """

    variant_name: str
    seed: int
    settings: CyclesSettings
    variant: Variant
    questions_of: Variant
    num_tasks: int
    num_samples: int

    @property
    def start(self) -> CyclesStart:
        """The student from which it starts."""
        return CyclesStart(self.settings, self.seed, self.num_tasks, self.num_samples)

    @cached_property
    def key(self) -> str:
        """Hash of all settings that the result depends on."""
        return digest(
            {
                "start": self.start.key,
                "settings": asdict(self.settings),
                "variant": _without_name(self.variant),
                "questions_of": _without_name(self.questions_of),
                "fixed": {**_FIXED, "batch_size": _BATCH_SIZE, "old_share": _OLD_SHARE},
                "seed": self.seed,
            }
        )

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"{self.variant_name}, seed {self.seed}"

    @property
    def place(self) -> dict[str, Any]:
        """Variant and seed, as in a row of the results."""
        return {"variant": self.variant_name, "seed": self.seed}

    @property
    def start_key(self) -> str:
        """Hash of the settings of the student from which it starts."""
        return self.start.key

    def execute(self, starts: Path) -> dict[str, Any]:
        """Run the variant from the saved start, which is made if it is not there, and return its row."""
        datasets.disable_progress_bars()
        folder = starts / self.start_key
        start = find_start(folder, self.start.save)
        row: dict[str, Any] = {"key": self.key, **self.place, "start": start}
        low, high = self.settings.start_range
        if not low <= start["gate"] <= high:
            return {**row, "started": False}
        began, processor = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as scratch:
            found = self._train_and_measure(folder, Path(scratch))
        seconds = {"wall": time.perf_counter() - began, "cpu": time.process_time() - processor}
        return {**row, "started": True, **rounded({**found, "seconds": seconds}), "peak_memory_mb": peak_memory_mb()}

    def summary(self, row: Mapping[str, Any]) -> str:
        """Return its row in a few words."""
        if not row["started"]:
            return f"not run, as its start has a greedy pass@1 of {row['start']['gate']:.2f}"
        measures = row["measures"]
        return f"pass@1 {measures['pass@1']:.3f}, greedy {measures['greedy']:.3f}"

    def _train_and_measure(self, start: Path, folder: Path) -> dict[str, Any]:
        settings, variant, seed = self.settings, self.variant, self.seed
        tokenizer = AutoTokenizer.from_pretrained(start)
        world = settings.world(seed)
        seeds = world.sample(settings.questions, split="train", stream="questions")
        pool = QuestionPool(world)
        pool.add(seeds)
        costs = TokenCosts.measure(seeds[:_MEASURED_TASKS], tokenizer)
        new = num_new_questions(self.questions_of, settings, costs)
        with CodeExecutor(workers=1, timeout=TIMEOUT, allow_code_execution=True) as executor:
            own = StudentFaults(executor, seed) if variant.faults == "own" else None
            teacher = ScriptedTeacher(
                pool,
                tokenizer,
                error_rate=settings.teacher_error,
                only_rare=variant.questions == "rare",
                student_faults=own,
                seed=seed,
            )
            judge = None
            if variant.judge is not None:
                judge = NoisyJudge(pool, executor, tokenizer, auc=variant.judge, seed=seed)
            questions, spent = [_question(task, variant.tests) for task in seeds], Usage()
            if variant.questions == "blind":
                blind, spent = _blind_questions(seeds, new, teacher, seed)
                questions += blind
            trainer = Student(
                LlamaForCausalLM.from_pretrained(start),
                None,
                self._arguments(folder, new),
                Dataset.from_list(questions),
                processing_class=tokenizer,
                text_teacher=teacher,
                judge=judge,
                executor=executor if variant.execution else None,
                held_out=[Question(task.task_id, task.instruction, task.tests) for task in self.start.held_out()],
                generation_batch_size=_GENERATION_BATCH,
                token_budget=settings.trained_tokens,
            )
            trainer.remove_callback(PrinterCallback)
            if own is not None:
                own.student = trainer.student_generator
            trainer.train()
        usage = json.loads((folder / "run" / "usage.json").read_text())["teacher"]
        return {
            "measures": self.start.measure(trainer.model, tokenizer),
            "cycles": [_cycle(report) for report in trainer.reports],
            "tokens": {
                "trained": trainer.trained_tokens,
                "teacher": usage["prompt_tokens"] + usage["completion_tokens"] + spent.tokens,
                "judge": 0 if judge is None else judge.tokens,
            },
            **({} if judge is None else {"judge_auc": _measured_auc(judge)}),
        }

    def _arguments(self, folder: Path, new: int) -> IterKDConfig:
        variant = self.variant
        prompts = folder / "prompts.yaml"
        prompts.write_text(yaml.safe_dump(dict(TEACHING_PROMPTS)))
        requested = new if variant.questions in ("derived", "rare") else 0
        weights = variant.level_weights
        by_level = {level: round(requested * weight / sum(weights.values())) for level, weight in weights.items()}
        return IterKDConfig(
            str(folder / "run"),
            cycles=variant.cycles,
            faults_per_question=variant.faults_per_question,
            fault_kinds=list(FAULT_KINDS) if variant.faults in ("taxonomy", "none") else ["logical"],
            own_faults=variant.faults == "own",
            contrastive_weight=variant.contrastive_weight if variant.faults_per_question else 0.0,
            keep_unverified=variant.keep_unverified,
            questions_per_cycle=round(requested / (1 - _OLD_SHARE)) or self.settings.questions,
            old_share=_OLD_SHARE if requested else 1.0,
            new_easy=by_level.get("easy", 0),
            new_medium=by_level.get("medium", 0),
            new_hard=by_level.get("hard", 0),
            prompts_file=str(prompts),
            per_device_train_batch_size=_BATCH_SIZE // (1 + variant.faults_per_question),
            learning_rate=self.settings.learning_rate,
            logging_steps=1_000_000,
            seed=self.seed,
            **_FIXED,
        )


class Student(IterKDTrainer):
    """IterKD with a budget of tokens, which sets the number of epochs of each cycle.

    Args:
        token_budget (`int`):
            Number of tokens of answers, correct and faulty, on which the student is trained in all cycles.

    Attributes:
        trained_tokens (`int`): Number of tokens of answers on which it has been trained.
    """

    def __init__(self, *args: Any, token_budget: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._token_budget = token_budget
        self.trained_tokens = 0

    def train_cycle(self, pairs: Dataset, *, cycle: int, output_dir: Path) -> None:
        """Train one cycle on its share of the budget."""
        answers = list(pairs["completion"])
        if self.args.contrastive_weight > 0.0:
            answers += [text for rejected in pairs["rejected"] for text in rejected]
        per_epoch = sum(map(len, encode_completions(self._tokenizer, answers)))
        self.args.num_train_epochs = self._token_budget / self.args.cycles / per_epoch
        super().train_cycle(pairs, cycle=cycle, output_dir=output_dir)
        self.trained_tokens += round(per_epoch * (self.state.epoch or 0.0))


def plan_cycles(config: CyclesConfig) -> list[CyclesRun]:
    """Return the runs, those of the first seed first.

    Raises:
        ValueError: If two variants are equal, so that one of them would be the other under a second name.
    """
    variants = config.named_variants()
    settings = config.shared_settings()
    runs = [
        CyclesRun(
            name,
            seed,
            settings,
            variant,
            variants[variant.as_many_questions_as or name],
            config.num_tasks,
            config.num_samples,
        )
        for seed in config.seeds
        for name, variant in variants.items()
    ]
    check_distinct_runs(runs, {"variant": "variants"})
    return runs


def run_cycles(config: CyclesConfig) -> Path:
    """Run what is missing, and return the file of the results.

    Raises:
        ValueError: If two variants are equal, or other predictions or another control were recorded for these results.
        BlockingIOError: If another process writes to the folder.
        RuntimeError: If runs failed; others are kept.
    """
    folder = Path(config.output_dir)
    return run_experiment(
        plan_cycles(config),
        folder,
        partial(execute_all, folder=folder, workers=config.workers),
        asked={"predictions": config.predictions, "control": config.control},
        content={
            "format": CYCLES_FORMAT,
            "settings": asdict(config.shared_settings()),
            "variants": {name: asdict(variant) for name, variant in config.named_variants().items()},
            "seeds": config.seeds,
            "num_tasks": config.num_tasks,
            "num_samples": config.num_samples,
        },
        name=config.name,
    )


def _without_name(variant: Variant) -> dict[str, Any]:
    return {name: value for name, value in asdict(variant).items() if name != "as_many_questions_as"}


def _question(task: Task, tested: bool) -> dict[str, str]:
    row = {"id": task.task_id, "instruction": task.instruction}
    return {**row, "tests": task.tests} if tested else row


def _blind_questions(
    seeds: Sequence[Task], count: int, teacher: ScriptedTeacher, seed: int
) -> tuple[list[dict[str, str]], Usage]:
    """Return new questions from random seed questions, without repetitions, and the usage of the teacher."""
    rng = random.Random(f"{seed} blind")
    prompts = [
        TEACHING_PROMPTS[rng.choice(["new_easy", "new_same"])].format(instruction=rng.choice(seeds).instruction)
        for _ in range(count)
    ]
    written = [completion for [completion] in teacher.generate(prompts)]
    known = {task.instruction for task in seeds}
    new = [text for text in dict.fromkeys(completion.text for completion in written) if text not in known]
    usage = sum((completion.usage or Usage() for completion in written), Usage())
    return [{"id": f"blind/{number}", "instruction": text} for number, text in enumerate(new)], usage


def _cycle(report: CycleReport) -> dict[str, Any]:
    found = asdict(report)
    names = ("questions", "origins", "pairs", "faults", "without_fault", "dropped", "feedback", "new")
    return {**{name: found[name] for name in names}, "greedy": report.held_out.get("pass@1")}


def _measured_auc(judge: NoisyJudge) -> float | None:
    """Return the AUC of the judge's totals on all programs that it judged, `None` if all are right or all wrong."""
    right, wrong = ([total for is_right, total in judge.outcomes if is_right is kind] for kind in (True, False))
    return auc(right, wrong) if right and wrong else None
