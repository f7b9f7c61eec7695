"""Interface of text generators: sampling parameters, completions, usage, and streams of completions."""

import hashlib
import random
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, runtime_checkable

__all__ = [
    "GREEDY",
    "Arrival",
    "Completion",
    "FinishReason",
    "GenerationError",
    "SamplingParams",
    "StreamingGenerator",
    "TextGenerator",
    "Usage",
    "check_prompts",
    "collect",
    "derive_seed",
    "estimate_num_tokens",
    "sample_offsets",
    "stream",
    "too_long_prompts",
    "truncate_at_stop",
]

FinishReason = Literal["stop", "length", "refused"]

_BYTES_PER_TOKEN = 3  # a low estimate for programs and English text


@dataclass(frozen=True, slots=True)
class Usage:
    """Usage of completions.

    Args:
        requests (`int`):
            Number of requests sent, including retries.
        prompt_tokens (`int`):
            Number of prompt tokens.
        completion_tokens (`int`):
            Number of generated tokens, including hidden reasoning if the server counts it.
        estimated (`bool`, *optional*, defaults to `False`):
            Whether a count was estimated from the length of the text, because the server did not report it.

    Example:

    ```python
    >>> Usage(1, 100, 20) + Usage(2, 50, 30, estimated=True)
    Usage(requests=3, prompt_tokens=150, completion_tokens=50, estimated=True)

    ```
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False

    @property
    def tokens(self) -> int:
        """Number of tokens of prompts and completions."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.estimated or other.estimated,
        )


@dataclass(frozen=True, slots=True)
class Completion:
    r"""A continuation of a prompt.

    Args:
        text (`str`):
            Generated text up to the first stop string, without it and without the end-of-sequence token.
        mean_logprob (`float`, *optional*):
            Mean log-probability of the generated tokens in nats, including the token that ended the text. It is
            computed from the model's distribution at temperature 1 and before `top_p`, so that completions are
            comparable whatever their sampling parameters. `None` if the backend does not report it.
        finish_reason (`str`):
            `"stop"` after an end-of-sequence token or a stop string, `"length"` if `max_new_tokens` cut the text,
            `"refused"` if a server refused this prompt, for example for its content or length.
        num_tokens (`int`, *optional*):
            Number of generated tokens, including the one that ended the text. `None` if the backend does not report
            it.
        refusal (`str`, *optional*):
            Message of the server that refused.
        usage ([`Usage`], *optional*):
            Usage of the completion. The first of several completions of a request has the usage of all of them, so
            that sums are correct; the others have `None`, as do completions of backends that do not count. Ignored
            when completions are compared.

    Example:

    ```python
    >>> from trl_akd.generation import Completion
    >>> Completion("    return x\n", mean_logprob=-0.25, finish_reason="stop", num_tokens=5).finish_reason
    'stop'

    ```
    """

    text: str
    mean_logprob: float | None
    finish_reason: FinishReason
    num_tokens: int | None
    refusal: str | None = None
    usage: Usage | None = field(default=None, compare=False)


class GenerationError(RuntimeError):
    """A backend failed for a reason outside this process."""


