r"""`trl-akd iterkd`: cycles of right and wrong answers, feedback, and new questions, as a recipe says.

```bash
trl-akd iterkd --config recipes/deepseek-coder-33b-to-6.7b/iterkd/config.yaml --dry_run
trl-akd iterkd --config recipes/deepseek-coder-33b-to-6.7b/iterkd/config.yaml --accelerate_config zero3
accelerate launch --config_file recipes/accelerate_configs/zero3.yaml --num_processes 8 \
    -m trl_akd.cli.iterkd --config recipes/deepseek-coder-33b-to-6.7b/iterkd/config.yaml
```

A run that was interrupted goes on when the same command is given again. One that has spent its budget ends with the
last student that it has trained and exit status 3, and goes on when it is given more.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from ..iterkd.teaching_config import TeachingConfig
from .arguments import AKDScriptArguments
from .errors import run, user_errors
from .training import start

if TYPE_CHECKING:
    from trl import ModelConfig

    from ..evaluation.benchmarks import Benchmark
    from ..execution import CodeExecutor
    from ..generation import TextGenerator
    from ..iterkd.cycles import ProgramOf
    from ..iterkd.iterkd_config import IterKDConfig
    from ..iterkd.iterkd_trainer import IterKDTrainer
    from ..iterkd.judges import Judge

__all__ = ["main", "train"]

DEFAULT_BATCH_SIZE = 16


def main(argv: list[str] | None = None) -> None:
    """Run the command on `argv`, by default the process's arguments."""
    start("iterkd", _argument_types, train, argv)


