"""Let a student plan: the programs that an evaluation judges come from the plan that the public tests chose."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..codeplan.plan_curve import pass_at_k_by_plans, plot_plan_curve, top_k_by_plans
from ..codeplan.plan_head import PlanHeadGenerator, find_plan_head, load_plan_head
from ..codeplan.plan_sampling import PlanSampler, PlanSamplingResult
from ..codeplan.plan_sampling_config import PlanSamplingConfig
from ..codeplan.ranker import Ranker
from ..codeplan.task_prompts import TaskPrompting
from ..execution import CodeExecutor
from ..generation import TextGenerator
from ..generation.recorded import RecordedGenerator
from ..ledger import Ledger
from ..metrics.statistics import Interval
from .backends import LoadedModel, load_model
from .benchmarks import Benchmark, load_benchmark
from .evaluation_config import EvaluationConfig
from .extraction import program_of_answer
from .problems import Problem
from .results import replace_text, summarize, write_results, write_verdicts
from .runner import Evaluation, execution_settings, make_executor, output_folder
from .samples import Sample
from .scoring import Verdict, label
from .tables import markdown_table
from .weights import weights_fingerprint

__all__ = ["evaluate_with_plans", "plan_curve_table", "plot_plans"]

_CURVE = (0, 1, 2, 5, 10, 20, 50)  # numbers of plans that are told of beside the largest


@dataclass(frozen=True)
class _BenchmarkPrompting(TaskPrompting):
    """Ask as in training, and look for the program in the answer as for any tuned model."""

    problems: Mapping[str, Problem] = field(default_factory=dict)

    def program(self, problem: Mapping[str, Any], answer: str) -> str:
        return program_of_answer(self.problems[problem["id"]], answer)


def evaluate_with_plans(config: EvaluationConfig, planning: PlanSamplingConfig) -> Evaluation:
    """Judge a student by the programs that it writes with the plans that public tests chose.

    What is generated is kept beside the results, so that an interrupted evaluation goes on where it was. The results
    hold, beside those of [`evaluate`], `plans`: pass@k by the number of plans to choose from (`curve`), and the scores
    of all plans (`problems`).

    Args:
        config (`EvaluationConfig`):
            The student, the benchmark, and how samples are drawn.
        planning (`PlanSamplingConfig`):
            How plans are.

    Raises:
        ValueError: If the benchmark is malformed or has no public tests, or the settings do not go together.
        PermissionError: If running code was not allowed.
        IsolationError: If the level of isolation cannot be had here.
    """
    benchmark = load_benchmark(
        config.benchmark or "", config.benchmark_path, revision=config.benchmark_revision, limit=config.limit
    )
    _check(config, benchmark, planning)
    began = time.monotonic()
    with make_executor(config, benchmark) as executor:
        folder = output_folder(config, benchmark)
        if config.output_dir is None:
            folder = folder.with_name(f"{folder.name}-plans")
        loaded = load_model(config)
        sampled = _sample(config, planning, benchmark, folder, executor, loaded)
        verdicts = [
            verdict
            for problem, result in zip(benchmark.problems, sampled, strict=True)
            for verdict in _verdicts(problem, result)
        ]
        results = {
            "model": {"name": config.model, "revision": loaded.revision or config.model_revision},
            "generation": {**config.generation_settings, **asdict(planning)},
            "execution": execution_settings(config, executor.isolation),
            **summarize(benchmark, verdicts, config.k, confidence=config.confidence),
            "plans": {
                "curve": _curve(sampled, config, ranked=planning.ranker is not None),
                "problems": {result.id: _scores(result) for result in sampled},
            },
            "seconds": {"generation and execution": round(time.monotonic() - began, 1)},
        }
    replace_text(folder / "samples.jsonl", "".join(f"{json.dumps(asdict(verdict.sample))}\n" for verdict in verdicts))
    write_verdicts(folder, verdicts)
    write_results(folder, results)
    return Evaluation(folder, results, verdicts)


def plan_curve_table(curve: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Lay out pass@k by the number of plans, with intervals, as a Markdown table."""
    names = list(next(iter(curve.values())))
    rows = [
        [f"{number} plans" if number != "0" else "no plan", *(_interval(metrics[name]) for name in names)]
        for number, metrics in curve.items()
    ]
    return markdown_table(["to choose from", *names], rows)


def plot_plans(curve: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path) -> None:
    """Draw pass@k by the number of plans into an image file.

    Raises:
        ImportError: If matplotlib is not installed (`pip install "trl_akd[plot]"`).
    """
    points = {
        int(number): {name: Interval(*values) for name, values in metrics.items()} for number, metrics in curve.items()
    }
    plot_plan_curve(points, path)


