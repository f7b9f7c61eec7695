"""A generator that stops when enough is spent."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from ..distributed import run_on_main_and_broadcast
from .protocol import (
    GREEDY,
    Arrival,
    Completion,
    GenerationError,
    SamplingParams,
    StreamingGenerator,
    TextGenerator,
    Usage,
    stream,
)
from .wrappers import is_shared

__all__ = ["Budget", "BudgetSpent", "BudgetedGenerator", "Limit", "Reservation"]

Limit: TypeAlias = Literal["max_requests", "max_tokens", "max_seconds"]


class BudgetSpent(GenerationError):
    """There is more to ask for than may be spent; all that came before is handed over."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(f"`{limit}` is reached; raise it, or leave it out, and run again to go on.")
        self.limit = limit

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.limit,)


class Budget:
    """Count what is spent, by any number of threads, and say what may still be.

    A request is reserved at the most that it can cost before it is sent, and settled at what it has cost afterwards.
    Where the rest does not cover another whole request, one at a time may go out, so the limit of tokens can be
    exceeded by what a single one costs; that of requests is never exceeded.

    Args:
        max_requests (`int`, *optional*):
            Maximum number of requests, repetitions included.
        max_tokens (`int`, *optional*):
            Maximum number of tokens of prompts and completions.
        max_seconds (`float`, *optional*):
            Maximum number of seconds until the last request is sent.
        spent ([`Usage`], *optional*):
            What was spent before.
        seconds (`float`, *optional*, defaults to `0.0`):
            Seconds that went by before.

    Raises:
        ValueError: If a limit leaves room for nothing.

    Example:

    ```python
    >>> budget = Budget(max_tokens=100)
    >>> first = budget.reserve(80)
    >>> budget.reserve(80) is None  # until it is known what the first one costs
    True
    >>> budget.settle(first, Usage(0, 10, 20))
    >>> budget.spent.tokens, budget.reserve(70) is None
    (30, False)

    ```
    """

    def __init__(
        self,
        *,
        max_requests: int | None = None,
        max_tokens: int | None = None,
        max_seconds: float | None = None,
        spent: Usage | None = None,
        seconds: float = 0.0,
    ) -> None:
        for name, value in (("max_requests", max_requests), ("max_tokens", max_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}; allow at least 1, or leave it out for no limit.")
        if max_seconds is not None and not max_seconds > 0:
            raise ValueError(f"`max_seconds` is {max_seconds}; allow more than 0, or leave it out for no limit.")
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._max_seconds = max_seconds
        self._began = time.monotonic() - seconds
        self._lock = threading.Lock()
        self._reservations = self._reserved_requests = self._reserved_tokens = 0
        self.spent = spent or Usage()

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return any(limit is not None for limit in (self._max_requests, self._max_tokens, self._max_seconds))

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._began

    @property
    def reached(self) -> Limit | None:
        """Name of the limit that is reached, if one is."""
        if self._max_requests is not None and self.spent.requests >= self._max_requests:
            return "max_requests"
        if self._max_tokens is not None and self.spent.tokens >= self._max_tokens:
            return "max_tokens"
        if self._max_seconds is not None and self.seconds >= self._max_seconds:
            return "max_seconds"
        return None

    def reserve(self, tokens: int) -> "Reservation | None":
        """Reserve a request and the most tokens that it can cost; `None` if that is not possible, or not yet."""
        with self._lock:
            if self.reached is not None or not self._has_request():
                return None
            promised = self.spent.tokens + self._reserved_tokens + tokens
            if self._max_tokens is not None and promised > self._max_tokens and self._reservations:
                return None
            self._reservations += 1
            self._reserved_requests += 1
            self._reserved_tokens += tokens
            return Reservation(tokens)

    def affordable(self, tokens_each: int) -> int:
        """Return how many requests there is enough for, if each may cost so many tokens."""
        most = [sys.maxsize]
        if self._max_requests is not None:
            most.append(self._max_requests - self.spent.requests)
        if self._max_tokens is not None:
            most.append(max(1, (self._max_tokens - self.spent.tokens) // tokens_each))
        return min(most)

    def spend(self, usage: Usage) -> None:
        """Count what was spent without a reservation."""
        with self._lock:
            self.spent += usage

    def send(self, reservation: "Reservation") -> None:
        """Count a request that is about to be sent.

        Raises:
            BudgetSpent: If it is one more than was reserved, as a repetition is, and there is no other, or if it
                comes after the last second.
        """
        with self._lock:
            if not reservation.requests and not self._has_request():
                raise BudgetSpent("max_requests")
            if self._max_seconds is not None and self.seconds >= self._max_seconds:
                raise BudgetSpent("max_seconds")
            self._reserved_requests -= reservation.requests
            reservation.requests = 0
            reservation.sent += 1
            self.spent += Usage(requests=1)

    def settle(self, reservation: "Reservation", usage: Usage) -> None:
        """Give a reservation back, and count the tokens that were spent; its requests are counted already."""
        with self._lock:
            self._reservations -= 1
            self._reserved_requests -= reservation.requests
            self._reserved_tokens -= reservation.tokens
            self.spent += Usage(0, usage.prompt_tokens, usage.completion_tokens, usage.estimated)

    def _has_request(self) -> bool:
        return self._max_requests is None or self.spent.requests + self._reserved_requests < self._max_requests


@dataclass(slots=True)
class Reservation:
    """Hold what a [`Budget`] keeps for a prompt that is under way: tokens, a request not sent yet, and those sent."""

    tokens: int
    requests: int = 1
    sent: int = 0


class BudgetedGenerator(StreamingGenerator):
    """Ask a generator for as long as requests, tokens and time last.

    An [`OpenAIGenerator`] takes the budget into its own loop: its limits are looked at before each request, and as
    many requests are under way together as without a budget. Of other generators a prompt is a request, and they are
    asked batch by batch: limits are looked at between two batches, and what is under way is finished. Where they do
    not tell what a completion has cost, its tokens count, or else the most there may be.

    Inside of a [`RecordedGenerator`], replays cost nothing. A batch is a call of its own to the generator, so prompts
    that are equal go out in one, or their samples would be equal too.

    Args:
        generator (`TextGenerator`):
            Who is asked.
        budget ([`Budget`], *optional*):
            Shared with other generators; by default one of the limits given here.
        batch_size (`int`, *optional*):
            Maximum number of prompts to ask for between two looks at the limits, unless more are equal; by default all
            of a call. Without effect on an `OpenAIGenerator`.
        max_requests (`int`, *optional*):
            Maximum number of requests, repetitions included.
        max_tokens (`int`, *optional*):
            Maximum number of tokens of prompts and completions; the last request, or batch, can exceed it.
        max_seconds (`float`, *optional*):
            Maximum number of seconds since this object was made; what is under way then is finished.
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
        budget: Budget | None = None,
        batch_size: int | None = None,
        max_requests: int | None = None,
        max_tokens: int | None = None,
        max_seconds: float | None = None,
        accelerator: Any = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}; allow at least 1, or leave it out for no limit.")
        self._budget = budget or Budget(max_requests=max_requests, max_tokens=max_tokens, max_seconds=max_seconds)
        self._generator = generator.within(self._budget) if isinstance(generator, _Thrifty) else generator
        self._batch_size = batch_size
        self._accelerator = accelerator

    @property
    def is_shared(self) -> bool:
        """Whether several processes must ask together."""
        return is_shared(self._generator)

    @property
    def requests(self) -> int:
        """Requests so far."""
        return self._budget.spent.requests

    @property
    def tokens(self) -> int:
        """Tokens of prompts and completions so far."""
        return self._budget.spent.tokens

    @property
    def exhausted(self) -> Limit | None:
        """Name of the limit that is reached, if one is; all processes ask together."""
        return run_on_main_and_broadcast(self._accelerator, lambda: self._budget.reached)

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY) -> Iterator[Arrival]:
        """Yield completions as they come, until a limit is reached.

        Raises:
            BudgetSpent: If a limit is reached before all prompts are asked.
        """
        if isinstance(self._generator, _Thrifty):
            yield from self._generator.stream(prompts, sampling)
            return
        groups = _equal_ones(prompts)
        while groups:
            if (limit := self.exhausted) is not None:
                raise BudgetSpent(limit)
            batch = self._next_batch(groups, sampling.n * sampling.max_new_tokens)
            self._budget.spend(Usage(requests=len(batch)))
            for index, completions in stream(self._generator, [prompts[place] for place in batch], sampling):
                for completion in completions:
                    self._budget.spend(_cost(completion, sampling.max_new_tokens))
                yield batch[index], completions

    def _next_batch(self, groups: list[list[int]], tokens_each: int) -> list[int]:
        """Take off the places of the prompts that go out together, if each may cost so many tokens."""
        most = self._budget.affordable(tokens_each)
        batch = groups.pop(0)
        while groups and len(batch) + len(groups[0]) <= min(most, self._batch_size or most):
            batch += groups.pop(0)
        if len(batch) > most:
            groups.insert(0, batch[most:])
        return batch[:most]


@runtime_checkable
class _Thrifty(Protocol):
    """A generator that looks at a budget before each request, as `OpenAIGenerator` does."""

    def within(self, budget: Budget) -> StreamingGenerator:
        """Return this generator, but within a budget."""

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY) -> Iterator[Arrival]:
        """Yield completions as they come."""


def _cost(completion: Completion, max_new_tokens: int) -> Usage:
    """Return the tokens that a completion of a generator without requests has cost."""
    if completion.usage is not None:
        return Usage(0, completion.usage.prompt_tokens, completion.usage.completion_tokens)
    return Usage(0, 0, max_new_tokens if completion.num_tokens is None else completion.num_tokens)


def _equal_ones(prompts: Sequence[str]) -> list[list[int]]:
    """Return the places of each prompt, in the order in which it first came."""
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(place)
    return list(places.values())
