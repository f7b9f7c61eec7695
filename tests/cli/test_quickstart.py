"""The quickstart: its last stage with tiny models and, in slow tests, all stages."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests import tiny
from tests.printed import printed_commands
from trl_akd.cli import main, quickstarts
from trl_akd.evaluation.benchmarks import load_benchmark
from trl_akd.execution import CodeExecutor
from trl_akd.hub.model_card import ModelCardContent, Provenance, model_card
from trl_akd.micro import build, teacher_data
from trl_akd.micro.tasks import sample_tasks, write_json_lines, write_problems
from trl_akd.teachers import CachedTeacher


def test_reference_solutions_of_the_tasks_pass(tmp_path: Path):
    tasks = sample_tasks(30, split="held_out", lengths=(3,))
    write_problems(tasks, tmp_path / "held_out.jsonl")
    problems = load_benchmark(str(tmp_path / "held_out.jsonl")).problems
    assert [problem.task_id for problem in problems] == [task.task_id for task in tasks]
    programs = [
        (problem.code_prompt + task.solution, problem.tests) for problem, task in zip(problems, tasks, strict=True)
    ]
    with CodeExecutor(allow_code_execution=True) as executor:
        assert all(result.passed for result in executor.run(programs))
        wrong = [("def solve(value):\n    return None", problem.tests) for problem in problems]
        assert not any(result.passed for result in executor.run(wrong))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Random models and a dozen tasks, because training takes minutes."""

    def save(folder: Path, *args) -> None:
        tiny.model(max_position_embeddings=400).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)

    def distill(teacher: Path, student: Path, rows: Path, output_dir: Path, seed: int, signals: Path) -> None:
        assert CachedTeacher(signals).manifest.kind == "hidden"
        assert rows.read_text().count("\n") == 60
        shutil.copytree(student, output_dir)
        logs = [{"step": 1, "kd/beta": 0.1, "kd/forward_kl": 1.0, "kd/reverse_kl": 1.0}]
        (output_dir / "trainer_state.json").write_text(json.dumps({"log_history": logs}))
        content = ModelCardContent("AKD", {}, model_name="student", repository=str(output_dir), tags=[])
        model_card(Provenance(), content).save(output_dir / "README.md")

    monkeypatch.setattr(build, "HELD_OUT_TASKS", 12)
    monkeypatch.setattr(build, "DISTILLATION_TASKS", 60)  # a batch of the recipe
    monkeypatch.setattr(build, "make_teacher", save)
    monkeypatch.setattr(build, "make_student", save)
    monkeypatch.setattr(quickstarts, "_distill", distill)


def printed_at_the_end(out: str) -> list[list[str]]:
    """Return the arguments of the commands that a quickstart prints at its end."""
    commands = printed_commands(out.rpartition("Done in ")[2])
    assert {program for program, *_ in commands} == {"trl-akd"}
    return [arguments for _, *arguments in commands]


def run_as_printed(out: str, commands: list[str]) -> None:
    """Run the commands that a quickstart prints at its end."""
    printed = printed_at_the_end(out)
    assert [argv[0] for argv in printed] == commands
    for argv in printed:
        assert main(argv) == 0, argv


@pytest.mark.end_to_end
def test_the_default_folder_needs_no_overrides(small, capsys):
    assert main(["quickstart"]) == 0
    out = capsys.readouterr().out
    assert printed_at_the_end(out)[1] == [
        *["akd", "--config", "recipes/micro/akd/config.yaml", "--beta_strategy", "fixed", "--beta", "0"],
        *["--output_dir", "outputs/quickstart/student-kd"],
    ]
    run_as_printed(out, ["evaluate", "akd"])


@pytest.mark.end_to_end
def test_it_prints_a_table(small, tmp_path: Path, capsys):
    folder = tmp_path / "quickstart"
    assert main(["quickstart", "--output_dir", str(folder)]) == 0
    out = capsys.readouterr().out
    for row in ("| teacher ", "| student ", "| student after AKD "):
        assert row in out
    assert "0 of 12" in out
    run_as_printed(out, ["evaluate", "akd"])
    results = json.loads((folder / "results.json").read_text())
    assert results["models"]["teacher"]["metrics"]["pass@1"] == 0.0
    assert (folder / "evaluation" / "student-akd" / "samples.jsonl").exists()
    card = ModelCard.load(folder / "student-akd" / "README.md")
    [score] = card.data.eval_results
    assert score.metric_value == results["models"]["student after AKD"]["metrics"]["pass@1"]
    assert score.metric_args["problems"] == 12 and "### Outcomes of the programs: held_out" in card.text
    for role in (r"teacher, `[^`]*teacher`", r"`[^`]*student-before`", "this model"):
        assert re.search(rf"\| pass@1 \| +{role} ", card.text), role
    assert "No benchmark" not in card.text and "programs that this model writes are correct" not in card.text
    assert "How the teacher" not in card.text
    assert main(["quickstart", "--output_dir", str(folder)]) == 0, "a second time, over the first"


@pytest.mark.end_to_end
def test_second_run_keeps_other_files(small, tmp_path: Path):
    folder = tmp_path / "quickstart"
    assert main(["quickstart", "--output_dir", str(folder)]) == 0
    (folder / "student-kd").mkdir()
    assert main(["quickstart", "--output_dir", str(folder)]) == 0
    assert (folder / "student-kd").is_dir()


