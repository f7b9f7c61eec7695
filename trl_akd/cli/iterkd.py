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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..iterkd.teaching_config import DEFAULT_KEY, TeachingConfig
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
        if teaching.text_teacher is None and training_args.teacher_model_name_or_path is None:
            raise ValueError(
                "there is nobody to write answers: give `teacher_model_name_or_path`, or `text_teacher` for a teacher "
                "that only writes."
            )
        teacher_server, judge_server = _teacher_server(teaching), _judge_server(teaching)  # checked before models load
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
                settings=teaching.settings,
            )
            trainer.text_teacher = _local_teacher(teaching, trainer) if teacher_server is None else teacher_server
            trainer.judge = _local_judge(teaching, trainer) if judge_server is None else judge_server
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


def _local_teacher(teaching: TeachingConfig, trainer: "IterKDTrainer") -> "TextGenerator":
    """Return a teacher that writes in this process."""
    from ..evaluation.backends import load_model
    from ..generation import TransformersGenerator
    from ..generation.wrappers import ChatGenerator

    chat = teaching.text_prompt_style == "chat"
    if teaching.text_teacher is not None:
        if teaching.text_backend == "vllm" and trainer.accelerator.num_processes > 1:
            raise ValueError(
                "`text_backend` is 'vllm', which runs in this process, and there are several; serve the teacher with "
                "`vllm serve` and use the backend openai."
            )
        source = _Source(
            teaching.text_teacher, teaching.text_backend, teaching.text_prompt_style, teaching.generation_batch_size
        )
        loaded = load_model(source, trainer.accelerator)
        return ChatGenerator(loaded.generator, loaded.tokenizer) if chat else loaded.generator
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trainer.args.teacher_model_name_or_path)
    writer = TransformersGenerator(
        trainer.teacher_model,
        tokenizer,
        batch_size=teaching.generation_batch_size,
        accelerator=trainer.accelerator,
        add_special_tokens=not chat,
    )
    return ChatGenerator(writer, tokenizer) if chat else writer


@dataclass
class _Source:
    """The text teacher, for the loader that `trl-akd evaluate` uses."""

    model: str | None
    backend: Literal["transformers", "vllm", "openai"]
    prompt_style: str
    batch_size: int | None
    model_revision: str | None = None
    base_url: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    device_map: str | None = None


def _teacher_server(teaching: TeachingConfig) -> "TextGenerator | None":
    if teaching.text_backend != "openai":
        return None
    return _served(
        teaching,
        teaching.base_url,
        teaching.text_teacher,
        ("api_key_env", teaching.api_key_env),
        teaching.extra_body,
    )


def _judge_server(teaching: TeachingConfig) -> "TextGenerator | None":
    if teaching.judge_base_url is None:
        return None
    return _served(
        teaching,
        teaching.judge_base_url,
        teaching.judge_model,
        ("judge_api_key_env", teaching.judge_api_key_env),
        teaching.judge_extra_body,
    )


def _served(
    teaching: TeachingConfig, base_url: str | None, model: str | None, key: tuple[str, str], extra_body: Any
) -> "TextGenerator":
    """Return a model behind a server with OpenAI's interface; `key` is a field and its value."""
    import os

    from ..generation import OpenAIGenerator

    assert base_url is not None and model is not None
    field, variable = key
    if variable != DEFAULT_KEY and variable not in os.environ:
        raise ValueError(
            f"`{field}` is {variable!r}, but no environment variable has that name; set it to the key of {base_url}."
        )
    return OpenAIGenerator(
        base_url,
        model,
        api_key=os.environ.get(variable),
        chat=teaching.text_prompt_style == "chat",
        concurrency=teaching.concurrency,
        timeout=teaching.timeout,
        max_retries=teaching.max_retries,
        max_refusals=teaching.max_refusals,
        extra_body=extra_body,
    )


def _local_judge(teaching: TeachingConfig, trainer: "IterKDTrainer") -> "Judge | TextGenerator | None":
    """Return a judge, or what writes judgements, without a server of its own."""
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
