"""CodePLAN's loss, draws and plan head for any `transformers.Trainer`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..akd.batches import Batch
from ..distributed import own_rows, widest_float
from .collator import DataCollatorForCodePLAN, alternate_tasks, share_divisors
from .encoding import PROBLEM_COLUMNS
from .objective import answer_tokens, codeplan_loss, without_repeated_problems
from .plan_head import (
    PLAN_HEAD_FILE,
    adopt_plan_head,
    gathered_plan_head,
    load_plan_head,
    plan_head_of,
    save_plan_head,
)

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

__all__ = ["CodePLANMixin", "EpochCallback", "PlanningTrainer", "codeplan_loss"]

# Settings that CodePLAN does not use, with the values that ask for nothing else. TRL before 1.15 resolves its default
# of `loss_type` to one of the two.
_UNUSED_SETTINGS: dict[str, tuple[Any, ...]] = {
    "label_smoothing_factor": (0.0,),
    "loss_type": ("nll", "chunked_nll"),
    "completion_only_loss": (None,),
    "assistant_only_loss": (False,),
    "shuffle_dataset": (False,),
}


class EpochCallback(TrainerCallback):
    """Set the collator's epoch at the beginning of each epoch, so that it draws other solutions and plans.

    A run that resumes within an epoch continues with the draws of that epoch.

    Args:
        collator ([`DataCollatorForCodePLAN`]):
            The trainer's collator.
    """

    def __init__(self, collator: DataCollatorForCodePLAN) -> None:
        self._collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch of the collator."""
        self._collator.set_epoch(int(state.epoch or 0))


class PlanningTrainer(_Trainer):
    """Base class of trainers of students that plan, to be listed before the trainer class.

    Evaluation draws the same solutions and plans in every epoch, and the plan head is saved, loaded and pushed with
    the student.
    """

    reads_token_weights = True
    model: Any
    data_collator: Any

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return the batches of an evaluation, with the same draws in every epoch."""
        with self._fixed_draws():
            batches: DataLoader[Any] = super().get_eval_dataloader(eval_dataset)
        return batches

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Return the batches of a prediction, with draws as in an evaluation."""
        with self._fixed_draws():
            batches: DataLoader[Any] = super().get_test_dataloader(test_dataset)
        return batches

    @contextmanager
    def _fixed_draws(self) -> Iterator[None]:
        """Replace the collator by a copy that stays in epoch 0 inside the context."""
        collator = self.data_collator
        if isinstance(collator, DataCollatorForCodePLAN):
            self.data_collator = replace(collator)
        try:
            yield
        finally:
            self.data_collator = collator

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if state_dict == {}:  # with ZeRO-3, if the model is saved in shards
            state_dict = gathered_plan_head(self.model)
        super()._save(output_dir, state_dict)
        if self.args.should_save and plan_head_of(self.model) is None:
            save_plan_head(self.model, output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_plan_head(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if not self.is_deepspeed_enabled:  # DeepSpeed's checkpoints contain the plan head
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
    """Mixin that adds CodePLAN's loss to `transformers.Trainer` or a subclass of it, such as `trl.SFTTrainer`.

    It is listed before the trainer: `class PlanTrainer(CodePLANMixin, Trainer)`. The arguments are those of the
    trainer, with a [`DataCollatorForCodePLAN`] as `data_collator` and rows of `problem`, `solution` and `plan`. It

    - computes [`codeplan_loss`] with one divisor per task for all micro-batches and processes of an optimizer step, so
      losses and gradients equal those of [`CodePLANTrainer`];
    - sets the collator's epoch, and keeps the columns that the collator reads even with `remove_unused_columns`;
    - predicts plans by the model's plan head if it has one (`add_plan_head(model)`), and saves and loads it.

    [`CodePLANTrainer`] in addition tokenizes and checks the data before training, logs the loss of each task, and
    supports a teacher.

    Raises:
        ValueError: If the collator is not a [`DataCollatorForCodePLAN`], or an option is set that this loss does not
            use.

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
        self._check_settings()
        if plan_head_of(self.model) is not None:
            adopt_plan_head(self.model)  # frozen if the trainer created an adapter
        collator = self.data_collator
        self._alternating = list(collator.task_weights) if collator.schedule == "alternate" else []
        encoder_decoder = bool(self.model.config.is_encoder_decoder)
        # `get_batch_samples` alternates the tasks, since it knows the number of micro-batches per step.
        self.data_collator = replace(collator, schedule="weighted", is_encoder_decoder=encoder_decoder)
        self.add_callback(EpochCallback(self.data_collator))

    def _check_settings(self) -> None:
        if not isinstance(self.data_collator, DataCollatorForCodePLAN):
            raise ValueError(
                f"`data_collator` is a {type(self.data_collator).__name__}, which returns no token weights; give a "
                "DataCollatorForCodePLAN."
            )
        for name, neutral in _UNUSED_SETTINGS.items():
            value = getattr(self.args, name, neutral[0])
            if value not in neutral:
                raise ValueError(f"`{name}` is {value!r}, which CodePLANMixin does not use; leave it out.")
        multiple = getattr(self.args, "pad_to_multiple_of", None)
        if multiple not in (None, self.data_collator.pad_to_multiple_of):
            raise ValueError(
                f"`pad_to_multiple_of` is {multiple}, but the collator, which pads the batches, has "
                f"{self.data_collator.pad_to_multiple_of}; give it to DataCollatorForCodePLAN."
            )
        if self.compute_loss_func is not None:
            raise ValueError("`compute_loss_func` is given, but CodePLANMixin computes the loss; leave it out.")
        if self.compute_metrics is not None:
            raise ValueError(
                "`compute_metrics` is given, but an evaluation with CodePLANMixin computes the loss alone; leave it "
                "out, and evaluate programs with `trl-akd evaluate`."
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
                f"{self.args.n_gpu} GPUs are visible to a single process, whose `nn.DataParallel` would split the "
                "tasks of a batch; launch with `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one of them."
            )

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        """Return the rows unchanged, since the collator tokenizes them."""
        if formatting_func is not None:
            raise ValueError(
                "`formatting_func` is given, but the collator of CodePLANMixin reads the columns `problem`, "
                "`solution` and `plan`; leave it out."
            )
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [*PROBLEM_COLUMNS, self.args.length_column_name]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], None]:
        """Fetch the micro-batches of one optimizer step, with a shared divisor per task over all processes."""
        batches, collator = list(islice(epoch_iterator, num_batches)), self.data_collator
        repeats = own_rows(self.accelerator) if batches else None
        if self._alternating:
            first = self.state.global_step * self.args.gradient_accumulation_steps
            batches = alternate_tasks(batches, self._alternating, first, multiple=collator.pad_to_multiple_of or 1)
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
        """Return the micro-batch's part of the global loss, or the loss of the batch in an evaluation."""
        loss = codeplan_loss(model, inputs, accelerator=self.accelerator)
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**answer_tokens(self.accelerator.unwrap_model(model), inputs)[0])

    def prediction_step(
        self, model: nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        """Return the loss of a batch without logits, which the loss computes in chunks.

        Problems that are in the batches of other processes as well are not counted.
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
        """Evaluate and report the mean loss per problem over all processes."""
        device = self.accelerator.device
        self._evaluated = torch.zeros(2, dtype=widest_float(device), device=device)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss, problems = self.accelerator.reduce(self._evaluated, "sum").tolist()
        if problems:
            output.metrics[f"{metric_key_prefix}_loss"] = loss / problems
        return output
