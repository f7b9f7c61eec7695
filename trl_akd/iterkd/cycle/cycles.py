"""The loop over cycles: pair generation, training, feedback, new questions.

A run always executes from the beginning. It reuses the completions, results of programs and trained students on disk,
so an interrupted run continues where it stopped and ends with the same result.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from accelerate import Accelerator
from datasets import Dataset

from ...data.templates import render
from ...distributed import is_main_process, run_on_main_and_broadcast
from ...generation import TextGenerator
from ...generation.answers import extract_program
from ...generation.budget import BudgetSpent
from ...generation.protocol import GREEDY, Arrival, SamplingParams, StreamingGenerator, stream
from ...metrics.statistics import pass_at_k_over_tasks
from ..judge.judges import Judge
from ..judge.rubric import Judgement
from .config import CycleConfig
from .contamination import BenchmarkIndex, decontaminate, warn_of_overlap
from .feedback import Feedback, collect_feedback
from .ledger import CycleLedger
from .new_questions import generate_questions, mix_questions
from .novelty import NoveltyIndex, filter_novel
from .pair_generation import generate_pairs
from .records import Level, Pair, Question, Runner, question_as_json
from .report import CycleReport, make_report
from .verification import Verification

__all__ = ["Cycles", "Participants", "ProgramOf", "Student"]

ProgramOf: TypeAlias = Callable[[Question, str], str]
"""Function that extracts the program from an answer to a question."""

_STUDENT, _UNFINISHED = "student", "student.part"


class Student(Protocol):
    """Interface of the student, which is trained on the pairs of one cycle after another."""

    def train_cycle(self, pairs: Dataset, *, cycle: int, output_dir: Path) -> None:
        """Train on rows of `prompt`, `completion` and `rejected`, resuming an interrupted training."""

    def save_student(self, folder: Path) -> None:
        """Save the weights for `load_student`."""

    def load_student(self, folder: Path) -> None:
        """Load the weights from a folder."""

    def student_generator(self) -> TextGenerator:
        """Return a generator with the current weights."""


@dataclass(frozen=True)
class Participants:
    """Models, runner and data of the cycles, except for the student; see [`IterKDTrainer`]."""

    teacher: TextGenerator
    judge: Judge | None = None
    run: Runner | None = None
    held_out: Sequence[Question] = ()
    benchmarks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    program_of: ProgramOf | None = None


class Cycles:
    """Loop over the cycles of a student, which all processes run together.

    Students are saved in `folder`, `announce` receives a sentence at the beginning of each stage, and `on_report` the
    report of each cycle, before new questions are generated.
    """

    def __init__(
        self,
        student: Student,
        participants: Participants,
        config: CycleConfig,
        ledger: CycleLedger,
        *,
        folder: Path,
        prompt_template: str,
        accelerator: Accelerator,
        announce: Callable[[str], None] = lambda sentence: None,
        on_report: Callable[[CycleReport], None] = lambda report: None,
    ) -> None:
        self._student = student
        self._participants = participants
        self._config = config
        self._ledger = ledger
        self._folder = folder
        self._template = prompt_template
        self._accelerator = accelerator
        self._announce = announce
        self._on_report = on_report
        self._runner = None if participants.run is None else ledger.recorded_runner(participants.run)
        self.reports: list[CycleReport] = []
        self._in_memory = -1  # last cycle of the student in memory, -1 if untrained
        self._trained = -1  # last trained cycle, -1 if there is none

    def run(self, seeds: Sequence[Question]) -> None:
        """Run all configured cycles, or stop after a cycle with too little gain.

        Afterwards the last student is in memory, and `reports` has one report per cycle.

        Raises:
            BudgetSpent: If a budget is spent; all results are kept, and the last student is in memory.
            ValueError: If a cycle has no training data, or the ledger belongs to another run.
        """
        self.reports = []
        try:
            self._run(seeds)
        except BudgetSpent:
            self._load_weights(self._trained)
            raise
        self._load_weights(self._trained)

    def _run(self, seeds: Sequence[Question]) -> None:
        known = NoveltyIndex(self._config.novelty_threshold)
        benchmarks = BenchmarkIndex(self._participants.benchmarks, self._config.overlap_words)
        questions = list(seeds)
        filter_novel(questions, known)
        if is_main_process(self._accelerator):
            warn_of_overlap(questions, benchmarks)
        feedback: list[Feedback] = []
        for cycle in range(self._config.cycles):
            self._ledger.note("question", map(question_as_json, questions), cycle=cycle)
            verified = self._generate_pairs(cycle, questions, feedback)
            self._train(cycle, verified)
            feedback = self._collect_feedback(cycle, questions)
            held_out = self._evaluate_held_out(cycle)
            report = make_report(cycle, questions, verified, feedback, held_out)
            self._ledger.note("report", [{"id": "report", **report.as_item()}], cycle=cycle)
            self.reports.append(report)
            self._on_report(report)
            if cycle + 1 == self._config.cycles or self._gained_too_little():
                break
            questions, new = self._generate_questions(cycle, questions, feedback, known, benchmarks)
            self.reports[-1] = replace(report, new=new)
            if not questions:
                self._announce("No questions are left for another cycle, so the run ends here")
                break

    @property
    def trained(self) -> int:
        """Number of cycles that have been trained."""
        return self._trained + 1

    # Stage 1

    def _generate_pairs(self, cycle: int, questions: Sequence[Question], feedback: Sequence[Feedback]) -> Verification:
        self._announce(f"{self._name(cycle)}, pairs: correct and faulty answers to {len(questions)} questions")
        retry = self._config.retry_refused and self._last_trained() < cycle
        verified = generate_pairs(
            questions,
            self._recorded_teacher("delivery", cycle, retry_refused=retry),
            config=self._config,
            judge=self._participants.judge,
            run=self._runner,
            own_faults=_failures(feedback, self._config) if self._config.own_faults else None,
        )
        pairs = map(_pair_as_json, [*verified.pairs, *verified.without_fault])
        self._ledger.note("pair", pairs, cycle=cycle, may_differ=retry)
        return verified

    def _recorded_teacher(self, stage: str, cycle: int, *, retry_refused: bool) -> TextGenerator:
        return self._ledger.recorded(
            self._participants.teacher,
            "teacher",
            retry_refused=retry_refused,
            stage=stage,
            cycle=cycle,
            prompts=self._config.teaching_prompts.version,
        )

    def _train(self, cycle: int, verified: Verification) -> None:
        if not verified.pairs and not verified.without_fault:
            raise ValueError(
                f"cycle {cycle} has no correct answer to train on; dropped: {_counts(verified.dropped)}. Look at the "
                "teacher's answers in ledger/completions.jsonl, and give other questions or another teacher."
            )
        folder = self._folder_of(cycle)
        if self._last_trained() < cycle:
            self._train_student(cycle, verified, folder)
        run_on_main_and_broadcast(self._accelerator, lambda: self._delete_old_students(cycle))
        self._trained = cycle

    def _train_student(self, cycle: int, verified: Verification, folder: Path) -> None:
        self._announce(
            f"{self._name(cycle)}, training: {len(verified.pairs)} pairs and {len(verified.without_fault)} correct "
            f"answers without a fault; dropped: {_counts(verified.dropped)}"
        )
        self._load_weights(cycle - 1)
        self._student.train_cycle(
            Dataset.from_list([self._row(pair) for pair in [*verified.pairs, *verified.without_fault]]),
            cycle=cycle,
            output_dir=folder,
        )
        self._in_memory = cycle
        run_on_main_and_broadcast(self._accelerator, lambda: shutil.rmtree(folder / _UNFINISHED, ignore_errors=True))
        self._student.save_student(folder / _UNFINISHED)
        self._accelerator.wait_for_everyone()
        run_on_main_and_broadcast(self._accelerator, lambda: _move_to_final_folder(folder))

    def _row(self, pair: Pair) -> dict[str, Any]:
        return {
            "prompt": self._prompt(pair.question),
            "completion": pair.correct,
            "rejected": [fault.text for fault in pair.faults],
        }

    def _load_weights(self, cycle: int) -> None:
        """Load the student of a cycle, unless it is in memory."""
        if self._in_memory == cycle:
            return
        folder = self._folder_of(cycle) / _STUDENT
        if not run_on_main_and_broadcast(self._accelerator, folder.is_dir):
            raise ValueError(
                f"the student in {folder} is needed but has been deleted; restore it, or delete the students of later "
                "cycles as well to retrain them."
            )
        self._student.load_student(folder)
        self._in_memory = cycle

    def _last_trained(self) -> int:
        """Return the number of the last cycle whose student is on disk, or -1; older ones may have been deleted."""
        return run_on_main_and_broadcast(
            self._accelerator, lambda: max(_cycles_with_a_student(self._folder), default=-1)
        )

    def _delete_old_students(self, cycle: int) -> None:
        """Delete the checkpoints of a trained cycle, and students beyond `keep_students`."""
        for checkpoint in self._folder_of(cycle).glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        kept = self._config.keep_students
        for old in range(0 if kept is None else cycle + 1 - kept):
            _remove_student(self._folder_of(old))

    def _folder_of(self, cycle: int) -> Path:
        return self._folder / f"cycle-{cycle}"

    # Stage 2

    def _collect_feedback(self, cycle: int, questions: Sequence[Question]) -> list[Feedback]:
        self._announce(f"{self._name(cycle)}, feedback: answers of the student")
        feedback = collect_feedback(
            questions,
            self._answers(cycle, questions, "feedback"),
            judge=self._participants.judge,
            run=self._runner,
            config=self._config,
        )
        rows = (found.as_json() for found in feedback)
        self._ledger.note("feedback", ({"id": row.pop("question_id"), **row} for row in rows), cycle=cycle)
        return feedback

    def _evaluate_held_out(self, cycle: int) -> dict[str, float]:
        """Return pass@1 on the held-out questions with tests, without those for which the sandbox failed."""
        held_out = [question for question in self._participants.held_out if question.tests]
        if not held_out or self._runner is None:
            return {}
        self._announce(f"{self._name(cycle)}, evaluation: {len(held_out)} held-out questions")
        program_of = self._participants.program_of or (lambda question, answer: extract_program(answer))
        answered = zip(held_out, self._answers(cycle, held_out, "held_out"), strict=True)
        results = self._runner([(program_of(question, answer), question.tests or "") for question, answer in answered])
        passed = [int(result.passed) for result in results if result.status != "infra_error"]
        if not passed:
            return {}
        interval = pass_at_k_over_tasks([1] * len(passed), passed, k=1)
        bounds = {"pass@1_low": interval.low, "pass@1_high": interval.high}
        return {"pass@1": interval.value, **bounds, "pass@1_tasks": len(passed)}

    def _answers(self, cycle: int, questions: Sequence[Question], stage: str) -> list[str]:
        student = self._ledger.recorded(_Lazy(lambda: self._student_of(cycle)), "student", stage=stage, cycle=cycle)
        written = student.generate(
            [self._prompt(question) for question in questions],
            max_new_tokens=self._config.answer_max_new_tokens,
            seed=cycle,
        )
        return [completion.text for [completion] in written]

    def _student_of(self, cycle: int) -> TextGenerator:
        self._load_weights(cycle)
        return self._student.student_generator()

    # Stage 3

    def _generate_questions(
        self,
        cycle: int,
        questions: Sequence[Question],
        feedback: Sequence[Feedback],
        known: NoveltyIndex,
        benchmarks: BenchmarkIndex,
    ) -> tuple[list[Question], dict[str, int]]:
        """Return the next cycle's questions, and counts of the new ones."""
        self._announce(f"{self._name(cycle)}, new questions")
        retry = self._config.retry_refused and not self._ledger.has("update", cycle=cycle)
        written = generate_questions(
            feedback,
            questions,
            self._recorded_teacher("update", cycle, retry_refused=retry),
            cycle=cycle,
            config=self._config,
            seed=self._config.run_seed,
        )
        clean, overlaps = decontaminate(written.questions, benchmarks)
        if overlaps:
            first = overlaps[0]
            self._announce(
                f"{len(overlaps)} of {len(written.questions)} new questions repeat a benchmark and are dropped; "
                f"{first.question_id!r} has {first.words!r} of {first.benchmark} number {first.index}, with "
                f"{first.edits} words changed"
            )
        new = filter_novel(clean, known)
        levels: dict[str, Level] = {found.question_id: found.level for found in feedback}
        mixed = mix_questions(questions, new, levels, self._config, seed=self._config.run_seed)
        dropped = written.dropped + Counter(contaminated=len(overlaps), repeated=len(clean) - len(new))
        counts = {"asked": written.asked.total(), "kept": len(new), **dropped}
        self._ledger.note("update", [{"id": "update", "counts": counts}], cycle=cycle)
        return mixed, counts

    def _gained_too_little(self) -> bool:
        if self._config.min_gain is None or len(self.reports) < 2:
            return False
        before, after = (report.feedback["score"] for report in self.reports[-2:])
        if after - before >= self._config.min_gain:
            return False
        self._announce(
            f"The mean feedback went from {before:.3f} to {after:.3f}, a gain below `min_gain`, so the run ends here"
        )
        return True

    def _prompt(self, question: Question) -> str:
        return render(self._template, question.instruction)

    def _name(self, cycle: int) -> str:
        return f"Cycle {cycle + 1} of {self._config.cycles}"


