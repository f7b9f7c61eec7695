"""A run of two cycles that is killed repeatedly ends like an uninterrupted one."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.iterkd.cycle_world import completions, lines, verdicts
from tests.iterkd.doomed import Forge, forging


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    with forging(tmp_path_factory.mktemp("runs")) as forge:
        yield forge


@pytest.fixture(scope="module")
def unbroken(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.getbasetemp() / "runs0" / "unbroken"
    assert forge.run(output_dir)["status"] == 0, (output_dir.parent / "log").read_text()[-4000:]
    return output_dir


def kill_until_done(forge: Forge, output_dir: Path, source: random.Random, *, kills: int, reach: int) -> Counter[str]:
    """Run until it is done, which nobody hinders after so many kills; return what the runs that died were at."""
    died: Counter[str] = Counter()
    while True:
        fatal = source.randint(1, reach) if died.total() < kills else 0
        ended = forge.run(output_dir, fatal=fatal, delay=source.uniform(0, 0.02), attempt=died.total())
        if ended["status"] == 0:
            return died
        assert ended["status"] == -9, (output_dir.parent / "log").read_text()[-4000:]
        died[ended["doing"]] += 1


def assert_same(output_dir: Path, unbroken: Path) -> None:
    assert completions(output_dir) == completions(unbroken)
    assert verdicts(output_dir) == verdicts(unbroken)
    assert lines(output_dir, "items") == lines(unbroken, "items")
    assert (output_dir / "cycles.json").read_text() == (unbroken / "cycles.json").read_text()
    files = {path.relative_to(unbroken) for path in unbroken.rglob("*") if path.is_file()}
    assert {path.relative_to(output_dir) for path in output_dir.rglob("*") if path.is_file()} == files
    for cycle in range(2):
        student, expected = (
            load_file(run / f"cycle-{cycle}/student/model.safetensors") for run in (output_dir, unbroken)
        )
        assert_close(student, expected, rtol=0, atol=1e-6)


def assert_asked_once(output_dir: Path) -> None:
    """Only the prompt under way when a run died, which is its last one, is asked again."""
    asked = [json.loads(line) for line in output_dir.with_suffix(".asked").read_text().splitlines()]
    last = {attempt: prompt for attempt, prompt in asked}
    for number, (attempt, prompt) in enumerate(asked):
        for earlier, before in asked[:number]:
            assert prompt != before or (earlier < attempt and last[earlier] == prompt)


def check_kills(forge: Forge, unbroken: Path, kills: int, seed: int) -> Counter[str]:
    doings = int(unbroken.with_suffix(".count").read_text())
    source, died, number = random.Random(seed), Counter[str](), 0
    while died.total() < kills:
        output_dir = unbroken.with_name(f"killed-{seed}-{number}")
        died += kill_until_done(forge, output_dir, source, kills=kills - died.total(), reach=4 * doings // kills)
        assert_same(output_dir, unbroken)
        assert_asked_once(output_dir)
        number += 1
    return died


@pytest.mark.end_to_end
def test_a_run_that_was_killed_twenty_times_ends_as_an_unbroken_one(forge: Forge, unbroken: Path) -> None:
    died = check_kills(forge, unbroken, kills=20, seed=1)
    assert {"ledger", "train"} <= set(died) and len(died) >= 3, "where the kills strike depends on the machine's load"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_kills_anywhere(forge: Forge, unbroken: Path, seed: int) -> None:
    check_kills(forge, unbroken, kills=40, seed=seed)


@pytest.mark.end_to_end
def test_a_finished_run_sends_no_requests(forge: Forge, unbroken: Path) -> None:
    count = unbroken.with_suffix(".count").read_text()
    asked = unbroken.with_suffix(".asked").read_text()
    students = [load_file(unbroken / f"cycle-{cycle}/student/model.safetensors") for cycle in range(2)]
    ledger = {path: path.read_bytes() for path in (unbroken / "ledger").iterdir()}
    assert forge.run(unbroken)["status"] == 0
    assert unbroken.with_suffix(".asked").read_text() == asked
    assert {path: path.read_bytes() for path in (unbroken / "ledger").iterdir()} == ledger
    again = [load_file(unbroken / f"cycle-{cycle}/student/model.safetensors") for cycle in range(2)]
    assert_close(again, students, rtol=0, atol=0)
    unbroken.with_suffix(".count").write_text(count)  # the other tests need that of the whole run
