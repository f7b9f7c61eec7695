"""Runs and page of the experiment on CodePLAN."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.micro.bench.test_plans_config import CONFIG
from trl_akd.bench.runner import results_text
from trl_akd.micro.bench import plans_runs
from trl_akd.micro.bench.plans_config import PLANS_FORMAT, PLANS_MEASURES, Outcome, PlansConfig
from trl_akd.micro.bench.plans_report import PLANS_PAGE, PlansResults
from trl_akd.micro.bench.plans_runs import plan_runs

TINY = {"rows": 48, "epochs": 1, "start_steps": 2, "start_accuracy": 0.0}


def tiny_runs(**change: Any) -> list[plans_runs.PlansRun]:
    return plan_runs(PlansConfig(**{**CONFIG, "worlds": {"one": {**TINY, **change}}, "num_tasks": 3}))


@pytest.mark.lengthy
def test_a_run_trains_and_measures(tmp_path: Path):
    code, guided = tiny_runs()
    rows = [run.execute(tmp_path) for run in (code, guided)]
    assert [path.name for path in tmp_path.iterdir()] == [code.start_key] == [guided.start_key]
    assert [row["measures"].keys() for row in rows] == [{"without_plan", "true_plan"}, PLANS_MEASURES.keys()]
    for row in rows:
        assert row["started"] and row["steps"] == 1 and row["start"]["steps"] == 2
        for plan, measures in row["measures"].items():
            assert set(PLANS_MEASURES[plan]) - {"pass_given_right"} <= measures.keys()
        json.dumps(row)
    assert rows[0]["measures"]["without_plan"].keys() == set(PLANS_MEASURES["without_plan"])


def test_a_seed_that_cannot_follow_plans_is_recorded_and_not_run(tmp_path: Path):
    [run, _] = tiny_runs(start_accuracy=0.5)
    row = run.execute(tmp_path)
    assert row["started"] is False and "measures" not in row
    assert run.summary(row) == "not run, as its start follows 0.00 of given plans"


def test_settings_and_constants_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch):
    run, other = tiny_runs()
    keys = {run.key, other.key, *(tiny_runs(**change)[0].key for change in ({"rows": 49}, {"start_steps": 3}))}
    for name, value in (("_TRAINING", {"x": 1}), ("SAMPLING", {"x": 1}), ("_STUDENT", {"x": 1})):
        with monkeypatch.context() as patch:
            patch.setattr(plans_runs, name, value)
            keys.add(tiny_runs()[0].key)
    assert len(keys) == 7


def test_equal_runs_under_two_names_are_refused():
    config = PlansConfig(**{**CONFIG, "trainings": {**CONFIG["trainings"], "plain": {"plan_weight": 0.0}}})
    with pytest.raises(ValueError, match="`trainings` has 'code' and 'plain', which are equal"):
        plan_runs(config)


@pytest.mark.slow
@pytest.mark.end_to_end
def test_the_command_runs_what_is_missing_and_writes_the_page(tmp_path: Path):
    folder, recipe = tmp_path / "plans", tmp_path / "recipe.yaml"
    settings = {**CONFIG, "worlds": {"one": TINY}, "num_tasks": 3, "output_dir": str(folder), "workers": 2}
    command = [sys.executable, "-m", "trl_akd", "bench", "plans"]
    for seeds, finished in (([0], 0), ([0, 1], 2)):
        recipe.write_text(yaml.safe_dump({**settings, "seeds": seeds}))
        ran = subprocess.run([*command, "--config", str(recipe)], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert f"{2 * len(seeds)} runs, {finished} of them finished before" in ran.stdout
    reported = subprocess.run([*command, "--report", str(folder / "results.json")], capture_output=True, text=True)
    assert reported.returncode == 0, reported.stderr
    text = (folder / "results.md").read_text()
    assert (
        text.startswith("# Experiment on CodePLAN: results\n\n## results\n\n4 of 4 runs") and "too few seeds" in text
    )


# The page


def results(values: dict[str, list[float]], predictions: dict[str, Any], *, missing: int = 0) -> dict[str, Any]:
    """Return results of seeds in which the measures of an outcome have the given values."""
    by_outcome = {Outcome.parse(text): several for text, several in values.items()}
    count = max(map(len, values.values()))
    config = PlansConfig(**{**CONFIG, "seeds": list(range(count)), "predictions": predictions})
    rows = {}
    for run in plan_runs(config):
        measures: dict[str, dict[str, float]] = {}
        for outcome, several in by_outcome.items():
            if outcome.training == run.training_name:
                measures.setdefault(outcome.plan, {})[outcome.measure] = several[run.seed]
        rows[run.key] = {
            **{"key": run.key, **run.place, "started": True, "steps": 8, "measures": measures, "commit": "abc"},
            "start": {"plan": 0.9, "program": 0.9, "program_by_plan": 0.8, "commit": "abc"},
            "seconds": {"train": 1.0, "measure": 2.0, "cpu": 3.0},
            "peak_memory_mb": 500,
        }
    for run in plan_runs(config)[:missing]:
        del rows[run.key]
    content = {
        "format": PLANS_FORMAT,
        **{"worlds": config.worlds, "trainings": config.trainings, "seeds": config.seeds, "num_tasks": 100},
        **{"predictions": config.predictions, "finished_before": 0},
    }
    found: dict[str, Any] = json.loads(results_text(content, plan_runs(config), rows))
    return found


OWN, PLAIN = "guided own_plans best@10", "code without_plan best@10"
VALUES = {OWN: [0.70, 0.75, 0.72, 0.74, 0.71], PLAIN: [0.60, 0.62, 0.61, 0.60, 0.63]}


def prediction(**bounds: float) -> dict[str, Any]:
    return {"help": {"world": "one", "first": OWN, "second": PLAIN, **bounds}}


@pytest.mark.parametrize(
    ("bounds", "verdict"),
    [
        ({"at_least": 0.0}, "right"),
        ({"at_most": 0.0}, "wrong"),
        ({"at_least": 0.05, "at_most": 0.2}, "right"),
        ({"at_least": 0.112}, "open"),
        ({"at_least": 0.3}, "wrong"),
    ],
)
def test_a_prediction_is_judged_by_its_interval(bounds: dict[str, float], verdict: str):
    found = PlansResults(results(VALUES, prediction(**bounds)))
    [one] = found.predictions.values()
    assert found.verdict(one) == verdict
    mean = found.found(one)
    assert mean is not None and mean.pairs == 5
    assert mean.difference == pytest.approx(0.112) and mean.low < 0.112 < mean.high


def test_verdicts_need_all_runs_and_five_seeds():
    incomplete = PlansResults(results(VALUES, prediction(at_least=0.0), missing=1))
    few = PlansResults(results({name: values[:4] for name, values in VALUES.items()}, prediction(at_least=0.0)))
    for found, verdict in ((incomplete, "runs are missing"), (few, "too few seeds")):
        [one] = found.predictions.values()
        assert found.verdict(one) == verdict


def test_the_mean_of_one_outcome_is_predicted_as_well():
    found = PlansResults(results(VALUES, {"high": {"world": "one", "first": OWN, "at_least": 0.65}}))
    [one] = found.predictions.values()
    assert found.verdict(one) == "right"


def test_the_page_is_a_function_of_the_results(tmp_path: Path):
    path = tmp_path / "results.json"
    extra = {"guided own_plans plan_accuracy": [0.5] * 5, "guided own_plans pass_given_wrong": [0.125] * 5}
    path.write_text(json.dumps(results({**VALUES, **extra}, prediction(at_least=0.0))))
    page = PLANS_PAGE.write([path])
    text = page.read_text()
    assert page == tmp_path / "results.md" and PLANS_PAGE.write([path], tmp_path / "other.md").read_text() == text
    assert "10 of 10 runs are finished, with 5 seeds, at commit abc." in text
    line = next(line for line in text.splitlines() if line.startswith("| help |"))
    assert (
        f"{OWN} minus {PLAIN}" in line
        and "| at least 0 | +0.112 [" in line
        and line.endswith("| 5 | **< .001** | right |")
    )
    assert "| guided | own plans |  |  |  | 0.724 ± 0.026 |" in text
    assert "| guided | 0.500 ± 0.000 |  |  | 0.125 ± 0.000 |" in text


@pytest.mark.parametrize("content", ["[]", "{}", "not JSON", json.dumps({"format": 0})])
def test_other_files_are_refused(content: str, tmp_path: Path):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="which is not the results of `trl-akd bench plans`") as error:
        PLANS_PAGE.write([path])
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no such file"):
        PLANS_PAGE.write([tmp_path / "missing.json"])
