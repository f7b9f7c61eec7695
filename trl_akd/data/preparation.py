"""From a dataset in any accepted form to what the trainer's collator reads."""

from collections.abc import Collection
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from .templates import DEFAULT_TEMPLATE
from .tokenization import TokenizationReport, pack, tokenize_dataset, tokenize_stream


def prepare_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    prompt_template: str = DEFAULT_TEMPLATE,
    packing: bool = False,
    shuffle_seed: int | None = None,
    num_proc: int | None = None,
    name: str = "train",
    text_field: str = "text",
    generates: bool = False,
    prompts_suffice: bool = False,
    kept_columns: Collection[str] = (),
) -> tuple[Dataset | IterableDataset, TokenizationReport | None]:
    """Tokenise, shuffle and pack a dataset, each as far as asked for.

    Args:
        dataset (`Dataset` or `IterableDataset`): rows as `tokenize_dataset` takes them. Packed rows pass unchanged.
        tokenizer (`PreTrainedTokenizerBase`): the student's tokenizer.
        max_length (`int` or `None`): most tokens in a row, packed or not.
        prompt_template (`str`, *optional*, defaults to `"alpaca"`): template for Alpaca columns.
        packing (`bool`, *optional*, defaults to `False`): join samples into rows of up to `max_length` tokens.
        shuffle_seed (`int`, *optional*): shuffle with this seed.
        num_proc (`int`, *optional*): worker processes.
        name (`str`, *optional*, defaults to `"train"`): what to call the dataset in messages.
        text_field (`str`, *optional*, defaults to `"text"`): column of whole texts.
        generates (`bool`, *optional*, defaults to `False`): also return `prompt_ids`, what generation starts from.
        prompts_suffice (`bool`, *optional*, defaults to `False`): keep rows without an answer, as prompts.
        kept_columns (`Collection[str]`, *optional*): columns that stay, where rows are neither packed nor streamed.

    Returns:
        The rows, and what was kept, cut and dropped (`None` for a stream, and for packed rows).

    Raises:
        ValueError: As `tokenize_dataset` and `pack`, or if a stream is to be packed.
    """
    if "seq_lengths" in (dataset.column_names or ()):
        return dataset, None
    report = None
    reading: dict[str, Any] = {
        "max_length": max_length,
        "prompt_template": prompt_template,
        "text_field": text_field,
        "generates": generates,
        "prompts_suffice": prompts_suffice,
    }
    if isinstance(dataset, IterableDataset):
        if packing:
            raise ValueError(
                f"`packing` is on, but the {name} dataset is a stream; set packing=False or streaming=False."
            )
        dataset = tokenize_stream(dataset, tokenizer, **reading)
    else:
        dataset, report = tokenize_dataset(
            dataset, tokenizer, num_proc=num_proc, name=name, kept_columns=kept_columns, **reading
        )
    if shuffle_seed is not None:
        dataset = dataset.shuffle(seed=shuffle_seed)
    if isinstance(dataset, Dataset) and packing:
        if max_length is None:
            raise ValueError(
                "`packing` is on, but `max_length` is not set; give the number of tokens of a packed row."
            )
        dataset = pack(dataset, max_length, num_proc=num_proc, name=name)
    return dataset, report
