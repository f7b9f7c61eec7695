"""Configuration of [`CodePLANTrainer`]."""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

from ..akd.akd_config import AKDConfig, PromptTemplateName
from .collator import Schedule, task_loss_weights
from .encoding import check_lengths
from .plan_head import PlanHead, check_plan_head_file

__all__ = ["CodePLANConfig", "TaskObjective"]

TaskObjective: TypeAlias = Literal["ce", "akd"]


@dataclass
class CodePLANConfig(AKDConfig):
    r"""
    Configuration of [`CodePLANTrainer`].

    Only the fields that CodePLAN adds to [`AKDConfig`], or whose defaults it changes, are listed. The fields about
    teacher and divergence apply to the tasks whose objective is `"akd"`.

    Args:
        plan_weight (`float`, *optional*, defaults to `0.5`):
            λ in the loss (1 - λ) L_code + λ L_plan (paper: 0.5).
        schedule (`str`, *optional*, defaults to `"weighted"`):
            `"weighted"`: both tasks in every micro-batch. `"alternate"`: one task per micro-batch, alternating, with
            weights 2 (1 - λ) and 2 λ, as in the authors' code for λ = 0.5. `per_device_train_batch_size` counts
            problems.
        plan_head (`str`, *optional*, defaults to `"separate"`):
            `"separate"`: plans are predicted by a separate output layer, a trained copy of the LM head (the authors'
            code). `"shared"`: the LM head predicts both, and only the tag in the prompt distinguishes the tasks.
        code_objective (`str`, *optional*, defaults to `"ce"`):
            `"ce"`: cross-entropy of the solution (the paper). `"akd"`: the divergence from a teacher, with
            the options of [`AKDConfig`].
        plan_objective (`str`, *optional*, defaults to `"ce"`):
            As `code_objective`, for plans.
        guided_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the loss of a third task, a program that follows a plan, with the objective of code. The paper
            does not train it.
        max_target_length (`int`, *optional*):
            Maximum number of tokens per solution or plan; by default `max_length` is the only limit.
        max_length (`int` or `None`, *optional*, defaults to `1024`):
            Maximum number of tokens per prompt and answer together, or per prompt for an encoder-decoder. Prompts and
            plans are never truncated: problems for which they are too long are dropped and counted.
        learning_rate (`float`, *optional*, defaults to `2e-5`):
            Initial learning rate (the authors' code).
        prompt_template (`str`, *optional*, defaults to `"codeplan_code"`):
            Prompt template of benchmarks that evaluate the student during training; the training data has fixed
            templates.
        remove_unused_columns (`bool`, *optional*, defaults to `False`):
            Must be `False`: the collator reads columns that the model does not.
    """

    _VALID_DICT_FIELDS = AKDConfig._VALID_DICT_FIELDS

    _may_generate: ClassVar[bool] = False
    plan_weight: float = 0.5
    schedule: Schedule = "weighted"
    plan_head: PlanHead = "separate"
    code_objective: TaskObjective = "ce"
    plan_objective: TaskObjective = "ce"
    guided_weight: float = 0.0
    max_target_length: int | None = None
    max_length: int | None = 1024
    learning_rate: float = 2e-5
    prompt_template: PromptTemplateName = "codeplan_code"
    remove_unused_columns: bool = False

    def __post_init__(self) -> None:
        for name, choices in (
            ("schedule", Schedule),
            ("plan_head", PlanHead),
            ("code_objective", TaskObjective),
            ("plan_objective", TaskObjective),
        ):
            if getattr(self, name) not in get_args(choices):
                accepted = " or ".join(map(repr, get_args(choices)))
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose {accepted}.")
        task_loss_weights(self.plan_weight, self.guided_weight)
        check_lengths(self.max_length, self.max_target_length)
        super().__post_init__()
        self._check_tasks()

    @property
    def uses_teacher(self) -> bool:
        """Whether any task is distilled from a teacher."""
        return "akd" in (self.code_objective, self.plan_objective)

    def check_checkpoint(self, checkpoint: str) -> None:
        """Raise a ValueError if a run cannot resume from a checkpoint folder."""
        super().check_checkpoint(checkpoint)
        check_plan_head_file(checkpoint, self.plan_head)

    def _check_tasks(self) -> None:
        if self.packing or self.padding_free:
            raise ValueError(
                f"`{'packing' if self.packing else 'padding_free'}` is on, but a batch of CodePLAN has examples of "
                "two tasks, one per row; turn it off."
            )
        if self.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
            raise ValueError(
                f"`train_sampling_strategy` is {self.train_sampling_strategy!r}, but a problem has several texts, "
                "which are drawn in each epoch; leave it out."
            )
        if self.lmbda > 0.0 or self.seq_kd:
            raise ValueError(
                f"`{'seq_kd' if self.seq_kd else 'lmbda'}` is on, but CodePLAN trains on the solutions and plans of "
                "the dataset; leave it out."
            )
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` is on, which would remove the prompts; turn it off.")
        if self.plan_weight == 0.0:
            self._check_without_effect(("plan_head", "plan_objective"), "with plan_weight=0; raise that")
        if self.plan_weight == 1.0 and self.guided_weight == 0.0:
            self._check_without_effect(("code_objective",), "with plan_weight=1; lower that")
        if not self.uses_teacher:
            self._check_no_teacher_options(
                "while `code_objective` and `plan_objective` are both 'ce'; set one of them to 'akd'"
            )
