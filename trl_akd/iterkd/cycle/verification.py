"""Verification of pairs: correct answers must be correct, and faulty ones faulty.

The paper does not describe any checks, and some of the released faults are correct programs or reveal their fault. The
rules here are this project's: tests if there are any, else running as main programs, else a judge.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ...execution import ExecutionResult, Tests
from ...generation import parse_answer
from ...generation.answers import extract_program
from ..judge.judges import Judge
from ..judge.rubric import Judgement
from .answers import has_code, identity, may_be_another_language, python_program, refuses
from .leaks import find_leak
from .main_programs import Verdict, lacks_resources, run_main_programs, run_present
from .records import Fault, Pair, Question, Runner

__all__ = ["Verification", "verify"]


@dataclass(frozen=True, slots=True)
class Verification:
    """Pairs with their verified faults, correct answers without one, and number of dropped answers by reason.

    Reasons are `"correct/..."`, once per question, whose faults then do not count, and `"fault/..."`, once per fault.
    """

    pairs: list[Pair] = field(default_factory=list)
    without_fault: list[Pair] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def verify(
    pairs: Sequence[Pair],
    *,
    run: Runner | None = None,
    judge: Judge | None = None,
    min_gap: float = 2.0,
    unverified: Literal["drop", "keep"] = "drop",
) -> Verification:
    """Keep correct answers that are correct, with faults that are faulty and do not reveal it, all without thoughts.

    | reason | meaning |
    |---|---|
    | `correct/refused`, `fault/refused` | empty, or an apology without code |
    | `correct/wrong` | the program fails its tests or, without tests, fails as a main program |
    | `correct/unverified` | no verified fault, and running does not show whether the answer is correct |
    | `fault/no_code` | only prose |
    | `fault/same` | same program as the correct answer, except for layout, comments and docstrings |
    | `fault/duplicate` | same program as an earlier fault of the question |
    | `fault/leaks` | words or names that reveal the fault, see `leaks.find_leak` |
    | `fault/none` | the program passes the tests, or the judge finds no fault |
    | `fault/unverified` | decided neither by running nor by the judge |

    Running decides if only the correct program passes the tests or, without tests, only the correct program succeeds
    as a main program (see `main_programs`). A program for which a resource is missing is neither correct nor wrong. If
    running does not decide, the judge must give the correct answer at least `min_gap` points more.

    Undecided faults, and undecided correct answers without a fault, are kept if `unverified` is `"keep"`. The judge is
    called once.

    Example:

    ```python
    >>> faults = (Fault("one = 2  # wrong", "logical"), Fault("one = 3", "logical"))
    >>> done = verify([Pair(Question("one", "Let one be 1."), "one = 1", faults)], unverified="keep")
    >>> done.pairs[0].faults, dict(done.dropped)
    ((Fault(text='one = 3', kind='logical'),), {'fault/leaks': 1})

    ```
    """
    dropped: Counter[str] = Counter()
    answered = [pair for pair in map(_without_thoughts, pairs) if not refuses(pair.correct)]
    dropped["correct/refused"] = len(pairs) - len(answered)
    verdicts = _verdicts_of_correct(answered, run)
    dropped["correct/wrong"] = verdicts.count("fail")
    screened = [
        (_screen(pair, dropped), verdict)
        for pair, verdict in zip(answered, verdicts, strict=True)
        if verdict != "fail"
    ]
    are_faults = iter(_are_faults(screened, run, judge, min_gap))
    pairs_kept, without_fault = [], []
    for pair, verdict in screened:
        kept = [fault for fault in pair.faults if _is_kept(next(are_faults), unverified, dropped)]
        if kept:
            pairs_kept.append(replace(pair, faults=tuple(kept)))
        elif verdict == "pass" or unverified == "keep":
            without_fault.append(replace(pair, faults=()))
        else:
            dropped["correct/unverified"] += 1
    return Verification(pairs_kept, without_fault, +dropped)


def _without_thoughts(pair: Pair) -> Pair:
    """Return a pair without thoughts; an answer with an unclosed thought is empty."""
    faults = tuple(replace(fault, text=_answer_text(fault.text)) for fault in pair.faults)
    return replace(pair, correct=_answer_text(pair.correct), faults=faults)


def _answer_text(text: str) -> str:
    answer = parse_answer(text)
    return answer.text.strip() if answer.thoughts or not answer.thoughts_closed else text


def _screen(pair: Pair, dropped: Counter[str]) -> Pair:
    """Drop the faults that their text disqualifies."""
    seen = {identity(pair.correct): "same"}
    kept = []
    for fault in pair.faults:
        reason = _reason_to_drop(fault.text, pair, seen)
        if reason is None:
            kept.append(fault)
            seen[identity(fault.text)] = "duplicate"
        else:
            dropped[f"fault/{reason}"] += 1
    return replace(pair, faults=tuple(kept))


def _reason_to_drop(fault: str, pair: Pair, seen: dict[str, str]) -> str | None:
    if refuses(fault):
        return "refused"
    if not has_code(fault):
        return "no_code"
    if (known := seen.get(identity(fault))) is not None:
        return known
    return "leaks" if find_leak(fault, instruction=pair.question.instruction, correct=pair.correct) else None


def _are_faults(
    screened: Sequence[tuple[Pair, Verdict]], run: Runner | None, judge: Judge | None, min_gap: float
) -> list[bool | None]:
    """Return whether each fault is faulty, in order; `None` if undecided."""
    faults = [(pair, fault, verdict) for pair, verdict in screened for fault in pair.faults]
    verdicts = _run(run, [(pair.question, fault.text) for pair, fault, _ in faults])
    found = [
        _is_fault(pair.question, correct, verdict)
        for (pair, _, correct), verdict in zip(faults, verdicts, strict=True)
    ]
    undecided = [index for index, is_fault in enumerate(found) if is_fault is None]
    if judge is not None and undecided:
        gaps = _gaps(judge, [faults[index][:2] for index in undecided])
        for index, gap in zip(undecided, gaps, strict=True):
            found[index] = None if gap is None else gap >= min_gap
    return found


def _is_kept(is_fault: bool | None, unverified: Literal["drop", "keep"], dropped: Counter[str]) -> bool:
    if is_fault is None and unverified == "drop":
        dropped["fault/unverified"] += 1
        return False
    if is_fault is False:
        dropped["fault/none"] += 1
        return False
    return True


def _run(run: Runner | None, answers: Sequence[tuple[Question, str]]) -> list[Verdict]:
    """Run answers with their tests, or as main programs without tests."""
    if run is None:
        return ["unknown"] * len(answers)
    tested = [(extract_program(answer), question.tests) if question.tests else None for question, answer in answers]
    results = run_present(run, tested)
    untested = [None if question.tests else python_program(answer) for question, answer in answers]
    outcomes = run_main_programs(run, untested)
    return [
        outcome.verdict if job is None or result is None else _verdict(result, job[1])
        for job, result, outcome in zip(tested, results, outcomes, strict=True)
    ]


def _verdict(result: ExecutionResult, tests: Tests) -> Verdict:
    if result.passed:
        return "pass"
    return "unknown" if result.status == "infra_error" or lacks_resources(result, tests) else "fail"


def _verdicts_of_correct(pairs: Sequence[Pair], run: Runner | None) -> list[Verdict]:
    """Run the correct answers; one that fails without tests may be in another language than Python."""
    verdicts = _run(run, [(pair.question, pair.correct) for pair in pairs])
    return [
        "unknown"
        if verdict == "fail" and not pair.question.tests and may_be_another_language(pair.correct)
        else verdict
        for pair, verdict in zip(pairs, verdicts, strict=True)
    ]


def _is_fault(question: Question, correct: Verdict, faulty: Verdict) -> bool | None:
    """Return whether a faulty answer is faulty; a main program that succeeds proves nothing."""
    if faulty == "unknown" or correct != "pass":
        return None
    if faulty == "fail":
        return True
    return False if question.tests else None


def _gaps(judge: Judge, faults: Sequence[tuple[Pair, Fault]]) -> list[float | None]:
    """Return the difference between the totals of the correct answer and each fault; `None` without a judgement."""
    correct = [(pair.question.instruction, pair.correct) for pair, _ in faults]
    faulty = [(pair.question.instruction, fault.text) for pair, fault in faults]
    answers = list(dict.fromkeys([*correct, *faulty]))
    judgements = dict(zip(answers, judge.judge(answers), strict=True))
    found = [(judgements[high], judgements[low]) for high, low in zip(correct, faulty, strict=True)]
    return [
        high.total - low.total if isinstance(high, Judgement) and isinstance(low, Judgement) else None
        for high, low in found
    ]
