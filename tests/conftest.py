"""Shared test settings: offline, quiet, one thread, no deadlines."""

import atexit
import gc
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
if not any(map(Path.exists, (Path("/dev/nvidiactl"), Path("/dev/kfd")))):  # no NVIDIA or AMD GPU
    os.environ.setdefault("TRITON_INTERPRET", "1")  # must be set before anything imports Triton

# Not the user's folder, as abandoned locks are deleted in it.
os.environ["TORCH_EXTENSIONS_DIR"] = str(
    Path(__file__).parents[1] / ".pytest_cache" / "operators" / Path(sys.prefix).name
)

settings.register_profile("any_load", deadline=None)
settings.load_profile("any_load")


def pytest_collection_finish() -> None:
    """Exempt imported modules from garbage collection: each training run ends with one, and would search them all."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    _delete_abandoned_locks(item)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    _delete_abandoned_locks(item)  # for which a test in another process may wait


def _delete_abandoned_locks(item: pytest.Item) -> None:
    """Delete locks that killed processes have left, if the test may use DeepSpeed, which would wait for them."""
    if any(map(item.get_closest_marker, ("distributed", "end_to_end", "slow"))):
        from trl_akd.cli.launching import abandoned_locks

        for lock in abandoned_locks():
            lock.unlink(missing_ok=True)


def pytest_unconfigure() -> None:
    """Silence standard error while Python exits, when Triton prints a list of its objects."""
    if "triton" in sys.modules:
        atexit.register(os.dup2, os.open(os.devnull, os.O_WRONLY), 2)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Paths of a tiny student and a tiny teacher, with tokenizers."""
    from tests import tiny  # imports torch

    return tiny.save_pair(tmp_path_factory.mktemp("pair"))
