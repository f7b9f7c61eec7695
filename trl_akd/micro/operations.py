"""Small typed operations, in words and in Python, of which the generated tasks are composed."""

from dataclasses import dataclass

NUMBERS, NUMBER, TEXT, WORDS = "numbers", "number", "text", "words"

NO_ARGUMENT = ("",)
DIGITS = tuple("23456789")
SMALL_DIGITS = tuple("234")
LETTERS = tuple(f"'{letter}'" for letter in "aeiort")


@dataclass(frozen=True)
class Operation:
    """A function from a value of one kind to a value of the same or another kind.

    A kind is also the name of the variable with such a value in a program.

    Args:
        name (`str`):
            Unique name in `OPERATIONS`.
        takes (`str`):
            Kind of the input.
        gives (`str`):
            Kind of the output.
        arguments (`tuple[str, ...]`):
            Python literals to substitute for `{k}`; `NO_ARGUMENT` if there is no `{k}`.
        phrases (`tuple[str, ...]`):
            Wordings in the imperative, with the same meaning.
        forms (`tuple[str, ...]`):
            Python expressions of the variable `takes`, with the same value.
    """

    name: str
    takes: str
    gives: str
    arguments: tuple[str, ...]
    phrases: tuple[str, ...]
    forms: tuple[str, ...]


