"""Decontamination: removal of questions that repeat a benchmark, word for word or with small edits.

The paper does not describe it. The data of DeepSeek-Coder (arXiv 2401.14196) were filtered by 10-grams of words, which
find long problems. Short problems are found by their statements, allowing for a few edits, and by the signatures and
names of the requested functions.
"""

import logging
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from .novelty import UNSPACED, content_words
from .records import Question

__all__ = ["BenchmarkIndex", "Overlap", "decontaminate", "warn_of_overlap"]

logger = logging.getLogger(__name__)

_WORD = re.compile(rf"{UNSPACED}|(?:(?!{UNSPACED})[^\W_])+")
_UNSPACED = re.compile(UNSPACED)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
_DOCSTRING = re.compile(r"(?:\"{3}|'{3})(.*?)(?:\"{3}|'{3})", re.DOTALL)
_EXAMPLES = re.compile(
    r">>>|^[^\w\n]*+(?:for )?examples?\b.{0,20}$|^[^\w\n]*+for (?:example|instance)\b"
    r"|^[ \t]*+[\w.]+\(.*\)\s*(?:==|=>|->|➞|=|returns?)",
    re.IGNORECASE | re.MULTILINE,
)
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")
_SIGNATURE = re.compile(r"\bdef[ \t]+(\w+)[ \t]*\(([^()]*(?:\([^()]*\)[^()]*)*)\)")
_CALL = re.compile(r"\b([A-Za-z_]\w*)[ \t]*\(")
_CODE = re.compile(r"\s*(?:from \w+ import|import|def|class|assert|@)\b")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_MAX_STATEMENT = 40
_WORDS_PER_EDIT = 8
_MIN_EDITED = 7
_MIN_PARAGRAPH = 8
_MIN_PART = 4
_CONTENT_SHARE = 0.25
_MIN_NAME_WORDS = 3
_STOCK_SHARE = 0.05
_STOCK_TEXTS = 5


@dataclass(frozen=True, slots=True)
class Overlap:
    """Text of a benchmark that a question repeats.

    `words` is the repeated text of problem number `index` of the benchmark, and `edits` the number of words that are
    replaced, omitted, added or swapped with their neighbors.
    """

    question_id: str
    benchmark: str
    index: int
    words: str
    edits: int = 0


