"""Token weights and their divisor: every split of a global batch gives the same loss."""

import pytest
import torch

from tests import oracles
from trl_akd.losses import count_items, count_items_by_task, scale, token_weights

LENGTHS = [3, 1, 0, 6, 2, 4]
MEANS = {"sequence": oracles.sequence_mean, "token": oracles.token_mean}
BOTH = pytest.mark.parametrize("normalization", MEANS)


def padded(lengths, width=9):
    """Rows with a prompt of two positions, then `length` targets, then padding."""
    labels = torch.full((len(lengths), width), -100)
    for row, length in enumerate(lengths):
        labels[row, 2 : 2 + length] = torch.arange(length)
    return labels


def packed(lengths, ids):
    """Return one row with all samples, including prompts, and the sample of each position."""
    pieces = [padded([length], width=2 + length)[0] for length in lengths]
    sample_ids = [torch.full_like(piece, number) for piece, number in zip(pieces, ids, strict=True)]
    return torch.cat(pieces).unsqueeze(0), torch.cat(sample_ids).unsqueeze(0)


def losses_like(labels):
    """Return a loss per position that depends on its label and the length of its row, so that errors do not cancel."""
    return torch.where(labels >= 0, 1.0 + labels**2, 1e6).float()


def expected(normalization, lengths=LENGTHS):
    return MEANS[normalization]([[1.0 + position**2 for position in range(length)] for length in lengths])


@BOTH
def test_equals_loops(normalization):
    labels = padded(LENGTHS)
    weights = token_weights(labels, normalization=normalization)
    share = scale(weights, count_items(labels, normalization=normalization), world_size=1)
    assert weights.dtype == share.dtype == torch.float32
    assert (weights[labels == -100] == 0).all()
    assert (share * losses_like(labels)).sum().item() == pytest.approx(expected(normalization))


def test_sequence_weights_sum_to_the_number_of_samples():
    labels = padded(LENGTHS)
    assert token_weights(labels, normalization="sequence").sum().item() == pytest.approx(5)
    assert count_items(labels, normalization="sequence") == 5


def test_token_weights_are_ones():
    labels = padded(LENGTHS)
    assert token_weights(labels, normalization="token").sum() == 16
    assert count_items(labels, normalization="token") == 16


@BOTH
@pytest.mark.parametrize("ids", [range(6), [70, -3, 10**12, 5, 4, 8]], ids=["running", "arbitrary"])
def test_packing_changes_nothing(normalization, ids):
    labels, sample_ids = packed(LENGTHS, ids)
    weights = token_weights(labels, normalization=normalization, sample_ids=sample_ids)
    items = count_items(labels, normalization=normalization, sample_ids=sample_ids)
    assert items == count_items(padded(LENGTHS), normalization=normalization)
    unpacked = token_weights(padded(LENGTHS), normalization=normalization)
    torch.testing.assert_close(weights[labels >= 0], unpacked[padded(LENGTHS) >= 0])
    assert (scale(weights, items, 1) * losses_like(labels)).sum().item() == pytest.approx(expected(normalization))


def test_equal_ids_in_two_rows_are_two_samples():
    labels = padded([2, 4])
    ids = torch.zeros_like(labels)
    assert count_items(labels, normalization="sequence", sample_ids=ids) == 2
    together = token_weights(labels, normalization="sequence", sample_ids=ids)
    torch.testing.assert_close(together, token_weights(labels, normalization="sequence"))


@BOTH
@pytest.mark.parametrize("cut", [[2, 2, 2], [1, 5], [1] * 6], ids=str)
def test_micro_batches_add_up(normalization, cut):
    parts = padded(LENGTHS).split(cut)
    items = sum(count_items(part, normalization=normalization) for part in parts)
    total = 0.0
    for part in parts:
        share = scale(token_weights(part, normalization=normalization), items, world_size=1)
        total += (share * losses_like(part)).sum().item()
    assert total == pytest.approx(expected(normalization))


@BOTH
def test_ranks_average_to_the_global_loss(normalization):
    ranks = padded(LENGTHS).split([4, 2])
    items = sum(count_items(part, normalization=normalization) for part in ranks)
    losses = [
        (scale(token_weights(part, normalization=normalization), items, world_size=2) * losses_like(part)).sum()
        for part in ranks
    ]
    assert torch.stack(losses).mean().item() == pytest.approx(expected(normalization))


@BOTH
def test_no_targets(normalization):
    labels = padded([0, 0])
    items = count_items(labels, normalization=normalization)
    share = scale(token_weights(labels, normalization=normalization), items, world_size=2)
    assert items == 0
    assert (share == 0).all()


@BOTH
def test_task_weights_do_not_change_the_number_of_items(normalization):
    labels = padded(LENGTHS)
    task_weights = torch.full(labels.shape, 2.0, dtype=torch.float64)
    task_weights[3:] = 0.5
    plain = token_weights(labels, normalization=normalization)
    weighted = token_weights(labels, normalization=normalization, task_weights=task_weights)
    assert weighted.dtype == torch.float32
    torch.testing.assert_close(weighted, torch.cat([2 * plain[:3], plain[3:] / 2]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"normalization": "mean"}, "normalization is 'mean'"),
        ({"normalization": "token", "sample_ids": torch.zeros(1, 9)}, r"sample_ids has shape \[1, 9\]"),
        ({"normalization": "token", "task_weights": torch.zeros(6)}, r"task_weights has shape \[6\]"),
    ],
    ids=["normalization", "sample_ids", "task_weights"],
)
def test_invalid_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        token_weights(padded(LENGTHS), **arguments)


# Tasks


@BOTH
@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_weights_of_tasks_do_not_depend_on_the_split(normalization, size, share):
    """Rows 0, 3 and 4 belong to one task, the others to another; the micro-batches have different numbers of each."""
    labels, tasks = padded(LENGTHS), torch.tensor([0, 1, 1, 0, 0, 1])
    task_weights = torch.tensor([1 - share, share])[tasks].unsqueeze(1).expand_as(labels)
    cuts = [slice(start, start + size) for start in range(0, 6, size)]
    items = sum(count_items_by_task(labels[cut], tasks[cut], tasks=2, normalization=normalization) for cut in cuts)
    total = 0.0
    for cut in cuts:
        weights = token_weights(labels[cut], normalization=normalization, task_weights=task_weights[cut])
        total += (scale(weights, items, 1, tasks[cut]) * losses_like(labels[cut])).sum().item()
    by_task = [[length for length, task in zip(LENGTHS, tasks, strict=True) if task == number] for number in (0, 1)]
    wanted = (1 - share) * expected(normalization, by_task[0]) + share * expected(normalization, by_task[1])
    assert total == pytest.approx(wanted)


def test_task_without_items():
    labels, tasks = padded([2, 3]), torch.tensor([0, 0])
    items = count_items_by_task(labels, tasks, tasks=2, normalization="sequence")
    assert items.tolist() == [2, 0]
    assert torch.isfinite(scale(token_weights(labels, normalization="sequence"), items, 1, tasks)).all()
