"""Shared test settings: offline, quiet, one thread, no deadlines."""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
if not any(map(Path.exists, (Path("/dev/nvidiactl"), Path("/dev/kfd")))):  # no NVIDIA or AMD GPU
    os.environ.setdefault("TRITON_INTERPRET", "1")  # must be set before anything imports Triton

settings.register_profile("any_load", deadline=None)
settings.load_profile("any_load")


def pytest_collection_finish() -> None:
    """Exempt imported modules from garbage collection: each training run ends with one, and would search them all."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Silence standard error while Python exits, when Triton prints a list of its objects."""
    if "triton" in sys.modules:
        atexit.register(os.dup2, os.open(os.devnull, os.O_WRONLY), 2)


@pytest.fixture(autouse=True)
def no_abandoned_locks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Delete locks that killed runs have left, before and after tests that may use DeepSpeed, which would wait."""
    if not any(map(request.node.get_closest_marker, ("distributed", "end_to_end"))):
        yield
        return
    from trl_akd.cli.launching import abandoned_locks

    for lock in abandoned_locks():
        lock.unlink(missing_ok=True)
    yield
    for lock in abandoned_locks():
        lock.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Paths of a tiny student and a tiny teacher, with tokenizers."""
    from tests import tiny  # imports torch

    return tiny.save_pair(tmp_path_factory.mktemp("pair"))
