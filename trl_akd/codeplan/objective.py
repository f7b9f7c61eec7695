"""CodePLAN's loss: its task groups, its value for a batch, and the metrics per task.

Tasks with the same output layer and the same objective form a group, whose tokens share one fused loss. CodePLAN has
at most two groups: code, with guided code, and plans.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from ..akd.batches import Batch, Targets, backbone_inputs, row_numbers, without_repeats
from ..akd.metrics import METRICS, Means, loss_from_means
from ..distributed import through_forward, widest_float
from ..heads import final_hidden_states, head_of, lm_head
from ..losses.fused_linear import FusedCrossEntropy, FusedDivergence, fused_linear_cross_entropy
from ..losses.lm_head import LMHead
from ..losses.reduction import IGNORE_INDEX, Normalization
from ..teachers import verify_architecture
from .codeplan_config import CodePLANConfig, TaskObjective
from .collator import count_task_items
from .encoding import Task
from .plan_head import check_trained, plan_head_of

__all__ = [
    "TaskGroup",
    "answer_tokens",
    "codeplan_loss",
    "pooled_means",
    "sums_by_task",
    "task_groups",
    "task_loss",
    "without_repeated_problems",
]

_VERIFIED: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class TaskGroup:
    """Tasks with one fused loss.

    Args:
        tasks (`tuple[Task, ...]`):
            The tasks.
        objective (`str`):
            `"ce"` or `"akd"`.
        plan_head (`bool`):
            Whether the plan head predicts their tokens.
    """

    tasks: tuple[Task, ...]
    objective: TaskObjective
    plan_head: bool

    def select(self, weights: torch.Tensor, task_ids: torch.Tensor) -> torch.Tensor:
        """Return the weights `[B, T]`, with 0 for the tokens of other tasks."""
        is_selected = torch.stack([task_ids == task for task in self.tasks]).any(dim=0)
        return weights * is_selected.unsqueeze(1)

    def output_layer(self, student: Any) -> LMHead:
        """Return the student's output layer for these tasks, gathered if it is sharded."""
        head = head_of(plan_head_of(student), student) if self.plan_head else lm_head(student)
        return head.whole()


def task_groups(code_objective: TaskObjective, plan_objective: TaskObjective, *, plan_head: bool) -> list[TaskGroup]:
    """Return the minimum number of groups for all tasks.

    Every micro-batch computes the loss of every group, even without a token of its tasks: distributed engines expect a
    gradient of each output layer from every rank and micro-batch.

    Example:

    ```python
    >>> [group.tasks for group in task_groups("ce", "ce", plan_head=False)]
    [(<Task.CODE: 0>, <Task.GUIDED: 2>, <Task.PLAN: 1>)]

    ```
    """
    code = TaskGroup((Task.CODE, Task.GUIDED), code_objective, plan_head=False)
    plan = TaskGroup((Task.PLAN,), plan_objective, plan_head=plan_head)
    if (code.objective, code.plan_head) == (plan.objective, plan.plan_head):
        return [TaskGroup((*code.tasks, *plan.tasks), code.objective, plan_head=False)]
    return [code, plan]


