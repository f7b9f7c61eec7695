"""When β is drawn anew and when it steps, in terms of the training loop's events."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..beta import AdaptiveBeta


class BetaSchedule(TrainerCallback):
    """Reset β where an epoch begins, and report that the gradients of an optimiser step are complete.

    A run that resumes within an epoch begins that epoch again, but finds β already there.

    Args:
        beta (`AdaptiveBeta`):
            The coefficient.
        finish_step (`Callable`):
            Called once per optimiser step, on all ranks.
    """

    def __init__(self, beta: AdaptiveBeta, finish_step: Callable[[], None]) -> None:
        self.beta = beta
        self.finish_step = finish_step

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Bring β to the epoch that begins."""
        while self.beta.epoch < int(state.epoch or 0):
            self.beta.reset()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report the step."""
        self.finish_step()
