"""Which head and which objective each task has, and what its numbers come to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..akd.batches import Targets
from ..akd.metrics import METRICS, Means, loss_from_means
from ..distributed import widest_float
from ..heads import head_of, lm_head
from ..losses.fused_linear import FusedCrossEntropy, FusedDivergence
from ..losses.lm_head import LMHead
from .codeplan_config import CodePLANConfig, TaskObjective
from .encoding import Task
from .plan_head import plan_head_of

__all__ = ["Route", "pooled", "routes", "sums_by_task", "task_head", "task_loss"]


@dataclass(frozen=True)
class Route:
    """One fused loss of a batch.

    Args:
        tasks (`tuple[Task, ...]`):
            The tasks whose tokens it is over.
        objective (`str`):
            `"ce"` or `"akd"`.
        plan_head (`bool`):
            Whether they go through the plan head.
    """

    tasks: tuple[Task, ...]
    objective: TaskObjective
    plan_head: bool

    def select(self, weights: torch.Tensor, task_ids: torch.Tensor) -> torch.Tensor:
        """Return the weights `[B, T]`, with 0 for the tokens of other routes' tasks."""
        is_here = torch.isin(task_ids, torch.tensor(self.tasks, device=task_ids.device))
        return weights * is_here.unsqueeze(1)


def routes(code_objective: TaskObjective, plan_objective: TaskObjective, *, plan_head: bool) -> list[Route]:
    """Return the fewest routes that serve all tasks.

    Every micro-batch takes all of them, even where it has no token of a task: engines want each head's gradient from
    every rank and micro-batch.

    Args:
        code_objective (`str`), plan_objective (`str`):
            `"ce"` or `"akd"`, of programs and of plans.
        plan_head (`bool`):
            Whether plans go through a plan head.

    Example:

    ```python
    >>> [route.tasks for route in routes("ce", "ce", plan_head=False)]
    [(<Task.CODE: 0>, <Task.GUIDED: 2>, <Task.PLAN: 1>)]

    ```
    """
    code = Route((Task.CODE, Task.GUIDED), code_objective, plan_head=False)
    plan = Route((Task.PLAN,), plan_objective, plan_head=plan_head)
    if (code.objective, code.plan_head) == (plan.objective, plan.plan_head):
        return [Route((*code.tasks, *plan.tasks), code.objective, plan_head=False)]
    return [code, plan]


def task_head(student: Any, route: Route) -> LMHead:
    """Return the whole output layer of the student that a route's tasks go through."""
    head = head_of(plan_head_of(student), student) if route.plan_head else lm_head(student)
    return head.whole()


def sums_by_task(result: FusedCrossEntropy | FusedDivergence, targets: Targets) -> torch.Tensor:
    """Return the weighted sums `[tasks, metrics]` of `METRICS`; what is not known counts 0."""
    if isinstance(result, FusedCrossEntropy):
        known = {"student_nll": result.nll, "student_entropy": result.entropy}
    else:
        known = {name: getattr(result, name) for name in METRICS}
    nothing = torch.zeros_like(known["student_nll"])
    precision = widest_float(nothing.device)
    numbers = torch.stack([known.get(name, nothing) for name in METRICS]).to(precision)
    by_row = (numbers * targets.weights.to(precision)).sum(dim=2)
    return by_row.new_zeros(len(Task), len(METRICS)).index_add(0, targets.task_ids, by_row.t())


def task_loss(task: Task, means: Mapping[str, float], beta: float, args: CodePLANConfig) -> float:
    """Return the value of a task's own objective from the means of `METRICS`."""
    objective = args.plan_objective if task is Task.PLAN else args.code_objective
    return means["student_nll"] if objective == "ce" else loss_from_means(dict(means), beta, args)


def pooled(means: Sequence[Means]) -> Means:
    """Return the means over the tokens of several tasks, each with its weight in the loss."""
    weight = sum(mean.weight for mean in means)
    by_name = {name: sum(mean.by_name[name] * mean.weight for mean in means) / max(weight, 1e-30) for name in METRICS}
    return Means(by_name, weight)
