"""Problems and their solutions for `trl-akd plans`, worded as `trl-akd evaluate` words them to a tuned model."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ..data.schema import replace_lone_surrogates

__all__ = ["read_rows"]

_NO_TESTS = {"inputs": [""], "outputs": [""]}  # some problems of APPS have none, and a plan needs none


def read_rows(
    path: str | Path, *, split: str = "train", revision: str | None = None, limit: int | None = None
) -> list[dict[str, Any]]:
    """Read problems and their solutions as rows `{id, problem, solutions}`.

    | columns | format |
    |---|---|
    | `id`, `problem`, `solutions` or `solution` | plain |
    | `question`, `solutions` | APPS |
    | `task_id`, `text` or `prompt`, `code`, `test_list` | MBPP |

    The problems of APPS and MBPP read as the `instruction` that an evaluation gives, so that a student is trained on
    what it will be asked.

    Args:
        path (`str` or `Path`):
            A file, a saved dataset or a name on the Hub, as [`trl_akd.data.sources.load`] takes it, or APPS's folder
            of numbered folders.
        split (`str`, *optional*, defaults to `"train"`):
            Split, or a slice of one.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        limit (`int`, *optional*):
            Take the first so many rows.

    Raises:
        FileNotFoundError: If there is no such file, folder or dataset.
        ValueError: If the columns fit no format.
    """
    rows = islice(_rows(path, split, revision), limit)
    return [{name: _well_formed(value) for name, value in _row(row, where).items()} for row, where in rows]


def _rows(path: str | Path, split: str, revision: str | None) -> Iterator[tuple[Mapping[str, Any], str]]:
    questions = sorted(Path(path).expanduser().glob("*/question.txt"))
    if questions:
        return ((_apps_folder(question.parent), str(question.parent)) for question in questions)
    from ..data.sources import load

    rows: Iterable[Mapping[str, Any]] = load(path, split=split, revision=revision)
    return ((row, f"{path}, row {number}") for number, row in enumerate(rows))


def _row(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Read a row of any format; its columns say which it is."""
    if "problem" in row and "id" in row:
        solutions = row["solutions"] if "solutions" in row else [row["solution"]] if "solution" in row else []
        return {**row, "solutions": _listed(solutions, where)}
    if "question" in row:
        tested = {**row, "input_output": row.get("input_output") or _NO_TESTS}
        return _benchmark_row(tested, _listed(row.get("solutions") or [], where), where)
    if "code" in row:
        return _benchmark_row(row, [row["code"].replace("\r\n", "\n")], where)
    raise ValueError(
        f"{where} has the columns {', '.join(map(str, row))}; give rows {{id, problem, solutions}}, or those of APPS "
        "(question, solutions) or MBPP (task_id, text, code, test_list)."
    )


def _benchmark_row(row: Mapping[str, Any], solutions: Any, where: str) -> dict[str, Any]:
    from ..evaluation.formats import read_problem

    problem = read_problem(row, where)
    return {"id": problem.task_id, "problem": problem.instruction, "solutions": solutions}


def _apps_folder(home: Path) -> dict[str, Any]:
    """Read one numbered folder, as APPS's authors ship it."""
    files = {
        "question": "question.txt",
        "solutions": "solutions.json",
        "input_output": "input_output.json",
        "starter_code": "starter_code.py",
    }
    texts = {name: (home / file).read_text(encoding="utf-8") for name, file in files.items() if (home / file).exists()}
    return {"task_id": home.name, **texts}


def _listed(solutions: Any, where: str) -> Any:
    """Return a list that may be JSON inside JSON, as in APPS on the Hub."""
    if not isinstance(solutions, str):
        return solutions
    try:
        return json.loads(solutions)
    except ValueError as error:
        raise ValueError(f"`solutions` in {where} is {solutions!r:.80}; give a list of programs.") from error


def _well_formed(value: Any) -> Any:
    """Replace halves of characters in texts, and in texts inside lists."""
    if isinstance(value, str):
        return replace_lone_surrogates(value)
    return [_well_formed(item) for item in value] if isinstance(value, list) else value
