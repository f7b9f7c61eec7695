"""Which questions repeat a benchmark: n-grams of words that stand in both.

That questions are compared with benchmarks, and how, is not on record. Ten words are what the data of
DeepSeek-Coder (arXiv 2401.14196) were filtered by.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .records import Question

__all__ = ["BenchmarkIndex", "Overlap", "decontaminate", "warn_of_overlap"]

logger = logging.getLogger(__name__)

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """Say what of a benchmark a question repeats.

    Args:
        question_id (`str`):
            The question.
        benchmark (`str`):
            The benchmark's name.
        index (`int`):
            Number of its text, from 0.
        words (`str`):
            The first run of words that both have.
    """

    question_id: str
    benchmark: str
    index: int
    words: str


class BenchmarkIndex:
    """Remember every run of `n` words of benchmarks, and find the first that a question repeats.

    Words are letters and digits in lower case, so that punctuation, layout and `snake_case` do not matter. Of a text
    with fewer than `n` words the whole counts as one run. Runs of numbers alone do not count: many examples have
    `1 2 3 4 5`.

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
    >>> index = BenchmarkIndex({"toy": ["Return the sum of two numbers."]})
    >>> index.find(Question("1", "Kindly return the sum of two numbers, as fast as you can."))
    Overlap(question_id='1', benchmark='toy', index=0, words='return the sum of two numbers')
    >>> index.find(Question("2", "Return the sum of three numbers."))

    ```
    """

    def __init__(self, benchmarks: Mapping[str, Iterable[str]], n: int = 10) -> None:
        if n < 1:
            raise ValueError(f"`n` is {n}; give a run of at least 1 word, such as 10.")
        self._sources: dict[str, tuple[str, int]] = {}
        for name, texts in benchmarks.items():
            if isinstance(texts, str):
                raise TypeError(f"Benchmark {name!r} is one text; put it in a list.")
            for number, text in enumerate(texts):
                words, source = _words(text), (name, number)
                for run in _runs(words, min(n, len(words))):
                    self._sources.setdefault(run, source)
        self._lengths = sorted({run.count(" ") + 1 for run in self._sources})

    def find(self, question: Question) -> Overlap | None:
        """Return the first run that a question repeats, shorter ones before longer ones, or `None`."""
        words = _words(question.instruction)
        for run in (run for length in self._lengths for run in _runs(words, length)):
            if run in self._sources:
                return Overlap(question.id, *self._sources[run], run)
        return None


def decontaminate(questions: Sequence[Question], index: BenchmarkIndex) -> tuple[list[Question], list[Overlap]]:
    """Return the questions that repeat no benchmark, and what the others repeat.

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
    """Log a warning with an example if seeds, which stay, repeat a benchmark; return all that do."""
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


def _runs(words: Sequence[str], length: int) -> Iterator[str]:
    """Yield the runs of so many words that are not numbers alone."""
    for start in range(len(words) - length + 1 if length else 0):
        run = words[start : start + length]
        if not all(word.isdigit() for word in run):
            yield " ".join(run)
