"""Run two cycles on every process, and record the final state of each process.

Run by `test_cycle_distributed.py`: `python -m tests.iterkd.cycle_worker SETTINGS`.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tests.iterkd import cycle_world
from trl_akd.execution import CodeExecutor
from trl_akd.generation import GenerationError
from trl_akd.ledger import Ledger

RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

# Two processes would fill the last batch up with a pair from the beginning; and Adam makes much of tiny differences.
TRAINING: dict[str, Any] = {
    "dataloader_drop_last": True,
    "optim": "sgd",
    "learning_rate": 1e-2,
    "max_grad_norm": 1e9,
}


class Interruption(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise RuntimeError("interrupted")


def _failing_teacher() -> cycle_world.RuleTeacher:
    left = [5]

    def fail(prompt: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise GenerationError("the server is gone")

    return cycle_world.RuleTeacher(fail)


def _full_disk(run: Callable[[], None]) -> None:
    append, left = Ledger.append, [9]

    def fail(ledger: Ledger, rows: Any) -> list[int]:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "the disk is full")
        return append(ledger, rows)

    Ledger.append = fail  # type: ignore[method-assign]
    try:
        run()
    finally:
        Ledger.append = append  # type: ignore[method-assign]


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    folder, output_dir = Path(settings["folder"]), Path(settings["output_dir"])
    asked: list[str] = []

    with CodeExecutor(allow_code_execution=True, workers=1) as executor:

        def make(teacher: Any, callbacks: Any = None) -> Any:
            settings = {**TRAINING, "per_device_train_batch_size": 2 // RANKS}
            return cycle_world.trainer(
                folder, output_dir, teacher, executor, callbacks=callbacks, generation_batch_size=4, **settings
            )

        attempts: dict[str, Callable[[], None]] = {
            "teacher": lambda: make(_failing_teacher()).train(),
            "disk": lambda: _full_disk(make(cycle_world.RuleTeacher()).train),
            "training": lambda: make(cycle_world.RuleTeacher(), [Interruption()]).train(),
        }
        errors = []
        for name in settings["attempts"]:
            try:
                attempts[name]()
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
        trainer = make(cycle_world.RuleTeacher(asked.append))
        trainer.train()
        again: list[str] = []
        done = make(cycle_world.RuleTeacher(again.append))
        done.train()
        done.save_model(str(output_dir / "final"))
    record = {
        "world_size": trainer.accelerator.num_processes,
        "errors": errors,
        "asked": len(asked),
        "asked_again": len(again),
        "reports": [asdict(report) for report in trainer.reports],
    }
    output_dir.with_suffix(f".rank{RANK}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
