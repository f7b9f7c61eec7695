from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from trl_akd import AKDConfig, AKDTrainer


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., AKDConfig]:
    def make(**settings: Any) -> AKDConfig:
        own = {"output_dir": str(tmp_path / "run"), "max_length": 64}
        return AKDConfig(**{**tiny.SHORT_RUN, **own, **settings})

    return make


@pytest.fixture
def trainer(pair: tuple[str, str], config: Callable[..., AKDConfig]) -> Callable[..., AKDTrainer]:
    """Create a trainer of the tiny pair; settings that are not arguments of the trainer go to the configuration."""

    def make(
        model: Any = None,
        teacher_model: Any = None,
        train_dataset: Any = None,
        peft_config: Any = None,
        **settings: Any,
    ) -> AKDTrainer:
        given = {
            name: settings.pop(name)
            for name in (
                "processing_class",
                "data_collator",
                "eval_dataset",
                "callbacks",
                "teacher_tokenizer",
                "compute_metrics",
            )
            if name in settings
        }
        if "processing_class" not in given and not isinstance(model, str | None):
            given["processing_class"] = tiny.tokenizer()
        return AKDTrainer(
            model=pair[0] if model is None else model,
            teacher_model=pair[1] if teacher_model is None else teacher_model,
            args=config(**settings),
            train_dataset=train_dataset or tiny.rows(8),
            peft_config=peft_config,
            **given,
        )

    return make
