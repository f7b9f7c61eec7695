"""Cycles with a deterministic teacher, judge, runner and student."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.iterkd.actors import Student
from tests.iterkd.cycle_world import answer, lines, questions, task
from trl_akd.generation.budget import BudgetSpent
from trl_akd.iterkd.cycle.report import cycle_table, tracked_metrics, write_reports

pytestmark = pytest.mark.lengthy


def test_stages_follow_one_another(act):
    said = act().said
    stages = [sentence.split(", ")[1].split(":")[0] for sentence in said]
    assert stages == ["pairs", "training", "feedback", "evaluation", "new questions", *stages[:4]]
    assert [sentence.split(",")[0] for sentence in said] == ["Cycle 1 of 2"] * 5 + ["Cycle 2 of 2"] * 4


def test_training_data_of_a_cycle(act):
    actors = act()
    [first, second] = actors.student.rows
    assert len(first) == 7, "the teacher refuses one answer"
    by_prompt = {row["prompt"]: row for row in first}
    assert all(row["completion"] == f"def add(x):\n    return x + {index}\n" for index, row in _numbered(by_prompt))
    faults = {index: row["rejected"] for index, row in _numbered(by_prompt)}
    assert faults == {n: [] if n == 4 else [f"def add(x):\n    return x - {n}\n"] for n in (1, 2, 4, 5, 6, 7, 8)}
    assert set(actors.reports[1].origins) > {"seed"}
    assert len(second) == actors.reports[1].pairs + actors.reports[1].without_fault


def _numbered(rows: dict[str, Any]) -> list[tuple[int, Any]]:
    return [(int(prompt.split("plus ")[1].split(".")[0]), row) for prompt, row in rows.items()]


def test_a_finished_run_repeats_nothing(act, tmp_path: Path):
    before = act()
    ledger = {path.name: path.read_bytes() for path in (tmp_path / "ledger").iterdir()}
    again = act()
    assert before.asked and before.ran and len(before.student.rows) == 2
    assert not again.asked and not again.ran and not again.student.rows
    assert again.reports == before.reports
    assert again.student.known == before.student.known and again.student.loaded == ["cycle-1"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "ledger").iterdir()} == ledger


def test_more_cycles_continue_a_finished_run(act):
    two = act()
    three = act(cycles=3)
    assert three.reports[0] == two.reports[0] and len(three.reports) == 3
    assert [report.new == {} for report in three.reports] == [False, False, True]
    assert len(three.student.rows) == 1
    again = set(two.asked) & set(three.asked)
    assert all(prompt.startswith(("easy", "same")) for prompt in again), "of which each cycle draws other samples"
    assert act(cycles=1).student.loaded == ["cycle-0"]


def test_too_little_gain_ends_the_run(act):
    deaf = Student()
    deaf.train_cycle = lambda pairs, *, cycle, output_dir: output_dir.mkdir()  # type: ignore[method-assign]
    same = {"new_easy": 0, "new_medium": 0, "new_hard": 0}
    actors = act(student=deaf, cycles=5, min_gain=0.01, **same)
    assert len(actors.reports) == 2
    assert "a gain below `min_gain`" in actors.said[-1]
    assert len(act(cycles=3, **same).reports) == 3, "without the rule it goes on"


def test_enough_gain_continues_the_run(act):
    assert len(act(cycles=3, min_gain=-1.0).reports) == 3


def test_a_larger_budget_continues_a_stopped_run(act, tmp_path: Path):
    asked, spent, stopped = [], 0, []
    while True:
        try:
            done = act(budget=6)
            break
        except BudgetSpent as error:
            actors = error.actors  # type: ignore[attr-defined]
            asked += actors.asked
            assert len(actors.asked) == 6
            kept = [path for path in tmp_path.glob("cycle-*/student/weights.json")]
            assert actors.student.known == (json.loads(max(kept).read_text()) if kept else {})
            stopped.append(actors.said[-1].split(":")[0])
            spent += 1
    asked += done.asked
    assert spent > 4 and len(set(asked)) == len(asked)
    assert {"Cycle 1 of 2, feedback", "Cycle 2 of 2, pairs"} & {text.removesuffix(" questions") for text in stopped}
    assert len(done.reports) == 2


def test_no_training_data_is_an_error(act):
    with pytest.raises(
        ValueError, match=r"cycle 0 has no correct answer to train on; dropped: 8 correct/refused\. Look"
    ):
        act(write=lambda prompt: "I'm sorry, but I cannot help with that.")


def test_cycle_without_valid_pairs_keeps_its_records(act, tmp_path: Path):
    """Recorded results remain, and another teacher can write the missing answers."""
    refuses = {task(n + 100) for n in range(9)}

    def write(prompt: str) -> str:
        return "" if prompt.partition(": ")[2] in refuses else answer(prompt)

    with pytest.raises(ValueError, match="cycle 1 has no correct answer"):
        act(write=write, old_share=0.0, questions_per_cycle=2)
    assert [row["id"] for row in lines(tmp_path, "items") if row["kind"] == "report"] == ["report"]
    assert (tmp_path / "cycle-0" / "student").is_dir() and not (tmp_path / "cycle-1").exists()


def test_a_run_ends_without_questions(act):
    """All questions are easy, easy questions are excluded, and no new ones are requested."""
    student = Student(lambda prompt: f"def add(x):\n    return x + {prompt.split('plus ')[1].split('.')[0]}\n")
    actors = act(student=student, judged=False, mix_easy=0.0, new_easy=0, new_medium=0, new_hard=0)
    assert [report.feedback["easy"] for report in actors.reports] == [1.0]
    assert actors.said[-1].startswith("No questions are left")


def test_new_questions_that_repeat_old_ones(act):
    def parrot(prompt: str) -> str:
        kind, _, rest = prompt.partition(": ")
        return rest if kind in ("easy", "same") else answer(prompt)

    [first, second] = act(write=parrot).reports
    assert first.new["kept"] == 0 and first.new["repeated"] == first.new["asked"] > 0
    assert second.origins == {"seed": 8}


def test_new_questions_that_are_refused_are_counted(act):
    def write(prompt: str) -> str:
        return "As an AI, I cannot." if prompt.startswith(("easy", "same")) else answer(prompt)

    [first, _] = act(write=write).reports
    assert first.new["kept"] == 0
    assert sum(count for reason, count in first.new.items() if reason.endswith("/refused")) == first.new["asked"]


def test_new_questions_that_benchmarks_have_are_dropped(act):
    long = "Let add(x) be x plus 1001 and then some more words that make this one long enough."

    def write(prompt: str) -> str:
        return long if prompt.startswith(("easy", "same")) else answer(prompt)

    [first, _] = act(write=write, benchmarks={"ours": [long]}).reports
    assert first.new == {"asked": first.new["asked"], "contaminated": first.new["asked"], "kept": 0}


def test_drops_are_counted(act):
    report = act().reports[0]
    assert report.dropped == {"correct/refused": 1, "fault/none": 1}
    assert (report.pairs, report.without_fault, sum(report.faults.values())) == (6, 1, 6)


def test_failures_of_the_student_are_faults(act):
    actors = act(own_faults=True)
    assert "own" not in actors.reports[0].faults and actors.reports[1].faults["own"] > 0
    assert any("def add(x):\n    return 0\n" in row["rejected"] for row in actors.student.rows[1])


@pytest.mark.parametrize("judged", [True, False])
def test_wrong_answers_to_questions_without_tests_are_faults_if_a_judge_sees_them(act, judged):
    untested = [{name: row[name] for name in ("id", "instruction")} for row in questions()]
    [first, second] = act(own_faults=True, seeds=untested, judged=judged, keep_unverified=not judged).reports
    assert "own" not in first.faults
    assert ("own" in second.faults) == judged


def test_without_faults(act):
    actors = act(faults_per_question=0)
    assert not any(prompt.startswith("faulty") for prompt in actors.asked)
    assert [row["rejected"] for rows in actors.student.rows for row in rows] == [[]] * sum(
        map(len, actors.student.rows)
    )
    assert all(report.pairs == 0 and report.faults == {} and report.without_fault for report in actors.reports)


def test_without_a_judge(act):
    actors = act(judged=False)
    assert not any(prompt.startswith("judge") for prompt in actors.asked)
    assert all("judge" not in report.feedback for report in actors.reports)


def test_without_an_update(act):
    actors = act(new_easy=0, new_medium=0, new_hard=0)
    assert not any(prompt.startswith(("easy", "same")) for prompt in actors.asked)
    assert actors.reports[0].new == {"asked": 0, "kept": 0} and actors.reports[1].origins == {"seed": 8}


def test_held_out_questions_are_evaluated(act):
    knows = f"# {task(1002)}"

    def says(prompt: str) -> str:
        return answer(f"right: {task(1002)}") if knows in prompt else "def add(x):\n    return 0\n"

    for report in act(student=Student(says)).reports:
        assert report.held_out["pass@1"] == pytest.approx(1 / 3)
        assert report.held_out["pass@1_low"] < 1 / 3 < report.held_out["pass@1_high"]
        assert report.held_out["pass@1_tasks"] == tracked_metrics(report)["eval_pass@1_tasks"] == 3


def test_reports_are_written(act, tmp_path: Path):
    reports = act().reports
    write_reports(reports, tmp_path / "written")
    numbers = json.loads((tmp_path / "written" / "cycles.json").read_text())
    assert [row["pairs"] for row in numbers] == [report.pairs for report in reports]
    assert (tmp_path / "written" / "cycles.md").read_text() == f"{cycle_table(reports)}\n"
    assert cycle_table(reports).count("\n") == 3 and "6 + 1" in cycle_table(reports)
    assert (tmp_path / "written" / "cycles.png").read_bytes().startswith(b"\x89PNG")


# Students on disk


def on_disk(tmp_path: Path) -> list[int]:
    return sorted(int(path.parent.name[6:]) for path in tmp_path.glob("cycle-*/student"))


@pytest.mark.parametrize(("kept", "left"), [(None, [0, 1, 2]), (2, [1, 2])])
def test_only_the_last_students_are_kept(act, tmp_path: Path, kept: int | None, left: list[int]):
    whole = act(cycles=3, keep_students=kept)
    assert on_disk(tmp_path) == left and len(whole.student.rows) == 3
    again = act(cycles=3, keep_students=kept)
    assert not again.student.rows and not again.asked and again.reports == whole.reports
    assert again.student.loaded == ["cycle-2"]


def test_fewer_may_be_kept_later(act, tmp_path: Path):
    act(cycles=2)
    further = act(cycles=3, keep_students=1)
    assert on_disk(tmp_path) == [2] and len(further.student.rows) == 1


@pytest.mark.parametrize("deleted", [[1], [0, 1]])
def test_an_old_student_that_was_deleted_is_not_trained_again(act, tmp_path: Path, deleted: list[int]):
    before = act(cycles=3)
    for cycle in deleted:
        shutil.rmtree(tmp_path / f"cycle-{cycle}")
    again = act(cycles=3)
    assert not again.student.rows and again.reports == before.reports
    assert len(act(cycles=4).student.rows) == 1


def test_the_last_student_is_trained_again_if_it_was_deleted(act, tmp_path: Path):
    before = act(cycles=2)
    shutil.rmtree(tmp_path / "cycle-1")
    again = act(cycles=2)
    assert again.student.loaded[0] == "cycle-0" and again.student.known == before.student.known
    shutil.rmtree(tmp_path / "cycle-0")
    shutil.rmtree(tmp_path / "cycle-1")
    assert len(act(cycles=2).student.rows) == 2, "all of them"


def test_error_names_a_deleted_student(act, tmp_path: Path):
    act(cycles=2)
    shutil.rmtree(tmp_path / "cycle-0")
    with pytest.raises(ValueError, match=r"cycle-0/student is needed but has been deleted; restore it"):
        act(cycles=1)


def test_interrupted_removal_is_completed(act, tmp_path: Path):
    act(cycles=2)
    (tmp_path / "cycle-0" / "student").rename(tmp_path / "cycle-0" / "student.part")
    assert not act(cycles=2, keep_students=1).student.rows
    assert not (tmp_path / "cycle-0").exists()
