"""Configuration of text teacher, judge, sandbox and benchmarks of an IterKD run."""

import warnings
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ...deprecation import rename_fields
from ...generation.loading import (
    DEFAULT_API_KEY_ENV,
    Backend,
    BackendConfig,
    DType,
    GeneratorConfig,
    check_server_fields,
    read_json_object,
)

__all__ = ["MAY_CHANGE", "TeachingConfig"]


@rename_fields(
    text_teacher="text_teacher_model_name_or_path",
    text_backend="backend",
    text_prompt_style="prompt_style",
    timeout="request_timeout",
    judge_model="judge_model_name_or_path",
)
@dataclass
class TeachingConfig(BackendConfig):
    """
    Configuration of `trl-akd iterkd` for the text teacher, the judge, the sandbox and the benchmarks.

    The text teacher writes answers and questions. Fields without a prefix configure its backend, as in
    [`BackendConfig`]; fields with the prefix `judge_` configure that of the judge, which shares the others.

    Args:
        text_teacher_model_name_or_path (`str`, *optional*):
            Text teacher: a folder, a name on the Hub or, for a server, the name under which it serves the model.
            Defaults to `teacher_model_name_or_path`; the model is then loaded only once.
        text_teacher_model_revision (`str`, *optional*):
            Branch, tag or commit of the text teacher on the Hub.
        text_teacher_dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the text teacher's weights: `"auto"` (as saved), `"bfloat16"`, `"float16"` or `"float32"`.
        prompt_style (`str`, *optional*, defaults to `"chat"`):
            Style of prompts for the text teacher: `"chat"`, as a user message, or `"completion"`, for a base model.
        generation_batch_size (`int`, *optional*):
            Number of sequences that teacher, student and judge generate in one batch on each process. Defaults to 16,
            and to 128 for a text teacher or judge in vLLM.
        judge (`str`, *optional*, defaults to `"teacher"`):
            Judge of answers if `judge_model_name_or_path` is not set: `"teacher"`, the text teacher, or `"none"`.
        judge_model_name_or_path (`str`, *optional*):
            Judge model: the folder of a judge from `trl-akd judge train`, any language model or, with
            `judge_base_url`, the name under which the server serves it.
        judge_model_revision (`str`, *optional*):
            Branch, tag or commit of the judge model on the Hub.
        judge_backend (`str`, *optional*):
            Backend of a generative judge: `"transformers"`, `"vllm"` or `"openai"`. Defaults to `"openai"` with
            `judge_base_url` and to `"transformers"` without.
        judge_base_url (`str`, *optional*):
            Address of the judge's server.
        judge_api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Environment variable that holds the API key of the judge's server.
        judge_extra_body (`dict`, *optional*):
            Fields to add to each request to the judge's server, or to replace, as JSON; null removes a field.
        judge_prompt_style (`str`, *optional*):
            Style of prompts for the judge: `"chat"` or `"completion"`. Defaults to `prompt_style` for a server, and
            for a model in this process to `"completion"`, with which judges are trained.
        eval_benchmark (`str`, *optional*):
            Benchmark that evaluates the student after each cycle, as `trl-akd evaluate` takes it.
        eval_benchmark_path (`str`, *optional*):
            Path of a local copy of a named benchmark.
        eval_benchmark_limit (`int`, *optional*):
            Evaluate only the first N problems.
        decontaminate (`list[str]`, *optional*, defaults to `[]`):
            Additional benchmarks whose problems new questions must not repeat, such as `humaneval mbpp apps`.
        allow_code_execution (`bool`, *optional*, defaults to `False`):
            Whether to run generated programs, in a sandbox. The environment variable HF_ALLOW_CODE_EVAL=1 allows it as
            well. Otherwise programs are only parsed, so most faults remain unverified.
        program_timeout (`float`, *optional*, defaults to `3.0`):
            Time limit of a program in seconds of processor time.
        workers (`int`, *optional*):
            Number of programs that run concurrently on each process. Defaults to one more than the number of cores.

    Raises:
        ValueError: If fields contradict one another.
    """

    text_teacher_model_name_or_path: str | None = None
    text_teacher_model_revision: str | None = None
    text_teacher_dtype: DType = "auto"
    prompt_style: Literal["chat", "completion"] = "chat"
    judge: str = "teacher"
    judge_model_name_or_path: str | None = None
    judge_model_revision: str | None = None
    judge_backend: Backend | None = None
    judge_base_url: str | None = None
    judge_api_key_env: str = DEFAULT_API_KEY_ENV
    judge_extra_body: dict[str, Any] | str | None = None
    judge_prompt_style: Literal["chat", "completion"] | None = None
    eval_benchmark: str | None = None
    eval_benchmark_path: str | None = None
    eval_benchmark_limit: int | None = None
    decontaminate: list[str] = field(default_factory=list)
    allow_code_execution: bool = False
    program_timeout: float = 3.0
    workers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("eval_benchmark_path", "eval_benchmark_limit"):
            if self.eval_benchmark is None and getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}, which has no effect without `eval_benchmark`; set that, or "
                    "leave it out."
                )
        self.judge_extra_body = read_json_object("judge_extra_body", self.judge_extra_body)
        if self.backend != "transformers" and self.text_teacher_model_name_or_path is None:
            remedy = {"openai": "the name by which the server knows the teacher", "vllm": "a name or a folder"}
            raise ValueError(f"`text_teacher_model_name_or_path` is missing; give {remedy[self.backend]}.")
        self._move_old_judge()
        if self.judge_base_url is not None and self.judge_model_name_or_path is None:
            raise ValueError(
                f"`judge_base_url` is {self.judge_base_url!r} and `judge_model_name_or_path` is None; give the "
                "name of the server's model as well."
            )
        if self.judge == "none" and self.judge_model_name_or_path is not None:
            raise ValueError(
                f"`judge` is 'none' and `judge_model_name_or_path` is {self.judge_model_name_or_path!r}; leave one of "
                "them out."
            )
        check_server_fields(self, "judge_base_url", ("judge_extra_body", "judge_api_key_env"), "judge's ")
        if self.judge_backend is not None and (self.judge_backend == "openai") != (self.judge_base_url is not None):
            raise ValueError(
                f"`judge_backend` is {self.judge_backend!r} and `judge_base_url` is {self.judge_base_url!r}; give "
                "both the backend openai and an address, or neither."
            )

    @property
    def text_teacher_generator(self) -> GeneratorConfig:
        """Configuration of the text teacher."""
        return GeneratorConfig(
            **{entry.name: getattr(self, entry.name) for entry in fields(BackendConfig)},
            model_name_or_path=self.text_teacher_model_name_or_path,
            model_revision=self.text_teacher_model_revision,
            dtype=self.text_teacher_dtype,
        )

    @property
    def judge_generator(self) -> GeneratorConfig:
        """Configuration of the judge model."""
        shared = {entry.name: getattr(self, entry.name) for entry in fields(BackendConfig)}
        own: dict[str, Any] = {
            "backend": self.judge_backend or ("transformers" if self.judge_base_url is None else "openai"),
            "base_url": self.judge_base_url,
            "api_key_env": self.judge_api_key_env,
            "extra_body": self.judge_extra_body,
        }
        return GeneratorConfig(
            **{**shared, **own},
            model_name_or_path=self.judge_model_name_or_path,
            model_revision=self.judge_model_revision,
        )

    @property
    def judges_by_chat(self) -> bool:
        """Whether the judge model receives chat messages."""
        served = "completion" if self.judge_base_url is None else self.prompt_style
        return (self.judge_prompt_style or served) == "chat"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings on which texts and verdicts depend, by the names of their fields in the first ledgers.

        Fields that were added since are omitted if they have their defaults.
        """
        served = self.judge_base_url is not None
        settings = {
            "text_teacher": self.text_teacher_model_name_or_path,
            "text_backend": self.backend,
            "text_prompt_style": self.prompt_style,
            "judge": self.judge if served else self.judge_model_name_or_path or self.judge,
            "judge_model": self.judge_model_name_or_path if served else None,
        }
        renamed = {"text_teacher_model_name_or_path", "backend", "prompt_style", "judge", "judge_model_name_or_path"}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name not in MAY_CHANGE | renamed and not (entry.name in _ADDED and value == entry.default):
                settings[entry.name] = value
        return settings

    def _move_old_judge(self) -> None:
        """Move a model in `judge`, which used to take one, to `judge_model_name_or_path`."""
        if self.judge in ("teacher", "none"):
            return
        if self.judge_model_name_or_path is not None:
            raise ValueError(
                f"`judge` is {self.judge!r} and `judge_model_name_or_path` is {self.judge_model_name_or_path!r}; "
                "leave one of them out."
            )
        if self.judge_base_url is not None:
            raise ValueError(
                f"`judge` is {self.judge!r} and `judge_base_url` is {self.judge_base_url!r}; give the name of the "
                "server's model as `judge_model_name_or_path`, or leave out the address."
            )
        warnings.warn("A model in `judge` is now given by `judge_model_name_or_path`.", FutureWarning, stacklevel=4)
        self.judge, self.judge_model_name_or_path = "teacher", self.judge


MAY_CHANGE = frozenset(
    {
        *("base_url", "api_key_env", "judge_base_url", "judge_api_key_env", "device_map"),
        *("concurrency", "request_timeout", "max_retries", "max_refusals", "generation_batch_size", "workers"),
        *("eval_benchmark_path", "allow_code_execution"),
    }
)
"""Fields that a continued run may change; `IterKDTrainer` compares whether programs are run."""

_ADDED = {
    *("text_teacher_model_revision", "text_teacher_dtype"),
    *("judge_model_revision", "judge_backend", "judge_prompt_style"),
}
