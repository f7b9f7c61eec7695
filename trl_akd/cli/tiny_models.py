"""Tiny random models with the architectures of large ones, built without the Hub."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

__all__ = ["KNOWN_MODELS", "MAX_TOKENS", "Architecture", "TinyModel", "build", "read_config"]

MAX_TOKENS = 2048
"""Maximum number of tokens of a tiny model with the byte tokenizer."""


@dataclass(frozen=True)
class Architecture:
    """Architecture of a large model. Its tiny model keeps all but the sizes.

    Args:
        model_type (`str`):
            Architecture, as in the model's `config.json`.
        vocab_size (`int`):
            Rows of its LM head, padding included.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`):
            Whether embeddings and LM head share their weight.
        sizes (`Mapping[str, int]`, *optional*):
            Other values of its `config.json`.
    """

    model_type: str
    vocab_size: int
    tie_word_embeddings: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TinyModel:
    """A tiny model on disk.

    Args:
        path (`str`):
            Folder of the model and its tokenizer.
        description (`str`):
            Architecture and size, for messages.
    """

    path: str
    description: str


def _llama(
    hidden: int, intermediate: int, layers: int, heads: int, key_value_heads: int, positions: int
) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": positions,
    }


def _gpt(embedding: int, layers: int, heads: int, positions: int, **others: int) -> dict[str, int]:
    return {"n_embd": embedding, "n_layer": layers, "n_head": heads, "n_positions": positions, **others}


KNOWN_MODELS: Mapping[str, Architecture] = MappingProxyType(
    {
        "bigcode/starcoderbase-1b": Architecture("gpt_bigcode", 49_152, True, _gpt(2048, 24, 16, 8192, n_inner=8192)),
        "bigcode/starcoderbase-7b": Architecture(
            "gpt_bigcode", 49_152, True, _gpt(4096, 42, 32, 8192, n_inner=16_384)
        ),
        "codellama/CodeLlama-7b-hf": Architecture("llama", 32_016, False, _llama(4096, 11_008, 32, 32, 32, 16_384)),
        "codellama/CodeLlama-7b-Python-hf": Architecture(
            "llama", 32_000, False, _llama(4096, 11_008, 32, 32, 32, 16_384)
        ),
        "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": Architecture(
            "llama", 32_000, False, _llama(2048, 5632, 22, 32, 4, 2048)
        ),
        "Salesforce/codet5-large-ntp-py": Architecture(
            "t5",
            32_100,
            True,
            {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 16},
        ),
        "Salesforce/codegen-350M-mono": Architecture(
            "codegen", 51_200, False, _gpt(1024, 20, 16, 2048, rotary_dim=32)
        ),
        "Salesforce/codegen-6B-mono": Architecture("codegen", 51_200, False, _gpt(4096, 33, 16, 2048, rotary_dim=64)),
        "deepseek-ai/deepseek-coder-1.3b-base": Architecture(
            "llama", 32_256, False, _llama(2048, 5504, 24, 16, 16, 16_384)
        ),
        "deepseek-ai/deepseek-coder-6.7b-base": Architecture(
            "llama", 32_256, False, _llama(4096, 11_008, 32, 32, 32, 16_384)
        ),
        "deepseek-ai/deepseek-coder-33b-instruct": Architecture(
            "llama", 32_256, False, _llama(7168, 19_200, 62, 56, 8, 16_384)
        ),
        "Qwen/Qwen2.5-Coder-0.5B": Architecture("qwen2", 151_936, True, _llama(896, 4864, 24, 14, 2, 32_768)),
        "Qwen/Qwen2.5-Coder-7B": Architecture("qwen2", 152_064, False, _llama(3584, 18_944, 28, 28, 4, 32_768)),
        "Qwen/Qwen2.5-Coder-32B": Architecture("qwen2", 152_064, False, _llama(5120, 27_648, 64, 40, 8, 32_768)),
    }
)

# `head_dim` and `rotary_dim` are hidden_size / num_attention_heads.
_SIZES: Mapping[str, int] = MappingProxyType(
    {
        "hidden_size": 32,
        "intermediate_size": 64,
        "d_ff": 64,
        "n_inner": 64,
        "num_hidden_layers": 2,
        "num_decoder_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rotary_dim": 8,
    }
)


def build(
    revisions: Mapping[str, str],
    folder: Path,
    *,
    own_tokenizers: bool,
    trust_remote_code: bool = False,
    like: Mapping[str, str] | None = None,
    sources: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, TinyModel]:
    """Build a random tiny model for each large model.

    The architecture comes from `KNOWN_MODELS` or else from the model's `config.json`.

    Args:
        revisions (`Mapping[str, str]`):
            Revision on the Hub of each model, by name or path.
        folder (`Path`):
            Folder in which to save the models.
        own_tokenizers (`bool`):
            Whether to use the models' own tokenizers. Otherwise all get a byte tokenizer, and their vocabulary sizes
            differ by the same number of padding rows as those of the large models.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code from the Hub may run.
        like (`Mapping[str, str]`, *optional*):
            Models whose configuration and tokenizer replace those of others, by the others' names.
        sources (`Mapping[str, Mapping[str, Any]]`, *optional*):
            Arguments of `from_pretrained` that determine which files of a model are read, by its name. By default the
            revision and `trust_remote_code`.

    Raises:
        OSError: If the configuration of a model is neither known, nor in a local folder, nor available from the Hub.
    """
    like = like or {}
    defaults = {
        name: {"revision": revision, "trust_remote_code": trust_remote_code} for name, revision in revisions.items()
    }
    sources = {**defaults, **(sources or {})}
    configs = {name: read_config(like.get(name, name), **sources[name]) for name in revisions}
    smallest = min((config.vocab_size for config in configs.values()), default=0)
    built = {}
    for seed, (name, config) in enumerate(configs.items()):
        if own_tokenizers:
            tokenizer = cast(
                PreTrainedTokenizerBase,
                AutoTokenizer.from_pretrained(like.get(name, name), **sources[name]),
            )
        else:
            tokenizer = _byte_tokenizer()
            _fit(config, tokenizer, padding=config.vocab_size - smallest)
        _shrink(config)
        path = folder.joinpath(
            str(seed), *(part for part in Path(name).parts if part not in (Path(name).anchor, ".."))
        )
        torch.manual_seed(seed)
        family = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        family.from_config(config).save_pretrained(path)
        tokenizer.save_pretrained(path)
        description = f"{config.model_type} of {config.num_hidden_layers} layers, vocabulary of {config.vocab_size}"
        built[name] = TinyModel(str(path), description)
    return built


def read_config(name: str, revision: str, trust_remote_code: bool = False, **source: Any) -> PretrainedConfig:
    """Return the configuration of a large model: of `KNOWN_MODELS`, or else from its `config.json`.

    Args:
        name (`str`):
            Name or path.
        revision (`str`):
            Revision on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code from the Hub may run.
        **source:
            Other arguments of `from_pretrained` that determine which files are read, such as `subfolder`.

    Raises:
        OSError: If it is neither known, nor in a local folder, nor available from the Hub.
    """
    if name in KNOWN_MODELS:
        known = KNOWN_MODELS[name]
        return AutoConfig.for_model(
            known.model_type,
            vocab_size=known.vocab_size,
            tie_word_embeddings=known.tie_word_embeddings,
            bos_token_id=None,
            eos_token_id=None,
            **known.sizes,
        )
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code, **source)
    except OSError as error:
        raise OSError(
            f"this needs the architecture of {name!r}, which is none of {', '.join(KNOWN_MODELS)}, and could not read "
            "its config.json; give a local folder, or connect to the Hub."
        ) from error
    return cast(PretrainedConfig, config.get_text_config())


def _byte_tokenizer() -> PreTrainedTokenizerBase:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|padding|>")


def _fit(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, *, padding: int) -> None:
    config.vocab_size = len(tokenizer) + padding
    config.max_position_embeddings = MAX_TOKENS
    config.bos_token_id, config.eos_token_id, config.pad_token_id = (
        None,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    if config.is_encoder_decoder:
        config.decoder_start_token_id = tokenizer.pad_token_id


def _shrink(config: PretrainedConfig) -> None:
    for name, size in _SIZES.items():
        if getattr(config, name, None) is not None:
            setattr(config, name, size)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
