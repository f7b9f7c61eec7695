"""Configuration of the cycles of IterKD."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ...generation.protocol import SamplingParams
from ..judge.prompts import JUDGE_PROMPT, JudgePrompt
from ..judge.rubric import MAX_TOTAL
from .prompts import TeachingPrompts
from .records import FAULT_KINDS, LEVELS, Level

__all__ = ["CYCLE_MAY_CHANGE", "CycleConfig"]

Part = TypeVar("Part")

CYCLE_MAY_CHANGE = frozenset(
    {
        *("cycles", "min_gain", "max_requests", "max_tokens", "max_seconds"),
        *("keep_students", "retry_refused", "push_ledger_to_hub"),
        *("price_per_million_prompt_tokens", "price_per_million_completion_tokens"),
        *("judge_price_per_million_prompt_tokens", "judge_price_per_million_completion_tokens"),
    }
)
"""Fields of `CycleConfig` that a continued run may change."""


@dataclass
class CycleConfig:
    """
    The part of [`IterKDConfig`] that describes the cycles. The paper gives the stages, but none of these values.

    Args:
        cycles (`int`, *optional*, defaults to `3`):
            Maximum number of cycles. A finished run continues if it is raised.
        min_gain (`float`, *optional*):
            Minimum increase of the mean feedback score over the previous cycle, in [0, 1]; the run ends early below
            it. By default all cycles run.
        max_requests (`int`, *optional*):
            Maximum number of requests to the teacher and the judge together, in the whole run, however often it is
            started again. The run then ends with its last student and its reports; run it again with more to go on.
        max_tokens (`int`, *optional*):
            Maximum number of tokens of their prompts and completions, likewise.
        max_seconds (`float`, *optional*):
            Maximum number of seconds that the run may take, likewise; training that has begun is finished.
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
            Number of the last cycles whose students stay on disk; by default all.
        retry_refused (`bool`, *optional*, defaults to `False`):
            Ask the teacher again for what its server refused, in a cycle whose student is not trained yet.
        push_ledger_to_hub (`bool`, *optional*, defaults to `False`):
            Upload the ledger, too, where `push_to_hub` is on: as a private dataset, `<hub_model_id>-ledger`.
        faults_per_question (`int`, *optional*, defaults to `1`):
            Number of faulty answers per question; 0 to train on correct answers only.
        fault_kinds (`list[str]`, *optional*, defaults to all five):
            Kinds of fault, taken in turn: `syntax`, `logical`, `type`, `name`, `timeout`.
        own_faults (`bool`, *optional*, defaults to `False`):
            Use the student's own failures in the last cycle as faults as well.
        min_gap (`float`, *optional*, defaults to `2.0`):
            Minimum difference between the judge's totals of correct and faulty answer, if running them does not
            decide.
        keep_unverified (`bool`, *optional*, defaults to `False`):
            Keep faults that could not be verified, and correct answers likewise.
        judge_retries (`int`, *optional*, defaults to `0`):
            Number of times that a judgement which cannot be read is asked for again, sampled.
        judge_weight (`float`, *optional*, defaults to `0.5`):
            Weight of the judge's total, divided by 6, in the score of the feedback; execution has the rest.
        unknown_execution (`float`, *optional*, defaults to `0.5`):
            Score of an unknown outcome of execution; a pass is 1 and a failure 0.
        hard_at_most (`float`, *optional*, defaults to `2.0`):
            Maximum total of the judge for a hard question.
        easy_at_least (`float`, *optional*, defaults to `5.0`):
            Minimum total of the judge for an easy question.
        new_easy (`int`, *optional*, defaults to `100`):
            New questions to ask for after easy ones, each cycle.
        new_medium (`int`, *optional*, defaults to `200`):
            New questions to ask for after medium ones.
        new_hard (`int`, *optional*, defaults to `200`):
            New questions to ask for after hard ones.
        min_question_chars (`int`, *optional*, defaults to `20`):
            Minimum number of characters of a new question.
        max_question_chars (`int`, *optional*, defaults to `4000`):
            Maximum number of characters of a new question.
        questions_per_cycle (`int`, *optional*, defaults to `1000`):
            Maximum number of questions per cycle, from the second on.
        old_share (`float`, *optional*, defaults to `0.5`):
            Fraction of old questions.
        mix_easy (`float`, *optional*, defaults to `1.0`):
            Relative weight of easy questions; 0 for none.
        mix_medium (`float`, *optional*, defaults to `2.0`):
            Relative weight of medium questions.
        mix_hard (`float`, *optional*, defaults to `2.0`):
            Relative weight of hard questions.
        novelty_threshold (`float`, *optional*, defaults to `0.8`):
            Minimum ROUGE-L of a new question to an existing one to count as a duplicate.
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
        self._check_run()
        self._check_stages()
        for part in ("teaching_prompts", "judge_prompt"):
            getattr(self, part)
        check_parent = getattr(super(), "__post_init__", None)
        if check_parent is not None:
            check_parent()

    def _check_run(self) -> None:
        if self.cycles < 1:
            raise ValueError(f"`cycles` is {self.cycles}; run at least 1.")
        if self.min_gain is not None and not math.isfinite(self.min_gain):
            raise ValueError(f"`min_gain` is {self.min_gain}; give a finite number, or leave it out.")
        for name in ("teacher_max_new_tokens", "answer_max_new_tokens", "overlap_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give at least 1.")
        for name in ("max_requests", "max_tokens", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` is {value}; allow more than 0, or leave it out for no limit.")
        for name in (name for name in CYCLE_MAY_CHANGE if "price" in name):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"`{name}` is {value}; give a finite price, 0 or more, or leave it out.")
        if self.judge_retries < 0:
            raise ValueError(f"`judge_retries` is {self.judge_retries}; give 0 for one attempt alone, or more.")
        if self.keep_students is not None and self.keep_students < 1:
            raise ValueError(f"`keep_students` is {self.keep_students}; keep at least 1, or leave it out to keep all.")
        if self.push_ledger_to_hub and not getattr(self, "push_to_hub", True):
            raise ValueError("`push_ledger_to_hub` is on without `push_to_hub`; turn that on, too, or leave it out.")
        for name in ("novelty_threshold", "teacher_top_p"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give a number above 0 and at most 1.")
        if not 0.0 <= self.teacher_temperature < math.inf:
            raise ValueError(f"`teacher_temperature` is {self.teacher_temperature}; give a finite number, 0 or more.")

    def _check_stages(self) -> None:
        if self.faults_per_question < 0:
            raise ValueError(f"`faults_per_question` is {self.faults_per_question}; give 0 or more.")
        if not self.fault_kinds or not set(self.fault_kinds) <= set(FAULT_KINDS):
            raise ValueError(f"`fault_kinds` is {list(self.fault_kinds)}; choose some of {', '.join(FAULT_KINDS)}.")
        if not self.min_gap > 0:
            raise ValueError(f"`min_gap` is {self.min_gap}; give points above 0, such as 2.")
        for name in ("judge_weight", "unknown_execution", "old_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give a number from 0 to 1.")
        for name in ("hard_at_most", "easy_at_least"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"`{name}` is {getattr(self, name)}; give a total of the judge, 0 to {MAX_TOTAL:g}.")
        if self.hard_at_most >= self.easy_at_least:
            raise ValueError(
                f"`hard_at_most` is {self.hard_at_most} and `easy_at_least` {self.easy_at_least}; a total must not be "
                "both, so raise the latter."
            )
        if not 1 <= self.min_question_chars <= self.max_question_chars:
            raise ValueError(
                f"`min_question_chars` is {self.min_question_chars} and `max_question_chars` "
                f"{self.max_question_chars}; give 1 or more, the larger second."
            )
        if self.questions_per_cycle < 1:
            raise ValueError(f"`questions_per_cycle` is {self.questions_per_cycle}; give at least 1.")
        for level in LEVELS:
            if self.new_questions(level) < 0:
                raise ValueError(f"`new_{level}` is {self.new_questions(level)}; give 0 or more new questions.")
            if not 0.0 <= self.mix_part(level) < math.inf:
                raise ValueError(f"`mix_{level}` is {self.mix_part(level)}; give a finite number of parts, 0 or more.")
        if not any(map(self.mix_part, LEVELS)):
            raise ValueError("`mix_easy`, `mix_medium` and `mix_hard` are all 0; give at least one level a part.")

    def new_questions(self, level: Level) -> int:
        """Return the number of new questions to ask for after those of a level."""
        return int(getattr(self, f"new_{level}"))

    def mix_part(self, level: Level) -> float:
        """Return the part of a level among the next cycle's questions."""
        return float(getattr(self, f"mix_{level}"))

    @property
    def teaching_prompts(self) -> TeachingPrompts:
        """Prompts for the teacher."""
        return self._from_file("prompts_file", TeachingPrompts.from_file, TeachingPrompts())

    @property
    def judge_prompt(self) -> JudgePrompt:
        """Prompt for the judge."""
        return self._from_file("judge_prompt_file", JudgePrompt.from_file, JUDGE_PROMPT)

    def sampling(self, cycle: int) -> SamplingParams:
        """Return the sampling parameters of the teacher in a cycle, each with another seed."""
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

    def _from_file(self, name: str, read: Callable[[str], Part], default: Part) -> Part:
        """Read the file that a field names."""
        path = getattr(self, name)
        try:
            return default if path is None else read(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"`{name}` {path!r} cannot be used: {error}") from error