def test_other_folders_are_refused(tmp_path: Path, capsys):
    (tmp_path / "cwd" / "thesis.tex").touch()
    assert main(["quickstart", "--output_dir", str(tmp_path / "cwd")]) == 2
    assert "has other files" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_codeplan_runs_all_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """All stages with their commands and recipes on a few tasks, which are too few to train a ranker."""

    def random_ranker(folder: Path, student: Path, problems: Path, seed: int) -> None:
        assert problems.read_text().count("\n") == 6
        labels = {"id2label": {0: "incorrect", 1: "correct"}, "label2id": {"incorrect": 0, "correct": 1}}
        ranker = AutoModelForSequenceClassification.from_pretrained(student, num_labels=2, **labels)
        ranker.save_pretrained(folder / "ranker")
        AutoTokenizer.from_pretrained(student, model_max_length=128).save_pretrained(folder / "ranker")

    monkeypatch.setattr(quickstarts, "_train_ranker", random_ranker)
    for name, size in (
        ("TEACHER_TASKS", 400),
        ("TOKENIZER_TASKS", 400),
        ("STUDENT_TASKS", 200),
        ("STUDENT_STEPS", 2),
        ("DISTILLATION_TASKS", 160),
        ("HELD_OUT_TASKS", 4),
        ("RANKER_TASKS", 6),
    ):
        monkeypatch.setattr(build, name, size)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(quickstarts, "NUM_PLANS", 2)
    monkeypatch.setattr(teacher_data, "CODEPLAN_DATA", replace(teacher_data.CODEPLAN_DATA, steps=30))
    folder = tmp_path / "quickstart"
    assert main(["quickstart", "--method", "codeplan", "--output_dir", str(folder)]) == 0
    out = capsys.readouterr().out
    for row in ("| teacher ", "| student without plans ", "| student after CodePLAN |"):
        assert row in out
    results = json.loads((folder / "results.json").read_text())["models"]
    assert list(results["student after CodePLAN"]["plans"]["curve"]) == ["0", "1", "2"]
    assert (folder / "student-codeplan" / "plan_head.safetensors").exists()
    [script] = re.findall(r"Let the student plan:  python (.*)", out)
    exec(compile(Path(script).read_text(), script, "exec"), {})
    capsys.readouterr()
    run_as_printed(out, ["plans", "codeplan"])
    report = json.loads((folder / "plans" / "report.json").read_text())
    assert report["wanted"] == 160 == report["plans"] + sum(report["rejected"].values())


@pytest.mark.end_to_end
def test_iterkd_runs_two_cycles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """All stages on a few tasks; the teacher is untrained and never right, so questions come with answers."""
    write_tasks = build.write_iterkd_tasks

    def build_with_answers(folder: Path) -> build.TaskFiles:
        world = write_tasks(folder)
        tasks = sample_tasks(build.SEED_TASKS, split="train", seed=1)
        rows = [json.loads(row) for row in world.rows.read_text().splitlines()]
        write_json_lines(({**row, "answer": task.solution} for row, task in zip(rows, tasks, strict=True)), world.rows)
        return world

    for name, size in (
        ("TEACHER_TASKS", 200),
        ("TOKENIZER_TASKS", 200),
        ("STUDENT_TASKS", 200),
        ("STUDENT_STEPS", 2),
        ("SEED_TASKS", 12),
        ("HELD_OUT_TASKS", 4),
    ):
        monkeypatch.setattr(build, name, size)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "write_iterkd_tasks", build_with_answers)
    monkeypatch.setattr(teacher_data, "ITERKD_DATA", replace(teacher_data.ITERKD_DATA, steps=20))
    folder = tmp_path / "quickstart"
    assert main(["quickstart", "--method", "iterkd", "--output_dir", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "Cycle 2 of 2, training" in out and "| cycle | questions |" in out
    cycles = json.loads((folder / "results.json").read_text())["cycles"]
    assert cycles[0]["questions"] == 12 and len(cycles) == 2
    assert (folder / "student-iterkd" / "cycles.png").exists()
    assert (folder / "student-iterkd" / "model.safetensors").exists()
    run_as_printed(out, ["iterkd"])
    assert len(json.loads((folder / "student-iterkd" / "cycles.json").read_text())) == 3


@pytest.mark.slow
def test_the_student_learns(tmp_path: Path):
    folder = tmp_path / "quickstart"
    assert main(["quickstart", "--output_dir", str(folder)]) == 0
    scores = {
        name: found["metrics"]["pass@1"]
        for name, found in json.loads((folder / "results.json").read_text())["models"].items()
    }
    assert scores["teacher"] > 0.8
    assert scores["teacher"] > scores["student after AKD"] > scores["student"] + 0.15


@pytest.mark.slow
def test_the_student_learns_to_plan(tmp_path: Path):
    folder = tmp_path / "quickstart"
    assert main(["quickstart", "--method", "codeplan", "--output_dir", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text())["models"]
    curve = results["student after CodePLAN"]["plans"]["curve"]
    scores = {number: points["pass@1"][0] for number, points in curve.items()}
    assert results["teacher"]["metrics"]["pass@1"] > 0.8
    assert scores["0"] > results["student"]["metrics"]["pass@1"] + 0.15
    assert scores["10"] > scores["1"], "more plans must help"
