"""Dataset formats and readers of their columns, with errors that name the column and the row."""

import json
from collections.abc import Collection, Mapping, Sequence
from itertools import compress
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from ..losses.reduction import IGNORE_INDEX

__all__ = [
    "REQUIRED_COLUMNS",
    "DatasetFormat",
    "check_encodable",
    "detect_format",
    "prompt_style",
    "read_instruction",
    "read_messages",
    "read_optional_text",
    "read_template_inputs",
    "read_text",
    "read_tokens",
    "replace_lone_surrogates",
]

DatasetFormat: TypeAlias = Literal[
    "tokenized", "messages", "conversations", "prompt_completion", "alpaca", "text", "prompt_only", "instruction_only"
]

REQUIRED_COLUMNS: Mapping[DatasetFormat, tuple[str, ...]] = MappingProxyType(
    {
        "tokenized": ("input_ids", "labels"),
        "messages": ("messages",),
        "conversations": ("conversations",),
        "prompt_completion": ("prompt", "completion"),
        "alpaca": ("instruction", "output"),
    }
)
# Formats without a completion, for training on generated text.
_PROMPTS: Mapping[DatasetFormat, tuple[str, ...]] = MappingProxyType(
    {"prompt_only": ("prompt",), "instruction_only": ("instruction",)}
)
# ShareGPT's names of the roles, and those of chat templates.
_ROLES = {"human": "user", "gpt": "assistant"}


def detect_format(
    column_names: Collection[str], *, text_field: str | None = None, allow_prompt_only: bool = False
) -> DatasetFormat:
    """Return the first format, in the order of `REQUIRED_COLUMNS`, whose columns are all present.

    The format `alpaca` has an optional column `input`. `prompt` and `completion` are text or lists of messages.

    Args:
        column_names (`Collection[str]`):
            Columns of the dataset.
        text_field (`str`, *optional*):
            Column of whole texts, used if the dataset has no column of another format.
        allow_prompt_only (`bool`, *optional*, defaults to `False`):
            Whether to accept `prompt` or `instruction` without a completion.

    Raises:
        ValueError: If no format is complete; the message names the columns missing from the closest one.

    Example:

    ```python
    >>> detect_format(["instruction", "input", "output"])
    'alpaca'

    ```
    """
    found = set(column_names)
    accepted = {**REQUIRED_COLUMNS, **(_PROMPTS if allow_prompt_only else {})}
    for name, required in accepted.items():
        if found.issuperset(required):
            return name
    of_others = {column for columns in {**REQUIRED_COLUMNS, **_PROMPTS}.values() for column in columns}
    if text_field in found and not found & of_others - {text_field}:
        return "text"
    if text_field is not None:
        accepted["text"] = (text_field,)
    accepted.update(_PROMPTS)
    listed = "; ".join(f"{name} ({', '.join(required)})" for name, required in accepted.items())
    raise ValueError(
        f"The dataset has the columns {sorted(found)}, {_describe_missing(found)}. Accepted formats: {listed}. "
        "Rename or rewrite the columns, for example to `prompt` and `completion`, with `rename_columns` or `map` of "
        "the dataset, or add completions: prompts alone are enough for training with lmbda=1 or seq_kd=True, where "
        "all text is generated, but not for evaluation."
    )


def prompt_style(format: DatasetFormat, row: Mapping[str, Any]) -> Literal["template", "chat", "completion"] | None:
    """Return the style of the prompts of rows, as `trl-akd evaluate` names it; `None` for tokenized rows.

    Args:
        format (`str`):
            Format of the rows, from [`detect_format`].
        row (`Mapping[str, Any]`):
            One of the rows.

    Example:

    ```python
    >>> prompt_style("prompt_only", {"prompt": [{"role": "user", "content": "Add two numbers."}]})
    'chat'

    ```
    """
    if format == "tokenized":
        return None
    if format in ("messages", "conversations") or isinstance(row.get("prompt"), list):
        return "chat"
    return "template" if format in ("alpaca", "instruction_only") else "completion"


def _describe_missing(found: set[str]) -> str:
    nearest, required = max(REQUIRED_COLUMNS.items(), key=lambda item: len(found.intersection(item[1])))
    missing = [column for column in required if column not in found]
    if len(missing) == len(required):
        return "none of which belongs to a known format"
    return f"so {', '.join(map(repr, missing))} is missing for the format {nearest}"


