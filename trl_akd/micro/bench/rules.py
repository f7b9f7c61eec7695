"""Rules of the benchmark: fields of `trl-akd akd`, or of supervised training, and what they change in a run."""

import json
import math
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, get_args

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from trl import ModelConfig, SFTConfig

from ...akd.akd_config import AKDConfig
from ...bench.fields import check_names
from ...teachers.cache_files import CacheDtype, CacheKind
from ..models import UNRECORDED_ON_CPU
from .draws import beta_draws
from .students import BATCH_SIZE, MAX_LENGTH, make_tokenizer

__all__ = ["add_adapter", "cache_settings", "check_rule", "merge_adapter", "resolved_fields", "rule_config"]

_METHOD = "method"
_METHODS = ("akd", "sft")
_RULE_FIELDS = (
    *("divergence", "divergence_kwargs", "beta_strategy", "beta", "beta_initial_values", "beta_learning_rate"),
    *("beta_regularization", "beta_regularizer", "kd_temperature", "normalization", "ce_weight"),
    *("lmbda", "temperature"),
)
_OPTIMIZER_FIELDS = (
    *("optim", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "gradient_accumulation_steps", "per_device_train_batch_size", "max_new_tokens"),
    *("disable_dropout", "max_length"),
)
_TRAINING_FIELDS = ("learning_rate", "num_train_epochs")  # of which a run otherwise has those of student and world
_CACHE_FIELDS = ("cache_kind", "cache_dtype", "cache_top_k")  # of `trl-akd cache`
_USE_PEFT = "use_peft"
_LORA_FIELDS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
_LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ALL_LINEAR = "all-linear"


