"""Judges of the experiment on IterKD: the AUC of any judge against execution, and a judge with a given AUC."""

import math
import random
from collections.abc import Sequence
from statistics import NormalDist

from transformers import PreTrainedTokenizerBase

from ...execution import CodeExecutor
from ...generation.python_ast import parse
from ...iterkd.cycle.records import FAULT_KINDS
from ...iterkd.judge.judges import Judge
from ...iterkd.judge.rubric import MAX_TOTAL, RULES, Judgement, Unjudged
from ..tasks import Task, draw_solution
from ..teacher_data import JUDGE_PROMPT, draw_fault
from .cycles_world import PASSED, QuestionPool, outcomes

__all__ = ["MISSING_STEP", "REPLY_TOKENS", "NoisyJudge", "auc", "judge_aucs", "judge_request"]

MISSING_STEP = "missing step"
REPLY_TOKENS = len(RULES)  # a judge writes one score per rule


def judge_request(instruction: str, answer: str) -> str:
    """Return the text that a judge reads."""
    return JUDGE_PROMPT.format(instruction=instruction, answer=answer)


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Return the probability that a positive score is above a negative one, where ties count half.

    Raises:
        ValueError: If there are no positive or no negative scores.

    Example:

    ```python
    >>> auc([3.0, 1.0], [1.0, 0.0])
    0.875

    ```
    """
    if not positive or not negative:
        raise ValueError("there are no positive or no negative scores; give at least one of each.")
    wins = sum((high > low) + 0.5 * (high == low) for high in positive for low in negative)
    return wins / (len(positive) * len(negative))


def judge_aucs(judge: Judge, tasks: Sequence[Task], *, seed: int = 0) -> dict[str, float]:
    """Return the AUC of a judge's totals for correct programs against faulty ones, by kind of fault.

    Kinds are those of the taxonomy, and a missing step. Answers without a judgement are left out.

    Args:
        judge (`Judge`):
            Judge.
        tasks (`Sequence[Task]`):
            Tasks, of each of which a correct program and one with each fault are judged.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the faults.
    """
    rng = random.Random(f"{seed} cases")
    cases = {"correct": [draw_solution(task.steps, rng) for task in tasks]}
    cases |= {kind: [draw_fault(task, kind, rng) for task in tasks] for kind in FAULT_KINDS}
    cases[MISSING_STEP] = [draw_solution(task.steps[: len(task.steps) - 1], rng) for task in tasks]
    totals = {}
    for name, programs in cases.items():
        judged = judge.judge([(task.instruction, text.strip()) for task, text in zip(tasks, programs, strict=True)])
        totals[name] = [found.total for found in judged if isinstance(found, Judgement)]
    return {name: auc(totals["correct"], found) for name, found in totals.items() if name != "correct"}


class NoisyJudge:
    """Judge that knows the outcome of every answer, a program, and errs as often as a judge with a given AUC.

    Its totals are a function of a normal variable whose means for right and wrong programs differ such that the AUC
    is the given one; the noise is a function of question, answer and seed. Programs that do not parse get no points.

    Args:
        pool (`QuestionPool`):
            Tasks that it knows.
        executor (`CodeExecutor`):
            Sandbox in which answers run.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer that counts the tokens which a model would have read and written in its place.
        auc (`float`):
            Probability that a right program gets a higher total than a wrong one that parses, from 0.5 to 1.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the noise.

    Attributes:
        tokens (`int`): Number of tokens so far: those of requests, and one per score.
        outcomes (`list[tuple[bool, float]]`): Whether each judged program that parses is right, and its total.

    Raises:
        ValueError: If `auc` is outside its range.
    """

    def __init__(
        self,
        pool: QuestionPool,
        executor: CodeExecutor,
        tokenizer: PreTrainedTokenizerBase,
        *,
        auc: float,
        seed: int = 0,
    ) -> None:
        if not 0.5 <= auc <= 1.0:
            raise ValueError(f"`auc` is {auc!r}; give a number from 0.5 to 1.")
        self._pool = pool
        self._executor = executor
        self._tokenizer = tokenizer
        self._auc = auc
        self._distance = math.inf if auc == 1.0 else math.sqrt(2) * NormalDist().inv_cdf(auc)
        self._seed = seed
        self.tokens = 0
        self.outcomes: list[tuple[bool, float]] = []

    @property
    def model_name(self) -> str:
        """Name in the ledger."""
        return f"judge with an AUC of {self._auc:g}"

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Judgement | Unjudged]:
        """Judge answers, see [`Judge`].

        Raises:
            ValueError: If an instruction is not that of a known task.
        """
        programs = []
        for instruction, answer in pairs:
            if instruction not in self._pool.tasks:
                raise ValueError(f"The instruction {instruction!r} is not that of a task that this judge knows.")
            programs.append((self._pool.tasks[instruction], answer))
            self.tokens += len(self._tokenizer(judge_request(instruction, answer))["input_ids"]) + REPLY_TOKENS
        judgements: list[Judgement | Unjudged] = []
        for (task, text), outcome in zip(programs, outcomes(programs, self._executor), strict=True):
            if parse(text) is None:
                judgements.append(_judgement(0.0))
                continue
            judgement = _judgement(self._total(task, text, outcome == PASSED))
            judgements.append(judgement)
            self.outcomes.append((outcome == PASSED, judgement.total))
        return judgements

    def _total(self, task: Task, text: str, is_right: bool) -> float:
        if self._auc == 1.0:
            return MAX_TOTAL if is_right else 0.0
        noise = random.Random(f"{self._seed} {task.instruction} {text}").gauss()
        return MAX_TOTAL * NormalDist().cdf(noise + (self._distance / 2 if is_right else -self._distance / 2))


def _judgement(total: float) -> Judgement:
    """Return the judgement with a total, rounded to half points, whose points are given rule by rule."""
    points = round(2 * total) / 2
    scores = []
    for rule in RULES:
        scores.append(min(points, rule.maximum))
        points -= scores[-1]
    return Judgement(tuple(scores))
