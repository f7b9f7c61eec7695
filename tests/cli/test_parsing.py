import json
import os
import re
from dataclasses import dataclass, fields
from inspect import get_annotations
from typing import get_type_hints

import pytest
import yaml
from transformers.debug_utils import DebugOption

from tests.commands import COMMANDS, argument_types
from trl_akd.cli.parsing import RecipeParser, field_descriptions, read_options
from trl_akd.cli.recipes import Recipe, read_recipe
from trl_akd.deprecation import renamed_fields


@pytest.mark.parametrize("argv", [["--config", "a.yaml"], ["--config=a.yaml"]])
def test_config_in_both_spellings(argv: list[str]):
    options, flags = read_options(["--seed", "1", *argv, "--bf16"])
    assert (options.config, options.accelerate_config, flags) == ("a.yaml", None, ["--seed", "1", "--bf16"])


def test_config_without_a_path():
    with pytest.raises(ValueError, match="argument --config: expected one argument"):
        read_options(["--config"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a mapping"),
        ("- a\n- b\n", "is not a mapping"),
        ("a: [1, 2\nb: 3\n", "is not valid YAML: .* line 2"),
        ("seed: 1\nlearning_rate: 1.0\nseed: 2\n", "recipe.yaml: line 3 sets `seed` again, after line 1; keep one"),
        ("env: {A: 1, 'A': 2}\n", "recipe.yaml: line 1 sets `A` again, after line 1; keep one"),
        ("env: {A: }\n", "`env` in .* sets A to None; give a text, such as '' for an empty one"),
        ("env: {A: [1]}\n", r"`env` in .* sets A to \[1\]; give a text"),
        ("env: fast\n", "`env` in .* is 'fast'; give a mapping"),
    ],
)
def test_invalid_recipes(content: str, message: str, recipe):
    with pytest.raises(ValueError, match=message):
        read_recipe(recipe(content))


def test_env_sets_environment_variables(recipe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRL_AKD_TEST", "before")
    assert read_recipe(recipe("env:\n  TRL_AKD_TEST: 2\nseed: 3\n")).values == {"seed": 3}
    assert os.environ["TRL_AKD_TEST"] == "2"


def read(parser: RecipeParser, path: str, *flags: str):
    return parser.values(read_recipe(path), flags)


def test_precedence_of_flags_recipe_and_defaults(parser: RecipeParser, recipe):
    values = read(parser, recipe({"seed": 3, "max_steps": 5}), "--seed", "7")
    assert (values.seed, values.max_steps, values.logging_steps) == (7, 5, 10)


def test_without_a_recipe(parser: RecipeParser):
    assert parser.values(Recipe(), ["--seed", "7"]).seed == 7


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [("lerning_rate", "`learning_rate` or"), ("torch_dtype", ".*`dtype`"), ("max_seq_length", "`max_length`")],
)
def test_unknown_key_is_named_with_a_suggestion(key: str, suggestion: str, parser: RecipeParser, recipe):
    path = recipe({key: 1})
    with pytest.raises(ValueError, match=f"{path} has the unknown key `{key}`; did you mean {suggestion}"):
        read(parser, path)


def test_unknown_key_without_anything_close(parser: RecipeParser, recipe):
    with pytest.raises(ValueError, match=r"has the unknown key `qqqqqq`\.$"):
        read(parser, recipe({"qqqqqq": 1}))


