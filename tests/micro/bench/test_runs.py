"""Runs of the benchmark, from the start to a row; whole commands, interrupted and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from trl_akd.bench.runner import execute_all, results_text
from trl_akd.cli.recipes import RECIPES
from trl_akd.micro.bench import runs
from trl_akd.micro.bench.config import MEASURES, BenchConfig
from trl_akd.micro.bench.rules import add_adapter
from trl_akd.micro.bench.runs import Run, plan, train_and_measure
from trl_akd.micro.bench.students import Student, make_tokenizer, student_config
from trl_akd.micro.bench.teacher import ExactTeacher
from trl_akd.micro.models import new_model

from ...execution.machine_state import Process, alive, descendants

START = {"steps": 5, "mass": 0.1, "commit": "abc"}

TINY: dict[str, Any] = {
    "worlds": {"one": {"rows": 96, "epochs": 2, "start_mass": 0.03, "start_range": [0.0, 1.0], "start_max_steps": 5}},
    "rules": {
        "kl": {"divergence": "forward_kl"},
        "random_epoch": {"beta_strategy": "random_epoch", "draws": 2},
        "rkl": {"divergence": "reverse_kl"},
    },
    "num_tasks": 8,
    "num_samples": 10,
    "control": {"world": "one", "student": "32k", "covering": "kl", "concentrating": "rkl"},
    "predictions": {
        "p": {"world": "one", "student": "32k", "measure": "pass@1", "first": "rkl", "second": "kl", "at_least": 0.0}
    },
}


def tiny_runs(**change: Any) -> list[Run]:
    return plan(BenchConfig(**{**TINY, **change}))


def stable(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("seconds", "peak_memory_mb", "commit")}


def test_a_row_has_all_measures_and_depends_on_the_settings_alone(tmp_path: Path):
    first, *_ = tiny_runs()
    (tmp_path / "a").mkdir()
    row = train_and_measure(first, tmp_path / "a")
    assert (row["key"], row["started"]) == (first.key, True)
    assert set(MEASURES) | {"errors"} == row["measures"].keys()
    assert row["measures"]["forward_kl"] > 0 and row["start"]["steps"] == 5
    assert [point["step"] for point in row["history"]] == [1, 2, 3, 4]
    assert row["peak_memory_mb"] > 100 and row["seconds"].keys() == {"train", "measure", "cpu"}
    json.dumps(row)
    assert os.listdir(tmp_path / "a") == [first.start.key], "nothing else is left"
    assert stable(train_and_measure(first, tmp_path / "a")) == stable(row), "with the start from disk"


def test_draws_change_beta_and_nothing_else(tmp_path: Path):
    """Order of rows, weights and samples are those of the seed, so that rules are compared in pairs."""
    rows = [train_and_measure(run, tmp_path) for run in tiny_runs()]
    kl, *random_epochs, rkl = rows
    other_kl = train_and_measure(replace(tiny_runs()[0], draw=1), tmp_path)
    assert kl["key"] != other_kl["key"]
    assert (kl["measures"], kl["history"]) == (other_kl["measures"], other_kl["history"])
    assert [row["beta_draws"] for row in (kl, *random_epochs)] == [[], [0.1, 0.1], [0.6, 0.6]]
    for row in random_epochs:
        first, second = row["beta_draws"]
        assert [point["beta"] for point in row["history"]] == [first, first, second, second]
    first_points = [row["history"][0] for row in rows]
    assert len({(point["forward_kl"], point["reverse_kl"]) for point in first_points}) == 1, "the same first batch"
    assert rkl["measures"] != kl["measures"]


class OneHotTeacher(ExactTeacher):
    """Teacher that is certain of each row's own token, to which forward KL is the cross-entropy."""

    def log_probs(self, input_ids: torch.Tensor) -> torch.Tensor:
        following = torch.nn.functional.pad(input_ids[:, 1:], (0, 1))
        return torch.nn.functional.one_hot(following, self.vocabulary_size).double().clamp(min=1e-30).log()


