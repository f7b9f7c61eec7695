"""A run of two cycles that is killed repeatedly ends like an uninterrupted one."""

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.iterkd.cycle_world import completions, lines, verdicts
from tests.iterkd.killed_runs import RunServer, serving_runs


@pytest.fixture(scope="module")
def run_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunServer]:
    with serving_runs(tmp_path_factory.mktemp("runs")) as run_server:
        yield run_server


@pytest.fixture(scope="module")
def uninterrupted(run_server: RunServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.getbasetemp() / "runs0" / "uninterrupted"
    assert run_server.run(output_dir)["status"] == 0, (output_dir.parent / "log").read_text()[-4000:]
    return output_dir


def kill_until_done(
    run_server: RunServer, output_dir: Path, source: random.Random, *, kills: int, reach: dict[str, int]
) -> Counter[str]:
    """Run, and kill up to `kills` times after events of each kind in turn, until the run is complete.

    Returns the number of kills by kind.
    """
    killed: Counter[str] = Counter()
    for attempt, kind in enumerate(itertools.cycle(reach)):
        fatal = (kind, source.randint(1, reach[kind])) if attempt < kills else None
        ended = run_server.run(output_dir, fatal=fatal, delay=source.uniform(0, 0.02), attempt=attempt)
        if ended["status"] == 0:
            break
        assert ended["status"] == -9, (output_dir.parent / "log").read_text()[-4000:]
        killed[ended["event"]] += 1
    return killed


def assert_same(output_dir: Path, uninterrupted: Path) -> None:
    assert completions(output_dir) == completions(uninterrupted)
    assert verdicts(output_dir) == verdicts(uninterrupted)
    assert lines(output_dir, "items") == lines(uninterrupted, "items")
    assert (output_dir / "cycles.json").read_text() == (uninterrupted / "cycles.json").read_text()
    files = {path.relative_to(uninterrupted) for path in uninterrupted.rglob("*") if path.is_file()}
    assert {path.relative_to(output_dir) for path in output_dir.rglob("*") if path.is_file()} == files
    for cycle in range(2):
        student, expected = (
            load_file(run / f"cycle-{cycle}/student/model.safetensors") for run in (output_dir, uninterrupted)
        )
        assert_close(student, expected, rtol=0, atol=1e-6)


def assert_requested_once(output_dir: Path) -> None:
    """Only the last prompt of a killed run, which was pending, is sent again."""
    sent = [json.loads(line) for line in output_dir.with_suffix(".prompts").read_text().splitlines()]
    last = {attempt: prompt for attempt, prompt in sent}
    for number, (attempt, prompt) in enumerate(sent):
        for earlier, before in sent[:number]:
            assert prompt != before or (earlier < attempt and last[earlier] == prompt)


def check_kills(run_server: RunServer, uninterrupted: Path, kills: int, seed: int) -> Counter[str]:
    counts: dict[str, int] = json.loads(uninterrupted.with_suffix(".count").read_text())
    reach = {kind: max(1, 4 * count // kills) for kind, count in sorted(counts.items())}
    source, killed, number = random.Random(seed), Counter[str](), 0
    while killed.total() < kills:
        output_dir = uninterrupted.with_name(f"killed-{seed}-{number}")
        killed += kill_until_done(run_server, output_dir, source, kills=kills - killed.total(), reach=reach)
        assert_same(output_dir, uninterrupted)
        assert_requested_once(output_dir)
        number += 1
    return killed


@pytest.mark.end_to_end
def test_run_killed_twenty_times_equals_an_uninterrupted_one(run_server: RunServer, uninterrupted: Path) -> None:
    killed = check_kills(run_server, uninterrupted, kills=20, seed=1)
    assert set(killed) == {"ask", "file", "ledger", "student", "train"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_kills_at_random_points(run_server: RunServer, uninterrupted: Path, seed: int) -> None:
    check_kills(run_server, uninterrupted, kills=40, seed=seed)


@pytest.mark.end_to_end
def test_a_finished_run_sends_no_requests(run_server: RunServer, uninterrupted: Path) -> None:
    count = uninterrupted.with_suffix(".count").read_text()
    prompts = uninterrupted.with_suffix(".prompts").read_text()
    students = [load_file(uninterrupted / f"cycle-{cycle}/student/model.safetensors") for cycle in range(2)]
    ledger = {path: path.read_bytes() for path in (uninterrupted / "ledger").iterdir()}
    assert run_server.run(uninterrupted)["status"] == 0
    assert uninterrupted.with_suffix(".prompts").read_text() == prompts
    assert {path: path.read_bytes() for path in (uninterrupted / "ledger").iterdir()} == ledger
    again = [load_file(uninterrupted / f"cycle-{cycle}/student/model.safetensors") for cycle in range(2)]
    assert_close(again, students, rtol=0, atol=0)
    uninterrupted.with_suffix(".count").write_text(count)  # the other tests need the count of the complete run
