"""Read the tokenizer and the configuration of a model that a field names, before its weights are loaded."""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..generation.loading import find_base_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from ..generation.loading import GeneratorConfig

__all__ = ["check_generator", "read_model"]


def read_model(
    field: str,
    name: str,
    source: Mapping[str, Any],
    base_model: Callable[[], tuple[str, Mapping[str, Any]]] | None = None,
) -> "tuple[PreTrainedTokenizerBase, PretrainedConfig]":
    """Return the tokenizer of a model, and its configuration or that of an adapter's base model.

    Args:
        field (`str`):
            Field that names the model.
        name (`str`):
            Folder, or name on the Hub.
        source (`Mapping`):
            Arguments of `from_pretrained` that determine which files are read, such as `revision`.
        base_model (`Callable`, *optional*):
            Returns name and source of the model whose configuration is read. By default, this is the base model of an
            adapter, or else the model itself.

    Raises:
        ValueError: If they cannot be read; the message has the field and its value.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id
    from transformers import AutoConfig, AutoTokenizer

    try:
        if not os.path.isdir(name):
            validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"`{field}` is {name!r}, which is neither a folder nor a name on the Hub; check the spelling."
        ) from error
    try:
        base, base_source = base_model() if base_model else find_base_model(name, source) or (name, source)
        config = AutoConfig.from_pretrained(base, **base_source)
        return AutoTokenizer.from_pretrained(name, **source), config
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].removesuffix(" from one of: ").rstrip(".")
        raise ValueError(
            f"`{field}` is {name!r}, whose tokenizer and configuration cannot be read; check the name, the folder or "
            f"the connection ({reason})."
        ) from error


def check_generator(config: "GeneratorConfig") -> None:
    """Raise a ValueError if tokenizer or configuration of a model that runs on this machine cannot be read."""
    if config.model_name_or_path is not None and config.backend != "openai":
        source = {"revision": config.model_revision, "trust_remote_code": config.trust_remote_code}
        read_model("model_name_or_path", config.model_name_or_path, source)