def test_accelerate_config_is_only_a_flag(parser: RecipeParser, recipe):
    with pytest.raises(ValueError, match="give it as the flag `--accelerate_config`"):
        read(parser, recipe({"accelerate_config": "zero3"}))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lerning_rate", "1"], "`--lerning_rate` is unknown; did you mean `--learning_rate`"),
        (["--lerning_rate=1"], "`--lerning_rate` is unknown"),
        (["--max-step", "1"], r"`--max-step` is unknown; did you mean `--max_steps`(?! or `--max-)"),
        (["--qqqqqq"], "`--qqqqqq` is unknown; `trl-akd akd --help all` lists all flags$"),
        (["--learning", "1"], "`--learning` is unknown"),  # argparse would take it for --learning_rate
        (["--num_processes", "2"], "is for accelerate's launcher; give `--accelerate_config`"),
        (["1e-5"], "'1e-5' does not belong to a flag"),
        (["--max_steps", "two"], "--max_steps.*invalid int value: 'two'"),
        (["--save_strategy", "always"], "--save_strategy.*invalid choice: 'always'"),
    ],
)
def test_wrong_flags(flags: list[str], message: str, parser: RecipeParser):
    with pytest.raises(ValueError, match=message):
        parser.values(Recipe(), flags)


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("learning_rate: 1e-5", "learning_rate", 1e-5),  # text to YAML 1.1
        ("learning_rate: 1", "learning_rate", 1.0),
        ("beta_initial_values: [1e-1, 0.6]", "beta_initial_values", [0.1, 0.6]),
        ("beta_initial_values: 0.3", "beta_initial_values", [0.3]),
        ("lora_target_modules: c_attn", "lora_target_modules", ["c_attn"]),
        ("lora_target_modules:", "lora_target_modules", None),
        ("max_length: null", "max_length", None),
        ("max_length: none", "max_length", None),
        ("max_steps: 2.0", "max_steps", 2),
        ("save_strategy: no", "save_strategy", "no"),  # false to YAML 1.1
        ("eval_strategy: off", "eval_strategy", "no"),
        ("bf16: false", "bf16", False),
        ("bf16: 'yes'", "bf16", True),
        ("report_to: none", "report_to", "none"),
        ("report_to: [wandb, trackio]", "report_to", ["wandb", "trackio"]),
        ("run_name: 5", "run_name", "5"),
        ("lora_modules_to_save: [1, a]", "lora_modules_to_save", ["1", "a"]),
        ("run_name: '2026-01-05'", "run_name", "2026-01-05"),
        ("run_name:", "run_name", None),
        ("bf16: 0", "bf16", False),
        ("packing: on", "packing", True),
        ("tf32:", "tf32", None),
        ("teacher_device: 1", "teacher_device", 1),
        ("fsdp: false", "fsdp", False),
        ("resume_from_checkpoint: true", "resume_from_checkpoint", True),
        ("teacher_model_init_kwargs: {dtype: bfloat16}", "teacher_model_init_kwargs", {"dtype": "bfloat16"}),
    ],
)
def test_yaml_values(line: str, field: str, value: object, parser: RecipeParser, recipe):
    found = getattr(read(parser, recipe(f"{line}\n")), field)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("max_steps: 2.5", "`max_steps` in .* is 2.5; give a whole number"),
        ("max_steps: two", "`max_steps` in .* is 'two'; give a whole number"),
        ("max_steps: true", "`max_steps` in .* is True; give a whole number"),
        ("learning_rate: [1e-5]", r"`learning_rate` in .* is \['1e-5'\]; give a number"),
        ("learning_rate:", "`learning_rate` in .* is empty"),
        ("beta_initial_values: [low]", "`beta_initial_values` in .* is 'low'; give a number"),
        ("bf16: maybe", "`bf16` in .* is 'maybe'; give true or false"),
        ("bf16: 7", "`bf16` in .* is 7; give true or false"),
        ("bf16: [true]", r"`bf16` in .* is \[True\]; give true or false"),
        ("disable_dropout: {a: 1}", "`disable_dropout` in .* is {'a': 1}; give true or false"),
        ("output_dir: 2026-01-05", "`output_dir` in .* is 2026-01-05, which YAML reads as a date; put it in quotes"),
        ("output_dir: 2026-01-05 10:00:00", "`output_dir` in .* is 2026-01-05 10:00:00, which YAML reads as a date"),
        ("output_dir: [a, b]", r"`output_dir` in .* is \['a', 'b'\]; give a text"),
        ("dataset_name: {a: b}", "`dataset_name` in .* is {'a': 'b'}; give a text"),
        ("run_name: on", "`run_name` in .* is True, which YAML reads as a boolean; put it in quotes"),
        ("lora_target_modules: [2026-01-05]", "`lora_target_modules` in .* is 2026-01-05, which YAML reads as a date"),
        ("dataset_revision: 0123456", "line 1 has 0123456, which YAML reads as 42798; write that, or use quotes"),
        ("max_steps: 010", "line 1 has 010, which YAML reads as 8"),
        ("hub_model_id: 12:30", "line 1 has 12:30, which YAML reads as 750"),
        ("save_strategy: epochs", "`save_strategy` in .* is 'epochs'; did you mean `epoch`"),
        ("save_strategy: true", "`save_strategy` in .* is True; choose one of no, steps"),
        ("beta_strategy: m4", "`beta_strategy` in .* is 'm4'; choose one of akd, m1, m2, fixed, random_epoch, linear"),
    ],
)
def test_values_of_the_wrong_type(line: str, message: str, parser: RecipeParser, recipe):
    with pytest.raises(ValueError, match=message):
        read(parser, recipe(f"{line}\n"))