class BenchmarkIndex:
    """Index of benchmark problems for finding questions that repeat them.

    | part of a problem | match in a question |
    |---|---|
    | n-gram of words | exact |
    | statement | exact; one edit from 7 words, one edit per 8 words from 16 words |
    | function signature with at least two words in the name and two parameters | exact |
    | function name of at least three words | exact |

    Statements are the whole text, docstrings with and without their examples and the first paragraph (each of at least
    4 words), and other paragraphs of at least 8 words. They have at most 40 words, as n-grams find longer ones. Words
    consist of letters and digits in lower case, so punctuation, layout and `snake_case` do not matter. Paragraphs that
    many problems of a benchmark share, such as "Your code must pass these tests", are ignored, and so are n-grams in
    which less than a quarter of the words are content words.

    Each Chinese, Japanese or Thai character is a word, and counts as half a word in these numbers.

    Args:
        benchmarks (`Mapping[str, Iterable[str]]`):
            Texts of each benchmark, such as prompts and problem statements, by its name.
        n (`int`, *optional*, defaults to `10`):
            Number of words of an n-gram.

    Raises:
        ValueError: If `n` is outside its range.
        TypeError: If a benchmark is a single text.

    Example:

    ```python
    >>> index = BenchmarkIndex({"toy": ["Write code for the sum of two numbers."]})
    >>> index.find(Question("1", "Kindly write code for the sum of two integers."))
    Overlap(question_id='1', benchmark='toy', index=0, words='write code for the sum of two numbers', edits=1)
    >>> index.find(Question("2", "Return the product of three numbers."))

    ```
    """

    def __init__(self, benchmarks: Mapping[str, Iterable[str]], n: int = 10) -> None:
        if n < 1:
            raise ValueError(f"`n` is {n}; give at least 1 word, such as 10.")
        self._n = n
        self._ngrams: dict[str, tuple[str, int]] = {}
        self._statements: dict[tuple[str, ...], tuple[str, int]] = {}
        self._functions: dict[str, tuple[str, int]] = {}
        for name, texts in benchmarks.items():
            if isinstance(texts, str):
                raise TypeError(f"the benchmark {name!r} is one text; put it in a list.")
            self._add(name, list(texts))
        self._pieces: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
        for statement in self._statements:
            for start, end in _pieces(statement):
                self._pieces[" ".join(statement[start:end])].append((statement, start))
        self._lengths = sorted({piece.count(" ") + 1 for piece in self._pieces})

    def find(self, question: Question) -> Overlap | None:
        """Return the first overlap of a question, or `None`: n-grams first, then statements, then functions."""
        words = _words(question.instruction)
        for ngram in _ngrams(words, self._n):
            if ngram in self._ngrams:
                return Overlap(question.id, *self._ngrams[ngram], ngram)
        found = self._statement_in(words)
        if found is not None:
            statement, edits = found
            return Overlap(question.id, *self._statements[statement], " ".join(statement), edits)
        for function in _functions(question.instruction):
            if function in self._functions:
                return Overlap(question.id, *self._functions[function], function)
        return None

    def _add(self, name: str, texts: Sequence[str]) -> None:
        shared = Counter(part for text in texts for part in set(_statements(text)))
        stock = {part for part, count in shared.items() if count > max(_STOCK_TEXTS, _STOCK_SHARE * len(texts))}
        for number, text in enumerate(texts):
            source = (name, number)
            for ngram in _ngrams(_words(_without(text, stock)), self._n):
                self._ngrams.setdefault(ngram, source)
            for statement in _statements(text):
                if statement not in stock and not all(word.isdigit() for word in statement):
                    self._statements.setdefault(statement, source)
            for function in _functions(text):
                self._functions.setdefault(function, source)

    def _statement_in(self, words: Sequence[str]) -> tuple[tuple[str, ...], int] | None:
        """Return the statement that the words contain with the smallest number of edits, and that number."""
        best: tuple[int, int, tuple[str, ...]] | None = None
        for length in self._lengths:
            for position in range(len(words) - length + 1):
                for statement, start in self._pieces.get(" ".join(words[position : position + length]), ()):
                    allowed = _allowed_edits(statement)
                    begin = max(0, position - start - allowed)
                    edits = _edits_inside(statement, words[begin : position - start + len(statement) + allowed])
                    if edits <= allowed and (best is None or (edits, -len(statement)) < best[:2]):
                        best = (edits, -len(statement), statement)
        return None if best is None else (best[2], best[0])


def decontaminate(questions: Sequence[Question], index: BenchmarkIndex) -> tuple[list[Question], list[Overlap]]:
    """Return the questions that do not repeat a benchmark, and the overlaps of the others.

    Example:

    ```python
    >>> questions = [Question("1", "Reverse a string."), Question("2", "Reverse a list.")]
    >>> kept, [overlap] = decontaminate(questions, BenchmarkIndex({"toy": ["Reverse a string!"]}))
    >>> kept[0].id, overlap.words
    ('2', 'reverse a string')

    ```
    """
    found = [(question, index.find(question)) for question in questions]
    return [question for question, overlap in found if not overlap], [overlap for _, overlap in found if overlap]


