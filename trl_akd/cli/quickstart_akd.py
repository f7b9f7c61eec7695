"""The quickstart of AKD: a student distilled by the recipe `recipes/micro/akd/config.yaml`."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .quickstart_stages import EVALUATION, RESULTS, next_command, run_recipe, stage

__all__ = ["quickstart"]

RECIPE = "recipes/micro/akd/config.yaml"
MADE = ("student-before", "student-akd", "teacher", EVALUATION)
BATCH_SIZE = 64


def quickstart(folder: Path, seed: int) -> None:
    """Generate, train, distil and judge, then print the table.

    Args:
        folder (`Path`):
            Where everything is written.
        seed (`int`):
            Seed of the student and of the distillation; the world and the teacher have their own.
    """
    from ..micro.stages import build_world, default_cache, make_student, make_teacher

    began = time.monotonic()
    teacher, before, after = folder / "teacher", folder / "student-before", folder / "student-akd"
    models = {"teacher": teacher, "student": before, "student after AKD": after}
    with stage("1/5 A world of programming tasks"):
        world = build_world(folder)
    with stage("2/5 The teacher, kept for the next time"):
        make_teacher(teacher, default_cache())
    with stage("3/5 The student, briefly trained"):
        make_student(before, teacher, seed)
    with stage(f"4/5 Distillation: trl-akd akd --config {RECIPE}"):
        _distil(teacher, before, world.rows, after, seed)
    with stage("5/5 Running the code they write, in a sandbox"):
        results = {
            name: _judge(path, world.held_out, folder / EVALUATION / path.name) for name, path in models.items()
        }
    figure = _draw(after)
    seconds = time.monotonic() - began
    _write_results(folder / RESULTS, results, seed, seconds)
    print(f"\n{_table(results, models)}")
    print(f"\nDone in {seconds:.0f} s. {figure}")
    print(f"\nLoad the student: AutoModelForCausalLM.from_pretrained({str(after)!r})")
    print("Evaluate it again:")
    print(next_command("evaluate", None, "--allow_code_execution", model_name_or_path=after, benchmark=world.held_out))
    print("Train by plain distillation (forward KL), to compare:")
    kd = _training_fields(teacher, before, world.rows, folder / "student-kd", seed)
    print(next_command("akd", RECIPE, beta_strategy="fixed", beta=0, **kd))


def _distil(teacher: Path, student: Path, rows: Path, output_dir: Path, seed: int) -> None:
    from . import akd

    run_recipe(akd.main, RECIPE, **_training_fields(teacher, student, rows, output_dir, seed))


def _training_fields(teacher: Path, student: Path, rows: Path, output_dir: Path, seed: int) -> dict[str, Path | int]:
    return {
        "teacher_model_name_or_path": teacher,
        "model_name_or_path": student,
        "dataset_name": rows,
        "output_dir": output_dir,
        "seed": seed,
    }


def _judge(model: Path, problems: Path, output_dir: Path) -> Mapping[str, Any]:
    """Evaluate with the settings of `trl-akd evaluate`; its own world's programs may run without another consent."""
    from ..evaluation.evaluation_config import EvaluationConfig
    from ..evaluation.runner import evaluate

    evaluation = evaluate(
        EvaluationConfig(
            model_name_or_path=str(model),
            benchmark=str(problems),
            output_dir=str(output_dir),
            generation_batch_size=BATCH_SIZE,
            allow_code_execution=True,
        )
    )
    assert evaluation is not None
    return evaluation.results


def _write_results(path: Path, results: Mapping[str, Mapping[str, Any]], seed: int, seconds: float) -> None:
    found = {name: {part: result[part] for part in ("metrics", "samples")} for name, result in results.items()}
    path.write_text(json.dumps({"seed": seed, "seconds": round(seconds, 1), "models": found}, indent=2) + "\n")


def _draw(run: Path) -> str:
    from ..akd.curves import plot_curves

    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    try:
        plot_curves(history, run / "curves.png")
    except ImportError:
        return "Install matplotlib to get a figure of beta and the divergences."
    return f"Beta and the divergences over time: {run / 'curves.png'}"


def _table(results: Mapping[str, Mapping[str, Any]], paths: Mapping[str, Path]) -> str:
    from ..evaluation.comparison import compare
    from ..evaluation.tables import markdown_table

    rows = [
        [
            row["model"],
            f"{_parameters(paths[row['model']]):,}",
            f"{row['pass@1']:.2f}",
            f"{row['low']:.2f} to {row['high']:.2f}",
            "{passed} of {samples}".format(**results[row["model"]]["samples"]),
            "" if row["p_above"] is None else f"{row['p_above']:.1g}",
        ]
        for row in compare(results)
    ]
    return markdown_table(["model", "parameters", "pass@1", "95 % interval", "tasks solved", "p, to row above"], rows)


def _parameters(model: Path) -> int:
    from transformers import AutoModelForCausalLM

    return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_pretrained(model).parameters())
