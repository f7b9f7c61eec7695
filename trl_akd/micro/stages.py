"""The stages before a micro distillation: the world, its teacher and its student, each on disk."""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .curricula import CODE, Curriculum, code_rows
from .models import new_model, pretrain, student_config, teacher_config, train_tokenizer
from .world import sample_tasks, write_json_lines, write_problems, write_rows

TEACHER_TASKS, TOKENIZER_TASKS = 25_600, 5_000
STUDENT_TASKS, STUDENT_STEPS = 16_000, 200
DISTILLATION_TASKS, SEED_TASKS, HELD_OUT_TASKS, RANKER_TASKS = 2_000, 300, 200, 300
HELD_OUT_LENGTHS = (3,)


@dataclass(frozen=True)
class World:
    """What distillation trains on, and what it is judged by.

    Args:
        rows (`Path`):
            JSON Lines with `prompt` and `completion`.
        held_out (`Path`):
            JSON Lines with problems whose combinations of operations no training row has, as `trl-akd evaluate` takes
            them.
    """

    rows: Path
    held_out: Path


def build_world(folder: Path) -> World:
    """Generate the world and write it to `folder`: `train.jsonl` and `held_out.jsonl`."""
    world = World(rows=folder / "train.jsonl", held_out=folder / "held_out.jsonl")
    write_rows(sample_tasks(DISTILLATION_TASKS, split="train", seed=1), world.rows)
    write_problems(sample_tasks(HELD_OUT_TASKS, split="held_out", lengths=HELD_OUT_LENGTHS), world.held_out)
    return world


@dataclass(frozen=True)
class PlanningWorld(World):
    """Hold also problems of which the student has seen every combination, for a ranker to learn from."""

    seen: Path


def build_planning_world(folder: Path) -> PlanningWorld:
    """Generate the world for CodePLAN: rows have `id`, `problem` and `solutions`, and two lengths are held out."""
    world = PlanningWorld(rows=folder / "train.jsonl", held_out=folder / "held_out.jsonl", seen=folder / "seen.jsonl")
    tasks = sample_tasks(DISTILLATION_TASKS, split="train", seed=1)
    write_json_lines(
        ({"id": task.task_id, "problem": task.instruction, "solutions": [task.solution]} for task in tasks), world.rows
    )
    write_problems(sample_tasks(HELD_OUT_TASKS, split="held_out", lengths=(2, 3)), world.held_out)
    write_problems(sample_tasks(RANKER_TASKS, split="train", seed=2), world.seen)
    return world


def build_question_world(folder: Path) -> World:
    """Generate the world for IterKD: seed questions have `id`, `instruction` and `tests`."""
    world = World(rows=folder / "questions.jsonl", held_out=folder / "held_out.jsonl")
    tasks = sample_tasks(SEED_TASKS, split="train", seed=1)
    write_json_lines(
        ({"id": task.task_id, "instruction": task.instruction, "tests": task.tests} for task in tasks), world.rows
    )
    write_problems(sample_tasks(HELD_OUT_TASKS, split="held_out", lengths=(2, 3)), world.held_out)
    return world


def make_teacher(folder: Path, cache: Path, curriculum: Curriculum = CODE) -> None:
    """Put the teacher of a curriculum and its tokenizer into `folder`; train them unless `cache` holds them.

    The cache is keyed by this package's micro world, so a change of it trains anew. A teacher enters the cache whole
    or not at all, whatever interrupts its training and whoever trains another at the same time.
    """
    cached = cache / f"teacher-{curriculum.name}-{_fingerprint()}"
    if not cached.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="training-") as scratch:
            _train_teacher(Path(scratch) / "teacher", curriculum)
            try:
                os.rename(Path(scratch) / "teacher", cached)
            except OSError:
                if not cached.exists():
                    raise
    shutil.copytree(cached, folder)


def make_student(folder: Path, teacher: Path, seed: int) -> None:
    """Put a student, briefly trained on programs alone, into `folder`, with the tokenizer found in `teacher`."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    max_length = AutoConfig.from_pretrained(teacher).max_position_embeddings
    student = new_model(student_config(tokenizer, max_length), seed=seed)
    with tempfile.TemporaryDirectory() as scratch:
        rows = list(code_rows(sample_tasks(STUDENT_TASKS, split="train")))
        pretrain(student, tokenizer, rows, output_dir=scratch, max_steps=STUDENT_STEPS, seed=seed)
    _save(student, tokenizer, folder)


def default_cache() -> Path:
    """Return the folder for teachers: `trl_akd/micro` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "trl_akd" / "micro"


def _train_teacher(folder: Path, curriculum: Curriculum) -> None:
    tasks = sample_tasks(TEACHER_TASKS, split="train")
    shown = tasks[:TOKENIZER_TASKS]
    texts = [row["prompt"] + row["completion"] for row in (*code_rows(shown), *curriculum.rows(shown))]
    tokenizer = train_tokenizer(texts)
    teacher = new_model(teacher_config(tokenizer, curriculum.max_length))
    with tempfile.TemporaryDirectory() as scratch:
        rows = list(curriculum.rows(tasks))
        pretrain(teacher, tokenizer, rows, output_dir=scratch, max_steps=curriculum.steps)
    _save(teacher, tokenizer, folder)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _fingerprint() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
