"""Prompts and stop strings of problems, and extraction of programs from completions."""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from ..data.templates import DEFAULT_TEMPLATE, get_template, render
from ..generation import parse_answer
from ..generation.answers import extract_program
from ..generation.programs import find_program
from ..generation.python_ast import defines, line_of_error, parse, returns
from ..generation.python_parts import Part, Source
from ..hub.model_card import PromptFormat
from .problems import Problem

__all__ = [
    "PROMPT_STYLES",
    "PromptStyle",
    "Prompting",
    "program_of_answer",
    "program_of_continuation",
    "remark_on_style",
]

PromptStyle: TypeAlias = Literal["completion", "template", "chat"]

PROMPT_STYLES: Mapping[str, str] = MappingProxyType(
    {
        "completion": "the beginning of the program, which a base model continues",
        "template": "the instruction in the prompt template that the model was trained with",
        "chat": "the instruction as a user message in the tokenizer's chat template",
    }
)


@dataclass(frozen=True)
class Prompting:
    """Prompts for problems, and extraction of programs from completions.

    Args:
        style (`str`, *optional*, defaults to `"completion"`):
            One of `PROMPT_STYLES`.
        template (`str`, *optional*, defaults to `"alpaca"`):
            Name in `trl_akd.data.templates.PROMPT_TEMPLATES`, for the style `template`.
        stops (`Sequence[str]`, *optional*):
            Stop strings, instead of those of the problem.

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
        """Return the stop strings; by default, only base models have any, since tuned models end by themselves."""
        if self.stops is not None:
            return tuple(self.stops)
        return problem.stop if self.style == "completion" else ()

    def program(self, problem: Problem, completion: str) -> str:
        """Return the program of a completion."""
        make = program_of_continuation if self.style == "completion" else program_of_answer
        return make(problem, completion)


def remark_on_style(trained: PromptFormat | None, prompting: Prompting) -> str | None:
    """Return a warning if problems are given in another format than the prompts of a model's training.

    Args:
        trained ([`PromptFormat`], *optional*):
            Format of the prompts of training, if it is known.
        prompting ([`Prompting`]):
            Prompts of the evaluation.

    Example:

    ```python
    >>> remark_on_style(PromptFormat("chat"), Prompting("completion")).partition("; ")[0]
    "Problems are given without a template, but the model was trained with the tokenizer's chat template"

    ```
    """
    given = PromptFormat(prompting.style, prompting.template if prompting.style == "template" else None)
    if trained is None or (trained.style, trained.template) == (given.style, given.template):
        return None
    remedy = f"`prompt_style` to {trained.style!r}"
    if trained.template is not None:
        remedy += f" and `prompt_template` to {trained.template!r}"
    return (
        f"Problems are given {given.phrase}, but the model was trained {trained.phrase}; set {remedy} for prompts as "
        "in training."
    )


_MAX_CUTS = 100


def program_of_continuation(problem: Problem, completion: str) -> str:
    """Return the program of a completion of the plain prompt.

    If the prompt is code, the completion is appended to it. If it is prose, the program is extracted from the
    completion.
    """
    if problem.code_prompt:
        return problem.code_prompt + completion
    return extract_program(completion, problem.entry_point)


def program_of_answer(problem: Problem, answer: str) -> str:
    r"""Return the program in an answer to an instruction.

    Imports and helpers of the problem's code come first. An answer that does not define the entry point but starts
    with the body of a function is appended to the problem's code, up to the prose after the body. As in other answers,
    code that only uses the function is left out.

    Example:

    ```python
    >>> problem = Problem("0", "import math\n\ndef root(x):\n", "", code_prompt="import math\n\ndef root(x):\n",
    ...                   entry_point="root")
    >>> answer = "Sure:\n```python\ndef root(x):\n    return math.sqrt(x)\n```"
    >>> print(program_of_answer(problem, answer).strip())
    import math
    def root(x):
        return math.sqrt(x)

    ```
    """
    read = parse_answer(answer, problem.entry_point)
    program = read.text if read.program is None else read.program
    if problem.entry_point and problem.code_prompt and not defines(program, problem.entry_point):
        for body in (program, read.text, *(block.text for block in read.blocks[:1])):
            continued = _continued(problem.code_prompt, problem.entry_point, body)
            if continued is not None:
                return find_program([Part(continued, "python")], problem.entry_point) or continued
    source = Source(Part(program, "python"))
    futures = [statement.text for statement in source.statements if source.parses and statement.is_future_import]
    if futures:
        others = [number for number, statement in enumerate(source.statements) if not statement.is_future_import]
        program = source.text_of(others)
    return "\n".join(filter(None, [*futures, _preamble(problem), program]))


def _continued(code: str, entry_point: str, text: str) -> str | None:
    """Return code completed by the function body that a text starts with, at any indentation, or `None`."""
    found: list[str] = []
    indent = text[: len(text) - len(text.lstrip())].rpartition("\n")[2]
    opened = re.sub(rf"^{indent}(?=.)", "    ", text, flags=re.MULTILINE)
    for body in (opened, f"    {text}"):
        program = code + _body(code, body)
        is_indented = body is opened and indent != "" and program[len(code) :].strip() != ""
        if is_indented or _returns(program, entry_point):
            found.append(program)
    return max(found, key=lambda program: len(program), default=None)


def _body(code: str, text: str) -> str:
    """Return the first lines of a text, as many as continue the code."""
    before = code.count("\n")
    lines = text.split("\n")
    for _ in range(_MAX_CUTS):
        error = line_of_error(code + "\n".join(lines)) if lines else None
        if error is None:
            return "\n".join(lines)
        lines = lines[: min(max(error - 1 - before, 0), len(lines) - 1)]
    return ""


def _returns(program: str, name: str) -> bool:
    """Return whether the last function with a name returns, yields or raises anything itself."""
    tree = parse(program)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name] if tree else []
    return bool(functions) and returns(functions[-1])


def _preamble(problem: Problem) -> str:
    """Return the imports and helpers of the problem's code, without the entry point."""
    tree = parse(problem.code_prompt) or parse(f"{problem.code_prompt}\n    pass\n")
    nodes: Sequence[ast.stmt] = tree.body if tree is not None else ()
    kept = [node for node in nodes if getattr(node, "name", None) != problem.entry_point]
    return "\n".join(ast.unparse(node) for node in kept if not isinstance(node, ast.Expr))