@pytest.mark.parametrize("device_map", ["auto", 0, {"": 0}, {"model": 0, "lm_head": "cpu"}])
def test_placement_on_devices(device_map: object, recipe):
    evaluating = RecipeParser(argument_types("evaluate"), prog="trl-akd evaluate")
    assert evaluating.values(read_recipe(recipe({"device_map": device_map}))).device_map == device_map


@pytest.mark.parametrize("flag", ["--model=m", "--model"])
def test_old_names_of_fields_are_read_with_a_warning(flag: str, recipe):
    """In recipes and in flags; each command has different old names."""
    evaluating = RecipeParser(argument_types("evaluate"), prog="trl-akd evaluate")
    flags = [flag, *([] if "=" in flag else ["m"]), "--batch-size", "4"]
    with pytest.warns(FutureWarning) as warned:
        values = evaluating.values(read_recipe(recipe({"timeout": 7})), flags)
    assert (values.model_name_or_path, values.program_timeout, values.generation_batch_size) == ("m", 7.0, 4)
    assert "`timeout` is now called `program_timeout`; the old name will be removed." in str(warned[0].message)
    planning = RecipeParser(argument_types("plans"), prog="trl-akd plans")
    with pytest.warns(FutureWarning, match="`timeout` is now called `request_timeout`"):
        assert planning.values(Recipe(), ["--timeout", "7"]).request_timeout == 7.0
    assert "--timeout" not in planning.format_help()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_old_and_the_current_name_of_a_field(command: str, recipe):
    """Both in a recipe, or both as flags, in each spelling. A flag replaces a value of the recipe by either name."""
    types = argument_types(command)
    parser = RecipeParser(types, prog=f"trl-akd {command}")
    for old, new in {old: new for kind in types for old, new in renamed_fields(kind).items()}.items():
        refused = f"`{old}` is the old name of `{new}`, and both are given; leave out `{old}`"
        with pytest.raises(ValueError, match=refused):
            parser.values(read_recipe(recipe({old: 1, new: 2})))
        for flags in ([f"--{old}=1", f"--{new}=2"], [f"--{new.replace('_', '-')}", "2", f"--{old}", "1"]):
            with pytest.raises(ValueError, match=refused):
                parser.values(Recipe(), flags)
        value = {"backend": "openai", "prompt_style": "chat"}.get(new, "3")
        for name, flag in ((new, old), (old, new)):
            with pytest.warns(FutureWarning, match=f"`{old}` is now called"):
                parser.values(read_recipe(recipe({name: value})), [f"--{flag}", value])


@pytest.mark.parametrize("command", COMMANDS)
def test_error_names_a_field_that_needs_a_json_object(command: str, recipe):
    types = argument_types(command)
    parser = RecipeParser(types, prog=f"trl-akd {command}")
    names = [entry.name for kind in types for entry in fields(kind) if "dict" in str(get_type_hints(kind)[entry.name])]
    for name in names:
        is_path_too = name in ("accelerator_config", "deepspeed", "fsdp_config")
        wrong = ["{bad", "{'a': 1}", *([] if is_path_too else ["bad", "[1]", "3", ""])]
        for text in wrong:
            message = re.escape(f"`{name}` is ") + ".*; give a JSON object, such as"
            with pytest.raises(ValueError, match=message):
                parser.values(Recipe(), [f"--{name}", text])
            with pytest.raises(ValueError, match=message):
                parser.values(read_recipe(recipe({name: text})))
        with pytest.raises(ValueError, match=f"`{name}` is .*; give a JSON object"):
            parser.values(read_recipe(recipe({name: [1]})))
        for values in (
            parser.values(Recipe(), [f"--{name}", '{"a": 1}']),
            parser.values(read_recipe(recipe({name: {"a": 1}}))),
        ):
            found = getattr(values, name)
            assert (json.loads(found) if isinstance(found, str) else found) == {"a": 1}
        other = "file.json" if is_path_too else "null"
        found = getattr(parser.values(Recipe(), [f"--{name}", other]), name)
        assert found == ("file.json" if is_path_too else None)


