import json
import random
import re
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_akd.iterkd.cycle import novelty
from trl_akd.iterkd.cycle.novelty import NoveltyIndex, content_words, filter_novel, rouge_l
from trl_akd.iterkd.cycle.records import Question

from . import scripted

words = st.lists(st.sampled_from("sort a the list of numbers print größe 数 n1".split()), max_size=12)
texts = words.map(" ".join)


def lcs(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence, by dynamic programming."""
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, first in enumerate(left, 1):
        for j, second in enumerate(right, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if first == second else max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


def f_measure(left: list[str], right: list[str]) -> float:
    """ROUGE-L as Lin defines it: from precision and recall, β = 1."""
    common = lcs(left, right)
    if common == 0:
        return 0.0
    precision, recall = common / len(right), common / len(left)
    return 2 * precision * recall / (precision + recall)


def questions(instructions: list[str]) -> list[Question]:
    return [Question(str(number), instruction) for number, instruction in enumerate(instructions)]


def kept_by_brute_force(instructions: list[str], threshold: float) -> list[int]:
    kept: list[int] = []
    for number, text in enumerate(instructions):
        if all(rouge_l(text, instructions[earlier]) < threshold for earlier in kept):
            kept.append(number)
    return kept


@given(words.filter(bool), words.filter(bool))
def test_rouge_l_is_lins_f_measure(left, right):
    found = rouge_l(" ".join(left).upper(), ", ".join(right))
    assert found == pytest.approx(f_measure(left, right), abs=1e-12)
    assert found == rouge_l(" ".join(right), " ".join(left))


@pytest.mark.parametrize(
    "left, right, same",
    [
        ("", "", True), ("?!", " ?!", True), ("?!", "!", False),
        ("", "word", False), ("Sort.", "sort", True), ("a", "b", False),
    ],
)  # fmt: skip
def test_short_texts(left, right, same):
    index = NoveltyIndex()
    index.add(left)
    assert (index.nearest(right) is not None) == same


def test_the_threshold_itself_is_a_duplicate():
    seven = "one two three four five six seven"
    index = NoveltyIndex(0.7)
    index.add(f"{seven} x y z")
    assert index.nearest(f"{seven} p q r") and not index.nearest(f"{seven} p q r s")


@settings(max_examples=30)
@given(st.lists(texts, max_size=20), st.lists(st.integers(0, 20), max_size=4))
def test_division_into_calls_does_not_matter(instructions, cuts):
    asked = questions(instructions)
    at_once = filter_novel(asked, NoveltyIndex())
    index = NoveltyIndex()
    bounds = [0, *sorted(cuts), len(asked)]
    in_batches = [question for start, end in pairwise(bounds) for question in filter_novel(asked[start:end], index)]
    assert at_once == in_batches
    assert len(index) == len(at_once)


@settings(max_examples=30)
@given(st.lists(texts, max_size=20))
def test_filtering_is_idempotent(instructions):
    kept = filter_novel(questions(instructions), NoveltyIndex())
    assert filter_novel(kept, NoveltyIndex()) == kept
    index = NoveltyIndex()
    for question in kept:
        index.add(question.instruction)
    assert filter_novel(questions(instructions), index) == []


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.9, 1.0])
def test_candidates_are_not_missed(threshold):
    """For texts of all similarities, the same are kept as by brute force."""
    rng = random.Random(0)
    stock = [f"w{number}" for number in range(60)]
    instructions = []
    for _ in range(60):
        base = rng.choices(stock, k=rng.randint(3, 30))
        instructions.append(" ".join(base))
        changed = [rng.choice(stock) if rng.random() < 0.25 else word for word in base]
        instructions.append(" ".join(changed))
    kept = [int(question.id) for question in filter_novel(questions(instructions), NoveltyIndex(threshold))]
    assert kept == kept_by_brute_force(instructions, threshold)
    assert threshold == 1.0 or len(kept) < len(instructions)


def test_pairs_at_the_threshold_are_found():
    """Texts with a ROUGE-L of exactly 0.7: 14 of 20 words in common, the others different."""
    for number in range(300):
        common = [f"w{number}x{word}" for word in range(14)]
        left, right = (" ".join([*common, *(f"{side}{number}x{word}" for word in range(6))]) for side in "lr")
        index = NoveltyIndex(0.7)
        index.add(left)
        assert index.nearest(right) == left


def similar_by_brute_force(first: str, second: str, threshold: float) -> bool:
    def content(text: str) -> str:
        return " ".join(content_words(re.findall(r"\w+", text.casefold()))) or text

    return all(rouge_l(view(first), view(second)) >= threshold for view in (str, content))


@settings(max_examples=200)
@given(
    st.lists(st.one_of(texts, st.text("aß! \n_1write", max_size=12)), max_size=12),
    st.sampled_from([0.05, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0]),
)
def test_the_first_duplicate_of_both_views_is_found(instructions, threshold):
    index = NoveltyIndex(threshold)
    for number, text in enumerate(instructions):
        similar = (known for known in instructions[:number] if similar_by_brute_force(text, known, threshold))
        assert index.nearest(text) == next(similar, None)
        index.add(text)


@pytest.mark.parametrize("shared", [13, 16])
def test_questions_with_few_shared_words_are_not_compared(monkeypatch: pytest.MonkeyPatch, shared: int):
    compared = []
    similarity = novelty.LCSseq.similarity
    counting = SimpleNamespace(similarity=lambda first, second: compared.append(1) or similarity(first, second))
    monkeypatch.setattr(novelty, "LCSseq", counting)
    wording = " ".join(f"shared{number}" for number in range(shared))
    asked = questions([f"{wording} {' '.join(f'w{n}x{word}' for word in range(8))}" for n in range(100)])
    assert filter_novel(asked, NoveltyIndex()) == asked
    assert not compared, "they need 17 of 21 or 20 of 24 words in common for a ROUGE-L of 0.8"


def test_words_that_repeat_count_each_time():
    index = NoveltyIndex(0.7)
    index.add("no " * 10 + "one two three")
    assert index.nearest("no " * 10 + "four five six") is not None


def test_all_earlier_questions_are_compared():
    index = NoveltyIndex()
    for text in ("Sort a list.", "Sort a list!"):
        index.add(text)
    assert len(index) == 2
    assert filter_novel(questions(["sort a LIST", "Add numbers."]), index) == [Question("1", "Add numbers.")]


def test_problems_that_share_only_their_wording_are_new():
    """MBPP's 500 test problems are distinct; ROUGE-L of 0.7 over all words drops 186 of them."""
    mbpp = [json.loads(line)["text"] for line in scripted.data("mbpp/mbpp.jsonl").open()][10:510]
    assert len(mbpp) == 500 and len(filter_novel(questions(mbpp), NoveltyIndex())) >= 470


def test_most_texts_with_one_word_replaced_are_not_new():
    mbpp = [json.loads(line)["text"] for line in scripted.data("mbpp/mbpp.jsonl").open()][10:510]
    source = random.Random(0)
    found = 0
    for text in mbpp:
        edited = text.split()
        edited[source.randrange(len(edited))] = "other"
        index = NoveltyIndex()
        index.add(text)
        found += index.nearest(" ".join(edited)) is not None
    assert found >= 430


@pytest.mark.parametrize(
    "first, second, all_words, content",
    [
        pytest.param(
            "Write a Python function to find the largest of the given numbers.",
            "Write a Python function to find the median of the given numbers.",
            True, False, id="the same wording, other content",
        ),
        pytest.param(
            "Write a function that takes a list and returns its median.",
            "Find the median of this list of numbers. The list is given as input to your program.",
            False, False, id="other wording, other content",
        ),
        pytest.param(
            "Write a Python function that takes a string as input and returns it reversed.",
            "As input a Python function takes a string and returns it reversed. Write that.",
            False, True, id="the same content and words, in another order",
        ),
        pytest.param(
            "Write a function to reverse a string.",
            "Write a method to reverse a string.",
            True, True, id="one common word replaced",
        ),
    ],
)  # fmt: skip
def test_duplicates_are_similar_in_all_words_and_in_content_words(first, second, all_words, content):
    def common_to_tasks_removed(text):
        return " ".join(content_words(text.lower().replace(".", "").replace(",", "").replace(":", "").split()))

    assert (rouge_l(first, second) >= 0.8) == all_words
    assert (rouge_l(common_to_tasks_removed(first), common_to_tasks_removed(second)) >= 0.8) == content
    index = NoveltyIndex(0.8)
    index.add(first)
    assert (index.nearest(second) is not None) == (all_words and content)


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.1, float("nan")])
def test_thresholds_outside_the_range_are_refused(threshold):
    with pytest.raises(ValueError, match="`threshold` is"):
        NoveltyIndex(threshold)


