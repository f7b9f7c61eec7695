import random
from collections import Counter

import pytest

from trl_akd.micro.operations import NUMBER, NUMBERS, OPERATIONS, TEXT, WORDS, Operation

KINDS = {NUMBERS, NUMBER, TEXT, WORDS}


def inputs(kind: str) -> list:
    rng = random.Random(kind)
    numbers = [[rng.randint(-30, 30) for _ in range(length)] for length in (0, 1, 2, 5, 9, 9)]
    words = [[rng.choice(["a", "Tie", "stone", "eat", "eat", "OTTER"]) for _ in range(n)] for n in (0, 1, 3, 6, 6)]
    return {
        NUMBERS: numbers,
        NUMBER: [-7, 0, 1, 12],
        WORDS: words,
        TEXT: ["", "x", *(" ".join(some) for some in words)],
    }[kind]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_all_forms_of_an_operation_compute_the_same(operation: Operation):
    for argument in operation.arguments:
        functions = [eval(f"lambda {operation.takes}: {form.replace('{k}', argument)}") for form in operation.forms]
        for value in inputs(operation.takes):
            results = [function(value) for function in functions]
            assert all(result == results[0] for result in results), (argument, value, results)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_the_argument_shows_in_every_phrase_and_form_or_in_none(operation: Operation):
    takes_argument = operation.arguments != ("",)
    assert all(("{k}" in text) == takes_argument for text in operation.phrases + operation.forms)
    assert len(operation.phrases) > 1 and len(operation.forms) > 1


def test_kinds_connect():
    assert {operation.takes for operation in OPERATIONS} == KINDS
    assert {operation.gives for operation in OPERATIONS} <= KINDS


def test_no_two_operations_share_a_name_a_phrase_or_a_form():
    for texts in (
        [operation.name for operation in OPERATIONS],
        [(operation.takes, phrase) for operation in OPERATIONS for phrase in operation.phrases],
        [form for operation in OPERATIONS for form in operation.forms],
    ):
        assert [text for text, count in Counter(texts).items() if count > 1] == []


def numbers_above(k: int, numbers: list[int]) -> list[int]:
    kept = []
    for number in numbers:
        if number > k:
            kept.append(number)
    return kept


def without_repeats(values: list) -> list:
    kept: list = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept


def times_in(letter: str, text: str) -> int:
    return sum(1 for c in text if c == letter)


@pytest.mark.parametrize(
    ("name", "argument", "oracle"),
    [
        ("keep_above", "3", lambda value: numbers_above(3, value)),
        ("unique_numbers", "", without_repeats),
        ("unique_words", "", without_repeats),
        ("skip_numbers", "2", lambda value: [n for i, n in enumerate(value) if i >= 2]),
        ("first_words", "2", lambda value: [w for i, w in enumerate(value) if i < 2]),
        ("sort_numbers_down", "", lambda value: [-n for n in sorted(-n for n in value)]),
        ("minus", "4", lambda value: value - 4),
        ("count_letter", "'e'", lambda value: times_in("e", value)),
        ("remove_letter", "'e'", lambda value: "".join(value.split("e"))),
        ("join", "", lambda value: "".join(f"-{word}" for word in value)[1:]),
    ],
)
def test_operations_do_what_their_phrases_say(name: str, argument: str, oracle):
    [operation] = [operation for operation in OPERATIONS if operation.name == name]
    for form in operation.forms:
        for value in inputs(operation.takes):
            assert eval(form.replace("{k}", argument), {operation.takes: value}) == oracle(value)
