"""Seeds of β whose draws are stratified."""

from collections import Counter
from itertools import product
from typing import Any

import pytest

from trl_akd.micro.bench.draws import beta_draws, stratified_seed
from trl_akd.micro.bench.rules import rule_config


def sequences(rule: dict[str, Any], epochs: float, seeds: range, draws: int) -> dict[int, list[tuple[float, ...]]]:
    """Return the draws of each seed, by training arguments that are used as a run uses them."""
    found: dict[int, list[tuple[float, ...]]] = {}
    for seed, draw in product(seeds, range(draws)):
        args = rule_config(rule, "unused", epochs=epochs, learning_rate=1e-3, seed=seed)
        args.seed = stratified_seed(args, seed, draw)
        found.setdefault(seed, []).append(tuple(beta_draws(args)))
    return found


@pytest.mark.parametrize("draws", [1, 2, 3, 4, 8])
def test_seeds_have_different_sequences_and_all_sequences_occur_equally_often(draws: int):
    rule = {"beta_strategy": "random_epoch", "beta_initial_values": [0.25, 0.75]}
    found = sequences(rule, 3, range(5, 13), draws)
    assert all(len(set(several)) == draws for several in found.values())
    counts = Counter(sequence for several in found.values() for sequence in several)
    assert counts == dict.fromkeys(product([0.25, 0.75], repeat=3), draws)


def test_the_values_of_an_epoch_are_balanced_within_a_seed():
    for several in sequences({"beta_strategy": "akd"}, 2.5, range(8), 4).values():
        assert [Counter(epoch) for epoch in zip(*several, strict=True)] == [{0.1: 2, 0.6: 2}] * 3


def test_more_draws_than_sequences_repeat_evenly():
    found = sequences({"beta_strategy": "m2"}, 3, range(2), 4)
    assert [Counter(several) for several in found.values()] == [{(0.1,): 2, (0.6,): 2}] * 2


def test_the_first_epochs_of_a_long_training_are_stratified():
    rule = {"beta_strategy": "random_epoch", "beta_initial_values": [0.1, 0.5, 0.9]}
    found = sequences(rule, 12, range(9), 3)
    counts = Counter(sequence[:2] for several in found.values() for sequence in several)
    assert counts == dict.fromkeys(product([0.1, 0.5, 0.9], repeat=2), 3)
    assert len({sequence for several in found.values() for sequence in several}) == 27, "later epochs are random"


@pytest.mark.parametrize(
    "rule",
    [
        {"method": "sft"},
        {"divergence": "jsd"},
        {"beta_strategy": "fixed", "beta": 0.5},
        {"beta_strategy": "linear", "beta_initial_values": [0.1, 0.9]},
    ],
    ids=str,
)
def test_rules_that_draw_nothing_have_a_seed_per_draw(rule: dict[str, Any]):
    args = rule_config(rule, "unused", epochs=3, learning_rate=1e-3, seed=0)
    seeds = {stratified_seed(args, seed, draw) for seed in range(3) for draw in range(3)}
    assert len(seeds) == 9 and beta_draws(args) == []
