"""Settings on which the weights of a run depend, and which a continued run must not change.

All settings are compared except those that are known to leave the weights unchanged. Settings that later versions of
transformers and TRL add are thus compared as well.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any

from ..iterkd_config import IterKDConfig
from .config import CycleConfig

__all__ = ["MAY_CHANGE", "model_settings", "settings_except", "training_settings"]

_SAVING = {
    *("output_dir", "resume_from_checkpoint", "do_train", "do_eval", "do_predict"),
    *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node"),
    *("enable_jit_checkpoint", "restore_callback_states_from_checkpoint"),
}
_HUB = {
    *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
    "hub_revision",
}
_LOGS = {
    *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_on_each_node"),
    *("log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id"),
    *("trackio_bucket_id", "trackio_static_space_id", "include_num_input_tokens_seen", "skip_memory_metrics", "debug"),
    *("log_completions", "num_completions_to_print", "log_unique_prompts"),
}
_EVALUATION = {
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size"),
    *("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps"),
    *("include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval", "eval_packing"),
}
_SPEED_AND_MEMORY = {
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing"),
    *("activation_checkpointing_kwargs", "activation_offloading", "torch_empty_cache_steps", "loss_chunk_size"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataset_num_proc", "teacher_device"),
    "ddp_find_unused_parameters",
    *("ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout", "local_rank"),
    *("use_cpu", "fsdp", "fsdp_config", "deepspeed"),
}
_TEACHER_SERVER = {
    *("teacher_base_url", "teacher_api_key_env", "teacher_concurrency", "teacher_request_timeout"),
    *("teacher_max_retries", "teacher_max_requests", "teacher_max_tokens"),
}
MAY_CHANGE = frozenset(_SAVING | _HUB | _LOGS | _EVALUATION | _SPEED_AND_MEMORY | _TEACHER_SERVER)
"""Fields of `IterKDConfig`, without those of `CycleConfig`, that leave the weights unchanged except for rounding."""

_ADDED = frozenset(
    {"divergence", "divergence_kwargs", "teacher_top_k", "teacher_cache_revision", "teacher_tail_samples"}
)
"""Fields that earlier versions did not have; they are compared only if they differ from their defaults."""
_BEST_MODEL = {"eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps"}


def training_settings(args: IterKDConfig) -> dict[str, Any]:
    """Return the settings of training, as JSON values."""
    excluded = set(MAY_CHANGE) | set(CycleConfig.__dataclass_fields__)
    if args.load_best_model_at_end:
        excluded -= _BEST_MODEL
    return args.cycle_settings | settings_except(args, excluded)


def settings_except(config: Any, excluded: Collection[str]) -> dict[str, Any]:
    """Return the fields of a dataclass except the given ones, as JSON values."""
    return {
        entry.name: _plain(getattr(config, entry.name))
        for entry in dataclasses.fields(config)
        if entry.name not in excluded and not (entry.name in _ADDED and getattr(config, entry.name) == _default(entry))
    }


def _default(entry: dataclasses.Field[Any]) -> Any:
    return entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()


def model_settings(model: Any, accelerator: Any) -> dict[str, Any]:
    """Return further settings on which the weights depend: model, adapter and processes."""
    config = model.config
    quantization: Any = getattr(config, "quantization_config", None)
    return {
        "student_commit": getattr(config, "_commit_hash", None),
        "student_dtype": str(getattr(model, "dtype", None)),
        "student_attn_implementation": getattr(config, "_attn_implementation", None),
        "quantization": _plain(quantization.to_dict() if hasattr(quantization, "to_dict") else quantization),
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        **_adapter_settings(model),
    }


def _adapter_settings(model: Any) -> dict[str, Any]:
    adapters: Mapping[str, Any] = getattr(model, "peft_config", {})
    settings: dict[str, Any] = {"peft": [_plain(config.peft_type) for config in adapters.values()] or None}
    for name, config in adapters.items():
        prefix = "peft" if len(adapters) == 1 else f"peft.{name}"
        fields = {key: value for key, value in config.to_dict().items() if key not in _NOT_OF_ADAPTERS}
        settings |= {f"{prefix}.{key}": _plain(value) for key, value in fields.items()}
    return settings


_NOT_OF_ADAPTERS = ("inference_mode", "peft_version", "runtime_config")


def _plain(value: Any) -> Any:
    """Return a reproducible JSON value."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return json.loads(json.dumps(value, default=str))
