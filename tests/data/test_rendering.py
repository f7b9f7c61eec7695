"""Conversations are rendered as TRL's `SFTTrainer` renders them, template by template.

The oracle is the preparation of `SFTTrainer` itself. Two differences are meant: a row ends with EOS, once, and what a
template writes behind its last EOS is left out.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset, Features, Json, List
from packaging.version import Version
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from tests import tiny
from trl_akd.data.tokenization import tokenize_dataset, tokenize_stream

TEMPLATES = {
    path.stem: path.read_text() for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
}
SPECIAL = (
    "<think>",
    "</think>",
    "<s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<end_of_turn>",
    "<start_of_turn>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer", "description": "One"}}},
        },
    }
]


def user(content: Any = "Double x.") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = "2 * x", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


CALL = assistant(None, tool_calls=[{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}])
ROWS: dict[str, dict[str, Any]] = {
    "plain": {"prompt": [user()], "completion": [assistant()]},
    "line breaks": {"prompt": [user()], "completion": [assistant("\n\n  2 * x\n")]},
    "system": {"prompt": [{"role": "system", "content": "Be brief."}, user()], "completion": [assistant()]},
    "several turns": {"prompt": [user(), assistant("x + x"), user("Shorter.")], "completion": [assistant()]},
    "reasoning": {"prompt": [user()], "completion": [assistant("<think>\nhm\n</think>\n\n2 * x")]},
    "reasoning apart": {"prompt": [user()], "completion": [assistant(reasoning_content="hm")]},
    "tools": {"prompt": [user()], "completion": [assistant()], "tools": TOOLS},
    "call": {"prompt": [user()], "completion": [CALL], "tools": TOOLS},
    "called": {
        "prompt": [user(), CALL, {"role": "tool", "name": "add", "content": "2"}],
        "completion": [assistant()],
        "tools": TOOLS,
    },
    "no thinking": {
        "prompt": [user()], "completion": [assistant()], "chat_template_kwargs": {"enable_thinking": False},
    },
    "thinking": {"prompt": [user()], "completion": [assistant()], "chat_template_kwargs": {"enable_thinking": True}},
}  # fmt: skip


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    made = tiny.tokenizer()
    made.add_tokens([AddedToken(token, special=True) for token in SPECIAL])
    made.bos_token = "<s>"  # which some templates write
    made.chat_template = template
    return made


class _Preparation:
    """The attributes of its trainer that `SFTTrainer._prepare_dataset` reads."""

    chat_template = None
    completion_only_loss = True

    def __init__(self, given: PreTrainedTokenizerFast) -> None:
        self._tokenizer = given


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Any:
    args = SFTConfig(
        output_dir=str(tmp_path_factory.mktemp("sft")), report_to="none", use_cpu=True, bf16=False, max_length=None
    )

    def prepare(row: dict[str, Any], given: PreTrainedTokenizerFast) -> dict[str, list[int]]:
        prepared = SFTTrainer._prepare_dataset(_Preparation(given), dataset(row), given, args, False, None, "train")
        return prepared[0]

    return prepare


def dataset(*rows: dict[str, Any]) -> Dataset:
    """Values of any type are stored as JSON, as TRL's documentation recommends."""
    features = Features({column: List(Json()) if isinstance(rows[0][column], list) else Json() for column in rows[0]})
    return Dataset.from_list(list(rows), features=features)


def cut_after_eos(ids: list[int], labels: list[int], eos: int) -> tuple[list[int], list[int]]:
    """Remove text after the last EOS of a template, or append EOS."""
    last = len(ids) - 1 - ids[::-1].index(eos) if eos in ids else -1
    if last >= 0 and labels[last] == eos and tiny.tokenizer().decode(ids[last + 1 :]).strip() == "":
        return ids[: last + 1], labels[: last + 1]
    return [*ids, eos], [*labels, eos]


USUAL = (
    "qwen2_5",
    "qwen3",
    "qwen3_5_nothink",
    "deepseek_r1_distill",
    "nemotron_3_nano",
    "llama3_1",
    "gemma3",
    "gptoss",
)


