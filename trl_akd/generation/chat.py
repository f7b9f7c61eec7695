"""Requests in words, to a model that reads them by its chat template."""

from collections.abc import Iterator
from typing import Any

from .on_main import is_shared, model_name
from .protocol import Completion, TextGenerator
from .streaming import Arrival, stream

__all__ = ["ChatGenerator"]


class ChatGenerator:
    """Put each prompt, as a user's message, into a tokenizer's chat template.

    Args:
        generator (`TextGenerator`):
            Who reads the result; it must add no special tokens of its own.
        tokenizer (`PreTrainedTokenizerBase`):
            Has the template.

    Raises:
        ValueError: If it has none.

    Example:

    ```python
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
                "the model is to be asked as in a chat, and its tokenizer has no chat template; ask it by completion, "
                "as a base model."
            )
        self._generator = generator
        self._tokenizer = tokenizer

    def generate(self, prompts: list[str], **sampling: Any) -> list[list[Completion]]:
        """Answer each prompt, as `TextGenerator.generate` says."""
        return self._generator.generate(self._as_messages(prompts), **sampling)

    def stream(self, prompts: list[str], **sampling: Any) -> Iterator[Arrival]:
        """Yield answers as they come."""
        return stream(self._generator, self._as_messages(prompts), **sampling)

    @property
    def is_shared(self) -> bool:
        """Whether several processes must ask together."""
        return is_shared(self._generator)

    @property
    def model_name(self) -> str:
        """Who writes."""
        return model_name(self._generator)

    def _as_messages(self, prompts: list[str]) -> list[str]:
        return [self._as_message(prompt) for prompt in prompts]

    def _as_message(self, prompt: str) -> str:
        message = {"role": "user", "content": prompt}
        return str(self._tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
