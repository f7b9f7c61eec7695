"""Check mappings that are passed on to other libraries, which refuse them late, by an error of their own code."""

import base64
from argparse import Namespace
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..generation.loading import read_json_object

__all__ = ["check_library_options"]

_Types = Mapping[str, tuple[Any, ...]]

_MODEL: _Types = {
    "revision": (str,),
    "subfolder": (str,),
    "dtype": (str, dict),
    "attn_implementation": (str, dict),
    "device_map": (str, int, dict),
    "quantization_config": (dict,),
}
_OPEN: Mapping[str, _Types] = {
    "model_init_kwargs": _MODEL,
    "teacher_model_init_kwargs": _MODEL,
    "fsdp_config": {
        "auto_wrap_policy": (str,),
        "state_dict_type": (str,),
        "transformer_layer_cls_to_wrap": (str, list),
        "xla_fsdp_settings": (dict,),
    },
    "deepspeed": {name: (dict,) for name in ("bf16", "fp16", "optimizer", "scheduler", "zero_optimization")},
    "deepspeed.zero_optimization": {"offload_optimizer": (dict,), "offload_param": (dict,), "stage": (int,)},
}
"""Types of the values of some keys, by field. The field may have other keys."""

_CHECKPOINTING: _Types = {
    "use_reentrant": (bool,),
    "preserve_rng_state": (bool,),
    "determinism_check": (str,),
    "debug": (bool,),
    "early_stop": (bool,),
}
"""Keyword arguments of `torch.utils.checkpoint.checkpoint` that are not functions."""

_CHECKPOINTING_FIELDS = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
_NAMES = {bool: "true or false", dict: "a mapping", int: "a whole number", list: "a list", str: "a text"}


def check_library_options(values: Namespace, kinds: Iterable[type]) -> None:
    """Check the fields `*_kwargs` and `*_config`, `deepspeed` and `optim_args` of a recipe and flags.

    Args:
        values (`Namespace`):
            Values of all fields.
        kinds (`Iterable[type]`):
            Dataclasses of these fields.

    Raises:
        ValueError: If a key is unknown or a value is wrong; the message names the field and what is allowed.
    """
    if not hasattr(values, "accelerator_config"):
        return  # a command that does not train
    closed = _closed(kinds)
    for name in (*_OPEN, *closed, "lr_scheduler_kwargs"):
        if given := _mapping(name, getattr(values, name, None)):
            if name == "lr_scheduler_kwargs":
                _check_schedule(given, values)
                continue
            _check_keys(name, given, closed)
            if name in _CHECKPOINTING_FIELDS:
                _check_checkpointing(name, given)
    text = getattr(values, "optim_args", None)
    if text and any(part.count("=") != 1 for part in text.split(",")):
        raise ValueError(f"`optim_args` is {text!r}; give names and values, such as 'beta1=0.9,beta2=0.99'.")


def _closed(kinds: Iterable[type]) -> dict[str, _Types]:
    """Return the keys of fields that have no others, with the types of their values."""
    from accelerate.utils import GradientAccumulationPlugin
    from transformers.trainer_pt_utils import AcceleratorConfig
    from trl import SFTConfig

    def types(kind: type) -> _Types:
        return {name: get_args(hint) or (hint,) for name, hint in get_type_hints(kind).items()}

    of_trl = {"selective": (bool,)} if any(issubclass(kind, SFTConfig) for kind in kinds) else {}
    return {
        **{name: {**_CHECKPOINTING, **of_trl} for name in _CHECKPOINTING_FIELDS},
        "accelerator_config": types(AcceleratorConfig),
        "accelerator_config.gradient_accumulation_kwargs": types(GradientAccumulationPlugin),
    }


def _mapping(name: str, value: Any) -> dict[str, Any]:
    """Return the mapping that is the value of a field, which may be text or, in some fields, the path of a file."""
    if not isinstance(value, str):
        return value or {}
    if not value.lstrip().startswith("{"):
        try:
            text = Path(value).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            if name == "deepspeed" and (decoded := _decoded(value)) is not None:
                return read_json_object(name, decoded) or {}
            reason = getattr(error, "strerror", None) or error
            raise ValueError(
                f"`{name}` is {value!r}, which cannot be read ({reason}); give a JSON object, or the path of "
                "a file with one."
            ) from error
        return read_json_object(name, text) or {}
    from transformers.training_args import _convert_str_dict

    found: dict[str, Any] = _convert_str_dict(read_json_object(name, value))  # as `TrainingArguments` reads text
    return found


def _decoded(value: str) -> str | None:
    """Return the text that base64 encodes, which accelerate accepts for `deepspeed`."""
    try:
        return base64.urlsafe_b64decode(value).decode()
    except ValueError:
        return None


def _check_keys(name: str, given: Mapping[str, Any], closed: Mapping[str, _Types]) -> None:
    allowed = closed.get(name) or _OPEN[name]
    for key, value in given.items():
        if key in allowed:
            _check_value(f"{name}.{key}", value, allowed[key])
        elif name in closed:
            close = get_close_matches(str(key), allowed, 1)
            remedy = f"did you mean `{close[0]}`?" if close else f"choose one of {', '.join(allowed)}."
            raise ValueError(f"`{name}` is {dict(given)}, with the unknown key `{key}`; {remedy}")
        if isinstance(value, dict) and (f"{name}.{key}" in closed or f"{name}.{key}" in _OPEN):
            _check_keys(f"{name}.{key}", value, closed)


def _check_value(name: str, value: Any, types: tuple[Any, ...]) -> None:
    if value is None:  # as if the key were left out
        return
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        names = " or ".join(_NAMES[kind] for kind in types if kind in _NAMES)
        raise ValueError(f"`{name}` is {value!r}; give {names}.")
    if name.endswith("_init_kwargs.dtype") and isinstance(value, str):
        import torch

        if value != "auto" and not isinstance(getattr(torch, value, None), torch.dtype):
            raise ValueError(f"`{name}` is {value!r}; give auto, or a type of torch, such as bfloat16.")


def _check_checkpointing(name: str, given: Mapping[str, Any]) -> None:
    checks = ("default", "none")
    if given.get("determinism_check", "default") not in checks:
        raise ValueError(
            f"`{name}.determinism_check` is {given['determinism_check']!r}; choose one of {', '.join(checks)}."
        )
    if given.get("debug") and given.get("use_reentrant", not given.get("selective")):
        raise ValueError(f"`{name}.debug` is true, which needs `use_reentrant: false` there; set it, too.")


def _check_schedule(given: Mapping[str, Any], values: Namespace) -> None:
    """Create the schedule of the learning rate for an optimizer without a model."""
    import torch
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, SchedulerType, get_scheduler

    kind = SchedulerType(values.lr_scheduler_type)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=values.learning_rate)
    try:
        get_scheduler(kind, optimizer, 0, max(values.max_steps, 1), scheduler_specific_kwargs=dict(given))
    except (TypeError, ValueError) as error:
        of_all = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "kwargs")
        keys = [name for name in signature(TYPE_TO_SCHEDULER_FUNCTION[kind]).parameters if name not in of_all]
        remedy = f"its keys are {', '.join(keys)}" if keys else "leave it out"
        raise ValueError(
            f"`lr_scheduler_kwargs` is {dict(given)}, which `lr_scheduler_type` {kind.value!r} does not take "
            f"({error}); {remedy}."
        ) from error
