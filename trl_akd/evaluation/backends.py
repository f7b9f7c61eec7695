"""What runs the model: transformers in this process or several, vLLM, or a server."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from ..generation import OpenAIGenerator, TextGenerator, TransformersGenerator, VLLMGenerator
from .evaluation_config import EvaluationConfig

__all__ = ["LoadedModel", "ModelSource", "load_model", "with_max_new_tokens"]


@dataclass(frozen=True)
class LoadedModel:
    """Hold a model that is ready to write.

    Args:
        generator (`TextGenerator`):
            The model.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Its tokenizer, where it is at hand.
        revision (`str`, *optional*):
            Commit of a model from the Hub.
        batch_size (`int`):
            Problems to give it at a time.
        model (`PreTrainedModel`, *optional*):
            The model itself, where it is in this process.
    """

    generator: TextGenerator
    tokenizer: Any
    revision: str | None
    batch_size: int
    model: Any = None


class ModelSource(Protocol):
    """Any configuration that says which model to load; `EvaluationConfig` documents the fields."""

    model: str | None
    model_revision: str | None
    backend: Literal["transformers", "vllm", "openai"]
    base_url: str | None
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    device_map: str | None
    prompt_style: Any
    batch_size: int | None


def load_model(config: ModelSource, accelerator: Any = None, **engine_args: Any) -> LoadedModel:
    """Load the model that a configuration names.

    Args:
        config ([`ModelSource`]):
            What to load.
        accelerator (`Accelerator`, *optional*):
            Shares the work of transformers over several processes.
        **engine_args:
            Arguments of `vllm.LLM`, for that backend.

    Raises:
        OSError: If there is no such model.
        ValueError: If it is no language model, or has no tokenizer.
        ImportError: If vLLM is asked for and missing.
    """
    assert config.model is not None
    if config.backend == "openai":
        assert config.base_url is not None
        server = OpenAIGenerator(config.base_url, config.model, chat=config.prompt_style == "chat")
        return LoadedModel(server, None, None, config.batch_size or 128)
    tokenizer = _load_tokenizer(config)
    if config.backend == "vllm":
        engine = VLLMGenerator(
            config.model,
            tokenizer=tokenizer,
            add_special_tokens=config.prompt_style != "chat",
            dtype=config.dtype,
            revision=config.model_revision,
            **engine_args,
        )
        return LoadedModel(engine, tokenizer, None, config.batch_size or 128)
    model = _load_weights(config, accelerator)
    batch_size = config.batch_size or 16
    generator = TransformersGenerator(
        model,
        tokenizer,
        batch_size=batch_size,
        accelerator=accelerator,
        add_special_tokens=config.prompt_style != "chat",
    )
    return LoadedModel(generator, tokenizer, getattr(model.config, "_commit_hash", None), batch_size, model)


def with_max_new_tokens(config: EvaluationConfig) -> EvaluationConfig:
    """Return the configuration with `max_new_tokens` filled in, from the model's positions where it is not set.

    Raises:
        OSError: If there is no such model.
    """
    if config.model is None or config.max_new_tokens is not None:
        return config
    if config.backend == "openai":  # a server does not tell its positions
        return replace(config, max_new_tokens=512)
    from transformers import AutoConfig

    from ..generation.transformers_generator import default_max_new_tokens

    _, name, revision = _base_model(config)
    return replace(config, max_new_tokens=default_max_new_tokens(AutoConfig.from_pretrained(name, revision=revision)))


def _load_tokenizer(config: ModelSource) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(config.model, revision=config.model_revision)


def _load_weights(config: ModelSource, accelerator: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from ..distributed import default_device

    adapter, name, revision = _base_model(config)
    encoder_decoder = AutoConfig.from_pretrained(name, revision=revision).is_encoder_decoder
    kind = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    model = kind.from_pretrained(name, revision=revision, dtype=config.dtype, device_map=config.device_map)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, config.model, revision=config.model_revision)
    if config.device_map is None:
        model = model.to(default_device() if accelerator is None else accelerator.device)
    return model.eval()


def _base_model(config: ModelSource) -> tuple[str | None, str | None, str | None]:
    """Return the configuration file of an adapter, if the model is one, and the full model's name and revision."""
    from transformers.utils import find_adapter_config_file

    adapter = find_adapter_config_file(config.model, revision=config.model_revision)
    if adapter is None:
        return None, config.model, config.model_revision
    settings = json.loads(Path(adapter).read_text(encoding="utf-8"))
    return adapter, settings["base_model_name_or_path"], settings.get("revision")
