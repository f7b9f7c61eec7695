"""Verification of pairs: correct answers must be correct, and faulty ones faulty.

Some of the authors' released faults are correct programs and some reveal themselves; the paper does not describe any
checks. The rules here are this project's: tests if there are any, else running as main programs, else a judge.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, TypeAlias

from ...execution import ExecutionResult, Tests
from ...generation import parse_answer
from ...generation.answers import extract_program
from ..judge.judges import Judge
from ..judge.rubric import Judgement, Unjudged
from .answers import has_code, identity, may_be_another_language, python_program, refuses
from .leaks import find_leak
from .main_programs import Verdict, lacks_surroundings, run_alone
from .records import Fault, Pair, Question, Runner

__all__ = ["Verification", "verify"]

_Truth: TypeAlias = Literal["right", "wrong", "unknown"]
_TRUTHS: Mapping[Verdict, _Truth] = MappingProxyType({"pass": "right", "fail": "wrong", "unknown": "unknown"})


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of the verification of pairs.

    Args:
        pairs (`list[Pair]`):
            Pairs with their verified faults.
        without_fault (`list[Pair]`):
            Correct answers without a verified fault.
        dropped (`Counter[str]`):
            Number of dropped answers by reason: `"correct/..."` once per question, whose faults then do not count, and
            `"fault/..."` once per fault.
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
    | `fault/no_code` | prose only |
    | `fault/same` | the correct program except for layout, comments and docstrings |
    | `fault/duplicate` | an earlier fault of the question, in the same sense |
    | `fault/leaks` | words or names that reveal the fault, see `leaks.find_leak` |
    | `fault/none` | the program passes the tests, or the judge finds no fault |
    | `fault/unverified` | neither running nor the judge could tell |

    Running tells the two apart by the tests or, without any, where the right program ends well as a main program and
    the other does not (see `main_programs`). A program that lacks its environment is neither right nor wrong. Where
    running does not tell, the judge must give the right answer at least `min_gap` points more.

    Args:
        pairs (`Sequence[Pair]`):
            Pairs to verify.
        run (`Runner`, *optional*):
            Runs programs.
        judge (`Judge`, *optional*):
            Judge of the answers that running does not decide, in one call.
        min_gap (`float`, *optional*, defaults to `2.0`):
            Minimum difference between the judge's totals of correct and faulty answer.
        unverified (`str`, *optional*, defaults to `"drop"`):
            Whether to `"drop"` or `"keep"` undecided faults, and undecided correct answers without a fault.

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
    verdicts = _run(run, [(pair.question, pair.correct) for pair in answered])
    truths = [_truth(pair.question, pair.correct, verdict) for pair, verdict in zip(answered, verdicts, strict=True)]
    dropped["correct/wrong"] = truths.count("wrong")
    screened = [
        (_screen(pair, dropped), truth) for pair, truth in zip(answered, truths, strict=True) if truth != "wrong"
    ]
    found = iter(_faults_found(screened, run, judge, min_gap))
    pairs_kept, without_fault = [], []
    for pair, truth in screened:
        kept = [fault for fault in pair.faults if _counts(next(found), unverified, dropped)]
        if kept:
            pairs_kept.append(replace(pair, faults=tuple(kept)))
        elif truth == "right" or unverified == "keep":
            without_fault.append(replace(pair, faults=()))
        else:
            dropped["correct/unverified"] += 1
    return Verification(pairs_kept, without_fault, +dropped)


def _without_thoughts(pair: Pair) -> Pair:
    """Return a pair without thoughts; an unclosed thought leaves nothing."""
    faults = tuple(replace(fault, text=_answer_alone(fault.text)) for fault in pair.faults)
    return replace(pair, correct=_answer_alone(pair.correct), faults=faults)


def _answer_alone(text: str) -> str:
    answer = parse_answer(text)
    return answer.text.strip() if answer.thoughts or not answer.thoughts_closed else text


def _screen(pair: Pair, dropped: Counter[str]) -> Pair:
    """Drop the faults whose text alone disqualifies them."""
    seen = {identity(pair.correct): "same"}
    kept = []
    for fault in pair.faults:
        reason = _reject(fault.text, pair, seen)
        if reason is None:
            kept.append(fault)
            seen[identity(fault.text)] = "duplicate"
        else:
            dropped[f"fault/{reason}"] += 1
    return replace(pair, faults=tuple(kept))


def _reject(fault: str, pair: Pair, seen: dict[str, str]) -> str | None:
    if refuses(fault):
        return "refused"
    if not has_code(fault):
        return "no_code"
    if (known := seen.get(identity(fault))) is not None:
        return known
    return "leaks" if find_leak(fault, instruction=pair.question.instruction, correct=pair.correct) else None


def _faults_found(
    screened: Sequence[tuple[Pair, _Truth]], run: Runner | None, judge: Judge | None, min_gap: float
) -> list[bool | None]:
    """Return whether each fault is faulty, in order; `None` if undecided."""
    faults = [(pair, fault, truth) for pair, truth in screened for fault in pair.faults]
    verdicts = _run(run, [(pair.question, fault.text) for pair, fault, _ in faults])
    found = [
        _is_fault(pair.question, truth, verdict) for (pair, _, truth), verdict in zip(faults, verdicts, strict=True)
    ]
    open_ = [index for index, verdict in enumerate(found) if verdict is None]
    if judge is not None and open_:
        gaps = _gaps(judge, [faults[index][:2] for index in open_])
        for index, gap in zip(open_, gaps, strict=True):
            found[index] = None if gap is None else gap >= min_gap
    return found


def _counts(is_fault: bool | None, unverified: Literal["drop", "keep"], dropped: Counter[str]) -> bool:
    if is_fault is None and unverified == "drop":
        dropped["fault/unverified"] += 1
        return False
    if is_fault is False:
        dropped["fault/none"] += 1
        return False
    return True


def _run(run: Runner | None, answers: Sequence[tuple[Question, str]]) -> list[Verdict]:
    """Run answers with their tests, or as main programs without tests."""
    verdicts: list[Verdict] = ["unknown"] * len(answers)
    if run is None:
        return verdicts
    tested = [
        (index, (extract_program(answer), question.tests))
        for index, (question, answer) in enumerate(answers)
        if question.tests
    ]
    for (index, (_, tests)), result in zip(tested, run([job for _, job in tested]) if tested else [], strict=True):
        verdicts[index] = _verdict(result, tests)
    alone = [
        (index, program)
        for index, (question, answer) in enumerate(answers)
        if not question.tests and (program := python_program(answer)) is not None
    ]
    for (index, _), outcome in zip(alone, run_alone(run, [program for _, program in alone]), strict=True):
        verdicts[index] = outcome.verdict
    return verdicts


def _verdict(result: ExecutionResult, tests: Tests) -> Verdict:
    if result.passed:
        return "pass"
    return "unknown" if result.status == "infra_error" or lacks_surroundings(result, tests) else "fail"


def _truth(question: Question, answer: str, verdict: Verdict) -> _Truth:
    """Return the truth of a correct answer; one that is not Python may be in another language."""
    if verdict == "fail" and not question.tests and may_be_another_language(answer):
        return "unknown"
    return _TRUTHS[verdict]


def _is_fault(question: Question, correct: _Truth, verdict: Verdict) -> bool | None:
    """Return whether a faulty answer beside a correct one is faulty; a main program that ends well proves nothing."""
    if verdict == "unknown" or correct != "right":
        return None
    if verdict == "fail":
        return True
    return False if question.tests else None


def _gaps(judge: Judge, faults: Sequence[tuple[Pair, Fault]]) -> list[float | None]:
    """Return the difference between the totals of the correct answer and each fault."""
    right = [(pair.question.instruction, pair.correct) for pair, _ in faults]
    faulty = [(pair.question.instruction, fault.text) for pair, fault in faults]
    answers = list(dict.fromkeys([*right, *faulty]))
    totals = {answer: _total(said) for answer, said in zip(answers, judge.judge(answers), strict=True)}
    return [_difference(totals[high], totals[low]) for high, low in zip(right, faulty, strict=True)]


def _total(said: Judgement | Unjudged) -> float | None:
    return said.total if isinstance(said, Judgement) else None


def _difference(high: float | None, low: float | None) -> float | None:
    return None if high is None or low is None else high - low
