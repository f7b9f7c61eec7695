"""Which columns a dataset has, and the errors that name the column, the row or the type that is wrong."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

__all__ = [
    "IGNORED_LABEL",
    "REQUIRED_COLUMNS",
    "DatasetFormat",
    "detect_format",
    "read_messages",
    "read_text",
    "read_tokens",
    "well_formed",
]

IGNORED_LABEL = -100


DatasetFormat: TypeAlias = Literal["tokenized", "messages", "prompt_completion", "alpaca"]

REQUIRED_COLUMNS: Mapping[DatasetFormat, tuple[str, ...]] = MappingProxyType(
    {
        "tokenized": ("input_ids", "labels"),
        "messages": ("messages",),
        "prompt_completion": ("prompt", "completion"),
        "alpaca": ("instruction", "output"),
    }
)


def detect_format(column_names: Collection[str]) -> DatasetFormat:
    """Return the first format, in the order of `REQUIRED_COLUMNS`, whose columns are all there.

    `alpaca` reads a column `input` too where there is one. `prompt` and `completion` hold either text or lists of
    messages.

    Raises:
        ValueError: If no format is complete; the message names what is missing from the nearest one.

    Example:

    ```python
    >>> detect_format(["instruction", "input", "output"])
    'alpaca'

    ```
    """
    found = set(column_names)
    for name, required in REQUIRED_COLUMNS.items():
        if found.issuperset(required):
            return name
    accepted = "; ".join(f"{name} ({', '.join(required)})" for name, required in REQUIRED_COLUMNS.items())
    raise ValueError(
        f"The dataset has the columns {sorted(found)}, {_what_is_missing(found)}. Accepted are: {accepted}. "
        "Rename the columns with dataset.rename_columns."
    )


def _what_is_missing(found: set[str]) -> str:
    nearest, required = max(REQUIRED_COLUMNS.items(), key=lambda item: len(found.intersection(item[1])))
    missing = [column for column in required if column not in found]
    if len(missing) == len(required):
        return "none of which is known here"
    return f"so {', '.join(map(repr, missing))} is missing for the format {nearest}"


def well_formed(text: str) -> str:
    r"""Return a text that can be encoded: halves of characters are joined where they meet, else replaced.

    JSON can hold half of a surrogate pair, such as of an emoji that a length limit cut; tokenizers and Arrow cannot.

    Example:

    ```python
    >>> well_formed("a\ud83d\ude00b\ud83d")
    'a😀b\ufffd'

    ```
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


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


def read_messages(row: Mapping[str, Any], column: str, index: int) -> list[dict[str, Any]]:
    """Return the messages in `column` of row number `index`, without the keys that Arrow filled up with None.

    Raises:
        ValueError: If the value is not a list of messages with a textual role and content.
    """
    messages = row[column]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(
            f"Column {column!r} of row {index} holds {type(messages).__name__}, not a list of messages "
            "{role, content}; drop the row or convert the column."
        )
    for message in messages:
        for key in ("role", "content"):
            value = message.get(key) if isinstance(message, Mapping) else None
            if not isinstance(value, str):
                raise ValueError(
                    f"A message in column {column!r} of row {index} has a {key} of type {type(value).__name__}, not "
                    "text; drop the row or convert the column."
                )
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def read_tokens(row: Mapping[str, Any], index: int) -> tuple[list[int], list[int]]:
    """Return `input_ids` and `labels` of row number `index` of a tokenised dataset.

    Raises:
        ValueError: If one is no list of integers, if their lengths differ, or if a label is neither -100 nor the token
            at its own position (labels are not shifted here; the loss shifts them).
    """
    columns = []
    for column in REQUIRED_COLUMNS["tokenized"]:
        values = row[column]
        if not isinstance(values, list) or not all(isinstance(value, int) for value in values):
            raise ValueError(
                f"Column {column!r} of row {index} holds {type(values).__name__}, not a list of integers; drop the "
                "row or tokenise it anew."
            )
        columns.append(values)
    input_ids, labels = columns
    if len(input_ids) != len(labels):
        raise ValueError(
            f"Row {index} has {len(input_ids)} input_ids and {len(labels)} labels; both must have one entry a token."
        )
    for position, (token, label) in enumerate(zip(input_ids, labels, strict=True)):
        if label not in (IGNORED_LABEL, token):
            raise ValueError(
                f"Label {label} at position {position} of row {index} is neither -100 nor the token there, {token}; "
                "pass labels that are not shifted."
            )
    return input_ids, labels