@pytest.fixture
def trained_weights(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Weights of the students that are trained from now on, which are not measured."""
    weights: list[dict[str, torch.Tensor]] = []

    def keep(model: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        weights.append({name: weight.clone() for name, weight in model.state_dict().items()})
        return {"errors": {}}

    monkeypatch.setattr(runs, "measure", keep)
    return weights


LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}


@pytest.mark.parametrize(
    "own", [{}, LORA, {"num_train_epochs": 1, "learning_rate": 0.001}], ids=["full", "LoRA", "own"]
)
def test_supervised_training_has_the_rows_order_start_and_steps_of_the_rules(
    own: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trained_weights: list[dict[str, torch.Tensor]],
):
    first, *_ = tiny_runs()
    supervised = train_and_measure(replace(first, fields={"method": "sft", **own}), tmp_path)
    assert (supervised["history"], supervised["beta_draws"]) == ([], [])
    monkeypatch.setattr(runs, "ExactTeacher", OneHotTeacher)
    fields = {"divergence": "forward_kl", "normalization": "token", **own}
    distilled = train_and_measure(replace(first, fields=fields), tmp_path)
    assert distilled["history"][-1]["step"] == (2 if "num_train_epochs" in own else 4)
    for name, weight in trained_weights[0].items():  # a step moves most weights by about the learning rate, 3e-3
        torch.testing.assert_close(weight, trained_weights[1][name], rtol=0.0, atol=1e-4)


def test_an_adapter_starts_alike_for_all_rules_and_draws_and_is_merged_into_its_layers(
    tmp_path: Path, trained_weights: list[dict[str, torch.Tensor]]
):
    """The first batch has the same divergences whatever the draw, and other layers keep their weights."""
    first, *_ = tiny_runs()
    fast = {**LORA, "learning_rate": 0.1}
    rules = [
        ({"divergence": "forward_kl", **fast}, 0),
        ({"divergence": "forward_kl", **fast}, 1),
        ({"beta_strategy": "akd", **fast}, 1),
    ]
    rows = [train_and_measure(replace(first, fields=fields, draw=draw), tmp_path) for fields, draw in rules]
    assert rows[0]["history"] == rows[1]["history"]
    assert len({row["history"][0]["forward_kl"] for row in rows}) == 1
    start = LlamaForCausalLM.from_pretrained(tmp_path / first.start.key).state_dict()
    for weights in trained_weights:
        changed = {name for name, weight in weights.items() if not torch.equal(weight, start[name])}
        assert weights.keys() == start.keys()
        assert changed == {name for name in start if "q_proj" in name or "v_proj" in name}


def test_the_learning_rate_of_a_rule_is_that_of_its_training(
    tmp_path: Path, trained_weights: list[dict[str, torch.Tensor]]
):
    first, *_ = tiny_runs()
    for rate in ({}, {"learning_rate": 3e-5}):
        train_and_measure(replace(first, fields={"divergence": "forward_kl", **rate}), tmp_path)
    start = LlamaForCausalLM.from_pretrained(tmp_path / first.start.key).state_dict()
    moved, moved_less = (
        sum((weight - start[name]).abs().sum().item() for name, weight in weights.items())
        for weights in trained_weights
    )
    assert 0 < moved_less < moved / 50


@pytest.mark.parametrize(("rule", "count"), [("kl_lora", 10_240), ("kl_lora_attention", 3_072)])
def test_adapters_of_the_ablations_train_as_many_weights_as_the_recipe_says(rule: str, count: int):
    path = RECIPES / "micro" / "bench" / "akd_ablations.yaml"
    assert f"{count:,} weights" in path.read_text()
    student = new_model(student_config(make_tokenizer(), hidden_size=32))
    model = add_adapter(student, BenchConfig(**yaml.safe_load(path.read_text())).rule_fields()[rule], seed=0)
    assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == count


def test_the_ablations_share_the_runs_of_the_full_benchmark():
    first, second = (
        {run.key: run.rule for run in plan(BenchConfig(**{**content, "seeds": [0]})) if run.world_name == "separating"}
        for content in (
            yaml.safe_load((RECIPES / "micro" / "bench" / name).read_text())
            for name in ("full.yaml", "akd_ablations.yaml")
        )
    )
    shared = {"kl", "quarter", "half", "three_quarters", "rkl", "ramp", "akd", "sft"}
    assert {(first[key], second[key]) for key in first.keys() & second.keys()} == {(rule, rule) for rule in shared}


def test_training_from_a_teacher_cache_is_that_from_its_signals(
    tmp_path: Path, trained_weights: list[dict[str, torch.Tensor]]
):
    first, *_ = tiny_runs()
    caches = ({}, {"cache_kind": "hidden"}, *({"cache_kind": "sparse", "cache_top_k": k} for k in (141, 1)))
    rows = [train_and_measure(replace(first, fields={**first.fields, **cache}), tmp_path) for cache in caches]
    dense, hidden, whole, top1 = rows
    assert hidden["history"] == dense["history"]
    for name, weight in trained_weights[0].items():
        assert torch.equal(trained_weights[1][name], weight)
    for point, of_all, of_one in zip(dense["history"], whole["history"], top1["history"], strict=True):
        assert of_all["forward_kl"] == pytest.approx(point["forward_kl"], rel=0.02)
        assert of_one["forward_kl"] < 0.98 * point["forward_kl"], "a lower bound"


def test_a_seed_that_may_not_start_is_recorded_and_not_run(tmp_path: Path):
    world = {**TINY["worlds"]["one"], "start_mass": 0.4, "start_range": [0.4, 0.5]}
    first, *_ = tiny_runs(worlds={"one": world})
    row = train_and_measure(first, tmp_path)
    assert row["started"] is False and row["start"]["mass"] < 0.4 and "measures" not in row


def test_finished_runs_have_the_present_names_of_worlds_and_rules():
    rows = {
        run.key: {"key": run.key, "world": run.world_name, "rule": run.rule, "settings": {}} for run in tiny_runs()
    }
    worlds = {"renamed": TINY["worlds"]["one"], "same": {**TINY["worlds"]["one"], "rows": 97}}
    rules = {"forward": TINY["rules"]["kl"], "new": {"divergence": "jsd"}}
    control = {"world": "same", "student": "32k", "covering": "forward", "concentrating": "new"}
    prediction = {**TINY["predictions"]["p"], "world": "same", "first": "new", "second": "forward"}
    config = BenchConfig(
        **{**TINY, "worlds": worlds, "rules": rules, "control": control, "predictions": {"p": prediction}}
    )
    content = json.loads(results_text({}, plan(config), rows))
    assert [(run["world"], run["rule"]) for run in content["runs"]] == [
        ("renamed", "forward"),
    ]
    assert [(run["world"], run["rule"], run["draw"]) for run in content["planned"]] == [
        (world, rule, 0) for world in worlds for rule in rules
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"worlds": {"one": TINY["worlds"]["one"], "two": {**TINY["worlds"]["one"], "noise": 0}}},
            "`worlds` has 'one' and 'two', which are equal",
        ),
        (
            {"rules": {**TINY["rules"], "same": {"divergence": "forward_kl", "kd_temperature": 1.0}}},
            "`rules` has 'kl' and 'same', which are equal",
        ),
    ],
)
def test_equal_runs_under_two_names_are_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        tiny_runs(**change)


def test_constants_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch):
    [run, *_] = tiny_runs()
    keys = {replace(run, draw=0).key}
    for module, name, value in (
        (runs, "EPSILON", 0.5),
        (runs, "BATCH_SIZE", 7),
        (runs, "STUDENTS", {"32k": Student(32, 1.0)}),
        (runs, "PRETRAINING", {"rows": 3}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            keys.add(replace(run, draw=0).key)
    assert len(keys) == 5


def test_a_measure_that_is_not_a_number_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, *_ = tiny_runs()
    monkeypatch.setattr(runs, "measure", lambda *args, **kwargs: {"pass@1": float("nan"), "errors": {}})
    with pytest.raises(ValueError, match=r"pass@1 is nan"):
        train_and_measure(first, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"predictions": {"p": {**TINY["predictions"]["p"], "at_least": -1.0}}},
        {"control": {**TINY["control"], "margin": 0.3}},
        {"line": ["kl", "rkl"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_predictions_control_and_line_do_not_change_after_the_first_run(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        runs, "execute_all", lambda missing, **_: [(missing[0], {"key": "a", "started": False, "start": START}, "")]
    )
    settings = {**TINY, "output_dir": str(tmp_path)}
    runs.run_benchmark(BenchConfig(**settings))
    with pytest.raises(ValueError, match=next(iter(change))):
        runs.run_benchmark(BenchConfig(**{**settings, **change}))


def test_recipes_of_a_folder_share_equal_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The results of each say how many runs were finished before its predictions were recorded."""
    asked = []

    def execute(missing: list[Run], **_: Any) -> Iterator[tuple[Run, dict[str, Any], str]]:
        for run in missing:
            asked.append(run.rule)
            yield run, {"key": run.key, "started": False, "start": START}, ""

    monkeypatch.setattr(runs, "execute_all", execute)
    settings = {**TINY, "output_dir": str(tmp_path)}
    rules = {**TINY["rules"], "jsd": {"divergence": "jsd"}}
    second = {
        **settings,
        "name": "more",
        "rules": rules,
        "predictions": {"p": {**TINY["predictions"]["p"], "at_most": 1.0}},
    }
    paths = [runs.run_benchmark(BenchConfig(**each)) for each in (settings, second, second)]
    assert [path.name for path in paths] == ["results.json", "more.json", "more.json"]
    assert asked == ["kl", "random_epoch", "random_epoch", "rkl", "jsd"]
    contents = [json.loads(path.read_text()) for path in paths]
    assert [(content["finished_before"], len(content["runs"])) for content in contents] == [(0, 4), (4, 5), (4, 5)]


def command(recipe: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "trl_akd", "bench", "--config", str(recipe)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.end_to_end
def test_a_killed_benchmark_continues_and_gives_the_results_of_an_uninterrupted_one(tmp_path: Path):
    """After its last run it refuses other predictions."""
    folder, recipe = tmp_path / "bench", tmp_path / "recipe.yaml"
    settings = {**TINY, "output_dir": str(folder), "workers": 2}
    recipe.write_text(yaml.safe_dump(settings))
    process, lines = command(recipe), folder / "runs.jsonl"
    started: set[Process] = set()
    while process.poll() is None and not (lines.exists() and lines.read_text() and len(started) > 2):
        time.sleep(0.05)
        started = descendants(process.pid)  # two of them are multiprocessing's own
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while any(map(alive, started)):
        time.sleep(0.05)
    finished = lines.read_text().count("\n")
    with lines.open("a") as file:
        file.write('{"key": "to')  # a line torn by a power failure
    process = command(recipe)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert 0 < finished < 4 and f"4 runs, {finished} of them finished before" in out
    found = json.loads((folder / "results.json").read_text())["runs"]
    (tmp_path / "starts").mkdir()
    expected = [stable(train_and_measure(run, tmp_path / "starts")) for run in tiny_runs()]
    assert [stable(run) for run in found] == [
        {key: value for key, value in json.loads(json.dumps(run)).items() if key != "settings"} for run in expected
    ]
    changed = {"p": {**TINY["predictions"]["p"], "at_least": -1.0}}
    recipe.write_text(yaml.safe_dump({**settings, "predictions": changed}))
    process = command(recipe)
    _, err = process.communicate()
    assert process.returncode == 2
    assert "predictions" in err and len(err.strip().splitlines()) == 1


@pytest.mark.end_to_end
def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path: Path):
    kl, _, _, rkl = tiny_runs()
    broken = replace(kl, fields={"divergence": "forward"})
    found = {run.rule: (row, failure) for run, row, failure in execute_all([broken, rkl], tmp_path, workers=1)}
    assert found["kl"][0] is None and found["kl"][1].startswith("ValueError: `divergence`")
    row, _ = found["rkl"]
    assert row is not None and row["key"] == rkl.key
    assert "Traceback" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_the_reduced_benchmark_separates_both_divergences(tmp_path: Path):
    recipe = tmp_path / "reduced.yaml"
    content = yaml.safe_load((RECIPES / "micro" / "bench" / "reduced.yaml").read_text())
    recipe.write_text(yaml.safe_dump({**content, "output_dir": str(tmp_path / "bench")}))
    for finished in (0, 6):
        process = command(recipe)
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert f"6 runs, {finished} of them finished before" in out
    found = json.loads((tmp_path / "bench" / "results.json").read_text())["runs"]
    measures = {(run["seed"], run["rule"]): run["measures"] for run in found}
    for seed in content["seeds"]:
        assert measures[seed, "rkl"]["pass@1"] - measures[seed, "kl"]["pass@1"] > 0.05
        assert measures[seed, "kl"]["coverage"] - measures[seed, "rkl"]["coverage"] > 0.1
