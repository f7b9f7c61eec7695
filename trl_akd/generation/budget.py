"""Budgets of requests, tokens and time for text generators."""

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
    """A limit was reached before all prompts were answered; completions that had arrived were yielded."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(f"`{limit}` is reached; raise it, or leave it out, and run again to continue.")
        self.limit = limit

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.limit,)


class Budget:
    """Thread-safe budget of requests, tokens and seconds.

    A request is reserved at its maximum cost before it is sent, and settled at its actual cost afterwards. If the rest
    does not cover a whole request, requests are sent one at a time, so the token limit can be exceeded by the cost of
    a single request; the request limit is never exceeded.

    Args:
        max_requests (`int`, *optional*):
            Maximum number of requests, including retries.
        max_tokens (`int`, *optional*):
            Maximum number of tokens of prompts and completions.
        max_seconds (`float`, *optional*):
            Maximum number of seconds until the last request is sent.
        spent ([`Usage`], *optional*):
            Usage before this run.
        seconds (`float`, *optional*, defaults to `0.0`):
            Seconds elapsed before this run.

    Raises:
        ValueError: If a limit is not positive.

    Example:

    ```python
    >>> budget = Budget(max_tokens=100)
    >>> first = budget.reserve(80)
    >>> budget.reserve(80) is None  # until the cost of the first one is known
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
                raise ValueError(f"`{name}` is {value}; give at least 1, or leave it out for no limit.")
        if max_seconds is not None and not max_seconds > 0:
            raise ValueError(f"`max_seconds` is {max_seconds}; give a positive number, or leave it out for no limit.")
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._max_seconds = max_seconds
        self._began = time.monotonic() - seconds
        self._changed = threading.Condition()
        self._reservations: set[Reservation] = set()
        self.spent = spent or Usage()

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return any(limit is not None for limit in (self._max_requests, self._max_tokens, self._max_seconds))

    @property
    def seconds(self) -> float:
        """Seconds elapsed."""
        return time.monotonic() - self._began

    @property
    def reached(self) -> Limit | None:
        """Name of the limit that is reached, or `None`."""
        if self._max_requests is not None and self.spent.requests >= self._max_requests:
            return "max_requests"
        if self._max_tokens is not None and self.spent.tokens >= self._max_tokens:
            return "max_tokens"
        if self._max_seconds is not None and self.seconds >= self._max_seconds:
            return "max_seconds"
        return None

    def reserve(self, tokens: int, call: object = None) -> "Reservation | None":
        """Reserve a request of a call and its maximum number of tokens; return `None` if that is not possible now."""
        with self._changed:
            return self._reserve(tokens, call) if self._covers(tokens) else None

    def reserve_or_wait(self, tokens: int, call: object = None) -> "Reservation":
        """Reserve a request of a call, if necessary after other requests have been settled; see [`~Budget.reserve`].

        Raises:
            BudgetSpent: If a limit is reached.
        """
        with self._changed:
            while not self._covers(tokens):
                if (limit := self.reached) is not None:
                    raise BudgetSpent(limit)
                self._changed.wait(None if self._max_seconds is None else max(0.0, self._max_seconds - self.seconds))
            return self._reserve(tokens, call)

    def release(self, call: object) -> None:
        """Release the reservations of a call that has ended, whose threads may not have started to settle them."""
        with self._changed:
            self._reservations = {found for found in self._reservations if found.call is not call}
            self._changed.notify_all()

    def affordable(self, tokens_each: int) -> int:
        """Return the number of requests that the budget covers at `tokens_each` tokens per request."""
        most = [sys.maxsize]
        if self._max_requests is not None:
            most.append(self._max_requests - self.spent.requests)
        if self._max_tokens is not None:
            most.append(max(1, (self._max_tokens - self.spent.tokens) // tokens_each))
        return min(most)

    def spend(self, usage: Usage) -> None:
        """Count usage without a reservation."""
        with self._changed:
            self.spent += usage
            self._changed.notify_all()

    def send(self, reservation: "Reservation") -> None:
        """Count a request that is about to be sent.

        A retry, for which no request is reserved, may take one that is reserved for another prompt, so that no request
        is left when `max_requests` ends a call.

        Raises:
            BudgetSpent: If `max_requests` requests have been sent, or `max_seconds` is over.
        """
        with self._changed:
            if self._max_requests is not None and self.spent.requests >= self._max_requests:
                raise BudgetSpent("max_requests")
            if self._max_seconds is not None and self.seconds >= self._max_seconds:
                raise BudgetSpent("max_seconds")
            reservation.requests = 0
            reservation.sent += 1
            self.spent += Usage(requests=1)
            self._changed.notify_all()

    def settle(self, reservation: "Reservation", usage: Usage) -> None:
        """Release a reservation and count its tokens; its requests are already counted."""
        with self._changed:
            self._reservations.discard(reservation)
            self.spent += Usage(0, usage.prompt_tokens, usage.completion_tokens, usage.estimated)
            self._changed.notify_all()

    def _covers(self, tokens: int) -> bool:
        """Whether a request with this maximum number of tokens can be sent beside those that are reserved."""
        requests = self.spent.requests + sum(found.requests for found in self._reservations)
        if self.reached is not None or (self._max_requests is not None and requests >= self._max_requests):
            return False
        promised = self.spent.tokens + sum(found.tokens for found in self._reservations) + tokens
        return self._max_tokens is None or promised <= self._max_tokens or not self._reservations

    def _reserve(self, tokens: int, call: object) -> "Reservation":
        reservation = Reservation(tokens, call)
        self._reservations.add(reservation)
        return reservation


@dataclass(slots=True, eq=False)
class Reservation:
    """Reservation of a [`Budget`] for a prompt in progress of a call: tokens, unsent requests and sent requests."""

    tokens: int
    call: object = None
    requests: int = 1
    sent: int = 0


class BudgetedGenerator(StreamingGenerator):
    """Limit the requests, tokens and time of a generator.

    An [`OpenAIGenerator`] checks the limits before each request, at the same concurrency as without a budget. For
    other generators each prompt counts as a request, and the limits are checked between batches. If a generator does
    not report the cost of a completion, its tokens count, or else the maximum.

    Inside of a [`RecordedGenerator`], replayed completions cost nothing. Each batch is a separate call, so equal
    prompts share a batch; their samples would be equal otherwise.

    Args:
        generator (`TextGenerator`):
            Generator.
        budget ([`Budget`], *optional*):
            Shared with other generators; by default one of the limits given here.
        batch_size (`int`, *optional*):
            Maximum number of prompts per batch, unless more are equal. Defaults to all prompts of a call. No effect on
            an `OpenAIGenerator`.
        max_requests (`int`, *optional*):
            Maximum number of requests, including retries.
        max_tokens (`int`, *optional*):
            Maximum number of tokens of prompts and completions; the last request, or batch, can exceed it.
        max_seconds (`float`, *optional*):
            Maximum number of seconds since this object was created; batches in progress are finished.
        accelerator (`Accelerator`, *optional*):
            Accelerator of a generator that is shared among processes; the main process's clock counts for all.

    Raises:
        ValueError: If a limit is not positive.

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
            raise ValueError(f"`batch_size` is {batch_size}; give at least 1, or leave it out for no limit.")
        self._budget = budget or Budget(max_requests=max_requests, max_tokens=max_tokens, max_seconds=max_seconds)
        self._generator = generator.within(self._budget) if isinstance(generator, _SupportsBudget) else generator
        self._batch_size = batch_size
        self._accelerator = accelerator

    @property
    def is_shared(self) -> bool:
        """Whether all processes must call the generator together."""
        return is_shared(self._generator)

    @property
    def requests(self) -> int:
        """Number of requests so far."""
        return self._budget.spent.requests

    @property
    def tokens(self) -> int:
        """Number of tokens of prompts and completions so far."""
        return self._budget.spent.tokens

    @property
    def exhausted(self) -> Limit | None:
        """Name of the limit that is reached, or `None`; must be called on all processes."""
        return run_on_main_and_broadcast(self._accelerator, lambda: self._budget.reached)

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY) -> Iterator[Arrival]:
        """Yield completions as they arrive, until a limit is reached.

        Raises:
            BudgetSpent: If a limit is reached before all prompts are answered.
        """
        if isinstance(self._generator, _SupportsBudget):
            yield from self._generator.stream(prompts, sampling)
            return
        groups = _group_equal(prompts)
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
        """Remove and return the indices of the next batch, at `tokens_each` tokens per prompt."""
        most = self._budget.affordable(tokens_each)
        batch = groups.pop(0)
        while groups and len(batch) + len(groups[0]) <= min(most, self._batch_size or most):
            batch += groups.pop(0)
        if len(batch) > most:
            groups.insert(0, batch[most:])
        return batch[:most]


@runtime_checkable
class _SupportsBudget(Protocol):
    """Generator that checks a budget before each request, such as `OpenAIGenerator`."""

    def within(self, budget: Budget) -> StreamingGenerator:
        """Return a copy of this generator with a budget."""

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY) -> Iterator[Arrival]:
        """Yield completions as they arrive."""


def _cost(completion: Completion, max_new_tokens: int) -> Usage:
    """Return the usage of a completion of a generator that counts no requests."""
    if completion.usage is not None:
        return Usage(0, completion.usage.prompt_tokens, completion.usage.completion_tokens)
    return Usage(0, 0, max_new_tokens if completion.num_tokens is None else completion.num_tokens)


def _group_equal(prompts: Sequence[str]) -> list[list[int]]:
    """Return the indices of each distinct prompt, in the order of their first occurrence."""
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(place)
    return list(places.values())
