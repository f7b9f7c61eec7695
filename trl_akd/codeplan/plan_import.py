"""Import released plans, such as those of CodePLAN's authors, and pair them with solutions."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .plan_checks import check_plan, check_rows, extract_plan

__all__ = ["ImportReport", "import_plans", "read_plans", "read_utf8"]


@dataclass(frozen=True)
class ImportReport:
    """Counts of an import of plans.

    Args:
        plans (`int`):
            Number of imported plans.
        paired (`int`):
            Number of plans whose solution is known.
        rejected (`Mapping[str, int]`):
            Number of texts that are not valid plans, by the reasons of `check_plan`.
        without (`int`):
            Number of problems without a plan.
        unknown (`int`):
            Number of problems with plans that are not among the rows.
    """

    plans: int
    paired: int
    rejected: Mapping[str, int]
    without: int
    unknown: int


def read_plans(folder: str | Path) -> dict[str, list[str]]:
    """Read released plans by the id of their problem, NAME.

    | files | released for |
    |---|---|
    | `NAME/plans.json`, a list of texts in the order of the problem's solutions | APPS |
    | `NAME.txt`, one plan | MBPP |

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If the folder contains no plans, or a file is not a list of texts.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"`import_plans` is {str(folder)!r}, which is not a folder; check the path.")
    found = {path.parent.name: _read_list(path) for path in sorted(root.glob("*/plans.json"))}
    found |= {path.stem: [read_utf8(path)] for path in sorted(root.glob("*.txt"))}
    if not found:
        raise ValueError(
            f"`import_plans` is {str(folder)!r}, which contains neither NAME/plans.json nor NAME.txt; give the folder "
            "of the released plans."
        )
    return found


def import_plans(
    rows: Iterable[Mapping[str, Any]], plans: Mapping[str, list[str]], *, max_plan_chars: int = 3000
) -> tuple[list[dict[str, Any]], ImportReport]:
    r"""Add plans to the rows of their problems, and pair them with solutions.

    If a problem has as many plans as solutions, they are paired in order; if it has a single solution, all plans
    belong to it; otherwise the solutions of its plans are unknown.

    Args:
        rows (`Iterable[Mapping]`):
            Rows `{id, problem, solutions}`; other columns are kept.
        plans (`Mapping[str, list[str]]`):
            From [`read_plans`].
        max_plan_chars (`int`, *optional*, defaults to `3000`):
            Maximum number of characters per plan.

    Returns:
        `tuple[list[dict], ImportReport]`: The rows with `plans` and `plan_solutions`, the index of the
        solution of each plan or `None`, and the counts.

    Raises:
        ValueError: If a row is malformed.

    Example:

    ```python
    >>> rows = [{"id": "7", "problem": "Double a number.", "solutions": ["print(2 * int(input()))"]}]
    >>> [row], report = import_plans(rows, {"7": ["1. Read it.\n2. Print it twice."]})
    >>> row["plans"], row["plan_solutions"]
    (['1. Read it.\n2. Print it twice.'], [0])

    ```
    """
    found = [dict(row) for row in rows]
    check_rows(found, need_solutions=True)
    rejected: Counter[str] = Counter()
    for row in found:
        texts, solutions = plans.get(str(row["id"]), []), len(row["solutions"])
        row.pop("plan", None)  # the previous plan of the row
        row["plans"], row["plan_solutions"] = [], []
        for number, text in enumerate(texts):
            plan = extract_plan(text)
            reason = check_plan(plan, truncated=False, max_chars=max_plan_chars)
            if reason is not None:
                rejected[reason] += 1
                continue
            row["plans"].append(plan)
            row["plan_solutions"].append(number if len(texts) == solutions else 0 if solutions == 1 else None)
    names = {str(row["id"]) for row in found}
    report = ImportReport(
        plans=sum(len(row["plans"]) for row in found),
        paired=sum(pair is not None for row in found for pair in row["plan_solutions"]),
        rejected=dict(rejected.most_common()),
        without=sum(not row["plans"] for row in found),
        unknown=len(set(plans) - names),
    )
    return found, report


def _read_list(path: Path) -> list[str]:
    try:
        texts = json.loads(read_utf8(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); give a list of texts.") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path} contains {texts!r:.80}; give a list of texts.")
    return texts


def read_utf8(path: Path) -> str:
    """Return the text of a file, or raise a ValueError that names the file if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); convert it, or remove it from the folder.") from error
