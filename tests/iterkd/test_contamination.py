import gzip
import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_akd.iterkd.contamination import BenchmarkIndex, decontaminate, warn_of_overlap
from trl_akd.iterkd.records import Question

from . import scripted

words = st.lists(st.sampled_from("sum of two numbers in a list 3 7".split()), max_size=12)


@pytest.fixture(scope="module")
def benchmarks() -> dict[str, list[str]]:
    with gzip.open(scripted.data("humaneval/HumanEval.jsonl.gz"), "rt") as file:
        humaneval = [json.loads(line)["prompt"] for line in file]
    mbpp = [json.loads(line)["text"] for line in scripted.data("mbpp/mbpp.jsonl").open()]
    apps = [path.read_text() for path in sorted(scripted.data("apps").glob("*/*/question.txt"))]
    return {"humaneval": humaneval, "mbpp": mbpp, "apps": apps}


@pytest.fixture(scope="module")
def index(benchmarks) -> BenchmarkIndex:
    return BenchmarkIndex(benchmarks)


def questions(texts: list[str]) -> list[Question]:
    return [Question(str(number), text) for number, text in enumerate(texts)]


def test_every_problem_is_found_also_inside_longer_text_and_other_layout(benchmarks, index):
    assert {name: len(texts) for name, texts in benchmarks.items()} == {"humaneval": 164, "mbpp": 974, "apps": 10}
    for name, texts in benchmarks.items():
        for number, text in enumerate(texts):
            alone = index.find(Question("q", text))
            inside = index.find(
                Question("q", f"Please do this.\n\n> {text.upper()!s}\n\nExplain each step; use no loops.")
            )
            relaid = index.find(Question("q", " ".join(text.split()).replace("_", " ").replace(",", " ,")))
            assert alone and inside and relaid, (name, number)


@pytest.mark.parametrize(
    "path, total, found",
    [
        ("code_alpaca/code_alpaca_2k.json", 2017, {"mbpp": 2, "humaneval": 1}),
        ("code_alpaca/new_codealpaca.json", 4535, {"humaneval": 30, "mbpp": 9}),
        ("soda/new_data.json", 100, {"humaneval": 1}),
        ("soda/pairwise_data.json", 100, {"humaneval": 2}),
    ],
)
def test_most_instructions_pass(index, path, total, found):
    asked = questions([row["instruction"] + "\n" + row.get("input", "") for row in scripted.rows(path)])
    kept, overlaps = decontaminate(asked, index)
    counts = {name: sum(overlap.benchmark == name for overlap in overlaps) for name in found}
    assert (len(asked), counts) == (total, found)
    assert len(kept) + len(overlaps) == total


def test_the_authors_own_questions_repeat_humaneval(index):
    """`count_up_to`, HumanEval/96, to be written in Rust."""
    _, [overlap] = decontaminate(questions([row["instruction"] for row in scripted.soda("new_data.json")]), index)
    assert (overlap.benchmark, overlap.index) == ("humaneval", 96)


def contains(text: list[str], run: list[str]) -> bool:
    return any(text[start : start + len(run)] == run for start in range(len(text) - len(run) + 1))


@settings(deadline=None)
@given(st.lists(words, max_size=4), words, st.integers(1, 6))
def test_an_overlap_is_a_run_in_both(texts, asked, n):
    """By brute force: any run of n words, or the whole of a shorter text, that is not numbers alone."""
    runs = [
        text[start : start + min(n, len(text))] for text in texts if text for start in range(max(len(text) - n, 0) + 1)
    ]
    expected = any(contains(asked, run) for run in runs if not all(word.isdigit() for word in run))
    overlap = BenchmarkIndex({"b": [" ".join(text) for text in texts]}, n).find(Question("q", " ".join(asked)))
    assert (overlap is not None) == expected
    if overlap:
        run = overlap.words.split()
        assert contains(asked, run) and contains(texts[overlap.index], run)


def test_a_text_shorter_than_n_counts_as_a_whole():
    index = BenchmarkIndex({"short": ["Reverse a string."]})
    assert index.find(Question("1", "Write code to reverse a string in C."))
    assert index.find(Question("2", "Reverse the string.")) is None


def test_texts_without_words_or_with_numbers_alone_match_nothing():
    index = BenchmarkIndex({"numbers": ["", "??", "1 2 3 4 5 6 7 8 9 10 11"]})
    assert index.find(Question("1", "Sort 1 2 3 4 5 6 7 8 9 10 11")) is None
    assert index.find(Question("2", "")) is None


def test_seeds_are_warned_of_and_stay(caplog):
    index = BenchmarkIndex({"toy": ["Reverse a string."]})
    seeds = questions(["Reverse a string.", "Sort a list."])
    with caplog.at_level(logging.WARNING):
        assert [overlap.question_id for overlap in warn_of_overlap(seeds, index)] == ["0"]
        assert warn_of_overlap(seeds[1:], index) == []
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 2 seeds repeat a benchmark, so results on it may come from memory; '0' has 'reverse a string' of toy "
        "number 0."
    ]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="`n` is 0"):
        BenchmarkIndex({}, 0)
    with pytest.raises(TypeError, match="'toy' is one text"):
        BenchmarkIndex({"toy": "Reverse a string."})
