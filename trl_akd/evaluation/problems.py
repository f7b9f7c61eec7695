"""What a benchmark asks: one problem, whatever file it came from."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..execution import Tests

__all__ = ["Problem", "fingerprint"]


@dataclass(frozen=True, slots=True)
class Problem:
    r"""State one programming problem and the tests that judge a solution.

    Args:
        task_id (`str`):
            Identity inside the benchmark.
        prompt (`str`):
            What a base model continues.
        tests (`str` or `Mapping`):
            Program text to run after a solution, or `{"inputs": [...], "outputs": [...]}` for a script.
        instruction (`str`):
            What a tuned model is asked, in words; may hold code.
        code_prompt (`str`):
            The program's own beginning, which a continuation of `prompt` continues; empty where the prompt is prose.
        entry_point (`str`, *optional*):
            Name that the tests call.
        base_tests (`str` or `Mapping`, *optional*):
            The base benchmark's tests, where `tests` add to these, as in HumanEval+ and MBPP+.
        public_tests (`str` or `Mapping`, *optional*):
            Tests that a method may look at before it commits to a solution.
        stop (`tuple[str, ...]`):
            Texts at which a continuation has left the solution.
        difficulty (`str`, *optional*):
            The benchmark's own label.

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
    """Return a digest that two sets of problems share only if they ask and test the same, in the same order."""
    kept = [{name: value for name, value in asdict(problem).items() if name != "base_tests"} for problem in problems]
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
