"""TRL's experimental GKD, or a replacement where TRL has none."""

import os

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

try:
    from trl.experimental.gkd import GKDConfig, GKDTrainer
except ImportError:  # TRL removes experimental trainers without deprecating them
    from .gkd_replacement import GKDConfig, GKDTrainer

__all__ = ["GKDConfig", "GKDTrainer"]
