"""Render conversations as text: the last assistant turn is the completion, everything before it the prompt."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from .encoding import common_prefix_length

__all__ = ["Conversation", "render"]

# Arguments of the tokenizer's method that a row must not set: they control what is rendered and in which form.
_RESERVED = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {
    "chat_template",
    "documents",
    "kwargs",
}


@dataclass(frozen=True)
class Conversation:
    """A conversation rendered by a chat template, including special tokens.

    Args:
        prompt (`str`):
            All turns before the answer and the generation prompt, from which generation starts.
        whole (`str`):
            All turns; empty if there is no answer.
    """

    prompt: str
    whole: str

    @property
    def starts_with_prompt(self) -> bool:
        """Whether the whole conversation starts with the prompt, as it does with most templates."""
        return not self.whole or self.whole.startswith(self.prompt)


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    index: int,
    *,
    tools: list[Any] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    allow_prompt_only: bool = False,
) -> Conversation:
    """Render row number `index` with the tokenizer's chat template, with and without the last assistant turn.

    The prompt of a reasoning template may end differently from the conversation: the template opens `<think>` in the
    generation prompt, but closes it at once, or omits it, in an answer without reasoning. That is accepted; a template
    that renders a turn of the prompt itself differently is not.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer with a chat template.
        messages (`list[dict[str, Any]]`):
            Messages `{role, content}`, ending with the assistant's.
        index (`int`):
            Number of the row, for error messages.
        tools (`list`, *optional*):
            Schemas of the tools that the assistant may call.
        template_kwargs (`Mapping[str, Any]`, *optional*):
            Further variables of the template.
        allow_prompt_only (`bool`, *optional*, defaults to `False`):
            Whether to accept a conversation without an answer.

    Raises:
        ValueError: If there is no chat template, a setting is not a variable of the template, the last message is not
            from the assistant or is the only one, or the template raises an error, omits a turn, or renders the prompt
            differently once an answer follows.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "The dataset contains messages but the tokenizer has no chat template; set tokenizer.chat_template or "
            "pass 'prompt' and 'completion' columns of text."
        )
    for name in sorted(_RESERVED.intersection(template_kwargs or {})):
        raise ValueError(
            f"Column 'chat_template_kwargs' of row {index} sets {name!r}, which is not a variable of a chat template; "
            "remove it, and pass tools in a column 'tools'."
        )

    def rendered(turns: list[dict[str, Any]], **settings: Any) -> str:
        try:
            text = tokenizer.apply_chat_template(
                turns, tools=tools, tokenize=False, **{**(template_kwargs or {}), **settings}
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ValueError(
                f"The chat template does not render the conversation in row {index}, with the roles {_roles(turns)}: "
                f"{error}; drop the row, or set a tokenizer.chat_template that supports such turns."
            ) from error
        return str(text)

    def rendered_prompt(turns: list[dict[str, Any]]) -> str:
        prompt = rendered(turns, add_generation_prompt=True)
        for number, turn in enumerate(turns):
            content = turn.get("content")
            if not isinstance(content, str) or content.strip() in prompt:
                continue
            changed = [*turns[:number], {**turn, "content": f"{content}x"}, *turns[number + 1 :]]
            if rendered(changed, add_generation_prompt=True) == prompt:
                raise ValueError(
                    f"The chat template omits the content of the role {turn['role']!r} in row {index}, which is a "
                    "text; set a tokenizer.chat_template that renders such turns, rename the role, give the content "
                    "as a list of parts, or drop the row."
                )
        return prompt

    if allow_prompt_only and messages[-1]["role"] != "assistant":
        return Conversation(rendered_prompt(messages), "")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise ValueError(
            f"The conversation in row {index} has the roles {_roles(messages)}, but it needs at least two messages, "
            "the last of them the assistant's; drop the row or what follows the answer."
        )
    prompt = rendered_prompt(messages[:-1])
    if not _has_content(messages[-1]):
        return Conversation(prompt, "")
    conversation = Conversation(prompt, rendered(messages))
    if not conversation.starts_with_prompt:
        _require_equal_turns(conversation, rendered(messages[:-1]), index)
    return conversation


def _require_equal_turns(conversation: Conversation, turns: str, index: int) -> None:
    """Raise a ValueError if the conversation differs from its prompt before the answer begins."""
    prompt = conversation.prompt
    if common_prefix_length(prompt, conversation.whole) < common_prefix_length(prompt, turns):
        raise ValueError(
            f"The chat template renders the prompt of row {index} differently once the answer follows (the prompt "
            f"alone ends in {prompt[-40:]!r}), so the student would be trained on a prompt that it never sees at "
            "inference; set a tokenizer.chat_template that renders both alike or pass 'prompt' and 'completion' "
            "columns of text."
        )


def _has_content(message: Mapping[str, Any]) -> bool:
    values = (value for key, value in message.items() if key not in ("role", "name"))
    return any(value.strip() if isinstance(value, str) else value for value in values)


def _roles(messages: list[dict[str, Any]]) -> list[Any]:
    return [message["role"] for message in messages]
