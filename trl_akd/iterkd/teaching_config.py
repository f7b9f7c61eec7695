"""Who teaches and judges in a run of IterKD, and what it is measured by."""

import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal

__all__ = ["DEFAULT_KEY", "MAY_CHANGE", "TeachingConfig"]

DEFAULT_KEY = "OPENAI_API_KEY"


@dataclass
class TeachingConfig:
    """
    Arguments of `trl-akd iterkd` about the teacher's text, the judge, the sandbox and the benchmarks.

    Args:
        text_teacher (`str`, *optional*):
            Who writes answers and questions: a folder, a name or, for a server, the name it serves. By default the
            teacher model, `teacher_model_name_or_path`, of which no second copy is loaded.
        text_backend (`str`, *optional*, defaults to `"transformers"`):
            What runs `text_teacher`: `"transformers"`, `"vllm"`, in this process, or `"openai"`, a server with
            OpenAI's interface.
        base_url (`str`, *optional*):
            Address of that server, such as `http://localhost:8000/v1`.
        api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Environment variable that has its key.
        extra_body (`dict`, *optional*):
            Fields to add to each request to it, or to replace, as JSON; null removes one.
        concurrency (`int`, *optional*, defaults to `8`):
            Maximum number of requests to a server under way together.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds that a request may take until its whole answer has come.
        max_retries (`int`, *optional*, defaults to `5`):
            Repetitions of a request that a server did not answer well, with waits that double.
        max_refusals (`int`, *optional*, defaults to `8`):
            Number of prompts in a row that a server may refuse without saying why before the run ends.
        text_prompt_style (`str`, *optional*, defaults to `"chat"`):
            How the teacher is asked: `"chat"`, as a user's message, or `"completion"`, for a base model.
        generation_batch_size (`int`, *optional*, defaults to `16`):
            Texts that teacher and student write at a time, on each process.
        judge (`str`, *optional*, defaults to `"teacher"`):
            `"teacher"`, `"none"`, or the folder of a judge from `trl-akd judge train`. Leave it out where
            `judge_base_url` is given.
        judge_base_url (`str`, *optional*):
            Address of a server with OpenAI's interface whose model judges; requests are limited as the teacher's.
        judge_model (`str`, *optional*):
            Name by which that server knows the judge.
        judge_api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Environment variable that has its key.
        judge_extra_body (`dict`, *optional*):
            As `extra_body`, for the judge's server.
        eval_benchmark (`str`, *optional*):
            Benchmark that the student is measured by after each cycle, as `trl-akd evaluate` takes it.
        eval_benchmark_path (`str`, *optional*):
            Local copy of a named benchmark.
        eval_benchmark_limit (`int`, *optional*):
            Measure by the first so many problems.
        decontaminate (`list[str]`, *optional*, defaults to `[]`):
            More benchmarks whose problems no new question may repeat, such as `humaneval mbpp apps`.
        allow_code_execution (`bool`, *optional*, defaults to `False`):
            Run the programs, in a sandbox. So does HF_ALLOW_CODE_EVAL=1 in the environment. Without it, programs are
            only read, so most faults remain unverified.
        program_timeout (`float`, *optional*, defaults to `3.0`):
            Seconds of processor time a program may take.
        workers (`int`, *optional*):
            Programs run at a time on each process, by default one per core.

    Raises:
        ValueError: If fields contradict one another.
    """

    text_teacher: str | None = None
    text_backend: Literal["transformers", "vllm", "openai"] = "transformers"
    base_url: str | None = None
    api_key_env: str = DEFAULT_KEY
    extra_body: dict[str, Any] | str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    max_retries: int = 5
    max_refusals: int = 8
    text_prompt_style: Literal["chat", "completion"] = "chat"
    generation_batch_size: int = 16
    judge: str = "teacher"
    judge_base_url: str | None = None
    judge_model: str | None = None
    judge_api_key_env: str = DEFAULT_KEY
    judge_extra_body: dict[str, Any] | str | None = None
    eval_benchmark: str | None = None
    eval_benchmark_path: str | None = None
    eval_benchmark_limit: int | None = None
    decontaminate: list[str] = field(default_factory=list)
    allow_code_execution: bool = False
    program_timeout: float = 3.0
    workers: int | None = None

    def __post_init__(self) -> None:
        self.extra_body = _mapping("extra_body", self.extra_body)
        self.judge_extra_body = _mapping("judge_extra_body", self.judge_extra_body)
        if (self.text_backend == "openai") != (self.base_url is not None):
            raise ValueError(
                f"`text_backend` is {self.text_backend!r} and `base_url` is {self.base_url!r}; an address goes with "
                "the backend openai, and it with an address."
            )
        if self.text_backend != "transformers" and self.text_teacher is None:
            remedy = {"openai": "the name by which the server knows the teacher", "vllm": "a name or a folder"}
            raise ValueError(f"`text_teacher` is missing; give {remedy[self.text_backend]}.")
        if self.generation_batch_size < 1:
            raise ValueError(f"`generation_batch_size` is {self.generation_batch_size}; give at least 1.")
        if (self.judge_base_url is None) != (self.judge_model is None):
            raise ValueError(
                f"`judge_base_url` is {self.judge_base_url!r} and `judge_model` is {self.judge_model!r}; a judge on a "
                "server has both."
            )
        if self.judge_base_url is not None and self.judge != "teacher":
            raise ValueError(
                f"`judge` is {self.judge!r} and `judge_base_url` is {self.judge_base_url!r}; leave one of them out."
            )
        self._check_without_effect("teacher's", ("extra_body", "api_key_env"), "base_url", self.base_url)
        self._check_without_effect(
            "judge's", ("judge_extra_body", "judge_api_key_env"), "judge_base_url", self.judge_base_url
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What texts and verdicts depend on: all fields but those that a run may change when it goes on."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in MAY_CHANGE}

    def _check_without_effect(self, whose: str, names: tuple[str, ...], url: str, given: str | None) -> None:
        for name in names:
            value = getattr(self, name)
            if given is None and value not in (None, DEFAULT_KEY):
                raise ValueError(
                    f"`{name}` is {value!r}, which is for the {whose} server; give `{url}`, too, or leave it out."
                )


MAY_CHANGE = frozenset(
    {
        *("base_url", "api_key_env", "judge_base_url", "judge_api_key_env"),
        *("concurrency", "timeout", "max_retries", "max_refusals", "generation_batch_size", "workers"),
        *("eval_benchmark_path", "allow_code_execution"),
    }
)
"""Fields that a run may change when it goes on; whether programs are run is compared by `IterKDTrainer`."""


def _mapping(name: str, value: Any) -> dict[str, Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"`{name}` is {value!r}, which is no JSON ({error}); give a JSON object.") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"`{name}` is {value!r}; give a JSON object of fields and values.")
    return value
