"""What a problem needs for a plan to be asked for."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..data.schema import replace_lone_surrogates

__all__ = ["check_rows"]


def check_rows(rows: Iterable[Mapping[str, Any]], *, need_solutions: bool) -> None:
    """Raise the ValueError that names the first row that no plan can be asked for.

    Args:
        rows (`Iterable[Mapping]`):
            Rows `{id, problem, solutions}`.
        need_solutions (`bool`):
            Whether every problem must have a solution.
    """
    seen: set[str] = set()
    for number, row in enumerate(rows):
        for column in ("id", "problem", "solutions")[: 3 if need_solutions else 2]:
            if column not in row:
                raise ValueError(f"row {number} has no `{column}`; give rows {{id, problem, solutions}}.")
        name = str(row["id"])
        if name in seen:
            raise ValueError(f"`id` {name!r} occurs twice; give each problem its own.")
        seen.add(name)
        if not _is_text(row["problem"]):
            raise ValueError(f"`problem` of row {name!r} is {row['problem']!r:.80}; give a text.")
        _check_characters(name, "problem", row["problem"])
        if need_solutions:
            _check_solutions(name, row["solutions"])


def _check_solutions(name: str, solutions: Any) -> None:
    if not isinstance(solutions, list | tuple) or not all(map(_is_text, solutions)):
        raise ValueError(f"`solutions` of row {name!r} is {solutions!r:.80}; give a list of programs, none empty.")
    for solution in solutions:
        _check_characters(name, "solutions", solution)
    if not solutions:
        raise ValueError(
            f"row {name!r} has no solutions to reason back from; leave it out, or use reasoning='forward'."
        )


def _check_characters(name: str, column: str, text: str) -> None:
    if replace_lone_surrogates(text) != text:
        raise ValueError(
            f"`{column}` of row {name!r} holds half of a character (a lone surrogate), which no tokenizer can read; "
            "replace it, or leave the row out."
        )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
