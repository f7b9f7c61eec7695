"""Rows of problems to batches of CodePLAN's tasks, each token with its weight in the loss."""

import inspect
import math
import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from types import CodeType
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.collators import pad, round_up
from ..losses.reduction import IGNORE_INDEX, Normalization, count_items_by_task, scale, token_weights
from .encoding import UNKNOWN_SOLUTION, ProblemEncoder, Task

__all__ = [
    "DataCollatorForCodePLAN",
    "Schedule",
    "draw",
    "of_task",
    "share_divisors",
    "take_turns",
    "weights_of_tasks",
]

Schedule: TypeAlias = Literal["weighted", "alternate"]
Option = TypeVar("Option")


def draw(options: Sequence[Option], *key: Any) -> Option:
    """Draw one of the options; the draw depends on `key` alone, and is uniform over keys.

    Example:

    ```python
    >>> [draw("abc", 0, epoch) for epoch in range(6)] == [draw("abc", 0, epoch) for epoch in range(6)]
    True

    ```
    """
    return options[random.Random(":".join(map(str, key))).randrange(len(options))]


def weights_of_tasks(plan_weight: float, guided_weight: float) -> dict[Task, float]:
    """Return the weight of each task's mean loss in the whole.

    Args:
        plan_weight (`float`): λ, the plan's share, in [0, 1].
        guided_weight (`float`): weight of programs that follow a plan; 0 where they are no task.

    Raises:
        ValueError: If one is out of its range.

    Example:

    ```python
    >>> weights_of_tasks(plan_weight=0.25, guided_weight=0.0)
    {<Task.CODE: 0>: 0.75, <Task.PLAN: 1>: 0.25}

    ```
    """
    for name, weight in (("plan_weight", plan_weight), ("guided_weight", guided_weight)):
        if not isinstance(weight, Real):
            raise ValueError(f"`{name}` is {weight!r}, of type {type(weight).__name__}; give a number.")
    if not 0.0 <= plan_weight <= 1.0:
        raise ValueError(f"`plan_weight` is {plan_weight}; it is the plan's share of the loss and must lie in [0, 1].")
    if not (guided_weight >= 0.0 and math.isfinite(guided_weight)):
        raise ValueError(f"`guided_weight` is {guided_weight}; it weighs a loss: give 0 or a positive, finite number.")
    weights = {Task.CODE: 1.0 - plan_weight, Task.PLAN: plan_weight}
    return weights | {Task.GUIDED: guided_weight} if guided_weight > 0.0 else weights


