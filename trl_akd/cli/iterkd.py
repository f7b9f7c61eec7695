r"""`trl-akd iterkd`: train a student in cycles of correct and faulty answers, feedback and new questions.

```bash
trl-akd iterkd --config recipes/deepseek-coder-33b-to-6.7b/iterkd/config.yaml --dry_run
trl-akd iterkd --config recipes/deepseek-coder-33b-to-6.7b/iterkd/config.yaml \
    --accelerate_config zero3
accelerate launch --config_file recipes/accelerate_configs/zero3.yaml --num_processes 8 \
    -m trl_akd.cli.iterkd --config recipes/deepseek-coder-33b-to-6.7b/iterkd/config.yaml
```

The same command continues an interrupted run. A run whose budget is spent saves the last trained student and ends with
exit status 3; it continues with a larger budget.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..iterkd.cycle.teaching_config import TeachingConfig
from .command import check_output
from .errors import run, user_errors
from .methods import Method, Quickstart
from .recipes import Recipe

if TYPE_CHECKING:
    from ..evaluation.benchmarks import Benchmark
    from ..execution import CodeExecutor
    from ..generation import TextGenerator
    from ..iterkd.cycle.cycles import ProgramOf
    from ..iterkd.iterkd_config import IterKDConfig
    from ..iterkd.iterkd_trainer import IterKDTrainer
    from ..iterkd.judge.judges import Judge
    from .dry_run import DryRun

__all__ = ["METHOD", "IterKDMethod", "main"]

DEFAULT_BATCH_SIZE = 16
_DRY_RUN_CYCLES = 2
_DRY_RUN_QUESTIONS = {"new_easy": 2, "new_medium": 2, "new_hard": 2, "questions_per_cycle": 8}


class IterKDMethod(Method):
    """IterKD: cycles of correct and faulty answers, feedback and new questions."""

    name = "iterkd"
    continues = True

    def config_class(self) -> "type[IterKDConfig]":
        """Return [`IterKDConfig`]."""
        from ..iterkd.iterkd_config import IterKDConfig

        return IterKDConfig

    def trainer_class(self) -> "type[IterKDTrainer]":
        """Return [`IterKDTrainer`]."""
        from ..iterkd.iterkd_trainer import IterKDTrainer

        return IterKDTrainer

    def argument_types(self) -> tuple[type, ...]:
        """Return the dataclasses of data, training and student, and that of teacher and judge."""
        return *super().argument_types()[:3], TeachingConfig

    def check(self, *arguments: Any) -> None:
        """Check that there is a teacher that writes answers.

        Raises:
            ValueError: If there is none, or only a server that scores texts.
        """
        _, training_args, _, teaching = arguments
        if teaching.text_teacher_model_name_or_path is None and training_args.teacher_model_name_or_path is None:
            raise ValueError(
                "no model writes answers: give `teacher_model_name_or_path`, or `text_teacher_model_name_or_path` "
                "for a text teacher."
            )
        if teaching.text_teacher_model_name_or_path is None and training_args.teacher_base_url is not None:
            raise ValueError(
                "`teacher_base_url` is set, so no teacher in this process writes answers: give "
                "`text_teacher_model_name_or_path`, with `backend: openai` and `base_url` for the same server."
            )

    def adapt_dry_run(self, dry_run: "DryRun") -> None:
        """Replace teacher and judge by a mock server with canned replies, and run fewer and shorter cycles."""
        from .dry_run import MAX_NEW_TOKENS

        values = dry_run.values
        _mock_teacher(dry_run)
        dry_run.replaced += [
            f"{name}: left out" for name in dict.fromkeys(values.decontaminate) if name != values.eval_benchmark
        ]
        values.decontaminate = []
        values.cycles = _DRY_RUN_CYCLES
        values.push_ledger_to_hub = False
        values.max_requests = values.max_tokens = values.max_seconds = None
        limits = _DRY_RUN_QUESTIONS | {"answer_max_new_tokens": MAX_NEW_TOKENS}
        vars(values).update({name: min(getattr(values, name), limit) for name, limit in limits.items()})
        dry_run.checked.append(f"{_DRY_RUN_CYCLES} cycles of answers, training, feedback and new questions")
        dry_run.not_checked += ["whether the server can be reached", "what the real teacher writes"]

    def dry_run_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the questions without their tests, which the canned replies would not pass.

        Raises:
            ValueError: If a row is not a question.
        """
        from ..iterkd.cycle.records import read_questions

        read_questions(rows)
        return [{name: value for name, value in row.items() if name != "tests"} for row in rows]

    def quickstart(self) -> Quickstart:
        """Return the example of two cycles on generated questions."""
        from .quickstarts import ITERKD

        return ITERKD

    def train(self, *arguments: Any, recipe: Recipe | None = None) -> None:
        """Run the cycles, save the last student, and push it to the Hub if requested.

        Raises:
            UserError: If something is wrong with the arguments, or the teacher or the judge fails.
            StoppedEarly: If a budget ended the run; the last student is saved.
        """
        from ..execution import IsolationError
        from ..generation import GenerationError
        from ..iterkd.iterkd_trainer import LEDGER
        from .errors import SETUP_ERRORS, StoppedEarly
        from .training import check_merging, finish, make_trainer, set_provenance, warn_about_model

        script_args, training_args, model_args, teaching = arguments
        with user_errors((*SETUP_ERRORS, GenerationError, IsolationError, FloatingPointError)):
            self.check(*arguments)
            check_merging(script_args, training_args, model_args)
            check_output(
                "output_dir",
                training_args.output_dir,
                text_teacher_model_name_or_path=teaching.text_teacher_model_name_or_path,
                judge_model_name_or_path=teaching.judge_model_name_or_path,
            )
            teacher_server, judge_server = _servers(teaching)  # checked before models load
            benchmark = _benchmark(teaching)
            if not (Path(str(training_args.output_dir)) / LEDGER).is_dir():  # otherwise the run continues
                warn_about_model(training_args)
            with _executor(teaching) as executor:
                trainer = make_trainer(
                    self,
                    script_args,
                    training_args,
                    model_args,
                    executor=executor,
                    held_out=_questions(benchmark),
                    program_of=_program_of(benchmark),
                    benchmarks=_texts(benchmark, teaching.decontaminate),
                    generation_batch_size=teaching.generation_batch_size or DEFAULT_BATCH_SIZE,
                    settings=teaching.settings,
                )
                trainer.text_teacher = _text_teacher(teaching, trainer) if teacher_server is None else teacher_server
                trainer.judge = _judge(teaching, trainer) if judge_server is None else judge_server
                if benchmark is not None:
                    trainer.held_out_name, trainer.held_out_dataset = benchmark.name, benchmark.dataset
                set_provenance(trainer, self.name, script_args, recipe)
                trainer.train(training_args.resume_from_checkpoint)
            finish(trainer, is_trained=trainer.trained_cycles > 0, merge_adapter=script_args.hub_merge_adapter)
        _print_results(trainer)
        if trainer.stopped is not None:
            raise StoppedEarly(trainer.stopped)


