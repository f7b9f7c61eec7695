"""Callback that begins and ends the parts of a training run: its knobs of divergences, and the trainer's sums."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..beta import AdaptiveBeta
from ..losses.knobs import KnobSchedule


class ScheduleCallback(TrainerCallback):
    """Callback that resets schedules at the beginning of each epoch, and calls functions of the trainer.

    When training resumes within an epoch, `on_epoch_begin` is called for that epoch a second time, with the schedules
    already loaded. Epochs are counted as they begin, since the length of a stream is unknown.

    Args:
        beta (`AdaptiveBeta`):
            The mixing coefficient of AKD, which counts the epochs for every divergence.
        schedule (`KnobSchedule`, *optional*):
            The schedule of the divergence, which may be `beta`.
        begin_training (`Callable`):
            Function called on all ranks when training begins, with whether it resumes.
        finish_step (`Callable`):
            Function called on all ranks before each optimizer step.
        finish_epoch (`Callable`):
            Function called on all ranks after each epoch, with whether training has had a batch.
    """

    def __init__(
        self,
        beta: AdaptiveBeta,
        schedule: KnobSchedule | None,
        begin_training: Callable[[bool], None],
        finish_step: Callable[[], None],
        finish_epoch: Callable[[bool], None],
    ) -> None:
        self.beta = beta
        self.schedules = [beta] if schedule is None or schedule is beta else [beta, schedule]
        self.begin_training = begin_training
        self.finish_step = finish_step
        self.finish_epoch = finish_epoch
        self._is_first_epoch = True
        self._has_batches = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the knobs to their initial values, unless training resumes, and call `begin_training`."""
        self._is_first_epoch = True
        is_resumed = self._has_batches = state.global_step > 0
        if not is_resumed:
            for schedule in self.schedules:
                schedule.begin_training()
        self.begin_training(is_resumed)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reset the schedules until β has reached the epoch that begins."""
        begun = int(state.epoch or 0) if self._is_first_epoch else self.beta.epoch + 1
        self._is_first_epoch = False
        while self.beta.epoch < begun:
            for schedule in self.schedules:
                schedule.reset()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note that there is a batch."""
        self._has_batches = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Call `finish_epoch`."""
        self.finish_epoch(self._has_batches)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Call `finish_step`."""
        self.finish_step()
