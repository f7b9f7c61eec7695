"""Plans that were written before, as CodePLAN's authors released theirs, put beside their problems and solutions."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .plan_checks import check_plan, check_rows, extract_plan

__all__ = ["ImportReport", "import_plans", "read_plans"]


@dataclass(frozen=True)
class ImportReport:
    """Say what came of importing plans.

    Args:
        plans (`int`):
            Plans that were imported.
        paired (`int`):
            Those of which it is known what solution they were written for.
        rejected (`Mapping[str, int]`):
            Texts that are no plans, by reason, as `check_plan` names them.
        without (`int`):
            Problems without any plan.
        unknown (`int`):
            Problems in the folder that are not among the rows.
    """

    plans: int
    paired: int
    rejected: Mapping[str, int]
    without: int
    unknown: int


def read_plans(folder: str | Path) -> dict[str, list[str]]:
    """Read released plans by the name of their problem.

    | layout | released for |
    |---|---|
    | `NAME/plans.json`, a list of texts in the order of the problem's solutions | APPS |
    | `NAME.txt`, one plan | MBPP |

    Args:
        folder (`str` or `Path`):
            Folder of such folders or files.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder holds no plans, or a file is not a list of texts.
    """
    home = Path(folder).expanduser()
    if not home.is_dir():
        raise FileNotFoundError(f"`import_plans` is {str(folder)!r}, which is no folder; check the path.")
    found = {path.parent.name: _listed(path) for path in sorted(home.glob("*/plans.json"))}
    found |= {path.stem: [_read(path)] for path in sorted(home.glob("*.txt"))}
    if not found:
        raise ValueError(
            f"`import_plans` is {str(folder)!r}, which holds neither NAME/plans.json nor NAME.txt; give the folder of "
            "the released plans."
        )
    return found


def import_plans(
    rows: Iterable[Mapping[str, Any]], plans: Mapping[str, list[str]], *, max_plan_chars: int = 3000
) -> tuple[list[dict[str, Any]], ImportReport]:
    r"""Put plans beside the problems that they are for.

    As many plans as solutions belong to these one by one, in their order; otherwise, unless there is but one solution,
    it is not known which plan belongs to which.

    Args:
        rows (`Iterable[Mapping]`):
            Rows `{id, problem, solutions}`; whatever else they hold is kept.
        plans (`Mapping[str, list[str]]`):
            From [`read_plans`].
        max_plan_chars (`int`, *optional*, defaults to `3000`):
            Maximum number of characters per plan.

    Returns:
        `tuple[list[dict], ImportReport]`: The rows with `plans` and `plan_solutions`, for each plan the index of its
        solution or `None`; and the counts.

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


def _listed(path: Path) -> list[str]:
    try:
        texts = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); give a list of texts.") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path} holds {texts!r:.80}; give a list of texts.")
    return texts


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); convert it, or take it out of the folder.") from error
