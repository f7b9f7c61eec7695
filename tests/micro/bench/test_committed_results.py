"""The pages of results in the documentation are those that `make results` makes of the committed files."""

import json
import re
from pathlib import Path

import pytest

from trl_akd.bench.pages import Page
from trl_akd.micro.bench.config import BenchConfig
from trl_akd.micro.bench.cycles_config import CyclesConfig
from trl_akd.micro.bench.cycles_report import CYCLES_PAGE
from trl_akd.micro.bench.cycles_runs import plan_cycles
from trl_akd.micro.bench.plans_report import PLANS_PAGE
from trl_akd.micro.bench.report import BENCH_PAGE
from trl_akd.micro.bench.runs import plan

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"


@pytest.mark.skipif(not (DOCS / "results.md").exists(), reason="the full benchmark has not been run")
def test_the_page_is_that_of_the_committed_results(tmp_path: Path):
    [names] = re.findall(
        r"^RESULTS := \$\(addprefix docs/results/,(.+)\)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    sources = [DOCS / "results" / name for name in names.split()]
    made = BENCH_PAGE.write(sources, tmp_path / "results.md", DOCS / "results" / "answer.txt")
    assert made.read_bytes() == (DOCS / "results.md").read_bytes(), "run `make results`"
    figures, committed = (
        {path.name: path.read_bytes() for path in folder.glob("*.svg")}
        for folder in (tmp_path / "results", DOCS / "results")
    )
    assert figures == committed
    assert {path.name for path in (DOCS / "results").glob("*.json")} == {*names.split(), "plans.json", "cycles.json"}


@pytest.mark.parametrize(("page", "name"), [(PLANS_PAGE, "plans"), (CYCLES_PAGE, "cycles")])
def test_other_pages_are_those_of_the_committed_results(page: Page, name: str, tmp_path: Path):
    folder = DOCS / "results"
    made = page.write([folder / f"{name}.json"], tmp_path / f"results_{name}.md", folder / f"{name}_answer.txt")
    assert made.read_bytes() == (DOCS / f"results_{name}.md").read_bytes(), "run `make results`"


DIVERGENCES = [path for path in sorted((DOCS / "results").glob("*.json")) if path.stem not in ("plans", "cycles")]


@pytest.mark.parametrize("path", DIVERGENCES, ids=lambda path: path.stem)
def test_finished_runs_keep_their_keys(path: Path):
    """So that a benchmark continues after fields of rules were added."""
    content = json.loads(path.read_text())
    names = ("worlds", "students", "rules", "num_tasks", "num_samples", "control", "predictions", "line")
    config = BenchConfig(seeds=[0], **{name: content[name] for name in names})
    keys = {tuple(run.place.values()): run.key for run in plan(config)}
    finished = [run for run in content["runs"] if run["seed"] == 0]
    assert finished
    for run in finished:
        assert run["key"] == keys[tuple(run[name] for name in ("world", "student", "rule", "seed", "draw"))]


def test_finished_runs_of_the_experiment_on_iterkd_keep_their_keys():
    content = json.loads((DOCS / "results" / "cycles.json").read_text())
    names = ("settings", "variants", "seeds", "num_tasks", "num_samples", "control", "predictions")
    keys = {tuple(run.place.values()): run.key for run in plan_cycles(CyclesConfig(**{n: content[n] for n in names}))}
    assert {(run["variant"], run["seed"]): run["key"] for run in content["runs"]} == keys
