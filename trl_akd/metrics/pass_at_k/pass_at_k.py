"""pass@k: the probability that at least one of k programs that a model generates for a task passes its tests."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from inspect import cleandoc
from typing import Any

import evaluate

from trl_akd.execution import CodeExecutor, ExecutionResult
from trl_akd.metrics.base import ProgramMetric, number_of_workers, run_programs, values_of_k
from trl_akd.metrics.statistics import pass_at_k, pass_at_k_over_tasks
from trl_akd.metrics.verdicts import scores

_CITATION = """\
@article{chen2021evaluating,
    title   = {Evaluating Large Language Models Trained on Code},
    author  = {Mark Chen and Jerry Tworek and Heewoo Jun and Qiming Yuan and others},
    journal = {arXiv preprint arXiv:2107.03374},
    year    = {2021}
}"""


class PassAtK(ProgramMetric):
    """Run programs against tests in a sandbox and compute the unbiased estimate of pass@k with a confidence interval.

    Args:
        predictions (`list[list[str]]`): Complete programs of each task.
        references (`list`): Test of each task: a test program, which raises an error if the program is wrong, or
        inputs
            and outputs as in APPS, `{"inputs": [...], "outputs": [...], "fn_name": optional, "harness": optional}`, or
            the JSON of these.
        k (`int` or `list[int]`, *optional*, defaults to `1`): Values of k. A k above the number of samples of a task
        is
            left out with a warning; it is an error if no other k is given.
        workers (`int`, *optional*):
            Number of programs that run concurrently. Defaults to one more than the number of cores.
        num_workers (`int`, *optional*): Alias of `workers`, as in `evaluate`'s code_eval.
        timeout (`float`, *optional*, defaults to `3.0`): Time limit of a program in seconds of processor time.
        memory_mb (`int`, *optional*, defaults to `512`): Memory limit of a program in MiB.
        isolation (`str`, *optional*, defaults to `"auto"`): Isolation level of the sandbox, as in `CodeExecutor`.
        strict (`bool`, *optional*, defaults to `False`): Whether to run tests in separate processes, as in
        `CodeExecutor`.
        packages (`list[str]`, *optional*): Installed packages that programs may import, such as `"numpy"`.
        allow_code_execution (`bool`, *optional*): Whether to run the programs, which nobody has reviewed.
            `HF_ALLOW_CODE_EVAL=1` in the environment also allows it.
        confidence (`float`, *optional*, defaults to `0.95`): Confidence level of the intervals.
        details (`bool`, *optional*, defaults to `False`): Whether to add counts, scores and results of each task.
        entry_points, truncated (*optional*): Options of `code_errors`, ignored here, for `evaluate.combine`.

    Returns:
        `dict`: For each k, `pass@k`, `pass@k_low`, `pass@k_high` (fractions; higher is better) and `pass@k_tasks`
        (number of tasks); `num_tasks`, `num_samples`, `timed_out`, `infra_errors` (programs that could not be run,
        which are excluded from the estimate), `isolation`, `strict`; with `details` also `details`, one `dict` per
        task.

    Example:
        ```python
        >>> import trl_akd.metrics
        >>> metric = trl_akd.metrics.load("pass_at_k")
        >>> found = metric.compute(
        ...     predictions=[["def add(a, b): return a + b", "def add(a, b): return a - b"]],
        ...     references=["assert add(2, 3) == 5"],
        ...     k=[1, 2],
        ...     allow_code_execution=True,
        ... )
        >>> found["pass@1"], found["pass@2"]
        (0.5, 1.0)

        ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation=_CITATION,
            inputs_description=cleandoc(type(self).__doc__ or ""),
            features=self._features,
            reference_urls=["https://huggingface.co/papers/2107.03374"],
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[str]],
        references: Sequence[str],
        k: int | Sequence[int] = 1,
        workers: int | None = None,
        num_workers: int | None = None,
        timeout: float = 3.0,
        memory_mb: int = 512,
        isolation: str = "auto",
        strict: bool = False,
        packages: Sequence[str] = (),
        allow_code_execution: bool | None = None,
        confidence: float = 0.95,
        details: bool = False,
    ) -> dict[str, Any]:
        sizes = [len(task) for task in predictions]
        ks = _within_samples(values_of_k(k), sizes)
        for value in ks:  # before anything runs
            pass_at_k_over_tasks(sizes, [0] * len(sizes), value, confidence=confidence)
        with CodeExecutor(
            number_of_workers(workers, num_workers),
            timeout,
            memory_mb,
            isolation,
            strict=strict,
            packages=packages,
            allow_code_execution=allow_code_execution,
        ) as executor:
            _, results = run_programs(executor, predictions, references)
        num_samples = [sum(result.status != "infra_error" for result in task) for task in results]
        num_correct = [sum(result.passed for result in task) for task in results]
        found: dict[str, Any] = dict(scores(num_samples, num_correct, ks, confidence))
        found |= {
            "num_tasks": len(results),
            "num_samples": sum(sizes),
            "timed_out": _count(results, "timed_out"),
            "infra_errors": _count(results, "infra_error"),
            "isolation": executor.isolation,
            "strict": strict,
        }
        if details:
            found["details"] = [
                {"num_samples": n, "num_correct": c}
                | {f"pass@{value}": pass_at_k(n, c, value) for value in ks if value <= n}
                | {"results": [asdict(result) for result in task]}
                for n, c, task in zip(num_samples, num_correct, results, strict=True)
            ]
        return found


def _within_samples(ks: list[int], sizes: list[int]) -> list[int]:
    """Drop values of k for which a task has too few samples, with a warning, unless none would be left."""
    kept = [k for k in ks if k <= min(sizes, default=0)]
    left_out = [str(k) for k in ks if k not in kept]
    if not kept or not left_out:
        return ks
    warnings.warn(
        f"Values of k above {min(sizes)}, the smallest sample count, are left out: {', '.join(left_out)}.",
        stacklevel=2,
    )
    return kept


def _count(results: list[list[ExecutionResult]], status: str) -> int:
    return sum(result.status == status for task in results for result in task)
