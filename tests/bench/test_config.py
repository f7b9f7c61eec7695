"""Values that the configuration of the benchmark refuses, and the runs that it describes."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from trl_akd.bench.config import ModelsConfig
from trl_akd.bench.plan import plan
from trl_akd.bench.runs import Run
from trl_akd.cli.resolving import resolve

PREDICTION = {"pair": "tiny", "benchmark": "three", "first": "akd", "second": "kd", "at_least": 0.0}


def changed(settings: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return settings in which the value at a path such as `rules/kd/beta` is replaced; `None` removes it."""
    found = copy.deepcopy(settings)
    *parents, last = path.split("/")
    place = found
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    return found


def make_runs(settings: dict[str, Any]) -> list[Run]:
    return plan(ModelsConfig(**settings), resolve)


def named(runs: list[Run]) -> dict[tuple[str, int], Run]:
    return {(run.rule, run.seed): run for run in runs}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("predictions", None, "`predictions` is not set; write down what you expect"),
        ("pairs", {}, "`pairs` is not set"),
        ("rules", {}, "`rules` is not set"),
        ("benchmarks", {}, "`benchmarks` is not set"),
        ("seeds", [1, 1], "`seeds` is [1, 1], which names one twice"),
        ("seeds", ["a"], "`seeds` has 'a'; give integers"),
        ("before", ["judge"], "`before` has 'judge', which is not one of student, teacher"),
        ("reference", "rkl", "`reference` has 'rkl', which is not one of kd, akd"),
        ("pairs/tiny", "recipe.yaml", "`pairs` has 'tiny', which is 'recipe.yaml'; give a mapping"),
        ("rules/kd", ["forward_kl"], "`rules` has 'kd', which is ['forward_kl']; give a mapping"),
        ("rules/kd/evaluate", "humaneval", "`rules: kd: evaluate` is 'humaneval'; give a mapping"),
        ("rules/teacher", {}, "`rules` has 'teacher', which is the name of a model without training"),
        ("rules/a b", {}, "`rules` has the name 'a b'"),
        ("common/output_dir", "x", "`common` sets `output_dir`, which the benchmark sets itself"),
        ("pairs/tiny/seed", 1, "`pairs: tiny` sets `seed`, which the benchmark sets itself"),
        ("rules/kd/dry_run", True, "`rules: kd` sets `dry_run`"),
        ("rules/kd/evaluate", {"seed": 1}, "`rules: kd: evaluate` sets `seed`"),
        ("evaluate/model_name_or_path", "x", "`evaluate` sets `model_name_or_path`"),
        ("evaluate/benchmark", "mbpp", "`evaluate` sets `benchmark`; give the benchmarks in `benchmarks`"),
        ("benchmarks/three/output_dir", "x", "`benchmarks: three` sets `output_dir`"),
        ("predictions/p/pair", "other", "`predictions: p: pair` has 'other', which is not one of tiny"),
        ("predictions/p/first", "rkl", "`predictions: p` has 'rkl', which is not one of kd, akd, student, teacher"),
        ("predictions/p/second", "akd", "`first` and `second` are both 'akd'"),
        ("predictions/p/benchmark", "mbpp", "`predictions: p: benchmark` has 'mbpp', which is not one of three"),
        ("predictions/p/measure", "seconds", "`measure` is 'seconds' and `benchmark` 'three'; give a benchmark for"),
        ("predictions/p/at_least", None, "there is no bound"),
        ("page", "x.md", "`page` is 'x.md', which has no effect without `report`"),
        ("report", ["results.json"], "has no effect with `report`"),
    ],
)
def test_configuration_is_refused(settings: dict[str, Any], path: str, value: Any, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelsConfig(**changed(settings, path, value))


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        ({"benchmark": None}, "`measure` is 'pass@1' and `benchmark` None"),
        ({"benchmark": None, "measure": "seconds", "first": "student"}, "which models that are not trained do not"),
    ],
)
def test_prediction_is_refused(settings: dict[str, Any], prediction: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelsConfig(**changed(settings, "predictions/p", {**PREDICTION, **prediction}))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("method", "dpo", "'dpo' is not a training method; choose one of akd, codeplan, iterkd"),
        (
            "rules/kd/method",
            "dpo",
            "pair 'tiny' with 'kd', which `trl-akd dpo` refuses: 'dpo' is not a training method",
        ),
        ("common/learning_ratee", 1, "the recipe has the unknown key `learning_ratee`; did you mean `learning_rate`"),
        ("common/learning_rate", "fast", "`learning_rate` in the recipe is 'fast'; give a number"),
        ("rules/kd/beta", 0.5, "pair 'tiny' with 'kd', which `trl-akd akd` refuses: `beta` is 0.5"),
        ("rules/kd/accelerate_config", "ddpp", "`--accelerate_config` is 'ddpp', which is neither a file nor one of"),
        ("rules/same", {"divergence": "forward_kl", "beta_strategy": "akd"}, "`rules` has 'kd' and 'same', which are"),
        ("rules/logs", {"logging_steps": 7}, "`rules` has 'akd' and 'logs', which are equal"),
        ("pairs/tiny/recipe", "none.yaml", "`recipe` is 'none.yaml', but there is no such file"),
        ("evaluate/k", [2], "pair 'tiny' with 'student' on 'three', which `trl-akd evaluate` refuses: `k` asks for"),
        ("rules/akd/evaluate", {"plan_sampling": True}, "refuses: `temperature` is 0, at which all plans are equal"),
        ("evaluate/tmperature", 1, "the unknown key `tmperature`; did you mean `temperature`"),
        ("benchmarks/humanevl", {}, "benchmark 'humanevl' is unknown; did you mean 'humaneval'"),
        ("predictions/p/measure", "pass@10", "`predictions: p: measure` has 'pass@10', which is not one of pass@1"),
    ],
)
def test_fields_that_commands_refuse(settings: dict[str, Any], path: str, value: Any, message: str):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        make_runs(changed(settings, path, value))