def test_code_alpaca_has_near_duplicates_and_soda_none():
    alpaca = [f"{row['instruction']}\n{row['input']}" for row in scripted.rows("code_alpaca/code_alpaca_2k.json")][
        :500
    ]
    kept = [int(question.id) for question in filter_novel(questions(alpaca), NoveltyIndex())]
    assert set(kept) >= set(kept_by_brute_force(alpaca, 0.8)), "all words alone would keep no other"
    soda = [row["instruction"] for row in scripted.soda("new_data.json")]
    assert len(filter_novel(questions(soda), NoveltyIndex())) == len(soda) == 100


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("编写一个函数,返回列表中的最大值。", "请编写一个函数,返回列表中的最大值。"),
        ("编写一个函数返回两个数的最大公约数", "编写一个函数返回两个整数的最大公约数"),
        ("リストの最大値を返す関数を書いてください。", "リストの最大値を返す関数を書いて下さい。"),
        ("เขียนฟังก์ชันที่คืนค่ามากที่สุดในรายการ", "จงเขียนฟังก์ชันที่คืนค่ามากที่สุดในรายการ"),
    ],
)
def test_texts_without_spaces_are_compared_by_characters(old: str, new: str):
    index = NoveltyIndex()
    index.add(old)
    assert index.nearest(new) == old
    for other in ("编写一个函数返回两个数的最小公倍数", "リストを逆順に並べる関数を書いてください。"):
        assert index.nearest(other) is None
