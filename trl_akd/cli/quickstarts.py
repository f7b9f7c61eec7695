"""Quickstarts of the methods: generate tasks, train teacher and student, run the method's recipe, evaluate."""

import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from .methods import Quickstart
from .recipes import read_recipe

__all__ = ["AKD", "CODEPLAN", "ITERKD", "JUDGE_PROMPT_FILE", "PROMPTS_FILE", "next_command"]

AKD_RECIPE = "recipes/micro/akd/config.yaml"
CODEPLAN_RECIPES = "recipes/micro/codeplan"
ITERKD_RECIPE = "recipes/micro/iterkd/config.yaml"
PROMPTS_FILE, JUDGE_PROMPT_FILE = "teaching_prompts.yaml", "judge_request.txt"
PLAN_PROMPT_FILE, FORWARD_PROMPT_FILE = "plan_request.txt", "plan_request_forward.txt"
BATCH_SIZE = 64
NUM_PLANS = 10
_AS_TRAINED = {"prompt_style": "template", "prompt_template": "codeplan_code"}
_RESULTS = "results.json"
_EVALUATION = "evaluation"
_RANKER = "ranker"
_CACHE = "teacher-cache"
_WIDTH = 112  # maximum number of characters per line of a printed command

Fields = dict[str, Path | int]


@contextmanager
def _stage(title: str) -> Iterator[None]:
    """Print the title of a stage and its duration."""
    print(f"\n[{title}]", flush=True)
    began = time.monotonic()
    yield
    print(f"[{time.monotonic() - began:.0f} s]", flush=True)


def _run(command: Callable[[list[str]], None], recipe: str | None, **fields: Path | str | float | bool) -> None:
    """Run a command in this process with some fields of its recipe replaced."""
    flags = [text for name, value in fields.items() for text in (f"--{name}", str(value))]
    command([*([] if recipe is None else ["--config", recipe]), *flags])


def next_command(command: str, recipe: str | None = None, *flags: str, **overrides: Path | str | float) -> str:
    r"""Return a command for the user to run next, wrapped if it is long.

    Example:

    ```python
    >>> print(next_command("akd", "recipes/micro/akd/config.yaml", beta=0, output_dir="outputs/quickstart/kd"))
      trl-akd akd --config recipes/micro/akd/config.yaml --beta 0 --output_dir outputs/quickstart/kd

    ```
    """
    given = {} if recipe is None else read_recipe(recipe).values
    parts = [f"trl-akd {command}", *([] if recipe is None else [f"--config {recipe}"])]
    parts += [
        f"--{name} {shlex.quote(str(value))}"
        for name, value in overrides.items()
        if name not in given or str(given[name]) != str(value)
    ]
    lines = [""]
    for part in [*parts, *flags]:
        if lines[-1] and len(lines[-1]) + len(part) > _WIDTH:
            lines.append("   ")
        lines[-1] += f" {part}"
    return " \\\n".join(f" {line}" for line in lines)


def _write_results(folder: Path, seed: int, seconds: float, **results: Any) -> None:
    content = {"seed": seed, "seconds": round(seconds, 1), **results}
    (folder / _RESULTS).write_text(json.dumps(content, indent=2) + "\n")


def _evaluate(
    model: Path, problems: Path, output_dir: Path, recipe: str | None = None, **fields: Path | str | float | bool
) -> dict[str, Any]:
    """Run `trl-akd evaluate` in this process, and return its results."""
    from . import evaluate

    _run(evaluate.main, recipe, model_name_or_path=model, benchmark=problems, output_dir=output_dir, **fields)
    results: dict[str, Any] = json.loads((output_dir / _RESULTS).read_text())
    return results


def _write_report(run: Path, evaluations: Sequence[Path]) -> None:
    """Write the report of the training run again, now with the evaluations, and print where it is."""
    from ..report.writer import try_to_write_report

    if report := try_to_write_report(run, evaluations):
        print(f"Scores, curves and sample programs: {report}")


