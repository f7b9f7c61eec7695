"""Decontamination: questions that repeat a benchmark, word for word or with small edits.

The paper does not describe a comparison with benchmarks. The data of DeepSeek-Coder (arXiv 2401.14196) were filtered
by runs of ten words, which find long problems. Short problems are found by their statements, with an edit or two, and
by the signatures and names of the functions that they ask for.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .novelty import content_words
from .records import Question

__all__ = ["BenchmarkIndex", "Overlap", "decontaminate", "warn_of_overlap"]

logger = logging.getLogger(__name__)

_WORD = re.compile(r"[^\W_]+")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
_DOCSTRING = re.compile(r"(?:\"{3}|'{3})(.*?)(?:\"{3}|'{3})", re.DOTALL)
_EXAMPLES = re.compile(
    r">>>|^\W*(?:for )?examples?\b.{0,20}$|^\W*for (?:example|instance)\b"
    r"|^\s*[\w.]+\(.*\)\s*(?:==|=>|->|➞|=|returns?)",
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

    Args:
        question_id (`str`):
            Id of the question.
        benchmark (`str`):
            Name of the benchmark.
        index (`int`):
            Index of the problem, from 0.
        words (`str`):
            Words of the benchmark that the question repeats.
        edits (`int`, *optional*, defaults to `0`):
            Number of words replaced, omitted, added or swapped with their neighbours.
    """

    question_id: str
    benchmark: str
    index: int
    words: str
    edits: int = 0


class BenchmarkIndex:
    """Index of the problems of benchmarks, for finding questions that repeat them.

    | part of a problem | match in a question |
    |---|---|
    | run of `n` words | word for word |
    | a statement | in the question: word for word, from 7 words on with one edit, from 16 on with one per 8 words |
    | a function's signature with a name of two words and two parameters, or more | the same |
    | a function's name of three words or more | the same |

    A statement is a text, a docstring, what stands in a docstring above its examples, the first paragraph of a text
    (these parts of at least 4 words), or another paragraph of at least 8; all of at most 40 words, as runs find longer
    ones. Words are letters and digits in lower case, so that punctuation, layout and `snake_case` do not matter.
    Paragraphs that many problems of a benchmark share, such as "Your code must pass these tests", do not count, nor do
    runs of which less than a quarter of the words are neither numbers nor common to all tasks.

    Args:
        benchmarks (`Mapping[str, Iterable[str]]`):
            Texts of each benchmark, such as prompts and problem statements, by its name.
        n (`int`, *optional*, defaults to `10`):
            Words of a run.

    Raises:
        ValueError: If `n` is outside its range.
        TypeError: If a benchmark is a text instead of several.

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
            raise ValueError(f"`n` is {n}; give a run of at least 1 word, such as 10.")
        self._n = n
        self._runs: dict[str, tuple[str, int]] = {}
        self._statements: dict[tuple[str, ...], tuple[str, int]] = {}
        self._functions: dict[str, tuple[str, int]] = {}
        for name, texts in benchmarks.items():
            if isinstance(texts, str):
                raise TypeError(f"Benchmark {name!r} is one text; put it in a list.")
            self._add(name, list(texts))
        self._pieces: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
        for statement in self._statements:
            for start, end in _pieces(len(statement)):
                self._pieces[" ".join(statement[start:end])].append((statement, start))
        self._lengths = sorted({piece.count(" ") + 1 for piece in self._pieces})

    def find(self, question: Question) -> Overlap | None:
        """Return the overlap of a question, or `None`; runs come before statements, and these before functions."""
        words = _words(question.instruction)
        for run in _runs_of(words, self._n):
            if run in self._runs:
                return Overlap(question.id, *self._runs[run], run)
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
            for run in _runs_of(_words(_without(text, stock)), self._n):
                self._runs.setdefault(run, source)
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
                    allowed = _allowed_edits(len(statement))
                    begin = max(0, position - start - allowed)
                    edits = _edits_inside(statement, words[begin : position - start + len(statement) + allowed])
                    if edits <= allowed and (best is None or (edits, -len(statement)) < best[:2]):
                        best = (edits, -len(statement), statement)
        return None if best is None else (best[2], best[0])


def decontaminate(questions: Sequence[Question], index: BenchmarkIndex) -> tuple[list[Question], list[Overlap]]:
    """Return the questions that repeat no benchmark, and the overlaps of the others.

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
    """Log a warning with an example if seed questions, which are kept, repeat a benchmark, and return all overlaps."""
    _, overlaps = decontaminate(seeds, index)
    if overlaps:
        first = overlaps[0]
        logger.warning(
            "%d of %d seeds repeat a benchmark, so results on it may come from memory; %r has %r of %s number %d.",
            len(overlaps), len(seeds), first.question_id, first.words, first.benchmark, first.index,
        )  # fmt: skip
    return overlaps


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _runs_of(words: Sequence[str], length: int) -> Iterator[str]:
    """Yield the runs of `n` words of which at least a quarter are neither numbers nor common to all tasks."""
    telling = [bool(content_words([word])) and not word.isdigit() for word in words]
    for start in range(len(words) - length + 1):
        if sum(telling[start : start + length]) >= _CONTENT_SHARE * length:
            yield " ".join(words[start : start + length])


def _statements(text: str) -> list[tuple[str, ...]]:
    """Return the statements of a text as words, in all forms in which they may be repeated."""
    docstrings = _DOCSTRING.findall(text)
    parts = [tuple(_words(part)) for part in (*docstrings, *(_EXAMPLES.split(part)[0] for part in docstrings))]
    prose = _PARAGRAPHS.split("\n\n".join(_FENCE.split(text)[::2]))
    first, *others = [words for part in prose if not _CODE.match(part) and (words := tuple(_words(part)))] or [()]
    parts += [first, *(words for words in others if len(words) >= _MIN_PARAGRAPH)]
    found = dict.fromkeys([tuple(_words(text)), *(words for words in parts if len(words) >= _MIN_PART)])
    return [words for words in found if 0 < len(words) <= _MAX_STATEMENT]


def _without(text: str, stock: set[tuple[str, ...]]) -> str:
    """Return a text without the paragraphs that many other problems share."""
    return "\n\n".join(part for part in _PARAGRAPHS.split(text) if tuple(_words(part)) not in stock)


def _functions(text: str) -> Iterator[str]:
    """Yield the signatures and the long names of the functions that a text defines or calls."""
    for name, parameters in _SIGNATURE.findall(text):
        names = [re.split(r"[:=]", parameter)[0].strip(" *") for parameter in _split_parameters(parameters)]
        if len(_name_words(name)) >= 2 and len([name for name in names if name]) >= 2:
            yield f"{name}({', '.join(names)})"
    for name in _CALL.findall(text):
        if len(_name_words(name)) >= _MIN_NAME_WORDS:
            yield name


def _split_parameters(parameters: str) -> list[str]:
    """Split at commas outside of brackets."""
    return re.split(r",(?![^\[\]]*\])", parameters)


def _name_words(name: str) -> list[str]:
    return [word for word in _CAMEL.sub("_", name).split("_") if word]


def _allowed_edits(length: int) -> int:
    return 0 if length < _MIN_EDITED else max(1, length // _WORDS_PER_EDIT)


def _pieces(length: int) -> Iterator[tuple[int, int]]:
    """Cut a statement into more pieces than edits are allowed, so that at least one piece is unedited.

    Swapped neighbours may lie in two pieces, which is why there are two pieces per edit and one more.
    """
    number = 2 * _allowed_edits(length) + 1
    bounds = [round(part * length / number) for part in range(number + 1)]
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
