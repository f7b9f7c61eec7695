"""Configuration of CodePLAN's multi-task training."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

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

    Lists what CodePLAN adds to, or sets otherwise than, [`AKDConfig`]. The fields about teacher and divergence count
    for the tasks whose objective is `"akd"`.

    Args:
        plan_weight (`float`, *optional*, defaults to `0.5`):
            λ: the loss is (1 - λ) L_code + λ L_plan (paper: 0.5).
        schedule (`str`, *optional*, defaults to `"weighted"`):
            `"weighted"`: both tasks in every micro-batch. `"alternate"`: one task a micro-batch, in turn, with weights
            2 (1 - λ) and 2 λ, as the authors' code has it for λ = 0.5. `per_device_train_batch_size` counts problems.
        plan_head (`str`, *optional*, defaults to `"separate"`):
            `"separate"`: plans are written through an output layer of their own, a trained copy of the LM head (the
            authors' code). `"shared"`: the task tag alone tells the tasks apart.
        code_objective (`str`, *optional*, defaults to `"ce"`):
            `"ce"`: cross-entropy of the solution (the paper). `"akd"`: the divergence from a teacher that
            `beta_strategy` and its fellows describe.
        plan_objective (`str`, *optional*, defaults to `"ce"`):
            The same for the plan.
        guided_weight (`float`, *optional*, defaults to `0.0`):
            Weight of a third task's loss, a program that follows a plan, added to the others with the code's
            objective. The paper never trains it.
        max_target_length (`int`, *optional*):
            Maximum number of tokens of a solution or plan. By default `max_length` is the only limit.
        max_length (`int` or `None`, *optional*, defaults to `1024`):
            Maximum number of tokens of a prompt with its answer, or of the prompt where an encoder reads it. Prompts
            and plans are never cut: a problem that they make too long is dropped and counted.
        learning_rate (`float`, *optional*, defaults to `2e-5`):
            Initial learning rate (the authors' code).
        prompt_template (`str`, *optional*, defaults to `"codeplan_code"`):
            Template in which a benchmark that judges the student meanwhile puts its problems. The data has its own.
        remove_unused_columns (`bool`, *optional*, defaults to `False`):
            Must stay off: the collator reads columns that the model does not.
    """

    _VALID_DICT_FIELDS = AKDConfig._VALID_DICT_FIELDS

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
    def asks_teacher(self) -> bool:
        """Whether any task is learned from a teacher."""
        return "akd" in (self.code_objective, self.plan_objective)

    def check_checkpoint(self, checkpoint: str) -> None:
        """Raise the ValueError that says why a run cannot go on from a checkpoint folder, if it cannot."""
        super().check_checkpoint(checkpoint)
        check_plan_head_file(checkpoint, self.plan_head)

    def _check_tasks(self) -> None:
        if self.packing or self.padding_free:
            raise ValueError(
                f"`{'packing' if self.packing else 'padding_free'}` is on, but a batch of CodePLAN holds examples of "
                "two tasks, row by row; turn it off."
            )
        if self.lmbda > 0.0 or self.seq_kd:
            raise ValueError(
                f"`{'seq_kd' if self.seq_kd else 'lmbda'}` is on, but CodePLAN trains on given solutions and plans; "
                "leave it out."
            )
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` is on, which would take the prompts away; leave it off.")
        if not self.asks_teacher:
            self._check_no_teacher_options(
                "while `code_objective` and `plan_objective` are both 'ce'; set one of them to 'akd'"
            )
