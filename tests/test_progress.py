"""Progress of stages: bars in a terminal, lines in a log, and nothing where it was turned off."""

import io
import os
import sys

import datasets
import pytest

from trl_akd import progress
from trl_akd.cli.errors import run
from trl_akd.progress import Progress, dataset_bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def go(clock: list[float], items: int, seconds: float, **settings: object) -> None:
    with Progress(items, "Running programs", "program", **settings) as shown:
        for _ in range(items - int(settings.get("initial", 0))):
            clock[0] += seconds
            shown.update()


def test_a_log_gets_a_line_at_intervals_with_the_time_left(clock, capsys: pytest.CaptureFixture[str]):
    go(clock, 4000, 0.03125)
    assert capsys.readouterr().err.splitlines() == [
        "Running programs: 960 of 4,000 programs in 00:30, 01:35 left",
        "Running programs: 1,920 of 4,000 programs in 01:00, 01:05 left",
        "Running programs: 2,880 of 4,000 programs in 01:30, 00:35 left",
        "Running programs: 3,840 of 4,000 programs in 02:00, 00:05 left",
        "Running programs: 4,000 of 4,000 programs in 02:05",
    ]


def test_short_stages_write_nothing_to_a_log(clock, capsys: pytest.CaptureFixture[str]):
    go(clock, 20, 1.0)
    go(clock, 20, 100.0, shown=False)
    go(clock, 20, 100.0, initial=20)
    assert capsys.readouterr().err == ""


def test_items_done_before_do_not_count_for_the_time_left(clock, capsys: pytest.CaptureFixture[str]):
    go(clock, 100, 30.0, initial=97)
    assert capsys.readouterr().err.splitlines()[0] == "Running programs: 98 of 100 programs in 00:30, 01:00 left"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(2, "Running programs", "program") as shown:
        shown.update(2)
    assert "Running programs: 100%" in sys.stderr.getvalue()


@pytest.mark.parametrize("shown", [True, False])
def test_bars_of_datasets(shown: bool):
    assert not datasets.are_progress_bars_disabled()
    with dataset_bars(shown=shown):
        assert datasets.are_progress_bars_disabled() is not shown
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize(("stream", "value"), [(io.StringIO(), "1"), (Terminal(), None)])
def test_commands_turn_off_all_bars_in_logs(stream: io.StringIO, value: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TQDM_DISABLE", "before")
    monkeypatch.delenv("TQDM_DISABLE")
    monkeypatch.setattr(sys, "stderr", stream)
    found = []
    assert run(lambda argv: found.append(os.environ.get("TQDM_DISABLE"))) == 0
    assert found == [value]
