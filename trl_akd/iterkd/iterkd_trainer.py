"""Trainer of IterKD: cycles of pair generation, training, feedback and new questions.

Source: Chen et al., "Iterative Knowledge Distillation through Feedback-Driven Learning Cycles" (arXiv 2408.03680;
later "Smaller but Better: Self-Paced Knowledge Distillation for Lightweight yet Effective LCMs", SODA).
`docs/methods/iterkd.md` separates the paper's details from the choices made here.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import EvalResult
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from ..akd.checkpoint import last_whole_checkpoint
from ..akd.model_card import template_format, training_facts
from ..akd.model_utils import name_of
from ..akd.validation import check_arguments
from ..distributed import is_main_process, run_on_main_and_broadcast
from ..execution import CodeExecutor
from ..generation import TextGenerator, TransformersGenerator
from ..generation.budget import Budget, BudgetedGenerator, BudgetSpent, Limit
from ..generation.protocol import Usage
from ..generation.wrappers import for_all_processes, is_shared, model_name
from ..hub.datasets import upload_dataset
from ..hub.model_card import PromptFormat
from ..hub.private import public_path
from ..hub.scores import score_results
from ..hub.upload import repeat_command
from .cycle import costs
from .cycle.cycles import Cycles, Participants, ProgramOf
from .cycle.ledger import CycleLedger, ledger_content
from .cycle.records import Question, digest, read_questions
from .cycle.report import CycleReport, cycle_table, tracked_metrics, write_reports
from .cycle.run_settings import model_settings, training_settings
from .iterkd_config import IterKDConfig
from .judge.judges import GenerativeJudge, Judge, requesting_json
from .pair_trainer import PairTrainer

__all__ = ["IterKDTrainer"]

logger = logging.getLogger(__name__)

LEDGER = "ledger"


class IterKDTrainer(PairTrainer):
    r"""Trainer of a student in cycles of pair generation, training, feedback and new questions.

    Args:
        model (`PreTrainedModel` or `str`):
            The student, or its name or path.
        teacher_model (`PreTrainedModel` or `str`, *optional*):
            Teacher model, if `objective` is `"akd"`.
        args ([`IterKDConfig`], *optional*):
            Configuration.
        train_dataset (`Dataset`):
            Seed questions, with the column `instruction` and optionally `input`, `id`, `tests` and `answer`.
        text_teacher (`TextGenerator`):
            Model that writes correct and faulty answers and new questions, such as an `OpenAIGenerator`. It may be set
            later, as an attribute.
        judge ([`Judge`] or `TextGenerator`, *optional*):
            Judge of answers, or generator of judgements.
        executor (`CodeExecutor`, *optional*):
            Executor of programs. Without an executor, programs are only parsed, and most faults remain unverified.
        held_out (`Sequence[Question]`, *optional*):
            Questions with tests that evaluate the student after each cycle.
        program_of (`Callable`, *optional*):
            Function that extracts the program from an answer to a held-out question, for example with the imports of
            the question. Defaults to `extract_program`.
        benchmarks (`Mapping[str, Sequence[str]]`, *optional*):
            Texts that new questions must not repeat, by benchmark. The held-out questions are added.
        generation_batch_size (`int`, *optional*, defaults to `16`):
            Number of sequences that the student generates in one batch on each process.
        settings (`Mapping[str, Any]`, *optional*):
            Further JSON values on which the texts depend, such as settings of the teacher. A run cannot be continued
            with other values.
        **kwargs:
            As in [`AKDTrainer`], except for `data_collator`.

    Raises:
        ValueError: If a question is malformed, or models and settings are not compatible.

    Attributes:
        held_out_name (`str`): Name of the held-out questions on the model card.
        held_out_dataset (`str`, *optional*): Their dataset on the Hub.
        reports (`list[CycleReport]`): Reports of the cycles of the last call of `train`.
        stopped (`str`, *optional*): Message about the budget that ended the run before its last cycle.
        trained_cycles (`int`): Number of cycles that have been trained.
    """

    args: IterKDConfig

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str,
        teacher_model: PreTrainedModel | nn.Module | str | None = None,
        args: IterKDConfig | None = None,
        train_dataset: Dataset | None = None,
        *,
        text_teacher: TextGenerator | None = None,
        judge: Judge | TextGenerator | None = None,
        executor: CodeExecutor | None = None,
        held_out: Sequence[Question] = (),
        program_of: ProgramOf | None = None,
        benchmarks: Mapping[str, Sequence[str]] | None = None,
        generation_batch_size: int = 16,
        settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check_arguments(type(self), args, IterKDConfig)
        if args is not None and args.teacher_cache is not None:
            raise ValueError(
                f"`teacher_cache` is {args.teacher_cache!r}, but each cycle trains on new answers, for which no cache "
                "has signals; leave it out and set `teacher_model_name_or_path`."
            )
        self._further_settings = dict(settings or {})
        self.seeds = read_questions(() if train_dataset is None else train_dataset)
        self._student_name = name_of(model)
        self._teacher_name = name_of(teacher_model) or getattr(args, "teacher_model_name_or_path", None)
        super().__init__(model, teacher_model, args, **kwargs)
        self.text_teacher = text_teacher
        self.judge = judge
        self.executor = executor
        self.held_out = list(held_out)
        self.held_out_name = "held-out questions"
        self.held_out_dataset: str | None = None
        self.program_of = program_of
        self.benchmarks = {**(benchmarks or {}), "held_out": [question.instruction for question in held_out]}
        self._generation_batch_size = generation_batch_size
        self.reports: list[CycleReport] = []
        self.stopped: str | None = None
        self._limit: Limit | None = None
        self.trained_cycles = 0
        self._has_trained = False  # whether the student in memory has been trained
        self._loss = 0.0  # of the last training
        self._earlier_steps = 0  # of the cycles before the current one

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Run the cycles.

        The ledger and the students in the output folder are reused. An interrupted run, a run whose budget was spent
        and a finished run with more `cycles` thus continue when they are started again.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                No effect, as a run always continues. Paths are refused, as cycles have no single checkpoint.

        Returns:
            `TrainOutput`: steps and loss of the last training, 0 if all cycles were trained before, with the metrics
            of the last cycle.

        Raises:
            ValueError: If there is no text teacher, the folder belongs to a run with other settings, or a cycle
                has no training data.
            GenerationError: If teacher or judge fail; their completions are kept.
            BlockingIOError: If another run uses the folder.
        """
        if isinstance(resume_from_checkpoint, str) and resume_from_checkpoint.lower() not in ("true", "false"):
            raise ValueError(
                f"`resume_from_checkpoint` is {resume_from_checkpoint!r}, but a run of cycles continues from its "
                "ledger; leave it out and give the `output_dir` of that run."
            )
        if self.text_teacher is None:
            raise ValueError("`text_teacher` is missing; give a TextGenerator that writes the answers.")
        folder = Path(str(self.args.output_dir))
        # transformers ends a run of trackio after each cycle, and continues one of the same name.
        self.args.run_name = self.args.run_name or str(folder)
        spending = folder / LEDGER / "spending.json"
        with ExitStack() as stack:
            ledger = stack.enter_context(
                CycleLedger(folder / LEDGER, self._settings(), self.accelerator, progress=not self.args.disable_tqdm)
            )
            spent = ledger.usage(self._paid_models)
            budget = self._budget(spent, spending)
            if budget.is_limited and is_main_process(self.accelerator):
                stack.enter_context(costs.recording_spending(spending, budget))
            self._announce_costs(spent)
            cycles = Cycles(
                self,
                self._participants(ledger, budget),
                self.args,
                ledger,
                folder=folder,
                prompt_template=self.args.prompt_template,
                accelerator=self.accelerator,
                announce=self._announce,
                on_report=self._log_report,
            )
            self.stopped, self._limit = None, None
            try:
                cycles.run(self.seeds)
            except BudgetSpent as end:
                self.stopped, self._limit = str(end), end.limit
            finally:
                self.reports, self.trained_cycles = cycles.reports, cycles.trained
            usage = ledger.usage(self._paid_models)
        run_on_main_and_broadcast(self.accelerator, lambda: self._write_reports(folder, usage, budget))
        return TrainOutput(self.state.global_step, self._loss, self._cycle_metrics())

    def save_student(self, folder: Path) -> None:
        """Write the student's weights and tokenizer."""
        self.save_model(str(folder), _internal_call=True)  # without a push to the Hub

    def student_generator(self, batch_size: int | None = None, **settings: Any) -> TransformersGenerator:
        """Return a generator of the current student, which is valid until the next cycle begins."""
        return super().student_generator(batch_size or self._generation_batch_size, **settings)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upload the student as [`AKDTrainer`] does, and the ledger if `push_ledger_to_hub` is on."""
        result = super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        if self.args.push_ledger_to_hub and is_main_process(self.accelerator):
            assert self.hub_model_id is not None
            private = self.args.hub_private_repo if private is None else private
            private = True if private is None else private
            name = f"{self.hub_model_id}-ledger"
            folder = Path(str(self.args.output_dir))
            upload_dataset(
                name,
                ledger_content(folder / LEDGER, self.hub_model_id),
                kept=repeat_command(folder, hub_dataset_id=name, private=private),
                token=self.args.hub_token if token is None else token,
                private=private,
            )
        return result

    def train_cycle(self, pairs: Dataset, *, cycle: int, output_dir: Path) -> None:
        """Train one cycle, resuming at the last complete checkpoint."""
        checkpoint = run_on_main_and_broadcast(self.accelerator, lambda: last_whole_checkpoint(output_dir))
        if cycle == 0 and checkpoint is None and self._has_trained:
            raise ValueError(
                "the student in memory has been trained before, but the first cycle starts from an untrained one; "
                "create a new trainer."
            )
        self._has_trained = True
        self._earlier_steps = self._steps_before(cycle)
        self._loss = self.train_on(pairs, cycle, output_dir, resume_from_checkpoint=checkpoint).training_loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as [`AKDTrainer`] does, at the step since the beginning of the first cycle."""
        own = self.state.global_step
        self.state.global_step = own + self._earlier_steps
        try:
            super().log(logs, start_time)
        finally:
            self.state.global_step = own

    def _log_report(self, report: CycleReport) -> None:
        self._earlier_steps = self._steps_before(report.cycle + 1) - self.state.global_step
        self.log(tracked_metrics(report))

    def _steps_before(self, cycle: int) -> int:
        """Return the number of optimizer steps of the cycles before one."""
        return run_on_main_and_broadcast(self.accelerator, lambda: self._saved_steps(cycle))

    def _saved_steps(self, cycles: int) -> int:
        """Return the number of optimizer steps in the saved states of the first cycles."""
        folder = Path(str(self.args.output_dir))
        return sum(_steps_of(folder / f"cycle-{cycle}" / TRAINER_STATE_NAME) for cycle in range(cycles))

    def _participants(self, ledger: CycleLedger, budget: Budget) -> Participants:
        """Return teacher, judge, runner and data, with recorded results and a shared budget."""
        assert self.text_teacher is not None
        shared: dict[int, TextGenerator] = {}

        def share(generator: TextGenerator) -> TextGenerator:
            """Return a generator that all processes call together, within the budget; the same for the same one."""
            if id(generator) not in shared:
                limited = self._limited(generator, budget) if budget.is_limited else generator
                shared[id(generator)] = for_all_processes(limited, self.accelerator)
            return shared[id(generator)]

        return Participants(
            teacher=share(self.text_teacher),
            judge=self._recorded_judge(ledger, share),
            run=None if self.executor is None else self.executor.run,
            held_out=self.held_out,
            program_of=self.program_of,
            benchmarks=self.benchmarks,
        )

    def _budget(self, spent: Mapping[str, Usage], spending: Path) -> Budget:
        """Return the budget of the whole run, with earlier spending deducted."""
        recorded = sum(spent.values(), Usage())
        earlier = run_on_main_and_broadcast(self.accelerator, lambda: costs.read_spending(spending))
        return Budget(
            max_requests=self.args.max_requests,
            max_tokens=self.args.max_tokens,
            max_seconds=self.args.max_seconds,
            spent=replace(recorded, requests=max(recorded.requests, earlier.requests)),
            seconds=earlier.seconds,
        )

    def _limited(self, generator: TextGenerator, budget: Budget) -> TextGenerator:
        return BudgetedGenerator(
            generator,
            budget=budget,
            batch_size=self._generation_batch_size,
            accelerator=self.accelerator if is_shared(generator) else None,
        )

    @property
    def _paid_models(self) -> tuple[str, ...]:
        """Names of the models with usage in the ledger."""
        return ("teacher", "judge") if self._judge_is_generative else ("teacher",)

    @property
    def _judge_is_generative(self) -> bool:
        return self.judge is not None and not isinstance(self.judge, Judge)

    @property
    def _prices(self) -> dict[str, costs.Price]:
        return costs.prices(self.args, teacher_judges=self.judge is self.text_teacher)

    def _announce_costs(self, spent: Mapping[str, Usage]) -> None:
        """Log an estimate of the cost before the first request."""
        bound = costs.estimate_usage(self.seeds, self.args, judged=self._judge_is_generative)
        most = costs.describe_usage(bound, self._prices)
        self._announce(f"Upper bound of the cost, with cycles={self.args.cycles}: {most}")
        if sum(spent.values(), Usage()).requests:
            self._announce(f"Spent so far: {costs.describe_usage(spent, self._prices)}")

    def _write_reports(self, folder: Path, usage: Mapping[str, Usage], budget: Budget) -> None:
        write_reports(self.reports, folder)
        costs.write_usage(
            folder,
            usage,
            self._prices,
            trained_cycles=self.trained_cycles,
            stopped=self._limit,
            seconds=None if self.args.max_seconds is None else budget.seconds,
        )

    def _recorded_judge(self, ledger: CycleLedger, share: Callable[[TextGenerator], TextGenerator]) -> Judge | None:
        """Return a judge that records its judgements."""
        if self.judge is None:
            return None
        if isinstance(self.judge, Judge):
            return ledger.recorded_judge(self.judge, model_name(self.judge))
        judge, prompt = requesting_json(self.judge, self.args.judge_prompt)
        return GenerativeJudge(
            ledger.recorded(share(judge), "judge", prompts=prompt.version),
            prompt=prompt,
            max_new_tokens=self.args.teacher_max_new_tokens,
            retries=self.args.judge_retries,
        )

    def _settings(self) -> dict[str, Any]:
        """Return the settings that a continued run must not change."""
        return {
            "student": self._student_name,
            "teacher": self._teacher_name,
            "text_teacher": model_name(self.text_teacher),
            "judge": None if self.judge is None else model_name(self.judge),
            "executor": self.executor is not None,
            "seeds": digest(self.seeds),
            "held_out": digest(self.held_out),
            **training_settings(self.args),
            **model_settings(self.model, self.accelerator),
            **self._further_settings,
        }

    def _announce(self, sentence: str) -> None:
        if is_main_process(self.accelerator):
            print(sentence, flush=True)

    def _find_prompt_format(self, dataset: Dataset, args: Any) -> PromptFormat:
        return template_format(args.prompt_template)

    def _card_facts(self) -> dict[str, str]:
        facts = {
            "Teacher that writes the answers": public_path(model_name(self.text_teacher)),
            "Judge": "none" if self.judge is None else public_path(model_name(self.judge)),
            "Answers verified by": "parsing" if self.executor is None else "execution",
            "Seed questions": f"{len(self.seeds):,}",
            "Cycles": str(len(self.reports)),
        }
        steps = self._saved_steps(self.trained_cycles)
        return facts if steps == 0 else {**facts, **training_facts(self.args, steps, " per cycle")}

    def _card_sections(self) -> list[str]:
        cycles = [f"## Cycles\n\n{cycle_table(self.reports)}"] if self.reports else []
        return [*super()._card_sections(), *cycles]

    def _measured_scores(self) -> list[EvalResult]:
        if not self.reports or not self.reports[-1].held_out:
            return super()._measured_scores()
        name = self.held_out_name
        return score_results(
            name,
            self.held_out_dataset or name,
            self.reports[-1].held_out,
            problems=int(self.reports[-1].held_out["pass@1_tasks"]),
            cycle=self.reports[-1].cycle + 1,
        )

    def _cycle_metrics(self) -> dict[str, float]:
        if not self.reports:
            return {}
        last = self.reports[-1]
        return {"cycles": len(self.reports), "feedback": last.feedback["score"], **last.held_out}


def _steps_of(state: Path) -> int:
    """Return the number of steps in a saved state; 0 if there is none, as in runs of earlier versions."""
    try:
        return int(json.loads(state.read_text())["global_step"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0