# fmt: off
OPERATIONS: tuple[Operation, ...] = (
    # numbers -> numbers
    Operation("add", NUMBERS, NUMBERS, DIGITS,
              ("add {k} to every number", "increase each number by {k}"),
              ("[n + {k} for n in numbers]", "list(map(lambda n: n + {k}, numbers))")),
    Operation("subtract", NUMBERS, NUMBERS, DIGITS,
              ("subtract {k} from every number", "decrease each number by {k}"),
              ("[n - {k} for n in numbers]", "list(map(lambda n: n - {k}, numbers))")),
    Operation("multiply", NUMBERS, NUMBERS, DIGITS,
              ("multiply every number by {k}", "scale each number by {k}"),
              ("[n * {k} for n in numbers]", "list(map(lambda n: n * {k}, numbers))")),
    Operation("remainders", NUMBERS, NUMBERS, DIGITS,
              ("replace every number by its remainder modulo {k}", "take each number modulo {k}"),
              ("[n % {k} for n in numbers]", "list(map(lambda n: n % {k}, numbers))")),
    Operation("negate", NUMBERS, NUMBERS, NO_ARGUMENT,
              ("negate every number", "flip the sign of each number"),
              ("[-n for n in numbers]", "list(map(lambda n: -n, numbers))")),
    Operation("square", NUMBERS, NUMBERS, NO_ARGUMENT,
              ("square every number", "raise each number to the power of two"),
              ("[n * n for n in numbers]", "[n ** 2 for n in numbers]")),
    Operation("keep_above", NUMBERS, NUMBERS, SMALL_DIGITS,
              ("keep the numbers above {k}", "drop all numbers that are not greater than {k}"),
              ("[n for n in numbers if n > {k}]", "list(filter(lambda n: n > {k}, numbers))")),
    Operation("keep_below", NUMBERS, NUMBERS, DIGITS,
              ("keep the numbers below {k}", "drop all numbers that are not less than {k}"),
              ("[n for n in numbers if n < {k}]", "list(filter(lambda n: n < {k}, numbers))")),
    Operation("keep_even", NUMBERS, NUMBERS, NO_ARGUMENT,
              ("keep the even numbers", "remove the odd numbers"),
              ("[n for n in numbers if n % 2 == 0]", "list(filter(lambda n: n % 2 == 0, numbers))")),
    Operation("keep_odd", NUMBERS, NUMBERS, NO_ARGUMENT,
              ("keep the odd numbers", "remove the even numbers"),
              ("[n for n in numbers if n % 2 == 1]", "list(filter(lambda n: n % 2 == 1, numbers))")),
    Operation("sort_numbers", NUMBERS, NUMBERS, NO_ARGUMENT,
              ("sort the numbers", "put the numbers in increasing order"),
              ("sorted(numbers)", "sorted(numbers, reverse=False)")),
    Operation("sort_numbers_down", NUMBERS, NUMBERS, NO_ARGUMENT,
              ("sort the numbers from large to small", "put the numbers in decreasing order"),
              ("sorted(numbers, reverse=True)", "sorted(numbers)[::-1]")),
    Operation("reverse_numbers", NUMBERS, NUMBERS, NO_ARGUMENT,
              ("reverse the list", "turn the list around"),
              ("numbers[::-1]", "list(reversed(numbers))")),
    Operation("unique_numbers", NUMBERS, NUMBERS, NO_ARGUMENT,
              ("remove repeated numbers", "keep the first copy of each number"),
              ("list(dict.fromkeys(numbers))", "list({n: n for n in numbers})")),
    Operation("first_numbers", NUMBERS, NUMBERS, SMALL_DIGITS,
              ("keep the first {k} numbers", "cut the list after {k} numbers"),
              ("numbers[:{k}]", "numbers[0:{k}]")),
    Operation("skip_numbers", NUMBERS, NUMBERS, SMALL_DIGITS,
              ("skip the first {k} numbers", "leave out {k} numbers at the start"),
              ("numbers[{k}:]", "numbers[{k}:len(numbers)]")),
    # numbers -> number
    Operation("sum", NUMBERS, NUMBER, NO_ARGUMENT,
              ("add up the numbers", "compute the sum"),
              ("sum(numbers)", "sum(n for n in numbers)")),
    Operation("largest", NUMBERS, NUMBER, NO_ARGUMENT,
              ("find the largest number", "take the maximum, or 0 if there is none"),
              ("max(numbers, default=0)", "max([n for n in numbers], default=0)")),
    Operation("smallest", NUMBERS, NUMBER, NO_ARGUMENT,
              ("find the smallest number", "take the minimum, or 0 if there is none"),
              ("min(numbers, default=0)", "min([n for n in numbers], default=0)")),
    Operation("length", NUMBERS, NUMBER, NO_ARGUMENT,
              ("count the numbers", "find the length of the list"),
              ("len(numbers)", "sum(1 for n in numbers)")),
    # number -> number
    Operation("plus", NUMBER, NUMBER, DIGITS,
              ("add {k} to the result", "increase the result by {k}"),
              ("number + {k}", "{k} + number")),
    Operation("times", NUMBER, NUMBER, DIGITS,
              ("multiply the result by {k}", "scale the result by {k}"),
              ("number * {k}", "{k} * number")),
    Operation("minus", NUMBER, NUMBER, DIGITS,
              ("subtract {k} from the result", "decrease the result by {k}"),
              ("number - {k}", "-{k} + number")),
    # text -> text
    Operation("upper", TEXT, TEXT, NO_ARGUMENT,
              ("convert the text to upper case", "capitalise every letter"),
              ("text.upper()", "str.upper(text)")),
    Operation("lower", TEXT, TEXT, NO_ARGUMENT,
              ("convert the text to lower case", "make every letter small"),
              ("text.lower()", "str.lower(text)")),
    Operation("swap_case", TEXT, TEXT, NO_ARGUMENT,
              ("swap the case of the text", "exchange small and capital letters"),
              ("text.swapcase()", "str.swapcase(text)")),
    Operation("reverse_text", TEXT, TEXT, NO_ARGUMENT,
              ("reverse the text", "write the text backwards"),
              ("text[::-1]", "''.join(reversed(text))")),
    Operation("first_letters", TEXT, TEXT, DIGITS,
              ("keep the first {k} characters", "cut the text after {k} characters"),
              ("text[:{k}]", "text[0:{k}]")),
    Operation("skip_letters", TEXT, TEXT, DIGITS,
              ("skip the first {k} characters", "leave out {k} characters at the start"),
              ("text[{k}:]", "text[{k}:len(text)]")),
    Operation("remove_letter", TEXT, TEXT, LETTERS,
              ("remove the letter {k}", "delete every {k} from the text"),
              ("text.replace({k}, '')", "''.join(c for c in text if c != {k})")),
    # text -> words
    Operation("split", TEXT, WORDS, NO_ARGUMENT,
              ("split the text into words", "take the words of the text"),
              ("text.split()", "list(text.split())")),
    # text -> number
    Operation("text_length", TEXT, NUMBER, NO_ARGUMENT,
              ("count the characters", "find the length of the text"),
              ("len(text)", "sum(1 for c in text)")),
    Operation("count_letter", TEXT, NUMBER, LETTERS,
              ("count the letter {k}", "count how often {k} occurs"),
              ("text.count({k})", "sum(c == {k} for c in text)")),
    # words -> words
    Operation("sort_words", WORDS, WORDS, NO_ARGUMENT,
              ("sort the words", "put the words in alphabetical order"),
              ("sorted(words)", "sorted(words, reverse=False)")),
    Operation("reverse_words", WORDS, WORDS, NO_ARGUMENT,
              ("reverse the order of the words", "turn the words around"),
              ("words[::-1]", "list(reversed(words))")),
    Operation("long_words", WORDS, WORDS, SMALL_DIGITS,
              ("keep the words longer than {k}", "drop words of at most {k} letters"),
              ("[w for w in words if len(w) > {k}]", "list(filter(lambda w: len(w) > {k}, words))")),
    Operation("unique_words", WORDS, WORDS, NO_ARGUMENT,
              ("remove repeated words", "keep the first copy of each word"),
              ("list(dict.fromkeys(words))", "list({w: w for w in words})")),
    Operation("mirror_words", WORDS, WORDS, NO_ARGUMENT,
              ("write each word backwards", "reverse the letters of every word"),
              ("[w[::-1] for w in words]", "list(map(lambda w: w[::-1], words))")),
    Operation("first_words", WORDS, WORDS, SMALL_DIGITS,
              ("keep the first {k} words", "cut the list after {k} words"),
              ("words[:{k}]", "words[0:{k}]")),
    # words -> text
    Operation("join", WORDS, TEXT, NO_ARGUMENT,
              ("join the words with dashes", "put dashes between the words"),
              ("'-'.join(words)", "'-'.join(w for w in words)")),
    # words -> numbers
    Operation("word_lengths", WORDS, NUMBERS, NO_ARGUMENT,
              ("take the length of each word", "replace every word by its length"),
              ("[len(w) for w in words]", "list(map(len, words))")),
    # words -> number
    Operation("count_words", WORDS, NUMBER, NO_ARGUMENT,
              ("count the words", "find the number of words"),
              ("len(words)", "sum(1 for w in words)")),
)
# fmt: on
