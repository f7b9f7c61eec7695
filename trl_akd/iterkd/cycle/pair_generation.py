"""Generation of pairs: correct and faulty answers of the teacher, verified (stage 1 of a cycle)."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from ...generation import Completion, TextGenerator
from ..judge.judges import Judge
from .config import CycleConfig
from .prompts import INCOMPLETE, complete
from .records import Fault, FaultKind, Pair, Question, Runner
from .verification import Verification, verify

__all__ = ["assign_kinds", "generate_pairs", "read_pairs"]


def generate_pairs(
    questions: Sequence[Question],
    teacher: TextGenerator,
    *,
    config: CycleConfig | None = None,
    judge: Judge | None = None,
    run: Runner | None = None,
    own_faults: Mapping[str, Sequence[str]] | None = None,
) -> Verification:
    r"""Generate a correct answer and faulty ones to each question, and keep those that pass verification.

    In the paper, the teacher writes faults of five kinds. One kind per prompt, all checks, and the use of faulty
    answers of the student are choices of this project. No correct answer is requested for a question that has one. All
    answers are requested in one call, including faults of questions whose correct answer is then dropped. Answers cut
    by the length limit are counted as `correct/truncated` and `fault/truncated`, and prompts that the teacher's server
    refuses as `correct/refused` and `fault/refused`; for other reasons see `verify`.

    Args:
        questions (`Sequence[Question]`), teacher (`TextGenerator`):
            Questions with unique ids, and the teacher that writes the answers.
        config ([`CycleConfig`], *optional*):
            Prompts and sampling parameters, number and kinds of faults, and settings of the verification.
        judge (`Judge`, *optional*), run (`Runner`, *optional*):
            Judge and runner for the verification.
        own_faults (`Mapping[str, Sequence[str]]`, *optional*):
            Faulty answers of the student by question, which precede the teacher's and pass the same checks.

    Raises:
        ValueError: If two questions have the same id.
        GenerationError: If the teacher fails.

    Example:

    ```python
    >>> class Teacher:
    ...     def generate(self, prompts, **settings):
    ...         write = lambda prompt: "return a - b" if "fault" in prompt else "return a + b"
    ...         return [[Completion(f"def add(a, b):\n    {write(prompt)}", -0.1, "stop", 9)] for prompt in prompts]
    >>> verified = generate_pairs([Question("add", "Add.")], Teacher(), config=CycleConfig(keep_unverified=True))
    >>> verified.pairs[0].correct[-5:], verified.pairs[0].faults[0].text[-5:]
    ('a + b', 'a - b')

    ```
    """
    config = config or CycleConfig()
    _check_ids(questions)
    dropped: Counter[str] = Counter()
    pairs = _write_pairs(questions, teacher, config, dropped)
    own = own_faults or {}
    pairs = [
        replace(pair, faults=(*(Fault(text, None) for text in own.get(pair.question.id, ())), *pair.faults))
        for pair in pairs
    ]
    unverified: Literal["drop", "keep"] = "keep" if config.keep_unverified else "drop"
    done = verify(pairs, run=run, judge=judge, min_gap=config.min_gap, unverified=unverified)
    return replace(done, dropped=done.dropped + dropped)


def assign_kinds(question_id: str, config: CycleConfig, seed: int) -> list[FaultKind]:
    """Return the kinds of a question's faults, in rotation from a random start that depends on question and seed."""
    kinds: list[Any] = config.fault_kinds
    first = random.Random(f"{seed}:{question_id}").randrange(len(kinds))
    return [kinds[(first + number) % len(kinds)] for number in range(config.faults_per_question)]


def read_pairs(rows: Iterable[Mapping[str, Any]]) -> list[Pair]:
    """Read pairs in the format of the authors' release: `{"instruction": ..., "response": [correct, faulty, ...]}`.

    The ids of the questions are the indices of the rows. `verify` checks the answers.

    Raises:
        ValueError: If a row has another format.

    Example:

    ```python
    >>> [pair] = read_pairs([{"instruction": "Print 1.", "response": ["print(1)", "print(2)"]}])
    >>> pair.question.id, pair.correct, pair.faults
    ('0', 'print(1)', (Fault(text='print(2)', kind=None),))

    ```
    """
    return [_read_pair(row, index) for index, row in enumerate(rows)]


def _read_pair(row: Mapping[str, Any], index: int) -> Pair:
    instruction, response = row.get("instruction"), row.get("response")
    if not isinstance(instruction, str) or not isinstance(response, list | tuple):
        raise ValueError(f"row {index} lacks a text `instruction` or a list `response`; its keys are {sorted(row)}.")
    if len(response) < 2 or not all(isinstance(answer, str) for answer in response):
        raise ValueError(
            f"`response` of row {index} has {len(response)} entries; give a correct text and at least one faulty one."
        )
    correct, *faults = response
    return Pair(Question(str(index), instruction), correct, tuple(Fault(text, None) for text in faults))


def _check_ids(questions: Sequence[Question]) -> None:
    repeated = [name for name, count in Counter(question.id for question in questions).items() if count > 1]
    if repeated:
        raise ValueError(f"`questions` has the id {repeated[0]!r} more than once; make the ids unique.")


def _write_pairs(
    questions: Sequence[Question], teacher: TextGenerator, config: CycleConfig, dropped: Counter[str]
) -> list[Pair]:
    """Request all answers in one call, and return the complete ones.

    The sampling parameters are the same in all cycles, so that questions of the previous cycle reuse their answers.
    """
    prompts, seed = config.teaching_prompts, config.run_seed
    unanswered = [question for question in questions if question.answer is None]
    requested = [(question, kind) for question in questions for kind in assign_kinds(question.id, config, seed)]
    texts = [prompts.for_answer(question.instruction) for question in unanswered]
    texts += [prompts.for_fault(question.instruction, kind) for question, kind in requested]
    completions = complete(teacher, texts, config.sampling(0))
    correct = {question.id: question.answer for question in questions}
    for question, completion in zip(unanswered, completions[: len(unanswered)], strict=True):
        correct[question.id] = _complete_text(completion, "correct", dropped)
    faults: dict[str, list[Fault]] = {question.id: [] for question in questions}
    for (question, kind), completion in zip(requested, completions[len(unanswered) :], strict=True):
        if correct[question.id] is not None and (text := _complete_text(completion, "fault", dropped)) is not None:
            faults[question.id].append(Fault(text, kind))
    return [
        Pair(question, answer, tuple(faults[question.id]))
        for question in questions
        if (answer := correct[question.id]) is not None
    ]


def _complete_text(completion: Completion, part: str, dropped: Counter[str]) -> str | None:
    """Return the text of a completion, or `None` if it was truncated or refused."""
    if completion.finish_reason != "stop":
        dropped[f"{part}/{INCOMPLETE[completion.finish_reason]}"] += 1
        return None
    return completion.text
