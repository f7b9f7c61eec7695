"""One evaluation from its configuration to its results."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..distributed import is_main_process, run_on_main_and_broadcast
from ..execution import CodeExecutor
from ..generation.loading import load_generator, max_new_tokens_for, weights_fingerprint
from .benchmarks import Benchmark, bare_name, load_benchmark
from .evaluation_config import EvaluationConfig
from .exports import write_eval_results
from .generation import give_up_on_long, write_samples
from .problems import Problem
from .prompts import Prompting
from .results import summarize, write_results
from .samples import Sample, SampleFile, Samples, read_samples
from .scoring import judge
from .verdicts import VERDICTS, Verdict, VerdictFile

__all__ = ["Evaluation", "evaluate", "execution_settings", "make_executor", "output_folder"]


BASE_VERDICTS = "base_verdicts.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """Hold what an evaluation found.

    Args:
        folder (`Path`):
            Where it was written to.
        results (`Mapping`):
            What `results.json` holds.
        verdicts (`Sequence[Verdict]`):
            What came of each sample.
    """

    folder: Path
    results: Mapping[str, Any]
    verdicts: Sequence[Verdict]


def evaluate(config: EvaluationConfig, accelerator: Any = None) -> Evaluation | None:
    """Judge a model, or samples that someone else generated, by a benchmark.

    Everything that can be wrong with the benchmark, the samples and the sandbox is found before a model is loaded.
    Samples on disk are kept whatever happens, and an evaluation that is run again goes on from them.

    Args:
        config (`EvaluationConfig`):
            What to judge, and how.
        accelerator (`Accelerator`, *optional*):
            Shares generation over its processes; programs run on the main one.

    Returns:
        [`Evaluation`]: What was found and where it lies; `None` on processes other than the main one.

    Raises:
        ValueError: If the benchmark or the samples are malformed or do not fit each other, or problems have too few
            samples for pass@k.
        PermissionError: If running code was not allowed.
        IsolationError: If the level of isolation cannot be had here.
    """
    benchmark = load_benchmark(
        config.benchmark or "",
        config.benchmark_path,
        base_path=config.benchmark_base_path,
        revision=config.benchmark_revision,
        limit=config.limit,
    )
    began = time.monotonic()
    if not is_main_process(accelerator):
        _generate(with_default_length(config), benchmark, accelerator)
        return None
    with make_executor(config, benchmark) as executor:
        config = with_default_length(config)
        folder = output_folder(config, benchmark)
        samples, model = _samples(config, benchmark, folder, accelerator)
        generated = time.monotonic()
        limits = _limits(config, benchmark, executor)
        verdicts = _judge(folder / VERDICTS, limits, benchmark.problems, samples, executor)
        base_verdicts = _judge(folder / BASE_VERDICTS, limits, _with_base_tests(benchmark), samples, executor)
        results = {
            "model": model,
            "generation": None if config.samples else config.generation_settings,
            "execution": execution_settings(config, benchmark, executor.isolation),
            **summarize(benchmark, verdicts, config.k, confidence=config.confidence, all_tests=config.all_tests),
            **_base_scores(config, benchmark, base_verdicts),
            "seconds": {
                "generation": round(generated - began, 1),
                "execution": round(time.monotonic() - generated, 1),
            },
        }
    write_results(folder, results)
    write_eval_results(folder, results, verdicts, base_verdicts)
    return Evaluation(folder, results, verdicts)


def _judge(
    path: Path,
    limits: Mapping[str, Any],
    problems: Sequence[Problem],
    samples: Mapping[str, Sequence[Sample]],
    executor: CodeExecutor,
) -> list[Verdict]:
    """Judge samples, those alone that have no verdict on disk yet."""
    if not problems:
        return []
    with VerdictFile(path, limits) as file:
        verdicts = judge(problems, samples, executor, file=file, fail_fast=limits["fail_fast"])
        file.finish(problems, verdicts)
    return verdicts


def _limits(config: EvaluationConfig, benchmark: Benchmark, executor: CodeExecutor) -> dict[str, Any]:
    """Return what verdicts depend on beside programs and tests."""
    return {
        **execution_settings(config, benchmark, executor.isolation),
        "packages": _packages(config, benchmark),
        "fail_fast": not config.all_tests,
    }


def _with_base_tests(benchmark: Benchmark) -> list[Problem]:
    """Return the problems with their base tests alone, and none unless all have some."""
    based = [replace(problem, tests=problem.base_tests) for problem in benchmark.problems if problem.base_tests]
    return based if len(based) == len(benchmark.problems) else []


def _base_scores(config: EvaluationConfig, benchmark: Benchmark, base_verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return pass@k by the base tests, where there are any."""
    if not base_verdicts:
        return {}
    return {"base": summarize(benchmark, base_verdicts, config.k, confidence=config.confidence)["metrics"]}


