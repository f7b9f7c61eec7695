"""Configuration of `trl-akd plans`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .plan_prompts import plan_prompt

__all__ = ["PlanGenerationConfig"]


@dataclass
class PlanGenerationConfig:
    """
    Configuration of `trl-akd plans`: who is asked for plans, for which solutions, and at what cost.

    Args:
        model (`str`, *optional*):
            Teacher: a folder, a name on the Hub or, for a server, the name it serves.
        dataset_name (`str`, *optional*):
            Problems with solutions: APPS's folder of numbered folders, a .jsonl, .json, .parquet or .csv file, or a
            dataset on the Hub, with the columns of APPS, of MBPP, or `id`, `problem` and `solutions`.
        dataset_split (`str`, *optional*, defaults to `"train"`):
            Split, or a slice of one such as `"train[:100]"`.
        dataset_revision (`str`, *optional*):
            Branch, tag or commit of a dataset on the Hub.
        limit (`int`, *optional*):
            Take the first so many problems.
        output_dir (`str`, *optional*, defaults to `"outputs/plans"`):
            Folder for answers and plans.
        reasoning (`str`, *optional*, defaults to `"backward"`):
            `"backward"`, from problem and solution, or `"forward"`, from the problem alone.
        prompt_file (`str`, *optional*):
            Text file with a request of one's own, in which `{problem}` and, backward, `{solution}` are filled in;
            other braces are doubled.
        import_plans (`str`, *optional*):
            Take plans from this folder instead of a teacher: `NAME/plans.json`, as CodePLAN's authors released theirs
            for APPS, or `NAME.txt`, as for MBPP, where NAME is a problem's `id`.
        num_plans (`int`, *optional*, defaults to `1`):
            Plans a solution or, if reasoning forward, a problem. May be raised later.
        max_solutions (`int`, *optional*):
            Take the shortest so many solutions of a problem; by default all that differ.
        max_requests (`int`, *optional*):
            End the run when it has sent so many requests.
        max_tokens (`int`, *optional*):
            End the run when it has cost so many tokens.
        temperature (`float`, *optional*, defaults to `0.2`):
            Temperature of sampling; 0 takes the likeliest token at each step.
        top_p (`float`, *optional*, defaults to `1.0`):
            Sample from the likeliest tokens whose probabilities add up to this.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Most tokens of an answer.
        seed (`int`, *optional*, defaults to `0`):
            Seed of sampling.
        max_plan_chars (`int`, *optional*, defaults to `3000`):
            Most characters of a plan.
        max_prompt_chars (`int`, *optional*, defaults to `20000`):
            Leave out solutions whose prompt is longer.
        prompt_style (`str`, *optional*, defaults to `"chat"`):
            How the teacher is asked: `"chat"`, as a user's message, or `"completion"`, for a base model.
        backend (`str`, *optional*, defaults to `"transformers"`):
            What runs the teacher: `"transformers"`, `"vllm"`, or `"openai"`, a server with OpenAI's interface.
        base_url (`str`, *optional*):
            Address of that server, such as `http://localhost:8000/v1`; its key is in OPENAI_API_KEY.
        concurrency (`int`, *optional*, defaults to `8`):
            Most requests to the server under way together.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds to wait for an answer of the server.
        max_retries (`int`, *optional*, defaults to `5`):
            Repetitions of a request that the server did not answer well, with waits that double.
        model_revision (`str`, *optional*):
            Branch, tag or commit of the teacher on the Hub.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the teacher's weights: `"auto"` (as saved), `"bfloat16"`, `"float16"` or `"float32"`.
        device_map (`str`, *optional*):
            Spread the teacher over devices, such as `"auto"`; by default it is on the GPU as a whole, if there is one.
        batch_size (`int`, *optional*):
            Prompts to give the teacher at a time, and to lose at most by an interruption: by default 16 with
            transformers, 128 with vLLM, and `concurrency` with a server.
    """

    model: str | None = None
    dataset_name: str | None = None
    dataset_split: str = "train"
    dataset_revision: str | None = None
    limit: int | None = None
    output_dir: str = "outputs/plans"
    reasoning: Literal["backward", "forward"] = "backward"
    prompt_file: str | None = None
    import_plans: str | None = None
    num_plans: int = 1
    max_solutions: int | None = None
    max_requests: int | None = None
    max_tokens: int | None = None
    temperature: float = 0.2
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0
    max_plan_chars: int = 3000
    max_prompt_chars: int = 20_000
    prompt_style: Literal["chat", "completion"] = "chat"
    backend: Literal["transformers", "vllm", "openai"] = "transformers"
    base_url: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    max_retries: int = 5
    model_revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    device_map: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.import_plans is not None and self.model:
            raise ValueError(
                f"`import_plans` is {self.import_plans!r} and `model` is {self.model!r}; plans come from one of them: "
                "leave out the other."
            )
        if not self.model and self.import_plans is None:
            raise ValueError("`model` is missing; name the teacher that writes the plans.")
        if not self.dataset_name:
            raise ValueError("`dataset_name` is missing; name the problems and solutions that plans are for.")
        if (self.backend == "openai") != (self.base_url is not None):
            raise ValueError(
                f"`backend` is {self.backend!r} and `base_url` is {self.base_url!r}; an address goes with the backend "
                "openai, and it with an address."
            )
        for name in ("limit", "batch_size", "num_plans"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}; give at least 1, or leave it out.")

    def layout(self) -> str | None:
        """Read the caller's own request, if there is one.

        Raises:
            ValueError: If there is no such file, or what is in it is no request.
        """
        if self.prompt_file is None:
            return None
        try:
            layout = Path(self.prompt_file).expanduser().read_text(encoding="utf-8")
            plan_prompt(self.reasoning, layout)
        except (OSError, ValueError) as error:
            raise ValueError(f"`prompt_file` {self.prompt_file!r} cannot be used: {error}") from error
        return layout

    @property
    def teacher(self) -> dict[str, Any]:
        """Return what answers depend on beside prompt and sampling."""
        return {name: getattr(self, name) for name in ("model", "model_revision", "backend", "dtype", "prompt_style")}