def check_rule(name: str, values: Mapping[str, Any], draws: Any) -> None:
    """Raise a ValueError if the fields of a rule, or its number of draws of β, are wrong."""
    where = f"`rules` has {name!r}, in which"
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"{where} `draws` is {draws!r}; give an integer of at least 1.")
    method = values.get(_METHOD, "akd")
    check_names(f"rules: {name}: {_METHOD}", [method], _METHODS)
    of_akd = (*_RULE_FIELDS, *_CACHE_FIELDS) if method == "akd" else ()
    known = (_METHOD, *of_akd, *_TRAINING_FIELDS, _USE_PEFT, *_LORA_FIELDS)
    for key in values:
        if key not in known:
            raise ValueError(
                f"{where} `{key}` is set; with the method {method}, a rule sets only {', '.join(known)} and `draws`."
            )
    for key in _TRAINING_FIELDS:
        if key in values and not _is_number(values[key], above=0.0):
            raise ValueError(f"{where} `{key}` is {values[key]!r}; give a number above 0, such as 0.01.")
    _check_adapter(where, values)
    _check_cache(name, values)
    try:
        is_random = _is_random(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`rules` has {name!r}, which `trl-akd akd` refuses: {error}") from error
    if draws > 1 and not is_random:
        raise ValueError(f"{where} `draws` is {draws}, but neither its beta nor its text is drawn; leave `draws` out.")


def _check_adapter(where: str, values: Mapping[str, Any]) -> None:
    use_peft = values.get(_USE_PEFT, False)
    if not isinstance(use_peft, bool):
        raise ValueError(f"{where} `{_USE_PEFT}` is {use_peft!r}; give true or false.")
    if not use_peft:
        for key in _LORA_FIELDS:
            if key in values:
                raise ValueError(
                    f"{where} `{key}` is {values[key]!r}, which has no effect without LoRA; set `{_USE_PEFT}: true`, "
                    "or leave it out."
                )
        return
    settings = _lora_settings(values)
    for key in ("lora_r", "lora_alpha"):
        value = settings[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{where} `{key}` is {value!r}; give an integer of at least 1.")
    dropout, modules = settings["lora_dropout"], settings["lora_target_modules"]
    if not (_is_number(dropout, above=-math.inf) and 0 <= dropout < 1):
        raise ValueError(f"{where} `lora_dropout` is {dropout!r}; give a number from 0 to below 1.")
    are_layers = isinstance(modules, list) and modules and all(module in _LINEAR_LAYERS for module in modules)
    if modules != _ALL_LINEAR and not are_layers:
        raise ValueError(
            f"{where} `lora_target_modules` is {modules!r}; give {_ALL_LINEAR!r}, or a list of some of "
            f"{', '.join(_LINEAR_LAYERS)}."
        )


def _check_cache(name: str, values: Mapping[str, Any]) -> None:
    where, kind = f"`rules` has {name!r}, in which", values.get("cache_kind")
    if kind is not None:
        check_names(f"rules: {name}: cache_kind", [kind], get_args(CacheKind))
    effective = {None: (), "hidden": ("cache_dtype",), "sparse": ("cache_top_k",)}[kind]
    for key in _CACHE_FIELDS[1:]:
        if key in values and key not in effective:
            raise ValueError(
                f"{where} `{key}` is {values[key]!r}, which has no effect with `cache_kind` {kind!r}; leave it out."
            )
    check_names(f"rules: {name}: cache_dtype", [values.get("cache_dtype", "auto")], get_args(CacheDtype))
    top_k, size = values.get("cache_top_k", 1), len(make_tokenizer())
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= size:
        raise ValueError(
            f"{where} `cache_top_k` is {top_k!r}; give an integer from 1 to {size}, the size of the vocabulary."
        )


def cache_settings(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of [`~trl_akd.akd.cache_creation.create_cache`], `None` if a rule uses no teacher cache."""
    kind = values.get("cache_kind")
    if kind is None:
        return None
    if kind == "hidden":
        return {"kind": kind, "dtype": values.get("cache_dtype", "auto")}
    return {"kind": kind, "top_k": values.get("cache_top_k", 128)}


def _is_number(value: Any, *, above: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and above < value < math.inf


def _lora_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of LoRA with the defaults of [`trl.ModelConfig`] filled in."""
    return {name: values.get(name, getattr(ModelConfig, name)) for name in _LORA_FIELDS}


def resolved_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the method and all training arguments that change results, with their defaults filled in.

    Learning rate and number of epochs are not among them, since their defaults are those of student and world.
    """
    return dict(_resolved_fields(json.dumps(values, sort_keys=True)))


@lru_cache
def _resolved_fields(text: str) -> dict[str, Any]:
    values = json.loads(text)
    config = _example_config(values)
    names = [name for name in (*_RULE_FIELDS, *_OPTIMIZER_FIELDS) if hasattr(config, name)]
    found = {name: getattr(config, name) for name in names}
    method = "akd" if isinstance(config, AKDConfig) else "sft"
    fields = {_METHOD: method, **{name: getattr(value, "value", value) for name, value in found.items()}}
    if values.get(_USE_PEFT):
        modules = _lora_settings(values)["lora_target_modules"]
        layers = _LINEAR_LAYERS if modules == _ALL_LINEAR else set(modules)
        fields |= {**_lora_settings(values), "lora_target_modules": sorted(layers)}
    cache = cache_settings(values)
    return fields if cache is None else {**fields, "cache": cache}


def _is_random(values: Mapping[str, Any]) -> bool:
    """Return whether a rule draws values of β, or text."""
    config = _example_config(values)
    return bool(beta_draws(config)) or getattr(config, "generates", False)


def _example_config(values: Mapping[str, Any]) -> SFTConfig:
    with tempfile.TemporaryDirectory() as folder:
        cache = None if cache_settings(values) is None else folder
        return rule_config(values, folder, epochs=1, learning_rate=1e-3, seed=0, teacher_cache=cache)


def rule_config(
    values: Mapping[str, Any],
    output_dir: str,
    *,
    epochs: float,
    learning_rate: float,
    seed: int,
    logging_steps: int = 10,
    teacher_cache: str | None = None,
) -> SFTConfig:
    """Return the training arguments of a run, an [`AKDConfig`] unless the rule is supervised training.

    The order of rows depends on `data_seed` alone, which is set to `seed`. Draws of β and text that is sampled
    on-policy depend on the field `seed`, which the caller sets.

    Args:
        values (`Mapping`):
            Fields of the rule.
        output_dir (`str`):
            Output folder, to which nothing is saved.
        epochs (`float`), learning_rate (`float`):
            Number of epochs and learning rate, see [`~trl_akd.micro.bench.runs.Run`].
        seed (`int`):
            Seed of the order of rows.
        logging_steps (`int`, *optional*, defaults to `10`):
            Number of steps between two points of the learning curve.
        teacher_cache (`str`, *optional*):
            Folder of the teacher cache to train from, not with supervised training.
    """
    common: dict[str, Any] = {
        "num_train_epochs": epochs,
        "max_length": MAX_LENGTH,
        "data_seed": seed,
        "per_device_train_batch_size": BATCH_SIZE,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "activation_checkpointing": False,
        "logging_steps": logging_steps,
        **UNRECORDED_ON_CPU,
    }
    if values.get(_METHOD) == "sft":
        return SFTConfig(output_dir, **common)
    not_of_akd = (_METHOD, *_CACHE_FIELDS, *_TRAINING_FIELDS, _USE_PEFT, *_LORA_FIELDS)
    fields = {key: value for key, value in values.items() if key not in not_of_akd}
    return AKDConfig(output_dir, **common, max_new_tokens=32, teacher_cache=teacher_cache, **fields)


def add_adapter(model: PreTrainedModel, values: Mapping[str, Any], seed: int) -> PreTrainedModel | PeftModel:
    """Return a model with the LoRA adapter of a rule, or the model itself if the rule trains all of its weights.

    Args:
        model (`PreTrainedModel`):
            The student.
        values (`Mapping`):
            Fields of the rule.
        seed (`int`):
            Seed of the adapter's initial weights.
    """
    if not values.get(_USE_PEFT):
        return model
    settings = _lora_settings(values)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings["lora_r"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings["lora_dropout"],
        target_modules=settings["lora_target_modules"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def merge_adapter(model: PreTrainedModel | PeftModel) -> Any:
    """Return a model whose weights include those of its adapter, if it has one."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model
