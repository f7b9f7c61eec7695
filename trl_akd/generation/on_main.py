"""Generators that know nothing of the other processes, asked by one process for all."""

from collections.abc import Iterator
from typing import Any

from .protocol import TextGenerator
from .sharing import from_main, is_main
from .streaming import Arrival, StreamingGenerator, stream

__all__ = ["OnMainProcess", "for_all_processes", "is_shared", "model_name"]


class OnMainProcess(StreamingGenerator):
    """Ask a generator on the main process alone, and hand its completions, or its error, to every process.

    All processes make the same calls. A server is thus asked once, however many processes train.

    Args:
        generator (`TextGenerator`):
            Who is asked.
        accelerator (`Accelerator`):
            That of the processes.

    Example:

    ```python
    >>> from accelerate import Accelerator
    >>> from trl_akd.generation import Completion
    >>> class Parrot:
    ...     def generate(self, prompts, **sampling):
    ...         return [[Completion(prompt, None, "stop", 1)] for prompt in prompts]
    >>> OnMainProcess(Parrot(), Accelerator()).generate(["hello"])[0][0].text
    'hello'

    ```
    """

    def __init__(self, generator: TextGenerator, accelerator: Any) -> None:
        self._generator = generator
        self._accelerator = accelerator

    def stream(self, prompts: list[str], **sampling: Any) -> Iterator[Arrival]:
        """Yield completions as they come."""
        nothing: Iterator[Arrival] = iter(())
        arrivals = stream(self._generator, prompts, **sampling) if is_main(self._accelerator) else nothing
        while (arrival := from_main(self._accelerator, lambda: next(arrivals, None))) is not None:
            yield arrival


def for_all_processes(generator: TextGenerator, accelerator: Any) -> TextGenerator:
    """Return the generator if its processes share the work, and otherwise one that asks it on the main process."""
    return generator if is_shared(generator) else OnMainProcess(generator, accelerator)


def is_shared(generator: TextGenerator) -> bool:
    """Tell whether all processes must ask a generator together, as a `TransformersGenerator` with an accelerator."""
    return bool(getattr(generator, "is_shared", False))


def model_name(generator: object) -> str:
    """Return the name of the model that writes, or that of the class where it tells none."""
    return str(getattr(generator, "model_name", "") or type(generator).__name__)