@pytest.mark.skipif(
    Version(trl.__version__) < Version("1.16"), reason="older versions of SFTTrainer render some rows differently"
)
@pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in TEMPLATES]
)
def test_rows_equal_those_of_sft(sft: Any, name: str) -> None:
    given, agreed = tokenizer(TEMPLATES[name]), 0
    if "<|im_end|>" in TEMPLATES[name]:
        given.eos_token = "<|im_end|>"
    for kind, row in ROWS.items():
        try:
            expected = sft(row, given)
        except Exception:  # the template knows no such rows, as each says in its own way
            with pytest.raises(ValueError, match=r"row 0.*(drop the row|set a tokenizer.chat_template)"):
                tokenize_dataset(dataset(row), given, max_length=None)
            continue
        if not set(expected["labels"]) - {-100, given.eos_token_id, *given.encode("\n")}:
            with pytest.raises(ValueError, match="all 1 completions are empty"):
                tokenize_dataset(dataset(row), given, max_length=None)
            continue
        if not all(
            turn["content"] in given.decode(expected["input_ids"]) for turn in row["prompt"] if turn["content"]
        ):
            with pytest.raises(ValueError, match="omits the content of the role"):
                tokenize_dataset(dataset(row), given, max_length=None)
            agreed += 1
            continue
        ids, labels = cut_after_eos(expected["input_ids"], expected["labels"], given.eos_token_id)
        tokenized, _ = tokenize_dataset(dataset(row), given, max_length=None, with_prompts=True)
        assert given.decode(tokenized[0]["input_ids"]) == given.decode(ids), kind
        assert tokenized[0]["input_ids"] == ids, kind
        assert tokenized[0]["labels"] == labels, kind
        inference = given.apply_chat_template(
            row["prompt"], tools=row.get("tools"), add_generation_prompt=True, **row.get("chat_template_kwargs", {})
        )["input_ids"]
        assert tokenized[0]["prompt_ids"] == inference, kind
        agreed += 1
    assert agreed or "llava" in name or "llama3" in name


# Forms of rows

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def decoded(rows: Dataset, given: PreTrainedTokenizerFast, **settings: Any) -> list[tuple[str, str]]:
    """Return the texts of prompts and targets."""
    tokenized, _ = tokenize_dataset(rows, given, max_length=None, **settings)
    return [
        (
            given.decode(
                [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
            ),
            given.decode([label for label in row["labels"] if label != -100]),
        )
        for row in tokenized
    ]


@pytest.mark.parametrize(("asks", "answers"), [("human", "gpt"), ("user", "assistant")])
@pytest.mark.parametrize("column", ["conversations", "messages"])
def test_share_gpt(asks: str, answers: str, column: str) -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": asks, "value": "Double x."},
        {"from": answers, "value": "2 * x"},
    ]
    named = [{"role": "system", "content": "Be brief."}, user(), assistant()]
    given = tokenizer(CHATML)
    expected = decoded(Dataset.from_list([{"messages": named}]), given)
    assert decoded(Dataset.from_list([{column: turns}]), given) == expected
    assert decoded(Dataset.from_list([{"conversations": named}]), given) == expected


@pytest.mark.parametrize("text", ["def f():\n    return 1\n", "x<|endoftext|>", " x"])
@pytest.mark.parametrize("field", ["text", "code"])
def test_whole_texts(sft: Any, text: str, field: str) -> None:
    given = tokenizer()
    expected = sft({"text": text}, given)
    tokenized, report = tokenize_dataset(
        Dataset.from_dict({field: [text, " "], "licence": ["mit"] * 2}), given, max_length=None, text_field=field
    )
    assert tokenized[0]["input_ids"] == expected["input_ids"]
    assert tokenized[0]["labels"] == [-100, *expected["labels"][1:]]  # nothing predicts the first token
    assert (report.kept, report.dropped_empty) == (1, 1)


def test_text_column_is_ignored_in_other_formats() -> None:
    given = tokenizer()
    alpaca = {"instruction": "Sort.", "output": "sorted(x)", "text": "### Instruction: Sort."}
    assert "Below is an instruction" in decoded(Dataset.from_list([alpaca]), given)[0][0]
    with pytest.raises(ValueError, match="'completion' is missing"):
        decoded(Dataset.from_list([{"prompt": "Sort.", "text": "sorted(x)"}]), given)


@pytest.mark.parametrize(
    "rows",
    [
        {"prompt": ["# a", "# b"]},
        {"prompt": ["# a", "# b"], "completion": ["", None]},
        {"prompt": [[user("a")], [user("b")]]},
        {"messages": [[user("a")], [user("b"), assistant(""), user("c")]]},
        {"messages": [[user("a"), assistant(None)], [user("b"), assistant("")]]},
        {"conversations": [[{"from": "human", "value": "a"}], [{"from": "human", "value": "b"}]]},
        {"instruction": ["a", "b"]},
        {"instruction": ["a", "b"], "input": ["", "c"]},
    ],
)
def test_prompts_without_completions(rows: dict[str, list[Any]]) -> None:
    given, data = tokenizer(CHATML), Dataset.from_dict(rows)
    settings = {"max_length": None, "with_prompts": True, "allow_prompt_only": True}
    tokenized, report = tokenize_dataset(data, given, **settings)
    assert report.kept == 2
    assert all(row["prompt_ids"] == row["input_ids"] for row in tokenized)
    assert all(set(row["labels"]) == {-100} for row in tokenized)
    assert all(
        given.decode(row["prompt_ids"]).endswith(("a", "b", "c", "assistant\n", ":", "\n")) for row in tokenized
    )
    assert list(tokenize_stream(data.to_iterable_dataset(), given, **settings)) == list(tokenized)
    longest = max(map(len, tokenized["prompt_ids"]))
    assert tokenize_dataset(data, given, **settings | {"max_length": longest + 1})[1].kept == 2
    with pytest.raises(ValueError, match=rf"max_length=2: the prompts of 2 rows take .* to {longest} tokens"):
        tokenize_dataset(data, given, **settings | {"max_length": 2})
    with pytest.raises(ValueError, match=r"lmbda=1|all 2 completions are empty|has the roles \['user'"):
        tokenize_dataset(data, given, max_length=None)


