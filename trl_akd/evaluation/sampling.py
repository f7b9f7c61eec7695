"""Samplers of an evaluation, which generate samples with a model or read them from a file."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from ..distributed import is_main_process, run_on_main_and_broadcast
from ..execution import CodeExecutor
from ..generation import TextGenerator
from ..generation.loading import load_generator, max_new_tokens_for, weights_fingerprint
from ..generation.protocol import GREEDY, SamplingParams, derive_seed, stream, too_long_prompts
from ..hub.model_card import read_prompt_format
from ..progress import Progress
from .benchmarks import Benchmark
from .evaluation_config import EvaluationConfig
from .problems import Problem
from .prompts import Prompting, remark_on_style
from .samples import Sample, SampleCounts, SampleFile, SampleStore, read_samples
from .verdicts import Verdict

__all__ = [
    "FileSampler",
    "ModelSampler",
    "Resources",
    "Sampled",
    "Sampler",
    "handle_long_prompts",
    "with_default_length",
    "write_samples",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampled:
    """Samples of an evaluation and their origin.

    Args:
        samples (`Mapping[str, Sequence[Sample]]`):
            Samples by `task_id`.
        model (`Mapping`):
            Section `model` of the results.
        generation (`Mapping`, *optional*):
            Section `generation` of the results: the settings that the samples depend on.
        verdicts (`Sequence[Verdict]`, *optional*):
            Verdicts on the samples, if the sampler has run them.
        sections (`Mapping`, *optional*):
            Further sections of the results.
    """

    samples: Mapping[str, Sequence[Sample]]
    model: Mapping[str, Any]
    generation: Mapping[str, Any] | None = None
    verdicts: Sequence[Verdict] | None = None
    sections: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Resources:
    """Resources of a sampler.

    Args:
        folder (`Path`, *optional*):
            Output folder; `None` on processes other than the main one.
        executor ([`CodeExecutor`], *optional*):
            Runs programs; `None` on processes other than the main one.
        accelerator (`Accelerator`, *optional*):
            Distributes generation over its processes.
    """

    folder: Path | None = None
    executor: CodeExecutor | None = None
    accelerator: Any = None

    @property
    def num_processes(self) -> int:
        """Number of processes that generate."""
        return 1 if self.accelerator is None else int(self.accelerator.num_processes)


class Sampler(ABC):
    """Source of the samples of an evaluation.

    Args:
        config ([`EvaluationConfig`]):
            Configuration of the evaluation.
    """

    folder_suffix = ""
    """Suffix of the default output folder."""

    def __init__(self, config: EvaluationConfig) -> None:
        self._config = config

    def check(self, benchmark: Benchmark) -> None:  # noqa: B027
        """Raise a ValueError if the settings contradict each other or the benchmark, before anything is loaded."""

    @abstractmethod
    def sample(self, benchmark: Benchmark, resources: Resources) -> Sampled:
        """Return the samples, and generate those that are missing in the output folder.

        All processes call this; only the result on the main process is used.

        Raises:
            ValueError: If samples are malformed, or files in the folder were generated with other settings.
            GenerationError: If a model fails.
        """


class FileSampler(Sampler):
    """Read samples that another tool has generated."""

    def sample(self, benchmark: Benchmark, resources: Resources) -> Sampled:
        """Return the samples in the file or folder."""
        assert self._config.samples is not None
        samples = read_samples(Path(self._config.samples).expanduser(), benchmark, _prompting(self._config).program)
        largest = max(self._config.k)
        for task_id in samples:
            if (number := samples.count(task_id)) < largest:
                raise ValueError(
                    f"The problem {task_id!r} has {number} samples, too few for pass@{largest}; add some, or "
                    "give a smaller `k`."
                )
        return Sampled(samples, {"name": self._config.samples, "commit": None})


class ModelSampler(Sampler):
    """Generate samples with a model, and keep them in a [`SampleFile`]."""

    def sample(self, benchmark: Benchmark, resources: Resources) -> Sampled:
        """Generate the samples that are missing."""
        config = with_default_length(self._config)
        if resources.folder is None:
            self._generate(config, benchmark, None, resources)
            return Sampled({}, {})
        if remark := remark_on_style(read_prompt_format(str(config.model_name_or_path)), _prompting(config)):
            logger.warning("%s", remark)
        with SampleFile(resources.folder, self._file_settings(config, benchmark)) as file:
            commit = self._generate(config, benchmark, file, resources) or file.facts.get("commit")
            file.note(commit=commit)
            samples = file.first([problem.task_id for problem in benchmark.problems], config.num_samples)
        return Sampled(samples, {"name": config.model_name_or_path, "commit": commit}, config.generation_settings)

    def _file_settings(self, config: EvaluationConfig, benchmark: Benchmark) -> dict[str, Any]:
        """Return the settings that all samples in a file share. A local model is identified by its weights."""
        assert config.model_name_or_path is not None
        weights = weights_fingerprint(config.model_name_or_path)
        settings = {**config.generation_settings, "weights": weights, "benchmark": benchmark.fingerprint}
        return settings if weights is None else settings | {"model": Path(config.model_name_or_path).resolve().name}

    def _generate(
        self, config: EvaluationConfig, benchmark: Benchmark, file: SampleFile | None, resources: Resources
    ) -> str | None:
        """Generate missing samples into the file of the main process, and return the model's commit on the Hub."""
        accelerator = resources.accelerator
        known = run_on_main_and_broadcast(
            accelerator, lambda: {} if file is None else {p.task_id: file.count(p.task_id) for p in benchmark.problems}
        )
        samples: SampleStore = SampleCounts(known) if file is None else file
        if all(samples.count(problem.task_id) >= config.num_samples for problem in benchmark.problems):
            return None
        loaded = load_generator(config, chat=config.prompt_style == "chat", accelerator=accelerator)
        prompting, sampling = _prompting(config), config.sampling_params
        handle_long_prompts(
            loaded.generator, benchmark.problems, samples, prompting, sampling, long_prompts=config.long_prompts
        )
        write_samples(
            loaded.generator,
            benchmark.problems,
            samples,
            prompting,
            sampling,
            batch_size=loaded.batch_size * resources.num_processes,
            progress=is_main_process(accelerator),
        )
        return loaded.revision


