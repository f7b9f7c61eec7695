"""Removal of near-duplicate questions.

The paper does not describe it. Self-Instruct (arXiv 2212.10560) uses a ROUGE-L threshold of 0.7 over all words, which
marks 186 of MBPP's 500 test problems as duplicates although all are distinct: most of each is "Write a python function
to find the". Here two questions are duplicates if they are similar both in all words and in the words that are not
common to programming tasks. A question is compared only with earlier ones that share one of its rarest words.
"""

import re
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from functools import partial

from rapidfuzz.distance import LCSseq

from .records import Question

__all__ = ["UNSPACED", "NoveltyIndex", "content_words", "filter_novel", "rouge_l"]

_COMMON = frozenset(
    "a an the to of in for with and or that which is are be by from on as at it its this these those if then such "
    "use using used uses given give gives write writes create creates implement define make develop generate build "
    "design construct find function functions program programs python code method script task take takes taking "
    "return returns returned returning output outputs input inputs print prints accept accepts should can will you "
    "your please following".split()
) | frozenset("请編编写實实现個个一函数程序代码返回给定输入出使用的了并且和を書いてください関数返すのはがにで")
UNSPACED = r"[\u0e00-\u0e7f\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003134f]"
"""Letters of scripts without spaces between words (Han, Kana, Thai), each of which counts as a word."""
_WORD = re.compile(rf"{UNSPACED}|(?:(?!{UNSPACED})\w)+")


def content_words(words: Sequence[str]) -> list[str]:
    """Return the lower-case words that are not common to programming tasks.

    Example:

    ```python
    >>> content_words("write a function that takes a string as input and returns its length".split())
    ['string', 'length']

    ```
    """
    return [word for word in words if word not in _COMMON]


class NoveltyIndex:
    """Index of questions for finding near-duplicates.

    They are near-duplicates if ROUGE-L reaches the threshold both over all words and over content words. Texts without
    words must be equal.

    Two texts of m and n words with a ROUGE-L of t share at least s = t (m + n) / 2 words. So the second has one of any
    m - s + 1 words of the first, and only texts with one of the rarest words are compared (prefix filtering,
    [Bayardo et al., 2007](https://doi.org/10.1145/1242572.1242591)).

    Args:
        threshold (`float`, *optional*, defaults to `0.8`):
            Minimum ROUGE-L of near-duplicates.

    Raises:
        ValueError: If `threshold` is outside its range.

    Example:

    ```python
    >>> index = NoveltyIndex()
    >>> index.add("Write a function that sorts a list of numbers in descending order.")
    >>> index.nearest("Implement a function that sorts a list of numbers in descending order.")
    'Write a function that sorts a list of numbers in descending order.'
    >>> index.nearest("Print the longest line of a file.")

    ```
    """

    def __init__(self, threshold: float = 0.8) -> None:
        if not 0.0 < threshold <= 1.0:
            raise ValueError(f"`threshold` is {threshold}; give a ROUGE-L above 0 and at most 1.")
        self._threshold = threshold
        self._texts: list[str] = []
        self._views: list[tuple[list[str], list[str]]] = []  # all words and content words of each text
        self._with_word: dict[int, dict[str, array[int]]] = {}  # numbers of the texts, by their length and a word
        self._counts: Counter[str] = Counter()  # number of texts with each word
        self._words: dict[str, str] = {}  # one object per word, to save memory

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """Add a text."""
        words = [self._words.setdefault(word, word) for word in _words(text)]
        numbered, with_word = _numbered(words), self._with_word.setdefault(len(words), {})
        self._counts.update(numbered)
        for word in numbered:
            with_word.setdefault(word, array("I")).append(len(self._texts))
        self._texts.append(text)
        self._views.append(_views(words))

    def nearest(self, text: str) -> str | None:
        """Return the first near-duplicate, or `None`."""
        views = _views(_words(text))
        for number in self._candidates(views[0]):
            if all(map(self._are_similar, views, self._views[number])):
                return self._texts[number]
        return None

    def _candidates(self, words: Sequence[str]) -> list[int]:
        """Return the numbers of the texts that have one of the rarest words, of which a near-duplicate has one."""
        found: set[int] = set()
        rarest_first = sorted(_numbered(words), key=lambda word: self._counts[word])
        for length, with_word in self._with_word.items():
            most = min(len(words), length)
            if self._is_enough(most, len(words), length):
                enough = partial(self._is_enough, length=len(words), other=length)
                fewest = bisect_left(range(most), True, key=enough)
                found.update(*(with_word.get(word, ()) for word in rarest_first[: len(words) - fewest + 1]))
        return sorted(found)

    def _are_similar(self, first: Sequence[str], second: Sequence[str]) -> bool:
        if not self._is_enough(min(len(first), len(second)), len(first), len(second)):
            return False
        return self._is_enough(LCSseq.similarity(first, second), len(first), len(second))

    def _is_enough(self, shared: int, length: int, other: int) -> bool:
        return _f_measure(shared, length, other) >= self._threshold


def filter_novel(questions: Sequence[Question], index: NoveltyIndex) -> list[Question]:
    """Return the questions that have no near-duplicate in the index, and add them to it one after another.

    The result depends on the order of the questions, but not on how they are divided into calls.

    Example:

    ```python
    >>> questions = [Question("1", "Sort a list."), Question("2", "Sort a LIST!"), Question("3", "Add two numbers.")]
    >>> [question.id for question in filter_novel(questions, NoveltyIndex())]
    ['1', '3']

    ```
    """
    kept = []
    for question in questions:
        if index.nearest(question.instruction) is None:
            index.add(question.instruction)
            kept.append(question)
    return kept


def rouge_l(left: str, right: str) -> float:
    """Return the F-measure of ROUGE-L (Lin, 2004; β = 1) of lower-case words: 2 LCS / (m + n).

    Words consist of letters, digits and underscores of any script, whereas Google's `rouge-score` drops non-ASCII
    characters. In Chinese, Japanese and Thai, each character is a word. A text without words counts as one word.

    Example:

    ```python
    >>> rouge_l("the quick brown fox", "The quick, lazy fox")
    0.75

    ```
    """
    first, second = _words(left), _words(right)
    return _f_measure(LCSseq.similarity(first, second), len(first), len(second))


def _f_measure(shared: int, length: int, other: int) -> float:
    return 2 * shared / (length + other)


def _views(words: list[str]) -> tuple[list[str], list[str]]:
    """Return all words of a text, and its content words, or all words if there are none."""
    return words, content_words(words) or words


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold()) or [text.strip()]


def _numbered(words: Sequence[str]) -> list[str]:
    """Return words of which no two are equal: further occurrences have a number."""
    seen: Counter[str] = Counter()
    numbered = []
    for word in words:
        numbered.append(f"{word} {seen[word]}" if seen[word] else word)
        seen[word] += 1
    return numbered
