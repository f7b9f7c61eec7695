"""What a teacher has answered, in memory and on disk, and which of it are plans."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TypeAlias

from ..ledger import Ledger
from .plan_checks import check_plan, plan_of_answer

__all__ = ["Answer", "AnswerFile", "Answers", "Key", "judge_answers"]

Key: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """Hold one completion of a request for a plan.

    Args:
        id (`str`):
            The problem.
        shown (`str`):
            Digest of the problem and, where the teacher saw it, the solution.
        prompt (`str`):
            Version of the prompt.
        answer (`str`):
            What the teacher wrote.
        finish_reason (`str`):
            `stop`, `length` or `refused`.
        num_tokens (`int`, *optional*):
            Tokens that it wrote.
        refusal (`str`, *optional*):
            Message of a server that refused the request.
    """

    id: str
    shown: str
    prompt: str
    answer: str
    finish_reason: str
    num_tokens: int | None
    refusal: str | None = None

    @property
    def key(self) -> Key:
        """Return what was asked."""
        return self.id, self.shown, self.prompt


class Answers:
    """Hold answers in memory, by what was asked.

    Args:
        answers (`Mapping[Key, Sequence[Answer]]`, *optional*):
            Those that are there already.
    """

    def __init__(self, answers: Mapping[Key, Sequence[Answer]] = MappingProxyType({})) -> None:
        self.by_key = {key: list(several) for key, several in answers.items()}

    def __getitem__(self, key: Key) -> list[Answer]:
        return self.by_key.setdefault(key, [])

    def append(self, answers: Sequence[Answer]) -> None:
        """Add answers."""
        for answer in answers:
            self[answer.key].append(answer)


class AnswerFile(Answers):
    """Append answers to a file, and know those that are there already.

    Args:
        ledger ([`Ledger`]):
            The file, open.

    Raises:
        ValueError: If a line is no answer.
    """

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger
        for row, where in ledger.read():
            try:
                answer = Answer(**row)
            except TypeError as error:
                raise ValueError(f"{where} is no answer of this package; give another output.") from error
            self[answer.key].append(answer)

    def append(self, answers: Sequence[Answer]) -> None:
        """Add answers, and return once they are on disk.

        Raises:
            OSError: If the disk is full; answers written before are kept.
        """
        self._ledger.append([asdict(answer) for answer in answers])
        super().append(answers)


def judge_answers(answers: Sequence[Answer], *, max_chars: int) -> tuple[list[str], Counter[str]]:
    """Split answers into plans, and counts of the others by what is wrong with them.

    Args:
        answers (`Sequence[Answer]`):
            What a teacher wrote.
        max_chars (`int`):
            Most characters of a plan.
    """
    plans: list[str] = []
    rejected: Counter[str] = Counter()
    for answer in answers:
        if answer.finish_reason == "refused":
            rejected["refused"] += 1
            continue
        plan = plan_of_answer(answer.answer)
        reason = check_plan(plan, truncated=answer.finish_reason == "length", max_chars=max_chars)
        if reason is None:
            plans.append(plan)
        else:
            rejected[reason] += 1
    return plans, rejected
