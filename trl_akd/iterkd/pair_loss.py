"""Targets of a batch of pairs, and the contrastive loss of correct against faulty answers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..akd.batches import Batch, Targets, backbone_inputs
from ..data.collators import used_width
from ..distributed import widest_float
from ..losses import contrastive
from ..losses.contrastive import Comparison, ContrastiveLoss, Sequences
from ..losses.fused_log_probs import nll_weights
from ..losses.lm_head import LMHead
from ..losses.reduction import IGNORE_INDEX, Normalization, count_items, token_weights

__all__ = [
    "CONTRASTIVE",
    "SUPERVISED",
    "PairLoss",
    "PairTargets",
    "contrastive_objective",
    "pair_loss",
    "pair_targets",
]

SUPERVISED, CONTRASTIVE = range(2)  # task ids


@dataclass(frozen=True)
class PairTargets(Targets):
    """Targets of a batch of pairs, with correct answers as the task `SUPERVISED` and faulty ones as `CONTRASTIVE`.

    The weights of a pair's faulty answers sum to 1, so the items of the second task are pairs with faults.
    """

    answer_ids: Tensor  # [B], indices of the answers in the dataset
    fault_rows: Tensor  # [P, K], rows of each pair's faulty answers, padded with -1

    @property
    def pairs(self) -> int:
        """Number of pairs, whose correct answers are the first rows."""
        return len(self.fault_rows)

    @cached_property
    def correct(self) -> tuple[slice, slice]:
        """Rows and columns of the labels `[B, T]` that contain the correct answers."""
        width = int(used_width(self.labels[: self.pairs] != IGNORE_INDEX))
        return slice(self.pairs), slice(max(width, 1))

    @property
    def teacher_inputs(self) -> Batch:
        """Inputs of the teacher: the correct answers."""
        rows, columns = self.correct
        return {key: tensor[rows, : columns.stop + 1] for key, tensor in self.inputs.items()}


def pair_targets(batch: Batch, normalization: Normalization) -> PairTargets:
    """Return the targets of a batch from [`trl_akd.iterkd.pairs.DataCollatorForPairs`]."""
    labels, fault_rows = batch["labels"][:, 1:], batch["fault_rows"]
    pairs, mask = len(fault_rows), fault_rows >= 0
    task_ids = (torch.arange(len(labels), device=labels.device) >= pairs).long()
    shares = mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
    fault_weights = torch.zeros(len(labels), device=labels.device)
    fault_weights.index_add_(0, fault_rows.clamp(min=0).flatten(), shares.flatten())  # 0 where there is no fault
    weights = torch.cat(
        [
            token_weights(labels[:pairs], normalization=normalization),
            token_weights(labels[pairs:], normalization="sequence") * fault_weights[pairs:].unsqueeze(1),
        ]
    )
    items = torch.stack([count_items(labels[:pairs], normalization=normalization), mask.any(dim=1).sum()])
    return PairTargets(backbone_inputs(batch), labels, weights, items, task_ids, batch["answer_ids"], fault_rows)


class PairLoss(NamedTuple):
    """Contrastive loss of a batch, without gradients.

    Attributes:
        value (`Tensor`): shape `[]`, the weighted loss.
        nll_weights (`Tensor`): shape `[B, T]`. The sum of the tokens' NLLs with these weights has the same gradient.
        sums (`Tensor`): shape `[3]`, weighted sums of loss, margin and accuracy over the pairs.
    """

    value: Tensor
    nll_weights: Tensor
    sums: Tensor


# From log-probabilities of tokens [B, T], targets and reference [answers] to numbers per pair.
ContrastiveObjective = Callable[[Tensor, PairTargets, Tensor | None], Comparison]


def contrastive_objective(name: ContrastiveLoss, settings: dict[str, float]) -> ContrastiveObjective:
    """Return the loss of batches by the name of a function in `contrastive`; `settings` are its arguments."""
    if name == "unlikelihood":
        return _unlikelihood
    return partial(_compare, partial(getattr(contrastive, name), **settings))


def pair_loss(
    head: LMHead,
    hidden: Tensor,
    targets: PairTargets,
    weights: Tensor,
    objective: ContrastiveObjective,
    reference: Tensor | None,
    chunk_size: int | None,
) -> PairLoss:
    """Compute the contrastive loss of correct against faulty answers.

    Args:
        head (`LMHead`), hidden (`torch.Tensor` of shape `[B, T, H]`):
            LM head and final hidden states of the student.
        targets (`PairTargets`), weights (`torch.Tensor` of shape `[B, T]`):
            Targets of the batch, and normalized weights of the tokens.
        objective (`Callable`), reference (`torch.Tensor` of shape `[answers]`, *optional*):
            Loss from [`contrastive_objective`], and the reference log-probabilities of all answers in the dataset.
        chunk_size (`int`, *optional*):
            Number of tokens per chunk.
    """
    scaled = _gather(weights.sum(dim=1), targets.fault_rows).sum(dim=1)
    pair_weight = _gather(targets.weights.sum(dim=1), targets.fault_rows).sum(dim=1)
    sums = hidden.new_zeros(3, dtype=widest_float(hidden.device))

    def weighted(log_probs: Tensor) -> Tensor:
        found = objective(log_probs, targets, reference)
        numbers = torch.stack([number.detach() for number in found]).to(sums)
        sums.copy_(numbers @ pair_weight.to(sums))
        return (found.loss * scaled).sum()

    found = nll_weights(hidden, head, labels=targets.labels, loss=weighted, chunk_size=chunk_size)
    return PairLoss(found.value, found.weights, sums)


def _compare(
    compare: Callable[..., Comparison], log_probs: Tensor, targets: PairTargets, reference: Tensor | None
) -> Comparison:
    columns = [log_probs.sum(dim=1), _lengths(targets), None if reference is None else reference[targets.answer_ids]]
    correct = [None if column is None else column[: targets.pairs] for column in columns]
    faulty = [None if column is None else column[targets.fault_rows.clamp(min=0)] for column in columns]
    return compare(Sequences(*correct), Sequences(*faulty), mask=targets.fault_rows >= 0)  # type: ignore[arg-type]


def _unlikelihood(log_probs: Tensor, targets: PairTargets, reference: Tensor | None) -> Comparison:
    """Return the loss of faulty answers; the logged rewards are mean log-probabilities."""
    losses = contrastive.unlikelihood(log_probs, targets.labels != IGNORE_INDEX)
    rewards = log_probs.sum(dim=1) / _lengths(targets)
    mask = targets.fault_rows >= 0
    loss = contrastive.mean_over_faults(_gather(losses, targets.fault_rows), mask)
    return Comparison.of(loss, rewards[: targets.pairs], _gather(rewards, targets.fault_rows), mask)


def _lengths(targets: PairTargets) -> Tensor:
    return (targets.labels != IGNORE_INDEX).sum(dim=1).clamp(min=1)


def _gather(by_row: Tensor, fault_rows: Tensor) -> Tensor:
    """Gather numbers `[B]` of the faulty answers of each pair `[P, K]`, padded with 0."""
    return by_row[fault_rows.clamp(min=0)].masked_fill(fault_rows < 0, 0)
