"""The rows of HumanEval, MBPP, APPS, LiveCodeBench and plain JSON Lines as problems, by their columns."""

import ast
import builtins
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from ..generation.python_ast import defines, parse
from .columns import Row, cases, optional_text, task_id, tests, text, texts
from .livecodebench import read_livecodebench
from .problems import Problem

__all__ = ["read_problem"]

# Where a function body ends: what follows at the left margin, as for Codex (arXiv 2107.03374, section 2.3). MBPP's
# solutions may define several functions; tests and prose end them.
_FUNCTION_ENDS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\nassert ", "\n@", "\n```")
_PROGRAM_ENDS = ('\n"""', "\nassert ", "\nprint(", "\nif __name__", "\n```")
_ANSWER_ENDS = ("\nQUESTION:", "\nANSWER:", "\n---", "\n```")


def read_problem(row: Row, where: str) -> Problem:
    """Read one row of any of the formats.

    | columns | format |
    |---|---|
    | `task_id`, `prompt`, `entry_point`, `test` with a function `check` | HumanEval, HumanEval+ |
    | `task_id`, `text` or `prompt`, `test_list` | MBPP, MBPP+ |
    | `question`, `input_output` | APPS |
    | `question_content`, `public_test_cases`, `private_test_cases` | LiveCodeBench |
    | `task_id`, `prompt`, `test` | plain: the test is run after prompt and completion |

    Args:
        row (`Mapping`):
            Columns and values.
        where (`str`):
            Name of the row for messages, such as `held_out.jsonl, line 3`.

    Raises:
        UntestableError: If the problem has no tests that could judge a program.
        ValueError: If the columns fit no format, or a value is missing or of another type.
    """
    for columns, read in _FORMATS.items():
        if all(column in row for column in columns):
            return read(row, where)
    raise ValueError(
        f"{where} has the columns {', '.join(map(str, row)) or 'none'}; give task_id, prompt and test, or those of "
        "HumanEval (with entry_point), MBPP (task_id, text, test_list), APPS (question, input_output) or "
        "LiveCodeBench (question_content, public_test_cases, private_test_cases)."
    )


def _humaneval(row: Row, where: str) -> Problem:
    if "def check(" not in str(row["test"]):
        return _plain(row, where)
    prompt, entry_point = text(row, "prompt", where), text(row, "entry_point", where)
    return Problem(
        task_id=task_id(row, where, "task_id"),
        prompt=prompt,
        tests=f"{text(row, 'test', where)}\ncheck({entry_point})\n",
        instruction=f"Complete the following Python function.\n\n```python\n{prompt.strip()}\n```",
        code_prompt=prompt,
        entry_point=entry_point,
        stop=_FUNCTION_ENDS,
    )


def _mbpp(row: Row, where: str) -> Problem:
    asserts = texts(row, "test_list", where)
    if not asserts:
        raise ValueError(f"`test_list` in {where} is empty; give a list of assert statements.")
    description = text(row, "text" if "text" in row else "prompt", where).strip()
    hidden = optional_text(row, "test", where)
    setup = [optional_text(row, "test_setup_code", where) or "", *texts(row, "test_imports", where)]
    shown = "\n".join(asserts)
    base = _test_program([*setup, shown])
    program = _test_program([*setup, hidden]) if hidden else base
    prompt = f'"""\n{description}\n{shown}\n"""\n'
    return Problem(
        task_id=task_id(row, where, "task_id"),
        prompt=prompt,
        tests=program,
        instruction=f"{description}\n\nYour code must pass these tests:\n\n```python\n{shown}\n```",
        code_prompt=prompt,
        entry_point=_called(asserts, optional_text(row, "code", where)),
        base_tests=base if hidden else None,
        public_tests=base,
        stop=_PROGRAM_ENDS,
    )


def _test_program(parts: Sequence[str]) -> str:
    return "\n".join(parts).replace("\r\n", "\n").strip() + "\n"


def _apps(row: Row, where: str) -> Problem:
    question, starter = text(row, "question", where), optional_text(row, "starter_code", where) or ""
    hidden = cases(row, "input_output", where)
    function = hidden.get("fn_name")
    convention = "Use Call-Based format" if function else "Use Standard Input format"
    task = f"{question.strip()}\n{starter}"
    asked = f"Define `{function}`." if function else "Read standard input and write standard output."
    return Problem(
        task_id=task_id(row, where, "task_id", "problem_id", "id"),
        prompt=f"\nQUESTION:\n{task}\n{convention}\n\nANSWER:\n",
        tests=hidden,
        instruction=f"Solve this problem in Python. {asked}\n\n{task.strip()}",
        entry_point=function,
        public_tests=cases(row, "example_input_output", where) if row.get("example_input_output") else None,
        stop=_ANSWER_ENDS,
        difficulty=optional_text(row, "difficulty", where),
    )


def _plain(row: Row, where: str) -> Problem:
    prompt = text(row, "prompt", where)
    return Problem(
        task_id=task_id(row, where, "task_id"),
        prompt=prompt,
        tests=tests(row, "test", where),
        instruction=optional_text(row, "instruction", where) or prompt.strip(),
        code_prompt=prompt if _is_code(prompt) else "",
        entry_point=optional_text(row, "entry_point", where),
        public_tests=tests(row, "public_test", where) if row.get("public_test") else None,
        stop=texts(row, "stop", where),
        difficulty=optional_text(row, "difficulty", where),
    )


_FORMATS: Mapping[tuple[str, ...], Callable[[Row, str], Problem]] = MappingProxyType(
    {
        ("task_id", "prompt", "entry_point", "test"): _humaneval,
        ("task_id", "text", "test_list"): _mbpp,
        ("task_id", "prompt", "test_list"): _mbpp,
        ("question", "input_output"): _apps,
        ("question_content", "public_test_cases", "private_test_cases"): read_livecodebench,
        ("task_id", "prompt", "test"): _plain,
    }
)


def _called(asserts: Sequence[str], solution: str | None) -> str | None:
    """Find the function that asserts call: the first one that the reference solution defines, else no builtin."""
    called = [
        node.func.id
        for node in ast.walk(parse("\n".join(asserts)) or ast.parse(""))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    reference = (solution or "").replace("\r", "")
    known = [name for name in called if defines(reference, name)]
    return next(iter(known or (name for name in called if not hasattr(builtins, name))), None)


def _is_code(prompt: str) -> bool:
    """Tell whether a prompt can open a program: it parses, alone or with a body that is still to come."""
    return any(parse(f"{prompt}{body}") is not None for body in ("", "\n    pass\n"))
