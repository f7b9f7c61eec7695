"""The cycles with a teacher, a judge, a runner and a student that all act by rule, on what they leave and repeat."""

import errno
import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import Accelerator

from tests.iterkd.cycle_world import JUDGE_LAYOUT, LAYOUTS, RuleTeacher, answer, held_out, lines, questions, task
from trl_akd.execution import ExecutionResult
from trl_akd.generation import Completion
from trl_akd.generation.budget import BudgetedGenerator, BudgetSpent
from trl_akd.iterkd.cycle_config import CycleConfig
from trl_akd.iterkd.cycle_ledger import CycleLedger
from trl_akd.iterkd.cycle_report import CycleReport, cycle_table, write_reports
from trl_akd.iterkd.cycles import Cycles, Room
from trl_akd.iterkd.judges import GenerativeJudge
from trl_akd.iterkd.questions import read_questions
from trl_akd.ledger import Ledger


class Student:
    """Knows the answers that it was trained on, and says of all else what `says` does."""

    def __init__(self, says: Callable[[str], str] = lambda prompt: "def add(x):\n    return 0\n") -> None:
        self.known: dict[str, str] = {}
        self.rows: list[list[dict[str, Any]]] = []
        self.loaded: list[str] = []
        self._says = says

    def train_cycle(self, pairs: Any, *, cycle: int, output_dir: Path) -> None:
        (output_dir / "checkpoint-1").mkdir(parents=True)
        self.rows.append(list(pairs))
        self.known |= {row["prompt"]: row["completion"] for row in list(pairs)[: 2 * cycle + 3]}

    def save_student(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights.json").write_text(json.dumps(self.known))

    def load_student(self, folder: Path) -> None:
        self.loaded.append(folder.parent.name)
        self.known = json.loads((folder / "weights.json").read_text())

    def student_generator(self) -> "Student":
        return self

    def generate(self, prompts: list[str], **sampling: Any) -> list[list[Completion]]:
        texts = [self.known.get(prompt) or self._says(prompt) for prompt in prompts]
        return [[Completion(text, -1.0, "stop", 5)] for text in texts]


@dataclass
class Actors:
    """Who took part in a run, and what it left."""

    student: Student
    asked: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    reports: list[CycleReport] = field(default_factory=list)

    def run(self, programs: Any) -> list[ExecutionResult]:
        self.ran += [program for program, _ in programs]
        return [_execute(program, tests) for program, tests in programs]


def _execute(program: str, tests: str) -> ExecutionResult:
    try:
        exec(f"{program}\n{tests}", {})
    except Exception as error:
        return ExecutionResult("failed", type(error).__name__, stage="test", tests_total=1)
    return ExecutionResult("passed", tests_passed=1, tests_total=1)


@pytest.fixture
def act(tmp_path: Path) -> Callable[..., Actors]:
    """Run the cycles in a folder, all actors new; what is raised has them as `actors`."""
    (tmp_path / "layouts.yaml").write_text(yaml.safe_dump(LAYOUTS))
    (tmp_path / "judge.txt").write_text(JUDGE_LAYOUT)
    accelerator = Accelerator(cpu=True)

    def run(
        *,
        student: Student | None = None,
        write: Callable[[str], str] = answer,
        judged: bool = True,
        budget: int | None = None,
        seeds: list[dict[str, str]] | None = None,
        benchmarks: dict[str, list[str]] | None = None,
        **changed: Any,
    ) -> Actors:
        actors = Actors(student or Student())
        settings: dict[str, Any] = {
            "cycles": 2,
            "questions_per_cycle": 8,
            "new_easy": 2,
            "new_medium": 3,
            "new_hard": 3,
        }
        settings |= {"min_question_chars": 5, "novelty_threshold": 1.0, **changed}
        config = CycleConfig(
            prompts_file=str(tmp_path / "layouts.yaml"), judge_prompt_file=str(tmp_path / "judge.txt"), **settings
        )
        teacher: Any = RuleTeacher(actors.asked.append, write=write)
        if budget is not None:
            teacher = BudgetedGenerator(teacher, batch_size=2, max_requests=budget)
        with CycleLedger(tmp_path / "ledger", config.cycle_settings, accelerator) as ledger:
            judge = GenerativeJudge(ledger.recorded(teacher, "judge"), prompt=config.judge_prompt)
            cycles = Cycles(
                actors.student,
                Room(teacher, judge if judged else None, actors.run, held_out(), benchmarks or {}),
                config,
                ledger,
                folder=tmp_path,
                prompt_template="comment",
                accelerator=accelerator,
                announce=actors.said.append,
            )
            try:
                cycles.run(read_questions(questions() if seeds is None else seeds))
            except Exception as error:
                error.actors = actors  # type: ignore[attr-defined]
                raise
            finally:
                actors.reports = cycles.reports
        return actors

    return run


def test_stages_follow_one_another(act):
    said = act().said
    stages = [sentence.split(", ")[1].split(":")[0] for sentence in said]
    assert stages == ["delivery", "training", "feedback", "measuring", "update", *stages[:4]]
    assert [sentence.split(",")[0] for sentence in said] == ["Cycle 1 of 2"] * 5 + ["Cycle 2 of 2"] * 4


def test_what_a_cycle_trains_on(act):
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


def test_a_replay_asks_runs_and_trains_nothing(act, tmp_path: Path):
    before = act()
    ledger = {path.name: path.read_bytes() for path in (tmp_path / "ledger").iterdir()}
    again = act()
    assert before.asked and before.ran and len(before.student.rows) == 2
    assert not again.asked and not again.ran and not again.student.rows
    assert again.reports == before.reports
    assert again.student.known == before.student.known and again.student.loaded == ["cycle-1"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "ledger").iterdir()} == ledger


