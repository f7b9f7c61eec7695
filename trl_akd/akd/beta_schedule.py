"""When β is drawn anew and when it steps, in terms of the training loop's events."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..beta import AdaptiveBeta


class BetaSchedule(TrainerCallback):
    """Reset β where an epoch begins, and report that the gradients of an optimiser step are complete.

    A run that resumes within an epoch begins that epoch again, but finds β already there. Epochs are counted by their
    beginnings, as a stream's length, and so its share of an epoch, is unknown.

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
        """Begin with the first epoch's β, unless the run resumes."""
        self._is_first_epoch = True
        if state.global_step == 0:
            self.beta.restart()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Bring β to the epoch that begins."""
        begun = int(state.epoch or 0) if self._is_first_epoch else self.beta.epoch + 1
        self._is_first_epoch = False
        while self.beta.epoch < begun:
            self.beta.reset()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report the step."""
        self.finish_step()
