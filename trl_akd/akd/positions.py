"""Lengths of texts, compared with the number of positions of models that learn or tabulate them."""

from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import nn

from ..data.collators import round_up
from ..data.tokenization import PROMPT_COLUMN
from .akd_config import AKDConfig

__all__ = ["check_length", "check_texts", "longest_prompt", "longest_row", "tabulated_positions"]


def check_length(length: int, option: str, positions: int | None, name: str) -> None:
    """Raise a ValueError if rows of `length` tokens, the value of an option, exceed the positions of a model."""
    if positions is not None and length > positions:
        raise ValueError(
            f"`{option}` is {length:,}, but {name} has positions for {positions:,} tokens; set `{option}` to "
            f"at most {positions}."
        )


def tabulated_positions(model: Any) -> int | None:
    """Return the number of positions of a causal model that has a table of them, beyond which it fails.

    Returns `None` for a model that computes positions of any length, such as one with rotary embeddings.
    """
    config = model.config.get_text_config()
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None or model.config.is_encoder_decoder:
        return None
    return positions if any(_is_table(name, module, positions) for name, module in model.named_modules()) else None


def _is_table(name: str, module: nn.Module, positions: int) -> bool:
    """Return whether a module is the table of GPT-2 or OPT, or has that of GPT-J and CodeGen; not that of images."""
    own = name.rpartition(".")[2]
    if isinstance(module, nn.Embedding) and (own == "wpe" or "pos" in own):
        return module.num_embeddings >= positions
    return isinstance(getattr(module, "embed_positions", None), torch.Tensor)


def check_texts(
    args: AKDConfig, name: str, positions: int, *, longest_row: int, longest_prompt: int | None = None
) -> None:
    """Raise a ValueError if a row, padded, or a prompt with generated text exceeds the positions of a model."""
    if longest_row > positions:
        raise ValueError(
            f"the longest row has {longest_row:,} tokens, but {name} has positions for {positions:,}; shorten the "
            f"rows, or set `max_length` to at most {positions}."
        )
    padded = round_up(longest_row, args.pad_to_multiple_of or 1)
    if padded > positions:
        raise ValueError(
            f"`pad_to_multiple_of` is {args.pad_to_multiple_of}, with which the longest row is padded to {padded:,} "
            f"tokens, but {name} has positions for {positions:,}; choose another multiple, or lower `max_length`."
        )
    if longest_prompt is not None and longest_prompt + args.max_new_tokens > positions:
        raise ValueError(
            f"the longest prompt has {longest_prompt:,} tokens and `max_new_tokens` is {args.max_new_tokens:,}, but "
            f"{name} has positions for {positions:,} tokens; lower `max_new_tokens` or `max_length`."
        )


def longest_row(rows: Dataset) -> int:
    """Return the number of tokens of the longest text in tokenized rows, packed or not."""
    if "seq_lengths" in rows.column_names:
        batches: Any = rows.select_columns(["seq_lengths"]).with_format("arrow").iter(batch_size=1000)
        return max(int(pc.max(pc.list_flatten(batch["seq_lengths"])).as_py()) for batch in batches)
    return _longest(rows, "input_ids")


def longest_prompt(rows: Dataset) -> int | None:
    """Return the number of tokens of the longest prompt, or `None` if no text is generated."""
    return _longest(rows, PROMPT_COLUMN) if PROMPT_COLUMN in rows.column_names else None


def _longest(rows: Dataset, column: str) -> int:
    batches: Any = rows.select_columns([column]).with_format("arrow").iter(batch_size=1000)
    return max(int(pc.max(pc.list_value_length(batch[column])).as_py()) for batch in batches)
