"""Import of TRL's experimental GKD; `tests/test_trl_contract.py` names the parts that are relied on."""

import os

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from trl.experimental.gkd import GKDConfig, GKDTrainer

__all__ = ["GKDConfig", "GKDTrainer"]
