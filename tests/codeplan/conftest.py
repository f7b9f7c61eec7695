from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from trl_akd import CodePLANConfig, CodePLANTrainer

from . import world


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., CodePLANConfig]:
    def make(**settings: Any) -> CodePLANConfig:
        own = {"output_dir": str(tmp_path / "run"), "max_length": 256, "disable_tqdm": True}
        return CodePLANConfig(**{**tiny.SHORT_RUN, **own, **settings})

    return make


@pytest.fixture
def trainer(config: Callable[..., CodePLANConfig]) -> Callable[..., CodePLANTrainer]:
    """Create a trainer of a tiny student; settings that are not arguments of the trainer go to the configuration."""

    def make(model: Any = None, teacher_model: Any = None, **settings: Any) -> CodePLANTrainer:
        names = ("train_dataset", "eval_dataset", "data_collator", "processing_class", "peft_config", "callbacks")
        given = {name: settings.pop(name) for name in names if name in settings}
        given.setdefault("train_dataset", world.problems(8))
        if not isinstance(model, str):
            given.setdefault("processing_class", tiny.tokenizer())
        return CodePLANTrainer(model or tiny.model(), teacher_model, config(**settings), **given)

    return make
