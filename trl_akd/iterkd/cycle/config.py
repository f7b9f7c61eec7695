"""Configuration of the cycles of IterKD."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...generation.protocol import SamplingParams
from ..judge.prompts import JUDGE_PROMPT, JudgePrompt, read_field
from ..judge.rubric import MAX_TOTAL
from .prompts import TeachingPrompts
from .records import FAULT_KINDS, LEVELS, Level

__all__ = ["CYCLE_MAY_CHANGE", "CycleConfig"]

CYCLE_MAY_CHANGE = frozenset(
    {
        *("cycles", "min_gain", "max_requests", "max_tokens", "max_seconds"),
        *("keep_students", "retry_refused", "push_ledger_to_hub"),
        *("price_per_million_prompt_tokens", "price_per_million_completion_tokens"),
        *("judge_price_per_million_prompt_tokens", "judge_price_per_million_completion_tokens"),
    }
)
"""Fields of `CycleConfig` that a continued run may change."""

_RANGES: tuple[tuple[Callable[[float], bool], str, tuple[str, ...]], ...] = (
    (
        lambda value: value >= 1,
        "give at least 1",
        (
            *("cycles", "keep_students", "questions_per_cycle", "overlap_words", "min_question_chars"),
            *("teacher_max_new_tokens", "answer_max_new_tokens"),
        ),
    ),
    (
        lambda value: value >= 0,
        "give at least 0",
        ("faults_per_question", "judge_retries", "new_easy", "new_medium", "new_hard"),
    ),
    (lambda value: value > 0, "give a number above 0", ("max_requests", "max_tokens", "max_seconds", "min_gap")),
    (
        lambda value: 0 <= value < math.inf,
        "give a finite number of at least 0",
        (
            *("teacher_temperature", "mix_easy", "mix_medium", "mix_hard"),
            *sorted(name for name in CYCLE_MAY_CHANGE if "price" in name),
        ),
    ),
    (lambda value: 0 <= value <= 1, "give a number from 0 to 1", ("judge_weight", "unknown_execution", "old_share")),
    (lambda value: 0 < value <= 1, "give a number above 0 and at most 1", ("novelty_threshold", "teacher_top_p")),
    (math.isfinite, "give a finite number", ("min_gain",)),
    (math.isfinite, f"give a total of the judge, 0 to {MAX_TOTAL:g}", ("hard_at_most", "easy_at_least")),
)
"""Conditions on the values of fields, the remedy if one is not met, and the fields."""


@dataclass
class CycleConfig:
    """
    Part of [`IterKDConfig`] that configures the cycles. The paper describes the stages, but none of these values.

    Args:
        cycles (`int`, *optional*, defaults to `3`):
            Maximum number of cycles. A finished run continues if it is raised.
        min_gain (`float`, *optional*):
            Minimum increase of the mean feedback score over the previous cycle, in [0, 1]; the run ends early below
            it. By default all cycles run.
        max_requests (`int`, *optional*):
            Maximum number of requests to teacher and judge in the whole run, including all its restarts. At the
            limit, the run ends with its last student and its reports; start it again with a higher limit to continue.
        max_tokens (`int`, *optional*):
            Maximum number of tokens of prompts and completions of teacher and judge, in the same way.
        max_seconds (`float`, *optional*):
            Maximum duration of the run in seconds, in the same way; a training that has started is finished.
        price_per_million_prompt_tokens (`float`, *optional*):
            Price of the teacher's prompt tokens, in any currency, for the estimate before the first request and for
            `usage.json`.
        price_per_million_completion_tokens (`float`, *optional*):
            Price of the teacher's completion tokens.
        judge_price_per_million_prompt_tokens (`float`, *optional*):
            Price of the judge's prompt tokens, if the judge is not the teacher.
        judge_price_per_million_completion_tokens (`float`, *optional*):
            Price of the judge's completion tokens, if the judge is not the teacher.
        keep_students (`int`, *optional*):
            Number of most recent cycles whose students are kept on disk. By default all are kept.
        retry_refused (`bool`, *optional*, defaults to `False`):
            Whether to send prompts that the teacher's server refused again, in a cycle whose student is not trained
            yet.
        push_ledger_to_hub (`bool`, *optional*, defaults to `False`):
            Whether `push_to_hub` uploads the ledger as well, as the private dataset `<hub_model_id>-ledger`.
        faults_per_question (`int`, *optional*, defaults to `1`):
            Number of faulty answers per question; 0 to train on correct answers only.
        fault_kinds (`list[str]`, *optional*, defaults to all five):
            Kinds of faults, used in rotation: `syntax`, `logical`, `type`, `name`, `timeout`.
        own_faults (`bool`, *optional*, defaults to `False`):
            Whether to use failed answers of the student in the previous cycle as faults as well: answers that fail
            their tests or, without tests, fail when run or get at most `hard_at_most` points from the judge. They are
            verified like all faults.
        min_gap (`float`, *optional*, defaults to `2.0`):
            Minimum difference between the judge's totals of correct and faulty answer, if running them does not
            decide.
        keep_unverified (`bool`, *optional*, defaults to `False`):
            Whether to keep correct and faulty answers that could not be verified.
        judge_retries (`int`, *optional*, defaults to `0`):
            Maximum number of times to sample a judgement again if it cannot be parsed.
        judge_weight (`float`, *optional*, defaults to `0.5`):
            Weight of the judge's total, divided by 6, in the feedback score; execution has the remaining weight.
        unknown_execution (`float`, *optional*, defaults to `0.5`):
            Score of an unknown outcome of execution; a pass is 1 and a failure 0.
        hard_at_most (`float`, *optional*, defaults to `2.0`):
            Maximum total of the judge for a hard question.
        easy_at_least (`float`, *optional*, defaults to `5.0`):
            Minimum total of the judge for an easy question.
        new_easy (`int`, *optional*, defaults to `100`):
            Number of new questions to request per cycle from easy ones.
        new_medium (`int`, *optional*, defaults to `200`):
            Number of new questions to request per cycle from medium ones.
        new_hard (`int`, *optional*, defaults to `200`):
            Number of new questions to request per cycle from hard ones.
        min_question_chars (`int`, *optional*, defaults to `20`):
            Minimum number of characters of a new question.
        max_question_chars (`int`, *optional*, defaults to `4000`):
            Maximum number of characters of a new question.
        questions_per_cycle (`int`, *optional*, defaults to `1000`):
            Maximum number of questions per cycle, from the second cycle on.
        old_share (`float`, *optional*, defaults to `0.5`):
            Fraction of questions from the previous cycle.
        mix_easy (`float`, *optional*, defaults to `1.0`):
            Relative weight of easy questions; 0 for none.
        mix_medium (`float`, *optional*, defaults to `2.0`):
            Relative weight of medium questions; 0 for none.
        mix_hard (`float`, *optional*, defaults to `2.0`):
            Relative weight of hard questions; 0 for none.
        novelty_threshold (`float`, *optional*, defaults to `0.8`):
            Minimum ROUGE-L between a new question and an existing one to count as duplicates.
        overlap_words (`int`, *optional*, defaults to `10`):
            Number of consecutive words that a new question must not share with a benchmark problem.
        prompts_file (`str`, *optional*):
            YAML or JSON file with custom prompts for the teacher, by the names of `TeachingPrompts`.
        judge_prompt_file (`str`, *optional*):
            Text file with a custom prompt for the judge, with `{instruction}` and `{answer}`.
        teacher_temperature (`float`, *optional*, defaults to `0.7`):
            Temperature of the teacher's answers and questions.
        teacher_top_p (`float`, *optional*, defaults to `0.95`):
            Nucleus sampling threshold of the teacher.
        teacher_max_new_tokens (`int`, *optional*, defaults to `1024`):
            Maximum number of tokens per completion of teacher and judge.
        answer_max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum number of tokens per answer of the student, which decodes greedily.
    """

    cycles: int = 3
    min_gain: float | None = None
    max_requests: int | None = None
    max_tokens: int | None = None
    max_seconds: float | None = None
    price_per_million_prompt_tokens: float | None = None
    price_per_million_completion_tokens: float | None = None
    judge_price_per_million_prompt_tokens: float | None = None
    judge_price_per_million_completion_tokens: float | None = None
    keep_students: int | None = None
    retry_refused: bool = False
    push_ledger_to_hub: bool = False
    faults_per_question: int = 1
    fault_kinds: list[str] = field(default_factory=lambda: list(FAULT_KINDS))
    own_faults: bool = False
    min_gap: float = 2.0
    keep_unverified: bool = False
    judge_retries: int = 0
    judge_weight: float = 0.5
    unknown_execution: float = 0.5
    hard_at_most: float = 2.0
    easy_at_least: float = 5.0
    new_easy: int = 100
    new_medium: int = 200
    new_hard: int = 200
    min_question_chars: int = 20
    max_question_chars: int = 4000
    questions_per_cycle: int = 1000
    old_share: float = 0.5
    mix_easy: float = 1.0
    mix_medium: float = 2.0
    mix_hard: float = 2.0
    novelty_threshold: float = 0.8
    overlap_words: int = 10
    prompts_file: str | None = None
    judge_prompt_file: str | None = None
    teacher_temperature: float = 0.7
    teacher_top_p: float = 0.95
    teacher_max_new_tokens: int = 1024
    answer_max_new_tokens: int = 512

    def __post_init__(self) -> None:
        for is_valid, remedy, names in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not is_valid(value):
                    is_optional = CycleConfig.__dataclass_fields__[name].default is None
                    raise ValueError(f"`{name}` is {value}; {remedy}{', or leave it out' if is_optional else ''}.")
        self._check_relations()
        for prompts in ("teaching_prompts", "judge_prompt"):
            getattr(self, prompts)  # reads the file, if one is given
        check_parent = getattr(super(), "__post_init__", None)
        if check_parent is not None:
            check_parent()

    def _check_relations(self) -> None:
        if self.push_ledger_to_hub and not getattr(self, "push_to_hub", True):
            raise ValueError("`push_ledger_to_hub` is on without `push_to_hub`; turn on both or neither.")
        if not self.fault_kinds or not set(self.fault_kinds) <= set(FAULT_KINDS):
            raise ValueError(f"`fault_kinds` is {list(self.fault_kinds)}; choose some of {', '.join(FAULT_KINDS)}.")
        if self.faults_per_question == 0 and set(self.fault_kinds) != set(FAULT_KINDS):
            raise ValueError(
                f"`fault_kinds` is {list(self.fault_kinds)}, which has no effect while `faults_per_question` is 0; "
                "raise that, or leave it out."
            )
        if self.hard_at_most >= self.easy_at_least:
            raise ValueError(
                f"`hard_at_most` is {self.hard_at_most} and `easy_at_least` {self.easy_at_least}; the latter must be "
                "larger."
            )
        if not self.min_question_chars <= self.max_question_chars:
            raise ValueError(
                f"`min_question_chars` is {self.min_question_chars} and `max_question_chars` "
                f"{self.max_question_chars}; the former must not be larger."
            )
        if not any(map(self.mix_weight, LEVELS)):
            raise ValueError("`mix_easy`, `mix_medium` and `mix_hard` are all 0; raise at least one of them.")

    def new_questions(self, level: Level) -> int:
        """Return the number of new questions to request from those of a level."""
        return int(getattr(self, f"new_{level}"))

    def mix_weight(self, level: Level) -> float:
        """Return the relative weight of a level among the questions of the next cycle."""
        return float(getattr(self, f"mix_{level}"))

    @property
    def teaching_prompts(self) -> TeachingPrompts:
        """Prompts for the teacher."""
        return read_field("prompts_file", self.prompts_file, TeachingPrompts.from_file, TeachingPrompts())

    @property
    def judge_prompt(self) -> JudgePrompt:
        """Prompt for the judge."""
        return read_field("judge_prompt_file", self.judge_prompt_file, JudgePrompt.from_file, JUDGE_PROMPT)

    def sampling(self, cycle: int) -> SamplingParams:
        """Return the sampling parameters of the teacher in a cycle, whose seed depends on the cycle."""
        return SamplingParams(
            temperature=self.teacher_temperature,
            top_p=self.teacher_top_p,
            max_new_tokens=self.teacher_max_new_tokens,
            seed=self.run_seed + cycle,
        )

    @property
    def cycle_settings(self) -> dict[str, Any]:
        """Settings that a continued run must not change."""
        free = (*CYCLE_MAY_CHANGE, "prompts_file", "judge_prompt_file")
        settings = {name: getattr(self, name) for name in CycleConfig.__dataclass_fields__ if name not in free}
        return settings | {
            "teaching_prompts": self.teaching_prompts.version,
            "judge_prompt": self.judge_prompt.version,
        }

    @property
    def run_seed(self) -> int:
        """Seed of the run; 0 without a trainer's configuration."""
        return int(getattr(self, "seed", 0))
