"""Collate problems to batches of CodePLAN's tasks with the weight of each token in the loss."""

import inspect
import math
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from types import CodeType
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerBase

from ..data.collators import pad, round_up, used_width
from ..losses.reduction import IGNORE_INDEX, Normalization, count_items_by_task, scale, token_weights
from .encoding import UNKNOWN_SOLUTION, ProblemEncoder, Task, is_tokenized

__all__ = [
    "DataCollatorForCodePLAN",
    "Schedule",
    "alternate_tasks",
    "count_task_items",
    "draw",
    "select_task",
    "share_divisors",
    "task_loss_weights",
]

Schedule: TypeAlias = Literal["weighted", "alternate"]
Option = TypeVar("Option")


def draw(options: Sequence[Option], *key: Any) -> Option:
    """Return a random option that depends on `key` alone.

    Example:

    ```python
    >>> [draw("abc", 0, epoch) for epoch in range(6)] == [draw("abc", 0, epoch) for epoch in range(6)]
    True

    ```
    """
    return options[random.Random(":".join(map(str, key))).randrange(len(options))]


def task_loss_weights(plan_weight: float, guided_weight: float) -> dict[Task, float]:
    """Return the weight of each task's mean loss in the total loss.

    Args:
        plan_weight (`float`):
            λ, the weight of plans, in [0, 1].
        guided_weight (`float`):
            Weight of programs that follow a plan; 0 to leave this task out.

    Raises:
        ValueError: If a weight is outside its range.

    Example:

    ```python
    >>> task_loss_weights(plan_weight=0.25, guided_weight=0.0)
    {<Task.CODE: 0>: 0.75, <Task.PLAN: 1>: 0.25}

    ```
    """
    for name, weight in (("plan_weight", plan_weight), ("guided_weight", guided_weight)):
        if not isinstance(weight, Real):
            raise ValueError(f"`{name}` is {weight!r}, of type {type(weight).__name__}; give a number.")
    if not 0.0 <= plan_weight <= 1.0:
        raise ValueError(
            f"`plan_weight` is {plan_weight}; it is the weight of plans in the loss and must be in [0, 1]."
        )
    if not (guided_weight >= 0.0 and math.isfinite(guided_weight)):
        raise ValueError(
            f"`guided_weight` is {guided_weight}; it is the weight of a loss: give 0 or a positive, finite number."
        )
    weights = {Task.CODE: 1.0 - plan_weight, Task.PLAN: plan_weight}
    return weights | {Task.GUIDED: guided_weight} if guided_weight > 0.0 else weights


