"""Wrappers of text generators: chat templates, progress bars, and generation on one process for all."""

from collections.abc import Iterator
from typing import Any

from ..distributed import is_main_process, run_on_main_and_broadcast
from ..progress import Progress
from .protocol import (
    GREEDY,
    Arrival,
    SamplingParams,
    StreamingGenerator,
    TextGenerator,
    stream,
    too_long_prompts,
)

__all__ = ["ChatGenerator", "OnMainProcess", "ProgressBar", "for_all_processes", "is_chat", "is_shared", "model_name"]


class ChatGenerator(StreamingGenerator):
    """Send each prompt as a user message in a tokenizer's chat template.

    Args:
        generator (`TextGenerator`):
            Generator; it must not add special tokens.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer with the chat template.

    Raises:
        ValueError: If it has no chat template.

    Example:

    ```python
    >>> from trl_akd.generation import Completion
    >>> class Echo:
    ...     def generate(self, prompts, **sampling):
    ...         return [[Completion(prompt, None, "stop", 1)] for prompt in prompts]
    >>> class Tokenizer:
    ...     chat_template = "..."
    ...     def apply_chat_template(self, messages, **settings):
    ...         return f"<user>{messages[0]['content']}<model>"
    >>> ChatGenerator(Echo(), Tokenizer()).generate(["Hello"])[0][0].text
    '<user>Hello<model>'

    ```
    """

    def __init__(self, generator: TextGenerator, tokenizer: Any) -> None:
        if tokenizer.chat_template is None:
            raise ValueError(
                "`prompt_style` is 'chat', and the model's tokenizer has no chat template; use another style, such as "
                "'completion' for a base model."
            )
        self._generator = generator
        self._tokenizer = tokenizer

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY) -> Iterator[Arrival]:
        """Yield completions as they arrive."""
        return stream(self._generator, self._as_messages(prompts), sampling)

    def too_long(self, prompts: list[str], max_new_tokens: int) -> list[int]:
        """Return the indices of the prompts that exceed the model's positions together with their template."""
        return too_long_prompts(self._generator, self._as_messages(prompts), max_new_tokens)

    @property
    def is_chat(self) -> bool:
        """Whether prompts are sent as user messages."""
        return True

    @property
    def is_shared(self) -> bool:
        """Whether all processes must call the generator together."""
        return is_shared(self._generator)

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return model_name(self._generator)

    def _as_messages(self, prompts: list[str]) -> list[str]:
        return [self._as_message(prompt) for prompt in prompts]

    def _as_message(self, prompt: str) -> str:
        message = {"role": "user", "content": prompt}
        return str(self._tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))


class ProgressBar(StreamingGenerator):
    """Show the progress of each call, by the number of completions."""

    def __init__(self, generator: TextGenerator, description: str, *, shown: bool = True) -> None:
        self._generator = generator
        self._description = description
        self._shown = shown

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY) -> Iterator[Arrival]:
        """Yield completions as they arrive."""
        total = len(prompts) * sampling.n
        with Progress(total, self._description, "text", shown=self._shown) as bar:
            for index, completions in stream(self._generator, prompts, sampling):
                bar.update(len(completions))
                yield index, completions


class OnMainProcess(StreamingGenerator):
    """Call a generator on the main process only, and broadcast its completions or its error to all processes.

    All processes make the same calls. A server thus gets each request once with any number of processes.
    """

    def __init__(self, generator: TextGenerator, accelerator: Any) -> None:
        self._generator = generator
        self._accelerator = accelerator

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY) -> Iterator[Arrival]:
        """Yield completions as they arrive."""
        nothing: Iterator[Arrival] = iter(())
        arrivals = stream(self._generator, prompts, sampling) if is_main_process(self._accelerator) else nothing
        while (arrival := run_on_main_and_broadcast(self._accelerator, lambda: next(arrivals, None))) is not None:
            yield arrival


def for_all_processes(generator: TextGenerator, accelerator: Any) -> TextGenerator:
    """Return the generator if it is distributed over the processes, and otherwise wrap it in [`OnMainProcess`]."""
    return generator if is_shared(generator) else OnMainProcess(generator, accelerator)


def is_shared(generator: TextGenerator) -> bool:
    """Return whether all processes must call a generator together, such as one with an accelerator."""
    return bool(getattr(generator, "is_shared", False))


def is_chat(generator: TextGenerator) -> bool:
    """Return whether a generator sends prompts as user messages."""
    return bool(getattr(generator, "is_chat", False))


def model_name(generator: object) -> str:
    """Return the name of a generator's model, or of its class if it has none."""
    return str(getattr(generator, "model_name", "") or type(generator).__name__)
