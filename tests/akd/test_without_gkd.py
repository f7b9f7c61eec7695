"""Training where TRL has no `trl.experimental.gkd`."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from trl_akd import AKDConfig, AKDTrainer
from trl_akd.akd import gkd_replacement
from trl_akd.akd.gkd import GKDConfig

ROOT = Path(__file__).parents[2]

TRAIN_WITHOUT_GKD = """
import importlib.abc, json, sys

class Removed(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "trl.experimental.gkd" or name.startswith("trl.experimental.gkd."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Removed())
from tests.akd.test_without_gkd import train
from trl_akd.akd import gkd, gkd_replacement

assert gkd.GKDTrainer is gkd_replacement.GKDTrainer and "trl.experimental.gkd" not in sys.modules
print(json.dumps(train(*sys.argv[1:])))
"""


def train(student: str, teacher: str, folder: str) -> list[dict[str, float]]:
    """Losses, mean divergences and β of three steps, of which some are on-policy."""
    config = AKDConfig(
        output_dir=folder, max_length=64, lmbda=0.5, max_new_tokens=4, seed=1, **{**tiny.SHORT_RUN, "max_steps": 3}
    )
    trainer = AKDTrainer(student, teacher, config, train_dataset=tiny.rows(12))
    trainer.train()
    names = ("loss", "kd/forward_kl", "kd/reverse_kl", "kd/beta")
    return [{name: log[name] for name in names} for log in trainer.state.log_history if "loss" in log]


def test_training_is_the_same_without_gkd(pair, tmp_path):
    command = [sys.executable, "-c", TRAIN_WITHOUT_GKD, *pair, str(tmp_path / "without")]
    found = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    without = json.loads(found.stdout.splitlines()[-1])
    assert len(without) == 3
    assert without == [pytest.approx(log, rel=1e-5) for log in train(*pair, str(tmp_path / "with"))]


def test_the_replacement_has_the_fields_of_gkd():
    mine, theirs = (
        {entry.name: entry for entry in dataclasses.fields(kind)} for kind in (gkd_replacement.GKDConfig, GKDConfig)
    )
    assert list(mine) == list(theirs)
    assert {name: entry.default for name, entry in mine.items()} == {
        name: entry.default for name, entry in theirs.items()
    }
    assert gkd_replacement.GKDConfig._VALID_DICT_FIELDS == GKDConfig._VALID_DICT_FIELDS
