"""The quickstart of IterKD: two cycles of right and wrong answers, feedback, and new questions."""

import json
import time
from pathlib import Path

import yaml

from .quickstart_stages import EVALUATION, RESULTS, next_command, run_recipe, stage

__all__ = ["quickstart"]

RECIPE = "recipes/micro/iterkd/config.yaml"
MADE = ("teacher", "student-before", "student-iterkd", EVALUATION)
PROMPTS, JUDGE_REQUEST = "teaching_prompts.yaml", "judge_request.txt"


def quickstart(folder: Path, seed: int) -> None:
    """Generate, run the cycles, and print the table of them.

    Args:
        folder (`Path`):
            Where everything is written.
        seed (`int`):
            Seed of the student and of the cycles; the world and the teacher have their own.
    """
    from ..micro.lessons import JUDGE_LAYOUT, LESSONS, TEACHING_LAYOUTS
    from ..micro.stages import build_question_world, default_cache, make_student, make_teacher
    from . import iterkd

    began = time.monotonic()
    teacher, before, after = folder / "teacher", folder / "student-before", folder / "student-iterkd"
    with stage("1/5 A world of programming questions"):
        world = build_question_world(folder)
        (folder / PROMPTS).write_text(yaml.safe_dump(dict(TEACHING_LAYOUTS)))
        (folder / JUDGE_REQUEST).write_text(JUDGE_LAYOUT)
    with stage("2/5 A teacher that also errs, judges and asks, kept for the next time"):
        make_teacher(teacher, default_cache(), LESSONS)
    with stage("3/5 The student, briefly trained"):
        make_student(before, teacher, seed)
    with stage("4/5 The student before: trl-akd evaluate"):
        pass_before = _evaluate(folder, before, world.held_out)
    with stage(f"5/5 The cycles: trl-akd iterkd --config {RECIPE}"):
        fields: dict[str, Path | int] = {
            "model_name_or_path": before,
            "teacher_model_name_or_path": teacher,
            "dataset_name": world.rows,
            "prompts_file": folder / PROMPTS,
            "judge_prompt_file": folder / JUDGE_REQUEST,
            "eval_benchmark": world.held_out,
            "output_dir": after,
            "seed": seed,
        }
        run_recipe(iterkd.main, RECIPE, **fields)
    seconds = time.monotonic() - began
    cycles = json.loads((after / "cycles.json").read_text())
    results = {"seed": seed, "seconds": round(seconds, 1), "before": pass_before, "cycles": cycles}
    (folder / RESULTS).write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nBefore the first cycle: pass@1 {pass_before:.2f}.\n")
    print(f"Done in {seconds:.0f} s. What was asked, run and decided: {after / 'ledger'}")
    print("Run a third cycle:")
    print(next_command("iterkd", RECIPE, cycles=3, **fields))


def _evaluate(folder: Path, model: Path, problems: Path) -> float:
    from . import evaluate

    output_dir = folder / EVALUATION / model.name
    flags = {"model_name_or_path": model, "benchmark": problems, "output_dir": output_dir, "generation_batch_size": 64}
    evaluate.main(
        [*(text for name, value in flags.items() for text in (f"--{name}", str(value))), "--allow_code_execution"]
    )
    metrics = json.loads((output_dir / "results.json").read_text())["metrics"]
    return float(metrics["pass@1"])