def _run_akd(folder: Path, seed: int) -> None:
    """Distill the teacher's distribution into the student, evaluate all three models and print a table."""
    from ..micro.build import default_cache, make_student, make_teacher, write_akd_tasks

    began = time.monotonic()
    teacher, before, after = folder / "teacher", folder / "student-before", folder / "student-akd"
    signals = folder / _CACHE
    models = {"teacher": teacher, "student": before, "student after AKD": after}
    with _stage("1/6 Generate programming tasks"):
        files = write_akd_tasks(folder)
    with _stage("2/6 Train the teacher, kept in the cache"):
        make_teacher(teacher, default_cache())
    with _stage("3/6 Train the student briefly"):
        make_student(before, teacher, seed)
    with _stage(f"4/6 Run the teacher over the rows once: trl-akd cache --config {AKD_RECIPE}"):
        _cache(teacher, before, files.rows, signals, seed)
    with _stage(f"5/6 Distill: trl-akd akd --config {AKD_RECIPE} --teacher_cache {signals}"):
        _distill(teacher, before, files.rows, after, seed, signals)
    with _stage("6/6 Run the code of all three in a sandbox"):
        results = {
            name: _evaluate_akd(path, files.held_out, folder / _EVALUATION / path.name)
            for name, path in models.items()
        }
        _update_card(after, results, folder / _EVALUATION)
    figure = _plot_curves(after)
    seconds = time.monotonic() - began
    found = {name: {part: result[part] for part in ("metrics", "samples")} for name, result in results.items()}
    _write_results(folder, seed, seconds, models=found)
    print(f"\n{_akd_table(results, models)}")
    print(f"\nDone in {seconds:.0f} s. {figure}")
    _write_report(after, [folder / _EVALUATION / path.name for path in models.values()])
    print(f"\nLoad the student: AutoModelForCausalLM.from_pretrained({str(after)!r})")
    print("Evaluate it again:")
    print(next_command("evaluate", None, "--allow_code_execution", model_name_or_path=after, benchmark=files.held_out))
    print("Train by plain distillation (forward KL), to compare:")
    kd = _akd_fields(teacher, before, files.rows, folder / "student-kd", seed)
    print(next_command("akd", AKD_RECIPE, beta_strategy="fixed", beta=0, **kd))


def _cache(teacher: Path, student: Path, rows: Path, output_dir: Path, seed: int) -> None:
    from . import cache

    _run(cache.main, AKD_RECIPE, **_akd_fields(teacher, student, rows, output_dir, seed))


def _distill(teacher: Path, student: Path, rows: Path, output_dir: Path, seed: int, signals: Path) -> None:
    from . import akd

    _run(akd.main, AKD_RECIPE, teacher_cache=signals, **_akd_fields(teacher, student, rows, output_dir, seed))


def _akd_fields(teacher: Path, student: Path, rows: Path, output_dir: Path, seed: int) -> Fields:
    return {
        "teacher_model_name_or_path": teacher,
        "model_name_or_path": student,
        "dataset_name": rows,
        "output_dir": output_dir,
        "seed": seed,
    }


def _evaluate_akd(model: Path, problems: Path, output_dir: Path) -> Mapping[str, Any]:
    """Evaluate as `trl-akd evaluate` does, without printing its report."""
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


def _update_card(student: Path, results: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Add the scores of the student, which is last in `results`, and the comparison to its model card."""
    from ..evaluation.cards import card_comparison, card_scores, card_sections, update_model_card

    last = results[list(results)[-1]]
    sections = {**card_sections(last), **card_comparison(results, [1], seed=0)}
    update_model_card(str(student), card_scores(last, last["generation"]), sections, revision=None, folder=folder)


def _plot_curves(run: Path) -> str:
    """Plot the divergences and β over optimizer steps, and return a sentence about the figure."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "Install matplotlib to get a figure of beta and the divergences."
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    logs = [log for log in history if "kd/forward_kl" in log]
    steps, path = [log["step"] for log in logs], run / "curves.png"
    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for key, label in (("kd/forward_kl", "forward KL"), ("kd/reverse_kl", "reverse KL")):
        above.plot(steps, [log[key] for log in logs], label=label)
    above.set_ylabel("nats per target token")
    above.set_ylim(bottom=0)
    above.legend()
    below.plot(steps, [log["kd/beta"] for log in logs], color="tab:green")
    below.set_ylabel("β, weight of reverse KL")
    below.set_ylim(0, 1)
    below.set_xlabel("optimizer step")
    figure.savefig(path, dpi=120)
    return f"Beta and the divergences over time: {path}"


def _akd_table(results: Mapping[str, Mapping[str, Any]], paths: Mapping[str, Path]) -> str:
    from ..evaluation.report import compare
    from ..hub.markdown import markdown_table

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

    loaded = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False)
    return sum(parameter.numel() for parameter in loaded.parameters())


