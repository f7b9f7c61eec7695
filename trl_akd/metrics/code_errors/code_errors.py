"""Errors of generated programs by type and cause, as in tables 2 and 13 of Adaptive Knowledge Distillation (AKD)."""

from collections.abc import Sequence
from dataclasses import asdict
from inspect import cleandoc
from typing import Any

import evaluate

from trl_akd.execution import CodeExecutor
from trl_akd.metrics.base import ProgramMetric, as_list, number_of_workers, run_programs
from trl_akd.metrics.taxonomy import classify, error_table

_CITATION = """\
@article{akd,
    title   = {Adaptive Knowledge Distillation for code generation},
    journal = {Journal of Software},
    note    = {https://www.jos.org.cn/josen/article/abstract/7462}
}"""


class CodeErrors(ProgramMetric):
    """Run programs against tests in a sandbox and count errors by type and cause.

    Args:
        predictions (`list[list[str]]`), references (`list`): As in `pass_at_k`.
        entry_points (`list[str]`, *optional*): Function that the test of each task calls.
        truncated (`list[list[bool]]`, *optional*): Whether generation of each program stopped at its length limit.
        k, confidence (*optional*): Options of `pass_at_k`, ignored here, for `evaluate.combine`.
        workers, num_workers, timeout, memory_mb, isolation, strict, packages, allow_code_execution: As in `pass_at_k`.
        details (`bool`, *optional*, defaults to `False`): Whether to add the label of each program.

    Returns:
        `dict`: Counts `judged` (programs without infrastructure errors), `correct`, `wrong_answer`, `complete` (the
        sum of these two), `incomplete`, `infra_errors` (programs with infrastructure errors, in no other count);
        fractions `correct_share`, `complete_share` and `incomplete_share` of `judged`, and `correct_among_complete`; a
        count for each row `type/cause`, which add up to `incomplete`; `isolation`, `strict`; with `details` also
        `details`, a list of labels per task.

    Example:
        ```python
        >>> import trl_akd.metrics
        >>> metric = trl_akd.metrics.load("code_errors")
        >>> found = metric.compute(
        ...     predictions=[["def add(a, b): return a + c", "def add(a, b): pass", "def add(a, b): return a - b"]],
        ...     references=["assert add(2, 3) == 5"],
        ...     entry_points=["add"],
        ...     allow_code_execution=True,
        ... )
        >>> found["NameError/missing_content"], found["AssertionError/stub"], found["wrong_answer"]
        (1, 1, 1)

        ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation=_CITATION,
            inputs_description=cleandoc(type(self).__doc__ or ""),
            features=self._features,
            reference_urls=["https://www.jos.org.cn/josen/article/abstract/7462"],
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[str]],
        references: Sequence[str],
        entry_points: Sequence[str | None] | None = None,
        truncated: Sequence[Sequence[bool]] | None = None,
        workers: int | None = None,
        num_workers: int | None = None,
        timeout: float = 3.0,
        memory_mb: int = 512,
        isolation: str = "auto",
        strict: bool = False,
        packages: Sequence[str] = (),
        allow_code_execution: bool | None = None,
        details: bool = False,
    ) -> dict[str, Any]:
        if entry_points is None:
            entry_points = [None] * len(predictions)
        if truncated is None:
            truncated = [[False] * len(task) for task in predictions]
        names = _column("entry_points", entry_points, len(predictions), "task")
        cut_off = [
            _column(f"truncated[{index}]", flags, len(task), "program")
            for index, (flags, task) in enumerate(
                zip(_column("truncated", truncated, len(predictions), "task"), predictions, strict=True)
            )
        ]
        with CodeExecutor(
            number_of_workers(workers, num_workers),
            timeout,
            memory_mb,
            isolation,
            strict=strict,
            packages=packages,
            allow_code_execution=allow_code_execution,
        ) as executor:
            programs, results = run_programs(executor, predictions, references)
        labels = [
            [
                classify(result, program, entry_point, flag)
                for result, program, flag in zip(task_results, task_programs, flags, strict=True)
            ]
            for task_results, task_programs, entry_point, flags in zip(results, programs, names, cut_off, strict=True)
        ]
        table = error_table(label for task in labels for label in task)
        found: dict[str, Any] = table.as_dict() | {"isolation": executor.isolation, "strict": strict}
        if details:
            found["details"] = [[asdict(label) for label in task] for task in labels]
        return found


def _column(name: str, values: Any, count: int, unit: str) -> list[Any]:
    column = as_list(values)
    if column is None:
        raise TypeError(f"{name} is {type(values).__name__}; give a list with one entry per {unit}.")
    if len(column) != count:
        raise ValueError(f"{name} has {len(column)} entries for {count} {unit}s; give one per {unit}.")
    return column