def _mock_teacher(dry_run: "DryRun") -> None:
    """Check the fields of teacher and judge, then replace both by a mock server."""
    from ..generation.loading import DEFAULT_API_KEY_ENV
    from ..iterkd.cycle.prompts import TeachingPrompts
    from ..iterkd.judge.prompts import JudgePrompt
    from .mock_server import run_mock_server, write_prompts

    values = dry_run.values
    TeachingConfig(**{field.name: getattr(values, field.name) for field in fields(TeachingConfig)})
    if values.prompts_file is not None:
        TeachingPrompts.from_file(values.prompts_file)
    if values.judge_prompt_file is not None:
        JudgePrompt.from_file(values.judge_prompt_file)
    values.prompts_file, values.judge_prompt_file = write_prompts(dry_run.folder)
    teacher = values.text_teacher_model_name_or_path or values.teacher_model_name_or_path
    if teacher is None:
        return
    values.text_teacher_model_name_or_path, values.text_teacher_model_revision = teacher, None
    values.backend, values.base_url = "openai", dry_run.resources.enter_context(run_mock_server())
    dry_run.replaced.append(f"text of {teacher}: canned replies of a mock server")
    judge = values.judge_model_name_or_path or values.judge
    if judge not in ("teacher", "none"):
        dry_run.replaced.append(f"{judge}: the same server")
        values.judge = "teacher"
    values.judge_base_url = values.judge_model_name_or_path = values.judge_extra_body = values.judge_backend = None
    values.api_key_env = values.judge_api_key_env = DEFAULT_API_KEY_ENV


def _print_results(trainer: "IterKDTrainer") -> None:
    """Print the table of the cycles and the paths of the report and the student."""
    from ..iterkd.cycle.report import cycle_table

    if not trainer.is_world_process_zero():
        return
    output_dir = trainer.args.output_dir
    print(f"\n{cycle_table(trainer.reports)}\n")
    print(f"Report: {output_dir}/cycles.json; requests and tokens: {output_dir}/usage.json")
    if trainer.trained_cycles == 0:
        print(f"No cycle was trained: the student in {output_dir} is unchanged.")
    else:
        print(f"Student: {output_dir}, after {trainer.trained_cycles} of {trainer.args.cycles} cycles")
    if trainer.stopped is not None:
        print(f"Stopped: {trainer.stopped}")