class _Lazy(StreamingGenerator):
    """Generator that is created at its first request, as loading the weights takes time."""

    def __init__(self, make: Callable[[], TextGenerator]) -> None:
        self._make = make

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY) -> Iterator[Arrival]:
        return stream(self._make(), prompts, sampling)


def _failures(feedback: Sequence[Feedback], config: CycleConfig) -> dict[str, list[str]]:
    """Return the student's answers that failed or, without tests, got at most `hard_at_most` points from the judge."""
    return {found.question_id: [found.answer] for found in feedback if _failed(found, config)}


def _failed(found: Feedback, config: CycleConfig) -> bool:
    if found.tests_passed is not None:
        return found.tests_passed < 1.0
    rated_low = isinstance(found.judgement, Judgement) and found.judgement.total <= config.hard_at_most
    return rated_low or found.view.executed == "fail"


def _pair_as_json(pair: Pair) -> dict[str, Any]:
    return {"id": pair.question.id, "correct": pair.correct, "faults": [asdict(fault) for fault in pair.faults]}


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "none"


def _move_to_final_folder(folder: Path) -> None:
    """Move a saved student to its final folder, after all of it is on disk."""
    for path in [*(folder / _UNFINISHED).rglob("*"), folder / _UNFINISHED]:
        _sync(path)
    (folder / _UNFINISHED).rename(folder / _STUDENT)
    _sync(folder)


def _sync(path: Path) -> None:
    """Wait until a file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cycles_with_a_student(folder: Path) -> Iterator[int]:
    for student in folder.glob(f"cycle-*/{_STUDENT}"):
        number = student.parent.name.removeprefix("cycle-")
        if number.isdecimal():
            yield int(number)


def _remove_student(folder: Path) -> None:
    """Remove a student; it is renamed first, so that an interrupted removal leaves no partial student."""
    if (folder / _STUDENT).is_dir():
        shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)
        (folder / _STUDENT).rename(folder / _UNFINISHED)
    shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)
    with suppress(OSError):  # the folder may contain logs
        folder.rmdir()
