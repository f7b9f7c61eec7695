"""Configuration of an evaluation."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ..data.templates import DEFAULT_TEMPLATE, get_template
from ..deprecation import rename_fields
from ..generation.loading import GeneratorConfig
from ..generation.protocol import SamplingParams
from .prompts import PROMPT_STYLES

DEFAULT_PROGRAM_TIMEOUT = 10.0
# Settings that the generated text depends on: all samples of a file share them.
GENERATION_FIELDS = (
    "model_name_or_path",
    "model_revision",
    "backend",
    "dtype",
    "prompt_style",
    "prompt_template",
    "temperature",
    "top_p",
    "max_new_tokens",
    "stop",
    "seed",
    "extra_body",
)
_WITHOUT_EFFECT_ON_SAMPLES = (
    *(name for name in GENERATION_FIELDS if name not in ("model_name_or_path", "prompt_style", "prompt_template")),
    *("num_samples", "generation_batch_size", "device_map", "long_prompts", "trust_remote_code"),
)


@rename_fields(model="model_name_or_path", batch_size="generation_batch_size", timeout="program_timeout")
@dataclass
class EvaluationConfig(GeneratorConfig):
    """
    Configuration of `trl-akd evaluate`. Other arguments as in [`GeneratorConfig`].

    Args:
        samples (`str`, *optional*):
            Evaluate the programs in this file instead of a model: JSON Lines with `task_id` and `solution` or
            `completion`, as for HumanEval or EvalPlus. Or a folder of such files, or in the layout of EvalPlus.
        compare (`list[str]`, *optional*):
            Compare the results in these folders instead; accuracy losses are relative to the first one, the teacher.
        benchmark (`str`, *optional*):
            Name of a benchmark, such as `humaneval` (an unknown name prints all names), or the path of a .jsonl file.
        benchmark_path (`str`, *optional*):
            Local copy of a named benchmark. By default it is loaded from the Hub.
        benchmark_base_path (`str`, *optional*):
            Local copy of HumanEval, for the base score of a local copy of HumanEval+.
        benchmark_revision (`str`, *optional*):
            Branch, tag or commit of the benchmark on the Hub.
        limit (`int`, *optional*):
            Evaluate only the first N problems.
        output_dir (`str`, *optional*):
            Folder of samples and results. Defaults to `outputs/evaluation/<benchmark>/<model>`.
        prompt_style (`str`, *optional*, defaults to `"completion"`):
            Style of prompts: `"completion"` (base models continue the code), `"template"` (the instruction in the
            template of the model's training) or `"chat"` (a user message in the tokenizer's chat template).
        prompt_template (`str`, *optional*, defaults to `"alpaca"`):
            Template of the style `"template"`.
        stop (`list[str]`, *optional*):
            Stop strings, instead of those of the benchmark and the style.
        num_samples (`int`, *optional*, defaults to `1`):
            Number of samples per problem. May be raised later: existing samples are kept.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; 0 selects the most probable token at each step.
        top_p (`float`, *optional*, defaults to `1.0`):
            Cumulative probability of the tokens that are sampled from.
        max_new_tokens (`int`, *optional*):
            Maximum number of tokens per completion. Defaults to 512, or half of the model's positions if that is
            less.
        long_prompts (`str`, *optional*, defaults to `"error"`):
            Handling of prompts that exceed the model's positions together with `max_new_tokens`: `"error"`, or
            `"fail"`, which counts the problem as not solved. Requires the backend `"transformers"`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of sampling.
        k (`list[int]`, *optional*, defaults to `[1]`):
            Values of k for pass@k.
        all_tests (`bool`, *optional*, defaults to `False`):
            Whether to run all tests of a program instead of stopping at the first failure, and to report the share of
            tests passed (`test_case_average`), as APPS does.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence level of the intervals.
        allow_code_execution (`bool`, *optional*, defaults to `False`):
            Whether to run the programs, in a sandbox. HF_ALLOW_CODE_EVAL=1 in the environment has the same effect.
        isolation (`str`, *optional*, defaults to `"auto"`):
            Level of the sandbox: `"auto"`, `"namespace"`, `"bwrap"` or `"process"`, which contains only accidents.
        strict (`bool`, *optional*):
            Whether to run tests in another process than the candidate. Defaults to true if the benchmark's tests allow
            it, as HumanEval's do. Outputs of APPS and LiveCodeBench are compared in another process in any case.
        workers (`int`, *optional*):
            Number of programs that run concurrently. Defaults to one more than the number of cores.
        program_timeout (`float`, *optional*, defaults to `10.0`):
            Time limit of a program in seconds of processor time; see `CodeExecutor`. Longer than HumanEval's 3, which
            one of MBPP's reference solutions exceeds.
        memory_mb (`int`, *optional*, defaults to `512`):
            Memory limit of a program in MiB.
        packages (`list[str]`, *optional*):
            Packages that programs and tests may import in addition to the standard library and those of the benchmark.
        update_card (`bool`, *optional*):
            Whether to add the scores to the model card: in the model's folder or, if the model is on the Hub, in its
            repository. With `compare`, the comparison is added to the card of the last model. By default, only an
            existing card in the model's folder is updated.
    """

    samples: str | None = None
    compare: list[str] | None = None
    benchmark: str | None = None
    benchmark_path: str | None = None
    benchmark_base_path: str | None = None
    benchmark_revision: str | None = None
    limit: int | None = None
    output_dir: str | None = None
    prompt_style: Literal["completion", "template", "chat"] = "completion"
    prompt_template: str = DEFAULT_TEMPLATE
    stop: list[str] | None = None
    num_samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    long_prompts: Literal["error", "fail"] = "error"
    seed: int = 0
    k: list[int] = field(default_factory=lambda: [1])
    all_tests: bool = False
    confidence: float = 0.95
    allow_code_execution: bool = False
    isolation: Literal["auto", "namespace", "bwrap", "process"] = "auto"
    strict: bool | None = field(default=None, metadata={"nargs": "?", "const": True})
    workers: int | None = None
    program_timeout: float = DEFAULT_PROGRAM_TIMEOUT
    memory_mb: int = 512
    packages: list[str] | None = None
    update_card: bool | None = field(default=None, metadata={"nargs": "?", "const": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_subject()
        self._check_choices()
        self._check_numbers()

    @property
    def sampling_params(self) -> SamplingParams:
        """Sampling parameters, without stop strings; `max_new_tokens` must be set."""
        assert self.max_new_tokens is not None
        return SamplingParams(self.num_samples, self.temperature, self.top_p, self.max_new_tokens, (), self.seed)

    @property
    def generation_settings(self) -> dict[str, Any]:
        """Settings that samples depend on, under the names that sample files use."""
        settings = {name: getattr(self, name) for name in GENERATION_FIELDS}
        return {"model": settings.pop("model_name_or_path"), **settings}

    def _check_subject(self) -> None:
        asked = [name for name in ("model_name_or_path", "samples", "compare") if getattr(self, name)]
        if len(asked) != 1:
            given = " and ".join(f"`{name}`" for name in asked) or "none of them"
            raise ValueError(
                f"give one of `model_name_or_path`, `samples` and `compare` to say what to evaluate; got {given}."
            )
        if self.samples is not None:
            self._check_no_generation()
        if self.compare is not None and len(self.compare) < 2:
            raise ValueError(f"`compare` is {self.compare}; give two folders or more, the teacher's first.")
        if self.update_card and self.samples is not None:
            raise ValueError(
                "`update_card` is on, but `samples` have no model card; leave it out, or give `model_name_or_path`."
            )
        if not self.compare and not self.benchmark:
            raise ValueError("`benchmark` is missing; give humaneval, mbpp, apps or a .jsonl file.")
        if self.long_prompts == "fail" and self.backend != "transformers":
            raise ValueError(
                f"`long_prompts` is 'fail', but the backend {self.backend!r} does not report the model's positions; "
                "use transformers, or leave it out."
            )

    def _check_no_generation(self) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        for name in _WITHOUT_EFFECT_ON_SAMPLES:
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}, which has no effect on existing `samples`; "
                    "leave it out, or give `model_name_or_path` instead."
                )

    def _check_choices(self) -> None:
        choices = {
            "prompt_style": tuple(PROMPT_STYLES),
            "long_prompts": ("error", "fail"),
            "isolation": ("auto", "namespace", "bwrap", "process"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose one of {', '.join(allowed)}.")
        get_template(self.prompt_template)
        if self.prompt_template != DEFAULT_TEMPLATE and self.prompt_style != "template":
            raise ValueError(
                f"`prompt_template` is {self.prompt_template!r}, which has no effect with prompt_style="
                f"{self.prompt_style!r}; set that to 'template', or leave it out."
            )

    def _check_numbers(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"`num_samples` is {self.num_samples}; give at least 1.")
        for name in ("max_new_tokens", "limit", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}; give at least 1, or leave it out.")
        if not self.k or any(k < 1 for k in self.k):
            raise ValueError(f"`k` is {self.k}; give whole numbers from 1.")
        if self.model_name_or_path is not None and max(self.k) > self.num_samples:
            raise ValueError(
                f"`k` asks for pass@{max(self.k)}, but `num_samples` is {self.num_samples}; generate at least as many "
                "samples per problem."
            )
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"`temperature` is {self.temperature}; give 0 or more.")
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                f"`num_samples` is {self.num_samples} at temperature 0, where all samples are equal; give a "
                "`temperature` above 0, such as 0.8, or one sample."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` is {self.top_p}; give a number above 0, up to 1.")
        if not 0 < self.confidence < 1:
            raise ValueError(f"`confidence` is {self.confidence}; give a number between 0 and 1, such as 0.95.")
        if not (math.isfinite(self.program_timeout) and self.program_timeout > 0 and self.memory_mb > 0):
            raise ValueError(
                f"`program_timeout` is {self.program_timeout} and `memory_mb` {self.memory_mb}; give numbers above 0."
            )
