"""How much a generator may still be asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from .protocol import Completion, TextGenerator

__all__ = ["Budget"]


@runtime_checkable
class _Metered(Protocol):
    """A generator that counts what it has sent and what the server has counted, as `OpenAIGenerator` does."""

    requests: int
    tokens: int


@dataclass
class Budget:
    """Count requests and tokens against their limits.

    A generator that counts for itself is believed: its requests include repetitions and its tokens the prompts'. Of
    others, a prompt is a request and its completions' tokens are the tokens; where their number is not told, the most
    there may be is taken.

    Args:
        generator (`TextGenerator`):
            Who is asked.
        max_requests (`int`, *optional*):
            Most requests; only repetitions after a fault, and of a server that gives fewer completions than asked
            for, can exceed it, by those of one batch.
        max_tokens (`int`, *optional*):
            Most tokens; the last batch can exceed it by its prompts and one prompt's completions.
    """

    generator: TextGenerator
    max_requests: int | None = None
    max_tokens: int | None = None
    requests: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name, value in (("max_requests", self.max_requests), ("max_tokens", self.max_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}; allow at least 1, or leave it out for no limit.")
        self._before = self._metered()

    @property
    def exhausted(self) -> str | None:
        """Name the limit that is reached, if one is."""
        if self.max_requests is not None and self.requests >= self.max_requests:
            return "max_requests"
        if self.max_tokens is not None and self.tokens >= self.max_tokens:
            return "max_tokens"
        return None

    def prompts(self, wanted: int, tokens_each: int) -> int:
        """Return how many of the wanted prompts may go out, if each may cost so many tokens; 0 if exhausted."""
        if self.exhausted:
            return 0
        if self.max_requests is not None:
            wanted = min(wanted, self.max_requests - self.requests)
        if self.max_tokens is not None:
            wanted = min(wanted, max(1, (self.max_tokens - self.tokens) // tokens_each))
        return wanted

    def spend(self, prompts: int, completions: Sequence[Sequence[Completion]], max_new_tokens: int) -> None:
        """Count a batch of prompts and what came of it."""
        if isinstance(self.generator, _Metered):
            requests, tokens = self._metered()
            self.requests, self.tokens = requests - self._before[0], tokens - self._before[1]
            return
        self.requests += prompts
        self.tokens += sum(
            max_new_tokens if completion.num_tokens is None else completion.num_tokens
            for several in completions
            for completion in several
        )

    def _metered(self) -> tuple[int, int]:
        return (self.generator.requests, self.generator.tokens) if isinstance(self.generator, _Metered) else (0, 0)