@dataclass
class DataCollatorForCodePLAN:
    r"""Make a code example and a plan example of each problem, with padding, masks and token weights.

    `(token_weights * negative_log_likelihood).sum()` is CodePLAN's loss of the batch,
    `(1 - plan_weight) * L_code + plan_weight * L_plan`, where each `L` is the mean over the task's examples of the
    mean over their target tokens. The paper has sums over tokens, by which long programs would outweigh short plans.
    `CodePLANTrainer`, and `CodePLANMixin` for any other `transformers.Trainer`, replace the number of examples in the
    batch by that in the global batch. Models ignore `token_weights`: a Trainer with the loss of transformers or TRL is
    an error. For a custom training loop, `codeplan_loss` computes the loss.

    If a problem has several solutions or plans, each example draws one of them in each epoch. A draw depends on
    `seed`, the epoch, the problem and the task alone, so all processes agree and a resumed run continues the sequence.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The student's tokenizer, with an EOS token.
        plan_weight (`float`, *optional*, defaults to `0.5`):
            λ, the weight of plans in the loss, in [0, 1].
        schedule (`str`, *optional*, defaults to `"weighted"`):
            `"weighted"`: both tasks in every batch. `"alternate"`: one task per batch, alternating from call to call,
            with weights `2 * (1 - plan_weight)` and `2 * plan_weight`, so that the mean over batches has the same
            expectation. The trainers alternate themselves; a custom loop whose DataLoader has workers calls
            [`alternate_tasks`] on batches of the schedule `"weighted"`.
        max_length (`int`, *optional*, defaults to `1024`):
            Maximum number of tokens per prompt and answer together, or per prompt for an encoder-decoder. Solutions
            are truncated; prompts and plans are not.
        max_target_length (`int`, *optional*):
            Maximum number of tokens per answer; by default `max_length` is the only limit.
        guided_weight (`float`, *optional*, defaults to `0.0`):
            Weight of a third task, a program that follows a plan, which the paper does not train; 0 for none. If the
            row has the solution of each plan (`plan_solutions`), the program is that solution; otherwise plan and
            solution are drawn independently.
        normalization (`str`, *optional*, defaults to `"sequence"`):
            With `"token"`, each `L` is the mean over all target tokens of the task.
        is_encoder_decoder (`bool`, *optional*, defaults to `False`):
            Whether `input_ids` are the prompt alone and `labels` the answer alone.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.
        pad_to_multiple_of (`int`, *optional*):
            Pad to a multiple of this.

    Raises:
        ValueError: If a setting is outside its range; when called, if a row lacks a problem, solution or plan, if a
            prompt or plan is too long, if a row was tokenized with other settings, if `schedule` is `"alternate"` in
            a worker of a DataLoader, or if the caller is a Trainer whose loss ignores `token_weights`.

    Example:

    ```python
    >>> from transformers import ByT5Tokenizer
    >>> tokenizer = ByT5Tokenizer()
    >>> collate = DataCollatorForCodePLAN(tokenizer, plan_weight=0.25, is_encoder_decoder=True)
    >>> batch = collate([{"problem": "Add a and b.", "solution": "a + b", "plan": "1. Add a and b."}])
    >>> batch["task_ids"].tolist(), batch["token_weights"].sum(dim=1).tolist()
    ([0, 1], [0.75, 0.25])
    >>> tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
    'a + b</s>'

    ```
    """

    tokenizer: PreTrainedTokenizerBase
    plan_weight: float = 0.5
    schedule: Schedule = "weighted"
    max_length: int | None = 1024
    max_target_length: int | None = None
    guided_weight: float = 0.0
    normalization: Normalization = "sequence"
    is_encoder_decoder: bool = False
    seed: int = 0
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.tokenizer, PreTrainedTokenizerBase):
            raise ValueError(
                f"`tokenizer` is {self.tokenizer!r:.80}, of type {type(self.tokenizer).__name__}; give a tokenizer, "
                "such as AutoTokenizer.from_pretrained(...)."
            )
        self.task_weights = task_loss_weights(self.plan_weight, self.guided_weight)
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"`schedule` is {self.schedule!r}; choose 'weighted' or 'alternate'.")
        if self.normalization not in get_args(Normalization):
            raise ValueError(f"`normalization` is {self.normalization!r}; choose 'sequence' or 'token'.")
        self.encoder = ProblemEncoder(
            self.tokenizer,
            self.max_length,
            self.max_target_length,
            self.is_encoder_decoder,
            guided=self.guided_weight > 0.0,
        )
        self._calls = 0
        self._caller_checked = False
        # In shared memory, for worker processes that persist over epochs.
        self._epoch: Tensor = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """Check the caller here as well, since the stack of a spawned worker process does not contain the Trainer."""
        self._check_caller()
        return self.__dict__

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch on which the draws of solutions and plans depend."""
        self._epoch.fill_(epoch)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return int64 tensors `input_ids`, `attention_mask`, `labels` [B, T] and `task_ids` [B], and `token_weights`.

        The weights are float32 [B, T] and aligned with `labels`, not shifted. For an encoder-decoder, `labels` and
        weights are padded separately. Examples are sorted by task, then by row.
        """
        self._check_caller()
        weights = self.task_weights
        if self.schedule == "alternate":
            if get_worker_info() is not None:
                raise ValueError(
                    "`schedule` is 'alternate' in a worker of a DataLoader, which does not know the other workers' "
                    "batches; set num_workers=0, or schedule='weighted' and call `alternate_tasks` on the batches of "
                    "a step."
                )
            turn = list(weights)[self._calls % len(weights)]
            weights = {turn: len(weights) * weights[turn]}
            self._calls += 1
        problems = [self._tokenized(row, number) for number, row in enumerate(rows)]
        examples = [self._example(problem, task) for task in weights for problem in problems]
        task_ids = torch.tensor([task for task in weights for _ in problems])
        batch = self._pad(examples)
        return {
            **batch,
            "token_weights": self._token_weights(batch["labels"], task_ids, weights),
            "task_ids": task_ids,
        }

    def _tokenized(self, row: Mapping[str, Any], number: int) -> Mapping[str, Any]:
        """Return the tokenized row, with its problem as the key of the draws if it has no index in a dataset."""
        if is_tokenized(row):
            self.encoder.check(row)
            return row
        return self.encoder(row, number) | {"index": row.get("index", row["problem"])}

    def _check_caller(self) -> None:
        if not self._caller_checked:
            _check_loss_of_caller()
            self._caller_checked = True

    def _example(self, problem: Mapping[str, Any], task: Task) -> tuple[list[int], list[int]]:
        """Return the tokens of the prompt and of the answer."""
        key = (self.seed, int(self._epoch), problem["index"], task.name)
        prompt, answers = draw(_options(problem, task), *key, "plan")
        return prompt, draw(answers, *key)[: self.encoder.max_answer_tokens(prompt)]

    def examples(self, problem: Mapping[str, Any], task: Task) -> Iterator[tuple[list[int], list[int]]]:
        """Yield the tokens of prompt and answer of each example that may be drawn for a tokenized problem."""
        for prompt, answers in _options(problem, task):
            yield from ((prompt, answer[: self.encoder.max_answer_tokens(prompt)]) for answer in answers)

    def _pad(self, examples: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        if self.is_encoder_decoder:
            inputs = [prompt for prompt, _ in examples]
            labels = [answer for _, answer in examples]
        else:
            inputs = [prompt + answer for prompt, answer in examples]
            labels = [[IGNORE_INDEX] * len(prompt) + answer for prompt, answer in examples]
        pad_id = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        width, label_width = (round_up(max(map(len, rows)), self.pad_to_multiple_of or 1) for rows in (inputs, labels))
        return {
            "input_ids": pad(inputs, pad_id, width),
            "attention_mask": pad([[1] * len(tokens) for tokens in inputs], 0, width),
            "labels": pad(labels, IGNORE_INDEX, label_width),
        }

    def _token_weights(self, labels: Tensor, task_ids: Tensor, task_weights: Mapping[Task, float]) -> Tensor:
        by_task = torch.tensor([task_weights.get(task, 0.0) for task in Task])
        weights = token_weights(
            labels, normalization=self.normalization, task_weights=by_task[task_ids].unsqueeze(1).expand_as(labels)
        )
        items = count_task_items({"labels": labels, "task_ids": task_ids}, self.normalization)
        return scale(weights, items, world_size=1, task_ids=task_ids)


def count_task_items(batch: Mapping[str, Tensor], normalization: Normalization) -> Tensor:
    """Return the divisor of each task in a batch, `[tasks]`: its number of examples or of target tokens."""
    return count_items_by_task(batch["labels"], batch["task_ids"], tasks=len(Task), normalization=normalization)


def share_divisors(
    batches: Sequence[dict[str, Tensor]],
    normalization: Normalization,
    *,
    device: torch.device | None = None,
    accelerator: Any = None,
) -> list[dict[str, Tensor]]:
    """Reweight the micro-batches of one optimizer step so that their losses add up to the loss of the global batch.

    Each task has one divisor for all micro-batches and, with an accelerator, all processes, whose gradients DDP and
    DeepSpeed average.

    Args:
        batches (`Sequence[dict[str, Tensor]]`):
            Batches from [`DataCollatorForCodePLAN`], each with its own divisors.
        normalization (`str`):
            `normalization` of the collator.
        device (`torch.device`, *optional*):
            Device of the counts; by default that of the batches.
        accelerator (`Accelerator`, *optional*):
            Sums the counts over its processes, all of which must call this function.

    Returns:
        `list[dict[str, Tensor]]`: The batches with new `token_weights`.
    """
    counts = [count_task_items(batch, normalization) for batch in batches]
    items = sum((count.to(device) for count in counts), start=torch.zeros(len(Task), dtype=torch.int64, device=device))
    ranks = 1
    if accelerator is not None:
        items, ranks = accelerator.reduce(items, "sum"), accelerator.num_processes
    return [
        {
            **batch,
            "token_weights": scale(
                batch["token_weights"] * count[batch["task_ids"]].unsqueeze(1), items, ranks, batch["task_ids"]
            ),
        }
        for batch, count in zip(batches, counts, strict=True)
    ]


def alternate_tasks(
    batches: Sequence[dict[str, Tensor]], tasks: Sequence[Task], first: int, *, multiple: int = 1
) -> list[dict[str, Tensor]]:
    """Keep one task per micro-batch of one optimizer step, alternating, for `schedule="alternate"`.

    The order of tasks depends on `first`, the number of the step's first micro-batch in the run. A task's loss is a
    mean over the examples of the step, so it is weighted by the task's fraction of the micro-batches.
    """
    order = [tasks[(first + number) % len(tasks)] for number in range(len(batches))]
    counts = Counter(order)
    return [
        select_task(batch, task, len(tasks) * counts[task] / len(order), multiple=multiple)
        for batch, task in zip(batches, order, strict=True)
    ]


def select_task(batch: Mapping[str, Tensor], task: Task, factor: float, *, multiple: int = 1) -> dict[str, Tensor]:
    """Return the examples of one task in a batch, without excess padding, and their weights multiplied by `factor`."""
    [rows] = (batch["task_ids"] == task).nonzero(as_tuple=True)
    selected = {key: value[rows] for key, value in batch.items()}
    masks = selected["attention_mask"], selected["labels"] != IGNORE_INDEX
    widths = torch.stack([used_width(mask) for mask in masks]).tolist()
    width, label_width = (round_up(max(used, 1), multiple) for used in widths)
    return {
        "input_ids": selected["input_ids"][:, :width],
        "attention_mask": selected["attention_mask"][:, :width],
        "labels": selected["labels"][:, :label_width],
        "token_weights": selected["token_weights"][:, :label_width] * factor,
        "task_ids": selected["task_ids"],
    }


def _options(problem: Mapping[str, Any], task: Task) -> list[tuple[list[int], list[list[int]]]]:
    """Return the prompts of a task, each with its possible answers."""
    solutions = problem["solutions"]
    if task is Task.PLAN:
        return [(problem["plan_prompt"], problem["plans"])]
    if task is Task.CODE:
        return [(problem["code_prompt"], solutions)]
    prompts = problem["guided_prompts"]
    known = problem.get("plan_solutions") or [UNKNOWN_SOLUTION] * len(prompts)
    return [
        (prompt, solutions if solution == UNKNOWN_SOLUTION else [solutions[solution]])
        for prompt, solution in zip(prompts, known, strict=True)
    ]


def _check_loss_of_caller() -> None:
    """Raise a ValueError if the caller is a Trainer whose `compute_loss` does not read `token_weights`.

    Models accept unknown inputs as `**kwargs`, so training would silently ignore the weights of the tasks.
    """
    if "transformers.trainer" not in sys.modules:
        return
    trainer_class = sys.modules["transformers.trainer"].Trainer
    frame = sys._getframe(1).f_back
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, trainer_class):
            if not _reads_token_weights(type(caller)):
                name = type(caller).__name__
                raise ValueError(
                    f"`data_collator` of a {name} is a DataCollatorForCodePLAN, but the loss of {name} ignores its "
                    f"`token_weights`, so `plan_weight` would have no effect; define the trainer as `class "
                    f"PlanTrainer(CodePLANMixin, {name})`, or use CodePLANTrainer."
                )
            return
        frame = frame.f_back


def _reads_token_weights(trainer_class: type) -> bool:
    """Return whether the `compute_loss` of a Trainer reads `token_weights`.

    Those of transformers and TRL do not. Any other is assumed to read them, unless it delegates to its base class: if
    it calls `super().compute_loss` and names neither the weights nor `codeplan_loss`, the base class decides.
    """
    for base in trainer_class.__mro__:
        loss = vars(base).get("compute_loss")
        if loss is None:
            continue
        package = base.__module__.partition(".")[0]
        if package in ("transformers", "trl"):
            return False
        if package == "trl_akd":
            return bool(getattr(trainer_class, "reads_token_weights", False))
        code = inspect.unwrap(loss).__code__ if inspect.isroutine(loss) else None
        if code is None or not _delegates_to_base(code):
            return True
    return False


def _delegates_to_base(code: CodeType) -> bool:
    return (
        "compute_loss" in code.co_names
        and "token_weights" not in code.co_consts
        and "codeplan_loss" not in code.co_names
    )
