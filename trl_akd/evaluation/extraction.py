"""The program that a completion amounts to: with the code of the problem it continues."""

import ast
from collections.abc import Sequence

from ..generation.extraction import extract_program
from ..generation.source import defines, parse
from .problems import Problem

__all__ = ["program_of_answer", "program_of_continuation"]


def program_of_continuation(problem: Problem, completion: str) -> str:
    """Return the program that a completion of the bare prompt amounts to.

    A continuation of code is appended to that code as it is. Where the prompt is prose, the program is looked for in
    the completion.
    """
    return problem.code_prompt + completion if problem.code_prompt else extract_program(completion)


def program_of_answer(problem: Problem, answer: str) -> str:
    """Return the program in an answer to an instruction.

    Imports and helpers of the problem's own code come first. An answer that is no program by itself but continues the
    problem's code is taken as its continuation.

    Example:

    ```python
    >>> problem = Problem("0", "import math\\n\\ndef root(x):\\n", "", code_prompt="import math\\n\\ndef root(x):\\n",
    ...                   entry_point="root")
    >>> answer = "Sure:\\n```python\\ndef root(x):\\n    return math.sqrt(x)\\n```"
    >>> print(program_of_answer(problem, answer).strip())
    import math
    def root(x):
        return math.sqrt(x)

    ```
    """
    program = extract_program(answer, problem.entry_point)
    continued = problem.code_prompt + program
    if problem.entry_point and parse(program) is None and defines(continued, problem.entry_point):
        return continued
    return "\n".join(filter(None, [_preamble(problem), program]))


def _preamble(problem: Problem) -> str:
    """Return the imports and helpers of the problem's own code, without the definition of the entry point."""
    tree = parse(problem.code_prompt) or parse(f"{problem.code_prompt}\n    pass\n")
    nodes: Sequence[ast.stmt] = tree.body if tree is not None else ()
    kept = [node for node in nodes if getattr(node, "name", None) != problem.entry_point]
    return "\n".join(ast.unparse(node) for node in kept if not isinstance(node, ast.Expr))
