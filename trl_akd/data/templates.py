"""Prompt templates and their sources; standard library only.

The completion follows the rendered prompt without a separator: Stanford Alpaca trains on prompt + output + EOS
(`train.py`, `preprocess`), so the prompt ends in "### Response:" and a line break after it is part of the completion.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

__all__ = ["DEFAULT_TEMPLATE", "PROMPT_TEMPLATES", "PromptTemplate", "get_template", "render"]

DEFAULT_TEMPLATE = "alpaca"


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A layout of an instruction and its optional input.

    Args:
        source (`str`):
            Source of the wording.
        with_input (`str`):
            Format string with the fields `instruction` and `input`.
        without_input (`str`, *optional*):
            Format string with the field `instruction`, for rows with an empty input; by default `with_input` with an
            empty input.
    """

    source: str
    with_input: str
    without_input: str | None = None

    def render(self, instruction: str, input: str = "") -> str:
        """Return the prompt for one row."""
        if input == "" and self.without_input is not None:
            return self.without_input.format(instruction=instruction)
        return self.with_input.format(instruction=instruction, input=input)


PROMPT_TEMPLATES: Mapping[str, PromptTemplate] = MappingProxyType(
    {
        "starcoder": PromptTemplate(
            source="AKD (jos.org.cn 7462), Table 1, template 1: StarCoder's fill-in-the-middle tokens, empty suffix",
            with_input="<fim_prefix>{instruction}\n{input}<fim_suffix><fim_middle>",
        ),
        "instruct_eval": PromptTemplate(
            source="AKD (jos.org.cn 7462), Table 1, template 2: the prompt of instruct-eval",
            with_input=(
                "Please complete the following Python code without providing any additional tasks such as testing or "
                "explanations.\n{instruction}\n{input}"
            ),
        ),
        "alpaca": PromptTemplate(
            source="tatsu-lab/stanford_alpaca, train.py (Apache-2.0), which AKD calls the Stanford-Alpaca template",
            with_input=(
                "Below is an instruction that describes a task, paired with an input that provides further context. "
                "Write a response that appropriately completes the request.\n\n"
                "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
            ),
            without_input=(
                "Below is an instruction that describes a task. "
                "Write a response that appropriately completes the request.\n\n"
                "### Instruction:\n{instruction}\n\n### Response:"
            ),
        ),
        "alpaca_akd_paper": PromptTemplate(
            source=(
                "AKD (jos.org.cn 7462), Table 1, template 3, as printed: no blank lines, the preamble of a task "
                "without input, and an Input header even where the input is empty"
            ),
            with_input=(
                "Below is an instruction that describes a task. "
                "Write a response that appropriately completes the request."
                "### Instruction:\n{instruction}\n### Input:\n{input}\n### Response:"
            ),
        ),
        "comment": PromptTemplate(
            source="this project: the instruction as a Python comment, which a base model of code continues",
            with_input="# {instruction}\n# {input}\n",
            without_input="# {instruction}\n",
        ),
        "codeplan_code": PromptTemplate(
            source="CodePLAN's task tag before the layout of APPS (hendrycks/apps, MIT): write the program",
            with_input="[GEN_CODE]\nQUESTION:\n{instruction}\n{input}\n\nANSWER:\n",
            without_input="[GEN_CODE]\nQUESTION:\n{instruction}\n\nANSWER:\n",
        ),
        "codeplan_plan": PromptTemplate(
            source="CodePLAN's task tag before the layout of APPS, and the zero-shot reasoning prompt: write the plan",
            with_input="[GEN_PLAN]\nQUESTION:\n{instruction}\n{input}\n\nLet's think step by step:\n",
            without_input="[GEN_PLAN]\nQUESTION:\n{instruction}\n\nLet's think step by step:\n",
        ),
        "codeplan_guided": PromptTemplate(
            source="the layout of `codeplan_code` with a plan as the input: write the program that follows it",
            with_input=("[GEN_CODE]\nQUESTION:\n{instruction}\n\nLet's think step by step:\n{input}\n\nANSWER:\n"),
        ),
    }
)


def get_template(name: str) -> PromptTemplate:
    """Return the template called `name`.

    Raises:
        ValueError: If no template has that name; the message lists the names and suggests the closest one.
    """
    if name in PROMPT_TEMPLATES:
        return PROMPT_TEMPLATES[name]
    close = get_close_matches(name, PROMPT_TEMPLATES, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"prompt_template {name!r} is unknown; choose one of {', '.join(PROMPT_TEMPLATES)}.{hint}")


def render(name: str, instruction: str, input: str = "") -> str:
    r"""Return the prompt of template `name` for one row.

    Raises:
        ValueError: If no template has that name.

    Example:

    ```python
    >>> render("starcoder", "Add two numbers.", "1, 2")
    '<fim_prefix>Add two numbers.\n1, 2<fim_suffix><fim_middle>'

    ```
    """
    return get_template(name).render(instruction, input)