def _benchmark(teaching: TeachingConfig) -> "Benchmark | None":
    from ..evaluation.benchmarks import load_benchmark

    if teaching.eval_benchmark is None:
        return None
    return load_benchmark(teaching.eval_benchmark, teaching.eval_benchmark_path, limit=teaching.eval_benchmark_limit)


def _questions(benchmark: "Benchmark | None") -> list[Any]:
    from ..iterkd.cycle.records import Question

    problems = () if benchmark is None else benchmark.problems
    return [Question(problem.task_id, problem.instruction, problem.tests) for problem in problems]


def _program_of(benchmark: "Benchmark | None") -> "ProgramOf":
    """Return the function that extracts the program from an answer, as `trl-akd evaluate` does."""
    from ..evaluation.prompts import program_of_answer

    problems = {} if benchmark is None else {problem.task_id: problem for problem in benchmark.problems}
    return lambda question, answer: program_of_answer(problems[question.id], answer)


def _texts(benchmark: "Benchmark | None", names: Sequence[str]) -> Mapping[str, list[str]]:
    """Return the texts of the problems of each benchmark."""
    from ..evaluation.benchmarks import load_benchmark

    found = [*([] if benchmark is None else [benchmark]), *(load_benchmark(name) for name in names)]
    return {
        each.name: [text for problem in each.problems for text in (problem.instruction, problem.prompt) if text]
        for each in found
    }


def _executor(teaching: TeachingConfig) -> "AbstractContextManager[CodeExecutor | None]":
    from ..execution import CodeExecutor

    if not teaching.allow_code_execution and os.environ.get("HF_ALLOW_CODE_EVAL") != "1":
        return nullcontext()
    return CodeExecutor(allow_code_execution=True, timeout=teaching.program_timeout, workers=teaching.workers)


def _text_teacher(teaching: TeachingConfig, trainer: "IterKDTrainer") -> "TextGenerator":
    """Return the text teacher in this process: a separate model, or the teacher model of the trainer."""
    from ..generation.loading import generator_of_model, load_generator

    chat = teaching.prompt_style == "chat"
    if teaching.text_teacher_model_name_or_path is not None:
        config = replace(teaching.text_teacher_generator, trust_remote_code=trainer.args.trust_remote_code)
        return load_generator(config, chat=chat, accelerator=trainer.accelerator).generator
    from transformers import AutoTokenizer

    return generator_of_model(
        trainer.teacher_model,
        AutoTokenizer.from_pretrained(trainer.args.teacher_model_name_or_path, **trainer.args.teacher_source),
        chat=chat,
        batch_size=teaching.generation_batch_size or DEFAULT_BATCH_SIZE,
        accelerator=trainer.accelerator,
    )


def _judge(teaching: TeachingConfig, trainer: "IterKDTrainer") -> "Judge | TextGenerator | None":
    """Return the judge, or the generator that writes judgements, in this process."""
    from ..generation.loading import load_generator
    from ..iterkd.judge.judges import RegressionJudge

    name = teaching.judge_model_name_or_path
    if name is None:
        return trainer.text_teacher if teaching.judge == "teacher" else None
    if teaching.judge_generator.backend == "transformers" and _is_classifier(name, teaching.judge_model_revision):
        return RegressionJudge.from_pretrained(name, revision=teaching.judge_model_revision)
    return load_generator(
        teaching.judge_generator, chat=teaching.judges_by_chat, accelerator=trainer.accelerator, prefix="judge_"
    ).generator


def _is_classifier(name: str, revision: str | None) -> bool:
    from transformers import AutoConfig

    from ..generation.loading import find_base_model

    source = {"revision": revision, "trust_remote_code": False}
    if find_base_model(name, source) is not None:
        return False
    config = AutoConfig.from_pretrained(name, **source)
    architectures = config.architectures or ()
    return any("SequenceClassification" in architecture for architecture in architectures)


def _servers(teaching: TeachingConfig) -> tuple["TextGenerator | None", "TextGenerator | None"]:
    """Return the text teacher and the judge if they are on servers."""
    from ..generation.loading import load_generator

    teacher = judge = None
    if teaching.base_url is not None:
        teacher = load_generator(teaching.text_teacher_generator, chat=teaching.prompt_style == "chat").generator
    if teaching.judge_base_url is not None:
        judge = load_generator(teaching.judge_generator, chat=teaching.judges_by_chat, prefix="judge_").generator
    return teacher, judge


METHOD = IterKDMethod()
main = METHOD.main

if __name__ == "__main__":
    raise SystemExit(run(main))