def make_executor(config: EvaluationConfig, benchmark: Benchmark) -> CodeExecutor:
    """Return the sandbox that a configuration asks for, able to import what the benchmark's tests import."""
    return CodeExecutor(
        workers=config.workers,
        timeout=config.program_timeout,
        memory_mb=config.memory_mb,
        isolation=config.isolation,
        strict=_strict(config, benchmark),
        packages=_packages(config, benchmark),
        allow_code_execution=config.allow_code_execution or None,
    )


def _packages(config: EvaluationConfig, benchmark: Benchmark) -> list[str]:
    return list(dict.fromkeys([*benchmark.packages, *(config.packages or [])]))


def _strict(config: EvaluationConfig, benchmark: Benchmark) -> bool:
    return benchmark.strict if config.strict is None else config.strict


def output_folder(config: EvaluationConfig, benchmark: Benchmark) -> Path:
    """Return where results go: `output_dir`, or a folder named after benchmark and model."""
    if config.output_dir is not None:
        return Path(config.output_dir).expanduser()
    judged = config.model_name_or_path or bare_name(Path(config.samples or ""))
    return Path("outputs/evaluation") / benchmark.name / judged.strip("./").replace("/", "--")


def _samples(
    config: EvaluationConfig, benchmark: Benchmark, folder: Path, accelerator: Any
) -> tuple[Mapping[str, Sequence[Sample]], dict[str, Any]]:
    """Return samples by problem, and what they come from."""
    if config.samples is not None:
        samples = read_samples(Path(config.samples).expanduser(), benchmark, _prompting(config).program)
        _check_number(samples, max(config.k))
        return samples, {"name": config.samples, "commit": None}
    with SampleFile(folder, _settings(config, benchmark)) as file:
        commit = _generate(config, benchmark, accelerator, file) or file.facts.get("commit")
        file.note(commit=commit)
        first = {p.task_id: file[p.task_id][: config.num_samples] for p in benchmark.problems}
    return first, {"name": config.model_name_or_path, "commit": commit}


def _check_number(samples: Mapping[str, Sequence[Sample]], k: int) -> None:
    for task_id, several in samples.items():
        if len(several) < k:
            raise ValueError(
                f"The problem {task_id!r} has {len(several)} samples, too few for pass@{k}; add some, or give a "
                "smaller `k`."
            )


def _settings(config: EvaluationConfig, benchmark: Benchmark) -> dict[str, Any]:
    """Return what all samples of a file share. A local model is known by its weights, wherever it lies."""
    assert config.model_name_or_path is not None
    weights = weights_fingerprint(config.model_name_or_path)
    settings = {**config.generation_settings, "weights": weights, "benchmark": benchmark.fingerprint}
    return settings if weights is None else settings | {"model": Path(config.model_name_or_path).resolve().name}


def _generate(
    config: EvaluationConfig, benchmark: Benchmark, accelerator: Any, samples: Samples | None = None
) -> str | None:
    """Write the samples that are missing, and return the model's commit on the Hub.

    Processes without samples of their own take part in the writing.
    """
    assert config.max_new_tokens is not None
    samples = _shared(samples, accelerator)
    if all(len(samples[problem.task_id]) >= config.num_samples for problem in benchmark.problems):
        return None
    loaded = load_generator(config, chat=config.prompt_style == "chat", accelerator=accelerator)
    prompting = _prompting(config)
    give_up_on_long(
        loaded.generator,
        benchmark.problems,
        samples,
        prompting,
        num_samples=config.num_samples,
        max_new_tokens=config.max_new_tokens,
        fails=config.long_prompts == "fail",
    )
    write_samples(
        loaded.generator,
        benchmark.problems,
        samples,
        prompting,
        num_samples=config.num_samples,
        temperature=config.temperature,
        top_p=config.top_p,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        batch_size=loaded.batch_size * (1 if accelerator is None else accelerator.num_processes),
        progress=is_main_process(accelerator),
    )
    return loaded.revision


def _shared(samples: Samples | None, accelerator: Any) -> Samples:
    """Let every process know the samples of the main one."""
    known = run_on_main_and_broadcast(accelerator, lambda: {} if samples is None else samples.by_task)
    return Samples(known) if samples is None else samples


def with_default_length(config: EvaluationConfig) -> EvaluationConfig:
    """Return the configuration with `max_new_tokens` filled in, from the model's positions where it is not set.

    Raises:
        OSError: If there is no such model.
    """
    if config.model_name_or_path is None or config.max_new_tokens is not None:
        return config
    return replace(config, max_new_tokens=max_new_tokens_for(config))


def _prompting(config: EvaluationConfig) -> Prompting:
    return Prompting(config.prompt_style, config.prompt_template, config.stop)


def execution_settings(config: EvaluationConfig, benchmark: Benchmark, isolation: str) -> dict[str, Any]:
    """Return how programs were run, for `results.json`."""
    return {
        "isolation": isolation,
        "strict": _strict(config, benchmark),
        "timeout": config.program_timeout,
        "memory_mb": config.memory_mb,
    }
