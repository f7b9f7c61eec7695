"""CodePLAN in a trainer of one's own: its loss, its epochs and its plan head for any `transformers.Trainer`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..akd.batches import Batch, backbone_inputs, row_numbers, without_repeats
from ..distributed import own_rows, through_forward, widest_float
from ..heads import final_hidden_states
from ..losses.fused_linear import fused_linear_cross_entropy
from ..losses.reduction import IGNORE_INDEX, Normalization, count_items_by_task
from ..teachers import verify_architecture
from .collator import DataCollatorForCodePLAN, share_divisors, take_turns
from .encoding import PROBLEM_COLUMNS, Task
from .plan_head import (
    PLAN_HEAD_FILE,
    adopt_plan_head,
    gathered_plan_head,
    load_plan_head,
    plan_head_of,
    save_plan_head,
)
from .tasks import routes, task_head

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

__all__ = [
    "CodePLANMixin",
    "EpochCallback",
    "PlanningTrainer",
    "answer_tokens",
    "codeplan_loss",
    "without_repeated_problems",
]

_UNUSED_SETTINGS = {"label_smoothing_factor", "loss_type", "completion_only_loss", "assistant_only_loss"}
_VERIFIED: WeakSet[nn.Module] = WeakSet()


def codeplan_loss(model: Any, batch: Batch, *, accelerator: Any = None) -> torch.Tensor:
    r"""Compute \((1-\lambda) L_\mathrm{code} + \lambda L_\mathrm{plan}\) of a batch from [`DataCollatorForCodePLAN`].

    The loss is `sum(token_weights * negative_log_likelihood)`, with the weights that the batch holds: λ, the lengths
    and the number of examples are in them. If the model has a plan head, plans are scored through it. Logits are made
    a chunk at a time. Micro-batches of one optimizer step first share their divisors ([`share_divisors`]).

    Args:
        model (`PreTrainedModel`, `PeftModel` or a wrapper of one):
            The student: causal, or an encoder-decoder; or what `accelerator.prepare` made of it.
        batch (`dict[str, torch.Tensor]`):
            `input_ids`, `attention_mask`, `labels` `[B, T]`, `token_weights` `[B, T]` and `task_ids` `[B]`, on the
            model's device.
        accelerator (`Accelerator`, *optional*):
            The accelerator that prepared the model; sets its mixed precision.

    Returns:
        `torch.Tensor`: shape `[]`, float32, in nats, differentiable.

    Raises:
        ValueError: If the batch has no `token_weights` or was collated for another kind of model, or the model's
            architecture is not supported.

    Example:

    ```python
    >>> from transformers import ByT5Tokenizer, GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=384, n_embd=8, n_layer=1, n_head=2))
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
    inputs, labels, weights = answer_tokens(student, batch)

    def loss() -> torch.Tensor:
        if student not in _VERIFIED:
            _check_kind(batch, student)
            verify_architecture(student, inputs, role="student")
            _VERIFIED.add(student)
        with nullcontext() if accelerator is None else accelerator.autocast():
            hidden = final_hidden_states(student, inputs)[:, : labels.shape[1]]
        parts = [
            fused_linear_cross_entropy(
                hidden,
                task_head(student, route),
                token_weights=route.select(weights, batch["task_ids"]),
                labels=labels,
            ).loss
            for route in routes("ce", "ce", plan_head=plan_head_of(student) is not None)
        ]
        return torch.stack(parts).sum()

    return through_forward(model, student, loss)


def _check_kind(batch: Batch, student: Any) -> None:
    """Refuse a batch that was collated for the other kind of model: only a causal one's labels begin with a prompt."""
    labels = batch["labels"]
    begins = labels[(labels != IGNORE_INDEX).any(dim=1), 0] != IGNORE_INDEX
    kind = bool(student.config.is_encoder_decoder)
    if len(begins) and bool(begins.any()) != kind:
        raise ValueError(
            f"`is_encoder_decoder` of the collator is {not kind}, but the model ({type(student).__name__}) is "
            f"{'an encoder-decoder' if kind else 'causal'}; give DataCollatorForCodePLAN(is_encoder_decoder={kind})."
        )


def answer_tokens(student: Any, batch: Batch) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """Return the inputs of the student's backbone, and the labels and weights `[B, T]` of its first T hidden states.

    Args:
        student (`PreTrainedModel` or `PeftModel`):
            A causal model, whose labels are shifted, or an encoder-decoder, whose decoder inputs are.
        batch (`dict[str, torch.Tensor]`):
            From [`DataCollatorForCodePLAN`].
    """
    inputs, labels, weights = backbone_inputs(batch), batch["labels"], batch["token_weights"]
    if student.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = student.prepare_decoder_input_ids_from_labels(labels)
        return inputs, labels, weights
    return inputs, labels[:, 1:], weights[:, 1:]


def without_repeated_problems(batch: Batch, rows: int, own: int, normalization: Normalization) -> Batch:
    """Return a batch in which only the first `own` problems count, each task divided by their items.

    The other examples stay, as all processes must run the same engine, but lose their labels and weights.

    Args:
        batch (`dict[str, torch.Tensor]`):
            From [`DataCollatorForCodePLAN`], of all tasks or of one.
        rows (`int`):
            Number of problems that were collated.
        own (`int`):
            Number of problems that count; the batches of other processes hold the rest as well.
        normalization (`str`):
            The collator's.
    """
    if len(batch["labels"]) % rows:
        return batch  # from a collator of another kind, whose rows cannot be told apart
    counted = without_repeats(batch, row_numbers(batch, rows), own)
    collated, left = (
        count_items_by_task(each["labels"], batch["task_ids"], tasks=len(Task), normalization=normalization)
        for each in (batch, counted)
    )
    factors = (collated / left.clamp(min=1))[batch["task_ids"]].unsqueeze(1)
    weights = batch["token_weights"].masked_fill(counted["labels"] == IGNORE_INDEX, 0.0) * factors
    return {**counted, "token_weights": weights}


class EpochCallback(TrainerCallback):
    """Tell a collator when an epoch begins, so that it draws other solutions and plans.

    A run that resumes within an epoch begins that epoch again.

    Args:
        collator ([`DataCollatorForCodePLAN`]):
            The trainer's collator.
    """

    def __init__(self, collator: DataCollatorForCodePLAN) -> None:
        self._collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw for the epoch that begins."""
        self._collator.set_epoch(int(state.epoch or 0))


class PlanningTrainer(_Trainer):
    """Methods that every trainer of a planning student needs, as a mixin before the trainer.

    Evaluations draw the same solutions and plans whatever the epoch, and the plan head is saved, loaded and pushed
    with the student.
    """

    reads_token_weights = True
    model: Any
    data_collator: Any

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return the batches of an evaluation, which draws the same solutions and plans whatever the epoch."""
        with self._drawing_once():
            batches: DataLoader[Any] = super().get_eval_dataloader(eval_dataset)
        return batches

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Return the batches of a prediction, with draws as in an evaluation."""
        with self._drawing_once():
            batches: DataLoader[Any] = super().get_test_dataloader(test_dataset)
        return batches

    @contextmanager
    def _drawing_once(self) -> Iterator[None]:
        """Put a collator that stays in epoch 0 in the place of the training's."""
        usual = self.data_collator
        if isinstance(usual, DataCollatorForCodePLAN):
            self.data_collator = replace(usual)
        try:
            yield
        finally:
            self.data_collator = usual

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if state_dict == {}:  # from ZeRO-3 that leaves the model in shards; the plan head is a file all the same
            state_dict = gathered_plan_head(self.model)
        super()._save(output_dir, state_dict)
        if self.args.should_save and plan_head_of(self.model) is None:
            save_plan_head(self.model, output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_plan_head(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if not self.is_deepspeed_enabled:  # whose own checkpoints hold all of the model
            self._load_plan_head(str(self.state.best_model_checkpoint))

    def _load_plan_head(self, checkpoint: str) -> None:
        if plan_head_of(self.model) is not None:
            load_plan_head(self.model, checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        head = Path(checkpoint_folder) / PLAN_HEAD_FILE
        if self.is_world_process_zero():
            if head.is_file():
                shutil.copy(head, str(self.args.output_dir))
            else:
                (Path(str(self.args.output_dir)) / PLAN_HEAD_FILE).unlink(missing_ok=True)
        super()._push_from_checkpoint(checkpoint_folder)


class CodePLANMixin(PlanningTrainer):
    """Give `transformers.Trainer`, or a trainer derived from it such as `trl.SFTTrainer`, the objective of CodePLAN.

    The mixin stands before the trainer: `class PlanTrainer(CodePLANMixin, Trainer)`. It takes what the trainer takes,
    with a [`DataCollatorForCodePLAN`] as `data_collator` and rows of `problem`, `solution` and `plan`, and then

    - computes [`codeplan_loss`] with one divisor per task for all micro-batches and processes of an optimizer step, as
      [`CodePLANTrainer`] does, whose losses and gradients it has;
    - tells the collator each epoch, and keeps the columns that the collator reads whatever `remove_unused_columns`;
    - scores plans through the model's plan head if it has one (`add_plan_head(model)`), and saves and loads it.

    [`CodePLANTrainer`] beyond that tokenizes and checks the data beforehand, logs the loss of each task, and learns
    from a teacher.

    Raises:
        ValueError: If the collator is not a [`DataCollatorForCodePLAN`], or if an option is set that this loss does
            not use.

    Example:

    ```python
    >>> from transformers import Trainer
    >>> class PlanTrainer(CodePLANMixin, Trainer):
    ...     pass

    ```
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._check_use()
        if plan_head_of(self.model) is not None:
            adopt_plan_head(self.model)  # an adapter that the trainer made has frozen it
        collator = self.data_collator
        self._turns = list(collator.task_weights) if collator.schedule == "alternate" else []
        encoder_decoder = bool(self.model.config.is_encoder_decoder)
        # `get_batch_samples` takes the turns: how many micro-batches a step has is known there.
        self.data_collator = replace(collator, schedule="weighted", is_encoder_decoder=encoder_decoder)
        self.add_callback(EpochCallback(self.data_collator))

    def _check_use(self) -> None:
        if not isinstance(self.data_collator, DataCollatorForCodePLAN):
            raise ValueError(
                f"`data_collator` is a {type(self.data_collator).__name__}, which gives examples no weights; give a "
                "DataCollatorForCodePLAN."
            )
        if self.compute_loss_func is not None:
            raise ValueError("`compute_loss_func` is given, but CodePLANMixin computes the loss; leave it out.")
        if self.compute_metrics is not None:
            raise ValueError(
                "`compute_metrics` is given, but an evaluation with CodePLANMixin computes the loss alone; leave it "
                "out, and judge programs with `trl-akd evaluate`."
            )
        defaults = {each.name: each.default for each in fields(self.args)}
        for name in _UNUSED_SETTINGS & defaults.keys():
            if getattr(self.args, name) != defaults[name]:
                raise ValueError(
                    f"`{name}` is {getattr(self.args, name)!r}, which CodePLAN's loss does not use; leave it out."
                )
        strategy, column = self.args.train_sampling_strategy, self.args.length_column_name
        columns = getattr(self.train_dataset, "column_names", None) or ()
        if strategy in ("group_by_length", "batch_rebalance") and column not in columns:
            raise ValueError(
                f"`train_sampling_strategy` is {strategy!r}, but the train dataset has no column {column!r}, and the "
                "collator tokenizes its rows later; add the column, or leave the strategy out."
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs are visible to a single process, whose `nn.DataParallel` would split a "
                "batch's tasks; launch with `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one of them."
            )

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Leave the rows to the collator, where TRL would tokenize them."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [*PROBLEM_COLUMNS, self.args.length_column_name]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], None]:
        """Fetch the micro-batches of one optimizer step, and let them and all processes share each task's divisor."""
        batches, collator = list(islice(epoch_iterator, num_batches)), self.data_collator
        repeats = own_rows(self.accelerator) if batches else None
        if self._turns:
            first = self.state.global_step * self.args.gradient_accumulation_steps
            batches = take_turns(batches, self._turns, first, multiple=collator.pad_to_multiple_of or 1)
        if repeats is not None:
            batches[-1] = without_repeated_problems(batches[-1], *repeats, collator.normalization)
        shared = self.accelerator if self.args.average_tokens_across_devices else None
        return share_divisors(batches, collator.normalization, device=device, accelerator=shared), None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Return the micro-batch's share of the loss; in an evaluation, the loss of the batch alone."""
        loss = codeplan_loss(model, inputs, accelerator=self.accelerator)
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**answer_tokens(self.accelerator.unwrap_model(model), inputs)[0])

    def prediction_step(
        self, model: nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        """Return the loss of a batch of an evaluation, and no logits: the loss makes them a chunk at a time.

        Problems that the batches of other processes hold as well do not count.
        """
        repeats = own_rows(self.accelerator)
        problems = len(inputs["labels"]) / len(self.data_collator.task_weights)
        if repeats is not None:
            inputs = without_repeated_problems(inputs, *repeats, self.data_collator.normalization)
            problems = repeats[1]
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs)).detach()
        self._evaluated += torch.stack([loss * problems, torch.full_like(loss, problems)]).to(self._evaluated)
        return loss, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate, and report the mean loss per problem over the batches of all processes."""
        device = self.accelerator.device
        self._evaluated = torch.zeros(2, dtype=widest_float(device), device=device)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss, problems = self.accelerator.reduce(self._evaluated, "sum").tolist()
        if problems:
            output.metrics[f"{metric_key_prefix}_loss"] = loss / problems
        return output