def with_default_length(config: EvaluationConfig) -> EvaluationConfig:
    """Return the configuration with `max_new_tokens` set, by default from the model's positions.

    Raises:
        OSError: If there is no such model.
    """
    return config if config.max_new_tokens is not None else replace(config, max_new_tokens=max_new_tokens_for(config))


def write_samples(
    generator: TextGenerator,
    problems: Sequence[Problem],
    samples: SampleStore,
    prompting: Prompting,
    sampling: SamplingParams = GREEDY,
    *,
    batch_size: int = 16,
    progress: bool = True,
) -> None:
    """Generate samples until each problem has `sampling.n`.

    Problems are batched by length, the longest first. Completions are stored as they arrive, so an interruption loses
    only the requests in progress. Samples depend on the seed and on the number of samples that a problem already has,
    so that a resumed run does not repeat any.

    Args:
        generator (`TextGenerator`):
            Model.
        problems (`Sequence[Problem]`):
            Problems to solve.
        samples ([`SampleStore`]):
            Samples so far; new ones are added.
        prompting (`Prompting`):
            Renders prompts, and extracts programs from completions.
        sampling ([`SamplingParams`], *optional*, defaults to greedy decoding):
            Sampling parameters; `n` is the number of samples per problem. Stop strings are those of `prompting`.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of samples per batch, over all processes.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show the progress.

    Raises:
        ValueError: If the generator refuses a prompt; the message names the problems.
        GenerationError: If its backend fails; completions that had arrived are stored.
    """

    def missing(problem: Problem) -> int:
        return max(0, sampling.n - samples.count(problem.task_id))

    def kind(problem: Problem) -> tuple[int, tuple[str, ...]]:
        return missing(problem), prompting.stop(problem)

    todo = sorted(
        filter(missing, problems), key=lambda problem: (kind(problem), len(prompting.ask(problem))), reverse=True
    )
    with Progress(sum(map(missing, problems)), "Generating", "sample", shown=progress) as bar:
        for (n, stop), group in groupby(todo, key=kind):
            rest = replace(sampling, n=n, stop=stop, seed=derive_seed(sampling.seed or 0, sampling.n - n))
            pending, size = list(group), max(1, batch_size // n)
            for batch in (pending[start : start + size] for start in range(0, len(pending), size)):
                prompts, names = [prompting.ask(problem) for problem in batch], [problem.task_id for problem in batch]
                for index, completions in stream(generator, prompts, rest, problems=names):
                    problem = batch[index]
                    samples.append(
                        [
                            Sample.of(problem.task_id, prompting.program(problem, completion.text), completion, number)
                            for number, completion in enumerate(completions, start=samples.count(problem.task_id))
                        ]
                    )
                    bar.update(len(completions))


def handle_long_prompts(
    generator: TextGenerator,
    problems: Sequence[Problem],
    samples: SampleStore,
    prompting: Prompting,
    sampling: SamplingParams,
    *,
    long_prompts: Literal["error", "fail"] | None,
) -> None:
    """Count problems whose prompts exceed the model's positions as not solved, or refuse them.

    Has no effect with generators that do not report the model's positions. `None` refuses them as `"error"` does, in a
    training, which has no field `long_prompts`.

    Raises:
        ValueError: If there are such problems, unless `long_prompts` is `"fail"`.
    """
    prompts = [prompting.ask(problem) for problem in problems]
    long = too_long_prompts(generator, prompts, sampling.max_new_tokens)
    if long and long_prompts != "fail":
        remedies = ["lower it"]
        if prompting.style == "template":
            field = "prompt_style" if long_prompts else "prompt_style (in a recipe, eval_prompt_style)"
            remedies.append(
                f"set {field} to 'completion' if the model was trained without the template {prompting.template!r}, "
                "which the prompts contain"
            )
        if long_prompts:
            remedies.append("set long_prompts to 'fail' to count these problems as not solved")
        raise ValueError(
            f"{len(long)} of {len(problems)} prompts, such as that of {problems[long[0]].task_id!r}, exceed the "
            f"positions of the model together with max_new_tokens={sampling.max_new_tokens}; {', or '.join(remedies)}."
        )
    for problem in (problems[index] for index in long):
        for number in range(samples.count(problem.task_id), sampling.n):
            program = prompting.program(problem, "")
            samples.append([Sample(problem.task_id, program, "", number, "length", num_tokens=0)])


def _prompting(config: EvaluationConfig) -> Prompting:
    return Prompting(config.prompt_style, config.prompt_template, config.stop)