def train(
    script_args: AKDScriptArguments,
    training_args: "IterKDConfig",
    model_args: "ModelConfig",
    teaching: TeachingConfig,
    recipe: str | None = None,
) -> None:
    """Run the cycles, save the last student, and push it to the Hub where the arguments ask for it.

    Raises:
        UserError: If something is wrong with the arguments, or the teacher or the judge fails.
        StoppedEarly: If a budget ended the run; the last student is saved as ever.
    """
    from ..execution import IsolationError
    from ..generation import GenerationError
    from ..iterkd.iterkd_trainer import IterKDTrainer
    from .distilling import finish, make_trainer
    from .errors import SETUP_ERRORS, StoppedEarly

    with user_errors((*SETUP_ERRORS, GenerationError, IsolationError, FloatingPointError)):
        if teaching.text_teacher_model_name_or_path is None and training_args.teacher_model_name_or_path is None:
            raise ValueError(
                "no model writes answers: give `teacher_model_name_or_path`, or `text_teacher_model_name_or_path` "
                "for a teacher that only writes."
            )
        teacher_server, judge_server = _servers(teaching)  # checked before models load
        benchmark = _benchmark(teaching)
        with _executor(teaching) as executor:
            trainer = make_trainer(
                IterKDTrainer,
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
            trainer.provenance.dataset = script_args.dataset_name
            trainer.provenance.dataset_revision = script_args.dataset_revision
            trainer.provenance.recipe = recipe
            trainer.train(training_args.resume_from_checkpoint)
        finish(trainer, is_trained=trainer.trained_cycles > 0)
    _conclude(trainer)
    if trainer.stopped is not None:
        raise StoppedEarly(trainer.stopped)


def _conclude(trainer: "IterKDTrainer") -> None:
    """Print the table of the cycles, where the report is, and what became of the student."""
    from ..iterkd.cycle_report import cycle_table

    if not trainer.is_world_process_zero():
        return
    output_dir = trainer.args.output_dir
    print(f"\n{cycle_table(trainer.reports)}\n")
    print(f"Report: {output_dir}/cycles.json, with what was used in {output_dir}/usage.json")
    if trainer.trained_cycles == 0:
        print(f"No cycle was trained: the student in {output_dir} is the one that the run began with.")
    else:
        print(f"Student: {output_dir}, after {trainer.trained_cycles} of {trainer.args.cycles} cycles")
    if trainer.stopped is not None:
        print(f"Stopped: {trainer.stopped}")


def _argument_types() -> tuple[type, ...]:
    from trl import ModelConfig

    from ..iterkd.iterkd_config import IterKDConfig

    return AKDScriptArguments, IterKDConfig, ModelConfig, TeachingConfig


def _benchmark(teaching: TeachingConfig) -> "Benchmark | None":
    from ..evaluation.benchmarks import load_benchmark

    if teaching.eval_benchmark is None:
        return None
    return load_benchmark(teaching.eval_benchmark, teaching.eval_benchmark_path, limit=teaching.eval_benchmark_limit)


def _questions(benchmark: "Benchmark | None") -> list[Any]:
    from ..iterkd.records import Question

    problems = () if benchmark is None else benchmark.problems
    return [Question(problem.task_id, problem.instruction, problem.tests) for problem in problems]


def _program_of(benchmark: "Benchmark | None") -> "ProgramOf":
    """Return what makes a program of an answer, as `trl-akd evaluate` does."""
    from ..evaluation.extraction import program_of_answer

    problems = {} if benchmark is None else {problem.task_id: problem for problem in benchmark.problems}
    return lambda question, answer: program_of_answer(problems[question.id], answer)


def _texts(benchmark: "Benchmark | None", names: Sequence[str]) -> Mapping[str, list[str]]:
    """Return what the problems of the benchmarks say, by their names."""
    from ..evaluation.benchmarks import load_benchmark

    found = [*([] if benchmark is None else [benchmark]), *(load_benchmark(name) for name in names)]
    return {
        each.name: [text for problem in each.problems for text in (problem.instruction, problem.prompt) if text]
        for each in found
    }


def _executor(teaching: TeachingConfig) -> "AbstractContextManager[CodeExecutor | None]":
    import os

    from ..execution import CodeExecutor

    if not teaching.allow_code_execution and os.environ.get("HF_ALLOW_CODE_EVAL") != "1":
        return nullcontext()
    return CodeExecutor(allow_code_execution=True, timeout=teaching.program_timeout, workers=teaching.workers)


def _text_teacher(teaching: TeachingConfig, trainer: "IterKDTrainer") -> "TextGenerator":
    """Return the text teacher in this process: a model of its own, or the teacher model of the trainer."""
    from ..generation.loading import generator_of_model, load_generator

    chat = teaching.prompt_style == "chat"
    if teaching.text_teacher_model_name_or_path is not None:
        return load_generator(teaching.text_teacher_generator, chat=chat, accelerator=trainer.accelerator).generator
    from transformers import AutoTokenizer

    return generator_of_model(
        trainer.teacher_model,
        AutoTokenizer.from_pretrained(trainer.args.teacher_model_name_or_path),
        chat=chat,
        batch_size=teaching.generation_batch_size or DEFAULT_BATCH_SIZE,
        accelerator=trainer.accelerator,
    )


def _judge(teaching: TeachingConfig, trainer: "IterKDTrainer") -> "Judge | TextGenerator | None":
    """Return the judge, or the generator that writes judgements, in this process."""
    from ..generation.loading import load_generator
    from ..iterkd.judges import RegressionJudge

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
    from transformers.utils import find_adapter_config_file

    if find_adapter_config_file(name, revision=revision) is not None:
        return False
    architectures = AutoConfig.from_pretrained(name, revision=revision).architectures or ()
    return any("SequenceClassification" in architecture for architecture in architectures)


def _servers(teaching: TeachingConfig) -> tuple["TextGenerator | None", "TextGenerator | None"]:
    """Return the text teacher and the judge that are behind servers."""
    from ..generation.loading import load_generator

    teacher = judge = None
    if teaching.base_url is not None:
        teacher = load_generator(teaching.text_teacher_generator, chat=teaching.prompt_style == "chat").generator
    if teaching.judge_base_url is not None:
        judge = load_generator(teaching.judge_generator, chat=teaching.judges_by_chat, prefix="judge_").generator
    return teacher, judge


if __name__ == "__main__":
    raise SystemExit(run(main))
