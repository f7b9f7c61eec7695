"""The one place where TRL's experimental GKD enters; `tests/test_trl_contract.py` names what is relied on."""

import os

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from trl.experimental.gkd import GKDConfig, GKDTrainer

__all__ = ["GKDConfig", "GKDTrainer"]
