"""A problem of a benchmark, independent of its file format."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..execution import Tests

__all__ = ["Problem", "fingerprint"]


@dataclass(frozen=True, slots=True)
class Problem:
    r"""A programming problem and its tests.

    Args:
        task_id (`str`):
            Identifier in the benchmark.
        prompt (`str`):
            Prompt that a base model continues.
        tests (`str` or `Mapping`):
            Program text to run after a solution, or `{"inputs": [...], "outputs": [...]}` for a script.
        instruction (`str`):
            Instruction for a tuned model, in prose; may contain code.
        code_prompt (`str`):
            Beginning of the program that a completion of `prompt` continues; empty if the prompt is prose.
        entry_point (`str`, *optional*):
            Name that the tests call.
        base_tests (`str` or `Mapping`, *optional*):
            Tests of the base benchmark, if `tests` extend them, as in HumanEval+ and MBPP+.
        public_tests (`str` or `Mapping`, *optional*):
            Tests that may be used to select a solution.
        stop (`tuple[str, ...]`):
            Stop strings of a completion.
        difficulty (`str`, *optional*):
            Label of the benchmark.

    Example:

    ```python
    >>> problem = Problem("0", "def one():\n", "assert one() == 1", code_prompt="def one():\n", entry_point="one")
    >>> problem.instruction
    ''

    ```
    """

    task_id: str
    prompt: str
    tests: Tests
    instruction: str = ""
    code_prompt: str = ""
    entry_point: str | None = None
    base_tests: Tests | None = None
    public_tests: Tests | None = None
    stop: tuple[str, ...] = ()
    difficulty: str | None = None


def fingerprint(problems: Sequence[Problem]) -> str:
    """Return a digest of problems and tests, which depends on their order."""
    kept = [{name: value for name, value in asdict(problem).items() if name != "base_tests"} for problem in problems]
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
