"""Ledgers that are incomplete, damaged, locked, on a full disk, or of another run."""

import errno
import json
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import Accelerator

from tests.iterkd.cycle_world import LAYOUTS, questions, task
from trl_akd.iterkd.cycle.ledger import CycleLedger
from trl_akd.ledger import Ledger

pytestmark = pytest.mark.lengthy


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
def test_incomplete_line_is_dropped(act, tmp_path: Path, name: str):
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


def test_ledger_is_locked_by_one_run(act, tmp_path: Path):
    act()
    settings = json.loads((tmp_path / "ledger" / "items.settings.json").read_text())
    held = CycleLedger(tmp_path / "ledger", settings, Accelerator(cpu=True))
    with held, pytest.raises(BlockingIOError, match="is being written by another process"):
        act()
    assert not act().asked


def test_items_that_differ_from_recorded_ones_are_an_error(act):
    act()
    with pytest.raises(ValueError, match="the question 'add-1' of cycle 0 differs from the one in the ledger"):
        act(seeds=[{**questions()[0], "instruction": task(77)}, *questions()[1:]])


def test_the_files_are_read_once(act, monkeypatch: pytest.MonkeyPatch):
    read = Counter()
    for name in ("read", "locate"):
        whole = getattr(Ledger, name)
        monkeypatch.setattr(Ledger, name, lambda ledger, whole=whole: read.update([ledger.path.stem]) or whole(ledger))
    for _ in range(2):
        read.clear()
        assert len(act(cycles=4).reports) == 4
        assert read == {"completions": 1, "verdicts": 1, "items": 1}


def test_results_of_another_harness_are_not_reused(act, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trl_akd.iterkd.cycle.ledger.HARNESS_VERSION", 0)
    before = act()
    monkeypatch.undo()
    path = tmp_path / "ledger" / "verdicts.jsonl"
    old = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "value": {"verdict": "passed"}}) + "\n" for row in old))
    again = act()
    assert before.ran and Counter(again.ran) == Counter(before.ran)
    assert not again.asked and not again.student.rows and again.reports == before.reports
    assert not act().ran


@contextmanager
def full_after(number: int):
    """Simulate a full disk after a number of appends."""
    left = [number]

    def append(ledger: Ledger, rows: Any) -> list[int]:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "cannot grow")
        return whole(ledger, rows)

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


def test_leftovers_of_an_interruption_are_removed(act, tmp_path: Path):
    act()
    (tmp_path / "cycle-0" / "checkpoint-9").mkdir()
    (tmp_path / "cycle-1" / "student").rename(tmp_path / "cycle-1" / "student.part")
    again = act()
    assert len(again.student.rows) == 1 and again.student.loaded == ["cycle-0"]
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("cycle-*/*"))
    assert left == ["cycle-0/student", "cycle-1/student"]
