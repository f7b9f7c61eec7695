"""Who teaches and judges in a run of IterKD, and what it is measured by."""

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["TeachingConfig"]


@dataclass
class TeachingConfig:
    """
    Arguments of `trl-akd iterkd` about the teacher's text, the judge, the sandbox and the benchmarks.

    Args:
        text_teacher (`str`, *optional*):
            Who writes answers and questions: a folder, a name or, for a server, the name it serves. By default the
            teacher model, `teacher_model_name_or_path`, of which no second copy is loaded.
        text_backend (`str`, *optional*, defaults to `"transformers"`):
            What runs `text_teacher`: `"transformers"` or `"openai"`, a server with OpenAI's interface.
        base_url (`str`, *optional*):
            Address of that server, such as `http://localhost:8000/v1`; its key is in OPENAI_API_KEY.
        concurrency (`int`, *optional*, defaults to `8`):
            Most requests to the server under way together.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds to wait for an answer of the server.
        max_retries (`int`, *optional*, defaults to `5`):
            Repetitions of a request that the server did not answer well, with waits that double.
        text_prompt_style (`str`, *optional*, defaults to `"chat"`):
            How the teacher is asked: `"chat"`, as a user's message, or `"completion"`, for a base model.
        generation_batch_size (`int`, *optional*, defaults to `16`):
            Texts that teacher and student write at a time, on each process.
        judge (`str`, *optional*, defaults to `"teacher"`):
            `"teacher"`, `"none"`, or the folder of a judge from `trl-akd judge train`.
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
            Seconds a program may take.
        workers (`int`, *optional*):
            Programs run at a time on each process, by default one a core.
    """

    text_teacher: str | None = field(
        default=None, metadata={"help": "Who writes answers and questions; by default the teacher model."}
    )
    text_backend: Literal["transformers", "openai"] = field(
        default="transformers", metadata={"help": "What runs it; openai is a server with OpenAI's interface."}
    )
    base_url: str | None = field(
        default=None, metadata={"help": "Address of that server, such as http://localhost:8000/v1."}
    )
    concurrency: int = field(default=8, metadata={"help": "Most requests to the server under way together."})
    timeout: float = field(default=120.0, metadata={"help": "Seconds to wait for an answer of the server."})
    max_retries: int = field(
        default=5, metadata={"help": "Repetitions of a request that the server did not answer well."}
    )
    text_prompt_style: Literal["chat", "completion"] = field(
        default="chat", metadata={"help": "chat for tuned teachers, completion for base models."}
    )
    generation_batch_size: int = field(
        default=16, metadata={"help": "Texts that teacher and student write at a time, on each process."}
    )
    judge: str = field(
        default="teacher", metadata={"help": "teacher, none, or the folder of a judge from `trl-akd judge train`."}
    )
    eval_benchmark: str | None = field(
        default=None, metadata={"help": "Benchmark that the student is measured by after each cycle."}
    )
    eval_benchmark_path: str | None = field(default=None, metadata={"help": "Local copy of a named benchmark."})
    eval_benchmark_limit: int | None = field(default=None, metadata={"help": "Measure by the first so many problems."})
    decontaminate: list[str] = field(
        default_factory=list, metadata={"help": "More benchmarks whose problems no new question may repeat."}
    )
    allow_code_execution: bool = field(
        default=False, metadata={"help": "Run the programs, in a sandbox; as HF_ALLOW_CODE_EVAL=1 does."}
    )
    program_timeout: float = field(default=3.0, metadata={"help": "Seconds a program may take."})
    workers: int | None = field(
        default=None, metadata={"help": "Programs run at a time on each process, by default one a core."}
    )

    def __post_init__(self) -> None:
        if (self.text_backend == "openai") != (self.base_url is not None):
            raise ValueError(
                f"`text_backend` is {self.text_backend!r} and `base_url` is {self.base_url!r}; an address goes with "
                "the backend openai, and it with an address."
            )
        if self.text_backend == "openai" and self.text_teacher is None:
            raise ValueError("`text_teacher` is missing; give the name by which the server knows the teacher.")
        if self.generation_batch_size < 1:
            raise ValueError(f"`generation_batch_size` is {self.generation_batch_size}; give at least 1.")
