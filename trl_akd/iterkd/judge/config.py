"""Configuration of `trl-akd judge train`."""

from dataclasses import dataclass
from typing import Literal

from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig

from .prompts import JUDGE_PROMPT, JudgePrompt

__all__ = ["JudgeModel", "JudgeTrainingConfig"]


@dataclass
class JudgeModel:
    """
    Model and data of a judge.

    Args:
        kind (`str`, *optional*, defaults to `"regression"`):
            `"regression"` predicts the five scores; `"generative"` writes analysis and scores.
        model_name_or_path (`str`, *optional*):
            Model to start from: an encoder or a language model for regression, a language model to generate.
        model_revision (`str`, *optional*):
            Branch, tag or commit of the model on the Hub.
        train_file (`str`, *optional*):
            Judgements, .json or .jsonl: rows {instruction, answer, scores}, or {instruction, response} as SODA's.
        test_size (`float`, *optional*):
            Fraction of the questions to hold out for evaluation.
        prompt_file (`str`, *optional*):
            Text file with a custom prompt of a generative judge, with {instruction} and {answer}.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum number of tokens of a generative judge on a held-out question.
    """

    kind: Literal["regression", "generative"] = "regression"
    model_name_or_path: str | None = None
    model_revision: str | None = None
    train_file: str | None = None
    test_size: float | None = None
    prompt_file: str | None = None
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise ValueError("`model_name_or_path` is missing; name a model to start from.")
        if not self.train_file:
            raise ValueError("`train_file` is missing; give a file of judgements.")
        if self.prompt_file is not None and self.kind == "regression":
            raise ValueError("`prompt_file` is for a generative judge; set kind=generative, or leave it out.")
        if self.max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` is {self.max_new_tokens}; leave room for at least one token.")

    def prompt(self) -> JudgePrompt:
        """Return the prompt template of a generative judge.

        Raises:
            ValueError: If `prompt_file` does not exist, or its content is not a template.
        """
        if self.prompt_file is None:
            return JUDGE_PROMPT
        try:
            return JudgePrompt.from_file(self.prompt_file)
        except (OSError, ValueError) as error:
            raise ValueError(f"`prompt_file` {self.prompt_file!r} cannot be used: {error}") from error


@dataclass
class JudgeTrainingConfig(SFTConfig):
    """
    Configuration of the training of a judge: TRL's `SFTConfig`, but for one default.

    Args:
        bf16 (`bool`, *optional*):
            Mixed precision in bfloat16; by default on where a GPU supports it. TRL's default fails without a GPU.
    """

    bf16: bool | None = None

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = not self.fp16 and is_torch_bf16_gpu_available()
        super().__post_init__()
