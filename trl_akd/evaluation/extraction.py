"""Programs from completions and answers, with the code of the problem that they continue."""

import ast
import re
from collections.abc import Sequence

from ..generation import parse_answer
from ..generation.answers import extract_program
from ..generation.programs import find_program
from ..generation.python_ast import defines, line_of_error, parse
from ..generation.python_parts import Part
from .problems import Problem

__all__ = ["program_of_answer", "program_of_continuation"]

_MAX_CUTS = 100


def program_of_continuation(problem: Problem, completion: str) -> str:
    """Return the program that a completion of the bare prompt amounts to.

    A continuation of code is appended to that code as it is. Where the prompt is prose, the program is looked for in
    the completion.
    """
    if problem.code_prompt:
        return problem.code_prompt + completion
    return extract_program(completion, problem.entry_point)


def program_of_answer(problem: Problem, answer: str) -> str:
    r"""Return the program in an answer to an instruction.

    Imports and helpers of the problem's own code come first. An answer that does not define the entry point but opens
    with the body of a function is taken as the continuation of the problem's code, up to the prose after it; what only
    uses the function is left out of it as out of any answer.

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
    futures = [line for line in program.split("\n") if line.startswith("from __future__ import")]
    rest = "\n".join(line for line in program.split("\n") if not line.startswith("from __future__ import"))
    return "\n".join(filter(None, [*futures, _preamble(problem), rest]))


def _continued(code: str, entry_point: str, text: str) -> str | None:
    """Return a function's beginning with the body that opens a text, at any indent, or `None`."""
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
    """Return the lines that a text opens with, up to where they stop being a continuation of code."""
    before = code.count("\n")
    lines = text.split("\n")
    for _ in range(_MAX_CUTS):
        error = line_of_error(code + "\n".join(lines)) if lines else None
        if error is None:
            return "\n".join(lines)
        lines = lines[: min(max(error - 1 - before, 0), len(lines) - 1)]
    return ""


def _returns(program: str, name: str) -> bool:
    """Tell whether the last function of a name returns, yields or raises something itself."""
    tree = parse(program)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name] if tree else []
    waiting: list[ast.AST] = [*functions[-1].body] if functions else []
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Return | ast.Yield | ast.YieldFrom | ast.Raise):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return False


def _preamble(problem: Problem) -> str:
    """Return the imports and helpers of the problem's own code, without the definition of the entry point."""
    tree = parse(problem.code_prompt) or parse(f"{problem.code_prompt}\n    pass\n")
    nodes: Sequence[ast.stmt] = tree.body if tree is not None else ()
    kept = [node for node in nodes if getattr(node, "name", None) != problem.entry_point]
    return "\n".join(ast.unparse(node) for node in kept if not isinstance(node, ast.Expr))
