"""Removal of near-duplicate questions.

The paper does not describe it. Self-Instruct (arXiv 2212.10560) uses a ROUGE-L threshold of 0.7 over all words, which
marks 186 of MBPP's 500 test problems as duplicates although all are distinct: most of each is "Write a python function
to find the". Here two questions are duplicates if they are similar both in all words and in the words that are not
common to programming tasks. MinHash finds the candidates among earlier questions.
"""

import re
from collections import Counter
from collections.abc import Sequence

from datasketch import MinHash, MinHashLSH
from rapidfuzz.distance import LCSseq

from .records import Question

__all__ = ["NoveltyIndex", "content_words", "filter_novel", "rouge_l"]

_COMMON = frozenset(
    "a an the to of in for with and or that which is are be by from on as at it its this these those if then such "
    "use using used uses given give gives write writes create creates implement define make develop generate build "
    "design construct find function functions program programs python code method script task take takes taking "
    "return returns returned returning output outputs input inputs print prints accept accepts should can will you "
    "your please following".split()
)
_WORD = re.compile(r"\w+")
_PERMUTATIONS = 128
_RECALL = 0.999
_EMPTY = MinHash(num_perm=_PERMUTATIONS)


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

    Candidates come from locality-sensitive hashing of MinHash signatures, over words numbered by occurrence. They are
    near-duplicates if ROUGE-L reaches the threshold both over all words and over content words. A ROUGE-L of t implies
    a Jaccard similarity of at least t / (2 - t), of which the bands find 99.9 %. Texts without words must be equal.

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
        self._lsh = MinHashLSH(num_perm=_PERMUTATIONS, params=_bands(threshold / (2 - threshold)))

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """Add a text."""
        self._lsh.insert(len(self._texts), _signature(text), check_duplication=False)
        self._texts.append(text)

    def nearest(self, text: str) -> str | None:
        """Return the first near-duplicate, or `None`."""
        candidates = [self._texts[number] for number in sorted(self._lsh.query(_signature(text)))]
        return next((known for known in candidates if self._are_similar(text, known)), None)

    def _are_similar(self, first: str, second: str) -> bool:
        return all(rouge_l(view(first), view(second)) >= self._threshold for view in (str, _content))


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
    characters. A text without words counts as one word.

    Example:

    ```python
    >>> rouge_l("the quick brown fox", "The quick, lazy fox")
    0.75

    ```
    """
    first, second = _words(left), _words(right)
    return 2 * LCSseq.similarity(first, second) / (len(first) + len(second))


def _content(text: str) -> str:
    """Return the content words of a text, or all words if there are none."""
    return " ".join(content_words(_words(text))) or text


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold()) or [text.strip()]


def _signature(text: str) -> MinHash:
    """Return the MinHash of the words of a text, with each occurrence as a separate word."""
    seen: Counter[str] = Counter()
    numbered = []
    for word in _words(text):
        numbered.append(f"{word} {seen[word]}".encode())
        seen[word] += 1
    signature = _EMPTY.copy()
    signature.update_batch(numbered)
    return signature


def _bands(jaccard: float) -> tuple[int, int]:
    """Return the numbers of bands and rows that find pairs of this similarity with the required recall."""
    for rows in range(8, 1, -1):
        bands = _PERMUTATIONS // rows
        if 1 - (1 - jaccard**rows) ** bands >= _RECALL:
            return bands, rows
    return _PERMUTATIONS, 1