def test_before_needs_a_teacher(settings: dict[str, Any]):
    del settings["pairs"]["tiny"]["teacher_model_name_or_path"]
    settings = {**settings, "method": "codeplan", "rules": {"kd": {}, "akd": {"plan_weight": 0.0}}}
    with pytest.raises(ValueError, match=r"the pair 'tiny' does not set `teacher_model_name_or_path`"):
        make_runs(settings)


def test_runs_of_a_recipe(settings: dict[str, Any]):
    runs = make_runs(settings)
    assert [(run.rule, run.seed) for run in runs] == [
        (rule, seed) for seed in (1, 2) for rule in ("student", "teacher", "kd", "akd")
    ]
    found = named(runs)
    assert found["student", 1].key == found["student", 2].key, "greedy decoding does not depend on the seed"
    assert len({run.key for run in runs}) == 6
    student = settings["pairs"]["tiny"]["model_name_or_path"]
    assert found["student", 1].evaluations["three"].values["model_name_or_path"] == student
    training = found["kd", 2].training
    assert training.seed == 2 and training.settings["divergence"] == "forward_kl"
    assert training.flags == ("--allow_code_execution",) and not training.continues
    assert "logging_steps" not in training.settings and "output_dir" not in training.settings


def test_evaluations_of_a_model_share_a_folder(settings: dict[str, Any], tmp_path: Path):
    settings["benchmarks"]["humaneval"] = {"dtype": "bfloat16", "limit": 3}
    student, teacher, trained, _ = make_runs({**settings, "seeds": [1]})
    folders = [run.folder(tmp_path) for run in (student, teacher, trained)]
    assert len(set(folders)) == 3 and all(folder.parent == tmp_path / "runs" for folder in folders)
    assert student.evaluation_folder(tmp_path, "humaneval").parent.parent == folders[0]


def test_sampling_depends_on_the_seed(settings: dict[str, Any]):
    sampled = {"temperature": 0.8, "num_samples": 2, "k": [1, 2], "max_new_tokens": 4}
    found = named(make_runs({**settings, "evaluate": sampled}))
    assert found["student", 1].key != found["student", 2].key
    assert found["kd", 2].evaluations["three"].seed == 2


def test_rules_change_fields_and_remove_those_of_the_recipe(settings: dict[str, Any], tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"beta_strategy": "fixed", "beta": 0.2, "env": {"A": "1"}, "seed": 9}))
    settings["pairs"]["tiny"]["recipe"] = str(recipe)
    settings["rules"] = {"fixed": {}, "kd": {"beta_strategy": None, "beta": None, "divergence": "forward_kl"}}
    settings["predictions"]["p"] |= {"first": "fixed"}
    found = named(make_runs(settings))
    assert found["fixed", 1].training.values["beta"] == 0.2
    [arguments, _] = found["fixed", 1].write_recipes(tmp_path)
    written = yaml.safe_load(Path(arguments[2]).read_text())
    assert (written["seed"], written["beta"], written["env"]) == (1, 0.2, {"A": "1"})
    assert found["fixed", 1].training.settings["env"] == {"A": "1"}
    assert not {"beta", "beta_strategy"} & found["kd", 1].training.values.keys()


def test_evaluation_has_the_template_of_the_training(settings: dict[str, Any]):
    settings["rules"]["akd"] = {"prompt_template": "starcoder"}
    settings["rules"]["own"] = {"evaluate": {"prompt_template": "instruct_eval"}}
    templates = {
        run.rule: run.evaluations["three"].values.get("prompt_template")
        for run in make_runs(changed(settings, "evaluate/prompt_style", "template"))
    }
    expected = {"student": "alpaca", "teacher": "alpaca", "kd": "alpaca", "akd": "starcoder", "own": "instruct_eval"}
    assert templates == expected
    del settings["rules"]["own"]
    assert all("prompt_template" not in run.evaluations["three"].values for run in make_runs(settings))


def test_key_of_a_training_does_not_depend_on_evaluations(settings: dict[str, Any]):
    more = copy.deepcopy(settings)
    more["benchmarks"]["humaneval"] = None
    before, after = named(make_runs(settings)), named(make_runs(more))
    assert before["kd", 1].training.key == after["kd", 1].training.key
    assert before["kd", 1].key != after["kd", 1].key
    assert before["kd", 1].evaluations["three"].key == after["kd", 1].evaluations["three"].key


def test_processes_are_part_of_the_key_and_a_flag(settings: dict[str, Any]):
    training = named(make_runs(changed(settings, "common/accelerate_config", "ddp_cpu")))["kd", 1].training
    assert training.flags[0] == "--accelerate_config" and training.flags[1].endswith("ddp_cpu.yaml")
    assert training.settings["accelerate_config"] == "ddp_cpu" and "accelerate_config" not in training.values
    assert training.key != named(make_runs(settings))["kd", 1].training.key


def test_iterkd_continues_without_being_asked(settings: dict[str, Any]):
    settings["rules"] = {"kd": {}, "akd": {"contrastive_weight": 0.0}}
    training = named(make_runs({**settings, "method": "iterkd"}))["kd", 1].training
    assert training.continues
