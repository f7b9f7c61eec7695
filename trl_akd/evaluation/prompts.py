"""How a problem is put to a model, where its answer ends, and how that becomes a program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from ..data.templates import DEFAULT_TEMPLATE, get_template, render
from .extraction import program_of_answer, program_of_continuation
from .problems import Problem

__all__ = ["PROMPT_STYLES", "PromptStyle", "Prompting"]

PromptStyle: TypeAlias = Literal["completion", "template", "chat"]

PROMPT_STYLES: Mapping[str, str] = MappingProxyType(
    {
        "completion": "the problem's own beginning, which a base model continues",
        "template": "the instruction in the prompt template that the model was trained with",
        "chat": "the instruction as a user's message in the tokenizer's chat template",
    }
)


@dataclass(frozen=True)
class Prompting:
    """Turn problems into prompts, and what a model wrote into programs.

    Args:
        style (`str`, *optional*, defaults to `"completion"`):
            One of `PROMPT_STYLES`.
        template (`str`, *optional*, defaults to `"alpaca"`):
            Name in `trl_akd.data.templates.PROMPT_TEMPLATES`, for the style `template`.
        stops (`Sequence[str]`, *optional*):
            Texts that end a completion, instead of those of the problem.

    Raises:
        ValueError: If the style or the template is unknown.

    Example:

    ```python
    >>> prompting = Prompting("template", template="starcoder")
    >>> prompting.ask(Problem("0", "def one():", "assert one() == 1", instruction="Return one."))
    '<fim_prefix>Return one.\\n<fim_suffix><fim_middle>'

    ```
    """

    style: PromptStyle = "completion"
    template: str = DEFAULT_TEMPLATE
    stops: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.style not in PROMPT_STYLES:
            raise ValueError(f"prompt_style={self.style!r} is unknown; choose one of {', '.join(PROMPT_STYLES)}.")
        get_template(self.template)

    def ask(self, problem: Problem) -> str:
        """Return the prompt; for the style `chat`, the user's message."""
        if self.style == "completion":
            return problem.prompt
        if self.style == "template":
            return render(self.template, problem.instruction)
        return problem.instruction

    def stop(self, problem: Problem) -> tuple[str, ...]:
        """Return the texts that end a completion. A tuned model ends by itself; a base model has to be stopped."""
        if self.stops is not None:
            return tuple(self.stops)
        return problem.stop if self.style == "completion" else ()

    def program(self, problem: Problem, completion: str) -> str:
        """Return the program that a completion amounts to."""
        make = program_of_continuation if self.style == "completion" else program_of_answer
        return make(problem, completion)