@dataclass
class DataCollatorForCodePLAN:
    r"""Make a code example and a plan example of every problem, padded, masked and weighted.

    `(token_weights * negative_log_likelihood).sum()` is the loss of CodePLAN for this batch alone,
    `(1 - plan_weight) * L_code + plan_weight * L_plan`, where each `L` is the mean over the task's examples of the
    mean over their target tokens. The paper writes sums over tokens, with which long programs would drown short plans.
    `CodePLANTrainer` and `CodePLANMixin`, for any other `transformers.Trainer`, replace the batch's number of examples
    by that of the global batch. Models ignore `token_weights`: a Trainer whose loss is transformers' or TRL's own is
    refused. In a training loop of one's own, `codeplan_loss` computes the loss.

    Where a problem has several solutions or plans, each example draws its own, anew in each epoch. A draw depends on
    `seed`, the epoch, the problem and the task alone, so all processes agree and a resumed run repeats none.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the student's tokenizer, with an EOS token.
        plan_weight (`float`, *optional*, defaults to `0.5`): λ, the plan's share of the loss, in [0, 1].
        schedule (`str`, *optional*, defaults to `"weighted"`): `"weighted"`: both tasks in every batch. `"alternate"`:
            one task a batch, in turn from call to call, with weights `2 * (1 - plan_weight)` and `2 * plan_weight`, so
            that the mean over batches is the same in expectation.
        max_length (`int`, *optional*, defaults to `1024`): most tokens of a prompt with its answer; of the prompt
            alone for an encoder-decoder. A prompt is never cut, nor is a plan; a solution loses its end.
        max_target_length (`int`, *optional*): most tokens of an answer. Defaults to `max_length`.
        guided_weight (`float`, *optional*, defaults to `0.0`): above 0, each problem also gives an example of a
            program that follows a plan, whose loss is added with this weight. The paper never trains it. Where
            the row tells which solution each plan was written for (`plan_solutions`), the program is that one; else
            plan and solution are drawn independently.
        normalization (`str`, *optional*, defaults to `"sequence"`): `"token"` makes each `L` the mean over all target
            tokens of the task.
        is_encoder_decoder (`bool`, *optional*, defaults to `False`): `input_ids` then are the prompt alone, and
            `labels` the answer alone.
        seed (`int`, *optional*, defaults to `0`): seed of the draws.
        pad_to_multiple_of (`int`, *optional*): round widths up to a multiple of this.

    Raises:
        ValueError: If a setting is out of its range; when called, if a row lacks a problem, a solution or a plan, if a
            prompt or plan is too long, or if it is called by a Trainer whose loss ignores `token_weights`.

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
        self.task_weights = weights_of_tasks(self.plan_weight, self.guided_weight)
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
        # In shared memory, so that worker processes which outlive an epoch see the next one begin.
        self._epoch: Tensor = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """Check the caller here too: worker processes that are spawned do not have the Trainer on their stack."""
        self._check_caller()
        return self.__dict__

    def set_epoch(self, epoch: int) -> None:
        """Draw solutions and plans for this epoch from now on."""
        self._epoch.fill_(epoch)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return int64 tensors `input_ids`, `attention_mask`, `labels` [B, T] and `task_ids` [B], and `token_weights`.

        The weights are float32 [B, T], aligned with `labels`: not shifted. For an encoder-decoder, `labels` and
        weights have a width of their own. Examples are in the order of the tasks, then of the rows.
        """
        self._check_caller()
        weights = self.task_weights
        if self.schedule == "alternate":
            turn = list(weights)[self._calls % len(weights)]
            weights = {turn: len(weights) * weights[turn]}
            self._calls += 1
        problems = [row if "code_prompt" in row else self._encode(row, number) for number, row in enumerate(rows)]
        examples = [self._example(problem, task) for task in weights for problem in problems]
        task_ids = torch.tensor([task for task in weights for _ in problems])
        batch = self._pad(examples)
        return {**batch, "token_weights": self._weigh(batch["labels"], task_ids, weights), "task_ids": task_ids}

    def _encode(self, row: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Tokenise a row that has no number in a dataset, so that its problem tells it from others."""
        return self.encoder(row, number) | {"index": row.get("index", row["problem"])}

    def _check_caller(self) -> None:
        if not self._caller_checked:
            _refuse_other_losses()
            self._caller_checked = True

    def _example(self, problem: Mapping[str, Any], task: Task) -> tuple[list[int], list[int]]:
        """Return the tokens of a prompt and of its answer."""
        key = (self.seed, int(self._epoch), problem["index"], task.name)
        solutions = problem["solutions"]
        if task is Task.PLAN:
            prompt, answers = problem["plan_prompt"], problem["plans"]
        elif task is Task.CODE:
            prompt, answers = problem["code_prompt"], solutions
        else:
            prompt, solution = draw(list(zip(*_guided(problem), strict=True)), *key, "plan")
            answers = solutions if solution == UNKNOWN_SOLUTION else [solutions[solution]]
        return prompt, draw(answers, *key)[: self.encoder.room(prompt)]

    def _pad(self, examples: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        if self.is_encoder_decoder:
            inputs = [prompt for prompt, _ in examples]
            labels = [answer for _, answer in examples]
        else:
            inputs = [prompt + answer for prompt, answer in examples]
            labels = [[IGNORE_INDEX] * len(prompt) + answer for prompt, answer in examples]
        filler = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        width, label_width = (round_up(max(map(len, rows)), self.pad_to_multiple_of or 1) for rows in (inputs, labels))
        return {
            "input_ids": pad(inputs, filler, width),
            "attention_mask": pad([[1] * len(tokens) for tokens in inputs], 0, width),
            "labels": pad(labels, IGNORE_INDEX, label_width),
        }

    def _weigh(self, labels: Tensor, task_ids: Tensor, task_weights: Mapping[Task, float]) -> Tensor:
        by_task = torch.tensor([task_weights.get(task, 0.0) for task in Task])
        weights = token_weights(
            labels, normalization=self.normalization, task_weights=by_task[task_ids].unsqueeze(1).expand_as(labels)
        )
        items = count_items_by_task(labels, task_ids, tasks=len(Task), normalization=self.normalization)
        return scale(weights, items, world_size=1, task_ids=task_ids)


def share_divisors(
    batches: Sequence[dict[str, Tensor]],
    normalization: Normalization,
    *,
    device: torch.device | None = None,
    accelerator: Any = None,
) -> list[dict[str, Tensor]]:
    """Weigh the micro-batches of one optimizer step so that their losses add up to the loss of the whole batch.

    Each task then has one divisor for all micro-batches and, with an accelerator, all processes, whose gradients are
    averaged by DDP and DeepSpeed.

    Args:
        batches (`Sequence[dict[str, Tensor]]`): from [`DataCollatorForCodePLAN`], each with its own divisors.
        normalization (`str`): the collator's.
        device (`torch.device`, *optional*): device on which items are counted. Defaults to that of the batches.
        accelerator (`Accelerator`, *optional*): adds up the counts of its processes, which all call this together.

    Returns:
        `list[dict[str, Tensor]]`: The batches with other `token_weights`.
    """
    counts = [
        count_items_by_task(batch["labels"], batch["task_ids"], tasks=len(Task), normalization=normalization)
        for batch in batches
    ]
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


def take_turns(
    batches: Sequence[dict[str, Tensor]], tasks: Sequence[Task], first: int, *, multiple: int = 1
) -> list[dict[str, Tensor]]:
    """Leave each micro-batch of one optimizer step the task whose turn it is, as `schedule="alternate"` says.

    A task's loss is a mean over the examples of the whole step, so it counts by its share of the micro-batches.

    Args:
        batches (`Sequence[dict[str, Tensor]]`): from [`DataCollatorForCodePLAN`], with all tasks in each.
        tasks (`Sequence[Task]`): the tasks, in the order of their turns.
        first (`int`): number of the step's first micro-batch in the run.
        multiple (`int`, *optional*, defaults to `1`): round widths up to a multiple of this.
    """
    turns = [tasks[(first + number) % len(tasks)] for number in range(len(batches))]
    shares = {task: count / len(turns) for task, count in Counter(turns).items()}
    return [
        of_task(batch, task, len(tasks) * shares[task], multiple=multiple)
        for batch, task in zip(batches, turns, strict=True)
    ]


def of_task(batch: Mapping[str, Tensor], task: Task, factor: float, *, multiple: int = 1) -> dict[str, Tensor]:
    """Take the examples of one task out of a batch, with weights multiplied by `factor`, and cut off spare padding.

    Args:
        batch (`Mapping[str, Tensor]`): from [`DataCollatorForCodePLAN`].
        task (`Task`): the task.
        factor (`float`): how often the task's share of the loss counts.
        multiple (`int`, *optional*, defaults to `1`): round widths up to a multiple of this.
    """
    rows = batch["task_ids"] == task
    taken = {key: value[rows] for key, value in batch.items()}
    width = round_up(int(taken["attention_mask"].sum(dim=1).max()), multiple)
    label_width = round_up(int((taken["labels"] != IGNORE_INDEX).nonzero()[:, 1].max()) + 1, multiple)
    return {
        "input_ids": taken["input_ids"][:, :width],
        "attention_mask": taken["attention_mask"][:, :width],
        "labels": taken["labels"][:, :label_width],
        "token_weights": taken["token_weights"][:, :label_width] * factor,
        "task_ids": taken["task_ids"],
    }


def _guided(problem: Mapping[str, Any]) -> tuple[Sequence[list[int]], Sequence[int]]:
    """Return the prompts that hold a plan, and the number of the solution that each plan was written for."""
    prompts = problem["guided_prompts"]
    return prompts, problem.get("plan_solutions") or [UNKNOWN_SOLUTION] * len(prompts)


def _refuse_other_losses() -> None:
    """Raise a ValueError if a Trainer is calling whose `compute_loss` does not read `token_weights`.

    Models take unknown inputs as `**kwargs`, so the tasks would be trained with the weights of the lengths.
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
                    f"`token_weights`, so `plan_weight` would do nothing; derive the trainer from both, `class "
                    f"PlanTrainer(CodePLANMixin, {name})`, or use CodePLANTrainer."
                )
            return
        frame = frame.f_back


def _reads_token_weights(trainer_class: type) -> bool:
    """Tell whether the `compute_loss` of a Trainer reads `token_weights`.

    That of transformers and TRL does not. One that is defined elsewhere does, unless it leaves the loss to its base
    class: where it calls `super().compute_loss` and names neither the weights nor `codeplan_loss`, the base class
    decides.
    """
    for base in trainer_class.__mro__:
        loss = vars(base).get("compute_loss")
        if loss is None:
            continue
        home = base.__module__.partition(".")[0]
        if home in ("transformers", "trl"):
            return False
        if home == "trl_akd":
            return bool(getattr(trainer_class, "reads_token_weights", False))
        code = inspect.unwrap(loss).__code__ if inspect.isroutine(loss) else None
        if code is None or not _leaves_to_base(code):
            return True
    return False


def _leaves_to_base(code: CodeType) -> bool:
    return (
        "compute_loss" in code.co_names
        and "token_weights" not in code.co_consts
        and "codeplan_loss" not in code.co_names
    )