def replace_lone_surrogates(text: str) -> str:
    r"""Return the text with surrogate pairs joined and lone surrogates replaced by U+FFFD.

    JSON can contain lone surrogates, for example of an emoji that a length limit truncated; tokenizers and Arrow
    cannot encode them.

    Example:

    ```python
    >>> replace_lone_surrogates("a\ud83d\ude00b\ud83d")
    'a😀b\ufffd'

    ```
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def check_encodable(text: str, place: str) -> None:
    """Raise a ValueError if a text contains a lone surrogate, which tokenizers cannot encode."""
    if replace_lone_surrogates(text) != text:
        raise ValueError(
            f"{place} contains a lone surrogate (half of a character), which tokenizers cannot encode; replace it, or "
            "drop the row."
        )


def read_text(row: Mapping[str, Any], column: str, index: int) -> str:
    """Return the text in `column` of row number `index`.

    Raises:
        ValueError: If the value is not a string.
    """
    value = row[column]
    if not isinstance(value, str):
        raise ValueError(
            f"Column {column!r} of row {index} holds {type(value).__name__}, not text; drop the row or convert the "
            "column."
        )
    return value


def read_optional_text(row: Mapping[str, Any], column: str, index: int) -> str:
    """Return the text in `column` of row number `index`, empty if it is missing or `None`.

    Raises:
        ValueError: If the value is neither a string nor `None`.
    """
    return "" if row.get(column) is None else read_text(row, column, index)


def read_instruction(row: Mapping[str, Any], index: int) -> tuple[str, str]:
    """Return the `instruction` and the optional `input` of row number `index`.

    Raises:
        ValueError: If one of them is not a string.
    """
    return read_text(row, "instruction", index), read_optional_text(row, "input", index)


def read_messages(row: Mapping[str, Any], column: str, index: int) -> list[dict[str, Any]]:
    """Return the messages in `column` of row number `index`, without the keys that Arrow filled with None.

    ShareGPT's keys `from` and `value` become `role` and `content`; its roles `human` and `gpt` become `user` and
    `assistant`. The content may be a list of text parts; it may be None beside `tool_calls` or in an assistant turn.

    Raises:
        ValueError: If the value is not a list of messages with a textual role and content.
    """
    messages = row[column]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        found = "an empty list" if messages == [] else type(messages).__name__
        raise ValueError(
            f"Column {column!r} of row {index} holds {found}, not a list of messages "
            "{role, content}; drop the row or convert the column."
        )
    return [_read_message(message, f"column {column!r} of row {index}") for message in messages]


def _read_message(message: Any, place: str) -> dict[str, Any]:
    found = {key: value for key, value in message.items() if value is not None} if isinstance(message, Mapping) else {}
    if "from" in found and "role" not in found:
        found = {"role": found.pop("from"), "content": found.pop("value", None), **found}
        found["role"] = _ROLES.get(found["role"], found["role"])
    role, content = found.get("role"), found.get("content")
    if not isinstance(role, str):
        raise _not_text(place, "role", role)
    if content is None and (role == "assistant" or found.get("tool_calls")):
        return {key: value for key, value in found.items() if value is not None}
    if isinstance(content, list):
        found["content"] = [_read_part(part, place) for part in content]
    elif not isinstance(content, str):
        raise _not_text(place, "content", content)
    return found


def _read_part(part: Any, place: str) -> dict[str, Any]:
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise ValueError(
            f"A message in {place} has a part of type {kind!r} in its content; only parts of type 'text' can be "
            "distilled, so drop the row."
        )
    return {"type": "text", "text": part["text"]}


def _not_text(place: str, key: str, value: Any) -> ValueError:
    return ValueError(
        f"A message in {place} has a {key} of type {type(value).__name__}, not text; drop the row or convert the "
        "column."
    )


def read_template_inputs(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return the arguments of the chat template in row number `index`, `tools` and `template_kwargs`.

    They come from the columns `tools`, a list or its JSON, and `chat_template_kwargs`.

    Raises:
        ValueError: If one of them has the wrong type.
    """
    tools, template_kwargs = row.get("tools"), row.get("chat_template_kwargs")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise ValueError(f"Column 'tools' of row {index} is not JSON ({error}); fix or drop the row.") from None
    if tools is not None and not isinstance(tools, list):
        raise ValueError(
            f"Column 'tools' of row {index} holds {type(tools).__name__}, not a list of tools; convert the column."
        )
    if template_kwargs is not None and not isinstance(template_kwargs, Mapping):
        raise ValueError(
            f"Column 'chat_template_kwargs' of row {index} holds {type(template_kwargs).__name__}, not a mapping; "
            "convert the column."
        )
    given = {key: value for key, value in (template_kwargs or {}).items() if value is not None}  # None is Arrow's
    return {"tools": tools or None, "template_kwargs": given}


def read_tokens(row: Mapping[str, Any], index: int) -> tuple[list[int], list[int]]:
    """Return `input_ids` and `labels` of row number `index` of a tokenized dataset.

    Tokens that an `attention_mask` excludes, such as padding, are left out.

    Raises:
        ValueError: If one is not a list of integers, their lengths differ, or a label is neither -100 nor the token at
            its position (labels are not shifted here; the loss shifts them).
    """
    columns, names = [], list(REQUIRED_COLUMNS["tokenized"])
    if row.get("attention_mask") is not None:
        names.append("attention_mask")
    for column in names:
        values = row[column]
        if not isinstance(values, list) or not all(isinstance(value, int) for value in values):
            raise ValueError(
                f"Column {column!r} of row {index} holds {type(values).__name__}, not a list of integers; drop the "
                "row or tokenize it again."
            )
        columns.append(values)
    if len(set(map(len, columns))) > 1:
        counts = [f"{len(values)} {column}" for column, values in zip(names, columns, strict=True)]
        raise ValueError(
            f"Row {index} has {', '.join(counts[:-1])} and {counts[-1]}; all must have one entry per token."
        )
    if len(columns) == 3:
        *columns, mask = columns
        columns = [list(compress(values, mask)) for values in columns]
    input_ids, labels = columns
    for position, (token, label) in enumerate(zip(input_ids, labels, strict=True)):
        if label not in (IGNORE_INDEX, token):
            raise ValueError(
                f"Label {label} at position {position} of row {index} is neither -100 nor the token there, {token}; "
                "pass labels that are not shifted."
            )
    return input_ids, labels
