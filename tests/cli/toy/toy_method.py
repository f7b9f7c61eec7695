"""A method outside the package: its configuration, its trainer, and its interface to the command line."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_akd import AKDConfig, AKDTrainer
from trl_akd.cli.dry_run import DryRun
from trl_akd.cli.methods import Method


@dataclass
class ToyConfig(AKDConfig):
    """
    Configuration of `ToyTrainer`.

    Args:
        loss_scale (`float`, *optional*, defaults to `1.0`):
            Factor of the loss.
        losses_file (`str`, *optional*):
            File for the losses of all micro-batches.
    """

    loss_scale: float = 1.0
    losses_file: str | None = None


class ToyTrainer(AKDTrainer):
    """Scales AKD's loss and writes the losses to a file."""

    losses: list[float]

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = self.args.loss_scale * super().compute_loss(*args, **kwargs)
        self.losses = [*getattr(self, "losses", []), loss.item()]
        return loss

    def save_state(self) -> None:
        super().save_state()
        if self.args.losses_file is not None and self.is_world_process_zero():
            Path(self.args.losses_file).write_text(json.dumps(self.losses))


class ToyMethod(Method):
    """AKD with a scaled loss."""

    name = "toy"

    def config_class(self) -> type[ToyConfig]:
        return ToyConfig

    def trainer_class(self) -> type[ToyTrainer]:
        return ToyTrainer

    def check(self, *arguments: Any) -> None:
        _, training_args, model_args, _ = arguments
        if training_args.loss_scale != 1.0 and model_args.use_peft:
            raise ValueError(f"`loss_scale` is {training_args.loss_scale}, but `use_peft` is on; leave one out.")

    def adapt_dry_run(self, dry_run: DryRun) -> None:
        if dry_run.values.losses_file is not None:
            dry_run.replaced.append(f"{dry_run.values.losses_file}: a temporary file")
            dry_run.values.losses_file = str(dry_run.folder / "losses.json")
            dry_run.checked.append("the file of losses")

    def dry_run_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"instruction": row["instruction"], "input": "", "output": row["output"]} for row in rows[:6]]


METHOD = ToyMethod()
