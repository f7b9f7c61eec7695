"""What the main process knows, on every process."""

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["from_main", "is_main", "portable"]

Result = TypeVar("Result")


def is_main(accelerator: Any) -> bool:
    """Tell whether this is the process that writes files; the only one is."""
    return accelerator is None or bool(accelerator.is_main_process)


def from_main(accelerator: Any, make: Callable[[], Result]) -> Result:
    """Call a function on the main process, and return its result, or raise its error, on every one.

    All processes call this, none waits for another in vain.

    Args:
        accelerator (`Accelerator`, *optional*):
            That of the processes; without one, or with one process, the function is called here.
        make (`Callable`):
            Takes nothing and returns what pickle knows.

    Example:

    ```python
    >>> from_main(None, lambda: "known")
    'known'

    ```
    """
    if accelerator is None or accelerator.num_processes == 1:
        return make()
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [(make(), None)]
        except Exception as error:
            outcome = [(None, portable(error))]
    [(result, failure)] = broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    return result  # type: ignore[no-any-return]


def portable(error: Exception) -> Exception:
    """Return an error that other processes can be told of: itself, or its name and text where pickle fails.

    Example:

    ```python
    >>> class Odd(Exception):
    ...     def __init__(self, one, two):
    ...         super().__init__(f"{one} and {two}")
    >>> portable(KeyError("x")), portable(Odd(1, 2))
    (KeyError('x'), RuntimeError('Odd: 1 and 2'))

    ```
    """
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