class TextGenerator(Protocol):
    """Interface of a model that continues prompts."""

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
        """Continue each prompt `n` times.

        Args:
            prompts (`list[str]`):
                Texts to continue.
            n (`int`, *optional*, defaults to `1`):
                Number of completions per prompt.
            temperature (`float`, *optional*, defaults to `0.0`):
                Sampling temperature; 0 for greedy decoding.
            top_p (`float`, *optional*, defaults to `1.0`):
                Cumulative probability of the most likely tokens to sample from.
            max_new_tokens (`int`, *optional*, defaults to `512`):
                Maximum number of tokens per completion.
            stop (`Sequence[str]`, *optional*):
                Strings that end a completion, even across token boundaries.
            seed (`int`, *optional*):
                Seed of sampling; random by default.

        Returns:
            `list[list[Completion]]`: `n` completions per prompt, in the order of the prompts. A prompt that a server
            refuses has completions with `finish_reason="refused"`.

        Raises:
            ValueError: If an argument is outside its range; the message names it.
        """


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of a request; the fields are those of `TextGenerator.generate`.

    Raises:
        ValueError: If a value is outside its range; the message names it.
    """

    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    stop: Sequence[str] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"`n` is {self.n}; give at least 1.")
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"`temperature` is {self.temperature}; give a finite number of at least 0.")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"`top_p` is {self.top_p}; give a number above 0, up to 1.")
        if self.max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` is {self.max_new_tokens}; give at least 1.")
        if isinstance(self.stop, str):
            raise ValueError(f"`stop` is the string {self.stop!r}; give a list, such as [{self.stop!r}].")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"`stop` is {list(self.stop)!r}; give a list of non-empty strings.")
        if self.n > 1 and self.temperature == 0.0:
            raise ValueError(
                f"`n` is {self.n} and `temperature` 0, which would give the same completion {self.n} times; set "
                "`temperature` above 0 to sample, or n=1."
            )

    def sample_seed(self, prompt: str, number: int) -> int:
        """Return a 31-bit seed for a sample of a prompt, which depends only on `seed`, the prompt and the number."""
        if self.seed is None:
            return secrets.randbits(31)
        return random.Random(f"{self.seed}:{number}:{prompt}").getrandbits(31)


GREEDY = SamplingParams()
"""Greedy decoding of one completion per prompt."""


def estimate_num_tokens(text: str) -> int:
    """Estimate the number of tokens of a text from its length, at 3 bytes per token."""
    return -(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)


def derive_seed(seed: int, purpose: object) -> int:
    """Derive a 32-bit seed from another one, for a purpose whose samples must differ from others."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:4])


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise a ValueError unless `prompts` is a sequence of texts."""
    if isinstance(prompts, str):
        raise ValueError("`prompts` is a string; give a list.")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"`prompts[{index}]` is {prompt!r}; give a string.")


def sample_offsets(prompts: Sequence[str], n: int) -> list[int]:
    """Return the number of each prompt's first sample; samples of equal prompts are numbered consecutively.

    Samples thus depend only on their prompt, but a prompt that is given twice gets different samples.

    Example:

    ```python
    >>> sample_offsets(["a", "b", "a"], n=5)
    [0, 0, 5]

    ```
    """
    seen: Counter[str] = Counter()
    numbers = []
    for prompt in prompts:
        numbers.append(seen[prompt])
        seen[prompt] += n
    return numbers


def truncate_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Truncate a text at the first stop string, and return whether there was one.

    Example:

    ```python
    >>> truncate_at_stop("x = 1 # end", ["end", "#"])
    ('x = 1 ', True)

    ```
    """
    beginnings = [position for position in map(text.find, stop) if position >= 0]
    return (text[: min(beginnings)], True) if beginnings else (text, False)


Arrival: TypeAlias = tuple[int, list[Completion]]
"""Index of a prompt, and its next completions."""


@runtime_checkable
class StreamingGenerator(TextGenerator, Protocol):
    """Text generator that yields completions as they arrive; subclasses implement `stream`."""

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY) -> Iterator[Arrival]:
        """Yield the completions that `generate` returns, those of a prompt in order but possibly in parts.

        The iterator must be exhausted or closed before the generator is called again.

        Raises:
            ValueError: If an argument is outside its range; the message names it.
            GenerationError: If the backend fails, after all completions that had arrived were yielded.
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
        """Continue each prompt `n` times, as in `TextGenerator.generate`; raises the errors of `stream`."""
        sampling = SamplingParams(n, temperature, top_p, max_new_tokens, stop, seed)
        return collect(self.stream(prompts, sampling), len(prompts))


def stream(
    generator: TextGenerator,
    prompts: Sequence[str],
    sampling: SamplingParams = GREEDY,
    *,
    problems: Sequence[str] | None = None,
) -> Iterator[Arrival]:
    """Continue prompts and yield completions as they arrive, or all at the end if the generator cannot stream.

    If the names of the prompts' `problems` are given, error messages include them.

    Raises:
        ValueError: If the generator refuses an argument or a prompt.
        GenerationError: If its backend fails, after all completions that had arrived were yielded.
    """
    try:
        if isinstance(generator, StreamingGenerator):
            yield from generator.stream(list(prompts), sampling)
        else:
            yield from enumerate(generator.generate(list(prompts), **vars(sampling)))
    except ValueError as error:
        if problems is None:
            raise
        names = ", ".join(map(repr, problems))
        raise ValueError(f"{error} (The prompts are those of the problems {names}.)") from error


def too_long_prompts(generator: TextGenerator, prompts: Sequence[str], max_new_tokens: int) -> list[int]:
    """Return the indices of prompts that exceed the model's positions.

    A generator without a method `too_long`, such as that of `TransformersGenerator`, has none.
    """
    find = getattr(generator, "too_long", None)
    return [] if find is None else list(find(prompts, max_new_tokens))


def collect(arrivals: Iterable[Arrival], prompts: int) -> list[list[Completion]]:
    """Return the completions of all prompts, in the order of the prompts."""
    found: list[list[Completion]] = [[] for _ in range(prompts)]
    for index, completions in arrivals:
        found[index] += completions
    return found
