"""Completions as they come, so that whoever pays for them can keep each before the next."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from .protocol import Completion, TextGenerator

__all__ = ["Arrival", "StreamingGenerator", "collect", "stream"]

Arrival: TypeAlias = tuple[int, list[Completion]]
"""Index of a prompt, and the next of its completions."""


@runtime_checkable
class StreamingGenerator(TextGenerator, Protocol):
    """A text generator that hands over completions before it has all; a subclass has `generate` of its `stream`."""

    def stream(
        self,
        prompts: list[str],
        *,
        n: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> Iterator[Arrival]:
        """Yield the completions that `generate` would return, each prompt's in their order but perhaps in parts.

        Use up the iterator, or close it, before the generator is asked again.

        Raises:
            ValueError: If an argument is outside its range; the message names it.
            GenerationError: If the backend fails, once all that had come is handed over.
        """
        raise NotImplementedError

    def generate(
        self,
        prompts: list[str],
        *,
        n: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> list[list[Completion]]:
        """Continue each prompt `n` times, as `TextGenerator.generate` says, and raise what `stream` raises."""
        arrivals = self.stream(
            prompts,
            n=n,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            stop=stop,
            seed=seed,
        )
        return collect(arrivals, len(prompts))


def stream(
    generator: TextGenerator, prompts: Sequence[str], *, problems: Sequence[str] | None = None, **sampling: Any
) -> Iterator[Arrival]:
    """Continue prompts, and yield completions as they come, or all at the end where the generator cannot stream.

    Args:
        generator (`TextGenerator`):
            Who is asked.
        prompts (`Sequence[str]`):
            Texts to continue.
        problems (`Sequence[str]`, *optional*):
            What the prompts are for, to be named where the generator refuses one.
        **sampling:
            As in `TextGenerator.generate`.

    Raises:
        ValueError: If the generator refuses an argument or a prompt.
        GenerationError: If its backend fails, once all that had come is handed over.

    Example:

    ```python
    >>> class Parrot:
    ...     def generate(self, prompts, **sampling):
    ...         return [[Completion(prompt, None, "stop", 1)] for prompt in prompts]
    >>> [(index, completion.text) for index, [completion] in stream(Parrot(), ["a", "b"])]
    [(0, 'a'), (1, 'b')]

    ```
    """
    try:
        if isinstance(generator, StreamingGenerator):
            yield from generator.stream(list(prompts), **sampling)
        else:
            yield from enumerate(generator.generate(list(prompts), **sampling))
    except ValueError as error:
        if problems is None:
            raise
        names = ", ".join(map(repr, problems))
        raise ValueError(f"{error} (The prompts are those of the problems {names}.)") from error


def collect(arrivals: Iterable[Arrival], prompts: int) -> list[list[Completion]]:
    """Return the completions of so many prompts, in their order."""
    found: list[list[Completion]] = [[] for _ in range(prompts)]
    for index, completions in arrivals:
        found[index] += completions
    return found
