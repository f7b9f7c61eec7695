"""How the teacher's text is sampled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ..generation import Completion, TextGenerator
from ..generation.protocol import FinishReason

__all__ = ["INCOMPLETE", "Sampling"]

INCOMPLETE: Mapping[FinishReason, Literal["truncated", "refused"]] = MappingProxyType(
    {"length": "truncated", "refused": "refused"}
)
"""Why a completion is dropped whatever it says."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Hold how a teacher is sampled; a seed is a must, as a generator that records recognises calls by it.

    None of the values is on record.

    Args:
        temperature (`float`, *optional*, defaults to `0.7`), top_p (`float`, *optional*, defaults to `0.95`):
            As in `TextGenerator.generate`.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Most tokens of an answer.
        stop (`tuple[str, ...]`, *optional*):
            Texts that end an answer.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples.

    Example:

    ```python
    >>> class Echo:
    ...     def generate(self, prompts, **settings):
    ...         return [[Completion(prompt, -0.1, "stop", 1)] for prompt in prompts]
    >>> [completion.text for completion in Sampling(temperature=0.0).ask(Echo(), ["one", "two"])]
    ['one', 'two']

    ```
    """

    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = 1024
    stop: tuple[str, ...] = ()
    seed: int = 0

    def ask(self, teacher: TextGenerator, prompts: Sequence[str]) -> list[Completion]:
        """Return one completion a prompt."""
        if not prompts:
            return []
        answers = teacher.generate(
            list(prompts),
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            seed=self.seed,
        )
        return [completion for (completion,) in answers]