def codeplan_loss(model: Any, batch: Batch, *, accelerator: Any = None) -> torch.Tensor:
    r"""Compute \((1-\lambda) L_\mathrm{code} + \lambda L_\mathrm{plan}\) of a batch from [`DataCollatorForCodePLAN`].

    The loss is `sum(token_weights * negative_log_likelihood)`; the weights in the batch account for λ, the lengths and
    the number of examples. If the model has a plan head, it predicts the plans. Logits are computed in chunks. For
    gradient accumulation, call [`share_divisors`] on the micro-batches of an optimizer step first.

    Args:
        model (`PreTrainedModel`, `PeftModel` or a wrapper of one):
            The student, causal or an encoder-decoder, as it is or as `accelerator.prepare` returned it.
        batch (`dict[str, torch.Tensor]`):
            `input_ids`, `attention_mask`, `labels` `[B, T]`, `token_weights` `[B, T]` and `task_ids` `[B]`, on the
            model's device.
        accelerator (`Accelerator`, *optional*):
            The accelerator that prepared the model and sets the mixed precision.

    Returns:
        `torch.Tensor`: Shape `[]`, float32, in nats, differentiable.

    Raises:
        ValueError: If the batch has no `token_weights` or was collated for another kind of model, the plan head is
            frozen or has an adapter, or the model's architecture is not supported.

    Example:

    ```python
    >>> from transformers import ByT5Tokenizer, GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=384, n_embd=8, n_layer=1, n_head=2))
    >>> from trl_akd import DataCollatorForCodePLAN
    >>> collate = DataCollatorForCodePLAN(ByT5Tokenizer(), plan_weight=0.3)
    >>> batch = collate([{"problem": "Add a and b.", "solution": "a + b", "plan": "1. Add a and b."}])
    >>> loss = codeplan_loss(model, batch)
    >>> loss.backward()

    ```
    """
    if "token_weights" not in batch:
        raise ValueError(
            f"the batch has the keys {', '.join(batch)}, but no `token_weights`; collate it with "
            "DataCollatorForCodePLAN."
        )
    student = model if accelerator is None else accelerator.unwrap_model(model)
    check_trained(student)
    inputs, labels, weights = answer_tokens(student, batch)

    def loss() -> torch.Tensor:
        if student not in _VERIFIED:
            _check_collation(batch, student)
            verify_architecture(student, inputs, role="student")
            _VERIFIED.add(student)
        with nullcontext() if accelerator is None else accelerator.autocast():
            hidden = final_hidden_states(student, inputs)[:, : labels.shape[1]]
        parts = [
            fused_linear_cross_entropy(
                hidden,
                group.output_layer(student),
                token_weights=group.select(weights, batch["task_ids"]),
                labels=labels,
            ).loss
            for group in task_groups("ce", "ce", plan_head=plan_head_of(student) is not None)
        ]
        return torch.stack(parts).sum()

    return through_forward(model, student, loss)


def _check_collation(batch: Batch, student: Any) -> None:
    """Raise a ValueError if the batch was collated for the other kind of model.

    Only the labels of a causal model begin with a masked prompt.
    """
    labels = batch["labels"]
    starts_with_target = labels[(labels != IGNORE_INDEX).any(dim=1), 0] != IGNORE_INDEX
    expected = bool(student.config.is_encoder_decoder)
    if len(starts_with_target) and bool(starts_with_target.any()) != expected:
        raise ValueError(
            f"`is_encoder_decoder` of the collator is {not expected}, but the model ({type(student).__name__}) is "
            f"{'an encoder-decoder' if expected else 'causal'}; give "
            f"DataCollatorForCodePLAN(is_encoder_decoder={expected})."
        )


def answer_tokens(student: Any, batch: Batch) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """Return the inputs of the student's backbone, and the labels and weights `[B, T]` of its first T hidden states.

    Args:
        student (`PreTrainedModel` or `PeftModel`):
            A causal model, whose labels are shifted here, or an encoder-decoder, whose decoder inputs are shifted.
        batch (`dict[str, torch.Tensor]`):
            Batch from [`DataCollatorForCodePLAN`].
    """
    inputs, labels, weights = backbone_inputs(batch), batch["labels"], batch["token_weights"]
    if student.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = student.prepare_decoder_input_ids_from_labels(labels)
        return inputs, labels, weights
    return inputs, labels[:, 1:], weights[:, 1:]


def without_repeated_problems(batch: Batch, rows: int, own: int, normalization: Normalization) -> Batch:
    """Return a batch without the labels and weights of problems that are repeated on other processes.

    Only the first `own` of its `rows` problems count. The others stay in the batch, since all processes must run the
    same forward pass. Each task is divided by its remaining items.
    """
    if len(batch["labels"]) % rows:
        return batch  # from a custom collator, whose rows are unknown
    counted = without_repeats(batch, row_numbers(batch, rows), own)
    before, after = (count_task_items(each, normalization) for each in (batch, counted))
    factors = (before / after.clamp(min=1))[batch["task_ids"]].unsqueeze(1)
    weights = batch["token_weights"].masked_fill(counted["labels"] == IGNORE_INDEX, 0.0) * factors
    return {**counted, "token_weights": weights}


def sums_by_task(result: FusedCrossEntropy | FusedDivergence, targets: Targets) -> torch.Tensor:
    """Return the weighted sums `[tasks, metrics]` of `METRICS`, with 0 for metrics that the result does not have."""
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
    """Return the value of a task's objective from the means of `METRICS`."""
    objective = args.plan_objective if task is Task.PLAN else args.code_objective
    return means["student_nll"] if objective == "ce" else loss_from_means(dict(means), beta, args)


def pooled_means(means: Sequence[Means]) -> Means:
    """Return the means over several tasks, weighted as in the loss."""
    weight = sum(mean.weight for mean in means)
    by_name = {name: sum(mean.by_name[name] * mean.weight for mean in means) / max(weight, 1e-30) for name in METRICS}
    return Means(by_name, weight)
