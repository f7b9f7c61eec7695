"""Mappings that other libraries get: wrong keys and values end before a model is loaded, with one sentence."""

import base64
import json
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import pytest
from torch.utils.checkpoint import checkpoint

from trl_akd.cli import main
from trl_akd.cli.library_options import _CHECKPOINTING
from trl_akd.cli.parsing import RecipeParser
from trl_akd.cli.ranker import ACTIONS
from trl_akd.cli.recipes import Recipe

KEYS = "use_reentrant, preserve_rng_state, determinism_check, debug, early_stop"
CHECKPOINTING = "gradient_checkpointing_kwargs"
MODEL = "teacher_model_init_kwargs"
COSINE = {"lr_scheduler_type": "cosine"}

WRONG: list[tuple[dict[str, Any], str]] = [
    ({CHECKPOINTING: {"foo": 1}}, f"is {{'foo': 1}}, with the unknown key `foo`; choose one of {KEYS}, selective."),
    ({CHECKPOINTING: {"use_reentran": True}}, "the unknown key `use_reentran`; did you mean `use_reentrant`?"),
    ({CHECKPOINTING: {"use_reentrant": "maybe"}}, "kwargs.use_reentrant` is 'maybe'; give true or false."),
    (
        {CHECKPOINTING: {"determinism_check": "all"}},
        "kwargs.determinism_check` is 'all'; choose one of default, none.",
    ),
    ({CHECKPOINTING: {"debug": True}}, "kwargs.debug` is true, which needs `use_reentrant: false`"),
    ({"activation_checkpointing_kwargs": {"foo": 1}}, "`activation_checkpointing_kwargs` is {'foo': 1}"),
    ({"optim_args": "beta1"}, "`optim_args` is 'beta1'; give names and values"),
    ({"lr_scheduler_kwargs": {"foo": 1}}, "which `lr_scheduler_type` 'linear' does not take (get_linear"),
    ({"lr_scheduler_kwargs": {"foo": 1}, **COSINE}, "'foo'); its keys are num_cycles."),
    ({"lr_scheduler_kwargs": {"num_cycles": "x"}, **COSINE}, "`lr_scheduler_kwargs` is {'num_cycles': 'x'}"),
    ({MODEL: {"dtype": "foo"}}, f"`{MODEL}.dtype` is 'foo'; give auto, or a type of torch, such as bfloat16."),
    ({MODEL: {"attn_implementation": 5}}, f"`{MODEL}.attn_implementation` is 5; give a text or a mapping."),
    ({MODEL: {"subfolder": 5}}, f"`{MODEL}.subfolder` is 5; give a text."),
    (
        {"model_init_kwargs": {"quantization_config": 5}},
        "`model_init_kwargs.quantization_config` is 5; give a mapping",
    ),
    ({"model_init_kwargs": {"device_map": [1]}}, "`model_init_kwargs.device_map` is [1]; give a text"),
    ({"accelerator_config": {"foo": 1}}, "`accelerator_config` is {'foo': 1}, with the unknown key `foo`; choose one"),
    ({"accelerator_config": {"even_batches": 2}}, "`accelerator_config.even_batches` is 2; give true or false."),
    (
        {"accelerator_config": {"gradient_accumulation_kwargs": 5}},
        "`accelerator_config.gradient_accumulation_kwargs` is 5; give a mapping.",
    ),
    (
        {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": True}}},
        "`accelerator_config.gradient_accumulation_kwargs.num_steps` is True; give a whole number.",
    ),
    ({"accelerator_config": "none.json"}, "`accelerator_config` is 'none.json', which cannot be read (No such file"),
    ({"fsdp_config": {"auto_wrap_policy": 5}}, "`fsdp_config.auto_wrap_policy` is 5; give a text."),
    ({"deepspeed": {"zero_optimization": 5}}, "`deepspeed.zero_optimization` is 5; give a mapping."),
    ({"deepspeed": {"zero_optimization": {"stage": "x"}}}, "`deepspeed.zero_optimization.stage` is 'x'; give a whole"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_wrong_keys_and_values(given: dict[str, Any], message: str, parser: RecipeParser):
    flags = [
        flag
        for name, value in given.items()
        for flag in (f"--{name}", value if isinstance(value, str) else json.dumps(value))
    ]
    for values in (parser.values(Recipe(Path("recipe.yaml"), given)), parser.values(Recipe(), flags)):
        with pytest.raises(ValueError) as raised:
            parser.dataclasses(values)
        assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_kwargs` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "given",
    [
        {CHECKPOINTING: {"use_reentrant": False, "debug": True, "determinism_check": "none"}},
        {CHECKPOINTING: {"selective": True, "debug": True}},
        {CHECKPOINTING: '{"use_reentrant": "false"}'},
        {"lr_scheduler_kwargs": {"min_lr": 1e-7}, "lr_scheduler_type": "cosine_with_min_lr"},
        {"lr_scheduler_kwargs": {"num_decay_steps": 2}, "lr_scheduler_type": "warmup_stable_decay", "max_steps": -1},
        {MODEL: {"dtype": None, "device_map": 0, "hidden_act": "silu"}},
        {"accelerator_config": {"dispatch_batches": None, "gradient_accumulation_kwargs": {"sync_each_batch": True}}},
        {"optim_args": "beta1=0.9, beta2=0.99"},
        {"fsdp_config": {"fsdp_version": 2}},
        {"fsdp_config": {"transformer_layer_cls_to_wrap": None}, CHECKPOINTING: {"use_reentrant": None}},
        {"deepspeed": {"optimizer": None, "zero_optimization": {"stage": 2, "offload_optimizer": None}}},
    ],
)
def test_values_that_are_allowed(given: dict[str, Any], parser: RecipeParser, settings: dict[str, Any]):
    parser.dataclasses(parser.values(Recipe(Path("recipe.yaml"), {**settings, **given})))


def test_files(parser: RecipeParser, tmp_path: Path):
    path = tmp_path / "accelerator.json"
    path.write_text('{"even_batch": true}')
    with pytest.raises(ValueError, match="unknown key `even_batch`; did you mean `even_batches`"):
        parser.dataclasses(parser.values(Recipe(), ["--accelerator_config", str(path)]))


def test_a_file_that_is_not_text(parser: RecipeParser, tmp_path: Path):
    path = tmp_path / "deepspeed.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"`deepspeed` is '.*', which cannot be read \('utf-8' codec"):
        parser.dataclasses(parser.values(Recipe(), ["--deepspeed", str(path)]))


def test_deepspeed_in_base64(parser: RecipeParser):
    text = base64.urlsafe_b64encode(b'{"zero_optimization": {"stage": "x"}}').decode()
    with pytest.raises(ValueError, match=r"`deepspeed.zero_optimization.stage` is 'x'; give a whole"):
        parser.dataclasses(parser.values(Recipe(), ["--deepspeed", text]))
    with pytest.raises(ValueError, match=r"`deepspeed` is 'zero2.json', which cannot be read"):
        parser.dataclasses(parser.values(Recipe(), ["--deepspeed", "zero2.json"]))


def test_selective_checkpointing_is_of_trl():
    parser = RecipeParser(ACTIONS["train"].argument_types(), prog="trl-akd ranker train")
    with pytest.raises(ValueError, match=f"unknown key `selective`; choose one of {KEYS}"):
        parser.dataclasses(parser.values(Recipe(), [f"--{CHECKPOINTING}", '{"selective": true}']))


def test_keys_of_torch():
    given = {entry.name for entry in signature(checkpoint).parameters.values() if entry.kind == Parameter.KEYWORD_ONLY}
    assert set(_CHECKPOINTING) == given - {"context_fn"} | {"preserve_rng_state"}


def test_a_wrong_configuration_of_a_model(settings: dict[str, Any], recipe, capsys: pytest.CaptureFixture[str]):
    assert main(["akd", "--config", recipe({**settings, "model_init_kwargs": {"hidden_size": "x"}})]) == 2
    message = "the configuration of a model is wrong (Validation error for field 'hidden_size'"
    error = capsys.readouterr().err
    assert message in error and "Hub cannot be reached" not in error