def test_raised_cycles_go_on(act):
    two = act()
    three = act(cycles=3)
    assert three.reports[0] == two.reports[0] and len(three.reports) == 3
    assert [report.new == {} for report in three.reports] == [False, False, True]
    assert len(three.student.rows) == 1
    again = set(two.asked) & set(three.asked)
    assert all(prompt.startswith(("easy", "same")) for prompt in again), "of which each cycle draws other samples"
    assert act(cycles=1).student.loaded == ["cycle-0"]


def test_no_gain_ends_it(act):
    deaf = Student()
    deaf.train_cycle = lambda pairs, *, cycle, output_dir: output_dir.mkdir()  # type: ignore[method-assign]
    same = {"new_easy": 0, "new_medium": 0, "new_hard": 0}
    actors = act(student=deaf, cycles=5, min_gain=0.01, **same)
    assert len(actors.reports) == 2
    assert "less than `min_gain`" in actors.said[-1]
    assert len(act(cycles=3, **same).reports) == 3, "without the rule it goes on"


def test_gain_lets_it_go_on(act):
    assert len(act(cycles=3, min_gain=-1.0).reports) == 3


def test_a_budget_stops_at_a_boundary_and_more_of_it_goes_on(act, tmp_path: Path):
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
    assert {"Cycle 1 of 2, feedback", "Cycle 2 of 2, delivery"} & {text.removesuffix(" questions") for text in stopped}
    assert len(done.reports) == 2


def test_nothing_to_train_on_is_an_error(act):
    with pytest.raises(
        ValueError, match=r"cycle 0 has no right answer to train on; dropped: 8 correct/refused\. Look"
    ):
        act(write=lambda prompt: "I'm sorry, but I cannot help with that.")


def test_a_cycle_without_valid_pairs_loses_nothing(act, tmp_path: Path):
    """The teacher falls silent: what was there remains, and another teacher's answers are asked for."""
    refuses = {task(n + 100) for n in range(9)}

    def write(prompt: str) -> str:
        return "" if prompt.partition(": ")[2] in refuses else answer(prompt)

    with pytest.raises(ValueError, match="cycle 1 has no right answer"):
        act(write=write, old_share=0.0, questions_per_cycle=2)
    assert [row["id"] for row in lines(tmp_path, "items") if row["kind"] == "report"] == ["report"]
    assert (tmp_path / "cycle-0" / "student").is_dir() and not (tmp_path / "cycle-1").exists()


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


