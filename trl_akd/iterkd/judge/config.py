"""Configuration of `trl-akd judge train`."""

from dataclasses import dataclass
from typing import Literal

from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig

from .prompts import JUDGE_PROMPT, JudgePrompt, read_field

__all__ = ["JudgeModel", "JudgeTrainingConfig"]


@dataclass
class JudgeModel:
    """
    Configuration of the model and the data of a judge.

    Args:
        kind (`str`, *optional*, defaults to `"regression"`):
            Kind of judge: `"regression"` predicts the five scores; `"generative"` writes an analysis and the scores.
        model_name_or_path (`str`, *optional*):
            Model to train: an encoder or a language model for `"regression"`, a language model for `"generative"`.
        model_revision (`str`, *optional*):
            Branch, tag or commit of the model on the Hub.
        train_file (`str`, *optional*):
            Judgements in a .json or .jsonl file: rows {instruction, answer, scores}, or {instruction, response} in
            SODA's format.
        test_size (`float`, *optional*):
            Fraction of the questions to hold out for evaluation.
        prompt_file (`str`, *optional*):
            Text file with a custom prompt for a generative judge, with {instruction} and {answer}.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum number of tokens of a judgement by a generative judge in the evaluation.
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
            raise ValueError("`model_name_or_path` is missing; give a model to train.")
        if not self.train_file:
            raise ValueError("`train_file` is missing; give a file of judgements.")
        if self.prompt_file is not None and self.kind == "regression":
            raise ValueError(
                "`prompt_file` has no effect on a regression judge; set kind=generative, or leave it out."
            )
        if self.max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` is {self.max_new_tokens}; leave room for at least one token.")

    def prompt(self) -> JudgePrompt:
        """Return the prompt template of a generative judge.

        Raises:
            ValueError: If `prompt_file` does not exist, or its content is not a template.
        """
        return read_field("prompt_file", self.prompt_file, JudgePrompt.from_file, JUDGE_PROMPT)


@dataclass
class JudgeTrainingConfig(SFTConfig):
    """
    Configuration of the training of a judge: TRL's `SFTConfig` with another default.

    Args:
        bf16 (`bool`, *optional*):
            Whether to use bfloat16 mixed precision. Defaults to whether the GPU supports it, whereas TRL's default
            fails without a GPU.
    """

    bf16: bool | None = None

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = not self.fp16 and is_torch_bf16_gpu_available()
        super().__post_init__()
