"""Rows are kept, truncated at the end, or dropped and counted; prompts are never truncated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset, load_dataset
from transformers import PreTrainedTokenizerFast

from trl_akd.data.templates import render
from trl_akd.data.tokenization import TokenizationReport, pack, tokenize_dataset, tokenize_stream

Build = Callable[..., PreTrainedTokenizerFast]

TEXTS = [
    ("### Response:", "\n\ndef add(a, b):\n    return a + b\n"),
    ("de", "fine"),
    ("Write a function that prints the numbers up to ten, one a line.", "print(1)"),
    ("x", ""),
    ("print(", "add(1, 2))<eos>"),
    ("Größe 🙂\n", "    return 'ö'  \n"),
    ("a" * 40, "b" * 40),
]
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CODE_ALPACA = Path(__file__).parents[3] / "shared" / "data" / "code_alpaca" / "code_alpaca_2k.json"


@pytest.fixture
def texts() -> Dataset:
    return Dataset.from_list([{"prompt": prompt, "completion": completion} for prompt, completion in TEXTS])


def split(row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return prompt and target tokens, after checking that the targets are at the end of the row."""
    first = next(i for i, label in enumerate(row["labels"]) if label != -100)
    assert row["labels"][:first] == [-100] * first
    assert row["labels"][first:] == row["input_ids"][first:]
    return row["input_ids"][:first], row["input_ids"][first:]


def test_decoded_rows_equal_the_texts(byte_level: Build, texts: Dataset) -> None:
    tokenizer = byte_level("<bos> $A")
    tokenized, report = tokenize_dataset(texts, tokenizer, max_length=None)
    assert tokenized.column_names == ["input_ids", "labels"]
    assert report == TokenizationReport(rows=7, kept=6, truncated=0, dropped_too_long=0, dropped_empty=1)
    for row, (prompt, completion) in zip(tokenized, [text for text in TEXTS if text[1]], strict=True):
        prompt_ids, target_ids = split(row)
        assert prompt_ids == tokenizer(prompt)["input_ids"]
        assert target_ids.count(tokenizer.eos_token_id) == 1
        assert target_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(target_ids[:-1]) == completion.removesuffix("<eos>")


@pytest.mark.parametrize("max_length", [*range(2, 40), 60, 81, 200])
def test_rows_are_truncated_or_dropped(byte_level: Build, texts: Dataset, max_length: int) -> None:
    tokenizer = byte_level()
    whole = [split(row) for row in tokenize_dataset(texts, tokenizer, max_length=None)[0]]
    fitting = [(prompt, targets[: max_length - len(prompt)]) for prompt, targets in whole if len(prompt) < max_length]
    cut = sum(len(prompt) + len(targets) > max_length for prompt, targets in whole if len(prompt) < max_length)

    tokenized, report = tokenize_dataset(texts, tokenizer, max_length=max_length)

    assert [split(row) for row in tokenized] == fitting
    assert max(map(len, tokenized["input_ids"])) <= max_length
    assert report == TokenizationReport(
        rows=len(TEXTS), kept=len(fitting), truncated=cut, dropped_too_long=len(whole) - len(fitting), dropped_empty=1
    )


@pytest.mark.parametrize("name", ["starcoder", "instruct_eval", "alpaca", "alpaca_akd_paper"])
@pytest.mark.parametrize("task_input", ["[3, 1]", "", None])
def test_alpaca_columns_go_through_the_template(byte_level: Build, name: str, task_input: str | None) -> None:
    tokenizer = byte_level()
    row = {"instruction": "Sort.", "input": task_input, "output": "sorted(x)", "source": 1}
    tokenized, _ = tokenize_dataset(Dataset.from_list([row]), tokenizer, max_length=None, prompt_template=name)
    prompt_ids, target_ids = split(tokenized[0])
    assert tokenizer.decode(prompt_ids) == render(name, "Sort.", task_input or "")
    assert tokenizer.decode(target_ids) == "sorted(x)<eos>"


def test_alpaca_without_an_input_column(byte_level: Build) -> None:
    rows = Dataset.from_list([{"instruction": "Sort.", "output": "sorted(x)"}])
    tokenized, _ = tokenize_dataset(rows, byte_level(), max_length=None)
    assert byte_level().decode(split(tokenized[0])[0]) == render("alpaca", "Sort.")


