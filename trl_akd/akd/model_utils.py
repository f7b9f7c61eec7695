"""Helpers for models and datasets of a trainer: names, tokenizers, adapters and dropout."""

import logging
from typing import Any

from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .akd_config import AKDConfig

logger = logging.getLogger(__name__)


def name_of(model: Any) -> str | None:
    """Return the name or path of a model, if it has one."""
    return model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", None) or None


def adapters_of(model: Any) -> list[Any]:
    """Return the configurations of a model's adapters."""
    return list(getattr(model, "peft_config", {}).values())


def tokenizer_of(model: Any, args: AKDConfig, default: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a teacher, given as a model or its name.

    A model without a name, which was built in memory, gets `default`.
    """
    name = name_of(model)
    if name is None:
        logger.warning(
            "The teacher has no name, so it is assumed to have the student's tokenizer; pass `teacher_tokenizer` if "
            "it has another."
        )
        return default
    missing = ValueError(
        f"no tokenizer could be loaded for the teacher {name!r}, so its vocabulary cannot be compared with the "
        "student's; save one beside it, or pass `teacher_tokenizer`."
    )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **args.teacher_source)
    except (OSError, ValueError) as error:
        raise missing from error
    if not has_vocabulary(tokenizer):
        raise missing
    return tokenizer


def has_vocabulary(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer has a vocabulary.

    For a folder without tokenizer files, transformers returns a tokenizer that has only special tokens and at most one
    other, for the space.
    """
    return len(set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab())) > 1


def named_datasets(train_dataset: Any, eval_dataset: Any) -> dict[str, Any]:
    """Return all datasets of a run by name."""
    evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    return {"train": train_dataset, **{evaluation_name(key): dataset for key, dataset in evaluated.items()}}


def evaluation_name(key: str) -> str:
    """Return the name of an evaluation dataset from its key in a dictionary: the prefix of its metrics in the logs."""
    return key if key == "eval" else f"eval_{key}"


def disable_dropout(model: Any) -> None:
    """Set every dropout probability of a model to zero, except those of LoRA adapters, which `LoraConfig` sets.

    TRL's helper sets only `nn.Dropout`; attention layers may hold a probability as a float (0.1 in GPT-BigCode).

    Example:

    ```python
    >>> layer = nn.Sequential(nn.Dropout(0.1))
    >>> disable_dropout(layer)
    >>> layer[0].p
    0.0

    ```
    """
    for path, module in model.named_modules():
        if "lora_dropout" in path:
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
