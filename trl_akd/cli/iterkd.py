r"""`trl-akd iterkd`: cycles of right and wrong answers, feedback, and new questions, as a recipe says.

```bash
trl-akd iterkd --config recipes/deepseek-coder-33b-to-6.7b/iterkd/config.yaml --dry_run
trl-akd iterkd --config recipes/deepseek-coder-33b-to-6.7b/iterkd/config.yaml --accelerate_config zero3
accelerate launch --config_file recipes/accelerate_configs/zero3.yaml --num_processes 8 \
    -m trl_akd.cli.iterkd --config recipes/deepseek-coder-33b-to-6.7b/iterkd/config.yaml
```

A run that was interrupted, or that has spent its budget, goes on when the same command is given again.
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

    Where a budget ended the run, there is no last student yet: nothing is saved but what the cycles have kept.
    """
    from ..execution import IsolationError
    from ..generation import GenerationError
    from ..iterkd.iterkd_trainer import IterKDTrainer
    from .distilling import finish, make_trainer
    from .errors import SETUP_ERRORS

    with user_errors((*SETUP_ERRORS, GenerationError, IsolationError, FloatingPointError)):
        if teaching.text_teacher is None and training_args.teacher_model_name_or_path is None:
            raise ValueError(
                "there is nobody to write answers: give `teacher_model_name_or_path`, or `text_teacher` for a teacher "
                "that only writes."
            )
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
                generation_batch_size=teaching.generation_batch_size,
            )
            trainer.text_teacher = _text_teacher(teaching, trainer)
            trainer.judge = _judge(teaching, trainer)
            if benchmark is not None:
                trainer.held_out_name, trainer.held_out_dataset = benchmark.name, benchmark.dataset
            trainer.provenance.dataset = script_args.dataset_name
            trainer.provenance.dataset_revision = script_args.dataset_revision
            trainer.provenance.recipe = recipe
            trainer.train(training_args.resume_from_checkpoint)
        if trainer.stopped is None:
            finish(trainer)
        else:
            trainer.end()


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
    from ..generation import OpenAIGenerator, TransformersGenerator
    from ..generation.chat import ChatGenerator

    chat = teaching.text_prompt_style == "chat"
    if teaching.text_backend == "openai":
        assert teaching.base_url is not None and teaching.text_teacher is not None
        return OpenAIGenerator(
            teaching.base_url,
            teaching.text_teacher,
            chat=chat,
            concurrency=teaching.concurrency,
            timeout=teaching.timeout,
            max_retries=teaching.max_retries,
        )
    model, tokenizer = _writing_teacher(teaching, trainer)
    writer = TransformersGenerator(
        model,
        tokenizer,
        batch_size=teaching.generation_batch_size,
        accelerator=trainer.accelerator,
        add_special_tokens=not chat,
    )
    return ChatGenerator(writer, tokenizer) if chat else writer


def _writing_teacher(teaching: TeachingConfig, trainer: "IterKDTrainer") -> tuple[Any, Any]:
    """Return the teacher that writes and its tokenizer: the one that is there, or another that is loaded."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = teaching.text_teacher
    if name is None:
        return trainer.teacher_model, AutoTokenizer.from_pretrained(trainer.args.teacher_model_name_or_path)
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto").to(trainer.accelerator.device)
    return model.eval(), AutoTokenizer.from_pretrained(name)


def _judge(teaching: TeachingConfig, trainer: "IterKDTrainer") -> "Judge | TextGenerator | None":
    """Return a judge, or what writes judgements."""
    from transformers import AutoConfig

    from ..generation import TransformersGenerator
    from ..iterkd.judges import RegressionJudge

    if teaching.judge in ("teacher", "none"):
        return trainer.text_teacher if teaching.judge == "teacher" else None
    if any(
        "SequenceClassification" in name for name in AutoConfig.from_pretrained(teaching.judge).architectures or ()
    ):
        return RegressionJudge.from_pretrained(teaching.judge)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(teaching.judge).to(trainer.accelerator.device)
    return TransformersGenerator(
        model.eval(), AutoTokenizer.from_pretrained(teaching.judge), accelerator=trainer.accelerator
    )


if __name__ == "__main__":
    raise SystemExit(run(main))
