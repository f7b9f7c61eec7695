"""Configurations of the benchmark: what they refuse, and which runs they plan."""

import re
from dataclasses import replace
from typing import Any

import pytest

from trl_akd.micro.bench.config import BenchConfig
from trl_akd.micro.bench.runs import plan

VALID: dict[str, Any] = {
    "worlds": {"one": {"rows": 96}, "null": {"num_valid": 1, "rules": ["kl"]}},
    "students": ["32k", "68k"],
    "rules": {"kl": {"divergence": "forward_kl"}, "rkl": {"divergence": "reverse_kl"}, "akd": {"draws": 3}},
    "seeds": [0, 1],
    "control": {"world": "one", "student": "32k", "covering": "kl", "concentrating": "rkl"},
    "line": ["kl", "rkl"],
    "predictions": {
        "a": {"world": "one", "student": "32k", "measure": "pass@1", "first": "rkl", "second": "kl", "at_least": 0.1},
        "b": {"world": "one", "student": "32k", "measure": "line", "first": "akd", "at_most": 0.0},
    },
}
PREDICTION = VALID["predictions"]["a"]
LORA: dict[str, Any] = {"use_peft": True, "lora_target_modules": "all-linear"}


def test_runs_are_the_product_of_worlds_students_rules_seeds_and_draws():
    runs = plan(BenchConfig(**VALID))
    places = [(run.seed, run.world_name, run.student, run.rule, run.draw) for run in runs]
    one = [("kl", 0), ("rkl", 0), ("akd", 0), ("akd", 1), ("akd", 2)]
    assert places == [
        (seed, world, student, *rule)
        for seed in (0, 1)
        for world, rules in (("one", one), ("null", one[:1]))
        for student in ("32k", "68k")
        for rule in rules
    ]
    assert len({run.key for run in runs}) == len(runs)


def test_rules_of_a_seed_share_their_start_and_worlds_do_if_they_differ_in_rows_or_noise_only():
    worlds = {"one": {}, "scarce": {"rows": 50, "epochs": 9}, "noisy": {"noise": 0.1}, "null": {"num_valid": 1}}
    runs = plan(BenchConfig(**{**VALID, "worlds": worlds}))
    starts = {(run.world_name, run.student, run.seed): run.start.key for run in runs}
    assert len({(run.start.key, run.student, run.seed) for run in runs}) == len(set(starts.values())) == 8
    assert starts["one", "32k", 0] == starts["scarce", "32k", 0] == starts["noisy", "32k", 0]
    assert starts["one", "32k", 0] != starts["null", "32k", 0]


