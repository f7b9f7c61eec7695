"""Feedback-based knowledge update: new questions by how hard the last ones were, and the next cycle's mix.

Three levels, and what the teacher is asked on each, are on record; how many questions, which ones they are written
after and how old and new are mixed are this project's choices.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..generation import TextGenerator
from .asking import INCOMPLETE, Sampling
from .new_questions import check_question, read_question
from .records import LEVELS, Level, Question
from .teaching_prompts import TeachingPrompts

__all__ = ["Graded", "MixConfig", "Renewal", "UpdateConfig", "mix", "renew"]


class Graded(Protocol):
    """What the feedback says of a question."""

    @property
    def question_id(self) -> str:
        """The question."""

    @property
    def level(self) -> Level:
        """How hard it is for the student."""


@dataclass(frozen=True)
class UpdateConfig:
    """Hold how many new questions are asked for, and how long they may be.

    Args:
        easy (`int`, *optional*, defaults to `100`):
            New questions to ask for after easy ones.
        medium (`int`, *optional*, defaults to `200`):
            New questions to ask for after medium ones.
        hard (`int`, *optional*, defaults to `200`):
            New questions to ask for after hard ones.
        min_chars (`int`, *optional*, defaults to `20`):
            Fewest characters of a question; the authors' own have 68 to 2,574.
        max_chars (`int`, *optional*, defaults to `4000`):
            Most characters of a question.
        seed (`int`, *optional*, defaults to `0`):
            Which questions new ones are written after, where there are more than are needed.

    Raises:
        ValueError: If a value is outside its range.
    """

    easy: int = 100
    medium: int = 200
    hard: int = 200
    min_chars: int = 20
    max_chars: int = 4000
    seed: int = 0

    def __post_init__(self) -> None:
        for level in LEVELS:
            if getattr(self, level) < 0:
                raise ValueError(f"`{level}` is {getattr(self, level)}; give 0 or more new questions.")
        if not 1 <= self.min_chars <= self.max_chars:
            raise ValueError(
                f"`min_chars` is {self.min_chars} and `max_chars` {self.max_chars}; give 1 or more, the larger second."
            )


@dataclass(frozen=True)
class MixConfig:
    """Hold what the next cycle's questions are made of.

    Args:
        size (`int`, *optional*, defaults to `1000`):
            Most questions of a cycle.
        old_share (`float`, *optional*, defaults to `0.5`):
            Fraction of `size` that old questions take, if there are as many. They fill up what new ones leave.
        easy (`float`, *optional*, defaults to `1.0`):
            Parts of easy questions, among old and new ones alike; 0 leaves them out.
        medium (`float`, *optional*, defaults to `2.0`):
            Parts of medium questions, likewise.
        hard (`float`, *optional*, defaults to `2.0`):
            Parts of hard questions, likewise.
        seed (`int`, *optional*, defaults to `0`):
            Which questions of a level are taken.

    Raises:
        ValueError: If a value is outside its range.
    """

    size: int = 1000
    old_share: float = 0.5
    easy: float = 1.0
    medium: float = 2.0
    hard: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"`size` is {self.size}; a cycle needs at least 1 question.")
        if not 0.0 <= self.old_share <= 1.0:
            raise ValueError(f"`old_share` is {self.old_share}; give a fraction from 0 to 1.")
        for level in LEVELS:
            if not 0.0 <= getattr(self, level) < float("inf"):
                raise ValueError(f"`{level}` is {getattr(self, level)}; give a finite number of parts, 0 or more.")
        if not any(getattr(self, level) for level in LEVELS):
            raise ValueError("`easy`, `medium` and `hard` are all 0; give at least one level a part.")


@dataclass(frozen=True, slots=True)
class Renewal:
    """Hold what the teacher made of the last cycle's questions.

    Args:
        questions (`list[Question]`):
            New questions, easy ones first.
        asked (`Counter[str]`):
            How many were asked for, by level; none where the level has no question to write after.
        dropped (`Counter[str]`):
            How many answers were no question, by level and reason, such as `"hard/refused"`.
    """

    questions: list[Question] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


def renew(
    feedback: Sequence[Graded],
    questions: Sequence[Question],
    teacher: TextGenerator,
    *,
    cycle: int,
    prompts: TeachingPrompts | None = None,
    sampling: Sampling | None = None,
    config: UpdateConfig | None = None,
) -> Renewal:
    """Have the teacher write new questions after those of the last cycle, by their levels.

    After an easy question comes another task of the same domain; after a medium or hard one, a task of the same domain
    and type (on record). A new question's id is that of the one before it, the cycle and a number, so that it depends
    on nothing else. Where a level has fewer questions than are wanted, several are written after each.

    Args:
        feedback (`Sequence[Graded]`):
            Levels of questions.
        questions (`Sequence[Question]`):
            The last cycle's questions.
        teacher (`TextGenerator`):
            Who writes.
        cycle (`int`):
            Number of the cycle.
        prompts (`TeachingPrompts`, *optional*):
            How the teacher is asked.
        sampling (`Sampling`, *optional*):
            How its answers are sampled.
        config (`UpdateConfig`, *optional*):
            How many questions, and how long.

    Raises:
        ValueError: If there is feedback on an unknown question, or a new id is taken already.
        GenerationError: If the teacher fails.

    Example:

    ```python
    >>> from collections import namedtuple
    >>> from trl_akd.generation import Completion
    >>> class Teacher:
    ...     def generate(self, prompts, **settings):
    ...         return [[Completion("#Created Instruction#: Sort a list of names.", -0.1, "stop", 9)] for _ in prompts]
    >>> graded = namedtuple("graded", "question_id level")("sort", "hard")
    >>> renewal = renew([graded], [Question("sort", "Sort numbers.")], Teacher(), cycle=1, config=UpdateConfig(hard=1))
    >>> renewal.questions
    [Question(id='sort/1.0', instruction='Sort a list of names.', ..., origin='hard', parent='sort')]

    ```
    """
    config, sampling, prompts = config or UpdateConfig(), sampling or Sampling(), prompts or TeachingPrompts()
    known = {question.id: question for question in questions}
    wanted = [
        (level, parent, f"{parent.id}/{cycle}.{number}")
        for level in LEVELS
        for parent, number in _parents(_of_level(feedback, known, level), getattr(config, level), config.seed, cycle)
    ]
    if taken := [name for _, _, name in wanted if name in known]:
        raise ValueError(f"`questions` has the id {taken[0]!r} of a new one already; give `cycle` another number.")
    written = sampling.ask(teacher, [prompts.for_question(parent.instruction, level) for level, parent, _ in wanted])
    renewal = Renewal(asked=Counter(level for level, _, _ in wanted))
    for (level, parent, name), completion in zip(wanted, written, strict=True):
        text = read_question(completion.text)
        reason = check_question(text, min_chars=config.min_chars, max_chars=config.max_chars)
        if completion.finish_reason != "stop":
            reason = INCOMPLETE[completion.finish_reason]
        if reason is None:
            renewal.questions.append(Question(name, text, origin=level, parent=parent.id))
        else:
            renewal.dropped[f"{level}/{reason}"] += 1
    return renewal


def mix(
    seeds: Sequence[Question], new: Sequence[Question], levels: Mapping[str, Level], config: MixConfig
) -> list[Question]:
    """Choose the next cycle's questions from old and new ones, in their order, old ones first.

    Each question goes to the level that has least for its part so far, as long as it has any; so the parts are kept
    wherever there are enough, and the size is reached wherever there are enough in all.

    Args:
        seeds (`Sequence[Question]`):
            Old questions.
        new (`Sequence[Question]`):
            New ones, whose level is that of the question they were written after.
        levels (`Mapping[str, Level]`):
            Levels of the old ones by id.
        config (`MixConfig`):
            How many, and of what.

    Raises:
        ValueError: If an old question has no level, or a new one no question that it was written after.

    Example:

    ```python
    >>> old = [Question("a", ""), Question("b", ""), Question("c", "")]
    >>> new = [Question("a/1.0", "", origin="easy"), Question("b/1.0", "", origin="hard")]
    >>> levels = {"a": "easy", "b": "hard", "c": "hard"}
    >>> [question.id for question in mix(old, new, levels, MixConfig(size=3, old_share=0.3))]
    ['c', 'a/1.0', 'b/1.0']

    ```
    """
    old_levels = [_level(question, levels.get(question.id), "old") for question in seeds]
    new_levels = [_level(question, None if question.origin == "seed" else question.origin, "new") for question in new]
    old = _choose(seeds, old_levels, round(config.size * config.old_share), config)
    fresh = _choose(new, new_levels, config.size - len(old), config)
    old = _choose(seeds, old_levels, config.size - len(fresh), config)
    return [*old, *fresh]


def _of_level(feedback: Sequence[Graded], known: Mapping[str, Question], level: Level) -> list[Question]:
    for item in feedback:
        if item.question_id not in known:
            raise ValueError(f"`feedback` is on {item.question_id!r}, which is not among `questions`.")
    return [known[item.question_id] for item in feedback if item.level == level]


def _parents(questions: Sequence[Question], count: int, seed: int, cycle: int) -> list[tuple[Question, int]]:
    """Return so many questions in an order of their own, each with the number of times it came before."""
    if not questions:
        return []
    ordered = sorted(questions, key=lambda question: _draw(question, seed, cycle))
    return [(ordered[number % len(ordered)], number // len(ordered)) for number in range(count)]


def _level(question: Question, level: Level | None, age: str) -> Level:
    if level is None:
        raise ValueError(f"The {age} question {question.id!r} has no level; leave it out or give it one.")
    return level


def _choose(questions: Sequence[Question], levels: Sequence[Level], count: int, config: MixConfig) -> list[Question]:
    """Choose so many questions at most, by the parts of the levels."""
    pools: dict[Level, list[int]] = {level: [] for level in LEVELS if getattr(config, level)}
    for index in sorted(range(len(questions)), key=lambda index: _draw(questions[index], config.seed)):
        if levels[index] in pools:
            pools[levels[index]].append(index)
    taken: dict[Level, int] = dict.fromkeys(pools, 0)
    for _ in range(count):
        having = [level for level in pools if taken[level] < len(pools[level])]
        if not having:
            break
        taken[min(having, key=lambda level: (taken[level] + 1) / getattr(config, level))] += 1
    chosen = sorted(index for level, pool in pools.items() for index in pool[: taken[level]])
    return [questions[index] for index in chosen]


def _draw(question: Question, *seed: int) -> float:
    """Return a number that depends on seed and question alone."""
    return random.Random(f"{seed}:{question.id}").random()
