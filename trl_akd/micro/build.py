"""Build a quickstart's data, teacher and student on disk."""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .models import new_model, pretrain, student_config, teacher_config, train_tokenizer
from .tasks import sample_tasks, write_json_lines, write_problems, write_rows
from .teacher_data import AKD_DATA, TeacherData, code_rows

TEACHER_TASKS, TOKENIZER_TASKS = 25_600, 5_000
STUDENT_TASKS, STUDENT_STEPS = 16_000, 200
DISTILLATION_TASKS, SEED_TASKS, HELD_OUT_TASKS, RANKER_TASKS = 2_000, 300, 200, 300
HELD_OUT_LENGTHS = (3,)


@dataclass(frozen=True)
class TaskFiles:
    """Files of generated tasks, in JSON Lines.

    Args:
        rows (`Path`):
            Training rows.
        held_out (`Path`):
            Benchmark problems with combinations of operations that no training row has.
        seen (`Path`, *optional*):
            Benchmark problems with combinations of operations from training, for a ranker's training.
    """

    rows: Path
    held_out: Path
    seen: Path | None = None


def write_akd_tasks(folder: Path) -> TaskFiles:
    """Write tasks for AKD: rows have `prompt` and `completion`, and problems have three steps."""
    files = TaskFiles(rows=folder / "train.jsonl", held_out=folder / "held_out.jsonl")
    write_rows(sample_tasks(DISTILLATION_TASKS, split="train", seed=1), files.rows)
    write_problems(sample_tasks(HELD_OUT_TASKS, split="held_out", lengths=HELD_OUT_LENGTHS), files.held_out)
    return files


def write_codeplan_tasks(folder: Path) -> TaskFiles:
    """Write tasks for CodePLAN: rows have `id`, `problem` and `solutions`, and problems have two or three steps."""
    seen = folder / "seen.jsonl"
    files = TaskFiles(rows=folder / "train.jsonl", held_out=folder / "held_out.jsonl", seen=seen)
    tasks = sample_tasks(DISTILLATION_TASKS, split="train", seed=1)
    write_json_lines(
        ({"id": task.task_id, "problem": task.instruction, "solutions": [task.solution]} for task in tasks), files.rows
    )
    write_problems(sample_tasks(HELD_OUT_TASKS, split="held_out", lengths=(2, 3)), files.held_out)
    write_problems(sample_tasks(RANKER_TASKS, split="train", seed=2), seen)
    return files


def write_iterkd_tasks(folder: Path) -> TaskFiles:
    """Write tasks for IterKD: seed questions have `id`, `instruction` and `tests`."""
    files = TaskFiles(rows=folder / "questions.jsonl", held_out=folder / "held_out.jsonl")
    tasks = sample_tasks(SEED_TASKS, split="train", seed=1)
    write_json_lines(
        ({"id": task.task_id, "instruction": task.instruction, "tests": task.tests} for task in tasks), files.rows
    )
    write_problems(sample_tasks(HELD_OUT_TASKS, split="held_out", lengths=(2, 3)), files.held_out)
    return files


def make_teacher(folder: Path, cache: Path, data: TeacherData = AKD_DATA) -> None:
    """Save a teacher and its tokenizer to `folder`; train them unless they are in `cache`.

    The cache depends on the source of this package, so that a change of it trains another teacher. A teacher is moved
    to the cache when it is complete, so that neither an interruption nor another process leaves a part of one.
    """
    cached = cache / f"teacher-{data.name}-{_fingerprint()}"
    if not cached.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="training-") as scratch:
            _train_teacher(Path(scratch) / "teacher", data)
            try:
                os.rename(Path(scratch) / "teacher", cached)
            except OSError:
                if not cached.exists():
                    raise
    shutil.copytree(cached, folder)


def make_student(folder: Path, teacher: Path, seed: int) -> None:
    """Train a student briefly on programs, and save it to `folder` with the tokenizer of `teacher`."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    max_length = AutoConfig.from_pretrained(teacher).max_position_embeddings
    student = new_model(student_config(tokenizer, max_length), seed=seed)
    with tempfile.TemporaryDirectory() as scratch:
        rows = list(code_rows(sample_tasks(STUDENT_TASKS, split="train")))
        pretrain(student, tokenizer, rows, output_dir=scratch, max_steps=STUDENT_STEPS, seed=seed)
    _save(student, tokenizer, folder)


def default_cache() -> Path:
    """Return the folder of trained teachers: `trl_akd/micro` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "trl_akd" / "micro"


def _train_teacher(folder: Path, data: TeacherData) -> None:
    tasks = sample_tasks(TEACHER_TASKS, split="train")
    shown = tasks[:TOKENIZER_TASKS]
    texts = [row["prompt"] + row["completion"] for row in (*code_rows(shown), *data.rows(shown))]
    tokenizer = train_tokenizer(texts)
    teacher = new_model(teacher_config(tokenizer, data.max_length))
    with tempfile.TemporaryDirectory() as scratch:
        rows = list(data.rows(tasks))
        pretrain(teacher, tokenizer, rows, output_dir=scratch, max_steps=data.steps)
    _save(teacher, tokenizer, folder)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _fingerprint() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
