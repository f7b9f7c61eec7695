"""Configuration of IterKD."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

from ..akd.akd_config import AKDConfig
from ..losses.contrastive import ContrastiveLoss
from .cycle.config import CycleConfig

__all__ = ["IterKDConfig", "Objective"]

Objective: TypeAlias = Literal["akd", "ce"]


@dataclass
class IterKDConfig(CycleConfig, AKDConfig):
    r"""
    Configuration of [`IterKDTrainer`].

    Lists the fields that IterKD adds to [`AKDConfig`] and those with other defaults. The fields for teacher and
    divergence apply if `objective` is `"akd"`.

    Args:
        objective (`str`, *optional*):
            Supervised objective on correct answers: `"akd"`, the divergence from a teacher, as configured by the
            fields of [`AKDConfig`], or `"ce"`, cross-entropy, as in the paper. Defaults to `"akd"` with a teacher
            model, and to `"ce"` without, for example with a teacher that only writes text.
        contrastive_weight (`float`, *optional*, defaults to `0.1`):
            Weight of the contrastive loss of correct against faulty answers, which is added to the supervised loss.
            With the default loss and weight 1, the gradient on the tokens of a correct answer is at first as large as
            that of cross-entropy, and decreases as the margin grows. With 0, faulty answers are ignored.
        contrastive_loss (`str`, *optional*, defaults to `"dpo_norm"`):
            Contrastive loss: `"dpo"`, `"dpo_norm"` (with means over tokens instead of sums), `"simpo"`,
            `"unlikelihood"` or `"infonce"`. See `trl_akd/losses/contrastive.py`.
        contrastive_beta (`float`, *optional*):
            Factor of log-probabilities in the contrastive loss. Defaults to 0.1 for `"dpo"`, which compares sums, and
            to 2 for losses that compare means. `"unlikelihood"` has no such factor.
        simpo_margin (`float`, *optional*):
            Target margin between the rewards with `contrastive_loss="simpo"`. Defaults to 1.
        max_faults (`int`, *optional*, defaults to `4`):
            Maximum number of faulty answers per pair in training. Each is a row of the batch, whereas
            `per_device_train_batch_size` counts pairs.
        remove_unused_columns (`bool`, *optional*, defaults to `False`):
            Must be off, as the collator uses columns that the model does not.
    """

    _VALID_DICT_FIELDS = AKDConfig._VALID_DICT_FIELDS

    _may_generate: ClassVar[bool] = False
    objective: Objective | None = None
    contrastive_weight: float = 0.1
    contrastive_loss: ContrastiveLoss = "dpo_norm"
    contrastive_beta: float | None = None
    simpo_margin: float | None = None
    max_faults: int = 4
    remove_unused_columns: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("contrastive_loss", ContrastiveLoss), ("objective", Objective)):
            if getattr(self, name) not in (*get_args(choices), *([None] if name == "objective" else [])):
                accepted = ", ".join(map(repr, get_args(choices)))
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose one of {accepted}.")
        self._check_contrastive()
        super().__post_init__()
        self._check_training()

    @property
    def uses_teacher(self) -> bool:
        """Whether the objective needs a teacher model."""
        if self.objective is not None:
            return self.objective == "akd"
        return self.teacher_model_name_or_path is not None or self.teacher_cache is not None

    @property
    def needs_reference(self) -> bool:
        """Whether the contrastive loss needs reference log-probabilities."""
        return self.contrastive_weight > 0.0 and self.contrastive_loss not in ("simpo", "unlikelihood")

    @property
    def contrastive_kwargs(self) -> dict[str, float]:
        """Arguments of the contrastive loss that are set."""
        settings = {"beta": self.contrastive_beta, "margin": self.simpo_margin}
        return {name: value for name, value in settings.items() if value is not None}

    def resolve_objective(self, has_teacher: bool) -> None:
        """Set the default of `objective`, which depends on whether there is a teacher model.

        Raises:
            ValueError: If options have no effect with it.
        """
        if self.objective is None:
            self.objective = "akd" if has_teacher else "ce"
        self._check_objective()

    def _check_contrastive(self) -> None:
        if not (self.contrastive_weight >= 0.0 and math.isfinite(self.contrastive_weight)):
            raise ValueError(f"`contrastive_weight` is {self.contrastive_weight}; give a finite number of at least 0.")
        if self.max_faults < 1:
            raise ValueError(
                f"`max_faults` is {self.max_faults}; give at least 1, or set contrastive_weight=0 to ignore faults."
            )
        beta, margin = self.contrastive_beta, self.simpo_margin
        if beta is not None and not (beta > 0.0 and math.isfinite(beta)):
            raise ValueError(f"`contrastive_beta` is {beta}; give a finite number above 0.")
        if margin is not None and not math.isfinite(margin):
            raise ValueError(f"`simpo_margin` is {margin}; give a finite number.")
        if self.contrastive_weight == 0.0:
            self._check_without_effect(
                ("contrastive_loss", "contrastive_beta", "simpo_margin", "max_faults"),
                "while `contrastive_weight` is 0; raise that",
            )
        if self.contrastive_loss != "simpo":
            self._check_without_effect(
                ("simpo_margin",), f"with contrastive_loss={self.contrastive_loss!r}; set that to 'simpo'"
            )
        if self.contrastive_loss == "unlikelihood":
            self._check_without_effect(
                ("contrastive_beta",), "with contrastive_loss='unlikelihood'; choose another loss"
            )

    def _check_training(self) -> None:
        if self.packing or self.padding_free:
            raise ValueError(
                f"`{'packing' if self.packing else 'padding_free'}` is on, but batches of IterKD have one answer per "
                "row; turn it off."
            )
        if self.lmbda > 0.0 or self.seq_kd:
            raise ValueError(
                f"`{'seq_kd' if self.seq_kd else 'lmbda'}` is on, but IterKD trains on given answers; leave it out."
            )
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` is on, which would remove the prompts; turn it off.")
        self._check_objective()

    def _check_objective(self) -> None:
        if self.objective == "ce":
            self._check_no_teacher_options("while `objective` is 'ce'; set it to 'akd'")