def test_the_held_out_questions_are_measured(act):
    knows = f"# {task(1002)}"

    def says(prompt: str) -> str:
        return answer(f"right: {task(1002)}") if knows in prompt else "def add(x):\n    return 0\n"

    for report in act(student=Student(says)).reports:
        assert report.held_out["pass@1"] == pytest.approx(1 / 3)
        assert report.held_out["pass@1_low"] < 1 / 3 < report.held_out["pass@1_high"]


def test_reports_are_written(act, tmp_path: Path):
    reports = act().reports
    write_reports(reports, tmp_path / "written")
    numbers = json.loads((tmp_path / "written" / "cycles.json").read_text())
    assert [row["pairs"] for row in numbers] == [report.pairs for report in reports]
    assert (tmp_path / "written" / "cycles.md").read_text() == f"{cycle_table(reports)}\n"
    assert cycle_table(reports).count("\n") == 3 and "6 + 1" in cycle_table(reports)
    assert (tmp_path / "written" / "cycles.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"faults_per_question": 2}, "generated with faults_per_question=1, not 2; give another output_dir"),
        ({"teacher_temperature": 0.0}, "teacher_temperature=0.7, not 0.0"),
        ({"fault_kinds": ["name"]}, r"fault_kinds=\['syntax',"),
    ],
)
def test_other_settings_are_refused(act, changed: dict[str, Any], message: str):
    act()
    with pytest.raises(ValueError, match=message):
        act(**changed)


def test_another_wording_is_refused(act, tmp_path: Path):
    act()
    (tmp_path / "layouts.yaml").write_text(yaml.safe_dump({**LAYOUTS, "correct": "rightly: {instruction}"}))
    with pytest.raises(ValueError, match="generated with teaching_prompts="):
        act()


@pytest.mark.parametrize("name", ["completions", "verdicts", "items"])
def test_a_torn_line_is_dropped(act, tmp_path: Path, name: str):
    before = act()
    path = tmp_path / "ledger" / f"{name}.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    again = act()
    assert again.reports == before.reports and path.read_bytes() == whole
    assert len(again.asked) + len(again.ran) <= 1


@pytest.mark.parametrize("name", ["completions", "verdicts", "items"])
@pytest.mark.parametrize("line", ['{"half": ', "{}", "[]"])
def test_a_damaged_line_is_named(act, tmp_path: Path, name: str, line: str):
    act()
    path = tmp_path / "ledger" / f"{name}.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0], line, *rows[2:]]) + "\n")
    with pytest.raises(ValueError, match=rf"{name}\.jsonl, line 2 is "):
        act()


def test_a_ledger_serves_one_run_at_a_time(act, tmp_path: Path):
    act()
    settings = json.loads((tmp_path / "ledger" / "items.settings.json").read_text())
    held = CycleLedger(tmp_path / "ledger", settings, Accelerator(cpu=True))
    with held, pytest.raises(BlockingIOError, match="is being written by another process"):
        act()
    assert not act().asked


def test_items_that_come_out_otherwise_are_an_error(act):
    act()
    with pytest.raises(ValueError, match="has the question 'add-1' of cycle 0 otherwise than it comes out now"):
        act(seeds=[{**questions()[0], "instruction": task(77)}, *questions()[1:]])


@contextmanager
def full_after(number: int):
    """Let the disk be full once so many times lines were appended."""
    left = [number]

    def append(ledger: Ledger, rows: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "cannot grow")
        whole(ledger, rows)

    whole = Ledger.append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "append", append)
        yield


def test_a_full_disk_loses_nothing(act, tmp_path: Path):
    asked, attempts = [], 0
    while True:
        try:
            with full_after(7):
                done = act()
            break
        except OSError as error:
            asked += error.actors.asked  # type: ignore[attr-defined]
            attempts += 1
    asked += done.asked
    assert attempts > 5
    assert len(asked) - len(set(asked)) <= attempts, "only the answer that did not fit is asked for again"
    assert done.reports == act().reports


def test_what_an_interruption_leaves_goes(act, tmp_path: Path):
    act()
    (tmp_path / "cycle-0" / "checkpoint-9").mkdir()
    (tmp_path / "cycle-1" / "student").rename(tmp_path / "cycle-1" / "student.part")
    again = act()
    assert len(again.student.rows) == 1 and again.student.loaded == ["cycle-0"]
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("cycle-*/*"))
    assert left == ["cycle-0/student", "cycle-1/student"]