def _check(config: EvaluationConfig, benchmark: Benchmark, planning: PlanSamplingConfig) -> None:
    """Raise the ValueError that names what plan sampling cannot go with, before anything is loaded."""
    if config.long_prompts != "error":
        raise ValueError(
            f"`long_prompts` is {config.long_prompts!r}, which plan sampling does not know; leave it out, and leave "
            "problems with long prompts out of the benchmark."
        )
    if config.model is None:
        raise ValueError("`plan_sampling` needs a `model` that plans; samples that are there have no plans.")
    if config.prompt_style != "completion":
        raise ValueError(
            f"`prompt_style` is {config.prompt_style!r}; with `plan_sampling` the student is asked as CodePLAN trains "
            "it, so leave the style out."
        )
    if config.temperature == 0:
        raise ValueError("`temperature` is 0, at which all plans are alike; give one such as the paper's 0.6.")
    bare = [problem.task_id for problem in benchmark.problems if not problem.public_tests]
    if bare and planning.without_public_tests == "error":
        raise ValueError(
            f"{len(bare)} of {len(benchmark.problems)} problems, such as {bare[0]!r}, have no public tests to choose "
            "a plan by; give another benchmark, or `without_public_tests: logprob` to choose the likeliest plan."
        )


def _sample(
    config: EvaluationConfig,
    planning: PlanSamplingConfig,
    benchmark: Benchmark,
    folder: Path,
    executor: CodeExecutor,
    loaded: LoadedModel,
) -> list[PlanSamplingResult]:
    """Sample plans and programs, and keep all that the student writes."""
    settings = {
        **config.generation_settings,
        "max_plan_tokens": planning.max_plan_tokens,
        "weights": weights_fingerprint(config.model or ""),
    }
    with (
        Ledger(folder / "generated_plans.jsonl", settings, option="output_dir") as plans,
        Ledger(folder / "generated_programs.jsonl", settings, option="output_dir") as programs,
    ):
        sampler = PlanSampler(
            RecordedGenerator(loaded.generator, programs),
            executor,
            planning.num_plans,
            config.num_samples,
            config.temperature,
            config.top_p,
            plan_generator=RecordedGenerator(_plan_generator(config, loaded), plans),
            also_with=[number for number in _CURVE if number < planning.num_plans],
            without_public_tests=planning.without_public_tests,
            ranker=None if planning.ranker is None else Ranker.from_pretrained(planning.ranker),
            prompting=_prompting(config, benchmark),
            max_plan_tokens=planning.max_plan_tokens,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            batch_size=loaded.batch_size,
        )
        return sampler.run(map(_row, benchmark.problems))


def _row(problem: Problem) -> dict[str, Any]:
    return {
        "id": problem.task_id,
        "problem": problem.instruction,
        "public_tests": problem.public_tests,
        "hidden_tests": problem.tests,
    }


def _plan_generator(config: EvaluationConfig, loaded: LoadedModel) -> TextGenerator:
    """Return what writes plans: the plan head that lies beside the model if there is one, else the model itself."""
    assert config.model is not None
    if config.backend == "openai" or find_plan_head(config.model, config.model_revision) is None:
        return loaded.generator
    if loaded.model is None:
        raise ValueError(
            f"`backend` {config.backend!r} knows no plan head, but {config.model!r} has one; use transformers."
        )
    load_plan_head(loaded.model, config.model, config.model_revision)
    return PlanHeadGenerator(loaded.generator, loaded.model)


def _prompting(config: EvaluationConfig, benchmark: Benchmark) -> TaskPrompting:
    problems = {problem.task_id: problem for problem in benchmark.problems}
    if config.stop is None:
        return _BenchmarkPrompting(problems=problems)
    return _BenchmarkPrompting(plan_stop=tuple(config.stop), code_stop=tuple(config.stop), problems=problems)


def _curve(
    results: Sequence[PlanSamplingResult], config: EvaluationConfig, *, ranked: bool
) -> dict[str, dict[str, list[float]]]:
    """Return value, low end, high end and level of each number, by the number of plans, as JSON has it."""
    curve = pass_at_k_by_plans(results, config.k, confidence=config.confidence)
    tops: Mapping[int, Mapping[str, Interval]] = (
        top_k_by_plans(results, config.k, confidence=config.confidence) if ranked else {}
    )
    return {
        str(number): {
            name: [point.value, point.low, point.high, point.confidence]
            for name, point in {**metrics, **tops.get(number, {})}.items()
        }
        for number, metrics in curve.items()
    }


def _scores(result: PlanSamplingResult) -> dict[str, Any]:
    return {
        "chosen": {str(number): choice.index for number, choice in result.choices.items()},
        "scores": [asdict(score) for score in result.plan_scores],
    }


def _verdicts(problem: Problem, result: PlanSamplingResult) -> list[Verdict]:
    found = []
    for number, (completion, program, run) in enumerate(
        zip(result.choice.completions, result.programs, result.verdicts, strict=True)
    ):
        sample = Sample(
            problem.task_id,
            program,
            completion.text,
            number,
            completion.finish_reason,
            completion.mean_logprob,
            completion.num_tokens,
        )
        found.append(Verdict(sample, run, label(run, problem, sample)))
    return found


def _interval(values: Sequence[float]) -> str:
    value, low, high, _ = values
    return f"{value:.3f} ({low:.3f} to {high:.3f})"
