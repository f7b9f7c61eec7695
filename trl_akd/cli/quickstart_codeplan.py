"""The quickstart of CodePLAN: a teacher writes plans, a student learns them, and tests choose between its own."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .quickstart_stages import EVALUATION, RESULTS, next_command, run_recipe, stage

__all__ = ["quickstart"]

RECIPES = "recipes/micro/codeplan"
RANKER, REQUEST, FORWARD_REQUEST = "ranker", "plan_request.txt", "plan_request_forward.txt"
MADE = ("teacher", "student-before", "student-unplanned", "student-codeplan", "plans", RANKER, EVALUATION)
NUM_PLANS = 10
AS_TRAINED = {"prompt_style": "template", "prompt_template": "codeplan_code"}

Results = Mapping[str, Any]


def quickstart(folder: Path, seed: int) -> None:
    """Generate, have plans written, train with and without them, sample plans, and print the tables.

    Args:
        folder (`Path`):
            Where everything is written.
        seed (`int`):
            Seed of the students, their training and their samples; the world and the teacher have their own.
    """
    from ..micro.curricula import BACKWARD_LAYOUT, FORWARD_LAYOUT, PLANS
    from ..micro.stages import build_planning_world, default_cache, make_student, make_teacher

    began = time.monotonic()
    teacher, before, planned = folder / "teacher", folder / "student-before", folder / "student-codeplan"
    plain = folder / "student-unplanned"
    with stage("1/7 A world of programming tasks"):
        world = build_planning_world(folder)
        (folder / REQUEST).write_text(BACKWARD_LAYOUT)
        (folder / FORWARD_REQUEST).write_text(FORWARD_LAYOUT)
    with stage("2/7 A teacher that plans, kept for the next time"):
        make_teacher(teacher, default_cache(), PLANS)
    with stage("3/7 The student, briefly trained on programs"):
        make_student(before, teacher, seed)
    with stage(f"4/7 Its plans: trl-akd plans --config {RECIPES}/plans.yaml"):
        _write_plans(folder, world.rows)
    with stage(f"5/7 Training without and with plans: trl-akd codeplan --config {RECIPES}/config.yaml"):
        _train(folder, plain, seed, plan_weight=0, guided_weight=0)
        _train(folder, planned, seed)
    with stage(f"6/7 A ranker: trl-akd ranker train --config {RECIPES}/ranker.yaml"):
        _train_ranker(folder, planned, world.seen, seed)
    with stage(f"7/7 Plans that tests choose: trl-akd evaluate --config {RECIPES}/evaluate.yaml --plan_sampling"):
        results = {
            "teacher": _evaluate(folder, teacher, world.held_out, seed, **AS_TRAINED),
            "student": _evaluate(folder, before, world.held_out, seed),
            "student without plans": _evaluate(folder, plain, world.held_out, seed, **AS_TRAINED),
            "student after CodePLAN": _evaluate(
                folder, planned, world.held_out, seed, plan_sampling=True, num_plans=NUM_PLANS, ranker=folder / RANKER
            ),
        }
    seconds = time.monotonic() - began
    (folder / RESULTS).write_text(
        json.dumps({"seed": seed, "seconds": round(seconds, 1), "models": results}, indent=2) + "\n"
    )
    print(f"\n{_table(results)}\n\nDone in {seconds:.0f} s.")
    print(f"Let the student plan:  python {_write_example(planned, world.held_out)}")
    print("Write plans from the problems alone, to compare:")
    forward = _plan_fields(folder, world.rows, FORWARD_REQUEST, folder / "plans-forward")
    print(next_command("plans", f"{RECIPES}/plans.yaml", reasoning="forward", **forward))
    print("Train without the task of following a plan, to compare:")
    fields = _training_fields(folder, folder / "student-unguided", seed)
    print(next_command("codeplan", f"{RECIPES}/config.yaml", guided_weight=0, **fields))


def _write_example(student: Path, problems: Path) -> Path:
    """Write a program that has the student plan and solve the first of the problems."""
    from ..codeplan.task_prompts import planning_example

    problem = json.loads(problems.read_text().splitlines()[0])["instruction"]
    path = student / "plan.py"
    path.write_text(planning_example(str(student), plan_head=True, problem=problem, max_new_tokens=48) + "\n")
    return path


def _table(results: Mapping[str, Results]) -> str:
    """Lay out pass@1 of each model and, where it planned, by the number of plans to choose from."""
    from ..evaluation.tables import markdown_table

    rows = []
    for name, result in results.items():
        curve = result.get("plans", {}).get("curve")
        if curve is None:
            metrics = result["metrics"]
            rows.append([name, "", *_cells([metrics["pass@1"], metrics["pass@1_low"], metrics["pass@1_high"]]), ""])
            continue
        for number, points in curve.items():
            rows.append([name, number, *_cells(points["pass@1"]), f"{points['top@1'][0]:.2f}"])
    return markdown_table(["model", "plans to choose from", "pass@1", "95 % interval", "ranked first"], rows)


def _cells(point: Sequence[float]) -> list[str]:
    value, low, high, *_ = point
    return [f"{value:.2f}", f"{low:.2f} to {high:.2f}"]


def _write_plans(folder: Path, rows: Path) -> None:
    from . import plans

    run_recipe(plans.main, f"{RECIPES}/plans.yaml", **_plan_fields(folder, rows, REQUEST, folder / "plans"))


def _plan_fields(folder: Path, rows: Path, request: str, output_dir: Path) -> dict[str, Path]:
    return {
        "model_name_or_path": folder / "teacher",
        "prompt_file": folder / request,
        "dataset_name": rows,
        "output_dir": output_dir,
    }


def _train(folder: Path, output_dir: Path, seed: int, **overrides: float) -> None:
    from . import codeplan

    fields = _training_fields(folder, output_dir, seed)
    run_recipe(codeplan.main, f"{RECIPES}/config.yaml", **fields, **overrides)


def _training_fields(folder: Path, output_dir: Path, seed: int) -> dict[str, Path | int]:
    return {
        "model_name_or_path": folder / "student-before",
        "dataset_name": folder / "plans" / "plans.jsonl",
        "output_dir": output_dir,
        "seed": seed,
    }


def _train_ranker(folder: Path, student: Path, problems: Path, seed: int) -> None:
    """Let the student answer problems of the kind it has seen, and learn to tell which of its programs are right."""
    from . import ranker

    _evaluate(folder, student, problems, seed, **AS_TRAINED, num_samples=4)
    programs, data = folder / EVALUATION / problems.stem / student.name, folder / "ranker.jsonl"
    ranker.main(["data", "--evaluations", str(programs), "--benchmark", str(problems), "--output", str(data)])
    run_recipe(
        lambda flags: ranker.main(["train", *flags]),
        f"{RECIPES}/ranker.yaml",
        model_name_or_path=student,
        train_file=data,
        output_dir=folder / RANKER,
        seed=seed,
    )


def _evaluate(
    folder: Path, model: Path, problems: Path, seed: int, **overrides: Path | str | float | bool
) -> dict[str, Any]:
    """Run `trl-akd evaluate`; the programs of its own world may run without another consent."""
    from . import evaluate

    output_dir = folder / EVALUATION / problems.stem / model.name
    run_recipe(
        evaluate.main,
        f"{RECIPES}/evaluate.yaml",
        model_name_or_path=model,
        benchmark=problems,
        output_dir=output_dir,
        seed=seed,
        **overrides,
    )
    results: dict[str, Any] = json.loads((output_dir / "results.json").read_text())
    return results
