"""Seeds of β with which its draws are stratified over seeds and repetitions."""

import itertools
import math

from trl import SFTConfig

from ...akd.akd_config import AKDConfig
from ...beta import AdaptiveBeta
from ...generation.protocol import derive_seed

__all__ = ["beta_draws", "stratified_seed"]

_MAX_STRATA = 64


def stratified_seed(args: SFTConfig, seed: int, draw: int) -> int:
    """Return the seed of the training arguments of a run.

    Of the sequences of values that β can draw, those of one seed differ from draw to draw as long as there are others,
    the values of an epoch are as balanced as possible within a seed, and over consecutive seeds all sequences occur
    equally often. If there are more than 64 sequences, this holds for the first epochs alone.

    Args:
        args (`SFTConfig`):
            Training arguments, whose own seed has no influence.
        seed (`int`):
            Seed of the run.
        draw (`int`):
            Number of the repetition.
    """
    seeds = (derive_seed(seed, f"draw {draw}, attempt {attempt}") for attempt in itertools.count())
    length, values = _num_draws(args), list(getattr(args, "beta_initial_values", ()))
    while len(values) ** length > _MAX_STRATA:
        length -= 1
    if length == 0:
        return next(seeds)
    sequence = [values[index] for index in _stratum(len(values), length, seed, draw)]
    return next(candidate for candidate in seeds if _draws(args, candidate)[:length] == sequence)


def beta_draws(args: SFTConfig) -> list[float]:
    """Return the values that β draws, one per epoch or one for all; none if it draws none."""
    return _draws(args, args.seed) if _num_draws(args) else []


def _num_draws(args: SFTConfig) -> int:
    """Return the number of times that β is drawn in a training."""
    if not isinstance(args, AKDConfig) or not args.uses_beta:
        return 0
    epochs = math.ceil(args.num_train_epochs)
    return {"akd": epochs, "random_epoch": epochs, "m1": 1, "m2": 1}.get(args.beta_strategy, 0)


def _draws(args: AKDConfig, seed: int) -> list[float]:
    beta = AdaptiveBeta(args.beta_strategy, args.beta_initial_values, seed=seed)
    return [beta.value, *(beta.reset() for _ in range(_num_draws(args) - 1))]


def _stratum(num_values: int, length: int, seed: int, draw: int) -> list[int]:
    """Return the indices of one of the `num_values ** length` sequences of values.

    Sequences are grouped by their pattern, the differences of their indices to the first one. Consecutive draws of a
    seed go through all shifts of a pattern before the next pattern.
    """
    num_patterns = num_values ** (length - 1)
    pattern, shift = (seed + draw // num_values) % num_patterns, draw + seed // num_patterns
    digits = [pattern // num_values**place % num_values for place in range(length - 1)]
    return [(digit + shift) % num_values for digit in (0, *digits)]
