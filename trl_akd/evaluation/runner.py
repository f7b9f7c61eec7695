"""Evaluation of a model or of samples on a benchmark."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..distributed import is_main_process
from ..execution import CodeExecutor
from .benchmarks import Benchmark, bare_name, load_benchmark
from .evaluation_config import EvaluationConfig
from .problems import Problem
from .results import summarize, write_eval_results, write_results
from .samples import Sample, write_sample_file
from .sampling import FileSampler, ModelSampler, Resources, Sampler
from .verdicts import VERDICTS, Verdict, VerdictFile, write_verdicts

__all__ = ["Evaluation", "evaluate", "output_folder"]

BASE_VERDICTS = "base_verdicts.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Args:
        folder (`Path`):
            Folder of the results.
        results (`Mapping`):
            Content of `results.json`.
        verdicts (`Sequence[Verdict]`):
            Verdict on each sample; they are read from the folder when they are needed.
    """

    folder: Path
    results: Mapping[str, Any]
    verdicts: Sequence[Verdict]


def evaluate(
    config: EvaluationConfig, sampler: Sampler | None = None, *, accelerator: Any = None
) -> Evaluation | None:
    """Evaluate a model, or samples from another tool, on a benchmark.

    Errors in the benchmark, the samples and the sandbox are raised before a model is loaded. An evaluation that is run
    again continues from the samples and verdicts on disk.

    Args:
        config (`EvaluationConfig`):
            Configuration.
        sampler ([`Sampler`], *optional*):
            Source of the samples. Defaults to a [`FileSampler`] if the configuration has `samples`, else to a
            [`ModelSampler`]; a `PlanningSampler` adds plans.
        accelerator (`Accelerator`, *optional*):
            Distributes generation over its processes; programs run on the main process.

    Returns:
        [`Evaluation`]: Results and their folder; `None` on processes other than the main one.

    Raises:
        ValueError: If the benchmark or the samples are malformed or do not match, or a problem has too few samples for
            pass@k.
        PermissionError: If running code was not allowed.
        IsolationError: If the requested isolation level is not available.
    """
    benchmark = load_benchmark(
        config.benchmark or "",
        config.benchmark_path,
        base_path=config.benchmark_base_path,
        revision=config.benchmark_revision,
        limit=config.limit,
    )
    sampler = sampler or (ModelSampler(config) if config.samples is None else FileSampler(config))
    sampler.check(benchmark)
    start = time.monotonic()
    if not is_main_process(accelerator):
        sampler.sample(benchmark, Resources(accelerator=accelerator))
        return None
    with _make_executor(config, benchmark) as executor:
        folder = output_folder(config, benchmark, sampler.folder_suffix)
        sampled = sampler.sample(benchmark, Resources(folder, executor, accelerator))
        generated = time.monotonic()
        execution = executor.limits
        limits = {**execution, "packages": _packages(config, benchmark), "fail_fast": not config.all_tests}
        base_verdicts: Sequence[Verdict] = ()
        if sampled.verdicts is not None:
            verdicts = sampled.verdicts
        else:
            verdicts = _run(folder / VERDICTS, limits, benchmark.problems, sampled.samples, executor)
            base_verdicts = _run(
                folder / BASE_VERDICTS, limits, _with_base_tests(benchmark), sampled.samples, executor
            )
        seconds = {"generation": generated - start, "execution": time.monotonic() - generated}
        if sampled.verdicts is not None:
            seconds = {"generation and execution": time.monotonic() - start}
        results = {
            "model": sampled.model,
            "generation": sampled.generation,
            "execution": execution,
            **summarize(benchmark, verdicts, config.k, confidence=config.confidence, all_tests=config.all_tests),
            **_base_scores(config, benchmark, base_verdicts),
            **sampled.sections,
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
        }
    if sampled.verdicts is not None:
        write_sample_file(folder, (verdict.sample for verdict in verdicts))
        write_verdicts(folder, verdicts)
    write_results(folder, results)
    write_eval_results(folder, results, verdicts, base_verdicts)
    return Evaluation(folder, results, verdicts)


def output_folder(config: EvaluationConfig, benchmark: Benchmark, suffix: str = "") -> Path:
    """Return the folder of the results: `output_dir`, or a folder named after benchmark and model."""
    if config.output_dir is not None:
        return Path(config.output_dir).expanduser()
    name = config.model_name_or_path or bare_name(Path(config.samples or ""))
    return Path("outputs/evaluation") / benchmark.name / f"{name.strip('./').replace('/', '--')}{suffix}"


def _run(
    path: Path,
    limits: Mapping[str, Any],
    problems: Sequence[Problem],
    samples: Mapping[str, Sequence[Sample]],
    executor: CodeExecutor,
) -> Sequence[Verdict]:
    """Return the verdicts on all samples, and run those without a verdict on disk."""
    if not problems:
        return []
    with VerdictFile(path, limits) as file:
        return file.run(problems, samples, executor, fail_fast=limits["fail_fast"])


def _with_base_tests(benchmark: Benchmark) -> list[Problem]:
    """Return the problems with their base tests only, or no problems unless all have base tests."""
    based = [replace(problem, tests=problem.base_tests) for problem in benchmark.problems if problem.base_tests]
    return based if len(based) == len(benchmark.problems) else []


def _base_scores(config: EvaluationConfig, benchmark: Benchmark, base_verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return the section `base` of the results: pass@k by the base tests, if there are any."""
    if not base_verdicts:
        return {}
    return {"base": summarize(benchmark, base_verdicts, config.k, confidence=config.confidence)["metrics"]}


def _make_executor(config: EvaluationConfig, benchmark: Benchmark) -> CodeExecutor:
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
