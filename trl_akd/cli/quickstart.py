"""`trl-akd quickstart`: from nothing to a distilled student, judged by the code it writes. Offline, on a CPU.

A world of small programming tasks is generated, a teacher and a student are trained on it, and the student is
distilled by the recipe `recipes/micro/akd/config.yaml`, through the same command that a large run uses.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError, user_errors

__all__ = ["main"]

RECIPE = "recipes/micro/akd/config.yaml"
RESULTS = "results.json"


def main(argv: list[str] | None = None) -> None:
    """Run the command on `argv`, by default the process's arguments."""
    parser = argparse.ArgumentParser(prog="trl-akd quickstart", description=__doc__)
    parser.add_argument("--output_dir", default="outputs/quickstart", help="folder for data, models and results")
    parser.add_argument("--seed", type=int, default=0, help="seed of the student and of the distillation")
    options = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin stall one another on a busy machine
    with user_errors((OSError,)):
        quickstart(_own_folder(Path(options.output_dir)), options.seed)


def quickstart(folder: Path, seed: int) -> None:
    """Generate, train, distil and judge, then print the table.

    Args:
        folder (`Path`):
            Where everything is written.
        seed (`int`):
            Seed of the student and of the distillation; the world and the teacher have their own.
    """
    from ..micro.evaluation import pass_at_1
    from ..micro.stages import build_world, default_cache, make_student, make_teacher

    began = time.monotonic()
    teacher, before, after = folder / "teacher", folder / "student-before", folder / "student-akd"
    models = {"teacher": teacher, "student": before, "student after AKD": after}
    with _stage("1/5 A world of programming tasks"):
        world = build_world(folder)
    with _stage("2/5 The teacher, kept for the next time"):
        make_teacher(teacher, default_cache())
    with _stage("3/5 The student, briefly trained"):
        make_student(before, teacher, seed)
    with _stage(f"4/5 Distillation: trl-akd akd --config {RECIPE}"):
        _distil(teacher, before, world.rows, after, seed)
    with _stage("5/5 Running the code they write"):
        scores = {name: pass_at_1(*_load(path), world.held_out, desc=name) for name, path in models.items()}
    figure = _draw(after)
    seconds = time.monotonic() - began
    _write_results(folder / RESULTS, scores, seed, seconds)
    _print_table(scores, models)
    print(f"\nDone in {seconds:.0f} s. {figure}")
    print(f"Load the student:  AutoModelForCausalLM.from_pretrained({str(after)!r})")
    print(f"Compare with KD:   trl-akd akd --config {RECIPE} --beta_strategy fixed --beta 0 \\")
    print(f"                       --output_dir {folder / 'student-kd'}")


def _distil(teacher: Path, student: Path, rows: Path, output_dir: Path, seed: int) -> None:
    from . import akd

    overrides = {
        "teacher_model_name_or_path": teacher,
        "model_name_or_path": student,
        "dataset_name": rows,
        "output_dir": output_dir,
        "seed": seed,
    }
    flags = [text for name, value in overrides.items() for text in (f"--{name}", str(value))]
    akd.main(["--config", RECIPE, *flags])


def _load(path: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def _write_results(path: Path, scores: dict[str, Any], seed: int, seconds: float) -> None:
    counts = {name: {"passed": score.passed, "total": score.total} for name, score in scores.items()}
    path.write_text(json.dumps({"seed": seed, "seconds": round(seconds, 1), "pass@1": counts}, indent=2) + "\n")


def _draw(run: Path) -> str:
    from ..akd.curves import plot_curves

    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    try:
        plot_curves(history, run / "curves.png")
    except ImportError:
        return "Install matplotlib to get a figure of beta and the divergences."
    return f"Beta and the divergences over time: {run / 'curves.png'}"


def _print_table(scores: dict[str, Any], paths: dict[str, Path]) -> None:
    sizes = {name: sum(p.numel() for p in _load(path)[0].parameters()) for name, path in paths.items()}
    print(f"\n| {'model':17} | parameters | pass@1 | tasks solved |")
    print(f"|{'-' * 19}|{'-' * 11}:|{'-' * 7}:|{'-' * 13}:|")
    for name, score in scores.items():
        solved = f"{score.passed} of {score.total}"
        print(f"| {name:17} | {sizes[name]:>10,} | {score.score:6.2f} | {solved:>12} |")


def _own_folder(folder: Path) -> Path:
    """Return an empty `folder`, removing what an earlier quickstart left there, and nothing else."""
    marker = folder / ".trl_akd_quickstart"
    if folder.exists() and any(folder.iterdir()) and not marker.exists():
        raise UserError(f"`--output_dir` is {str(folder)!r}, which holds other files; name a new or an empty folder.")
    for name in ("student-before", "student-akd", "teacher"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
    return folder


@contextmanager
def _stage(title: str) -> Iterator[None]:
    print(f"\n[{title}]", flush=True)
    began = time.monotonic()
    yield
    print(f"[{time.monotonic() - began:.0f} s]", flush=True)
