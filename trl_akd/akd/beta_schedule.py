"""Callback that draws and updates β at the events of the training loop."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..beta import AdaptiveBeta


class BetaSchedule(TrainerCallback):
    """Callback that resets β at the beginning of each epoch, and calls `finish_step` when gradients are complete.

    A run that resumes within an epoch begins that epoch again, with β already loaded. Epochs are counted as they
    begin, since the length of a stream is unknown.

    Args:
        beta (`AdaptiveBeta`):
            The coefficient.
        finish_step (`Callable`):
            Called once per optimiser step, on all ranks.
    """

    def __init__(self, beta: AdaptiveBeta, finish_step: Callable[[], None]) -> None:
        self.beta = beta
        self.finish_step = finish_step
        self._is_first_epoch = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set β to its value of the first epoch, unless the run resumes."""
        self._is_first_epoch = True
        if state.global_step == 0:
            self.beta.restart()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reset β until it has reached the epoch that begins."""
        begun = int(state.epoch or 0) if self._is_first_epoch else self.beta.epoch + 1
        self._is_first_epoch = False
        while self.beta.epoch < begun:
            self.beta.reset()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Call `finish_step`."""
        self.finish_step()
