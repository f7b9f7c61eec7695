"""How far a generator is, for whoever waits."""

from collections.abc import Iterator
from typing import Any

from tqdm.auto import tqdm

from .protocol import TextGenerator
from .streaming import Arrival, StreamingGenerator, stream

__all__ = ["ProgressBar"]


class ProgressBar(StreamingGenerator):
    """Show, call by call, how many of a generator's texts have come.

    Args:
        generator (`TextGenerator`):
            Who writes.
        description (`str`):
            What stands before the bar.
        shown (`bool`, *optional*, defaults to `True`):
            Whether there is a bar, as on the main process alone.

    Example:

    ```python
    >>> from trl_akd.generation import Completion
    >>> class Parrot:
    ...     def generate(self, prompts, **sampling):
    ...         return [[Completion(prompt, None, "stop", 1)] for prompt in prompts]
    >>> ProgressBar(Parrot(), "Parroting", shown=False).generate(["hello"])[0][0].text
    'hello'

    ```
    """

    def __init__(self, generator: TextGenerator, description: str, *, shown: bool = True) -> None:
        self._generator = generator
        self._description = description
        self._shown = shown

    def stream(self, prompts: list[str], **sampling: Any) -> Iterator[Arrival]:
        """Yield completions as they come."""
        total = len(prompts) * int(sampling.get("n", 1))
        with tqdm(total=total, desc=self._description, unit="text", disable=not self._shown) as bar:
            for index, completions in stream(self._generator, prompts, **sampling):
                bar.update(len(completions))
                yield index, completions