def test_a_run_is_identified_by_all_that_its_result_depends_on_and_nothing_else():
    [run, *_] = plan(BenchConfig(**VALID))
    others = [
        replace(run, student="68k"),
        replace(run, seed=5),
        replace(run, draw=1),
        replace(run, fields={"divergence": "reverse_kl"}),
        replace(run, fields={"method": "sft"}),
        replace(run, fields={"method": "sft", **LORA}),
        *(
            replace(run, fields={**run.fields, **change})
            for change in (
                {"learning_rate": 0.01},
                {"num_train_epochs": 3.9},
                LORA,
                {**LORA, "lora_r": 8},
                {**LORA, "lora_alpha": 8},
                {**LORA, "lora_dropout": 0.0},
                {**LORA, "lora_target_modules": ["q_proj"]},
                {"cache_kind": "hidden"},
                {"cache_kind": "hidden", "cache_dtype": "int8"},
                {"cache_kind": "sparse"},
                {"cache_kind": "sparse", "cache_top_k": 2},
            )
        ),
        replace(run, num_tasks=7),
        replace(run, num_samples=7),
        *(
            replace(run, world=replace(run.world, **change))
            for change in (
                {"num_valid": 2},
                {"same_everywhere": True},
                {"noise": 0.2},
                {"rows": 97},
                {"epochs": 4},
                {"start_mass": 0.3},
                {"start_range": (0.2, 0.5)},
                {"start_max_steps": 100},
                {"start_min_steps": 100},
            )
        ),
    ]
    assert len({run.key, *(other.key for other in others)}) == 1 + len(others)
    assert replace(run, fields={"divergence": "kl", "method": "akd"}).key == run.key
    for same in (
        {"use_peft": False},
        {"num_train_epochs": 3},  # as the world
        {"num_train_epochs": 3.0},
        {"learning_rate": 3e-3},  # as the student
        {"cache_kind": None},
    ):
        assert replace(run, fields={**run.fields, **same}).key == run.key
    longer = replace(run, fields={**run.fields, "num_train_epochs": 4})
    assert longer.key == replace(run, world=replace(run.world, epochs=4)).key
    adapter = replace(run, fields={**run.fields, **LORA})
    for same in (
        {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05},  # the defaults of TRL
        {
            "lora_target_modules": [
                *reversed(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
            ]
        },
    ):
        assert replace(adapter, fields={**adapter.fields, **same}).key == adapter.key
    renamed = replace(run, world_name="other", rule="other", world=replace(run.world, students=("32k",)))
    assert renamed.key == run.key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": None}, "`predictions` is not set; write down what you expect"),
        ({"rules": {}}, "`rules` is not set"),
        ({"control": None}, "`control` is not set"),
        ({"students": ["31k"]}, "`students` has '31k', which is not one of 32k, 68k, 255k"),
        ({"seeds": [1, 1]}, r"`seeds` is \[1, 1\], which names one twice"),
        ({"workers": 0}, "`workers` is 0; give an integer of at least 1"),
        ({"worlds": {"one": {"row": 3}}}, "`worlds` has 'one', in which `row` is unknown; choose from num_valid"),
        ({"worlds": {"one": {"num_valid": 9}}}, "`num_valid` is 9"),
        ({"worlds": {"one": {"start_mass": 0.9}}}, "`start_mass` is 0.9; give a value in `start_range`, 0.25 to 0.45"),
        ({"worlds": {"one": {"noise": "much"}}}, "`worlds` has 'one', in which `noise` is 'much'; give a number"),
        ({"worlds": {"one": {"rows": 9.5}}}, "`rows` is 9.5; give an integer"),
        ({"worlds": {"one": {"rows": 0}}}, "`rows` is 0; give an integer of at least 1"),
        ({"worlds": {"one": {"epochs": True}}}, "`epochs` is True; give a number"),
        ({"worlds": {"one": {"epochs": 0}}}, "`epochs` is 0; give a number above 0"),
        ({"worlds": {"one": {"same_everywhere": 1}}}, "`same_everywhere` is 1; give true or false"),
        ({"worlds": {"one": {"start_range": [0.1]}}}, r"`start_range` is \[0.1\]; give a list of two numbers"),
        ({"worlds": {"one": {"students": "32k"}}}, "`students` is '32k'; give a list of names"),
        ({"worlds": {"one": {"students": [32]}}}, r"`students` is \[32\]; give a list of names"),
        ({"worlds": {"one": 5}}, "`worlds` has 'one', in which the settings are 5; give a mapping"),
        ({"predictions": {"p": {**PREDICTION, "at_least": "big"}}}, "`at_least` is 'big'; give a number"),
        ({"control": {**VALID["control"], "world": ["one"]}}, r"`control`: `world` is \['one'\]; give a name"),
        ({"worlds": {"one": {"rules": ["sft"]}}}, "`worlds: one: rules` has 'sft', which is not one of kl, rkl, akd"),
        ({"worlds": "{"}, "`worlds` is not JSON"),
        ({"rules": {"kl": {"divergence": "forward"}}}, "`rules` has 'kl', which `trl-akd akd` refuses: `divergence`"),
        *(
            ({"rules": {"kl": {name: 3}}}, f"`rules` has 'kl', in which `{name}` is set; with the method akd, a rule")
            for name in (
                "seed",
                "epochs",
                "use_cpu",
                "push_to_hub",
                "bf16",
                "max_steps",
                "divergense",
                "seq_kd",
                "use_rslora",
            )
        ),
        ({"rules": {"kl": "forward"}}, "`rules` has 'kl', which is 'forward'; give a mapping"),
        ({"rules": {"k l": {}}}, "`rules` has the name 'k l'; give letters"),
        ({"worlds": {"a/b": {}}}, "`worlds` has the name 'a/b'; give letters"),
        ({"seeds": ["a"]}, "`seeds` has 'a'; give integers"),
        ({"worlds": {"one": {"rows": "2000"}}}, "`rows` is '2000'; give an integer"),
        ({"worlds": {"one": {"epochs": -1}}}, "`epochs` is -1; give a number above 0"),
        ({"worlds": {"one": {"same_everywhere": "no"}}}, "`same_everywhere` is 'no'; give true or false"),
        ({"worlds": {"one": {"start_min_steps": 901}}}, "`start_min_steps` is 901, above `start_max_steps`, 900"),
        ({"worlds": {"one": {"start_range": [0.2, 2]}}}, "`start_range` is 0.2 to 2; give two probabilities"),
        ({"worlds": {"one": {"start_range": 0.3}}}, "`start_range` is 0.3; give a list of two numbers"),
        ({"worlds": {"one": {"students": []}}}, r"`worlds: one: students` is \[\]; name at least one"),
        ({"worlds": {"one": {"rules": ["kl"]}}}, "`control` needs the rule 'rkl', which does not run in the world"),
        ({"worlds": {"one": {"students": ["68k"]}}}, "`control` needs the student '32k', which does not run"),
        ({"worlds": {"one": {"rules": ["kl", "rkl"]}}}, "`predictions: b` needs the rule 'akd', which does not run"),
        ({"control": {**VALID["control"], "covering": "rkl"}}, "`covering` and `concentrating` are both 'rkl'"),
        ({"control": {**VALID["control"], "margin": -5}}, "`margin` is -5; give a number from 0 to 1"),
        ({"line": ["akd", "rkl"]}, "`predictions: b` has first 'akd', which is in `line`"),
        ({"line": ["rkl", "rkl"]}, "give at least two rules"),
        ({"predictions": {"p": {**PREDICTION, "second": "rkl"}}}, "`first` and `second` are both 'rkl'"),
        ({"predictions": {"p": {**PREDICTION, "at_most": 0.0}}}, "at least 0.1 and at most 0.0, between which there"),
        (
            {"num_samples": 5, "predictions": {"p": {**PREDICTION, "measure": "pass@10"}}},
            "measure 'pass@10', which needs at least 10 `num_samples`, not 5",
        ),
        ({"rules": {"kl": {"draws": 0}}}, "`draws` is 0; give an integer of at least 1"),
        *(
            ({"rules": {"kl": {**rule, "draws": 2}}}, "`draws` is 2, but neither its beta nor its text is drawn")
            for rule in (
                {"divergence": "forward_kl"},
                {"beta_strategy": "fixed", "beta": 0.5},
                {"beta_strategy": "linear"},
                {"method": "sft"},
            )
        ),
        ({"rules": {"kl": {"method": "grpo"}}}, "`rules: kl: method` has 'grpo', which is not one of akd, sft"),
        (
            {"rules": {"kl": {"method": "sft", "divergence": "akd"}}},
            "with the method sft, a rule sets only method, learning_rate, num_train_epochs, use_peft, lora_r, ",
        ),
        *(
            (
                {"rules": {"kl": {name: value}}},
                re.escape(f"`rules` has 'kl', in which `{name}` is {value!r}; give a number above 0, such as 0.01."),
            )
            for name in ("learning_rate", "num_train_epochs")
            for value in (0, -1.5, "1e-2", None, True, [3], float("inf"), float("nan"))
        ),
        *(
            ({"rules": {"kl": {**rule, "use_peft": value}}}, f"`use_peft` is {value!r}; give true or false")
            for rule in ({}, {"method": "sft"})
            for value in (1, "true", None)
        ),
        *(
            (
                {"rules": {"kl": {"lora_r": 8, **switch}}},
                "`lora_r` is 8, which has no effect without LoRA; set `use_peft: true`, or leave it out",
            )
            for switch in ({}, {"use_peft": False}, {"method": "sft"})
        ),
        *(
            ({"rules": {"kl": {**LORA, name: value}}}, f"`{name}` is {value!r}; give an integer of at least 1")
            for name in ("lora_r", "lora_alpha")
            for value in (0, -8, 8.0, "8", True, None)
        ),
        *(
            ({"rules": {"kl": {**LORA, "lora_dropout": value}}}, f"`lora_dropout` is {value!r}; give a number from 0")
            for value in (1, 1.5, -0.1, "0.1", None, False, float("nan"))
        ),
        *(
            (
                {"rules": {"kl": {"use_peft": True, **modules}}},
                r"`lora_target_modules` is .*; give 'all-linear', or a list of some of q_proj, k_proj",
            )
            for modules in (
                {},
                {"lora_target_modules": []},
                {"lora_target_modules": "q_proj"},
                {"lora_target_modules": ["q_proj", "c_attn"]},
                {"lora_target_modules": ["lm_head"]},
                {"lora_target_modules": ["all-linear"]},
                {"lora_target_modules": 3},
                {"lora_target_modules": [["q_proj"]]},
            )
        ),
        *(
            ({"rules": {"kl": {"cache_kind": value}}}, "`rules: kl: cache_kind` has .* which is not one of hidden, sp")
            for value in ("dense", 3, ["hidden"])
        ),
        ({"rules": {"kl": {"cache_kind": "hidden", "cache_dtype": "int4"}}}, "`rules: kl: cache_dtype` has 'int4'"),
        *(
            ({"rules": {"kl": fields}}, f"in which `{name}` is .*, which has no effect with `cache_kind`")
            for name, fields in (
                ("cache_top_k", {"cache_top_k": 8}),
                ("cache_top_k", {"cache_kind": "hidden", "cache_top_k": 8}),
                ("cache_dtype", {"cache_dtype": "int8"}),
                ("cache_dtype", {"cache_kind": "sparse", "cache_dtype": "int8"}),
            )
        ),
        *(
            (
                {"rules": {"kl": {"cache_kind": "sparse", "cache_top_k": value}}},
                f"`cache_top_k` is {value!r}; give an integer from 1 to 141, the size of the vocabulary",
            )
            for value in (0, 142, 8.0, "8", True, None)
        ),
        (
            {"rules": {"kl": {"cache_kind": "hidden", "lmbda": 0.5, "temperature": 1.0}}},
            "which `trl-akd akd` refuses: `teacher_cache` is set and `lmbda` is 0.5, but a cache has no signals",
        ),
        (
            {"rules": {"kl": {"method": "sft", "cache_kind": "hidden"}}},
            "`cache_kind` is set; with the method sft, a rule sets only",
        ),
        ({"name": "a/b"}, "`name` is 'a/b'; give letters"),
        ({"control": {"world": "one"}}, "`control`: `student` is missing; add it"),
        ({"control": {**VALID["control"], "covering": "sft"}}, "`control` has 'sft'"),
        ({"line": ["kl"]}, r"`line` is \['kl'\]; give at least two rules"),
        ({"predictions": {"p": {**PREDICTION, "second": "sft"}}}, "`predictions: p` has 'sft'"),
        ({"predictions": {"p": {**PREDICTION, "measure": "speed"}}}, "`predictions: p` has 'speed'"),
        ({"predictions": {"p": {**PREDICTION, "measure": "line"}}}, "leave it out for 'line'"),
        ({"predictions": {"p": {**PREDICTION, "at_least": None}}}, "there is no bound; give `at_least`"),
        ({"page": "results.md"}, "`page` is 'results.md', which has no effect without `report`"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_wrong_settings_are_refused_in_one_sentence(change: dict, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        BenchConfig(**{**VALID, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["worlds", "rules", "students", "seeds", "control", "line", "predictions"])
def test_settings_of_runs_are_refused_beside_a_report(name: str):
    value = [3] if name == "seeds" else VALID[name]
    with pytest.raises(ValueError, match=f"`{name}` has no effect with `report`"):
        BenchConfig(report=["results.json"], **{name: value})


def test_a_report_needs_no_other_settings():
    assert BenchConfig(report=["results.json"], page="results.md").report == ["results.json"]
