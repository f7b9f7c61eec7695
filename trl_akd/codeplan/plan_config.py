"""Configurations of plan generation by a teacher and of plan sampling in an evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..deprecation import rename_fields
from ..generation.loading import GeneratorConfig
from .plan_prompts import plan_prompt

__all__ = ["PlanGenerationConfig", "PlanSamplingConfig"]

# Without effect if plans are imported.
_OF_GENERATION = (
    "reasoning",
    "prompt_file",
    "num_plans",
    "max_solutions",
    "max_requests",
    "max_tokens",
    "temperature",
    "top_p",
    "max_new_tokens",
    "seed",
    "max_prompt_chars",
    "prompt_style",
)


@rename_fields(model="model_name_or_path", timeout="request_timeout", batch_size="generation_batch_size")
@dataclass
class PlanGenerationConfig(GeneratorConfig):
    """
    Configuration of `trl-akd plans`. Other arguments as in [`GeneratorConfig`], whose model is the teacher.

    Args:
        dataset_name (`str`, *optional*):
            Problems with solutions: the folder of APPS with one folder per problem, a .jsonl, .json, .parquet or .csv
            file, or a dataset on the Hub, with the columns of APPS, of MBPP, or `id`, `problem` and `solutions`.
        dataset_split (`str`, *optional*, defaults to `"train"`):
            Split, or a slice of one such as `"train[:100]"`. A folder of APPS has no splits.
        dataset_revision (`str`, *optional*):
            Branch, tag or commit of a dataset on the Hub.
        limit (`int`, *optional*):
            Maximum number of problems, the first ones.
        output_dir (`str`, *optional*, defaults to `"outputs/plans"`):
            Output folder of answers and plans.
        reasoning (`str`, *optional*, defaults to `"backward"`):
            `"backward"`, from problem and solution, or `"forward"`, from the problem alone.
        prompt_file (`str`, *optional*):
            Text file with a custom prompt, a format string with the field `{problem}` and, backward, `{solution}`;
            other braces are doubled.
        import_plans (`str`, *optional*):
            Folder from which to import plans instead of generating them: `NAME/plans.json`, as released by CodePLAN's
            authors for APPS, or `NAME.txt`, as for MBPP, where NAME is the `id` of the problem.
        num_plans (`int`, *optional*, defaults to `1`):
            Number of plans per solution or, with forward reasoning, per problem. A later run may increase it.
        max_solutions (`int`, *optional*):
            Maximum number of solutions per problem, the shortest first; by default all distinct ones.
        max_requests (`int`, *optional*):
            Maximum number of requests per run.
        max_tokens (`int`, *optional*):
            Maximum number of tokens of prompts and answers per run.
        temperature (`float`, *optional*, defaults to `0.2`):
            Sampling temperature; 0 for greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`):
            Cumulative probability of the most likely tokens to sample from.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum number of tokens per answer.
        seed (`int`, *optional*, defaults to `0`):
            Seed of sampling.
        max_plan_chars (`int`, *optional*, defaults to `3000`):
            Maximum number of characters per plan.
        max_prompt_chars (`int`, *optional*, defaults to `20000`):
            Maximum number of characters per prompt; solutions with longer prompts are skipped.
        prompt_style (`str`, *optional*, defaults to `"chat"`):
            Format of the prompt: `"chat"`, as a user message, or `"completion"`, for a base model.
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
                "plans come from one of them: remove the other."
            )
        if not self.model_name_or_path and self.import_plans is None:
            raise ValueError("`model_name_or_path` is missing; set the teacher that generates the plans.")
        if not self.dataset_name:
            raise ValueError("`dataset_name` is missing; set the dataset of problems and solutions.")
        if self.import_plans is not None:
            fields = type(self).__dataclass_fields__
            unused = [name for name in _OF_GENERATION if getattr(self, name) != fields[name].default]
            if unused:
                raise ValueError(
                    f"`{unused[0]}` is {getattr(self, unused[0])!r}, which has no effect with `import_plans`, which "
                    "generates no plan; leave it out."
                )
        for name in ("limit", "num_plans"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}; give at least 1, or leave it out.")

    def layout(self) -> str | None:
        """Return the custom prompt in `prompt_file`, if it is set.

        Raises:
            ValueError: If the file cannot be read, or has the wrong fields.
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
        """Settings of the teacher on which answers depend, by their names in files of answers."""
        names = ("model_revision", "backend", "dtype", "prompt_style", "extra_body")
        return {"model": self.model_name_or_path, **{name: getattr(self, name) for name in names}}


@dataclass
class PlanSamplingConfig:
    """
    Configuration of plan sampling in `trl-akd evaluate`.

    Args:
        plan_sampling (`bool`, *optional*, defaults to `False`):
            Whether to sample plans, select one per problem by its public tests, and evaluate `num_samples` programs
            generated with it. As many programs per plan are generated for the selection. The prompts are those of
            CodePLAN's training.
        num_plans (`int`, *optional*, defaults to `20`):
            Number of plans per problem.
        max_plan_tokens (`int`, *optional*, defaults to `512`):
            Maximum number of tokens per plan.
        without_public_tests (`str`, *optional*, defaults to `"error"`):
            For problems without public tests: `"error"`, or `"logprob"` to select the most likely plan.
        ranker (`str`, *optional*):
            Folder of a ranker from `trl-akd ranker train` that orders the programs.
    """

    plan_sampling: bool = False
    num_plans: int = 20
    max_plan_tokens: int = 512
    without_public_tests: Literal["error", "logprob"] = "error"
    ranker: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_plans", "max_plan_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give at least 1.")
        if self.without_public_tests not in ("error", "logprob"):
            raise ValueError(f"`without_public_tests` is {self.without_public_tests!r}; choose error or logprob.")
        if self.ranker is not None and not self.plan_sampling:
            raise ValueError(
                f"`ranker` is {self.ranker!r} without `plan_sampling`; rank existing samples by `trl-akd ranker "
                "rank` instead."
            )
