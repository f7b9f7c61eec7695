"""Tokenization, counts and batches of pairs."""

import pytest
from datasets import Dataset

from tests import tiny
from trl_akd.data.templates import render
from trl_akd.iterkd.pairs import DataCollatorForPairs, PairEncoder, number_of_answers, prepare_pairs


def prepare(rows, **settings):
    dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
    return prepare_pairs(dataset, PairEncoder(tiny.tokenizer(), **settings))


def text(tokens):
    return tiny.tokenizer().decode(tokens)


def row(completion="a + b", rejected=(), prompt="sum\n"):
    return {"prompt": prompt, "completion": completion, "rejected": list(rejected)}


def test_answers_are_kept_truncated_or_dropped():
    rows = [
        row("x" * 30, ["a" * 15, "a" * 16]),  # 20 tokens less 4 of prompt leave 16, EOS included
        row("ok", ["", " ", "ok", "no", "no", "never", "but"]),
        row(prompt="p" * 20),
        row("  "),
        row("lone"),
    ]
    pairs, report = prepare(rows, max_length=20, max_faults=2)
    assert [text(answer) for answer in pairs["completion"]] == ["x" * 16, "ok<|endoftext|>", "lone<|endoftext|>"]
    faults = [[text(fault).removesuffix("<|endoftext|>") for fault in faults] for faults in pairs["rejected"]]
    assert faults == [["a" * 15], ["no", "never"], []]
    assert pairs["first_answer"] == [0, 2, 5] and number_of_answers(pairs) == 6
    assert {text(prompt) for prompt in pairs["prompt"]} == {"sum\n"}
    counts = (report.rows, report.kept, report.cut, report.too_long, report.empty)
    assert counts == (5, 3, 1, 1, 1)
    left_out = (report.faults_too_long, report.faults_empty, report.faults_repeated, report.faults_beyond)
    assert (report.faults, left_out) == (3, (1, 2, 2, 1))


def test_instructions_go_through_the_template():
    rows = [{"instruction": "Add.", "input": "1, 2", "completion": "3", "rejected": []}]
    pairs, _ = prepare(rows)
    assert text(pairs[0]["prompt"]) == render("alpaca", "Add.", "1, 2")
    pairs, _ = prepare([{"instruction": "Add.", "completion": "3"}], prompt_template="starcoder")
    assert text(pairs[0]["prompt"]) == render("starcoder", "Add.")


def test_tokenized_pairs_are_unchanged_and_faults_can_be_excluded():
    pairs, _ = prepare([row(rejected=["a - b"])], max_faults=0)
    assert pairs[0]["rejected"] == []
    assert prepare(pairs) == (pairs, None)


def test_shuffled_pairs_have_distinct_answer_ids():
    rows = [row("a" * index, ["b" * k for k in range(1, index)]) for index in range(1, 6)]
    pairs, _ = prepare_pairs(Dataset.from_list(rows), PairEncoder(tiny.tokenizer()), shuffle_seed=1)
    numbers = [first + k for first, faults in zip(pairs["first_answer"], pairs["rejected"], strict=True)
               for k in range(1 + len(faults))]  # fmt: skip
    assert sorted(numbers) == list(range(number_of_answers(pairs)))


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"completion": "x"}], {}, "'prompt' is missing"),
        ([{"prompt": "x"}], {}, "'completion' is missing"),
        ([{"prompt": 3, "completion": "x"}], {}, "Column 'prompt' of row 0 holds int"),
        ([{"prompt": "p", "completion": "x", "rejected": [1]}], {}, "Column 'rejected' of row 0 holds int"),
        ([row(prompt="p" * 9), row("")], {"max_length": 8}, "1 prompts leave no room within max_length=8, and 1 "),
        ([row()], {"max_length": 1}, "give at least 2"),
        ([row()], {"max_faults": -1}, "`max_faults` is -1"),
        ([row()], {"prompt_template": "alpacca"}, "Did you mean 'alpaca'"),
    ],
)
def test_bad_input(rows, settings, message):
    with pytest.raises(ValueError, match=message):
        prepare(rows, **settings)


def test_batches():
    pairs, _ = prepare([row("aa", ["b", "ccc"]), row("d"), row("e", ["ff"])])
    batch = DataCollatorForPairs(pad_token_id=256, pad_to_multiple_of=4)(list(pairs))
    labels = [text([token for token in row if token != -100]) for row in batch["labels"].tolist()]
    assert [label.removesuffix("<|endoftext|>") for label in labels] == ["aa", "d", "e", "b", "ccc", "ff"]
    assert batch["fault_rows"].tolist() == [[3, 4], [-1, -1], [5, -1]]
    assert batch["answer_ids"].tolist() == [0, 3, 4, 1, 2, 5]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (6, 8)
    assert batch["attention_mask"].sum(1).tolist() == [7, 6, 6, 6, 8, 7]
    alone = DataCollatorForPairs(pad_token_id=256)([pairs[1]])
    assert alone["fault_rows"].shape == (1, 0)