def test_flags_that_are_on_by_default_can_be_turned_off(parser: RecipeParser, recipe):
    assert read(parser, recipe({"gradient_checkpointing": False})).gradient_checkpointing is False
    assert parser.values(Recipe(), ["--no_gradient_checkpointing"]).gradient_checkpointing is False
    assert parser.values(Recipe()).gradient_checkpointing is True


@pytest.mark.parametrize("line", ["debug: underflow_overflow", "debug: [underflow_overflow]"])
def test_choices_of_a_list_are_text(line: str, parser: RecipeParser, settings: dict, recipe):
    for values in (read(parser, recipe(line)), parser.values(Recipe(), ["--debug", "underflow_overflow"])):
        assert yaml.safe_load(yaml.safe_dump(vars(values)))["debug"] == ["underflow_overflow"]
    values = read(parser, recipe({**settings, "debug": "underflow_overflow"}))
    assert DebugOption.UNDERFLOW_OVERFLOW in parser.dataclasses(values)[1].debug


def test_dataclasses(parser: RecipeParser, settings: dict, recipe):
    script_args, training_args, model_args, _ = parser.dataclasses(read(parser, recipe(settings), "--use_peft"))
    assert (script_args.test_size, training_args.max_steps, model_args.use_peft) == (2, 2, True)
    assert training_args.gradient_checkpointing is False


def test_values_refused_by_a_dataclass(parser: RecipeParser, settings: dict, recipe):
    values = read(parser, recipe({**settings, "beta_strategy": "fixed", "beta": 1.5}))
    with pytest.raises(ValueError, match=r"`beta` is 1\.5"):
        parser.dataclasses(values)


def test_help_shows_options_and_fields(parser: RecipeParser):
    text = parser.format_help()
    for flag in ("--config", "--accelerate_config", "--dataset_name", "--beta_strategy", "--lora_r"):
        assert f"  {flag}" in text


@dataclass
class Base:
    """A base.

    Args:
        kept (`int`): one line, of which 5 % is a number.
        replaced (`int`):
            Text of the base.

    Raises:
        ValueError: If something is wrong.
    """

    kept: int = 0
    replaced: int = 0


@dataclass
class Derived(Base):
    r"""
    Configuration in the style of TRL.

    Parameters:
        > A heading between arguments

        replaced (`list[str]` or [`Base`], *optional*, defaults to `[1]`):
            In [0, 1], see [`Base`] and [the paper](https://huggingface.co/papers/0000.00000):

            - an item
        added (`int`):
            Text up to the end of the section.

    Example:

        other (`int`): no argument
    """

    replaced: int = 1
    added: int = 0


def test_descriptions_come_from_the_docstrings_of_a_class_and_its_bases():
    assert field_descriptions(Derived) == {
        "kept": "one line, of which 5 %% is a number.",
        "replaced": "In [0, 1], see `Base` and the paper: - an item",
        "added": "Text up to the end of the section.",
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_of_every_command_is_described_once(command: str):
    """The docstring of a configuration is the only description of its fields, and `--help` shows it."""
    types = argument_types(command)
    parser = RecipeParser(types, prog=f"trl-akd {command}")
    for kind in types:
        texts = field_descriptions(kind)
        for entry in fields(kind):
            definer = next(base for base in kind.__mro__ if entry.name in get_annotations(base))
            if definer.__module__.startswith("trl_akd"):
                assert entry.name in texts, f"{kind.__name__}.{entry.name} is missing in its docstring"
                assert "help" not in entry.metadata, f"{kind.__name__}.{entry.name} is described twice"
    shown = {action.dest: action.help for action in parser._actions}
    assert not [name for name, text in shown.items() if not text]
    assert parser.format_help()
