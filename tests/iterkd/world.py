"""Pairs of correct and faulty answers of very different lengths, with none to three faults each."""

import random

from datasets import Dataset

from tests import tiny


def pairs(number: int, seed: int = 0, most_faults: int = 3) -> Dataset:
    source = random.Random(seed)
    words = ["def", "return", "x", "(y)", "lambda", "-", "1", "pass", "if", "é"]

    def fault() -> str:
        return " ".join(source.choice(words) for _ in range(source.randint(1, 8)))

    rows = tiny.rows(number, seed=seed)
    return Dataset.from_list(
        [{**row, "rejected": [fault() for _ in range(index % (most_faults + 1))]} for index, row in enumerate(rows)]
    )
