"""Results and page of the benchmark with real models."""

import json
from pathlib import Path
from typing import Any

import pytest

from trl_akd.bench.config import ModelPrediction
from trl_akd.bench.report import MODELS_PAGE, ModelsResults
from trl_akd.bench.runs import MODELS_FORMAT

SCORES = {"kd": [0.30, 0.34, 0.32], "akd": [0.40, 0.42, 0.44], "rkd": [0.33, 0.33, 0.33]}
SECONDS = {"kd": [100.0, 102.0, 104.0], "akd": [130.0, 132.0, 134.0], "rkd": [100.0, 100.0, 5.0]}


def a_run(rule: str, seed: int, score: float, **change: Any) -> dict[str, Any]:
    base = {"base pass@1": score + 0.05}
    return {
        "key": f"{rule}{seed}",
        "pair": "tiny",
        "rule": rule,
        "seed": seed,
        "measures": {
            "plus": {
                "pass@1": score,
                "pass@1_low": 0.0,
                "pass@1_high": 1.0,
                "pass@1_tasks": 9,
                **base,
                "problems": 164,
            },
        },
        "seconds": 100.0,
        "continued": False,
        "peak_memory_mib": 1000.0,
        "device": "1 x GPU",
        "versions": {"trl_akd": "1", "torch": "2"},
        "commit": "abc",
        **change,
    }


def results(seeds: int = 3, **change: Any) -> dict[str, Any]:
    untrained = {"seconds": None, "peak_memory_mib": None}
    runs = [a_run("student", seed, 0.2, key="student", **untrained) for seed in range(seeds)]
    runs += [a_run("teacher", seed, 0.5, key="teacher", **untrained) for seed in range(seeds)]
    for rule, scores in SCORES.items():
        runs += [a_run(rule, seed, scores[seed], seconds=SECONDS[rule][seed]) for seed in range(seeds)]
    runs[-1]["continued"] = seeds == 3
    first = {"pair": "tiny", "benchmark": "plus", "first": "akd", "second": "kd"}
    predictions = {
        "better": {**first, "at_least": 0.0},
        "much_better": {**first, "at_least": 0.5},
        "a_bit": {**first, "at_least": 0.1},
        "below_teacher": {**first, "second": "teacher", "at_most": 0.0},
        "distance": {**first, "first": "student", "second": "teacher", "at_most": 0.0},
        "cost": {"pair": "tiny", "measure": "seconds", "first": "akd", "second": "kd", "at_least": 25, "at_most": 35},
    }
    return {
        "format": MODELS_FORMAT,
        "method": "akd",
        "pairs": {"tiny": {"recipe": "r.yaml"}},
        "common": {},
        "rules": {"kd": {"divergence": "forward_kl"}, "akd": None, "rkd": {}},
        "benchmarks": {"plus": {}},
        "evaluate": {"k": [1]},
        "before": ["student", "teacher"],
        "seeds": list(range(seeds)),
        "reference": "kd",
        "predictions": predictions,
        "finished_before": 0,
        "planned": [{key: run[key] for key in ("pair", "rule", "seed")} for run in runs],
        "runs": runs,
        **change,
    }


def page(content: dict[str, Any], folder: Path) -> str:
    (folder / "results.json").write_text(json.dumps(content))
    return MODELS_PAGE.write([folder / "results.json"]).read_text()


def row(text: str, *cells: str) -> list[str]:
    """Return the cells of the only row of a table that begins with some cells."""
    [line] = [line for line in text.splitlines() if line.startswith(f"| {' | '.join(cells)} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("better", "right"),
        ("much_better", "wrong"),
        ("a_bit", "open"),
        ("below_teacher", "right"),
        ("distance", "no interval"),
        ("cost", "right"),
    ],
)
def test_verdicts(name: str, verdict: str):
    found = ModelsResults(results())
    assert found.verdict(found.predictions[name]) == verdict


def test_verdict_needs_all_runs_of_its_rules():
    content = results()
    content["runs"] = [run for run in content["runs"] if (run["rule"], run["seed"]) != ("rkd", 1)]
    found = ModelsResults(content)
    others = ModelPrediction(pair="tiny", benchmark="plus", first="rkd", second="kd", at_least=0.0)
    assert found.verdict(others) == "runs are missing"
    assert found.verdict(found.predictions["better"]) == "right"


def test_one_seed_has_no_interval(tmp_path: Path):
    content = results(seeds=1)
    found = ModelsResults(content)
    assert {found.verdict(prediction) for prediction in found.predictions.values()} == {"no interval"}
    text = page(content, tmp_path)
    assert "With a single seed there are no intervals over seeds" in text
    assert row(text, "akd", "1") == ["akd", "1", "0.400", "0.450", "20.0%", "+0.100", ""]


def test_page(tmp_path: Path):
    text = page(results(), tmp_path)
    assert "15 of 15 runs are finished, with 3 seeds, at commit abc." in text
    assert "Device: 1 x GPU. Versions: trl_akd 1, torch 2." in text and "several devices" not in text
    assert "plus, 164 problems" in text and "pass@1_low" not in text
    assert row(text, "rule", "runs")[2:5] == ["pass@1", "base pass@1", "accuracy loss"]
    akd = row(text, "akd", "3")
    assert akd[2] == "0.420 ± 0.050" and akd[4] == "16.0%"
    assert akd[5].startswith("+0.100 [") and akd[6]
    assert row(text, "student", "1")[2] == "0.200", "a model that is evaluated once has no interval"
    assert row(text, "teacher", "1")[4] == "" and row(text, "kd", "3")[5:] == ["", ""]
    assert "Holm's method over the 4 tests" in text
    assert '| kd | `divergence: "forward_kl"` |' in text


def test_costs_leave_out_interrupted_runs(tmp_path: Path):
    text = page(results(), tmp_path)
    assert row(text, "tiny", "akd", "3")[3:] == ["132", "1.29", "1000", "1.00", ""]
    assert row(text, "tiny", "rkd", "2")[3:] == ["100", "0.98", "1000", "1.00", "1"]
    assert "| tiny | student |" not in text.split("### Cost")[1]


def test_unlike_machines_are_marked(tmp_path: Path):
    content = results()
    content["runs"][-1]["device"] = "CPU"
    assert "**The runs are from several devices or versions.**" in page(content, tmp_path)


def test_page_is_a_function_of_the_results(tmp_path: Path):
    assert page(results(), tmp_path) == page(results(), tmp_path)


def test_page_of_unfinished_results(tmp_path: Path):
    content = results()
    text = page({**content, "runs": []}, tmp_path)
    assert "0 of 15 runs are finished" in text and "runs are missing" in text


def test_other_files_are_refused(tmp_path: Path):
    (tmp_path / "results.json").write_text(json.dumps({**results(), "format": 0}))
    with pytest.raises(ValueError, match="not the results of `trl-akd bench models`"):
        MODELS_PAGE.write([tmp_path / "results.json"])
