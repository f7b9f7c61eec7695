"""Trainer callback that runs a benchmark at every evaluation."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..akd.akd_trainer import AKDTrainer
from ..akd.on_policy import report_table
from ..data.templates import DEFAULT_TEMPLATE
from ..distributed import run_on_main_and_broadcast
from ..execution import CodeExecutor
from ..generation.loading import generator_of_model
from ..generation.protocol import SamplingParams
from ..generation.transformers_generator import default_max_new_tokens
from .benchmarks import Benchmark, load_benchmark
from .cards import card_scores
from .evaluation_config import DEFAULT_PROGRAM_TIMEOUT
from .prompts import Prompting, PromptStyle, remark_on_style
from .report import error_counts
from .results import benchmark_facts, evaluation_folder, summarize, write_results
from .samples import Samples, write_sample_file
from .sampling import handle_long_prompts, write_samples
from .verdicts import Verdict, run_samples, write_verdicts

__all__ = ["PassAtKCallback"]

logger = logging.getLogger(__name__)

_LOGGED_AS = "eval_"
_CONFIDENCE = 0.95


class PassAtKCallback(TrainerCallback):
    """Run a benchmark whenever the trainer evaluates, and log `eval_pass@k` with its interval.

    The values are added to the metrics of the evaluation, so `metric_for_best_model="eval_pass@1"` works. Generation
    is distributed over all processes (DDP, ZeRO-1 to ZeRO-3); programs run on the main process. The model's mode and
    the random state of training are restored. Samples, verdicts and results are written to `evaluation/step-N` in the
    output folder, in the files of `trl-akd evaluate`.

    Args:
        trainer (`Trainer`):
            Trainer whose model is evaluated, with the tokenizer as `processing_class`.
        benchmark (`str` or [`Benchmark`]):
            Benchmark, or its name or file, as in `load_benchmark`.
        k (`Sequence[int]`, *optional*, defaults to `(1,)`):
            Value of k for pass@k.
        prompt_style (`str`, *optional*, defaults to `"template"`):
            Style of prompts: `"template"`, `"completion"` or `"chat"`.
        prompt_template (`str`, *optional*, defaults to `"alpaca"`):
            Template of the style `"template"`.
        num_samples (`int`), temperature (`float`), top_p (`float`), max_new_tokens (`int`), seed (`int`):
            Sampling parameters. Defaults to one greedy sample per problem of up to 512 tokens, or half of the model's
            positions if that is less.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of sequences generated together on each process.
        executor ([`CodeExecutor`], *optional*):
            Sandbox of the programs. By default, the callback creates one, which requires `HF_ALLOW_CODE_EVAL=1` or
            `allow_code_execution`.
        allow_code_execution (`bool`, *optional*):
            Whether that sandbox may run programs.
        log_completions (`bool`, *optional*, defaults to `False`):
            Whether to report the completions with their outcomes as a table `eval_completions` to Weights & Biases,
            trackio and TensorBoard, if they are in `report_to`.

    Raises:
        ValueError: If the benchmark is malformed, one of its prompts is too long for the model, or the trainer never
            evaluates.
        PermissionError: If running code was not allowed.

    Example:

    ```python
    >>> trainer.add_callback(PassAtKCallback(trainer, "humaneval", allow_code_execution=True))  # doctest: +SKIP

    ```
    """

    def __init__(
        self,
        trainer: Trainer,
        benchmark: str | Benchmark,
        *,
        k: Sequence[int] = (1,),
        prompt_style: PromptStyle = "template",
        prompt_template: str = DEFAULT_TEMPLATE,
        num_samples: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int | None = None,
        seed: int = 0,
        batch_size: int = 16,
        executor: CodeExecutor | None = None,
        allow_code_execution: bool | None = None,
        log_completions: bool = False,
    ) -> None:
        if trainer.args.eval_strategy == "no":
            raise ValueError("`eval_strategy` is 'no', so no benchmark would be run; set it to 'steps' or 'epoch'.")
        if max(k) > num_samples:
            raise ValueError(
                f"`k` asks for pass@{max(k)}, but `num_samples` is {num_samples}; generate at least as many samples."
            )
        self.benchmark = load_benchmark(benchmark) if isinstance(benchmark, str) else benchmark
        self._trainer = trainer
        self._k = k
        self._prompting = Prompting(prompt_style, prompt_template)
        if max_new_tokens is None:
            max_new_tokens = default_max_new_tokens(trainer.model.config)
        self._sampling = SamplingParams(num_samples, temperature, top_p, max_new_tokens, (), seed)
        self._batch_size = batch_size
        self._log_completions = log_completions
        self._progress = trainer.accelerator.is_main_process and not trainer.args.disable_tqdm
        self._executor = executor
        if executor is None and trainer.accelerator.is_main_process:
            self._executor = CodeExecutor(
                timeout=DEFAULT_PROGRAM_TIMEOUT,
                packages=self.benchmark.packages,
                strict=self.benchmark.strict,
                allow_code_execution=allow_code_execution,
            )
        handle_long_prompts(
            generator_of_model(trainer.model, trainer.processing_class, chat=prompt_style == "chat"),
            self.benchmark.problems,
            Samples(),
            self._prompting,
            self._sampling,
            long_prompts=None,
        )
        if isinstance(trainer, AKDTrainer) and trainer.is_world_process_zero():
            if remark := remark_on_style(trainer.prompt_format, self._prompting):
                logger.warning("%s The field of a recipe is `eval_prompt_style`.", remark)
        self._found: dict[str, float] = {}

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Add pass@k to the metrics of an evaluation; with several datasets, only the first runs the benchmark."""
        datasets = self._trainer.eval_dataset
        first = next(iter(datasets)) if isinstance(datasets, dict) else None
        if first is None or f"eval_{first}_runtime" in metrics:
            results = self._evaluate()
            scores = {name: value for name, value in results["metrics"].items() if name.startswith("pass@")}
            self._found = {f"{_LOGGED_AS}{name}": value for name, value in scores.items()}
            self._trainer.log(dict(self._found))
            self._keep_for_card(scores, state.global_step)
            if isinstance(self._trainer, AKDTrainer):
                self._trainer.outcomes[state.global_step] = error_counts(results)
        metrics.update(self._found)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the scores of earlier evaluations from the log of the checkpoint that training resumes from."""
        for entry in state.log_history:
            scores = {
                name.removeprefix(_LOGGED_AS): value
                for name, value in entry.items()
                if name.startswith(f"{_LOGGED_AS}pass@")
            }
            if scores:
                self._keep_for_card(scores, entry["step"])

    def _keep_for_card(self, scores: Mapping[str, float], step: int) -> None:
        if isinstance(self._trainer, AKDTrainer):
            results = {"benchmark": benchmark_facts(self.benchmark), "metrics": {**scores, "confidence": _CONFIDENCE}}
            self._trainer.scores[step] = card_scores(results, self._settings(step))

    def _settings(self, step: int) -> dict[str, Any]:
        return {
            "num_samples": self._sampling.n,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "max_new_tokens": self._sampling.max_new_tokens,
            "prompt_style": self._prompting.style,
            "prompt_template": self._prompting.template,
            "step": step,
        }

    def _evaluate(self) -> dict[str, Any]:
        accelerator = self._trainer.accelerator
        samples = Samples()
        write_samples(
            generator_of_model(
                self._trainer.model_wrapped,
                self._trainer.processing_class,
                chat=self._prompting.style == "chat",
                batch_size=self._batch_size,
                accelerator=accelerator,
            ),
            self.benchmark.problems,
            samples,
            self._prompting,
            self._sampling,
            batch_size=self._batch_size * accelerator.num_processes,
            progress=self._progress,
        )
        return run_on_main_and_broadcast(accelerator, lambda: self._score(samples))

    def _score(self, samples: Samples) -> dict[str, Any]:
        assert self._executor is not None
        verdicts = run_samples(self.benchmark.problems, samples.by_task, self._executor, progress=self._progress)
        results = summarize(self.benchmark, verdicts, self._k, confidence=_CONFIDENCE)
        try:
            self._save(results, verdicts)
        except OSError as error:
            logger.warning("The programs of this evaluation were not saved: %s", error)
        if self._log_completions:
            callbacks = self._trainer.callback_handler.callbacks
            report_table("eval_completions", self._table(verdicts), self._trainer.args.report_to, callbacks)
        return results

    def _table(self, verdicts: Sequence[Verdict]) -> pa.Table:
        prompts = {problem.task_id: self._prompting.ask(problem) for problem in self.benchmark.problems}
        step = self._trainer.state.global_step
        return pa.Table.from_pylist(
            [
                {
                    "step": step,
                    "task_id": verdict.sample.task_id,
                    "prompt": prompts[verdict.sample.task_id],
                    "completion": verdict.sample.completion,
                    "status": verdict.result.status,
                    "error_type": verdict.label.error_type,
                }
                for verdict in verdicts
            ]
        )

    def _save(self, results: Mapping[str, Any], verdicts: Sequence[Verdict]) -> None:
        """Write samples, verdicts and results."""
        step = self._trainer.state.global_step
        folder = evaluation_folder(str(self._trainer.args.output_dir), step)
        write_sample_file(folder, [verdict.sample for verdict in verdicts])
        write_verdicts(folder, verdicts)
        model = {"name": f"{Path(str(self._trainer.args.output_dir)).name}, step {step}", "commit": None}
        settings = {"generation": self._settings(step), "execution": self._executor.limits if self._executor else None}
        write_results(folder, {"model": model, **settings, **results})
