"""Distill large code models into small ones with TRL, and evaluate the result by running the code it writes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "AKDConfig",
    "AKDTrainer",
    "AdaptiveBeta",
    "CodePLANConfig",
    "CodePLANMixin",
    "CodePLANTrainer",
    "DataCollatorForCodePLAN",
    "IterKDConfig",
    "IterKDTrainer",
    "PlanGenerator",
    "PlanSampler",
]

_HOME = {
    "AKDConfig": "akd.akd_config",
    "AKDTrainer": "akd.akd_trainer",
    "AdaptiveBeta": "beta",
    "CodePLANConfig": "codeplan.codeplan_config",
    "CodePLANMixin": "codeplan.codeplan_mixin",
    "CodePLANTrainer": "codeplan.codeplan_trainer",
    "DataCollatorForCodePLAN": "codeplan.collator",
    "IterKDConfig": "iterkd.iterkd_config",
    "IterKDTrainer": "iterkd.iterkd_trainer",
    "PlanGenerator": "codeplan.plan_generation",
    "PlanSampler": "codeplan.plan_sampling",
}

if TYPE_CHECKING:
    from .akd.akd_config import AKDConfig
    from .akd.akd_trainer import AKDTrainer
    from .beta import AdaptiveBeta
    from .codeplan.codeplan_config import CodePLANConfig
    from .codeplan.codeplan_mixin import CodePLANMixin
    from .codeplan.codeplan_trainer import CodePLANTrainer
    from .codeplan.collator import DataCollatorForCodePLAN
    from .codeplan.plan_generation import PlanGenerator
    from .codeplan.plan_sampling import PlanSampler
    from .iterkd.iterkd_config import IterKDConfig
    from .iterkd.iterkd_trainer import IterKDTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
