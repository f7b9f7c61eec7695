"""All parts of TRL's experimental GKD that this package builds on, for versions of TRL without it."""

from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig, SFTTrainer


@dataclass
class GKDConfig(SFTConfig):
    """
    Fields of TRL's `GKDConfig`, with its defaults.

    Args:
        temperature (`float`, *optional*, defaults to `0.9`):
            Temperature for sampling.
        lmbda (`float`, *optional*, defaults to `0.5`):
            Fraction of batches with text that the student generates.
        beta (`float`, *optional*, defaults to `0.5`):
            Coefficient of the divergence, from 0 to 1.
        max_new_tokens (`int`, *optional*, defaults to `128`):
            Maximum number of tokens to generate per completion.
        teacher_model_name_or_path (`str`, *optional*):
            Name or path of the teacher.
        teacher_model_init_kwargs (`dict[str, Any]` or `str`, *optional*):
            Keyword arguments of `AutoModelForCausalLM.from_pretrained` for the teacher.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to disable dropout in the student.
        seq_kd (`bool`, *optional*, defaults to `False`):
            Whether the teacher generates the text of batches that the student does not.
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "teacher_model_init_kwargs"]  # noqa: RUF012

    temperature: float = field(default=0.9, metadata={"help": "Temperature for sampling."})
    lmbda: float = field(default=0.5, metadata={"help": "Fraction of batches with text that the student generates."})
    beta: float = field(default=0.5, metadata={"help": "Coefficient of the divergence, from 0 to 1."})
    max_new_tokens: int = field(default=128, metadata={"help": "Maximum number of tokens to generate per completion."})
    teacher_model_name_or_path: str | None = field(default=None, metadata={"help": "Name or path of the teacher."})
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments of `AutoModelForCausalLM.from_pretrained` for the teacher."},
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Whether to disable dropout in the student."})
    seq_kd: bool = field(
        default=False,
        metadata={"help": "Whether the teacher generates the text of batches that the student does not."},
    )


class GKDTrainer(SFTTrainer):
    """Base class of [`AKDTrainer`], which has its own loss and its own generation."""