def _run_codeplan(folder: Path, seed: int) -> None:
    """Generate plans with the teacher, train with and without them, sample plans, and print a table."""
    from ..micro.build import default_cache, make_student, make_teacher, write_codeplan_tasks
    from ..micro.teacher_data import BACKWARD_PROMPT, CODEPLAN_DATA, FORWARD_PROMPT

    began = time.monotonic()
    teacher, before, planned = folder / "teacher", folder / "student-before", folder / "student-codeplan"
    plain = folder / "student-unplanned"
    with _stage("1/7 Generate programming tasks"):
        files = write_codeplan_tasks(folder)
        (folder / PLAN_PROMPT_FILE).write_text(BACKWARD_PROMPT)
        (folder / FORWARD_PROMPT_FILE).write_text(FORWARD_PROMPT)
    with _stage("2/7 Train a teacher that writes plans, kept in the cache"):
        make_teacher(teacher, default_cache(), CODEPLAN_DATA)
    with _stage("3/7 Train the student briefly on programs"):
        make_student(before, teacher, seed)
    with _stage(f"4/7 Write plans: trl-akd plans --config {CODEPLAN_RECIPES}/plans.yaml"):
        _write_plans(folder, files.rows)
    with _stage(f"5/7 Train without and with plans: trl-akd codeplan --config {CODEPLAN_RECIPES}/config.yaml"):
        _train_codeplan(folder, plain, seed, plan_weight=0, guided_weight=0)
        _train_codeplan(folder, planned, seed)
    with _stage(f"6/7 Train a ranker: trl-akd ranker train --config {CODEPLAN_RECIPES}/ranker.yaml"):
        assert files.seen is not None
        _train_ranker(folder, planned, files.seen, seed)
    with _stage(
        f"7/7 Select plans by tests: trl-akd evaluate --config {CODEPLAN_RECIPES}/evaluate.yaml --plan_sampling"
    ):
        results = {
            "teacher": _evaluate_codeplan(folder, teacher, files.held_out, seed, **_AS_TRAINED),
            "student": _evaluate_codeplan(folder, before, files.held_out, seed),
            "student without plans": _evaluate_codeplan(folder, plain, files.held_out, seed, **_AS_TRAINED),
            "student after CodePLAN": _evaluate_codeplan(
                folder, planned, files.held_out, seed, plan_sampling=True, num_plans=NUM_PLANS, ranker=folder / _RANKER
            ),
        }
    seconds = time.monotonic() - began
    _write_results(folder, seed, seconds, models=results)
    print(f"\n{_codeplan_table(results)}\n\nDone in {seconds:.0f} s.")
    _write_report(
        planned, [folder / _EVALUATION / files.held_out.stem / path.name for path in (teacher, before, planned)]
    )
    print(f"Let the student plan:  python {_write_example(planned, files.held_out)}")
    print("Write plans from the problems alone, to compare:")
    forward = _plan_fields(folder, files.rows, FORWARD_PROMPT_FILE, folder / "plans-forward")
    print(next_command("plans", f"{CODEPLAN_RECIPES}/plans.yaml", reasoning="forward", **forward))
    print("Train without the task of following a plan, to compare:")
    fields = _codeplan_fields(folder, folder / "student-unguided", seed)
    print(next_command("codeplan", f"{CODEPLAN_RECIPES}/config.yaml", guided_weight=0, **fields))


def _write_example(student: Path, problems: Path) -> Path:
    """Write a program in which the student plans and solves the first problem."""
    from ..codeplan.task_prompts import planning_example

    problem = json.loads(problems.read_text().splitlines()[0])["instruction"]
    path = student / "plan.py"
    path.write_text(planning_example(str(student), plan_head=True, problem=problem, max_new_tokens=48) + "\n")
    return path


def _codeplan_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of pass@1 of each model and, for a model with plans, by the number of plans."""
    from ..hub.markdown import markdown_table

    rows = []
    for name, result in results.items():
        curve = result.get("plans", {}).get("curve")
        if curve is None:
            metrics = result["metrics"]
            rows.append([name, "", *_cells([metrics["pass@1"], metrics["pass@1_low"], metrics["pass@1_high"]]), ""])
            continue
        for number, points in curve.items():
            rows.append([name, number, *_cells(points["pass@1"]), f"{points['top@1'][0]:.2f}"])
    return markdown_table(["model", "plans", "pass@1", "95 % interval", "ranked first"], rows)


def _cells(point: Sequence[float]) -> list[str]:
    value, low, high, *_ = point
    return [f"{value:.2f}", f"{low:.2f} to {high:.2f}"]


def _write_plans(folder: Path, rows: Path) -> None:
    from . import plans

    _run(
        plans.main, f"{CODEPLAN_RECIPES}/plans.yaml", **_plan_fields(folder, rows, PLAN_PROMPT_FILE, folder / "plans")
    )


def _plan_fields(folder: Path, rows: Path, prompt_file: str, output_dir: Path) -> dict[str, Path]:
    return {
        "model_name_or_path": folder / "teacher",
        "prompt_file": folder / prompt_file,
        "dataset_name": rows,
        "output_dir": output_dir,
    }


def _train_codeplan(folder: Path, output_dir: Path, seed: int, **overrides: float) -> None:
    from . import codeplan

    fields = _codeplan_fields(folder, output_dir, seed)
    _run(codeplan.main, f"{CODEPLAN_RECIPES}/config.yaml", **fields, **overrides)


def _codeplan_fields(folder: Path, output_dir: Path, seed: int) -> Fields:
    return {
        "model_name_or_path": folder / "student-before",
        "dataset_name": folder / "plans" / "plans.jsonl",
        "output_dir": output_dir,
        "seed": seed,
    }


def _train_ranker(folder: Path, student: Path, problems: Path, seed: int) -> None:
    """Train a ranker on the student's programs for problems of its training distribution."""
    from . import ranker

    _evaluate_codeplan(folder, student, problems, seed, **_AS_TRAINED, num_samples=4)
    programs, data = folder / _EVALUATION / problems.stem / student.name, folder / "ranker.jsonl"
    ranker.main(["data", "--evaluations", str(programs), "--benchmark", str(problems), "--output", str(data)])
    _run(
        lambda flags: ranker.main(["train", *flags]),
        f"{CODEPLAN_RECIPES}/ranker.yaml",
        model_name_or_path=student,
        train_file=data,
        output_dir=folder / _RANKER,
        seed=seed,
    )