def warn_of_overlap(seeds: Sequence[Question], index: BenchmarkIndex) -> list[Overlap]:
    """Log a warning if seed questions repeat a benchmark, and return the overlaps; the questions are kept."""
    _, overlaps = decontaminate(seeds, index)
    if overlaps:
        first = overlaps[0]
        logger.warning(
            f"{len(overlaps)} of {len(seeds)} seed questions repeat a benchmark, so its results may be contaminated; "
            f"{first.question_id!r} has {first.words!r} of {first.benchmark} number {first.index}."
        )
    return overlaps


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _ngrams(words: Sequence[str], n: int) -> Iterator[str]:
    """Yield the n-grams in which at least a quarter of the words are neither numbers nor common to all tasks."""
    are_content = [bool(content_words([word])) and not word.isdigit() for word in words]
    ends = list(accumulate(map(_size, words), initial=0.0))
    for start in range(len(words)):
        end = bisect_left(ends, ends[start] + n)
        if end < len(ends) and sum(are_content[start:end]) >= _CONTENT_SHARE * (end - start):
            yield " ".join(words[start:end])


def _size(word: str) -> float:
    return 0.5 if _UNSPACED.fullmatch(word) else 1.0


def _statements(text: str) -> list[tuple[str, ...]]:
    """Return the statements of a text as words."""
    docstrings = _DOCSTRING.findall(text)
    parts = [tuple(_words(part)) for part in (*docstrings, *(_EXAMPLES.split(part)[0] for part in docstrings))]
    prose = _PARAGRAPHS.split("\n\n".join(_FENCE.split(text)[::2]))
    first, *others = [words for part in prose if not _CODE.match(part) and (words := tuple(_words(part)))] or [()]
    parts += [first, *(words for words in others if sum(map(_size, words)) >= _MIN_PARAGRAPH)]
    found = dict.fromkeys([tuple(_words(text)), *(words for words in parts if sum(map(_size, words)) >= _MIN_PART)])
    return [words for words in found if words and sum(map(_size, words)) <= _MAX_STATEMENT]


def _without(text: str, stock: set[tuple[str, ...]]) -> str:
    """Return a text without the given paragraphs."""
    return "\n\n".join(part for part in _PARAGRAPHS.split(text) if tuple(_words(part)) not in stock)


def _functions(text: str) -> Iterator[str]:
    """Yield the signatures and the long names of the functions that a text defines or calls."""
    for name, parameters in _SIGNATURE.findall(text):
        split = re.split(r",(?![^\[\]]*\])", parameters)  # at commas outside of brackets
        names = [re.split(r"[:=]", parameter)[0].strip(" *") for parameter in split]
        if len(_name_words(name)) >= 2 and len(list(filter(None, names))) >= 2:
            yield f"{name}({', '.join(names)})"
    for name in _CALL.findall(text):
        if len(_name_words(name)) >= _MIN_NAME_WORDS:
            yield name


def _name_words(name: str) -> list[str]:
    return [word for word in _CAMEL.sub("_", name).split("_") if word]


def _allowed_edits(statement: Sequence[str]) -> int:
    size = sum(map(_size, statement))
    return 0 if size < _MIN_EDITED else max(1, int(size / _WORDS_PER_EDIT))


def _pieces(statement: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Return the bounds of pieces of a statement, two per allowed edit and one more, so that one piece is unedited.

    A swap of neighbors may edit two pieces.
    """
    number = 2 * _allowed_edits(statement) + 1
    bounds = [round(part * len(statement) / number) for part in range(number + 1)]
    return pairwise(bounds)


def _edits_inside(statement: Sequence[str], window: Sequence[str]) -> int:
    """Return the minimum number of edits from a part of the window to the statement (optimal string alignment)."""
    before: list[int] = []
    row = [0] * (len(window) + 1)
    for number, word in enumerate(statement, 1):
        following = [number]
        for place, other in enumerate(window, 1):
            cost = min(row[place] + 1, following[place - 1] + 1, row[place - 1] + (word != other))
            if number > 1 and place > 1 and word == window[place - 2] and statement[number - 2] == other:
                cost = min(cost, before[place - 2] + 1)
            following.append(cost)
        before, row = row, following
    return min(row)
