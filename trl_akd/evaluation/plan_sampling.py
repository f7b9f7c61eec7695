"""Evaluation with plan sampling: programs are generated with the plan that the public tests choose."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..codeplan.plan_config import PlanSamplingConfig
from ..codeplan.plan_curve import pass_at_k_by_plans, top_k_by_plans
from ..codeplan.plan_head import PlanHeadGenerator, find_plan_head, load_plan_head
from ..codeplan.plan_sampling import PlanSampler, PlanSamplingResult
from ..codeplan.ranker import Ranker
from ..codeplan.task_prompts import TaskPrompting
from ..execution import CodeExecutor
from ..generation import TextGenerator
from ..generation.loading import LoadedGenerator, load_generator, weights_fingerprint
from ..generation.protocol import too_long_prompts
from ..generation.recorded import RecordedGenerator
from ..ledger import Ledger
from ..metrics.statistics import Interval
from .benchmarks import Benchmark
from .evaluation_config import EvaluationConfig
from .problems import Problem
from .prompts import program_of_answer
from .samples import Sample
from .sampling import Sampled, Sampler, with_default_length
from .verdicts import Verdict, label

__all__ = ["PlanningSampler"]

_CURVE = (0, 1, 2, 5, 10, 20, 50)  # numbers of plans that are reported in addition to the largest

_VLLM_SHARE = 0.6  # share of the GPU's memory if transformers runs the same model beside it


@dataclass(frozen=True)
class _BenchmarkPrompting(TaskPrompting):
    """Prompts of the training, with programs extracted from answers as for any tuned model."""

    problems: Mapping[str, Problem] = field(default_factory=dict)

    def program(self, problem: Mapping[str, Any], answer: str) -> str:
        return program_of_answer(self.problems[problem["id"]], answer)


class PlanningSampler(Sampler):
    """Sample plans, choose one per problem by its public tests, and generate programs with it.

    Everything that is generated is kept in the output folder, so that an interrupted evaluation continues. The results
    get the section `plans`: pass@k by the number of plans to choose from (`curve`), also by difficulty
    (`difficulties`), the scores of all plans (`problems`), and what limits their meaning: problems whose public tests
    also evaluate (`judged_by_public_tests`), problems without public tests (`without_public_tests`), plans whose
    prompts were `too_long`, and the head that wrote the plans (`written_by`: `"plan head"`, `"LM head"`, or `"server"`
    if unknown).

    Args:
        config (`EvaluationConfig`):
            Model, benchmark and sampling parameters.
        planning (`PlanSamplingConfig`):
            Configuration of the plans.
    """

    folder_suffix = "-plans"

    def __init__(self, config: EvaluationConfig, planning: PlanSamplingConfig) -> None:
        self._config = config
        self._planning = planning

    def check(self, benchmark: Benchmark) -> None:
        """Raise a ValueError if the settings contradict plan sampling, or the benchmark lacks public tests."""
        config = self._config
        if config.model_name_or_path is None:
            raise ValueError(
                "`plan_sampling` needs `model_name_or_path`, a model that plans; existing samples have no plans."
            )
        for name in ("all_tests", "benchmark_base_path"):
            if getattr(config, name):
                raise ValueError(f"`{name}` has no effect with `plan_sampling`; leave one of them out.")
        if config.prompt_style != "completion":
            raise ValueError(
                f"`prompt_style` is {config.prompt_style!r}; with `plan_sampling` prompts are those of CodePLAN's "
                "training, so leave the style out."
            )
        if config.temperature == 0:
            raise ValueError(
                "`temperature` is 0, at which all plans are equal; give a higher one, such as the authors' 0.6."
            )
        if _has_plan_head(config) and config.backend == "openai":  # the former also finds one that is missing
            raise ValueError(
                f"`backend` 'openai' knows no plan head, but {config.model_name_or_path!r} has one; use transformers, "
                "or vllm, which writes the programs while transformers writes the plans."
            )
        bare = _without_public_tests(benchmark)
        if bare and self._planning.without_public_tests == "error":
            raise ValueError(
                f"{len(bare)} of {len(benchmark.problems)} problems, such as {bare[0]!r}, have no public tests "
                "to choose a plan by; give another benchmark, or `without_public_tests: logprob` to choose the "
                "likeliest plan."
            )

    def sample(
        self,
        benchmark: Benchmark,
        folder: Path | None = None,
        executor: CodeExecutor | None = None,
        accelerator: Any = None,
    ) -> Sampled:
        """Sample plans and programs, and run the programs on the main process."""
        config, planning = with_default_length(self._config), self._planning
        loaded = _load(config, accelerator)
        results = _sample(config, planning, benchmark, loaded, accelerator, folder, executor)
        if folder is None:
            return Sampled({}, {})
        verdicts = [
            verdict
            for problem, result in zip(benchmark.problems, results, strict=True)
            for verdict in _verdicts(problem, result)
        ]
        samples: dict[str, list[Sample]] = {problem.task_id: [] for problem in benchmark.problems}
        for verdict in verdicts:
            samples[verdict.sample.task_id].append(verdict.sample)
        return Sampled(
            samples,
            {"name": config.model_name_or_path, "commit": loaded.revision},
            _generation(config, planning, benchmark),
            verdicts,
            {"plans": _plans(config, planning, benchmark, results)},
        )


def _sample(
    config: EvaluationConfig,
    planning: PlanSamplingConfig,
    benchmark: Benchmark,
    loaded: LoadedGenerator,
    accelerator: Any,
    folder: Path | None = None,
    executor: CodeExecutor | None = None,
) -> list[PlanSamplingResult]:
    """Sample plans and programs, and record them on the main process."""

    def ledger(name: str) -> AbstractContextManager[Ledger | None]:
        return nullcontext() if folder is None else Ledger(folder / name, settings, option="output_dir")

    assert config.max_new_tokens is not None
    settings = {
        **config.generation_settings,
        "max_plan_tokens": planning.max_plan_tokens,
        "weights": weights_fingerprint(config.model_name_or_path or ""),
    }
    with ledger("generated_plans.jsonl") as plans, ledger("generated_programs.jsonl") as programs:
        sampler = PlanSampler(
            RecordedGenerator(loaded.generator, programs, accelerator=accelerator),
            executor,
            planning.num_plans,
            config.num_samples,
            config.temperature,
            config.top_p,
            plan_generator=RecordedGenerator(_plan_generator(config, loaded), plans, accelerator=accelerator),
            smaller_num_plans=[number for number in _CURVE if number < planning.num_plans],
            without_public_tests=planning.without_public_tests,
            ranker=None if planning.ranker is None else Ranker.from_pretrained(planning.ranker),
            prompting=_prompting(config, benchmark),
            too_long=partial(too_long_prompts, loaded.generator) if config.long_prompts == "fail" else None,
            max_plan_tokens=planning.max_plan_tokens,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            batch_size=loaded.batch_size * (1 if accelerator is None else accelerator.num_processes),
            accelerator=accelerator,
        )
        return sampler.run(map(_row, benchmark.problems))


def _row(problem: Problem) -> dict[str, Any]:
    return {
        "id": problem.task_id,
        "problem": problem.instruction,
        "public_tests": problem.public_tests,
        "hidden_tests": problem.tests,
    }


def _has_plan_head(config: EvaluationConfig) -> bool:
    assert config.model_name_or_path is not None
    return find_plan_head(config.model_name_or_path, config.model_revision) is not None


def _without_public_tests(benchmark: Benchmark) -> list[str]:
    return [problem.task_id for problem in benchmark.problems if not problem.public_tests]


def _load(config: EvaluationConfig, accelerator: Any) -> LoadedGenerator:
    """Load the generator of programs; vLLM leaves memory for the generator of plans if that is another."""
    if config.backend == "vllm" and _has_plan_head(config):
        return load_generator(config, chat=False, accelerator=accelerator, gpu_memory_utilization=_VLLM_SHARE)
    return load_generator(config, chat=False, accelerator=accelerator)


def _plan_generator(config: EvaluationConfig, loaded: LoadedGenerator) -> TextGenerator:
    """Return the generator of plans: the plan head in the model's folder if there is one, else the model itself.

    vLLM does not support plan heads, so transformers loads the student once more.
    """
    if not _has_plan_head(config):
        return loaded.generator
    if loaded.model is None:
        loaded = load_generator(replace(config, backend="transformers"), chat=False)
    assert config.model_name_or_path is not None
    load_plan_head(loaded.model, config.model_name_or_path, config.model_revision)
    return PlanHeadGenerator(loaded.generator, loaded.model)


def _generation(config: EvaluationConfig, planning: PlanSamplingConfig, benchmark: Benchmark) -> dict[str, Any]:
    """Return the settings that plans and programs depend on, without those that have no effect."""
    prompting = _prompting(config, benchmark)
    settings = {
        **config.generation_settings,
        **asdict(planning),
        "stop": {"plan": list(prompting.plan_stop), "program": list(prompting.code_stop)},
        "prompt_templates": ["codeplan_plan", "codeplan_guided", "codeplan_code"],
    }
    unused = ["prompt_style", "prompt_template"]
    if config.backend == "openai":
        unused += ["dtype", "model_revision"]
    if not _without_public_tests(benchmark):
        unused.append("without_public_tests")
    return {name: value for name, value in settings.items() if name not in unused}


def _prompting(config: EvaluationConfig, benchmark: Benchmark) -> TaskPrompting:
    problems = {problem.task_id: problem for problem in benchmark.problems}
    if config.stop is None:
        return _BenchmarkPrompting(problems=problems)
    return _BenchmarkPrompting(plan_stop=tuple(config.stop), code_stop=tuple(config.stop), problems=problems)


def _plans(
    config: EvaluationConfig,
    planning: PlanSamplingConfig,
    benchmark: Benchmark,
    results: Sequence[PlanSamplingResult],
) -> dict[str, Any]:
    """Return the section `plans` of `results.json`."""
    author = "server" if config.backend == "openai" else "plan head" if _has_plan_head(config) else "LM head"
    levels = {problem.task_id: problem.difficulty for problem in benchmark.problems}
    ranked = planning.ranker is not None
    return {
        "written_by": author,
        "judged_by_public_tests": sum(problem.public_tests == problem.tests for problem in benchmark.problems),
        "without_public_tests": len(_without_public_tests(benchmark)),
        "too_long": sum(score.too_long for result in results for score in result.plan_scores),
        "curve": _curve(results, config, ranked=ranked),
        "difficulties": {
            level: _curve([result for result in results if levels[result.id] == level], config, ranked=ranked)
            for level in sorted({level for level in levels.values() if level is not None})
        },
        "problems": {result.id: _scores(result) for result in results},
    }


def _curve(
    results: Sequence[PlanSamplingResult], config: EvaluationConfig, *, ranked: bool
) -> dict[str, dict[str, list[float]]]:
    """Return value, lower bound, upper bound and level of each metric, by the number of plans."""
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
