"""Sequence classifiers of pairs of texts, for the ranker of programs and the judge of answers."""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from .distributed import default_device

logger = logging.getLogger(__name__)

__all__ = ["LabeledPair", "PairClassifier", "encode_pairs", "hold_out", "load_classifier", "make_pair_trainer"]

Row = TypeVar("Row", bound=Mapping[str, Any])
LabeledPair: TypeAlias = tuple[str, str, int | Sequence[float]]
"""First text, second text, and the class or the numbers to predict."""


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, first: Sequence[str], second: Sequence[str], max_length: int
) -> dict[str, list[list[int]]]:
    """Tokenize texts as pairs, and truncate the longer text of a pair that exceeds `max_length` first."""
    encoded = tokenizer(list(first), list(second), truncation="longest_first", max_length=max_length, verbose=False)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def hold_out(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Hold out all rows of a random subset of the problems.

    Args:
        rows (`Sequence[Mapping]`):
            Rows with the `id` of their problem.
        fraction (`float`):
            Fraction of the problems to hold out, in (0, 1).
        seed (`int`):
            Seed of the split, which does not depend on the order of the rows.

    Returns:
        `tuple[list, list]`: The rows to train on, and the rows held out.

    Raises:
        ValueError: If one of the two would be empty.

    Example:

    ```python
    >>> hold_out([{"id": "a"}, {"id": "b"}, {"id": "a"}], 0.5, seed=1)
    ([{'id': 'b'}], [{'id': 'a'}, {'id': 'a'}])

    ```
    """
    names = sorted({row["id"] for row in rows})
    number = round(fraction * len(names))
    if not 0 < number < len(names):
        raise ValueError(
            f"`test_size` is {fraction}, which does not split {len(names)} problems into two parts; give another "
            "fraction."
        )
    held_out = set(random.Random(seed).sample(names, number))
    return [row for row in rows if row["id"] not in held_out], [row for row in rows if row["id"] in held_out]


def load_classifier(path: str, revision: str | None = None) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a classifier and its tokenizer from a folder or the Hub, onto the GPU if there is one.

    Raises:
        OSError: If the model does not exist.
    """
    source = {"revision": revision, "trust_remote_code": False}
    model = AutoModelForSequenceClassification.from_pretrained(path, **source)
    return model.to(default_device()), AutoTokenizer.from_pretrained(path, **source)


class PairClassifier:
    """Apply a sequence classifier to pairs of texts in batches.

    Args:
        model (`PreTrainedModel`):
            A sequence classifier, on its device.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer, with a padding token; `model_max_length` limits the number of tokens per pair.
        batch_size (`int`):
            Number of pairs per batch.

    Raises:
        ValueError: If `batch_size` is below 1.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}; give at least 1.")
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._batch_size = batch_size

    def predict(self, first: Sequence[str], second: Sequence[str]) -> Tensor:
        """Return the model's outputs `[N, C]` for N pairs, in float32 on the CPU."""
        starts = range(0, len(first), self._batch_size)
        parts = [slice(start, start + self._batch_size) for start in starts]
        outputs = [self._predict_batch(first[part], second[part]) for part in parts]
        return torch.cat(outputs) if outputs else torch.empty(0, self._model.config.num_labels)

    def _predict_batch(self, first: Sequence[str], second: Sequence[str]) -> Tensor:
        encoded = encode_pairs(self._tokenizer, first, second, self._tokenizer.model_max_length)
        batch = self._tokenizer.pad(encoded, return_tensors="pt").to(self._model.device)
        with torch.no_grad():
            outputs: Tensor = self._model(**batch).logits
        return outputs.float().cpu()


def make_pair_trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    args: TrainingArguments,
    train: Sequence[LabeledPair],
    held_out: Sequence[LabeledPair] = (),
    *,
    names: Sequence[str],
    max_length: int,
    compute_metrics: Callable[[EvalPrediction], dict[str, float]],
    compute_loss: Callable[..., Tensor] | None = None,
) -> Trainer:
    """Return a trainer of a sequence classifier of pairs.

    Args:
        model (`PreTrainedModel`):
            A sequence classifier with as many outputs as there are names, which are set here.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer; EOS is the padding token if it has none.
        args (`TrainingArguments`):
            Training arguments.
        train (`Sequence[LabeledPair]`), held_out (`Sequence[LabeledPair]`, *optional*):
            Pairs to train on and to evaluate on.
        names (`Sequence[str]`):
            Names of the outputs.
        max_length (`int`):
            Maximum number of tokens per pair, at most the model's number of positions; saved with the tokenizer.
        compute_metrics (`Callable`):
            Computes metrics from outputs and labels.
        compute_loss (`Callable`, *optional*):
            Computes the loss from the model's output, the labels, and the number of labels in all batches of a step;
            by default the loss of the model.

    Raises:
        ValueError: If the model has a different number of outputs.
    """
    if model.config.num_labels != len(names):
        raise ValueError(f"the model has {model.config.num_labels} classes; load it with num_labels={len(names)}.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    positions = _positions(model)
    if positions is not None and max_length > positions:
        logger.warning(f"`max_length` is {max_length}, but the model has {positions} positions, which are the limit.")
        max_length = positions
    tokenizer.model_max_length = max_length
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}

    def encode(pairs: Sequence[LabeledPair]) -> Dataset:
        first, second, labels = zip(*pairs, strict=True)
        return Dataset.from_dict({**encode_pairs(tokenizer, first, second, max_length), "labels": labels})

    return Trainer(
        model,
        args,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=encode(train),
        eval_dataset=encode(held_out) if held_out else None,
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
        compute_loss_func=compute_loss,
    )


def _positions(model: Any) -> int | None:
    """Return the number of positions of tokens: RoBERTa's begin after that of padding, and XLNet has no limit."""
    positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, layer in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
            return layer.num_embeddings - layer.padding_idx - 1
    return None if positions == -1 else positions