def conversation(*contents: str) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


@pytest.mark.parametrize("columns", ["messages", "prompt_completion"])
def test_last_assistant_turn_is_the_completion(byte_level: Build, columns: str) -> None:
    tokenizer = byte_level("<bos> $A")  # the template writes no BOS, so there is none
    tokenizer.chat_template = CHATML
    messages = conversation("Add.", "a + b", "Print.", "print(a)")
    row = {"messages": messages} if columns == "messages" else {"prompt": messages[:3], "completion": messages[3:]}
    tokenized, _ = tokenize_dataset(Dataset.from_list([row]), tokenizer, max_length=None)
    prompt_ids, target_ids = split(tokenized[0])
    assert (
        tokenizer.decode(prompt_ids)
        == "<|user|>Add.<eos>\n<|assistant|>a + b<eos>\n<|user|>Print.<eos>\n<|assistant|>"
    )
    assert tokenizer.decode(target_ids) == "print(a)<eos>"
    inference = tokenizer.apply_chat_template(messages[:3], add_generation_prompt=True)["input_ids"]
    assert prompt_ids == inference


@pytest.mark.parametrize("end_of_turn", ["<eos>", "<end>"])  # the latter is text to this tokenizer
def test_empty_answer_is_dropped(byte_level: Build, end_of_turn: str) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML.replace("<eos>", end_of_turn)
    rows = Dataset.from_list([{"messages": conversation("Add.", answer)} for answer in (" ", "a + b")])
    _, report = tokenize_dataset(rows, tokenizer, max_length=None)
    assert (report.kept, report.dropped_empty) == (1, 1)


@pytest.mark.parametrize(
    ("template", "contents", "complaint"),
    [
        (None, ("Add.", "a + b"), "no chat template; set tokenizer.chat_template"),
        (CHATML, ("Add.",), "row 0 has the roles \\['user'\\]"),
        (CHATML, ("Add.", "a + b", "Print."), "row 0 has the roles \\['user', 'assistant', 'user'\\]"),
        (
            CHATML.replace("{% endfor", "{% if loop.last %}({{ loop.length }}){% endif %}{% endfor"),
            ("Add.", "a + b"),
            "differently",
        ),
        (
            "{{ raise_exception('roles must alternate') }}",
            ("Add.", "a + b"),
            "row 0.*roles must alternate; drop the row",
        ),
        ("{{ messages[0].name.first }}", ("Add.", "a + b"), "row 0.*no attribute 'name'; drop the row"),
    ],
)
def test_conversations_that_cannot_be_split(
    byte_level: Build, template: str | None, contents: tuple[str, ...], complaint: str
) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = template
    rows = Dataset.from_list([{"messages": conversation(*contents)}])
    with pytest.raises(ValueError, match=complaint):
        tokenize_dataset(rows, tokenizer, max_length=None)


@pytest.mark.parametrize(
    ("max_length", "expected", "report"),
    [
        (None, [[1, 2, 3, 4], [5, 6], [7, 8, 9]], TokenizationReport(5, 3, 0, 0, 2)),
        (3, [[1, 2, 3], [5, 6], [7, 8, 9]], TokenizationReport(5, 3, 1, 0, 2)),
        (2, [[5, 6], [7, 8]], TokenizationReport(5, 2, 1, 1, 2)),
    ],
)
def test_tokenized_rows_are_truncated_or_dropped(
    byte_level: Build, max_length: int | None, expected: list[list[int]], report: TokenizationReport
) -> None:
    rows = Dataset.from_dict(
        {
            "input_ids": [[1, 2, 3, 4], [5, 6], [7, 8, 9], [10, 11], [12]],
            "labels": [[-100, -100, 3, 4], [-100, 6], [7, 8, -100], [-100, -100], [12]],
            "attention_mask": [[1] * 4, [1] * 2, [1] * 3, [1] * 2, [1]],
        }
    )
    tokenized, counted = tokenize_dataset(rows, byte_level(), max_length=max_length)
    assert tokenized["input_ids"][:] == expected
    assert counted == report
    # Nothing predicts the first token, so it is never a target.
    assert all(labels[0] == -100 for labels in tokenized["labels"])
    assert tokenize_dataset(tokenized, byte_level(), max_length=max_length)[0][:] == tokenized[:]


