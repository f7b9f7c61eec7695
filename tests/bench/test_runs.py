"""Execution of runs whose commands are replaced by functions that write what the commands would write."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.bench.test_config import make_runs
from trl_akd.bench import plan as planning
from trl_akd.bench import runs as executing
from trl_akd.bench.config import ModelsConfig
from trl_akd.bench.plan import run_models


class Commands:
    """Stand-in for the commands: trains by writing a folder, and evaluates to a score that depends on the seed."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.failing: dict[str, str] = {}

    def __call__(self, arguments: list[str], log: Path) -> None:
        self.calls.append(arguments)
        recipe = Path(arguments[2])
        values = yaml.safe_load(recipe.read_text())
        folder = Path(values["output_dir"])
        for name, message in self.failing.items():
            if name in str(recipe):
                raise RuntimeError(message)
        folder.mkdir(parents=True)
        if arguments[0] == "evaluate":
            score = 0.5 if "-kd-" in str(recipe) else 0.25
            results = {
                "benchmark": {"name": "three", "problems": 3},
                "metrics": {"pass@1": score, "pass@1_low": 0.1, "pass@1_high": 0.9, "confidence": 0.95},
                "tasks": {},
                "versions": {"torch": "2"},
            }
            (folder / "results.json").write_text(json.dumps(results))
        else:
            (folder / "checkpoint-1").mkdir()
            (folder / "model.safetensors").touch()
            (folder / "train_results.json").write_text(json.dumps({"train_peak_memory_mib": 100.0}))

    def count(self, name: str) -> int:
        return sum(call[0] == name for call in self.calls)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    stand_in = Commands()
    monkeypatch.setattr(executing, "_trl_akd", stand_in)
    monkeypatch.setattr(planning, "_device", lambda: "1 x GPU")
    return stand_in


def run(settings: dict[str, Any], **change: Any) -> dict[str, Any]:
    config = ModelsConfig(**{**settings, "allow_code_execution": True, **change})
    return json.loads(run_models(config, make_runs({**settings, **change})).read_text())


def test_runs_are_executed_once_and_results_have_all(settings: dict[str, Any], commands: Commands, tmp_path: Path):
    found = run(settings)
    assert [(entry["rule"], entry["seed"]) for entry in found["planned"]] == [
        (entry["rule"], entry["seed"]) for entry in found["runs"]
    ]
    assert len(found["runs"]) == 8 and (commands.count("akd"), commands.count("evaluate")) == (4, 6)
    row = found["runs"][2]
    assert (row["rule"], row["seed"], row["device"], row["versions"]) == ("kd", 1, "1 x GPU", {"torch": "2"})
    assert row["measures"]["three"] == {"pass@1": 0.5, "pass@1_low": 0.1, "pass@1_high": 0.9, "problems": 3}
    assert row["peak_memory_mib"] == 100.0 and row["seconds"] >= 0 and not row["continued"]
    assert found["runs"][0]["seconds"] is None
    assert found["finished_before"] == 0 and found["reference"] == "kd"
    before = list(commands.calls)
    assert run(settings) == found
    assert commands.calls == before
    kept = list((tmp_path / "bench" / "runs").glob("*/student/*"))
    assert {path.name for path in kept} == {"model.safetensors", "train_results.json"}, "checkpoints are removed"


def test_failed_run_does_not_stop_the_others(
    settings: dict[str, Any], commands: Commands, capsys: pytest.CaptureFixture[str]
):
    commands.failing["tiny-kd-1-"] = "`trl-akd akd` failed; it ended with status 2: no memory"
    with pytest.raises(
        RuntimeError, match=r"1 of 6 runs failed, the first of them tiny, kd, seed 1: .* no memory; see"
    ):
        run(settings)
    assert "failed: tiny, kd, seed 1" in capsys.readouterr().err
    commands.failing.clear()
    assert len(run(settings)["runs"]) == 8
    assert commands.count("akd") == 5


def test_failed_evaluation_does_not_train_again(settings: dict[str, Any], commands: Commands):
    commands.failing["evaluate-three"] = "no"
    with pytest.raises(RuntimeError, match="6 of 6 runs failed"):
        run(settings)
    commands.failing.clear()
    assert len(run(settings)["runs"]) == 8
    assert commands.count("akd") == 4


def test_another_benchmark_is_evaluated_without_training(settings: dict[str, Any], commands: Commands):
    run(settings)
    benchmarks = {**settings["benchmarks"], "humaneval": None}
    found = run(settings, benchmarks=benchmarks, name="more")
    assert all(row["measures"].keys() == {"three", "humaneval"} for row in found["runs"])
    assert (commands.count("akd"), commands.count("evaluate")) == (4, 12)


def test_interrupted_training_continues_from_its_checkpoint(settings: dict[str, Any], commands: Commands):
    planned = next(each for each in make_runs(settings) if each.rule == "kd")
    output_dir = Path(settings["output_dir"])
    checkpoint = planned.folder(output_dir) / "student" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").touch()
    commands.failing["tiny-kd-1-"] = "stop"
    with pytest.raises(RuntimeError):
        run(settings)
    resumed = [call for call in commands.calls if "--resume_from_checkpoint" in call]
    assert [call[-2:] for call in resumed] == [["--resume_from_checkpoint", "true"]]
    assert str(planned.folder(output_dir)) in resumed[0][2]


def test_students_are_removed_on_request(settings: dict[str, Any], commands: Commands, tmp_path: Path):
    run(settings, keep_students=False)
    assert not list((tmp_path / "bench" / "runs").glob("*/student"))
    run(settings, keep_students=False)
    assert commands.count("akd") == 4, "results are kept"


def test_other_predictions_are_refused(settings: dict[str, Any], commands: Commands):
    run(settings)
    changed = {"p": {**settings["predictions"]["p"], "at_least": 0.1}}
    with pytest.raises(ValueError, match=r"`predictions` differs from what .* recorded before the runs"):
        run(settings, predictions=changed)


def test_consent_and_local_benchmarks_are_checked_first(
    settings: dict[str, Any], commands: Commands, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    with pytest.raises(PermissionError, match="must be allowed: give `--allow_code_execution`"):
        run(settings, allow_code_execution=False)
    with pytest.raises(FileNotFoundError, match=r"the benchmark 'none.jsonl' does not exist"):
        run(settings, benchmarks={"three": {"benchmark": "none.jsonl"}})
    assert commands.calls == [] and not Path(settings["output_dir"]).exists()
