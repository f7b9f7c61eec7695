"""Evaluation with plan sampling: programs are generated with the plan that the public tests select."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from ..codeplan.plan_config import PlanSamplingConfig
from ..codeplan.plan_curve import pass_at_k_by_plans, top_k_by_plans
from ..codeplan.plan_head import PlanHeadGenerator, find_plan_head, load_plan_head
from ..codeplan.plan_sampling import PlanSampler, PlanSamplingResult
from ..codeplan.ranker import Ranker
from ..codeplan.task_prompts import TaskPrompting
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
from .sampling import Resources, Sampled, Sampler, with_default_length
from .verdicts import Verdict, label

__all__ = ["PlanningSampler"]

_CURVE = (0, 1, 2, 5, 10, 20, 50)  # numbers of plans that are reported in addition to the largest

_VLLM_SHARE = 0.6  # share of the GPU's memory if transformers also loads the model


@dataclass(frozen=True)
class _BenchmarkPrompting(TaskPrompting):
    """Prompts as in training, with programs extracted from answers as for any tuned model."""

    problems: Mapping[str, Problem] = field(default_factory=dict)

    def program(self, problem: Mapping[str, Any], answer: str) -> str:
        return program_of_answer(self.problems[problem["id"]], answer)


class PlanningSampler(Sampler):
    """Sample plans, select one per problem by its public tests, and generate programs with it.

    Plans, programs and results are kept in the output folder, so that an interrupted evaluation continues. The results
    have a section `plans`: pass@k by the number of plans (`curve`), also by difficulty (`difficulties`), the scores of
    all plans (`problems`), the generator of the plans (`written_by`: `"plan head"`, `"LM head"`, or `"server"` if
    unknown), and the numbers of problems whose public tests are also the hidden tests (`judged_by_public_tests`), of
    problems without public tests (`without_public_tests`), and of plans with prompts that are `too_long`.

    Args:
        config ([`EvaluationConfig`]):
            Model, benchmark and sampling parameters.
        planning ([`PlanSamplingConfig`]):
            Configuration of the plans.
    """

    folder_suffix = "-plans"

    def __init__(self, config: EvaluationConfig, planning: PlanSamplingConfig) -> None:
        super().__init__(config)
        self._planning = planning

    def check_settings(self) -> None:
        """Raise a ValueError if the settings contradict plan sampling."""
        config = self._config
        if config.model_name_or_path is None:
            raise ValueError(
                "`plan_sampling` needs `model_name_or_path`, a model that generates plans; existing samples have none."
            )
        for name in ("all_tests", "benchmark_base_path"):
            if getattr(config, name):
                raise ValueError(f"`{name}` has no effect with `plan_sampling`; leave one of them out.")
        if config.prompt_style != "completion":
            raise ValueError(
                f"`prompt_style` is {config.prompt_style!r}, but `plan_sampling` uses the prompts of CodePLAN's "
                "training; leave the style out."
            )
        if config.temperature == 0:
            raise ValueError(
                "`temperature` is 0, at which all plans are equal; give a higher one, such as 0.6 as in the authors' "
                "code."
            )

    def check(self, benchmark: Benchmark) -> None:
        """Raise a ValueError if the settings contradict plan sampling, or the benchmark lacks public tests."""
        self.check_settings()
        config = self._config
        if self._has_plan_head() and config.backend == "openai":  # the former also finds one that is missing
            raise ValueError(
                f"`backend` 'openai' does not support plan heads, but {config.model_name_or_path!r} has one; use "
                "transformers, or vllm, which generates the programs while transformers generates the plans."
            )
        bare = _without_public_tests(benchmark)
        if bare and self._planning.without_public_tests == "error":
            raise ValueError(
                f"{len(bare)} of {len(benchmark.problems)} problems, such as {bare[0]!r}, have no public tests to "
                "select a plan by; give another benchmark, or `without_public_tests: logprob` to select the most "
                "likely plan."
            )

    def sample(self, benchmark: Benchmark, resources: Resources) -> Sampled:
        """Sample plans and programs, and run the programs on the main process."""
        self._config = config = with_default_length(self._config)
        loaded = self._load(resources.accelerator)
        results = self._run(benchmark, loaded, resources)
        if resources.folder is None:
            return Sampled({}, {})
        pairs = zip(benchmark.problems, results, strict=True)
        verdicts = [verdict for problem, result in pairs for verdict in _verdicts(problem, result)]
        samples: dict[str, list[Sample]] = {problem.task_id: [] for problem in benchmark.problems}
        for verdict in verdicts:
            samples[verdict.sample.task_id].append(verdict.sample)
        return Sampled(
            samples,
            {"name": config.model_name_or_path, "commit": loaded.revision},
            self._generation(benchmark),
            verdicts,
            {"plans": self._plans(benchmark, results)},
        )

    def _run(self, benchmark: Benchmark, loaded: LoadedGenerator, resources: Resources) -> list[PlanSamplingResult]:
        """Sample plans and programs, and record them on the main process."""
        config, planning, accelerator = self._config, self._planning, resources.accelerator

        def ledger(name: str) -> AbstractContextManager[Ledger | None]:
            folder = resources.folder
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
                resources.executor,
                planning.num_plans,
                config.num_samples,
                config.temperature,
                config.top_p,
                plan_generator=RecordedGenerator(self._plan_generator(loaded), plans, accelerator=accelerator),
                smaller_num_plans=[number for number in _CURVE if number < planning.num_plans],
                without_public_tests=planning.without_public_tests,
                ranker=None if planning.ranker is None else Ranker.from_pretrained(planning.ranker),
                prompting=self._prompting(benchmark),
                too_long=partial(too_long_prompts, loaded.generator) if config.long_prompts == "fail" else None,
                max_plan_tokens=planning.max_plan_tokens,
                max_new_tokens=config.max_new_tokens,
                seed=config.seed,
                batch_size=loaded.batch_size * resources.num_processes,
                accelerator=accelerator,
            )
            return sampler.run(map(_row, benchmark.problems))

    def _has_plan_head(self) -> bool:
        assert self._config.model_name_or_path is not None
        return find_plan_head(self._config.model_name_or_path, self._config.model_revision) is not None

    def _load(self, accelerator: Any) -> LoadedGenerator:
        """Load the generator of programs; vLLM leaves memory for a separate generator of plans."""
        shares_gpu = self._config.backend == "vllm" and self._has_plan_head()
        engine_args: dict[str, Any] = {"gpu_memory_utilization": _VLLM_SHARE} if shares_gpu else {}
        return load_generator(self._config, chat=False, accelerator=accelerator, **engine_args)

    def _plan_generator(self, loaded: LoadedGenerator) -> TextGenerator:
        """Return the generator of plans: the plan head in the model's folder if there is one, else the model itself.

        vLLM does not support plan heads, so the student is also loaded with transformers.
        """
        config = self._config
        if not self._has_plan_head():
            return loaded.generator
        if loaded.model is None:
            loaded = load_generator(replace(config, backend="transformers"), chat=False)
        assert config.model_name_or_path is not None
        load_plan_head(loaded.model, config.model_name_or_path, config.model_revision)
        return PlanHeadGenerator(loaded.generator, loaded.model)

    def _prompting(self, benchmark: Benchmark) -> TaskPrompting:
        stops = self._config.stop
        stop = {} if stops is None else {"plan_stop": tuple(stops), "code_stop": tuple(stops)}
        return _BenchmarkPrompting(problems={problem.task_id: problem for problem in benchmark.problems}, **stop)

    def _generation(self, benchmark: Benchmark) -> dict[str, Any]:
        """Return the settings that plans and programs depend on, without those that have no effect."""
        prompting = self._prompting(benchmark)
        settings = {
            **self._config.generation_settings,
            **asdict(self._planning),
            "stop": {"plan": list(prompting.plan_stop), "program": list(prompting.code_stop)},
            "prompt_templates": ["codeplan_plan", "codeplan_guided", "codeplan_code"],
        }
        unused = ["prompt_style", "prompt_template"]
        if self._config.backend == "openai":
            unused += ["dtype", "model_revision"]
        if not _without_public_tests(benchmark):
            unused.append("without_public_tests")
        return {name: value for name, value in settings.items() if name not in unused}

    def _plans(self, benchmark: Benchmark, results: Sequence[PlanSamplingResult]) -> dict[str, Any]:
        """Return the section `plans` of `results.json`."""
        is_server = self._config.backend == "openai"
        author = "server" if is_server else "plan head" if self._has_plan_head() else "LM head"
        levels = {problem.task_id: problem.difficulty for problem in benchmark.problems}
        return {
            "written_by": author,
            "judged_by_public_tests": sum(problem.public_tests == problem.tests for problem in benchmark.problems),
            "without_public_tests": len(_without_public_tests(benchmark)),
            "too_long": sum(score.too_long for result in results for score in result.plan_scores),
            "curve": self._curve(results),
            "difficulties": {
                level: self._curve([result for result in results if levels[result.id] == level])
                for level in sorted({level for level in levels.values() if level is not None})
            },
            "problems": {result.id: _scores(result) for result in results},
        }

    def _curve(self, results: Sequence[PlanSamplingResult]) -> dict[str, dict[str, list[float]]]:
        """Return value, lower bound, upper bound and level of each metric, by the number of plans."""
        k, confidence = self._config.k, self._config.confidence
        curve = pass_at_k_by_plans(results, k, confidence=confidence)
        tops: Mapping[int, Mapping[str, Interval]] = {}
        if self._planning.ranker is not None:
            tops = top_k_by_plans(results, k, confidence=confidence)
        return {
            str(number): {
                name: [point.value, point.low, point.high, point.confidence]
                for name, point in {**metrics, **tops.get(number, {})}.items()
            }
            for number, metrics in curve.items()
        }


def _row(problem: Problem) -> dict[str, Any]:
    return {
        "id": problem.task_id,
        "problem": problem.instruction,
        "public_tests": problem.public_tests,
        "hidden_tests": problem.tests,
    }


def _without_public_tests(benchmark: Benchmark) -> list[str]:
    return [problem.task_id for problem in benchmark.problems if not problem.public_tests]


def _scores(result: PlanSamplingResult) -> dict[str, Any]:
    return {
        "chosen": {str(number): choice.index for number, choice in result.choices.items()},
        "scores": [
            {
                name: value for name, value in asdict(score).items() if name != "programs"
            }  # their completions are in generated_programs.jsonl
            for score in result.plan_scores
        ],
    }


def _verdicts(problem: Problem, result: PlanSamplingResult) -> Iterator[Verdict]:
    found = zip(result.choice.completions, result.programs, result.verdicts, strict=True)
    for number, (completion, program, run) in enumerate(found):
        sample = Sample.of(problem.task_id, program, completion, number)
        yield Verdict(sample, run, label(run, problem, sample))