def _evaluate_codeplan(
    folder: Path, model: Path, problems: Path, seed: int, **fields: Path | str | float | bool
) -> dict[str, Any]:
    output_dir = folder / _EVALUATION / problems.stem / model.name
    return _evaluate(model, problems, output_dir, f"{CODEPLAN_RECIPES}/evaluate.yaml", seed=seed, **fields)


def _run_iterkd(folder: Path, seed: int) -> None:
    """Run two cycles and print their table."""
    from ..micro.build import default_cache, make_student, make_teacher, write_iterkd_tasks
    from ..micro.teacher_data import ITERKD_DATA, JUDGE_PROMPT, TEACHING_PROMPTS
    from . import iterkd

    began = time.monotonic()
    teacher, before, after = folder / "teacher", folder / "student-before", folder / "student-iterkd"
    with _stage("1/5 Generate programming questions"):
        files = write_iterkd_tasks(folder)
        (folder / PROMPTS_FILE).write_text(yaml.safe_dump(dict(TEACHING_PROMPTS)))
        (folder / JUDGE_PROMPT_FILE).write_text(JUDGE_PROMPT)
    with _stage("2/5 Train a teacher that also writes faults, judgements and questions, kept in the cache"):
        make_teacher(teacher, default_cache(), ITERKD_DATA)
    with _stage("3/5 Train the student briefly"):
        make_student(before, teacher, seed)
    with _stage("4/5 Evaluate the student: trl-akd evaluate"):
        results = _evaluate(
            before,
            files.held_out,
            folder / _EVALUATION / before.name,
            generation_batch_size=BATCH_SIZE,
            allow_code_execution=True,
        )
        pass_before = results["metrics"]["pass@1"]
    with _stage(f"5/5 Run the cycles: trl-akd iterkd --config {ITERKD_RECIPE}"):
        fields: Fields = {
            "model_name_or_path": before,
            "teacher_model_name_or_path": teacher,
            "dataset_name": files.rows,
            "prompts_file": folder / PROMPTS_FILE,
            "judge_prompt_file": folder / JUDGE_PROMPT_FILE,
            "eval_benchmark": files.held_out,
            "output_dir": after,
            "seed": seed,
        }
        _run(iterkd.main, ITERKD_RECIPE, **fields)
    seconds = time.monotonic() - began
    cycles = json.loads((after / "cycles.json").read_text())
    _write_results(folder, seed, seconds, before=pass_before, cycles=cycles)
    print(f"\nBefore the first cycle: pass@1 {pass_before:.2f}.\n")
    print(f"Done in {seconds:.0f} s. Requests, results and decisions: {after / 'ledger'}")
    _write_report(after, [folder / _EVALUATION / before.name])
    print("Run a third cycle:")
    print(next_command("iterkd", ITERKD_RECIPE, cycles=3, **fields))


AKD = Quickstart("outputs/quickstart", ("student-before", "student-akd", "teacher", _CACHE, _EVALUATION), _run_akd)
CODEPLAN = Quickstart(
    "outputs/quickstart-codeplan",
    ("teacher", "student-before", "student-unplanned", "student-codeplan", "plans", _RANKER, _EVALUATION),
    _run_codeplan,
)
ITERKD = Quickstart(
    "outputs/quickstart-iterkd", ("teacher", "student-before", "student-iterkd", _EVALUATION), _run_iterkd
)
