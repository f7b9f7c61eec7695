"""Text teacher of the experiment on IterKD, which answers by rule and with a settable share of errors."""

import random
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from ...execution import CodeExecutor
from ...generation import Completion, TextGenerator
from ...generation.protocol import Usage, derive_seed, sample_offsets
from ...iterkd.cycle.records import FAULT_KINDS, FaultKind
from ..tasks import Task, draw_solution
from ..teacher_data import TEACHING_PROMPTS, draw_fault
from .cycles_world import MAX_NEW_TOKENS, PASSED, QuestionPool, Relation, outcomes

__all__ = ["ScriptedTeacher", "StudentFaults"]

_NO_ANSWER = "I'm sorry, but I cannot help with that."
_NUM_SAMPLES = 4


class StudentFaults:
    """Failing samples of the current student, to be used as faulty answers.

    Args:
        executor (`CodeExecutor`):
            Sandbox in which samples run.
        seed (`int`):
            Seed of the samples.

    Attributes:
        student (`Callable`, *optional*): Returns a generator of the current student; set before the first use.
    """

    def __init__(self, executor: CodeExecutor, seed: int) -> None:
        self._executor = executor
        self._seed = seed
        self.student: Callable[[], TextGenerator] | None = None

    def write(self, tasks: Sequence[Task]) -> list[str | None]:
        """Return the first of four samples at temperature 1 that fails for each task, `None` if all pass."""
        if not tasks:
            return []
        assert self.student is not None, "`student` is set before the first use"
        written = self.student().generate(
            [task.prompt for task in tasks],
            n=_NUM_SAMPLES,
            temperature=1.0,
            max_new_tokens=MAX_NEW_TOKENS,
            seed=derive_seed(self._seed, "faults"),
        )
        samples = [(task, sample.text) for task, several in zip(tasks, written, strict=True) for sample in several]
        found = outcomes(samples, self._executor)
        failing = [None if outcome == PASSED else text for (_, text), outcome in zip(samples, found, strict=True)]
        return [
            next(filter(None, failing[start : start + _NUM_SAMPLES]), None)
            for start in range(0, len(failing), _NUM_SAMPLES)
        ]


class ScriptedTeacher:
    """Teacher that answers the requests of IterKD by rule.

    Its samples are a function of prompt, seed and number, those of equal prompts being numbered consecutively.

    Args:
        pool (`QuestionPool`):
            Tasks that it knows.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer that counts the tokens of requests and answers.
        error_rate (`float`, *optional*, defaults to `0.0`):
            Share of correct answers that have a wrong step, and of faulty ones that are correct.
        only_rare (`bool`, *optional*, defaults to `False`):
            Whether all new questions have an operation that is rare in the student's pre-training.
        student_faults ([`StudentFaults`], *optional*):
            Source of faulty answers. By default, the teacher writes faults of the requested kind.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the answers.
    """

    model_name = "scripted teacher"

    def __init__(
        self,
        pool: QuestionPool,
        tokenizer: PreTrainedTokenizerBase,
        *,
        error_rate: float = 0.0,
        only_rare: bool = False,
        student_faults: StudentFaults | None = None,
        seed: int = 0,
    ) -> None:
        self._pool = pool
        self._tokenizer = tokenizer
        self._error_rate = error_rate
        self._only_rare = only_rare
        self._student_faults = student_faults
        self._seed = seed

    def generate(
        self,
        prompts: list[str],
        *,
        n: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> list[list[Completion]]:
        """Answer each prompt `n` times; of the sampling parameters, only `seed` has an effect.

        Raises:
            ValueError: If a prompt is not a request about a known task.
        """
        requests = [self._read(prompt) for prompt in prompts]
        by_student = [place for place, (_, _, kind) in enumerate(requests) if kind and self._student_faults]
        own: dict[int, str] = {}
        if self._student_faults is not None:
            faults = self._student_faults.write([requests[place][0] for place in by_student])
            own = {place: fault or _NO_ANSWER for place, fault in zip(by_student, faults, strict=True)}
        completions = []
        for place, (prompt, first) in enumerate(zip(prompts, sample_offsets(prompts, n), strict=True)):
            if place in own:
                completions.append([Completion(own[place], None, "stop", None, usage=Usage(1))] * n)
                continue
            texts = [
                self._write(random.Random(f"{self._seed} {seed} {number} {prompt}"), *requests[place])
                for number in range(first, first + n)
            ]
            completions.append([self._completion(prompt, text) for text in texts])
        return completions

    def _completion(self, prompt: str, text: str) -> Completion:
        num_tokens = self._count(text) + 1
        return Completion(text, None, "stop", num_tokens, usage=Usage(1, self._count(prompt), num_tokens))

    def _read(self, prompt: str) -> tuple[Task, str, FaultKind | None]:
        """Return the task of a prompt, the name of its template, and the requested kind of fault."""
        instruction = prompt.partition("\n")[0].removeprefix("# ")
        task = self._pool.tasks.get(instruction)
        for name, template in TEACHING_PROMPTS.items():
            for kind in FAULT_KINDS if name == "faulty" else (None,):
                if task is not None and template.format(instruction=instruction, kind=kind) == prompt:
                    return task, name, kind
        raise ValueError(f"The prompt {prompt!r} is not a request about a task that this teacher knows.")

    def _write(self, rng: random.Random, task: Task, name: str, kind: FaultKind | None) -> str:
        errs = rng.random() < self._error_rate
        if name == "correct":
            return draw_fault(task, "logical", rng) if errs else draw_solution(task.steps, rng)
        if kind is not None:
            return draw_solution(task.steps, rng) if errs else draw_fault(task, kind, rng)
        if self._only_rare:
            return self._pool.with_rare_operation(rng).instruction
        relation: Relation = "new_easy" if name == "new_easy" else "new_same"
        return self._pool.derive(task, relation, rng).instruction

    def _count(self, text: str) -> int:
        return len(self._tokenizer(text)["input_ids"])
