"""Detection of dataset formats, and errors for wrong columns."""

from typing import Any

import pytest

from trl_akd.data.schema import detect_format, read_messages, read_text, read_tokens


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["input_ids", "labels", "attention_mask"], "tokenized"),
        (["messages", "source"], "messages"),
        (["prompt", "completion"], "prompt_completion"),
        (["instruction", "input", "output"], "alpaca"),
        (["instruction", "output"], "alpaca"),
        (["prompt", "messages"], "messages"),
        (["input_ids", "prompt", "completion"], "prompt_completion"),
    ],
)
def test_format(columns: list[str], expected: str) -> None:
    assert detect_format(columns) == expected


@pytest.mark.parametrize(
    ("columns", "missing"),
    [
        (["instruction", "input"], "'output' is missing for the format alpaca"),
        (["prompt", "text"], "'completion' is missing for the format prompt_completion"),
        (["input_ids", "attention_mask"], "'labels' is missing for the format tokenized"),
        (["text"], "none of which belongs to a known format"),
        ([], "none of which belongs to a known format"),
    ],
)
def test_error_names_found_missing_and_accepted(columns: list[str], missing: str) -> None:
    with pytest.raises(ValueError) as caught:
        detect_format(columns)
    message = str(caught.value)
    assert missing in message
    assert str(sorted(columns)) in message
    assert all(part in message for part in ("input_ids, labels", "messages", "prompt, completion", "instruction"))
    assert "prompt_only (prompt); instruction_only (instruction)" in message and "lmbda=1" in message


@pytest.mark.parametrize(("value", "kind"), [(None, "NoneType"), (3, "int"), (["a"], "list")])
def test_text_of_another_type(value: Any, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"Column 'output' of row 7 holds {kind}"):
        read_text({"output": value}, "output", 7)


def test_keys_filled_by_arrow_are_removed() -> None:
    row = {"messages": [{"role": "user", "content": "Hi", "tool_calls": None}]}
    assert read_messages(row, "messages", 0) == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (None, "Column 'messages' of row 4 holds NoneType"),
        ("Hi", "Column 'messages' of row 4 holds str"),
        ([], "Column 'messages' of row 4 holds an empty list"),
        (["Hi"], "of row 4 has a role of type NoneType"),
        ([{"role": "user", "content": None}], "of row 4 has a content of type NoneType"),
        ([{"content": "Hi"}], "of row 4 has a role of type NoneType"),
    ],
)
def test_malformed_messages(value: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_messages({"messages": value}, "messages", 4)


@pytest.mark.parametrize(
    ("input_ids", "labels", "complaint"),
    [
        ([1, 2], [1], "Row 5 has 2 input_ids and 1 labels"),
        ([1, 2, 3], [2, 3, -100], "Label 2 at position 0 of row 5 is neither -100 nor the token there, 1"),
        (None, [1], "Column 'input_ids' of row 5 holds NoneType"),
        ([1], ["1"], "Column 'labels' of row 5 holds list, not a list of integers"),
    ],
)
def test_malformed_tokens(input_ids: Any, labels: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_tokens({"input_ids": input_ids, "labels": labels}, 5)