@pytest.mark.parametrize(
    "rows",
    [
        {"prompt": ["a", "b"], "completion": [None, "c"]},
        {"prompt": [[user("a")], [user("b")]], "completion": [None, [assistant("c")]]},
        {"messages": [[user("a"), assistant(None)], [user("b"), assistant("c")]]},
        {"instruction": ["a", "b"], "output": [None, "c"]},
    ],
)
def test_missing_answer_is_an_empty_one(rows: dict[str, list[Any]]) -> None:
    _, report = tokenize_dataset(Dataset.from_dict(rows), tokenizer(CHATML), max_length=None)
    assert (report.kept, report.dropped_empty) == (1, 1)


def test_tools_as_json(sft: Any) -> None:
    given = tokenizer(TEMPLATES["qwen3"])
    row = ROWS["call"]
    expected = decoded(dataset(row), given)
    assert "Add two numbers." in expected[0][0] and "tool_call" in expected[0][1]
    assert decoded(dataset({**row, "tools": json.dumps(TOOLS)}), given) == expected


def test_missing_values_of_arrow_are_not_settings() -> None:
    given = tokenizer(TEMPLATES["qwen3"])
    conversations = [[user(), assistant()]] * 2
    settings = [{"enable_thinking": False}, {"other": 1}]
    mixed = decoded(Dataset.from_dict({"messages": conversations, "chat_template_kwargs": settings}), given)
    alone = decoded(Dataset.from_dict({"messages": conversations[:1]}), given)
    assert mixed[1] == alone[0] != mixed[0]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"messages": [user(), assistant()], "tools": "[{"}, "Column 'tools' of row 0 is not JSON"),
        ({"messages": [user(), assistant()], "tools": "{}"}, "Column 'tools' of row 0 holds dict, not a list"),
        (
            {"messages": [user(), assistant()], "chat_template_kwargs": "x"},
            "'chat_template_kwargs' of row 0 holds str",
        ),
        ({"prompt": "a", "completion": "b", "tools": "[1]"}, "Row 0 has 'tools', .*its prompt is text"),
        ({"instruction": "a", "output": "b", "chat_template_kwargs": {"x": 1}}, "Row 0 has 'chat_template_kwargs'"),
        ({"messages": [user(None), assistant()]}, "row 0 has a content of type NoneType"),
        (
            {"messages": [user([{"type": "image", "url": "x"}]), assistant([{"type": "text", "url": "x"}])]},
            "a part of type 'image'",
        ),
        ({"text": [1]}, "Column 'text' of row 0 holds list"),
        *(
            (
                {"messages": [user(), assistant()], "chat_template_kwargs": {name: True}},
                f"row 0 sets '{name}', which is not a variable",
            )
            for name in ("add_generation_prompt", "continue_final_message", "tokenize", "tools", "conversation")
        ),
        *(
            (
                {"conversations": [{"from": name, "value": text} for name, text in turns]},
                f"omits the content of the role '{role}' in row 0",
            )
            for role, turns in {
                "observation": [("human", "x"), ("gpt", "call"), ("observation", "42"), ("gpt", "y")],
                "function_call": [("human", "x"), ("function_call", "f()"), ("tool", "42"), ("gpt", "y")],
                "bot": [("bot", "z"), ("human", "x"), ("gpt", "y")],
            }.items()
        ),
    ],
)
def test_rows_that_cannot_be_rendered(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        tokenize_dataset(Dataset.from_list([row]), tokenizer(TEMPLATES["qwen3"]), max_length=None)


def test_whole_texts_have_no_prompts_to_complete() -> None:
    with pytest.raises(ValueError, match=r"whole texts in 'text', without prompts.*lmbda=0"):
        tokenize_dataset(Dataset.from_dict({"text": ["x"]}), tokenizer(), max_length=None, with_prompts=True)


def test_rows_with_a_different_end_of_the_prompt_are_counted() -> None:
    given = tokenizer(TEMPLATES["nemotron_3_nano"])
    rows = [{"messages": [user(), assistant(text)]} for text in ("2 * x", "<think>\nhm\n</think>\n2 * x")]
    _, report = tokenize_dataset(Dataset.from_list(rows), given, max_length=None)
    assert (report.kept, report.rerendered, report.is_clean) == (2, 1, False)
    assert "In 1 rows the conversation" in report.summary()
