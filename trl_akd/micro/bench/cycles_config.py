"""Configuration of the experiment on IterKD: world, budgets, variants, seeds and predictions."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ...iterkd.cycle.records import Level

__all__ = ["CyclesSettings", "Faults", "Questions", "Variant"]

Faults: TypeAlias = Literal["none", "taxonomy", "logical", "own"]
Questions: TypeAlias = Literal["derived", "rare", "blind", "same"]


@dataclass(frozen=True)
class CyclesSettings:
    """World, student and budgets, which all variants share.

    Args:
        num_rare (`int`, *optional*, defaults to `9`): as in [`CyclesWorld`].
        rare_share (`float`, *optional*, defaults to `0.1`): as in [`CyclesWorld`].
        teacher_error (`float`, *optional*, defaults to `0.1`): share of the teacher's correct answers with a wrong
            step, and of its faulty ones that are correct.
        hidden_size (`int`, *optional*, defaults to `64`): hidden size of the student.
        start_steps (`int`, *optional*, defaults to `400`): number of steps of pre-training.
        start_range (`tuple[float, float]`, *optional*, defaults to `(0.2, 0.6)`): greedy pass@1 with which a student
            may start; a seed outside is reported, and not run.
        questions (`int`, *optional*, defaults to `300`): number of seed questions.
        teacher_tokens (`int`, *optional*, defaults to `120000`): tokens of teacher and judge per run, which determine
            the number of new questions.
        trained_tokens (`int`, *optional*, defaults to `250000`): tokens of answers in training per run, which
            determine the number of epochs.
        learning_rate (`float`, *optional*, defaults to `0.003`): peak learning rate of each cycle.
    """

    num_rare: int = 9
    rare_share: float = 0.1
    teacher_error: float = 0.1
    hidden_size: int = 64
    start_steps: int = 400
    start_range: tuple[float, float] = (0.2, 0.6)
    questions: int = 300
    teacher_tokens: int = 120_000
    trained_tokens: int = 250_000
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class Variant:
    """A variant of IterKD.

    Args:
        cycles (`int`, *optional*, defaults to `3`): number of cycles.
        questions (`str`, *optional*, defaults to `"derived"`): new questions: `"derived"` from questions by their
            levels; `"rare"`, with an operation that is rare in pre-training, the best that any choice could do;
            `"blind"`, derived from random seed questions before the only cycle; or `"same"`, none.
        faults (`str`, *optional*, defaults to `"none"`): faulty answers: `"none"`; `"taxonomy"`, the teacher's, of
            five kinds; `"logical"`, the teacher's, with a wrong step; or `"own"`, failing samples of the student.
        judge (`float`, *optional*): AUC of the judge; without it, there is none.
        execution (`bool`, *optional*, defaults to `True`): whether answers are run, without tests.
        tests (`bool`, *optional*, defaults to `False`): whether seed questions have tests.
        keep_unverified (`bool`, *optional*, defaults to `False`): as in [`IterKDConfig`].
        contrastive_weight (`float`, *optional*, defaults to `1.0`): as in [`IterKDConfig`].
        budget_of (`str`, *optional*): variant whose number of new questions is used, at whatever cost.
    """

    cycles: int = 3
    questions: str = "derived"
    faults: str = "none"
    judge: float | None = None
    execution: bool = True
    tests: bool = False
    keep_unverified: bool = False
    contrastive_weight: float = 1.0
    budget_of: str | None = None
