from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from trl_akd import IterKDConfig
from trl_akd.iterkd.pair_trainer import PairTrainer

from . import world


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., IterKDConfig]:
    def make(**settings: Any) -> IterKDConfig:
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "report_to": "none",
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "max_length": 64,
            "learning_rate": 1e-2,
            "gradient_checkpointing": False,
        }
        return IterKDConfig(**{**defaults, **settings})

    return make


@pytest.fixture
def trainer(config: Callable[..., IterKDConfig]) -> Callable[..., PairTrainer]:
    """Make a trainer of a tiny student; settings of the trainer by name, all others go to the configuration."""

    def make(model: Any = None, teacher_model: Any = None, **settings: Any) -> PairTrainer:
        names = ("train_dataset", "eval_dataset", "peft_config", "callbacks", "data_collator")
        given = {"train_dataset": world.pairs(8), **{name: settings.pop(name) for name in names if name in settings}}
        return PairTrainer(
            model or tiny.model(), teacher_model, args=config(**settings), processing_class=tiny.tokenizer(), **given
        )

    return make
