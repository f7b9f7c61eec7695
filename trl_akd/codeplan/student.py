"""What the name of a student stands for: a causal model or an encoder-decoder, or an adapter of one."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.utils import CONFIG_NAME, find_adapter_config_file

from .codeplan_config import CodePLANConfig

__all__ = ["adapter_of", "base_of", "is_encoder_decoder", "prepare_base"]


def is_encoder_decoder(model: Any, args: CodePLANConfig) -> bool:
    """Tell whether a model, or the model of that name, reads prompts with an encoder."""
    if not isinstance(model, str):
        return bool(model.config.is_encoder_decoder)
    revision = (args.model_init_kwargs or {}).get("revision") or "main"
    config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=args.trust_remote_code)
    return bool(config.is_encoder_decoder)


def adapter_of(model: Any, revision: str | None) -> Any:
    """Return the configuration of the adapter that a name or path stands for, if it stands for one."""
    if not isinstance(model, str) or find_adapter_config_file(model, revision=revision) is None:
        return None
    if (Path(model) / CONFIG_NAME).is_file():
        return None  # a whole model, which brings its adapter along
    from peft import PeftConfig

    adapter = PeftConfig.from_pretrained(model, revision=revision)
    adapter.inference_mode = False
    return adapter


def base_of(adapter: Any) -> tuple[str, str]:
    """Return name and revision of the model that an adapter is for.

    Raises:
        ValueError: If the adapter does not name its model.
    """
    if adapter.base_model_name_or_path is None:
        raise ValueError(
            "`model` is an adapter's folder that does not name the model it is for; set `base_model_name_or_path` in "
            "its adapter_config.json."
        )
    return str(adapter.base_model_name_or_path), adapter.revision or "main"


def prepare_base(adapter: Any, args: CodePLANConfig, peft_config: Any) -> str:
    """Return the name of the model that an adapter is for, and have it loaded at the adapter's revision of it.

    Raises:
        ValueError: If another adapter is to be trained, or the adapter does not name its model.
    """
    if peft_config is not None:
        raise ValueError(
            "`model` is an adapter's folder, whose training goes on, and `peft_config` describes another; leave that "
            "out, or merge the adapter into its model and give the result."
        )
    name, revision = base_of(adapter)
    args.model_init_kwargs = {**(args.model_init_kwargs or {}), "revision": revision}
    return name
