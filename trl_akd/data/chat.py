"""Conversations as text: the last assistant turn is the completion, everything before it the prompt."""

from typing import Any

from transformers import PreTrainedTokenizerBase

__all__ = ["split_last_turn"]


def split_last_turn(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], index: int) -> tuple[str, str]:
    """Render row number `index` with the tokenizer's chat template and cut it before the last assistant turn.

    The prompt is rendered on its own with the generation prompt, as it is at inference, and must open the whole
    conversation's text. The completion is empty where the last turn's content is.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): tokenizer with a chat template.
        messages (`list[dict[str, Any]]`): messages `{role, content}`, the last one the assistant's.
        index (`int`): number of the row, for the errors.

    Returns:
        `tuple[str, str]`: text of the prompt and of the completion, special tokens written out.

    Raises:
        ValueError: If there is no chat template, the last message is not the assistant's or the only one, or the
            template renders the prompt differently once an answer follows.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "The dataset holds messages but the tokenizer has no chat template; set tokenizer.chat_template or pass "
            "'prompt' and 'completion' columns of text."
        )
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise ValueError(
            f"The conversation in row {index} has the roles {[message['role'] for message in messages]}, but it needs "
            "at least two messages, the last of them the assistant's; drop the row or what follows the answer."
        )
    prompt = str(tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True))
    conversation = str(tokenizer.apply_chat_template(messages, tokenize=False))
    if not conversation.startswith(prompt):
        raise ValueError(
            f"The chat template renders the prompt of row {index} differently once the answer follows "
            f"(the prompt alone ends in {prompt[-40:]!r}), so the student would train on a prompt that it never sees "
            "at inference; set a tokenizer.chat_template that renders both alike or pass 'prompt' and 'completion' "
            "columns of text."
        )
    return prompt, conversation[len(prompt) :] if messages[-1]["content"].strip() else ""
