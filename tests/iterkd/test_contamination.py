import gzip
import json
import logging
import random
import time
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_akd.iterkd.cycle.contamination import BenchmarkIndex, decontaminate, warn_of_overlap
from trl_akd.iterkd.cycle.records import Question

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


@pytest.mark.parametrize("kind", ["replaced", "deleted", "added", "swapped"])
def test_most_problems_with_one_word_edited_are_found(benchmarks, index, kind):
    source = random.Random(0)
    texts = source.sample(benchmarks["mbpp"], 150) + source.sample(benchmarks["humaneval"], 30)
    assert sum(index.find(Question("q", edited(text, kind, source))) is not None for text in texts) >= 0.95 * len(
        texts
    )


def edited(text: str, kind: str, source: random.Random) -> str:
    words = text.split(" ")
    place = source.randrange(len(words) - 1)
    new = {
        "replaced": ["other"],
        "deleted": [],
        "added": ["other", words[place]],
        "swapped": [words[place + 1], words[place]],
    }[kind]
    return " ".join([*words[:place], *new, *words[place + 1 + (kind == "swapped") :]])


@pytest.mark.parametrize(
    "layout", ["{}", 'def f(x):\n    """\n    {}\n    """', "### Instruction:\n{}\n\n### Response:\n"]
)
def test_short_statements_are_found_though_the_benchmark_has_them_among_tests(layout):
    """With the texts of `trl-akd iterkd`: MBPP's with tests, HumanEval's with signatures and examples."""
    statements = ["Write a function to sort a matrix.", "Find the parity of a number.", "Add two numbers x and y"]
    tests = "\n\nYour code must pass these tests:\n\n```python\nassert f({}) == 1\n```"
    given = [statements[0] + tests.format(1), statements[1] + tests.format(2)]
    given += [f'\n\ndef add(x: int, y: int):\n    """{statements[2]}\n    >>> add(2, 3)\n    5\n    """\n']
    index = BenchmarkIndex({"toy": given})
    assert [index.find(Question("q", layout.format(text))).index for text in statements] == [0, 1, 2]
    assert index.find(Question("q", "Your code must pass these tests: assert g(3) == 2")) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Explain def has_close_elements(numbers, threshold): ...", True),
        ("Call has_close_elements(xs, 1) twice.", True),
        ("def max_pair(a, b): pass", True),
        ("def max_pair(a): pass", False),
        ("def is_prime(n): pass", False),
    ],
)
def test_functions_are_found_by_signature_or_long_name(text, found):
    index = BenchmarkIndex(
        {"toy": ["def has_close_elements(numbers: List[float], threshold: float) -> bool: ...",
                 "def max_pair(a: int, b: int = 0): return max(a, b)", "def is_prime(n): return n > 1"]}
    )  # fmt: skip
    assert (index.find(Question("q", text)) is not None) is found


@pytest.mark.parametrize(
    "path, total, most",
    [
        ("code_alpaca/code_alpaca_2k.json", 2017, 10),
        ("soda/new_data.json", 100, 1),
        ("soda/pairwise_data.json", 100, 3),
    ],
)
def test_most_instructions_pass(index, path, total, most):
    """Few questions of other datasets match a benchmark; SODA contains HumanEval/26, /96 and /113."""
    asked = questions([row["instruction"] + "\n" + row.get("input", "") for row in scripted.rows(path)])
    kept, overlaps = decontaminate(asked, index)
    assert len(asked) == total == len(kept) + len(overlaps)
    assert 0 < len(overlaps) <= most


def test_released_questions_repeat_humaneval(index):
    """`count_up_to`, HumanEval/96, as a task in Rust."""
    _, [overlap] = decontaminate(questions([row["instruction"] for row in scripted.soda("new_data.json")]), index)
    assert (overlap.benchmark, overlap.index) == ("humaneval", 96)


def alignment(statement: list[str], window: list[str]) -> int:
    """Optimal string alignment by its recurrence."""

    @cache
    def cost(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        costs = [cost(i - 1, j) + 1, cost(i, j - 1) + 1, cost(i - 1, j - 1) + (statement[i - 1] != window[j - 1])]
        if i > 1 and j > 1 and statement[i - 1] == window[j - 2] and statement[i - 2] == window[j - 1]:
            costs.append(cost(i - 2, j - 2) + 1)
        return min(costs)

    return cost(len(statement), len(window))


@settings(max_examples=60)
@given(st.lists(words.filter(bool), max_size=3), words)
def test_a_statement_is_found_with_the_edits_that_its_length_allows(texts, asked):
    """By brute force over all parts of the question."""
    texts = [text for text in texts if not all(word.isdigit() for word in text)]
    parts = [asked[start:end] for start in range(len(asked) + 1) for end in range(start, len(asked) + 1)]
    allowed = {7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 1}
    expected = any(alignment(text, part) <= allowed.get(len(text), 0) for text in texts for part in parts)
    overlap = BenchmarkIndex({"b": [" ".join(text) for text in texts]}, n=13).find(Question("q", " ".join(asked)))
    assert (overlap is not None) == expected


def test_a_text_shorter_than_n_counts_as_a_whole():
    index = BenchmarkIndex({"short": ["Reverse a string."]})
    assert index.find(Question("1", "Write code to reverse a string in C."))
    assert index.find(Question("2", "Reverse the string.")) is None


def test_texts_without_words_match_nothing():
    index = BenchmarkIndex({"numbers": ["", "??", "1 2 3 4 5 6 7 8 9 10 11"]})
    assert index.find(Question("1", "Sort 1 2 3 4 5 6 7 8 9 10 11")) is None
    assert index.find(Question("2", "")) is None


@pytest.mark.parametrize("line", ["\n", " \n", "--\n", "a()\n", "a(\n", "for \n"], ids=repr)
def test_long_docstrings_take_little_time(line):
    start = time.process_time()
    BenchmarkIndex({"toy": [f'"""Reverse a string.{line * 20_000}b"""']})
    assert time.process_time() - start < 10.0  # once 50 s


def test_seed_questions_are_kept_with_a_warning(caplog):
    index = BenchmarkIndex({"toy": ["Reverse a string."]})
    seeds = questions(["Reverse a string.", "Sort a list."])
    with caplog.at_level(logging.WARNING):
        assert [overlap.question_id for overlap in warn_of_overlap(seeds, index)] == ["0"]
        assert warn_of_overlap(seeds[1:], index) == []
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 2 seed questions repeat a benchmark, so its results may be contaminated; '0' has 'reverse a string' "
        "of toy number 0."
    ]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="`n` is 0"):
        BenchmarkIndex({}, 0)
    with pytest.raises(TypeError, match="'toy' is one text"):
        BenchmarkIndex({"toy": "Reverse a string."})


def test_texts_without_spaces_are_compared_by_characters():
    problem = "求两个正整数的最大公约数和最小公倍数,并按从小到大的顺序输出所有公约数。"
    index = BenchmarkIndex({"b": [problem, "编写一个函数返回两个数的最大公约数", "リストの最大値を返す関数を書く。"]})
    for repeated in [
        f"请用Python编写程序{problem}",
        "编写一个函数返回两个整数的最大公约数",
        "リストの最大値を返す関数を書く",
    ]:
        assert index.find(Question("q", repeated)) is not None
    for other in [
        "编写一个函数返回两个数的最小公倍数",
        "编写一个函数,返回列表中出现次数最多的元素。",
        "リストの平均値を返す関数を書いてください。",
    ]:
        assert index.find(Question("q", other)) is None