@pytest.mark.parametrize(
    ("input_ids", "labels", "mask"),
    [
        ([0, 0, 1, 2, 3], [-100, -100, -100, 2, 3], [0, 0, 1, 1, 1]),
        ([1, 2, 3, 0, 0], [-100, 2, 3, -100, -100], [1, 1, 1, 0, 0]),
        ([1, 2, 3, 0, 0], [-100, 2, 3, 0, 0], [1, 1, 1, 0, 0]),  # padding among the labels
        ([0, 1, 9, 2, 3, 0], [7, -100, 9, 2, 3, 0], [0, 1, 0, 1, 1, 0]),
        ([1, 2, 3], [-100, 2, 3], None),
    ],
)
def test_tokens_outside_the_attention_mask_are_left_out(
    byte_level: Build, input_ids: list[int], labels: list[int], mask: list[int] | None
) -> None:
    rows = [
        {"input_ids": input_ids, "labels": labels, "attention_mask": mask},
        {"input_ids": [4, 5], "labels": [-100, 5], "attention_mask": [1, 1]},
        {"input_ids": [4, 5], "labels": [-100, 5], "attention_mask": [1, 0]},
    ]
    for data in (Dataset.from_list(rows), Dataset.from_list(rows).to_iterable_dataset()):
        tokenized = (
            list(tokenize_stream(data, byte_level(), max_length=3))
            if isinstance(data, IterableDataset)
            else list(tokenize_dataset(data, byte_level(), max_length=3)[0])
        )
        assert tokenized == [
            {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
            {"input_ids": [4, 5], "labels": [-100, 5]},
        ]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ({"prompt": ["a"], "completion": [7]}, "Column 'completion' of row 0 holds int"),
        ({"prompt": [None, "b"], "completion": ["c", "d"]}, "Column 'prompt' of row 0 holds NoneType"),
        ({"instruction": ["a"], "output": [4]}, "Column 'output' of row 0 holds int"),
        ({"instruction": ["a"], "input": [4], "output": ["b"]}, "Column 'input' of row 0 holds int"),
        ({"input_ids": [[1], [1, 2]], "labels": [[1], [1]]}, "Row 1 has 2 input_ids and 1 labels"),
        (
            {"input_ids": [[1, 2]], "labels": [[1, 2]], "attention_mask": [[1]]},
            "Row 0 has 2 input_ids, 2 labels and 1 attention_mask",
        ),
        (
            {"input_ids": [[1]], "labels": [[1]], "attention_mask": [[[1]]]},
            "Column 'attention_mask' of row 0 holds list, not a list of integers",
        ),
        ({"input_ids": [[1]], "labels": [[1]], "seq_lengths": [[1]]}, "packed already"),
        ({"prompt": ["a"], "text": ["b"]}, "'completion' is missing"),
        ({"prompt": [], "completion": []}, "The train dataset has no rows"),
        ({"prompt": ["a"], "completion": [" "]}, "all 1 completions are empty"),
    ],
)
def test_errors_name_bad_rows(byte_level: Build, rows: dict[str, list[Any]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        tokenize_dataset(Dataset.from_dict(rows), byte_level(), max_length=16)


def test_row_number_counts_from_the_start_of_the_dataset(byte_level: Build) -> None:
    rows = Dataset.from_dict({"prompt": ["a"] * 1202 + [None], "completion": ["b"] * 1203})
    with pytest.raises(ValueError, match="of row 1202 holds NoneType"):
        tokenize_dataset(rows, byte_level(), max_length=None)


def test_all_rows_too_long(byte_level: Build) -> None:
    rows = Dataset.from_dict({"prompt": ["0" * 9, "0" * 5, "0"], "completion": ["b", "b", ""]})
    with pytest.raises(ValueError, match=r"eval dataset.*max_length=4.*2 rows take 5 to 9 tokens, and 1 completions"):
        tokenize_dataset(rows, byte_level(), max_length=4, name="eval")


@pytest.mark.parametrize("max_length", [1, 0, -1])
def test_max_length_without_room_for_a_target(byte_level: Build, texts: Dataset, max_length: int) -> None:
    with pytest.raises(ValueError, match=f"max_length is {max_length}"):
        tokenize_dataset(texts, byte_level(), max_length=max_length)


def test_unknown_template_is_refused(byte_level: Build, texts: Dataset) -> None:
    with pytest.raises(ValueError, match="prompt_template 'alpca' is unknown"):
        tokenize_dataset(texts, byte_level(), max_length=None, prompt_template="alpca")


def test_formatted_dataset(byte_level: Build, texts: Dataset) -> None:
    plain, _ = tokenize_dataset(texts, byte_level(), max_length=20)
    formatted, _ = tokenize_dataset(plain.with_format("torch"), byte_level(), max_length=20)
    assert formatted[:] == plain[:]


@pytest.mark.parametrize("max_length", [None, 20])
def test_stream_equals_dataset(byte_level: Build, texts: Dataset, max_length: int | None) -> None:
    expected, _ = tokenize_dataset(texts, byte_level(), max_length=max_length)
    stream = tokenize_stream(texts.to_iterable_dataset(), byte_level(), max_length=max_length)
    assert list(stream) == list(expected)
    unnamed = IterableDataset.from_generator(lambda: iter(texts))  # its columns are known from the first row only
    assert list(tokenize_stream(unnamed, byte_level(), max_length=max_length)) == list(expected)


def test_stream_without_rows(byte_level: Build) -> None:
    with pytest.raises(ValueError, match="none of which belongs to a known format"):
        tokenize_stream(IterableDataset.from_generator(lambda: iter([])), byte_level(), max_length=None)


def test_second_call_reads_the_cache_and_other_settings_do_not(byte_level: Build, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "Sort.", "output": "sorted(x)"}\n' * 3)
    rows = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train")
    tokenizer = byte_level()

    def files(**settings: Any) -> Any:
        return tokenize_dataset(rows, tokenizer, **{"max_length": 200} | settings)[0].cache_files

    first = files()
    written = Path(first[0]["filename"]).stat().st_mtime_ns
    assert files() == first
    assert Path(first[0]["filename"]).stat().st_mtime_ns == written
    assert files(max_length=199) != first
    assert files(prompt_template="alpaca_akd_paper") != first


def test_several_processes_give_the_same(byte_level: Build, texts: Dataset) -> None:
    one, report = tokenize_dataset(texts, byte_level(), max_length=20)
    two, report_of_two = tokenize_dataset(texts, byte_level(), max_length=20, num_proc=2)
    assert (one[:], report) == (two[:], report_of_two)


@pytest.mark.parametrize("max_length", [45, 90, 200])
def test_packing_keeps_every_sample(byte_level: Build, texts: Dataset, max_length: int) -> None:
    tokenized, _ = tokenize_dataset(texts, byte_level(), max_length=45)
    packed = pack(tokenized, max_length)
    samples = []
    for row in packed:
        assert sum(row["seq_lengths"]) == len(row["input_ids"]) == len(row["labels"]) <= max_length
        start = 0
        for length in row["seq_lengths"]:
            samples.append((row["input_ids"][start : start + length], row["labels"][start : start + length]))
            start += length
    assert sorted(samples) == sorted(zip(tokenized["input_ids"], tokenized["labels"], strict=True))


def test_packing_refuses_rows_that_are_too_long(byte_level: Build, texts: Dataset) -> None:
    tokenized, _ = tokenize_dataset(texts, byte_level(), max_length=45)
    with pytest.raises(ValueError, match=r"a row of 45 tokens.*max_length=44"):
        pack(tokenized, 44)


def test_code_alpaca(byte_level: Build) -> None:
    if not CODE_ALPACA.is_file():
        pytest.skip("the optional ../shared/data/code_alpaca/code_alpaca_2k.json is absent")
    rows = load_dataset("json", data_files=str(CODE_ALPACA), split="train")
    tokenizer = byte_level(size=1000, corpus=[row["output"] for row in rows])
    tokenized, report = tokenize_dataset(rows, tokenizer, max_length=256)
    assert report.rows == 2017
    assert report.dropped_empty == 2
    assert report.kept + report.dropped_too_long + report.dropped_empty == report.rows
    assert report.truncated > 0
    assert report.dropped_too_long > 0
    expected = []
    for row in rows:
        prompt = tokenizer(render("alpaca", row["instruction"], row["input"]))["input_ids"]
        if row["output"] and len(prompt) < 256:
            expected.append(prompt)
    assert [split(row)[0] for row in tokenized] == expected
