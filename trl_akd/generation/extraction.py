"""Extraction of the program from a model's answer."""

from .answers import parse_answer

__all__ = ["extract_program"]


def extract_program(text: str, entry_point: str | None = None) -> str:
    r"""Return the Python program in a model's answer.

    Where there is none, the answer without its thoughts is returned: running it shows what is wrong with it. Thoughts
    that never end are no answer, and the result is empty.

    Args:
        text (`str`):
            Text that a model generated.
        entry_point (`str`, *optional*):
            Name that the program should define. See [`parse_answer`] for the choice between several definitions.

    Example:

    ```python
    >>> extract_program("The answer is below.\ndef one():\n    return 1\nI hope this helps!", "one")
    'def one():\n    return 1'

    ```
    """
    answer = parse_answer(text, entry_point)
    return answer.text if answer.program is None else answer.program
