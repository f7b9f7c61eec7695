"""A generator that stops when enough is spent."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from .on_main import is_shared
from .protocol import GenerationError, TextGenerator
from .sharing import from_main
from .streaming import Arrival, StreamingGenerator, stream

__all__ = ["BudgetSpent", "BudgetedGenerator", "Limit"]

Limit: TypeAlias = Literal["max_requests", "max_tokens", "max_seconds"]


class BudgetSpent(GenerationError):
    """There is more to ask for than may be spent; all that came before is handed over."""


@runtime_checkable
class _Metered(Protocol):
    """A generator that counts what it has sent and what the server has counted, as `OpenAIGenerator` does."""

    requests: int
    tokens: int


class BudgetedGenerator(StreamingGenerator):
    """Ask a generator, batch by batch, for as long as requests, tokens and time last.

    A generator that counts for itself is believed: its requests include repetitions and its tokens the prompts'. Of
    others, a prompt is a request and its completions' tokens are the tokens; where their number is not told, the most
    there may be is taken. Limits are looked at between two batches, and what is under way is finished.

    Inside of a [`RecordedGenerator`], replays cost nothing. A batch is a call of its own to the generator, so prompts
    that are equal go out in one, or their samples would be equal too.

    Args:
        generator (`TextGenerator`):
            Who is asked.
        batch_size (`int`, *optional*):
            Most prompts to ask for between two looks at the limits, unless more are equal; by default all of a call.
        max_requests (`int`, *optional*):
            Most requests; only repetitions after a fault, and of a server that gives fewer completions than asked
            for, can exceed it, by those of one batch.
        max_tokens (`int`, *optional*):
            Most tokens; the last batch can exceed it by its prompts and one prompt's completions.
        max_seconds (`float`, *optional*):
            Most seconds since this object was made; the last batch can exceed it.
        accelerator (`Accelerator`, *optional*):
            That of a generator that shares its work over several processes, for all of which the main one's clock
            counts.

    Raises:
        ValueError: If a limit leaves room for nothing.

    Example:

    ```python
    >>> from trl_akd.generation import Completion
    >>> class Parrot:
    ...     def generate(self, prompts, **sampling):
    ...         return [[Completion(prompt, None, "stop", 5)] for prompt in prompts]
    >>> parrot = BudgetedGenerator(Parrot(), max_requests=2)
    >>> [[[one]], [[two]]] = parrot.generate(["a"]), parrot.generate(["b"])
    >>> parrot.tokens, parrot.exhausted
    (10, 'max_requests')

    ```
    """

    def __init__(
        self,
        generator: TextGenerator,
        *,
        batch_size: int | None = None,
        max_requests: int | None = None,
        max_tokens: int | None = None,
        max_seconds: float | None = None,
        accelerator: Any = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_requests", max_requests), ("max_tokens", max_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}; allow at least 1, or leave it out for no limit.")
        if max_seconds is not None and not max_seconds > 0:
            raise ValueError(f"`max_seconds` is {max_seconds}; allow more than 0, or leave it out for no limit.")
        self._generator = generator
        self._batch_size = batch_size
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._max_seconds = max_seconds
        self._accelerator = accelerator
        self._began = time.monotonic()
        self._counted = [0, 0]
        self._before = (generator.requests, generator.tokens) if isinstance(generator, _Metered) else (0, 0)

    @property
    def is_shared(self) -> bool:
        """Whether several processes must ask together."""
        return is_shared(self._generator)

    @property
    def requests(self) -> int:
        """Requests so far."""
        metered = self._generator
        return metered.requests - self._before[0] if isinstance(metered, _Metered) else self._counted[0]

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        metered = self._generator
        return metered.tokens - self._before[1] if isinstance(metered, _Metered) else self._counted[1]

    @property
    def seconds(self) -> float:
        """Seconds since this object was made, by the main process's clock; all processes ask together."""
        return from_main(self._accelerator, lambda: time.monotonic() - self._began)

    @property
    def exhausted(self) -> Limit | None:
        """Name the limit that is reached, if one is; all processes ask together."""
        if self._max_requests is not None and self.requests >= self._max_requests:
            return "max_requests"
        if self._max_tokens is not None and self.tokens >= self._max_tokens:
            return "max_tokens"
        if self._max_seconds is not None and self.seconds >= self._max_seconds:
            return "max_seconds"
        return None

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
        """Yield completions as they come, until a limit is reached.

        Raises:
            BudgetSpent: If a limit is reached before all prompts are asked.
        """
        groups = _equal_ones(prompts)
        while groups:
            if (limit := self.exhausted) is not None:
                raise BudgetSpent(f"`{limit}` is reached; raise it, or run again to go on.")
            batch = self._next_batch(groups, n * max_new_tokens)
            self._counted[0] += len(batch)
            for index, completions in stream(
                self._generator,
                [prompts[place] for place in batch],
                n=n,
                temperature=temperature,
                top_p=top_p,
                max_new_tokens=max_new_tokens,
                stop=stop,
                seed=seed,
            ):
                self._counted[1] += sum(
                    max_new_tokens if completion.num_tokens is None else completion.num_tokens
                    for completion in completions
                )
                yield batch[index], completions

    def _next_batch(self, groups: list[list[int]], tokens_each: int) -> list[int]:
        """Take off the places of the prompts that go out together, if each may cost so many tokens."""
        most = self._affordable(tokens_each)
        batch = groups.pop(0)
        while groups and len(batch) + len(groups[0]) <= min(most, self._batch_size or most):
            batch += groups.pop(0)
        if len(batch) > most:
            groups.insert(0, batch[most:])
        return batch[:most]

    def _affordable(self, tokens_each: int) -> int:
        """Return how many prompts there is enough for, if each may cost so many tokens."""
        most = [sys.maxsize]
        if self._max_requests is not None:
            most.append(self._max_requests - self.requests)
        if self._max_tokens is not None:
            most.append(max(1, (self._max_tokens - self.tokens) // tokens_each))
        return min(most)


def _equal_ones(prompts: Sequence[str]) -> list[list[int]]:
    """Return the places of each prompt, in the order in which it first came."""
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(place)
    return list(places.values())
