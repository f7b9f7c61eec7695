"""Configuration of `trl-akd plans`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..deprecation import rename_fields
from ..generation.loading import GeneratorConfig
from .plan_prompts import plan_prompt

__all__ = ["PlanGenerationConfig"]


@rename_fields(model="model_name_or_path", timeout="request_timeout", batch_size="generation_batch_size")
@dataclass
class PlanGenerationConfig(GeneratorConfig):
    """
    Configuration of `trl-akd plans`. Other arguments as in [`GeneratorConfig`]; the model is the teacher.

    Args:
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
    """

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.import_plans is not None and self.model_name_or_path:
            raise ValueError(
                f"`import_plans` is {self.import_plans!r} and `model_name_or_path` is {self.model_name_or_path!r}; "
                "plans come from one of them: leave out the other."
            )
        if not self.model_name_or_path and self.import_plans is None:
            raise ValueError("`model_name_or_path` is missing; name the teacher that writes the plans.")
        if not self.dataset_name:
            raise ValueError("`dataset_name` is missing; name the problems and solutions that plans are for.")
        for name in ("limit", "num_plans"):
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
        """Settings that answers depend on beside prompt and sampling, by the names that files of answers have."""
        names = ("model_revision", "backend", "dtype", "prompt_style", "extra_body")
        return {"model": self.model_name_or_path, **{name: getattr(self, name) for name in names}}
